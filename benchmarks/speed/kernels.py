"""The operators of `ceiling.py`: their shapes and operations, for both programs."""

import time

SIDE = 2048  # of the matrices
CONVOLUTIONS = ((16, 32, 64), (64, 28, 32), (64, 8, 32), (8, 32, 128))  # batch, side, channels; 3x3, as many out


def rates(product, convolution, backward, seconds):
    """{operator: operations/s}.

    Args:
        product: (side) -> function that multiplies two square matrices and waits for the result.
        convolution: (batch, side, channels) -> function that convolves and waits.
        backward: the same, for the gradients of input and kernel besides.
        seconds: how long to repeat each.
    """
    found = {f"product of {SIDE}x{SIDE}": rate(product(SIDE), 2 * SIDE**3, seconds)}
    for batch, side, channels in CONVOLUTIONS:
        operations, name = 2 * 9 * batch * (side * channels) ** 2, f"3x3 on {batch}x{side}x{side}x{channels}"
        found[name] = rate(convolution(batch, side, channels), operations, seconds)
        found[f"{name}, with gradients"] = rate(backward(batch, side, channels), 3 * operations, seconds)
    return found


def rate(call, operations, seconds):
    """Operations/s of a function, called for that long and at least three times."""
    call(), call()
    start, calls = time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - start < seconds:
        call()
        calls += 1
    return calls * operations / (time.perf_counter() - start)
