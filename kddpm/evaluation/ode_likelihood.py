"""Bits per dimension by the probability-flow ODE (Song et al. 2021b, section 4.3 and appendix D.2).

With sqrt(alpha_bar_t) = cos(phi) and sqrt(1 - alpha_bar_t) = sin(phi), the ODE through the noisy data of all levels is

    (1)  dx / dphi = v(x, phi),  v = cos(phi) eps - sin(phi) x_0                  (`kddpm.process`, eq. (4))
    (2)  log p(x at level 0) = log N(x at level T - 1; 0, 1) + integral of div v dphi        (Chen et al. 2018)

In the angle phi neither end is steep: v stays finite where the signal vanishes, and where the noise does. The steps go
from one level that the network knows to another, by Heun's rule, whose error falls with the square of the step:

    (3)  x_E = x + h v(x, phi),  x' = x + h / 2 (v(x, phi) + v(x_E, phi')),  and likewise the integral
    (4)  div v = E[r . grad(r . v)],  r = +-1 in every element      (Hutchinson; exact: the sum over r = unit vectors)

The flow ends at level 0, whose noise n is small and not zero. What is left to a pixel's value is settled in one of two
ways; both give a bound, as the picture is discrete and the flow has a density:

    (5)  "noise"    x = s x_0 + n eps:      -log p(x_0) <= E[L_0 - log p(x) + log q(x | x_0)]
    (6)  "uniform"  x = s (x_0 + xi),  xi even in the bin:  -log p(x_0) <= E[-log p(x)] - log s + log 127.5

(5) is the bound of `likelihood.bits_per_dim` with L_1 .. L_T replaced by one exact density. (6), of Song et al., takes
the density of the slightly noisy data for that of the data, and calls the network on less noise than it was trained on.
"""

import dataclasses
import math
import time

import numpy as np
import tensorflow as tf

from kddpm.base import progress
from kddpm.base.errors import InputError
from kddpm.base.types import Integers
from kddpm.evaluation import DEQUANTIZATIONS, DIVERGENCES
from kddpm.evaluation.batches import Batches, on_replicas, signature_of
from kddpm.evaluation.chain import ReverseChain
from kddpm.evaluation.terms import CALLS_AT_ONCE
from kddpm.sampling import noise
from kddpm.sampling.denoiser import Denoiser, HasDenoiser, denoiser_of
from kddpm.theory import objectives

_BINS = 127.5  # bins of a pixel in a unit of x_0


@dataclasses.dataclass(frozen=True)
class OdeBitsPerDim:
    """A bound on -log2 p(images) per pixel and channel, p being what the probability-flow ODE makes of noise.

    Attributes:
        total: mean over the images.
        standard_error: standard error of `total` as an estimate for the distribution of the images, from their spread,
            which includes the draws of noise and of Hutchinson's directions; NaN for one image.
        images: the bound of each image, (N,).
        halved: `total` with every other step left out.
        step_error: by about how much `total` exceeds that of infinitely small steps: (halved - total) / 3, as the error
            falls with the square of the step; with Hutchinson's directions their noise is in it. NaN below two steps.
        seconds_per_image: wall-clock time in seconds, without compilation.
    """

    total: float
    standard_error: float
    images: np.ndarray
    halved: float
    step_error: float
    seconds_per_image: float

    def __str__(self):
        return (
            f"{self.total:.4f} bits per dimension by the ODE, standard error {self.standard_error:.4f}, "
            f"steps {self.step_error:+.4f}"
        )


def ode_bits_per_dim(
    model: Denoiser | HasDenoiser,
    images: np.ndarray,
    labels: Integers | None = None,
    *,
    num_steps: int | Integers | None = None,
    divergence: str = "hutchinson",
    dequantization: str = "noise",
    clip: bool = True,
    seed: int = 0,
    batch_size: int = 64,
    verbose: bool | str = "auto",
) -> OdeBitsPerDim:
    """Return the bits per dimension of images under the probability-flow ODE of a model, equations (1) to (6).

    Each step calls the network twice, and its gradient; all is done a second time with half as many steps, which tells
    their error. The noise of image k depends only on seed + k. Sums are float64, the network's output and gradient
    float32.

    Args:
        model: a `Denoiser`, or a `DiffusionModel`, whose averaged weights are then used.
        images: uint8 (N, H, W, C), as in the files.
        labels: int (N,), for a network with classes.
        num_steps: None = through all T levels; or how many of them, with square roots of t evenly spaced from 0 to
            T - 1, or the levels themselves, increasing up to T - 1.
        divergence: "hutchinson", without bias, one random direction at every call; or "exact", all H W C unit vectors,
            for small images: the network then takes that many times the batch.
        dequantization: "noise" or "uniform", equations (5) and (6).
        clip: whether to clip the predicted x_0 to [-1, 1], as samplers do. An eps says nothing of x_0 where the signal
            is gone: without clipping, its error is divided by that signal, and adds many bits for nothing.
        seed: seed of the noise and of Hutchinson's directions, int32.
        batch_size: images at a time.
        verbose: as in `generation.generate`.

    Raises:
        InputError: as in `likelihood.bits_per_dim`; or an unknown divergence or dequantization.

    Reference:
        Song et al. 2021b; Chen et al. 2018, "Neural ordinary differential equations"; Grathwohl et al. 2019, "FFJORD"
        (Hutchinson's estimate).
    """
    for name, value, known in (
        ("divergence", divergence, DIVERGENCES),
        ("dequantization", dequantization, DEQUANTIZATIONS),
    ):
        if value not in known:
            raise InputError(name, f"must be one of {', '.join(known)}", repr(value))
    if not isinstance(clip, bool | np.bool_):
        raise InputError("clip", "must be True or False for bits per dimension", repr(clip))
    denoiser = denoiser_of(model)
    batches = Batches(denoiser, images, labels, seed, batch_size)
    chain = ReverseChain(denoiser, num_steps, "quadratic", clip)
    flow = denoiser.compiled(
        ("ode", chain.key, divergence, dequantization), lambda: _Flow(chain, divergence, dequantization)
    )
    flow.warm_up(*batches.first())
    nats: dict[int, list[np.ndarray]] = {1: [], 2: []}  # by stride
    seconds = 0.0
    calls = sum(map(flow.steps, nats)) * len(batches)
    with progress.bar(calls, f"Bits per dimension of {batches.count} images by the ODE", "step", verbose) as bar:
        for batch in batches:
            began = time.perf_counter()
            for stride, found in nats.items():
                found.append(flow.nats(*batch, stride, bar.update))
            seconds += time.perf_counter() - began
    fine, coarse = (np.concatenate(found) / math.log(2) for found in nats.values())
    total, halved, count = float(fine.mean()), float(coarse.mean()), batches.count
    return OdeBitsPerDim(
        total=total,
        standard_error=float(fine.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan,
        images=fine,
        halved=halved,
        step_error=(halved - total) / 3 if flow.steps(2) < flow.steps(1) else math.nan,
        seconds_per_image=seconds / count,
    )


class _Flow:
    """The ODE from the first level of a chain to its last, and the integral of its divergence."""

    def __init__(self, chain, divergence, dequantization):
        self._chain, self._exact, self._uniform = chain, divergence == "exact", dequantization == "uniform"
        schedule, denoiser = chain.process.schedule, chain.denoiser
        self._angles = np.arctan2(np.sqrt(schedule.one_minus_alpha_bars), np.sqrt(schedule.alpha_bars))
        images, vector = signature_of(denoiser), tf.TensorSpec((None,), tf.float64)
        self._begin = on_replicas(denoiser.strategy, self._begun, images, scalars=0)
        self._walk = on_replicas(denoiser.strategy, self._walked, [*images, vector], scalars=3)

    def steps(self, stride: int) -> int:
        """Return the number of steps, each over `stride` levels; the last may be over fewer."""
        return -(-(self._chain.num_steps - 1) // stride)

    def warm_up(self, x_0, seeds, labels):
        """Compile, on a batch."""
        x, nats = self._begin(x_0, seeds, labels)
        self._walk(x, seeds, labels, nats, 0, min(1, self.steps(1)), 1)

    def nats(self, x_0, seeds, labels, stride, done) -> np.ndarray:
        """Return the bound of each image, (B,)."""
        x, nats = self._begin(x_0, seeds, labels)
        steps = self.steps(stride)
        for start in range(0, steps, CALLS_AT_ONCE):
            stop = min(start + CALLS_AT_ONCE, steps)
            x, nats = self._walk(x, seeds, labels, nats, start, stop, stride)
            done(stop - start)
        return nats + objectives.standard_normal_nats(x).numpy()

    def _begun(self, x_0, seeds, label):
        """Return x at level 0, and the part of (5) or (6) that is no density of the flow, (B,)."""
        process = self._chain.process
        z = tf.cast(noise.normal(seeds, noise.DATA_STREAM, 0, self._chain.denoiser.image_shape), tf.float64)
        if self._uniform:
            xi = tf.math.erf(z / math.sqrt(2)) / 2 / _BINS  # the share of a normal below z, less a half, of a bin
            signal = math.sqrt(process.schedule.alpha_bars[0])
            return signal * (x_0 + xi), tf.fill(tf.shape(seeds), tf.cast(math.log(_BINS / signal), tf.float64))
        t = tf.zeros_like(seeds)
        x = process.q_sample(x_0, t, z)
        predicted = self._chain.predictor(label)(x, t)
        decoder = objectives.bound_term_nats(process, x, t, x_0, predicted, self._chain.objective)
        log_noise = 0.5 * math.log(process.schedule.one_minus_alpha_bars[0])
        return x, decoder - objectives.standard_normal_nats(z) - log_noise

    def _walked(self, x, seeds, label, nats, start, stop, stride):
        """Take steps of (3) from x, and subtract the integral of the divergence from `nats`."""
        angles, last = tf.constant(self._angles), self._chain.num_steps - 1

        def step(index, x, nats):
            here, there = stride * index, tf.minimum(stride * (index + 1), last)
            h = tf.gather(angles, there) - tf.gather(angles, here)
            v, spread = self._velocity(x, here, seeds, label, 2 * here)
            v_there, spread_there = self._velocity(x + h * v, there, seeds, label, 2 * there + 1)
            return index + 1, x + h / 2 * (v + v_there), nats - h / 2 * (spread + spread_there)

        return tf.while_loop(lambda index, *_: index < stop, step, (start, x, nats), parallel_iterations=1)[1:]

    def _velocity(self, x, level, seeds, label, draw):
        """Return v of (1), like x, and its divergence per dimension by (4), (B,)."""
        count, shape = tf.shape(x)[0], self._chain.denoiser.image_shape
        if self._exact:
            size = math.prod(shape)
            directions = tf.repeat(tf.reshape(tf.eye(size, dtype=x.dtype), (size, *shape)), count, axis=0)
        else:
            size = 1
            z = noise.normal(seeds, noise.PROBE_STREAM, draw, shape)
            directions = tf.where(z < 0, tf.constant(-1, x.dtype), tf.constant(1, x.dtype))
        copies, t = tf.tile(x, [size, 1, 1, 1]), tf.fill([size * count], level)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(copies)
            predicted = self._chain.predictor(tf.tile(label, [size]))(copies, t)
            v = self._chain.process.v_from_x0(copies, t, predicted[..., : shape[-1]])
        slopes = tape.gradient(v, copies, directions, tf.UnconnectedGradients.ZERO)
        each = tf.reduce_mean(directions * slopes, axis=[1, 2, 3])
        return v[:count], tf.reduce_sum(tf.reshape(each, [size, count]), axis=0)
