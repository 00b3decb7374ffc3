"""Bits per dimension: the variational bound of a model on images, term by term (`kddpm.objectives`, equations (1)-(3))."""

import dataclasses
import math
import time

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from kddpm import generation, inputs, noise, objectives
from kddpm.errors import InputError

_STREAM = 4  # of the noise that the bound is estimated with
_TERMS_A_CALL = 50  # the loop returns to Python this often, to move the progress bar


@dataclasses.dataclass(frozen=True)
class BitsPerDim:
    """The bound on -log2 p(images) per pixel and channel.

    Attributes:
        total: mean over the images.
        standard_error: of `total` as an estimate for the distribution that the images were drawn from: their spread,
            draws of noise included; NaN for one image.
        monte_carlo_error: of `total` as an estimate for these very images: what the choice of terms adds, 0 where all
            terms were taken.
        images: the bound of each image, (N,).
        terms: L_0 .. L_{T-1}, means over the images, (T,); NaN where a term was not drawn.
        prior: L_T, mean over the images.
        seconds_per_image: of wall-clock time, compilation left out.
    """

    total: float
    standard_error: float
    monte_carlo_error: float
    images: np.ndarray
    terms: np.ndarray
    prior: float
    seconds_per_image: float

    def __str__(self):
        extra = f", of which the choice of terms {self.monte_carlo_error:.4f}" if self.monte_carlo_error else ""
        return f"{self.total:.4f} bits per dimension, standard error {self.standard_error:.4f}{extra}"


def bits_per_dim(
    model,
    images,
    labels=None,
    *,
    num_terms: int | None = None,
    clip: bool = True,
    seed: int = 0,
    batch_size: int = 64,
    verbose: bool | str = "auto",
) -> BitsPerDim:
    """The variational bound with the averaged weights.

    Every term is one call of the network on one noisy x_t of each image; the noise of image k is a function of
    (seed + k, term). The terms are computed in float64 from the network's float32.

    Args:
        model: a `DiffusionModel`.
        images: uint8 (N, H, W, C), as they are in the files: an image that was resized has other bits to code.
        labels: int (N,), for a network with classes.
        num_terms: None = all T terms; or this many, drawn evenly for each image, beside L_0 and L_T: at least 2.
        clip: clip the predicted x_0 to [-1, 1], as Ho et al. 2020 do.
        seed: of the noise and of the choice of terms.
        batch_size: images at a time.
        verbose: as in `DiffusionModel.generate`.

    Raises:
        InputError: images that are not uint8 or of another shape, labels missing or out of range, fewer than 2 terms.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise InputError(f"`images` must be exact uint8 for bits per dimension. Received: {images.dtype}")
    if not len(images):
        raise InputError("`images` must be at least one. Received: none")
    inputs.checked_images(images, None, model.image_shape, None)
    if batch_size < 1:
        raise InputError(f"`batch_size` must be positive. Received: {batch_size}")
    count, num_timesteps = len(images), model.schedule.num_timesteps
    if model.network.num_classes and labels is None:
        raise InputError(f"`labels` are needed: the network has {model.network.num_classes} classes")
    labels = generation.checked_labels(model, labels, np.arange(count)) if model.network.num_classes else None
    chosen = _terms(num_terms, num_timesteps, count, seed)
    batch = min(batch_size, count)
    seeds = (np.arange(count) + seed).astype(np.int32)
    terms, priors = np.empty(chosen.shape), np.empty(count)
    seconds = []
    compute = _compiled(model, clip)
    with tqdm(
        total=-(-count // batch) * chosen.shape[1],
        desc=f"Bits per dimension of {count} images",
        unit="term",
        delay=2 if verbose == "auto" else 0,
        disable=not verbose,
    ) as bar:
        for first in range(0, count, batch):
            rows = np.arange(first, first + batch) % count  # the last batch is filled up
            kept = slice(first, min(first + batch, count))
            x_0 = tf.constant(images[rows].astype(np.float64) / 127.5 - 1)
            priors[kept] = objectives.prior_nats(model.diffusion, x_0)[: kept.stop - first]
            row_labels = None if labels is None else tf.constant(labels[rows])
            for start in range(0, chosen.shape[1], _TERMS_A_CALL):
                t = chosen[rows, start : start + _TERMS_A_CALL]
                began = time.perf_counter()
                nats = compute(x_0, tf.constant(seeds[rows]), row_labels, tf.constant(t), tf.constant(start)).numpy()
                seconds.append((time.perf_counter() - began) / nats.size)
                terms[kept, start : start + _TERMS_A_CALL] = nats.T[: kept.stop - first]
                bar.update(t.shape[1])
    return _result(chosen, terms / math.log(2), priors / math.log(2), num_timesteps, seconds)


def _terms(num_terms, num_timesteps, count, seed) -> np.ndarray:
    """t of each image's terms, int32 (N, terms), 0 first."""
    if num_terms is None:
        return np.tile(np.arange(num_timesteps, dtype=np.int32), (count, 1))
    if num_terms < 2 or num_timesteps < 2:
        raise InputError(f"`num_terms` must be at least 2, of T > 1, or None. Received: {num_terms}")
    drawn = np.random.default_rng(seed % 2**32).integers(1, num_timesteps, (count, num_terms))
    return np.concatenate([np.zeros((count, 1)), drawn], axis=1).astype(np.int32)


def _compiled(model, clip):
    """(x_0, seeds, label, t, start) -> nats (terms, B): one loop over the terms, traced once a shape and kept."""
    key = ("bits_per_dim", clip)
    if key not in model.walks:
        diffusion = model.diffusion
        names = model.schedule.timesteps.astype(np.int32)

        @tf.function(autograph=False, reduce_retracing=True)
        def compute(x_0, seeds, label, t, start):
            predict = generation.denoiser(model, label, learned_variance=True)

            def term(index, nats):
                t_now = tf.gather(t, index, axis=1)
                z = noise.normal(seeds, _STREAM, start + index, model.image_shape)
                # In the float32 that the network is asked about: the bound is that of this very x_t.
                x_t = tf.cast(diffusion.q_sample(x_0, t_now, tf.cast(z, tf.float64)), tf.float32)
                output = tf.cast(predict(x_t, tf.gather(names, t_now)), tf.float64)
                value = objectives.bound_term_nats(
                    diffusion, x_0, tf.cast(x_t, tf.float64), t_now, output, model.prediction, model.variance, clip
                )
                return index + 1, nats.write(index, value)

            terms = tf.shape(t)[1]
            nats = tf.TensorArray(tf.float64, terms, element_shape=x_0.shape[:1])
            loop = tf.while_loop(lambda index, _: index < terms, term, (tf.constant(0), nats), parallel_iterations=1)
            return loop[1].stack()

        model.walks[key] = compute
    return model.walks[key]


def _result(chosen, terms, priors, num_timesteps, seconds) -> BitsPerDim:
    """From terms (N, terms) in bits, t of which is `chosen`, L_0 first."""
    count, drawn = len(terms), terms.shape[1] - 1
    every = drawn + 1 == num_timesteps and np.array_equal(chosen[0], np.arange(num_timesteps))
    factor = 1 if every else (num_timesteps - 1) / drawn
    totals = priors + terms[:, 0] + factor * terms[:, 1:].sum(axis=1)
    sums, counts = np.zeros(num_timesteps), np.zeros(num_timesteps)
    np.add.at(sums, chosen, terms)
    np.add.at(counts, chosen, 1)
    monte_carlo = 0.0
    if not every:
        variances = (num_timesteps - 1) ** 2 * terms[:, 1:].var(axis=1, ddof=1) / drawn
        monte_carlo = float(np.sqrt(variances.sum()) / count)
    with np.errstate(invalid="ignore"):
        means = sums / counts
    # The first call compiles; the median does not see it.
    per_image = float(np.median(seconds)) * terms.shape[1]
    error = float(totals.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    return BitsPerDim(float(totals.mean()), error, monte_carlo, totals, means, float(priors.mean()), per_image)
