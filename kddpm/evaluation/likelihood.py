"""Bits per dimension: the variational bound of a model on images, term by term (`kddpm.objectives`, eq. (1) to (3)).

`ode_bits_per_dim`, of `kddpm.evaluation.ode_likelihood`, counts them in another way.
"""

import dataclasses
import math
import time

import numpy as np
import tensorflow as tf

from kddpm.base import arguments, memory, progress
from kddpm.base.errors import InputError
from kddpm.base.types import Integers
from kddpm.evaluation import terms as bound_terms
from kddpm.evaluation import trajectories
from kddpm.evaluation.batches import Batches
from kddpm.evaluation.chain import ReverseChain
from kddpm.evaluation.ode_likelihood import ode_bits_per_dim as ode_bits_per_dim
from kddpm.sampling.denoiser import Denoiser, HasDenoiser, denoiser_of
from kddpm.theory import objectives

_GREY_LEVELS = 127.5  # grey levels in a unit of x_0


@dataclasses.dataclass(frozen=True)
class BitsPerDim:
    """The bound on -log2 p(images) per pixel and channel.

    Attributes:
        total: mean over the images.
        standard_error: standard error of `total` as an estimate for the distribution of the images, from their spread,
            which includes the draws of noise; NaN for one image.
        monte_carlo_error: standard error of `total` as an estimate for these images, as far as it comes from the choice
            of terms, or from that of the trajectories; 0 if all terms were computed, without trajectories.
        images: the bound of each image, (N,).
        terms: L_0 .. L_{T-1}, each the mean over the images for which it was computed, (T,); NaN if for none.
        prior: L_T, mean over the images.
        seconds_per_image: wall-clock time in seconds, without compilation.
        bytes_per_image: memory in bytes per additional image in a batch; NaN for one image, or several replicas.
        distortions: root mean square error of the predicted x_0 at each t, in grey levels (0 .. 255), (T,); NaN as in
            `terms`.
        trajectories: -log2 of the weight of each trajectory, per dimension, (N, K); None = without trajectories. With
            them `images` and `total` are the K-sample bound, which is below `elbo` on average.
    """

    total: float
    standard_error: float
    monte_carlo_error: float
    images: np.ndarray
    terms: np.ndarray
    prior: float
    seconds_per_image: float
    bytes_per_image: float = math.nan
    distortions: np.ndarray | None = None
    trajectories: np.ndarray | None = None

    @property
    def elbo(self) -> float:
        """The sum of all terms and the prior: `total`, unless trajectories made that tighter."""
        return self.total if self.trajectories is None else float(self.terms.sum()) + self.prior

    @property
    def rates(self) -> np.ndarray:
        """The bits after which x_t is known, (T,): L_T + L_{T-1} + ... + L_{t+1}; NaN below a missing term.

        Whoever has received so much knows x_0 up to `distortions[t]` (Ho et al. 2020, section 4.3).
        """
        return np.cumsum([self.prior, *self.terms[:0:-1]])[::-1]

    @property
    def share_of_sampling(self) -> str:
        """The words on `monte_carlo_error`, none where it is 0."""
        cause = "choice of terms" if self.trajectories is None else "trajectories"
        return f", of which the {cause} {self.monte_carlo_error:.4f}" if self.monte_carlo_error else ""

    def __str__(self):
        error = f"{self.standard_error:.4f}{self.share_of_sampling}"
        return f"{self.total:.4f} bits per dimension, standard error {error}"


def bits_per_dim(
    model: Denoiser | HasDenoiser,
    images: np.ndarray,
    labels: Integers | None = None,
    *,
    num_terms: int | None = None,
    num_trajectories: int | None = None,
    num_steps: int | Integers | None = None,
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
        num_trajectories: None = the bound; or K, at least 2, for the tighter K-sample bound from K whole trajectories
            of each image (`kddpm.evaluation.trajectories`), which are K T calls of the network.
        num_steps: None = the chain of all T steps; or the bound of the chain of fewer, `schedules.timestep_grid` of
            that number, or the steps themselves, increasing up to T - 1. T in this text is then their number.
        clip: whether to clip the predicted x_0 to [-1, 1], as Ho et al. 2020 do.
        seed: seed of the noise and of the choice of terms, int32.
        batch_size: images at a time.
        verbose: as in `generation.generate`.

    Raises:
        InputError: images that are not uint8 or of another shape, labels missing, out of range or for a network without
            classes, fewer than 2 terms or trajectories, both of them, steps that the schedule has not, a seed that does
            not fit int32, or dynamic thresholding, for which there is no bound.
    """
    denoiser = denoiser_of(model)
    if not isinstance(clip, bool | np.bool_):
        raise InputError("clip", "must be True or False for bits per dimension", repr(clip))
    batches = Batches(denoiser, images, labels, seed, batch_size)
    chain = ReverseChain(denoiser, num_steps, "trailing", clip)
    way = _way(chain, num_terms, num_trajectories)
    # Compile before the time is measured; on one image, so that the memory of the others can be measured.
    way.warm_up(*batches.first())
    bound, seconds = _Bound(batches.count, chain.num_steps, math.prod(denoiser.image_shape)), 0.0
    bar = progress.bar(len(batches) * way.calls, f"Bits per dimension of {batches.count} images", "term", verbose)
    with bar, memory.Gain() as gain:
        for x_0, *others in batches:
            began = time.perf_counter()
            measured = way.measure(x_0, *others, bar.update)
            seconds += time.perf_counter() - began
            bound.add(measured, objectives.prior_nats(chain.process, tf.constant(x_0)).numpy())
    is_shared = denoiser.strategy.num_replicas_in_sync > 1
    bytes_per_image = math.nan if batches.size == 1 or is_shared else gain.bytes / (batches.size - 1)
    return bound.result(seconds / batches.count, bytes_per_image)


def _way(chain, num_terms, num_trajectories):
    """Return what measures batches: terms of their own, or whole trajectories."""
    if num_trajectories is None:
        every = chain.num_steps
        each = every if num_terms is None else min(1 + arguments.count("num_terms", num_terms, 2), every)
        return bound_terms.Terms(chain, each)
    if num_terms is not None:
        raise InputError("num_terms", "must be None where trajectories are weighed: they have every term", num_terms)
    return trajectories.Trajectories(chain, arguments.count("num_trajectories", num_trajectories, 2))


class _Bound:
    """Sums over batches of images, in nats, from which a `BitsPerDim` is computed."""

    def __init__(self, count, num_timesteps, dimensions):
        self.images, self.priors, self.variances = np.empty(count), np.empty(count), np.zeros(count)
        self.sums, self.squares, self.counts = np.zeros((3, num_timesteps))
        self.trajectories = []
        self.filled, self.dimensions = 0, dimensions

    def add(self, measured, priors):
        """Add n images: what was `Measured`, L_0 first, and their priors (n,)."""
        chosen, terms = measured.chosen, measured.nats
        rows = slice(self.filled, self.filled + len(terms))
        self.filled = rows.stop
        others, drawn = len(self.sums) - 1, terms.shape[1] - 1
        if measured.trajectories is not None:
            self.trajectories.append(measured.trajectories)
            self.images[rows] = trajectories.bound_from_weights_nats(measured.trajectories, self.dimensions)
            self.variances[rows] = trajectories.variances_of_bound_nats(measured.trajectories, self.dimensions)
        elif drawn < others:
            # each estimates the sum of all
            estimates = terms[:, 1:] / bound_terms.shares(len(self.sums))[chosen[:, 1:] - 1]
            self.images[rows] = priors + terms[:, 0] + estimates.mean(axis=1)
            self.variances[rows] = estimates.var(axis=1, ddof=1) / drawn
        else:
            self.images[rows] = priors + terms.sum(axis=1)
        self.priors[rows] = priors
        np.add.at(self.sums, chosen, terms)
        np.add.at(self.squares, chosen, measured.squares)
        np.add.at(self.counts, chosen, 1)

    def result(self, seconds_per_image, bytes_per_image) -> BitsPerDim:
        """Return the bound on all images that were added, in bits."""
        count, bit = len(self.images), math.log(2)
        images = self.images / bit
        with np.errstate(invalid="ignore"):
            terms, squares = self.sums / self.counts / bit, self.squares / self.counts
        monte_carlo = float(np.sqrt(self.variances.sum()) / count / bit)
        # The spread of the images includes the choice of terms; that of a few images can be too small by chance.
        error = max(float(images.std(ddof=1) / math.sqrt(count)), monte_carlo) if count > 1 else math.nan
        return BitsPerDim(
            total=float(images.mean()),
            standard_error=error,
            monte_carlo_error=monte_carlo,
            images=images,
            terms=terms,
            prior=float(self.priors.mean() / bit),
            seconds_per_image=seconds_per_image,
            bytes_per_image=bytes_per_image,
            distortions=_GREY_LEVELS * np.sqrt(squares),
            trajectories=np.concatenate(self.trajectories) / bit if self.trajectories else None,
        )
