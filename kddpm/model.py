"""`DiffusionModel`: a Keras model whose `fit` is Algorithm 1 and whose `generate` is Algorithm 2 of Ho et al. 2020.

Every random draw is a function of (seed, step): the timesteps, the noise and the dropout masks of training step k come
from `fold_in(fold_in(seed, purpose), k)`, so nothing has to be saved for a run to continue as if it had never stopped.
"""

import warnings
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from kddpm import exporting, inputs, samplers, schedules
from kddpm import images as kd_images
from kddpm.errors import InputError
from kddpm.objectives import simple_loss
from kddpm.process import GaussianDiffusion

_TRAIN, _TEST = 0, 1  # purposes of random draws
_LARGEST_LAST_ALPHA_BAR = 0.01  # above it x_T is visibly not noise
_STEPS_A_CALL = 50  # sampling returns to Python this often, to move the progress bar


@keras.saving.register_keras_serializable("kddpm")
class DiffusionModel(keras.Model):
    """A denoising diffusion probabilistic model around a noise-predicting network.

    Images are uint8, or float in [-1, 1]; (N, H, W, C). `fit` and `evaluate` take arrays or a `tf.data.Dataset` of
    images or of (images, labels); labels of a network without classes are left aside. `evaluate` and `generate` use an
    exponential moving average of the weights. The loss is L_simple; `compile` takes the optimizer and no loss.

    Args:
        network: a model called on [x_t, t], or [x_t, t, label], such as a `UNet`, with attributes `image_shape` and
            `num_classes`.
        schedule: a `NoiseSchedule`, None = linear with T = 1000.
        seed: of every random draw in training and evaluation.
        ema_momentum: share of the average that is kept at each step, m; early on min(m, (1 + step) / (10 + step)).
        clip_norm: largest global norm of the gradients, None = unlimited.

    Example:
        >>> model = kddpm.DiffusionModel(kddpm.UNet(image_shape=(32, 32, 3)))
        >>> model.compile(keras.optimizers.Adam(2e-4))
        >>> model.fit(images, batch_size=128, epochs=10)
        >>> pictures = model.generate(seeds=range(64), sampler="ddim", num_steps=50)
    """

    def __init__(
        self,
        network: keras.Model,
        schedule: schedules.NoiseSchedule | None = None,
        seed: int = 0,
        ema_momentum: float = 0.9999,
        clip_norm: float | None = 1.0,
        name: str = "diffusion_model",
    ):
        super().__init__(name=name, dtype="float32")
        if not 0 <= ema_momentum < 1:
            raise InputError(f"`ema_momentum` must lie in [0, 1). Received: {ema_momentum}")
        inputs.int32("seed", [seed])
        if clip_norm is not None and not clip_norm > 0:
            raise InputError(f"`clip_norm` must be positive, or None. Received: {clip_norm}")
        self.network = network
        self.schedule = schedule or schedules.linear()
        if self.schedule.alpha_bars[-1] > _LARGEST_LAST_ALPHA_BAR:
            warnings.warn(
                f"The schedule ends at alpha_bar={self.schedule.alpha_bars[-1]:.2g}: x_T still shows the image, and "
                "sampling, which starts from pure noise, will not match. Raise its betas with fewer steps",
                stacklevel=2,
            )
        self.seed = seed
        self.ema_momentum = ema_momentum
        self.clip_norm = clip_norm
        self.image_shape = tuple(network.image_shape)
        self.diffusion = GaussianDiffusion(self.schedule)

        self.ema_network = type(network).from_config({**network.get_config(), "name": "ema_network"})
        self.ema_network.trainable = False
        self.ema_network.set_weights(network.get_weights())
        self.step = self.add_weight(
            shape=(), initializer="zeros", dtype="int64", trainable=False, aggregation="only_first_replica", name="step"
        )
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.gradient_norm_tracker = keras.metrics.Mean(name="gradient_norm")
        self._traced_shapes = {}
        self._walks = {}
        self.built = True

    def call(self, inputs, training=False):
        """The network's prediction for [x_t, t] or [x_t, t, label]."""
        return self.network(inputs, training=training)

    def compile(self, optimizer="adam", **kwargs):
        """Keras's `compile`; the loss is fixed, and float16 is refused because its range is too small for gradients."""
        if kwargs.get("loss") is not None:
            raise InputError(f"`loss` is L_simple and cannot be chosen. Received: loss={kwargs['loss']!r}")
        if self.network.compute_dtype == "float16":
            raise InputError("`network` must compute in float32 or bfloat16. Received: the dtype policy mixed_float16")
        if kwargs.get("metrics") or kwargs.get("weighted_metrics"):
            raise InputError("`metrics` are the loss and the gradient norm and cannot be chosen")
        super().compile(optimizer=optimizer, **kwargs)
        # Slots made now rather than in the first step: that step is traced once instead of twice.
        self.optimizer.build(self.network.trainable_variables)

    def compile_from_config(self, config):
        """Compile as `get_compile_config` described, when a saved model is loaded."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    @property
    def metrics(self):
        """The means that `fit` and `evaluate` reset and report."""
        return [self.loss_tracker, self.gradient_norm_tracker]

    # Algorithm 1: training.

    def train_step(self, data):
        """One step of Algorithm 1; data: a batch of images, or (images, labels)."""
        x_0, label = self._unpack(data, "training")
        t, noise, dropout_seed = self._draw(_TRAIN, self.step, tf.shape(x_0))
        with tf.GradientTape() as tape:
            x_t = self.diffusion.q_sample(x_0, t, noise)
            predicted = self.network(_network_inputs(x_t, self._named(t), label), training=True, seed=dropout_seed)
            loss = tf.reduce_mean(simple_loss(noise, predicted))
        gradient_norm = self._descend(tape.gradient(loss, self.network.trainable_variables))
        self._update_ema()
        self.step.assign_add(1)
        self.loss_tracker.update_state(loss)
        self.gradient_norm_tracker.update_state(gradient_norm)
        return self.get_metrics_result()

    def test_step(self, data):
        """L_simple of one batch under the averaged weights; the same draws at every evaluation."""
        x_0, label = self._unpack(data, "evaluation")
        t, noise, _ = self._draw(_TEST, tf.cast(self.loss_tracker.count, tf.int64), tf.shape(x_0))
        x_t = self.diffusion.q_sample(x_0, t, noise)
        predicted = self.ema_network(_network_inputs(x_t, self._named(t), label))
        self.loss_tracker.update_state(simple_loss(noise, predicted))
        return {"loss": self.loss_tracker.result()}

    def _unpack(self, data, purpose):
        images, label, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if sample_weight is not None:
            raise InputError("`sample_weight` is not supported: every image counts the same")
        self._note_trace(purpose, images)
        if self.network.num_classes:
            if label is None:
                raise InputError(
                    f"`network` has {self.network.num_classes} classes and needs labels: pass (images, labels)"
                )
            label = tf.reshape(tf.cast(label, tf.int32), [-1])
        else:
            label = None
        return kd_images.to_float(images) if images.dtype == tf.uint8 else tf.cast(images, tf.float32), label

    def _draw(self, purpose, index, shape):
        """t (B,), noise (B, H, W, C) and a dropout seed for one step: of the global batch, sliced by replica."""
        context = tf.distribute.get_replica_context()
        replicas, replica = context.num_replicas_in_sync, context.replica_id_in_sync_group
        fold_in = tf.random.experimental.stateless_fold_in
        seed = fold_in(tf.constant([self.seed, purpose], tf.int32), index)
        batch = shape[0]

        def mine(draw):
            return draw[replica * batch : (replica + 1) * batch] if replicas > 1 else draw

        t = tf.random.stateless_uniform(
            [batch * replicas], fold_in(seed, 0), 0, self.schedule.num_timesteps, dtype=tf.int32
        )
        noise = tf.random.stateless_normal(tf.concat([[batch * replicas], shape[1:]], 0), fold_in(seed, 1))
        return mine(t), mine(noise), fold_in(fold_in(fold_in(seed, 2), replica), 0)

    def _named(self, t):
        """What the network is told for index t: a respaced schedule keeps the names of its steps."""
        return tf.gather(self.schedule.timesteps.astype(np.int32), t)

    def _descend(self, gradients):
        """Clip by global norm and apply; returns the norm before clipping.

        With several replicas the gradients are averaged before they are clipped, and divided by the number of replicas
        because the optimizer sums them once more.
        """
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync
        # A table of labels has sparse gradients with repeated rows, which a norm must see added up.
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        if replicas > 1:
            gradients = [g / replicas for g in context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)]
        norm = tf.linalg.global_norm(gradients)
        scale = 1.0 / replicas
        if self.clip_norm is not None:
            scale *= self.clip_norm / tf.maximum(norm, self.clip_norm)
        self.optimizer.apply([g * tf.cast(scale, g.dtype) for g in gradients], self.network.trainable_variables)
        return norm

    def _update_ema(self):
        step = tf.cast(self.step, tf.float32)
        momentum = tf.minimum(self.ema_momentum, (1 + step) / (10 + step))
        for average, weight in zip(self.ema_network.weights, self.network.weights, strict=True):
            average.assign(weight + momentum * (average - weight))

    # Algorithm 2: sampling.

    def generate(
        self,
        seeds: Sequence[int],
        sampler: str | samplers.Sampler = "ancestral",
        num_steps: int | Sequence[int] | None = None,
        *,
        labels: Sequence[int] | None = None,
        batch_size: int = 64,
        return_trajectory: int | bool = False,
        verbose: bool | str = "auto",
        jit_compile: bool = False,
    ):
        """Pictures from seeds: Algorithm 2, or any sampler, with the averaged weights.

        Picture k depends on seeds[k] (and labels[k]) alone, whatever stands beside it: its noise is the same bit for
        bit, and the picture is, up to the rounding of floats.

        Args:
            seeds: int32 numbers, one a picture.
            sampler: "ancestral", "ddim", or one with its arguments, such as `kddpm.samplers.DDIM(eta=0.5)`.
            num_steps: how many steps, or which ones; None = all T.
            labels: classes, one a picture; None = seed modulo the number of classes.
            batch_size: pictures in memory at a time; a smaller last chunk is filled up and not traced again.
            return_trajectory: also return this many frames of every picture's way from noise; True = 50.
            verbose: whether to show a progress bar; "auto" = once sampling has taken two seconds.
            jit_compile: compile with XLA: slower to start, faster where the network is small.

        Returns:
            uint8 (N, H, W, C); with `return_trajectory` also uint8 (frames, N, H, W, C), from noise to the pictures.

        Raises:
            InputError: no seeds, seeds that are not int32, an unknown sampler, more steps than T, labels out of range
                or for a network without classes.
        """
        seeds = inputs.int32("seeds", seeds)
        labels = self._labels(labels, seeds)
        table = samplers.step_table(samplers.by_name(sampler), self.schedule, num_steps)
        if batch_size < 1:
            raise InputError(f"`batch_size` must be positive. Received: {batch_size}")
        # A power of two, so that a few shapes serve every number of seeds.
        batch = min(batch_size, 2 ** (len(seeds) - 1).bit_length())
        frames = 50 if return_trajectory is True else int(return_trajectory)
        stops = _stops(table.num_steps, frames)
        begin, walk = self._walk(samplers.by_name(sampler), table, batch, jit_compile)

        chunks = [slice(i, i + batch) for i in range(0, len(seeds), batch)]
        images, trajectories = [], []
        with tqdm(
            total=len(chunks) * table.num_steps,
            desc=f"Generating {len(seeds)} pictures",
            unit="step",
            delay=2 if verbose == "auto" else 0,
            disable=not verbose,
        ) as bar:
            for chunk in chunks:
                count = len(seeds[chunk])
                chunk_seeds = tf.constant(np.resize(seeds[chunk], batch))
                chunk_labels = None if labels is None else tf.constant(np.resize(labels[chunk], batch))
                x, start, trajectory = begin(chunk_seeds), 0, []
                for stop, is_frame in stops:
                    if is_frame:
                        trajectory.append(kd_images.to_uint8(x[:count]).numpy())
                    x = walk(x, chunk_seeds, chunk_labels, tf.constant(start, tf.int32), tf.constant(stop, tf.int32))
                    bar.update(stop - start)
                    start = stop
                images.append(kd_images.to_uint8(x[:count]).numpy())
                trajectories.append([*trajectory, images[-1]])
        images = np.concatenate(images)
        if not frames:
            return images
        return images, np.concatenate([np.stack(trajectory) for trajectory in trajectories], axis=1)

    def _walk(self, sampler, table, batch, jit_compile):
        """(begin, walk): the compiled functions for a sampler and a batch size, traced once and kept."""
        key = (sampler, table.timesteps.tobytes(), batch, jit_compile)
        if key not in self._walks:

            @tf.function(jit_compile=jit_compile, autograph=False)
            def begin(seeds):
                return samplers.initial_noise(seeds, self.image_shape)

            @tf.function(jit_compile=jit_compile, autograph=False)
            def walk(x, seeds, label, start, stop):
                def denoiser(x_t, t):
                    return self.ema_network(_network_inputs(x_t, t, label))

                return samplers.walk(denoiser, table, x, seeds, start, stop)

            self._walks[key] = begin, walk
        return self._walks[key]

    def _labels(self, labels, seeds):
        classes = self.network.num_classes
        if not classes:
            if labels is not None:
                raise InputError("`labels` were given, but the network has no classes (num_classes=None)")
            return None
        if labels is None:
            return (seeds % classes).astype(np.int32)
        labels = inputs.int32("labels", labels)
        if len(labels) != len(seeds):
            raise InputError(f"`labels` must be one a seed. Received: {len(labels)} labels, {len(seeds)} seeds")
        inputs.check_labels(labels, classes)
        return labels

    def export(self, path, format="litert", sampler="ancestral", num_steps=None, precision="float32", **kwargs) -> dict:
        """Write a file that generates by itself, seed in, picture out; arguments and errors as in `exporting.export`.

        Example:
            >>> model.export("phone.tflite", sampler="ddim", num_steps=20, precision="int8")
        """
        return exporting.export(self, path, format, sampler, num_steps, precision, **kwargs)

    # What goes into `fit` and `evaluate`.

    def fit(self, x=None, y=None, batch_size=None, epochs=1, **kwargs):
        """Keras's `fit` on images, after a look at them.

        Raises:
            InputError: images of another shape or type, outside [-1, 1] or NaN; labels missing or out of range.
        """
        if kwargs.get("validation_data") is not None:
            images, labels, *weights = keras.utils.unpack_x_y_sample_weight(kwargs["validation_data"])
            kwargs["validation_data"] = (self._checked(images, labels), labels, *weights)
        x = self._checked(x, y)
        if isinstance(x, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # its order is its own, and Keras warns about the default
        if self.jit_compile and hasattr(x, "shape") and len(x) % (batch_size or 32):
            warnings.warn(
                f"{len(x)} images are not a multiple of batch_size={batch_size or 32}: XLA compiles the training step "
                "a second time for the smaller last batch",
                stacklevel=2,
            )
        with inputs.one_line_errors():
            return super().fit(x, y, batch_size=batch_size, epochs=epochs, **kwargs)

    def evaluate(self, x=None, y=None, batch_size=None, **kwargs):
        """Keras's `evaluate`: L_simple of the averaged weights; the same images give the same number.

        Raises:
            InputError: as in `fit`.
        """
        with inputs.one_line_errors():
            return super().evaluate(self._checked(x, y), y, batch_size=batch_size, **kwargs)

    def _checked(self, x, y):
        return inputs.checked_images(x, y, self.image_shape, self.network.num_classes)

    def _note_trace(self, purpose, images):
        """Say so when a step is traced for a second batch shape: it costs as much as the first."""
        shape = tuple(images.shape)
        first = self._traced_shapes.setdefault(purpose, shape)
        if shape != first:
            warnings.warn(f"The {purpose} step, traced for a batch {first}, is traced again for {shape}", stacklevel=2)

    # Saving.

    def get_config(self):
        """The arguments of `__init__`."""
        return {
            "network": keras.saving.serialize_keras_object(self.network),
            "schedule": self.schedule.get_config(),
            "seed": self.seed,
            "ema_momentum": self.ema_momentum,
            "clip_norm": self.clip_norm,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        """The model that `get_config` described, with new weights."""
        network = keras.saving.deserialize_keras_object(config["network"])
        schedule = schedules.NoiseSchedule.from_config(config["schedule"])
        return cls(**{**config, "network": network, "schedule": schedule})


def _network_inputs(x_t, t, label):
    return [x_t, t] if label is None else [x_t, t, label]


def _stops(num_steps: int, frames: int) -> list[tuple[int, bool]]:
    """Where sampling returns to Python: (step to stop before, whether a frame is taken before walking there)."""
    framed = np.unique(np.linspace(0, num_steps, frames).round().astype(int))[:-1] if frames > 1 else []
    starts = sorted({0, *framed, *range(0, num_steps, _STEPS_A_CALL)})
    return [(stop, start in framed) for start, stop in zip(starts, [*starts[1:], num_steps], strict=True)]
