"""Sums and means of values that are the same on every replica; after a restore they continue bit for bit.

Keras's own metrics keep a partial sum on each replica: a restored sum is split anew, and so rounds differently.
"""

import keras

from kddpm.base.types import Tensor


class _ReplicatedMetric(keras.metrics.Metric):
    """A metric whose scalars have the same value on all replicas."""

    def _number(self, name):
        return self.add_variable((), "zeros", aggregation="only_first_replica", name=name)


class Sum(_ReplicatedMetric):
    """The sum of numbers that are the same on all replicas."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.total = self._number("total")

    def update_state(self, value: object) -> None:
        """Add a scalar to the sum."""
        self.total.assign_add(value)

    def result(self) -> Tensor:
        """Return the sum so far."""
        return self.total + 0.0  # a tensor


class Mean(_ReplicatedMetric):
    """The mean of numbers whose sums are the same on all replicas; NaN if there are none."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.total, self.count = self._number("total"), self._number("count")

    def update_state(self, total: Tensor, count: Tensor) -> None:
        """Add numbers by their sum, `total`, and their `count`, both scalars."""
        self.total.assign_add(total)
        self.count.assign_add(count)

    def result(self) -> Tensor:
        """Return the mean so far."""
        return self.total / self.count
