"""Operations across replicas: devices that share the rows of every batch, each with a copy of the variables."""

import concurrent.futures
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kddpm.base.types import Tensor
from kddpm.distribution import cores


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
    """Runs functions on arrays whose rows are split among the replicas, or among the cores of a CPU.

    Args:
        strategy: strategy of the model whose variables the functions read.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self._replicas = strategy.num_replicas_in_sync

    def compile(self, function: Callable, **kwargs) -> Callable:
        """Return a function that each replica, or core, calls with its own rows of `share`d arguments."""
        one = tf.function(function, autograph=False, **kwargs)
        if self._replicas == 1:
            return functools.partial(_on_cores, one) if cores.are_divided(self._strategy) else one
        # `run` would unwrap a bare `tf.function`, and XLA would have to compile all replicas as one.
        return tf.function(lambda *args: self._strategy.run(lambda *mine: one(*mine), args), autograph=False)

    def full(self, rows: int) -> int:
        """Return the next larger number of rows that can be shared."""
        return -(-rows // self._replicas) * self._replicas

    def share(self, array: np.ndarray | None) -> Tensor:
        """Split an array (B, ...), B of `full`, for `compile`d functions; None stays None."""
        if array is None:
            return None
        if self._replicas == 1:
            parts = cores.most_parts(len(array), self._strategy)
            return tf.constant(array) if parts == 1 else _Parts(map(tf.constant, np.array_split(array, parts)))
        size = len(array) // self._replicas

        def mine(context):
            first = context.replica_id_in_sync_group * size
            return tf.constant(array[first : first + size])

        return self._strategy.experimental_distribute_values_from_function(mine)

    def join(self, value: object) -> Tensor:
        """Gather the rows from everywhere, (B, ...)."""
        if isinstance(value, _Parts):
            return tf.concat(value.rows, axis=0)
        return value if self._replicas == 1 else self._strategy.gather(value, axis=0)


class _Parts:
    """A tensor whose rows are split among the cores."""

    def __init__(self, rows):
        self.rows = list(rows)


def _on_cores(function, *arguments):
    """Call a function once for each part, all at the same time, and split its results in the same way."""
    parts = max((len(value.rows) for value in tf.nest.flatten(arguments) if isinstance(value, _Parts)), default=1)
    if parts == 1:
        return function(*arguments)

    def call(part):
        return function(*tf.nest.map_structure(lambda x: x.rows[part] if isinstance(x, _Parts) else x, arguments))

    with concurrent.futures.ThreadPoolExecutor(parts) as threads:
        results = list(threads.map(call, range(parts)))
    return tf.nest.map_structure(lambda *rows: _Parts(rows), *results)
