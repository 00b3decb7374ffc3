"""Bits per dimension: the variational bound of a model on images, term by term (`kddpm.objectives`, eq. (1) to (3))."""

import dataclasses
import math
import time

import numpy as np
import tensorflow as tf

from kddpm.base import arguments, memory, progress
from kddpm.base.errors import InputError
from kddpm.base.types import Integers
from kddpm.data import inputs
from kddpm.distribution import replicas
from kddpm.sampling import noise
from kddpm.sampling.denoiser import Denoiser, HasDenoiser, denoiser_of
from kddpm.theory import objectives

_TERMS_A_CALL = 50  # the loop returns to Python this often, to move the progress bar


@dataclasses.dataclass(frozen=True)
class BitsPerDim:
    """The bound on -log2 p(images) per pixel and channel.

    Attributes:
        total: mean over the images.
        standard_error: standard error of `total` as an estimate for the distribution of the images, from their spread,
            which includes the draws of noise; NaN for one image.
        monte_carlo_error: standard error of `total` as an estimate of the sum of all terms for these images; 0 if all
            terms were computed.
        images: the bound of each image, (N,).
        terms: L_0 .. L_{T-1}, each the mean over the images for which it was computed, (T,); NaN if for none.
        prior: L_T, mean over the images.
        seconds_per_image: wall-clock time in seconds, without compilation.
        bytes_per_image: memory in bytes per additional image in a batch; NaN for one image, or several replicas.
    """

    total: float
    standard_error: float
    monte_carlo_error: float
    images: np.ndarray
    terms: np.ndarray
    prior: float
    seconds_per_image: float
    bytes_per_image: float = math.nan

    def __str__(self):
        extra = f", of which the choice of terms {self.monte_carlo_error:.4f}" if self.monte_carlo_error else ""
        return f"{self.total:.4f} bits per dimension, standard error {self.standard_error:.4f}{extra}"


def bits_per_dim(
    model: Denoiser | HasDenoiser,
    images: np.ndarray,
    labels: Integers | None = None,
    *,
    num_terms: int | None = None,
    clip: bool = True,
    seed: int = 0,
    batch_size: int = 64,
    verbose: bool | str = "auto",
) -> BitsPerDim:
    """Return the variational bound of a model on images.

    Every term is one call of the network on one noisy x_t of each image. The noise of image k, and the choice of its
    terms, depend only on seed + k. The terms are computed in float64 from the network's float32.

    Args:
        model: a `Denoiser`, or a `DiffusionModel`, whose averaged weights are then used.
        images: uint8 (N, H, W, C), as in the files: a resized image has other bits to encode.
        labels: int (N,), for a network with classes.
        num_terms: None = all T terms; or L_0, L_T and this many of the others, at least 2, drawn for each image with
            replacement, L_t with a probability proportional to 1 / t, about its size; T - 1 or more take all of them
            without repetition.
        clip: whether to clip the predicted x_0 to [-1, 1], as Ho et al. 2020 do.
        seed: seed of the noise and of the choice of terms, int32.
        batch_size: images at a time.
        verbose: as in `generation.generate`.

    Raises:
        InputError: images that are not uint8 or of another shape, labels missing, out of range or for a network without
            classes, fewer than 2 terms, a seed that does not fit int32, or dynamic thresholding, for which there is no
            bound.
    """
    denoiser = denoiser_of(model)
    if not isinstance(clip, bool | np.bool_):
        raise InputError("clip", "must be True or False for bits per dimension", repr(clip))
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise InputError("images", "must be exact uint8 for bits per dimension", images.dtype)
    if not len(images):
        raise InputError("images", "must be at least one", "none")
    inputs.check_arrays(images, None, denoiser.image_shape, None)
    batch = min(arguments.count("batch_size", batch_size), len(images))
    count, num_timesteps = len(images), denoiser.schedule.num_timesteps
    labels = denoiser.labels_of_images(labels, count)
    labels = np.zeros(count, np.int32) if labels is None else labels  # not used
    arguments.int32("seed", [seed])
    seeds = arguments.int32("seed", np.arange(count) + seed)
    each = _terms_each(num_terms, num_timesteps)
    compute = _terms_function(denoiser, clip)

    def arguments_of(rows: slice):
        return images[rows].astype(np.float64) / 127.5 - 1, seeds[rows], labels[rows]

    # Compile before the time is measured; on one image, so that the memory of the others can be measured.
    compute(*arguments_of(slice(1)), np.zeros((1, 1), np.int32), 0)
    bound, seconds = _Bound(count, num_timesteps), 0.0
    bar = progress.bar(-(-count // batch) * each, f"Bits per dimension of {count} images", "term", verbose)
    with bar, memory.Gain() as gain:
        for first in range(0, count, batch):
            rows = slice(first, first + batch)
            chosen = _chosen_terms(each, num_timesteps, seeds[rows])
            nats = np.empty(chosen.shape)
            x_0, *others = arguments_of(rows)
            for start in range(0, each, _TERMS_A_CALL):
                t = chosen[:, start : start + _TERMS_A_CALL]
                began = time.perf_counter()
                nats[:, start : start + _TERMS_A_CALL] = compute(x_0, *others, t, start)
                seconds += time.perf_counter() - began
                bar.update(t.shape[1])
            prior = objectives.prior_nats(denoiser.process, tf.constant(x_0)).numpy()
            bound.add(chosen, nats / math.log(2), prior / math.log(2))
    is_shared = denoiser.strategy.num_replicas_in_sync > 1
    bytes_per_image = math.nan if batch == 1 or is_shared else gain.bytes / (batch - 1)
    return bound.result(seconds / count, bytes_per_image)


def _terms_each(num_terms, num_timesteps) -> int:
    """Return how many terms are computed for each image, including L_0."""
    return num_timesteps if num_terms is None else min(1 + arguments.count("num_terms", num_terms, 2), num_timesteps)


def _chosen_terms(each, num_timesteps, seeds) -> np.ndarray:
    """Return t of the terms of each image, int32 (N, each): all T in order, or 0 and those drawn."""
    chosen = np.tile(np.arange(each, dtype=np.int32), (len(seeds), 1))
    if each < num_timesteps:
        others, shares = np.arange(1, num_timesteps), _shares(num_timesteps)
        for row, seed in zip(chosen, seeds, strict=True):
            row[1:] = np.random.default_rng(int(seed) % 2**32).choice(others, each - 1, p=shares)
    return chosen


def _shares(num_timesteps) -> np.ndarray:
    """Return the probability of each of L_1 .. L_{T-1} to be drawn, (T - 1,)."""
    shares = 1 / np.arange(1, num_timesteps)
    return shares / shares.sum()


def _terms_function(denoiser, clip):
    """Return a function (x_0, seeds, label, t, start) -> nats (B, terms): a loop over the terms on every replica."""
    rows = replicas.SharedRows(denoiser.strategy)
    diffusion = denoiser.process
    names = denoiser.schedule.timesteps.astype(np.int32)
    signature = [
        tf.TensorSpec((None, *denoiser.image_shape), tf.float64),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((None, None), tf.int32),
        tf.TensorSpec((), tf.int32),
    ]

    def make():
        def nats_of(x_0, seeds, label, t, start):
            predict = denoiser.predictor(label if denoiser.num_classes else None, learned_variance=True)

            def term(index, nats):
                t_now = tf.gather(t, index, axis=1)
                z = noise.normal(seeds, noise.BOUND_STREAM, start + index, denoiser.image_shape)
                # Rounded to the float32 that the network gets, so that the bound is for exactly this x_t.
                x_t = tf.cast(diffusion.q_sample(x_0, t_now, tf.cast(z, tf.float64)), tf.float32)
                output = tf.cast(predict(x_t, tf.gather(names, t_now)), tf.float64)
                value = objectives.bound_term_nats(
                    diffusion, tf.cast(x_t, tf.float64), t_now, x_0, output, denoiser.objective, clip
                )
                return index + 1, nats.write(index, value)

            terms = tf.shape(t)[1]
            nats = tf.TensorArray(tf.float64, terms, element_shape=x_0.shape[:1])
            loop = tf.while_loop(lambda index, _: index < terms, term, (tf.constant(0), nats), parallel_iterations=1)
            return tf.transpose(loop[1].stack())

        compiled = rows.compile(nats_of, input_signature=signature)

        def compute(*arguments):
            *arrays, start = arguments
            count = len(arrays[0])
            size = -(-count // rows.replicas) * rows.replicas
            shared = [rows.share(np.resize(array, (size, *array.shape[1:]))) for array in arrays]
            return rows.join(compiled(*shared, tf.constant(start)))[:count].numpy()

        return compute

    return denoiser.compiled(("bits_per_dim", clip), make)


class _Bound:
    """Sums over batches of images, from which a `BitsPerDim` is computed."""

    def __init__(self, count, num_timesteps):
        self.images, self.priors, self.variances = np.empty(count), np.empty(count), np.zeros(count)
        self.sums, self.counts = np.zeros(num_timesteps), np.zeros(num_timesteps)
        self.filled = 0

    def add(self, chosen, terms, priors):
        """Add n images: their terms in bits (n, each) at t = `chosen` (n, each), L_0 first, and their priors (n,)."""
        rows = slice(self.filled, self.filled + len(terms))
        self.filled = rows.stop
        others, drawn = len(self.sums) - 1, terms.shape[1] - 1
        if drawn < others:
            estimates = terms[:, 1:] / _shares(len(self.sums))[chosen[:, 1:] - 1]  # each estimates the sum of all
            middle = estimates.mean(axis=1)
            self.variances[rows] = estimates.var(axis=1, ddof=1) / drawn
        else:
            middle = terms[:, 1:].sum(axis=1)
        self.images[rows] = priors + terms[:, 0] + middle
        self.priors[rows] = priors
        np.add.at(self.sums, chosen, terms)
        np.add.at(self.counts, chosen, 1)

    def result(self, seconds_per_image, bytes_per_image) -> BitsPerDim:
        """Return the bound on all images that were added."""
        count = len(self.images)
        with np.errstate(invalid="ignore"):
            terms = self.sums / self.counts
        monte_carlo = float(np.sqrt(self.variances.sum()) / count)
        # The spread of the images includes the choice of terms; that of a few images can be too small by chance.
        error = max(float(self.images.std(ddof=1) / math.sqrt(count)), monte_carlo) if count > 1 else math.nan
        return BitsPerDim(
            total=float(self.images.mean()),
            standard_error=error,
            monte_carlo_error=monte_carlo,
            images=self.images,
            terms=terms,
            prior=float(self.priors.mean()),
            seconds_per_image=seconds_per_image,
            bytes_per_image=bytes_per_image,
        )
