"""`DiffusionModel`: a Keras model whose `fit` is Algorithm 1 and whose `generate` is Algorithm 2 of Ho et al. 2020.

Every random draw is a function of (seed, step): the timesteps, the noise and the dropout masks of training step k come
from `fold_in(seed, k)`. So a run continues as if it had never stopped, without a saved generator state.
"""

import dataclasses
import math
import os
import warnings
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from kddpm.base.errors import InputError
from kddpm.base.files import expand
from kddpm.base.types import Config, Integers, Tensor
from kddpm.data import inputs
from kddpm.device import export
from kddpm.distribution import cores, replicas, strategies
from kddpm.evaluation import likelihood, ode_likelihood
from kddpm.model import checks, draws, means, network_state
from kddpm.model.gradients import descend, loss_and_gradients
from kddpm.model.guarded import GuardedModel, refuse_weights
from kddpm.networks import contract, fused
from kddpm.sampling import editing, generation, samplers
from kddpm.sampling.denoiser import Denoiser
from kddpm.theory import objectives, schedules, timesteps
from kddpm.theory.parametrization import Objective


@keras.saving.register_keras_serializable("kddpm")
class DiffusionModel(GuardedModel):
    """A denoising diffusion probabilistic model around a network that predicts x_0 or what determines it.

    Images are uint8, or float in [-1, 1]; (N, H, W, C). `fit` and `evaluate` take arrays, or a `tf.data.Dataset`,
    `PyDataset` or generator of images or of (images, labels); a network without classes ignores the labels. `evaluate`
    and `generate` use an exponential moving average of the weights. The loss is chosen here; `compile` takes the
    optimizer and no loss.

    Args:
        network: a model called on [x_t, t], or [x_t, t, label], such as a `UNet` or one of your own: with attributes
            `image_shape` and `num_classes`, C output channels, and as `docs/your_network.md` says. It is built if need
            be, and copied for the average.
        schedule: the `NoiseSchedule` to train on, or the name of one in `schedules.BY_NAME`, with T = 1000; None =
            linear. The meaning of mu and of a learned variance depends on every step of it.
        prediction: what the network predicts: "eps", "x0", "mu", "v", "edm" or "velocity".
        weighting: of the loss: "simple", "vlb", "min_snr" or "hybrid"; `kddpm.parametrization` has the equations.
        variance: of p(x_{t-1} | x_t): "small", "large", or "learned" by a network of 2 C output channels.
        timestep_sampling: how training draws t: "uniform"; "stratified" = spread evenly over the batch; "importance" =
            by the losses seen; "log_normal" = by their noise, as Karras et al. 2022. `Objective` says more.
        label_dropout: fraction of the labels that training replaces by "no class", for classifier-free guidance.
        seed: of every random draw in training and evaluation.
        ema_momentum: m, the fraction of the average that each step keeps; early on min(m, (1 + step) / (10 + step)).
        clip_norm: largest global norm of the gradients, None = unlimited.
        accumulation: micro-batches per batch, computed one after the other to save memory; the step is the same.

    Raises:
        InputError: a value is out of range, or two choices exclude each other.

    Example:
        >>> model = kddpm.DiffusionModel(kddpm.UNet(image_shape=(32, 32, 3)))
        >>> model.compile(keras.optimizers.Adam(2e-4))
        >>> model.fit(images, batch_size=128, epochs=10)
        >>> pictures = model.generate(seeds=range(64), sampler="ddim", num_steps=50)
    """

    def __init__(
        self,
        network: keras.Model,
        schedule: schedules.NoiseSchedule | str | None = None,
        *,
        prediction: str = "eps",
        weighting: str = "simple",
        variance: str = "small",
        timestep_sampling: str = "uniform",
        label_dropout: float = 0.1,
        seed: int = 0,
        ema_momentum: float = 0.9999,
        clip_norm: float | None = 1.0,
        accumulation: int = 1,
        name: str = "diffusion_model",
    ):
        super().__init__(name=name, dtype="float32")
        checks.check_numbers(ema_momentum, label_dropout, seed, clip_norm, accumulation)
        self.schedule = checks.as_schedule(schedule)
        self.objective = Objective(prediction, weighting, variance, timestep_sampling)
        checks.warn_of_a_rest(self.schedule)
        checked = Denoiser(network, self.schedule, self.objective)
        self.network = network
        self.image_shape = checked.image_shape
        # Python's numbers, where NumPy's came: a graph would take their type, and a file could not hold them.
        self.label_dropout = float(label_dropout) if network.num_classes else 0.0
        self.seed = int(seed)
        self.ema_momentum = float(ema_momentum)
        self.clip_norm = None if clip_norm is None else float(clip_norm)
        self.accumulation = int(accumulation)

        self.ema_network = contract.copied(network, "ema_network", checked.last_timestep)
        self.ema_network.trainable = False
        self.denoiser = Denoiser(self.ema_network, self.schedule, self.objective, bool(self.label_dropout))
        self.diffusion = self.denoiser.process
        self.step = self._counter("step", "int64")
        self.last_loss, self.skipped_in_a_row = self._counter("last_loss"), self._counter("skipped_in_a_row", "int64")
        if self.objective.timestep_sampling == "importance":
            per_timestep = (self.schedule.num_timesteps,)
            self.loss_squares = self._counter("loss_squares", shape=per_timestep)
            self.loss_counts = self._counter("loss_counts", shape=per_timestep)
        self.loss_tracker = means.Mean(name="loss")
        self.gradient_norm_tracker = means.Mean(name="gradient_norm")
        self.skipped_tracker = means.Sum(name="skipped_steps")
        self._invalid_batches = means.Sum(name="invalid_batches")  # among those that only a step has seen
        self._traced_shapes: dict[str, tuple] = {}  # first batch shape of each purpose
        self._batch_guards: dict[str, inputs.Guard] = {}  # of `train_on_batch` and `test_on_batch`
        self.built = True

    def _counter(self, name, dtype="float32", shape=()):
        """Add a variable that is not a weight of the network and has the same value on every replica."""
        return self.add_weight(
            shape=shape, dtype=dtype, initializer="zeros", trainable=False, aggregation="only_first_replica", name=name
        )

    def call(self, inputs: Sequence[Tensor], training: bool = False) -> Tensor:
        """Return the network's prediction for [x_t, t] or [x_t, t, label]."""
        return self.network(inputs, training=training)

    def compile(self, optimizer: keras.optimizers.Optimizer | str = "adam", **kwargs) -> None:
        """Compile as Keras does, without a loss: the model defines it.

        Raises:
            InputError: as in `checks.check_compile_arguments`; or XLA, or several steps per call, on several replicas.
        """
        checks.check_compile_arguments(self.network, optimizer, kwargs)
        super().compile(optimizer=optimizer, **kwargs)
        strategies.check_compiled(self.distribute_strategy, self.jit_compile, self.steps_per_execution)
        # With the optimizer's slots created here, the first training step is traced once instead of twice.
        self.optimizer.build(self.network.trainable_variables)
        self._compiled_weights = frozenset(map(id, self.network.trainable_variables))

    def _maybe_symbolic_build(self, *args, **kwargs):
        # Everything is built already. Under a strategy Keras's version would draw a batch from the data, which changes
        # their order compared with one device, and it fails on several workers.
        pass

    def compile_from_config(self, config: Config) -> None:
        """Compile a loaded model with the configuration that `get_compile_config` returned."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """What `fit` and `evaluate` reset and `fit` reports: the metrics of the model and of its network's layers."""
        own = [self.loss_tracker, self.gradient_norm_tracker, self.skipped_tracker]
        return own + network_state.layer_metrics(self.network)

    # Algorithm 1: training.

    def train_step(self, data: Tensor) -> dict[str, Tensor]:
        """Take one step of Algorithm 1 on a batch of images, or of (images, labels)."""
        x_0, label, invalid = self._unpack(data, "training")
        drawn = self._draw(self.step, x_0, label)
        weights = checks.compiled_weights(self.network, self._compiled_weights)
        before = network_state.Before(self.network)
        network_state.reseed(self.network, self.seed, self.step)

        def loss_of(x_0, t, weight, noise, label, seed):
            losses = self._image_losses(self.network, x_0, t, noise, label, training=True, seed=seed)
            added = network_state.layer_losses(self.network, self.network)
            return sum(added, tf.reduce_mean(weight * losses)), losses

        parts = self.accumulation, self._parts_at_once(x_0)
        loss, losses, weights, gradients = loss_and_gradients(loss_of, weights, [x_0, *drawn], *parts)
        global_loss, invalid, *gradients = replicas.averaged([loss, invalid, *gradients])
        gradient_norm = tf.linalg.global_norm(gradients)
        is_finite = tf.math.is_finite(global_loss) & tf.math.is_finite(gradient_norm) & (invalid == 0)
        is_finite = before.kept_if(is_finite)
        self._invalid_batches.update_state(invalid)
        descend(self.optimizer, weights, gradients, gradient_norm, self.clip_norm, is_finite)
        self._update_loss_history(drawn.t, losses, is_finite)
        network_state.update_average(self.ema_network, self.network, self.ema_momentum, self.step, is_finite)
        with tf.control_dependencies([global_loss]):  # no step without data, such as after the last batch
            self.step.assign_add(1)
        self.last_loss.assign(global_loss)
        self._update_metrics(global_loss, gradient_norm, is_finite)
        return self._logs(self.get_metrics_result())

    def test_step(self, data: Tensor) -> dict[str, Tensor]:
        """Compute the loss of one batch under the averaged weights; image k of an evaluation has draws of its own."""
        x_0, label, invalid = self._unpack(data, "evaluation")
        steps, shares = self.schedule.num_timesteps, self._chosen_shares()
        drawn = draws.draw_evaluation(self.seed, self.loss_tracker.count, x_0, steps, shares)
        arrays = [x_0, *drawn, label]
        if self.distribute_strategy.num_replicas_in_sync > 1 and x_0.shape[0] is None:
            # A replica may get no image of the last batch, but a network needs at least one.
            arrays = [None if a is None else tf.pad(a, [[0, 1], *[[0, 0]] * (a.ndim - 1)]) for a in arrays]
        losses = self._image_losses(self.ema_network, *arrays)
        size = tf.shape(x_0)[0]
        count = tf.cast(size, tf.float32)
        added = [count * loss for loss in network_state.layer_losses(self.ema_network, self.network)]
        total, count, invalid = replicas.summed([sum(added, tf.reduce_sum(losses[:size])), count, invalid])
        self.loss_tracker.update_state(tf.where(invalid == 0, total, math.nan), count)
        self._invalid_batches.update_state(invalid)
        return self._logs({"loss": self.loss_tracker.result()})

    def _parts_at_once(self, x_0):
        """Return how many parts of a micro-batch are computed at the same time; they must not write to variables.

        XLA computes the turns of a loop one after the other, and convolutions within it at a seventh of their speed.
        """
        changes = network_state.has_state(self.network) or not contract.takes_seed(self.network)
        if self.jit_compile or x_0.shape[0] is None or changes:
            return 1
        return cores.equal_parts(x_0.shape[0] // self.accumulation, self.distribute_strategy)

    def _logs(self, results):
        """Return results in the shape that Keras averages over replicas: with several workers it needs an axis."""
        if isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return {name: tf.reshape(value, [1]) for name, value in results.items()}
        return results

    def _image_losses(self, network, x_0, t, noise, label, training=False, seed=None):
        """Return the loss of each image, (B,)."""
        x_t = self.diffusion.q_sample(x_0, t, noise)
        arguments = [x for x in (x_t, self._timestep_names(t), label) if x is not None]
        options = {"seed": seed} if contract.takes_seed(network) else {}
        with fused.allowed():
            output = network(arguments, training=training, **options)
        return objectives.training_loss(self.diffusion, x_t, t, x_0, noise, output, self.objective)

    def _unpack(self, data, purpose):
        """Return the images of a batch as floats, their labels or None, and 1.0 if these were not in their ranges."""
        images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        refuse_weights(sample_weight=sample_weight)
        if self.network.num_classes and labels is None:
            raise InputError(
                "network", f"has {self.network.num_classes} classes and needs labels: pass (images, labels)"
            )
        if purpose == "training" and self._replica_batch is not None:
            images = tf.ensure_shape(images, (self._replica_batch, *self.image_shape))
        self._note_trace(purpose, images)
        x_0, labels, is_valid = inputs.prepared(images, labels, self.image_shape, self.network.num_classes)
        return x_0, labels, tf.cast(~is_valid, tf.float32)

    def _draw(self, step, x_0, label):
        sampling, shares = self.objective.timestep_sampling, self._chosen_shares()
        if sampling == "importance":
            shares = timesteps.importance_probabilities(self.loss_squares.value, self.loss_counts.value)
        return draws.draw(
            self.seed, step, x_0, label, self.schedule.num_timesteps,
            shares=shares, undo_shares=sampling == "importance", evenly=sampling != "uniform",
            label_dropout=self.label_dropout, no_class=self.network.num_classes,
        )  # fmt: skip

    def _chosen_shares(self):
        """Return how much each t counts where that is part of the objective, (T,); None = evenly."""
        if self.objective.timestep_sampling != "log_normal":
            return None
        return tf.constant(timesteps.log_normal_probabilities(self.schedule), tf.float32)

    def _update_loss_history(self, t, losses, is_finite):
        """Update the running mean of the squared loss at each t from the global batch, for importance sampling."""
        if self.objective.timestep_sampling != "importance":
            return
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            t, losses = context.all_gather(t, axis=0), context.all_gather(losses, axis=0)
        squares, counts = timesteps.updated_loss_history(self.loss_squares.value, self.loss_counts.value, t, losses)
        self.loss_squares.assign(tf.where(is_finite, squares, self.loss_squares.value))
        self.loss_counts.assign(tf.where(is_finite, counts, self.loss_counts.value))

    def _timestep_names(self, t):
        """Return the timesteps that the network gets for indices t; a respaced schedule keeps the original ones."""
        return tf.gather(self.schedule.timesteps.astype(np.int32), t)

    def _update_metrics(self, loss, gradient_norm, is_finite):
        """Update the metrics: the means count the steps that were taken, the sum those that were skipped."""
        taken = tf.cast(is_finite, tf.float32)
        for tracker, value in ((self.loss_tracker, loss), (self.gradient_norm_tracker, gradient_norm)):
            tracker.update_state(tf.where(is_finite, value, 0.0), taken)
        self.skipped_tracker.update_state(1 - taken)
        self.skipped_in_a_row.assign(tf.cast(~is_finite, tf.int64) * (self.skipped_in_a_row.value + 1))

    def check_valid(self) -> None:
        """Check that every batch was valid, those too that only the step has seen.

        Raises:
            InputError: images or labels were out of range; nothing was learned from their batch.
        """
        if self._invalid_batches.total.numpy():
            self._invalid_batches.reset_state()
            labels = f", labels in 0 .. {self.network.num_classes - 1}" if self.network.num_classes else ""
            raise InputError(f"Images must be uint8, or finite floats in [-1, 1]{labels}", received="other values")

    def check_not_lost(self, most_skipped: int) -> None:
        """Check that a step was taken recently.

        Raises:
            InputError: the last `most_skipped` steps were skipped because loss or gradients were not finite.
        """
        skipped = int(self.skipped_in_a_row.numpy())
        if skipped >= most_skipped:
            raise InputError(
                f"The loss or its gradients were not finite in the last {skipped} steps, up to step "
                f"{int(self.step.numpy())}: loss {float(self.last_loss.numpy()):g}, learning rate "
                f"{float(self.optimizer.learning_rate.numpy()):g}. Try a smaller learning rate, or a longer warm-up"
            )

    def reset_average(self) -> None:
        """Set the averaged weights to those of `network`; call it after you have loaded weights into `network`."""
        contract.copy_values(self.network, self.ema_network)

    # Algorithm 2: sampling.

    def generate(
        self,
        seeds: Integers,
        sampler: str | samplers.Sampler = "ancestral",
        num_steps: int | Integers | None = None,
        *,
        labels: Integers | None = None,
        guidance_scale: float = 1.0,
        x_T: Tensor = None,
        batch_size: int = 64,
        return_trajectory: bool | str | int = False,
        frames: int | Integers = 50,
        verbose: bool | str = "auto",
        jit_compile: bool = False,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Generate pictures from seeds (Algorithm 2); arguments, result and errors as in `generation.generate`.

        Example:
            >>> pictures = model.generate(range(64), sampler="ddim", num_steps=50)  # uint8 (64, H, W, C)
        """
        return generation.generate(
            self,
            seeds,
            sampler,
            num_steps,
            labels=labels,
            guidance_scale=guidance_scale,
            x_T=x_T,
            batch_size=batch_size,
            return_trajectory=return_trajectory,
            frames=frames,
            verbose=verbose,
            jit_compile=jit_compile,
        )

    def variations(self, images: Tensor, strength: float, seeds: Integers | None = None, **kwargs) -> np.ndarray:
        """Return pictures similar to the given ones; arguments and errors as in `editing.variations`."""
        return editing.variations(self, images, strength, seeds, **kwargs)

    def inpaint(self, images: Tensor, mask: Tensor, seeds: Integers | None = None, **kwargs) -> np.ndarray:
        """Paint the pixels that the mask does not mark as known; arguments and errors as in `editing.inpaint`."""
        return editing.inpaint(self, images, mask, seeds, **kwargs)

    def interpolate(
        self, a: Tensor, b: Tensor, count: int = 9, num_steps: int | Integers | None = None, **kwargs
    ) -> np.ndarray:
        """Return pictures between image a and image b; arguments and errors as in `editing.interpolate`."""
        return editing.interpolate(self, a, b, count, num_steps, **kwargs)

    def shared_until(self, seeds: Integers, t: int, **kwargs) -> np.ndarray:
        """Return pictures that share x_t down to t; arguments and errors as in `generation.shared_until`."""
        return generation.shared_until(self, seeds, t, **kwargs)

    def invert(self, images: Tensor, num_steps: int | Integers | None = None, **kwargs) -> np.ndarray:
        """Return the x_T from which DDIM generates these images; arguments and errors as in `editing.invert`."""
        return editing.invert(self, images, num_steps, **kwargs)

    def bits_per_dim(self, images: Tensor, labels: Integers | None = None, **kwargs) -> likelihood.BitsPerDim:
        """Return the variational bound of images; arguments, result and errors as in `likelihood.bits_per_dim`."""
        return likelihood.bits_per_dim(self, images, labels, **kwargs)

    def ode_bits_per_dim(
        self, images: Tensor, labels: Integers | None = None, **kwargs
    ) -> ode_likelihood.OdeBitsPerDim:
        """Return the bits of images by the ODE; arguments, result and errors as in `likelihood.ode_bits_per_dim`."""
        return ode_likelihood.ode_bits_per_dim(self, images, labels, **kwargs)

    def export(
        self,
        path: str | os.PathLike,
        format: str = "litert",
        sampler: str | samplers.Sampler = "ancestral",
        num_steps: int | Integers | None = None,
        precision: str = "float32",
        **kwargs,
    ) -> dict:
        """Write a file that generates pictures from seeds without kddpm; arguments and errors as in `export.export`.

        Example:
            >>> model.export("phone.tflite", sampler="ddim", num_steps=20, precision="int8")
        """
        return export.export(self, path, format, sampler, num_steps, precision, **kwargs)

    def _note_trace(self, purpose, images):
        """Warn when a step is traced for a second batch shape, which takes as long as the first trace."""
        shape = tuple(images.shape)
        first = self._traced_shapes.setdefault(purpose, shape)
        if shape != first:
            warnings.warn(f"The {purpose} step, traced for a batch {first}, is traced again for {shape}", stacklevel=2)

    # Saving, where a path may begin with `~`.

    def save(self, filepath: str | os.PathLike, *args, **kwargs) -> None:
        """Save the model by Keras's `save`."""
        super().save(expand(filepath), *args, **kwargs)

    def save_weights(self, filepath: str | os.PathLike, *args, **kwargs) -> None:
        """Save the weights by Keras's `save_weights`."""
        super().save_weights(expand(filepath), *args, **kwargs)

    def load_weights(self, filepath: str | os.PathLike, *args, **kwargs) -> None:
        """Load the weights by Keras's `load_weights`."""
        super().load_weights(expand(filepath), *args, **kwargs)

    def get_config(self) -> Config:
        """Return the arguments of `__init__`."""
        return {
            "network": contract.serialized(self.network),
            "schedule": self.schedule.get_config(),
            **dataclasses.asdict(self.objective),
            "label_dropout": self.label_dropout,
            "seed": self.seed,
            "ema_momentum": self.ema_momentum,
            "clip_norm": self.clip_norm,
            "accumulation": self.accumulation,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: Config) -> "DiffusionModel":
        """Return a model with the configuration from `get_config` and new weights."""
        network = contract.deserialized(config["network"])
        schedule = schedules.NoiseSchedule.from_config(config["schedule"])
        return cls(**{**config, "network": network, "schedule": schedule})
