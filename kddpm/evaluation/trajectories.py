"""The K-sample bound, from the weights of whole trajectories.

A trajectory x_1 .. x_T drawn from q(. | x_0) has the weight

    (1)  w = p(x_T) prod_t p(x_{t-1} | x_t) / q(x_t | x_{t-1}),  E[w] = p(x_0)

so that the mean of K weights is an estimate of p(x_0) without bias, and minus the mean of its logarithm a bound:

    (2)  L_K = -E[log 1/K sum_k w_k],  L = L_1 >= L_2 >= ... >= -log p(x_0)

This is importance sampling (Burda et al. 2016) along a path of distributions, as annealed importance sampling takes one
(Neal 2001); E[w] = p(x_0) is Jarzynski's equality, with -log w the work.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kddpm.base.errors import InputError
from kddpm.evaluation.batches import on_replicas, signature_of
from kddpm.evaluation.chain import ReverseChain
from kddpm.evaluation.terms import CALLS_AT_ONCE, Measured
from kddpm.sampling import noise
from kddpm.theory import objectives


def bound_from_weights_nats(nats: np.ndarray, dimensions: int, size: int | None = None) -> np.ndarray:
    """Return the K-sample bound of each image, equation (2), in nats per dimension.

    Args:
        nats: -log w of each trajectory per dimension, (N, K).
        dimensions: the number of pixels times channels of an image, of which `nats` are means.
        size: bound of how many trajectories; the K are taken in K / `size` groups, of which the bound is the mean.
            None = K.

    Returns:
        (N,).

    Raises:
        InputError: `size` does not divide K.
    """
    count = nats.shape[1]
    size = count if size is None else size
    if size < 1 or count % size:
        raise InputError("size", f"must divide the number of trajectories, {count}", size)
    work = dimensions * nats.reshape(len(nats), -1, size)
    least = work.min(axis=-1, keepdims=True)
    free = least[..., 0] - np.log(np.exp(least - work).mean(axis=-1))
    return free.mean(axis=-1) / dimensions


def variances_of_bound_nats(nats: np.ndarray, dimensions: int) -> np.ndarray:
    """Return the variance of the K-sample bound of each image, (N,), as far as the K weights know it.

    To first order it is that of the mean weight, over the square of that mean.

    Args:
        nats: as in `bound_from_weights_nats`, K at least 2.
        dimensions: the same.
    """
    work = dimensions * nats
    weights = np.exp(work.min(axis=1, keepdims=True) - work)
    relative = weights.std(axis=1, ddof=1) / weights.mean(axis=1)
    return relative**2 / nats.shape[1] / dimensions**2


class Trajectories:
    """Walks K trajectories of each image: T calls of the network each.

    Args:
        chain: the model.
        count: K.

    Attributes:
        calls: calls of the network on a batch.
    """

    def __init__(self, chain: ReverseChain, count: int):
        self.calls = count * chain.num_steps
        self._steps, self._count = chain.num_steps, count
        self._compute = chain.denoiser.compiled(("trajectories", chain.key), lambda: _compiled(chain))

    def warm_up(self, x_0: np.ndarray, seeds: np.ndarray, labels: np.ndarray) -> None:
        """Compile, on a batch."""
        self._compute(x_0, seeds, labels, x_0, 0, 1, 0)

    def measure(
        self, x_0: np.ndarray, seeds: np.ndarray, labels: np.ndarray, done: Callable[[int], object]
    ) -> Measured:
        """Walk the trajectories of a batch; terms and errors are means over them. `done` as in `terms.Terms`."""
        shape = len(x_0), self._steps
        nats, squares, work = np.zeros(shape), np.zeros(shape), np.zeros((len(x_0), self._count))
        for k in range(self._count):
            x_t = x_0
            for start in range(0, self._steps, CALLS_AT_ONCE):
                stop = min(start + CALLS_AT_ONCE, self._steps)
                x_t, ratios, *terms = self._compute(x_0, seeds, labels, x_t, start, stop, k * self._steps)
                work[:, k] += ratios
                nats[:, start:stop] += terms[0] / self._count
                squares[:, start:stop] += terms[1] / self._count
                done(stop - start)
            work[:, k] += objectives.standard_normal_nats(x_t).numpy()
        chosen = np.tile(np.arange(self._steps), (len(x_0), 1))
        return Measured(chosen, nats, squares, work)


def _compiled(chain):
    """Return a function (x_0, seeds, label, x_t before, start, stop, offset) that takes some steps of a trajectory.

    It returns x_t after them, the sum of log q / p over them, (B,), and terms and squared errors, (B, stop - start).
    """
    process, shape = chain.process, chain.denoiser.image_shape

    def steps(x_0, seeds, label, x_prev, start, stop, offset):
        predict = chain.predictor(label)

        def step(index, x_prev, total, nats, squares):
            t = tf.fill(tf.shape(seeds), index)
            z = noise.normal(seeds, noise.TRAJECTORY_STREAM, offset + index, shape)
            x_t = process.q_step(x_prev, t, tf.cast(z, tf.float64))
            predicted = predict(x_t, t)

            def reverse(x_t, t):
                return chain.reverse(x_t, t, predicted)

            total += objectives.trajectory_term_nats(process, reverse, x_t, t, x_0, x_prev)
            value = objectives.bound_term_nats(process, x_t, t, x_0, predicted, chain.objective)
            error = chain.squared_error(x_0, predicted)
            return index + 1, x_t, total, nats.write(index - start, value), squares.write(index - start, error)

        empty = [tf.TensorArray(tf.float64, stop - start, element_shape=x_0.shape[:1]) for _ in range(2)]
        begin = (start, x_prev, tf.zeros(tf.shape(seeds), tf.float64), *empty)
        loop = tf.while_loop(lambda index, *_: index < stop, step, begin, parallel_iterations=1)
        _, x_t, total, *arrays = loop
        return x_t, total, *(tf.transpose(array.stack()) for array in arrays)

    images = signature_of(chain.denoiser)
    return on_replicas(chain.denoiser.strategy, steps, [*images, images[0]], scalars=3)
