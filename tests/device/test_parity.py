import numpy as np
import pytest

import kddpm
from kddpm.device import parity

TIMESTEPS = [9, 4, 0]


def signatures(offset=0.0, grey=0, noise=0.0, finish=0):
    """A toy with the five signatures, off by so much in its steps, one pixel of its pictures, its noise, its finish."""

    def start(seed):
        return {"x": (np.ones((1, 2, 2, 1)) * seed[0] + noise).astype(np.float32)}

    def step(x, index, seed):
        return {"x": (x / 2 + index[0] + offset * index[0]).astype(np.float32)}

    def to_image(x, finish=finish):
        return {"image": 100 + x.astype(np.int32) + finish}

    def generate(seed):
        x = np.ones((1, 2, 2, 1)) * seed[0]
        for index in range(len(TIMESTEPS)):
            x = x / 2 + index
        image = to_image(x, 0)["image"]
        image[0, 0, 0, 0] += grey
        return {"image": image}

    return {
        "start": start,
        "step": step,
        "generate": generate,
        "denoise": lambda x, t: {"eps": x * t[0] + offset},
        "finish": to_image,
    }


def measure(**changes):
    batches = [{"seed": np.array([seed], np.int32)} for seed in range(4)]
    pictures = np.concatenate([signatures()["generate"](**batch)["image"] for batch in batches]).astype(np.uint8)
    calls = []
    result = parity.measure(
        signatures(**changes), signatures(), pictures, batches, TIMESTEPS, lambda: calls.append(None)
    )
    assert len(calls) == len(batches) + len(TIMESTEPS)
    return result


def test_equal_signatures_agree_in_everything():
    assert measure() == parity.Parity(4, True, 0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0)


def test_differences_are_measured_where_they_are():
    result = measure(offset=0.125, grey=-3)
    assert (result.max_grey_levels, result.mean_grey_levels, result.identical_pixels) == (3, 0.75, 0.75)
    assert (result.step_max_error, result.step_mean_error) == (0.25, 0.125)
    assert (result.denoise_max_error, result.denoise_mean_error) == (0.125, 0.125)
    assert result.finish_max_grey_levels == 0
    assert result.noise_identical
    assert not measure(noise=1e-7).noise_identical
    by_steps = measure(offset=1.0)  # `generate` is right, the way by steps is not
    assert by_steps.max_grey_levels == by_steps.mean_grey_levels == 3 and by_steps.identical_pixels == 1


@pytest.mark.parametrize(
    ("precision", "changes", "error"),
    [
        ("float32", {"grey": 1}, None),
        ("float32", {"grey": 2}, r"max_grey_levels <= 1\. Received: 2"),
        ("float16", {"grey": 2}, None),
        ("float16", {"grey": 3}, r"mean_grey_levels <= 0\.5\. Received: 0\.75"),
        ("int8", {"grey": 24}, None),
        ("int8", {"grey": 25}, r"mean_grey_levels <= 6\. Received: 6\.25"),
        ("int8", {"noise": 1e-7}, "noise must have the bits"),
        ("int8", {"finish": -1}, None),
        ("float32", {"offset": 0.125}, r"step_mean_error <= 0\.0001\. Received: 0\.125"),
        ("int8", {"offset": 0.0625}, None),
        ("int8", {"finish": -2}, r"finish_max_grey_levels <= 1\. Received: 2"),
    ],
)
def test_limits(precision, changes, error):
    result = measure(**changes)
    if error is None:
        result.check(parity.LIMITS[precision])
    else:
        with pytest.raises(kddpm.InputError, match=error):
            result.check(parity.LIMITS[precision])


def test_what_is_no_number_is_beyond_every_limit():
    result = parity.Parity(1, True, 0, 0.0, 1.0, 0.0, 0.0, 0.0, float("nan"), 0)
    with pytest.raises(kddpm.InputError, match="denoise_mean_error"):
        result.check(parity.LIMITS["int8"])


def test_of_a_state_with_a_memory_the_picture_is_denoised():
    asked = []

    def with_memory(memory):
        plain = signatures()

        def step(x, index, seed):
            after = plain["step"](x[..., :1], index, seed)["x"]
            return {"x": np.concatenate([after, x[..., :1] + memory], axis=-1)}

        def denoise(x, t):
            asked.append(x.shape)
            return plain["denoise"](x, t)

        return {
            **plain,
            "start": lambda seed: {"x": np.repeat(plain["start"](seed)["x"], 2, axis=-1)},
            "step": step,
            "finish": lambda x: plain["finish"](x[..., :1]),
            "denoise": denoise,
        }

    batches = [{"seed": np.array([3], np.int32)}]
    pictures = signatures()["generate"](**batches[0])["image"].astype(np.uint8)
    exact = parity.measure(with_memory(0), with_memory(0), pictures, batches, TIMESTEPS)
    assert exact == parity.Parity(1, True, 0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0)
    assert set(asked) == {pictures.shape}
    assert parity.measure(with_memory(0.5), with_memory(0), pictures, batches, TIMESTEPS).step_max_error == 0.5
