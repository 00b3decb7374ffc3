"""How far apart two results are."""

import numpy as np


def apart(ours, theirs):
    """The largest difference of two pictures, in grey levels."""
    return np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)).max()


def assert_same(ours, theirs):
    """Whether two lists of arrays hold the same bits."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def distance(ours, theirs):
    """The Euclidean distance of two lists of arrays."""
    return np.sqrt(sum(np.square(a.astype(float) - b).sum() for a, b in zip(ours, theirs, strict=True)))
