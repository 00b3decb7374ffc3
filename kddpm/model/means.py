"""Sums and means of what every replica says alike, so that saved and restored ones go on to the same bits.

Keras's own metrics keep a part on each replica: what is restored is shared out anew, and rounds in another way.
"""

import keras

from kddpm.base.types import Tensor


class _Tally(keras.metrics.Metric):
    def _number(self, name):
        return self.add_variable((), "zeros", aggregation="only_first_replica", name=name)


class Sum(_Tally):
    """The sum of numbers that are the same on all replicas."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.total = self._number("total")

    def update_state(self, value: object) -> None:
        """Add a scalar."""
        self.total.assign_add(value)

    def result(self) -> Tensor:
        """The sum."""
        return self.total + 0.0  # a tensor


class Mean(_Tally):
    """The mean of numbers whose sums are the same on all replicas; 0 of none."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.total, self.count = self._number("total"), self._number("count")

    def update_state(self, total: Tensor, count: Tensor) -> None:
        """Add the sum of so many numbers, both scalars."""
        self.total.assign_add(total)
        self.count.assign_add(count)

    def result(self) -> Tensor:
        """The mean."""
        return keras.ops.divide_no_nan(self.total, self.count)
