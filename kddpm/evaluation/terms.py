"""The terms of the bound, each from one noisy x_t of its own: one call of the network a term."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kddpm.evaluation.batches import on_replicas, signature_of
from kddpm.evaluation.chain import ReverseChain
from kddpm.sampling import noise
from kddpm.theory import objectives

CALLS_AT_ONCE = 50  # of the network, before a loop returns to Python and moves the progress bar


class Measured(NamedTuple):
    """What was computed of a batch.

    Attributes:
        chosen: t of the terms, int (B, each).
        nats: the terms, (B, each).
        squares: squared errors of the predicted x_0, (B, each).
        trajectories: -log of the weight of each trajectory, nats per dimension (B, K); None where there are none.
    """

    chosen: np.ndarray
    nats: np.ndarray
    squares: np.ndarray
    trajectories: np.ndarray | None = None


class Terms:
    """Computes some terms of each image, or all.

    Args:
        chain: the model.
        each: how many terms of an image, L_0 among them.

    Attributes:
        calls: calls of the network on a batch.
    """

    def __init__(self, chain: ReverseChain, each: int):
        self.calls = each
        self._chain = chain
        self._compute = chain.denoiser.compiled(("terms", chain.key), lambda: _compiled(chain))

    def warm_up(self, x_0: np.ndarray, seeds: np.ndarray, labels: np.ndarray) -> None:
        """Compile, on a batch."""
        self._compute(x_0, seeds, labels, np.zeros((len(x_0), 1), np.int32), 0)

    def measure(
        self, x_0: np.ndarray, seeds: np.ndarray, labels: np.ndarray, done: Callable[[int], object]
    ) -> Measured:
        """Compute the terms of a batch; `done` is told how many calls have been made since it was last told."""
        chosen = self._chosen(seeds)
        nats, squares = np.empty(chosen.shape), np.empty(chosen.shape)
        for start in range(0, self.calls, CALLS_AT_ONCE):
            columns = slice(start, start + CALLS_AT_ONCE)
            t = chosen[:, columns]
            nats[:, columns], squares[:, columns] = self._compute(x_0, seeds, labels, t, start)
            done(t.shape[1])
        return Measured(chosen, nats, squares)

    def _chosen(self, seeds) -> np.ndarray:
        """Return t of the terms of each image, int32 (N, each): all T in order, or 0 and those drawn."""
        steps = self._chain.num_steps
        chosen = np.tile(np.arange(self.calls, dtype=np.int32), (len(seeds), 1))
        if self.calls < steps:
            others, probabilities = np.arange(1, steps), shares(steps)
            for row, seed in zip(chosen, seeds, strict=True):
                row[1:] = np.random.default_rng(int(seed) % 2**32).choice(others, self.calls - 1, p=probabilities)
        return chosen


def shares(num_timesteps: int) -> np.ndarray:
    """Return the probability of each of L_1 .. L_{T-1} to be drawn, (T - 1,)."""
    sizes = 1 / np.arange(1, num_timesteps)
    return sizes / sizes.sum()


def _compiled(chain):
    """Return a function (x_0, seeds, label, t, start) -> nats and squared errors (B, terms): a loop over the terms."""
    process, shape = chain.process, chain.denoiser.image_shape

    def terms_of(x_0, seeds, label, t, start):
        predict = chain.predictor(label)

        def term(index, nats, squares):
            t_now = tf.gather(t, index, axis=1)
            z = noise.normal(seeds, noise.BOUND_STREAM, start + index, shape)
            # Rounded to the float32 that the network gets, so that the bound is for exactly this x_t.
            x_t = tf.cast(process.q_sample(x_0, t_now, tf.cast(z, tf.float64)), tf.float32)
            x_t = tf.cast(x_t, tf.float64)
            predicted = predict(x_t, t_now)
            value = objectives.bound_term_nats(process, x_t, t_now, x_0, predicted, chain.objective)
            return index + 1, nats.write(index, value), squares.write(index, chain.squared_error(x_0, predicted))

        count = tf.shape(t)[1]
        empty = [tf.TensorArray(tf.float64, count, element_shape=x_0.shape[:1]) for _ in range(2)]
        loop = tf.while_loop(lambda index, *_: index < count, term, (tf.constant(0), *empty), parallel_iterations=1)
        return tuple(tf.transpose(array.stack()) for array in loop[1:])

    some = tf.TensorSpec((None, None), tf.int32)
    return on_replicas(chain.denoiser.strategy, terms_of, [*signature_of(chain.denoiser), some], scalars=1)
