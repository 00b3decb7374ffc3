"""Replicas: devices that share the rows of every batch, each with a copy of the variables."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kddpm.base.types import Tensor


def summed(values: list) -> list:
    """The same tensors of all replicas, added up."""
    context = tf.distribute.get_replica_context()
    return values if context.num_replicas_in_sync == 1 else context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def averaged(values: list) -> list:
    """The same tensors of all replicas, averaged."""
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    return values if replicas == 1 else [value / replicas for value in summed(values)]


def place_of(count: Tensor) -> tuple[Tensor, Tensor]:
    """Of a number that each replica has one of: the sum over the replicas before this one, and over all.

    Args:
        count: an int, the same on all replicas; or an int32 scalar, which is asked of them.
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
    """Work on the rows of arrays, each of which is some replica's.

    Args:
        strategy: of the model whose variables are asked.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self.replicas = strategy.num_replicas_in_sync

    def compile(self, function: Callable, **kwargs) -> Callable:
        """As a `tf.function` that each replica calls, with the rows that are `share`d with it and with all else."""
        one = tf.function(function, autograph=False, **kwargs)
        if self.replicas == 1:
            return one
        # A `tf.function` itself would be taken apart by `run`, and XLA asked to compile all replicas as one.
        return tf.function(lambda *args: self._strategy.run(lambda *mine: one(*mine), args), autograph=False)

    def share(self, array: np.ndarray | None) -> Tensor:
        """An array (B, ...), B a multiple of the replicas, for `compile`d functions; None goes through."""
        if array is None or self.replicas == 1:
            return None if array is None else tf.constant(array)
        size = len(array) // self.replicas

        def mine(context):
            first = context.replica_id_in_sync_group * size
            return tf.constant(array[first : first + size])

        return self._strategy.experimental_distribute_values_from_function(mine)

    def join(self, value: object) -> Tensor:
        """The rows of all replicas, (B, ...)."""
        return value if self.replicas == 1 else self._strategy.gather(value, axis=0)
