"""`Denoiser`: the interface of a trained network to generation, editing, likelihood and export.

A `DiffusionModel` has one, with its averaged weights; any other Keras network of `kddpm.networks.contract` can be
wrapped in one:

    denoiser = kddpm.Denoiser(network, kddpm.schedules.cosine(1000), kddpm.Objective("v"))
    pictures = kddpm.generation.generate(denoiser, seeds=range(16), sampler="ddim", num_steps=50)
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from kddpm.base import arguments, settings
from kddpm.base.errors import InputError
from kddpm.base.types import Integers, Tensor
from kddpm.data import labels as class_labels
from kddpm.networks import contract
from kddpm.sampling import samplers
from kddpm.sampling.step_table import StepTable
from kddpm.theory import parametrization
from kddpm.theory.parametrization import Objective
from kddpm.theory.process import GaussianDiffusion
from kddpm.theory.schedules import NoiseSchedule

_MOST_COMPILED = 64  # functions that are kept; the least recently used are dropped


class HasDenoiser(Protocol):
    """Any object with a `Denoiser`, such as a `DiffusionModel`."""

    @property
    def denoiser(self) -> "Denoiser":
        """The network that generates, and the meaning of its output."""


@dataclasses.dataclass(frozen=True, eq=False)
class Denoiser:
    """A trained network and the meaning of its output.

    Attributes:
        network: a Keras model called on [x_t, t], or [x_t, t, label] where it has classes, with attributes
            `image_shape` (H, W, C) and `num_classes`, None = no classes; `docs/your_network.md` says all. x_t is
            float32 (B, H, W, C), t and label are int32 (B,); the label `num_classes` means "no class".
        schedule: the `NoiseSchedule` that it was trained on.
        objective: what the network was trained to predict, and whether it predicts variances.
        knows_no_class: whether a network with classes was trained with the label "no class", which guidance needs.
    """

    network: keras.Model
    schedule: NoiseSchedule
    objective: Objective = dataclasses.field(default_factory=Objective)
    knows_no_class: bool = True
    _compiled: dict[Hashable, object] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        settings.check_floatx()
        self.objective.check_schedule(self.schedule)
        received = contract.complete(self.network, self.last_timestep)
        channels = self.image_shape[-1]
        expected = self.objective.out_channels(channels)
        if received != expected:
            raise InputError(
                "network",
                f"must have {expected} output channels for {{variance}} and images of {channels}: UNet(..., "
                f"out_channels={expected})",
                received,
                variance=self.objective.variance,
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of a picture, (H, W, C)."""
        return tuple(self.network.image_shape)

    @property
    def num_classes(self) -> int | None:
        """The number of classes, None = unconditional."""
        return self.network.num_classes

    @property
    def last_timestep(self) -> int:
        """The largest t that the network sees."""
        return int(self.schedule.timesteps[-1])

    @functools.cached_property
    def process(self) -> GaussianDiffusion:
        """The forward process of the schedule."""
        return GaussianDiffusion(self.schedule)

    @property
    def strategy(self) -> tf.distribute.Strategy:
        """The distribution strategy of the network's variables."""
        return self.network.distribute_strategy

    def steps(
        self, sampler: str | samplers.Sampler, num_steps: int | Integers | None, strength: float = 1.0
    ) -> StepTable:
        """Return the step table of a sampler, given itself or by name, for this network; see `samplers.step_table`."""
        return samplers.step_table(samplers.by_name(sampler), self.schedule, num_steps, self.objective, strength)

    def predictor(
        self, label: Tensor = None, guidance_scale: float | Tensor = 1.0, learned_variance: bool = False
    ) -> Callable:
        """Return the function (x_t, t) -> output of the network, float32, that `walks` needs.

        With classifier-free guidance (Ho & Salimans 2022, eq. 6, where w = scale - 1) the output is
        none + scale (given - none), where "none" is the network's output for "no class"; a learned variance stays that
        of the given class.

        Args:
            label: int32 (B,), None for a network without classes.
            guidance_scale: a number, where 1 = no guidance and 0 = no class need one network output, others two; or a
                float32 scalar tensor.
            learned_variance: whether the output includes a learned variance.
        """
        channels, has_variance = self.image_shape[-1], self.objective.variance == "learned"
        is_number = not tf.is_tensor(guidance_scale)

        def network(*inputs):
            return tf.cast(self.network(list(inputs), training=False), tf.float32)

        def predict(x, t):
            if label is None:
                output = network(x, t)
            elif is_number and guidance_scale == 1:
                output = network(x, t, label)
            elif is_number and guidance_scale == 0:
                output = network(x, t, tf.fill(label.shape, self.num_classes))
            else:
                no_label = tf.fill(label.shape, self.num_classes)
                # Tiled and sliced, neither concatenated with itself nor split: see `walks.halves`.
                both = network(tf.tile(x, [2, 1, 1, 1]), tf.tile(t, [2]), tf.concat([label, no_label], axis=0))
                output, without = both[: label.shape[0]], both[label.shape[0] :]
                guided = without[..., :channels] + guidance_scale * (output - without)[..., :channels]
                output = tf.concat([guided, output[..., channels:]], axis=-1) if has_variance else guided
            return output if learned_variance or not has_variance else output[..., :channels]

        return predict

    def x0_at(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """Return x_0 as predicted at any log SNR, with eps on a line between those of the two nearest t.

        This is what `kddpm.learned.schedule` takes as `denoise`.

        Args:
            z: sqrt(sigmoid(log_snr)) x_0 + sqrt(sigmoid(-log_snr)) eps, float32 (B, H, W, C).
            log_snr: (B,).

        Returns:
            A tensor of the shape of z; of no class, if the network has classes.

        Raises:
            InputError: the network has classes and was trained without label dropout.
        """
        if self.num_classes and not self.knows_no_class:
            raise InputError(
                "network", "must know pictures without their class, by label_dropout", f"{self.num_classes} classes"
            )
        levels, wanted = self.schedule.log_sigmas.astype(np.float32), -log_snr / 2
        after = tf.clip_by_value(tf.searchsorted(levels, wanted, side="right"), 1, max(len(levels) - 1, 1))
        before, after = after - 1, tf.minimum(after, len(levels) - 1)
        apart = tf.gather(levels, after) - tf.gather(levels, before)
        share = tf.clip_by_value(tf.math.divide_no_nan(wanted - tf.gather(levels, before), apart), 0.0, 1.0)
        eps = (1 - _of_pictures(share)) * self._eps(z, before) + _of_pictures(share) * self._eps(z, after)
        signal, noise = (_of_pictures(tf.sqrt(tf.sigmoid(sign * log_snr))) for sign in (1, -1))
        return (z - noise * eps) / signal

    def _eps(self, x_t, index):
        """Return eps at the indices (B,) of the schedule, of no class."""
        none = tf.fill(index.shape, self.num_classes) if self.num_classes else None
        output = self.predictor(none)(x_t, tf.gather(self.schedule.timesteps.astype(np.int32), index))
        tables = parametrization.eps_coefficients(self.schedule, self.objective.prediction)
        of_xt, of_output = (_of_pictures(tf.gather(table.astype(np.float32), index)) for table in tables)
        return of_xt * x_t + of_output * output

    def compiled(self, key: Hashable, make: Callable[[], object]) -> Any:
        """Return what `make` compiles for `key`, from a cache of the most recently used."""
        kept = self._compiled
        if key in kept:
            made = kept.pop(key)
        else:
            made = make()
            while len(kept) >= _MOST_COMPILED:
                del kept[next(iter(kept))]
        kept[key] = made  # now the most recently used
        return made

    def checked_labels(self, labels: Integers | None, seeds: np.ndarray) -> np.ndarray | None:
        """Check labels and return them as int32 (N,), one a seed; None for a network without classes.

        Args:
            labels: classes; None = derived from the seeds.
            seeds: int32 (N,).

        Raises:
            InputError: labels of another number, out of range, or for a network without classes.
        """
        if not self.num_classes:
            if labels is not None:
                raise InputError("labels", "were given, but the network has no classes (num_classes=None)")
            return None
        if labels is None:
            return class_labels.of_seeds(seeds, self.num_classes)
        labels = arguments.int32("labels", labels)
        if len(labels) != len(seeds):
            raise InputError("labels", "must be one a seed", f"{len(labels)} labels, {len(seeds)} seeds")
        class_labels.check(labels, self.num_classes)
        return labels

    def labels_of_images(self, labels: Integers | None, count: int) -> np.ndarray | None:
        """Check the labels of given images, which cannot be derived from seeds, and return them as int32 (count,).

        Raises:
            InputError: as in `checked_labels`, or no labels for a network with classes.
        """
        if self.num_classes:
            if labels is None:
                raise InputError("labels", f"are needed: the network has {self.num_classes} classes", "None")
            if np.shape(labels) != (count,):
                raise InputError("labels", f"must be one an image, ({count},)", f"shape {np.shape(labels)}")
        return self.checked_labels(labels, np.arange(count))

    def check_guidance(self, guidance_scale: float) -> None:
        """Check that the network supports this guidance scale.

        Raises:
            InputError: the scale is negative or not a number; or it is not 1, and the network has no classes or was
                trained without label dropout.
        """
        if arguments.number("guidance_scale", guidance_scale) < 0:
            raise InputError("guidance_scale", "must be at least 0", guidance_scale)
        if guidance_scale == 1:
            return
        if not self.num_classes:
            raise InputError(
                "guidance_scale", "needs a network with classes (num_classes)", f"{guidance_scale} without classes"
            )
        if not self.knows_no_class:
            raise InputError(
                "guidance_scale",
                "needs a model trained with label_dropout: this one never saw pictures without their class",
                guidance_scale,
            )


def _of_pictures(values):
    """Return (B,) values as (B, 1, 1, 1)."""
    return tf.reshape(values, [-1, 1, 1, 1])


def denoiser_of(model: Denoiser | HasDenoiser) -> Denoiser:
    """Return a `Denoiser` itself, or the `Denoiser` of a `DiffusionModel`."""
    return model if isinstance(model, Denoiser) else model.denoiser
