import warnings

import numpy as np
import pytest
import tensorflow as tf

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.data import inputs

SHAPE = (4, 6, 1)
RANGE = r"Images must be uint8, or finite floats in \[-1, 1\] \(x / 127.5 - 1\)\."


def between(low, high, count=4):
    """Float images that reach both ends."""
    return np.linspace(low, high, count * 24, dtype="float32").reshape(count, *SHAPE)


def passed(source, classes=None):
    """Every batch of a source, after the look at it."""
    with inputs.Guard(SHAPE, classes) as guard:
        return list(guard.source(source)[0])


def check(x, y=None, classes=None):
    """What comes back for an array or a dataset that is not read."""
    return inputs.Guard(SHAPE, classes).source(x, y)


def batches(*arrays, batch_size=2):
    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0]).batch(batch_size)


# Lists of integers.


@pytest.mark.parametrize(
    "values",
    [
        range(-1, 2),
        [-1, 0, 1],
        (-1, 0, 1),
        np.arange(-1, 2),
        np.array([-1, 0, 1], np.int8),
        pytest.param(iter([-1, 0, 1]), id="iterator"),
    ],
    ids=str,
)
def test_what_is_a_list_of_integers(values):
    array = arguments.int32("seeds", values)
    assert array.dtype == np.int32 and array.tolist() == [-1, 0, 1]


def test_the_ends_of_int32():
    assert arguments.int32("seeds", [-(2**31), 2**31 - 1]).tolist() == [-(2**31), 2**31 - 1]
    assert arguments.int32("seeds", np.array([7], np.uint64)).tolist() == [7]
    for value in (-(2**31) - 1, 2**31):
        with pytest.raises(InputError, match=f"^`seeds` must fit int32. Received: values from {value} to {value}$"):
            arguments.int32("seeds", [value])


@pytest.mark.parametrize("values", [[], [1.0], [[1, 2]], np.array(3), [True], ["1"], np.zeros((0,), int)], ids=repr)
def test_what_is_not_a_list_of_integers(values):
    with pytest.raises(InputError, match="^`labels` must be a non-empty list of integers. Received: "):
        arguments.int32("labels", values)


# Arrays.


@pytest.mark.parametrize("x", [np.zeros((4, *SHAPE), "uint8"), between(-1, 1), between(-1, 1).astype("float64")])
def test_good_arrays_come_back_as_they_are(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(x)[0] is x


@pytest.mark.parametrize("low, high", [(-1.1, 1), (-1, 1.1), (0, 255), (-np.inf, 0), (0, np.inf)])
def test_values_outside_the_range(low, high):
    x = between(-1, 1)
    x[0, 0, 0], x[-1, -1, -1] = low, high
    low, high = (str(value).removesuffix(".0") for value in (x.min(), x.max()))
    with pytest.raises(InputError, match=f"^{RANGE} Received: from {low} to {high}$"):
        check(x)


def test_nan_anywhere():
    x = between(-1, 1)
    x[2, 1, 3] = np.nan
    with pytest.raises(InputError, match=f"^{RANGE} Received: NaN$"):
        check(x)


@pytest.mark.parametrize("dtype", ["int32", "int8", "bool", "complex64"])
def test_other_types(dtype):
    message = f"^Images must be uint8, or float in .-1, 1.. Received: {dtype}$"
    x = np.zeros((4, *SHAPE), dtype)
    for source in (x, batches(x)):
        with pytest.raises(InputError, match=message):
            check(source)


@pytest.mark.parametrize("shape, received", [((6, 4, 1), "6, 4, 1"), ((4, 6), "4, 6"), ((4, 6, 3), "4, 6, 3")])
def test_other_shapes(shape, received):
    x = np.zeros((4, *shape), "uint8")
    for size, source in ((4, x), ("N", batches(x))):
        expected = rf"^Images must have the shape \(N, 4, 6, 1\) of the network. Received: \({size}, {received}\)$"
        with pytest.raises(InputError, match=expected):
            check(source)


def test_images_between_0_and_1_warn():
    with pytest.warns(
        UserWarning, match=r"The images lie in \[0, 1\]; floats are expected in \[-1, 1\]. .* x \* 2 - 1"
    ):
        check(between(0, 1))


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, -1, 2, 1], [0.0, 1.0, 2.0, 0.0]])
def test_labels_beside_an_array(labels):
    x = np.zeros((4, *SHAPE), "uint8")
    with pytest.raises(InputError, match=r"^`labels` must be integers in 0 \.\. 2\. Received: (int|float)64 from"):
        check(x, labels, 3)
    assert check(x, labels)[0] is x  # without classes nobody reads them
    assert check(x, [0, 1, 2, 0], 3)[0] is x


# Datasets.


def test_good_batches_pass_unchanged():
    x, y = between(-1, 1), np.array([0, 1, 2, 0])
    images = np.concatenate([batch.numpy() for batch in passed(batches(x))])
    np.testing.assert_array_equal(images, x)
    pairs = passed(batches(x, y), 3)
    np.testing.assert_array_equal(np.concatenate([pair[0].numpy() for pair in pairs]), x)
    assert [pair[1].numpy().tolist() for pair in pairs] == [[0, 1], [2, 0]]


@pytest.mark.parametrize("value", [1.5, -2.0, np.nan, np.inf])
def test_a_bad_batch_ends_in_one_line(value):
    x = between(-1, 1)
    x[3, 0, 0] = value
    with pytest.raises(InputError, match=f"^{RANGE} Received: (NaN|from .* to .*)$") as caught:
        passed(batches(x))
    text = str(caught.value)
    assert "\n" not in text and "node" not in text and len(text) < 150
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize("label", [-1, 3])
def test_a_bad_label_in_a_batch_is_in_the_line(label):
    x, y = np.zeros((8, *SHAPE), "uint8"), np.array([0, 1, 2, 0, 1, 2, 1, label])
    with pytest.raises(InputError, match=r"^`labels` must be integers in 0 \.\. 2\. Received: int64 from") as caught:
        passed(batches(x, y, batch_size=8), 3)
    assert str(label) in str(caught.value).split("Received:")[1]
    assert len(passed(batches(x, y))) == 4  # without classes nobody reads them


def test_other_errors_keep_their_text():
    with pytest.raises(tf.errors.InvalidArgumentError, match="another"), inputs.Guard(SHAPE, None):
        tf.debugging.Assert(False, ["another"])
