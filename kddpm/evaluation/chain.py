"""The chain p(x_{t-1} | x_t) of a model over all steps of its schedule, or over some of them."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kddpm.base.types import Integers, Tensor
from kddpm.sampling import samplers
from kddpm.sampling.denoiser import Denoiser
from kddpm.theory import objectives
from kddpm.theory.process import GaussianDiffusion, split_output


class ReverseChain:
    """A network as a chain of Gaussians, in float64.

    Args:
        denoiser: the network.
        num_steps: as in `likelihood.bits_per_dim`.
        spacing: of `schedules.timestep_grid`, where `num_steps` is a number.
        clip: whether to clip the predicted x_0 to [-1, 1].

    Attributes:
        denoiser: the network.
        process: the forward process over the kept steps; t below counts them.
        objective: the meaning of what `predictor` returns: x_0, and the variance of the network.
        key: hashable, tells chains of one denoiser apart.

    Raises:
        InputError: steps that `samplers.step_table` would refuse.
    """

    def __init__(self, denoiser: Denoiser, num_steps: int | Integers | None, spacing: str, clip: bool):
        kept = samplers.kept_steps(samplers.Ancestral(spacing=spacing), denoiser.schedule, num_steps)
        every = len(kept) == denoiser.schedule.num_timesteps
        self.denoiser = denoiser
        self.process = denoiser.process if every else GaussianDiffusion(denoiser.schedule.respace(kept))
        self.objective = dataclasses.replace(denoiser.objective, prediction="x0")
        self.key = (tuple(kept.tolist()), bool(clip))
        self._kept, self._clip = kept.astype(np.int32), clip

    @property
    def num_steps(self) -> int:
        """The number of kept steps."""
        return len(self._kept)

    def predictor(self, label: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function (x_t, t) -> x_0, and with a learned variance its position in its range, float64.

        x_t is float64 (B, H, W, C), and t is int32 (B,), an index of the kept steps; the network sees x_t as float32.
        x_0 follows from its output by the tables of the whole schedule, since mu is of a step of that.
        """
        denoiser, prediction = self.denoiser, self.denoiser.objective.prediction
        network = denoiser.predictor(label if denoiser.num_classes else None, learned_variance=True)
        names = denoiser.schedule.timesteps.astype(np.int32)

        def predict(x_t, t):
            t = tf.gather(self._kept, t)
            output = tf.cast(network(tf.cast(x_t, tf.float32), tf.gather(names, t)), tf.float64)
            output, fraction = split_output(output, self.objective)
            x_0 = denoiser.process.x0_from(x_t, t, output, prediction)
            x_0 = tf.clip_by_value(x_0, -1.0, 1.0) if self._clip else x_0
            return x_0 if fraction is None else tf.concat([x_0, fraction], axis=-1)

        return predict

    def reverse(self, x_t: Tensor, t: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of p(x_{t-1} | x_t) from what `predictor` gave."""
        return self.process.p_mean_log_variance(x_t, t, *split_output(predicted, self.objective), self.objective)

    def squared_error(self, x_0: Tensor, predicted: Tensor) -> Tensor:
        """Return the mean of the squared error of the predicted x_0 over the elements of an image, (B,)."""
        return objectives.mean_squared_error(x_0, split_output(predicted, self.objective)[0])
