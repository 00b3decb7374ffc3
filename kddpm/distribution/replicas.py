"""Operations across replicas: devices that share the rows of every batch, each with a copy of the variables."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kddpm.base.types import Tensor


def summed(values: list) -> list:
    """Return the tensors summed over all replicas (all-reduce)."""
    context = tf.distribute.get_replica_context()
    return values if context.num_replicas_in_sync == 1 else context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def averaged(values: list) -> list:
    """Return the tensors averaged over all replicas (all-reduce)."""
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    return values if replicas == 1 else [value / replicas for value in summed(values)]


def place_of(count: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of `count` over the replicas before this one, and over all replicas.

    Args:
        count: this replica's count: an int, the same on all replicas; or an int32 scalar, which is all-reduced.
    """
    context = tf.distribute.get_replica_context()
    replicas, replica = context.num_replicas_in_sync, context.replica_id_in_sync_group
    if replicas == 1:
        return 0, count
    if isinstance(count, int):
        return replica * count, replicas * count
    each = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.one_hot(replica, replicas, count, 0, dtype=tf.int32))
    return tf.reduce_sum(each[:replica]), tf.reduce_sum(each)


class SharedRows:
    """Runs functions on arrays whose rows are split among the replicas.

    Args:
        strategy: strategy of the model whose variables the functions read.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self.replicas = strategy.num_replicas_in_sync

    def compile(self, function: Callable, **kwargs) -> Callable:
        """Return a `tf.function` that each replica calls with its rows of `share`d arguments and with all others."""
        one = tf.function(function, autograph=False, **kwargs)
        if self.replicas == 1:
            return one
        # `run` would unwrap a bare `tf.function`, and XLA would have to compile all replicas as one.
        return tf.function(lambda *args: self._strategy.run(lambda *mine: one(*mine), args), autograph=False)

    def share(self, array: np.ndarray | None) -> Tensor:
        """Split an array (B, ...), B a multiple of the replicas, for `compile`d functions; None stays None."""
        if array is None or self.replicas == 1:
            return None if array is None else tf.constant(array)
        size = len(array) // self.replicas

        def mine(context):
            first = context.replica_id_in_sync_group * size
            return tf.constant(array[first : first + size])

        return self._strategy.experimental_distribute_values_from_function(mine)

    def join(self, value: object) -> Tensor:
        """Gather the rows of all replicas, (B, ...)."""
        return value if self.replicas == 1 else self._strategy.gather(value, axis=0)
