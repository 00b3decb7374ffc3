"""Toy data: points in the plane and a small network for them, and Gaussian data in closed form.

A point of the plane is an "image" of one pixel and two channels, so that it goes through the same `DiffusionModel` and
the same samplers as pictures.

Data N(mean, std^2) in every element need no training. With s = sqrt(alpha_bar_t), n^2 = 1 - alpha_bar_t
and w = s^2 std^2 + n^2, the variance of x_t, both x_0 and x_{t-1} are normal given x_t:

    (1)  E[eps | x_t] = n (x_t - s mean) / w
    (2)  Var[x_0 | x_t] = std^2 n^2 / w,   Var[x_{t-1} | x_t] = posterior variance + c0_t^2 Var[x_0 | x_t]

with c0_t of `kddpm.schedules`, equation (4). A network that outputs (1) and, as its learned variance, (2) is
optimal: its p(x_{t-1} | x_t) equals q(x_{t-1} | x_t).
"""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kddpm.base import arguments, progress
from kddpm.base.errors import InputError
from kddpm.base.types import Config, Integers, Shape, Tensor
from kddpm.model.diffusion_model import DiffusionModel
from kddpm.networks.layers import TimestepEmbedding
from kddpm.sampling import samplers, walks
from kddpm.sampling.denoiser import denoiser_of
from kddpm.theory import objectives, parametrization, schedules
from kddpm.theory.process import GaussianDiffusion, as_float, at_t
from kddpm.theory.schedules import NoiseSchedule

LIMIT = 12.5  # half the side of the plane, in its units; this is 1 in the model
IMAGE_SHAPE = (1, 1, 2)

_TRAINING_POINTS = 20_000
_BATCH = 250
_STEPS_A_CALL = 50  # `fit` returns to Python this often, to move the progress bar
_LEARNING_RATE = 4e-3
_NO_RANGE = 1e-12  # nats; narrower ranges of a log-variance are rounding
_FREQUENCIES = (0.5, 1, 2, 4)  # half-waves across the plane, over 2; they let a small network resolve detail


@dataclasses.dataclass(frozen=True)
class Plane:
    """A distribution of points in the plane: a skeleton of points or lines, plus normal noise.

    Attributes:
        name: its name in figures.
        parts: number of pieces of the skeleton; piece k has u from k / parts to (k + 1) / parts.
        skeleton: maps u (N,) in [0, 1) to points (N, 2) of the skeleton; uniform u give uniform points on it.
        spread: standard deviation of the noise on each axis, in units of the plane.
    """

    name: str
    parts: int
    skeleton: Callable[[np.ndarray], np.ndarray]
    spread: float

    def draw(self, count: int, seed: int = 0) -> np.ndarray:
        """Draw points, float64 (count, 2), in units of the plane."""
        rng = np.random.default_rng(seed)
        return self.skeleton(rng.random(count)) + self.spread * rng.normal(size=(count, 2))

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return for points (N, 2) the nearest piece of the skeleton, int (N,), and its distance, (N,), to 0.03."""
        u = np.arange(200 * self.parts) / (200 * self.parts)
        distances = np.linalg.norm(points[:, np.newaxis] - self.skeleton(u), axis=-1)
        return (self.parts * u[np.argmin(distances, axis=1)]).astype(int), distances.min(axis=1)


def _moons(u: np.ndarray) -> np.ndarray:
    """Return points (N, 2) of two interleaved half circles, together 20 wide, for u (N,)."""
    first, angle = u < 0.5, 2 * np.pi * (u % 0.5)
    x = np.where(first, np.cos(angle), 1 - np.cos(angle)) - 0.5
    y = np.where(first, np.sin(angle), 0.5 - np.sin(angle)) - 0.25
    return np.stack([x, y], axis=-1) * 20 / 3


CENTRES = np.array([[10.0, 10.0], [-10.0, 10.0], [-10.0, -10.0], [10.0, -10.0]])
BY_NAME = {
    "points": Plane("four points", 4, lambda u: CENTRES[(4 * u).astype(int)], spread=0.5),
    "moons": Plane("two moons", 2, _moons, spread=0.4),
}


def to_images(points: np.ndarray) -> np.ndarray:
    """Convert points (N, 2) of the plane to images, float32 (N, 1, 1, 2), approximately within [-1, 1]."""
    return (np.asarray(points) / LIMIT).astype(np.float32).reshape(-1, *IMAGE_SHAPE)


def to_points(images: Tensor) -> np.ndarray:
    """Convert images (N, 1, 1, 2) to points (N, 2) of the plane."""
    return np.asarray(images).reshape(-1, 2) * LIMIT


@keras.saving.register_keras_serializable("kddpm")
class MLP(keras.Model):
    """A network for images of a few numbers, called on [x_t, t]: residual dense layers, each with the timestep added.

    The input is x_t with sines and cosines of it, without which a small network smooths everything (Tancik et al.
    2020).

    Args:
        image_shape: (H, W, C).
        width: units of each layer; divisible by 4.
        depth: number of residual layers.

    Raises:
        InputError: 4 does not divide the width.
    """

    num_classes = None

    def __init__(self, image_shape=IMAGE_SHAPE, width: int = 64, depth: int = 3, **kwargs):
        super().__init__(**kwargs)
        width, depth = arguments.count("width", width), arguments.count("depth", depth, 0)
        if width % 4:
            raise InputError("width", "must be divisible by 4", width)
        self.image_shape = tuple(image_shape)
        self.width = width
        self.depth = depth
        self.embed_timestep = TimestepEmbedding(width // 4, name="embed_timestep")
        self.dense_in = keras.layers.Dense(width, name="dense_in")
        self.shifts = [keras.layers.Dense(width, name=f"shift_{i}") for i in range(depth)]
        self.hidden = [keras.layers.Dense(width, name=f"hidden_{i}") for i in range(depth)]
        self.dense_out = keras.layers.Dense(self._size, kernel_initializer="zeros", name="dense_out")
        self.build()

    @property
    def _size(self):
        return int(np.prod(self.image_shape))

    def build(self, input_shape: Shape | None = None) -> None:
        """Create the weights for images of `image_shape`; `input_shape` is not used."""
        self.embed_timestep.build((None,))
        self.dense_in.build((None, self._size * (1 + 2 * len(_FREQUENCIES))))
        for layer in (*self.shifts, *self.hidden, self.dense_out):
            layer.build((None, self.width))
        self.built = True

    def call(self, inputs: Sequence[Tensor], training: bool = False, seed: Tensor = None) -> Tensor:
        """Return the prediction for [x_t, t]; nothing here is random, so `seed` is not used.

        Args:
            inputs: x_t float (B, H, W, C), t int (B,).
            training: not used.
            seed: not used.

        Returns:
            float32 (B, H, W, C).
        """
        x_t, t = inputs
        x = ops.reshape(x_t, (-1, self._size))
        waves = [wave(np.pi * k * x) for k in _FREQUENCIES for wave in (ops.sin, ops.cos)]
        embedding = ops.silu(self.embed_timestep(t))
        h = self.dense_in(ops.concatenate([x, *waves], axis=1))
        for shift, hidden in zip(self.shifts, self.hidden, strict=True):
            h = h + hidden(ops.silu(h + shift(embedding)))
        return ops.reshape(self.dense_out(ops.silu(h)), (-1, *self.image_shape))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return (B, H, W, C)."""
        return (input_shape[0][0], *self.image_shape)

    def get_config(self) -> Config:
        """Return the arguments of `__init__`."""
        return {**super().get_config(), "image_shape": self.image_shape, "width": self.width, "depth": self.depth}


def train(plane: Plane, steps: int = 2000, seed: int = 0, verbose: bool | str = "auto") -> DiffusionModel:
    """Train a model of points in the plane on 100 steps of the cosine schedule, in a few seconds.

    Args:
        plane: the distribution of the points.
        steps: training steps of 250 points each; rounded up to a multiple of 50.
        seed: seed of the points, the weights and the training; also becomes Keras's global seed.
        verbose: whether to show a progress bar; "auto" = after two seconds of training.
    """
    keras.utils.set_random_seed(seed)
    steps = -(-steps // _STEPS_A_CALL) * _STEPS_A_CALL
    model = DiffusionModel(MLP(), schedules.cosine(100), seed=seed, ema_momentum=0.99)
    rate = keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, steps)
    model.compile(keras.optimizers.Adam(rate), jit_compile=True, steps_per_execution=_STEPS_A_CALL)
    images = tf.data.Dataset.from_tensor_slices(to_images(plane.draw(_TRAINING_POINTS, seed)))
    batches = images.shuffle(_TRAINING_POINTS, seed).repeat().batch(_BATCH, drop_remainder=True)
    with progress.bar(steps, f"Training on {plane.name}", "step", verbose) as bar:
        moved = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: bar.update(batch + 1 - bar.n))
        model.fit(batches, steps_per_epoch=steps, verbose=0, callbacks=[moved])
    return model


def forwards(schedule: NoiseSchedule, points: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the way of points from data to noise, step by step by q(x_t | x_{t-1}).

    Args:
        schedule: a schedule of T steps.
        points: (N, 2), in units of the plane.
        seed: seed of the noise.

    Returns:
        (T + 1, N, 2) in units of the plane, the points themselves first.
    """
    diffusion, rng = GaussianDiffusion(schedule), np.random.default_rng(seed)
    way = [to_images(points)]
    for t in range(schedule.num_timesteps):
        draw = rng.normal(size=way[0].shape).astype(np.float32)
        way.append(np.asarray(diffusion.q_step(way[-1], np.full(len(points), t), draw)))
    return np.stack([to_points(x) for x in way])


def backwards(
    model: DiffusionModel,
    seeds: Integers,
    sampler: str | samplers.Sampler = "ancestral",
    num_steps: int | None = None,
) -> np.ndarray:
    """Return a sampler's way from noise to points, after every call of the network.

    Args:
        model: a model of images (1, 1, 2), such as `train` returns.
        seeds: int32 numbers, one a point.
        sampler: as in `DiffusionModel.generate`.
        num_steps: as in `DiffusionModel.generate`.

    Returns:
        (calls + 1, N, 2) in units of the plane, the noise first.
    """
    denoiser = denoiser_of(model)
    table = denoiser.steps(sampler, num_steps)
    predict = denoiser.predictor(learned_variance=table.learned_variance)
    seeds = tf.constant(seeds, tf.int32)

    @tf.function(autograph=False)
    def step(state, index):
        return walks.walk(predict, table, state, seeds, index, index + 1)

    state = walks.initial_state(walks.initial_noise(seeds, denoiser.image_shape), table)
    way = [state]
    for index in range(table.num_rows):
        way.append(step(way[-1], tf.constant(index)))
    return np.stack([to_points(walks.picture_of(state, table)) for state in way])


# Gaussian data in closed form.


def gaussian_eps(schedule: NoiseSchedule, x_t: Tensor, t: Tensor, mean: float, std: float) -> Tensor:
    """Return E[eps | x_t] for data N(mean, std^2), equation (1).

    Args:
        schedule: a schedule of T steps.
        x_t: float (B, ...).
        t: int (B,).
        mean: mean of the data.
        std: standard deviation of the data.

    Returns:
        A tensor of the shape of x_t.
    """
    x_t = as_float(x_t)
    slopes = np.sqrt(schedule.one_minus_alpha_bars) / (schedule.alpha_bars * std**2 + schedule.one_minus_alpha_bars)
    return at_t(slopes, t, x_t) * (x_t - at_t(np.sqrt(schedule.alpha_bars) * mean, t, x_t))


def gaussian_variances(schedule: NoiseSchedule, std: float) -> np.ndarray:
    """Return Var[x_{t-1} | x_t] for data N(mean, std^2) at every t, equation (2), (T,)."""
    of_x0 = std**2 / (schedule.alpha_bars * std**2 / schedule.one_minus_alpha_bars + 1)
    return schedule.posterior_variances + schedule.posterior_coefs_x0**2 * of_x0


def _fractions(schedule, std):
    """Return where in the range of a learned log-variance the best one lies, from -1 to 1, (T,); -1 in no range."""
    low, high = parametrization.log_variance_range(schedule)
    width = high - low
    width[width < _NO_RANGE] = np.inf
    return 2 * (np.log(gaussian_variances(schedule, std)) - low) / width - 1


@keras.saving.register_keras_serializable("kddpm")
class GaussianNetwork(keras.Model):
    """The optimal network for data N(mean, std^2), without weights: eps and variance by equations (1) and (2).

    Where the range of a learned variance is a point, as at T = 1, and where no signal is left, its variance is that.

    Args:
        image_shape: (H, W, C).
        schedule: a `NoiseSchedule` with timesteps 0 .. T - 1.
        mean: mean of the data, in [-1, 1].
        std: standard deviation of the data.

    Raises:
        InputError: the schedule is respaced.

    Example:
        >>> network = kddpm.toy.GaussianNetwork((8, 8, 1), schedule, 0.0, 0.2)
        >>> model = kddpm.DiffusionModel(network, schedule, variance="learned", weighting="hybrid")
    """

    num_classes = None

    def __init__(self, image_shape, schedule: NoiseSchedule, mean: float, std: float, **kwargs):
        super().__init__(**kwargs)
        if not np.array_equal(schedule.timesteps, np.arange(schedule.num_timesteps)):
            raise InputError("schedule", "must name its steps 0 .. T - 1", "a respaced schedule")
        self.image_shape = tuple(image_shape)
        self.out_channels = 2 * self.image_shape[-1]
        self.schedule = schedule
        self.mean = mean
        self.std = std
        self._fractions = _fractions(schedule, std)
        self.built = True

    def call(self, inputs: Sequence[Tensor], training: bool = False, seed: Tensor = None) -> Tensor:
        """Return the prediction for [x_t, t].

        Args:
            inputs: x_t float (B, H, W, C), t int (B,).
            training: not used.
            seed: not used.

        Returns:
            float32 (B, H, W, 2 C): eps, then the position of the log-variance in its range, -1 to 1.
        """
        x_t, t = inputs
        eps = gaussian_eps(self.schedule, x_t, t, self.mean, self.std)
        return ops.concatenate([eps, ops.zeros_like(eps) + at_t(self._fractions, t, eps)], axis=-1)

    def get_config(self) -> Config:
        """Return the arguments of `__init__`, with the schedule as its configuration."""
        return {
            **super().get_config(),
            "image_shape": self.image_shape,
            "schedule": self.schedule.get_config(),
            "mean": self.mean,
            "std": self.std,
        }

    @classmethod
    def from_config(cls, config: Config) -> "GaussianNetwork":
        """Return the network whose `get_config` returned `config`."""
        return cls(**{**config, "schedule": NoiseSchedule.from_config(config["schedule"])})


def gaussian_images(count: int, image_shape: Sequence[int], mean: float, std: float, seed: int = 0) -> np.ndarray:
    """Return images of independent normal pixels, rounded to uint8, (count, H, W, C)."""
    x = np.random.default_rng(seed).normal(mean, std, (count, *image_shape))
    return np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)


def estimator_variances(
    num_timesteps: int, images: int = 2000, pixels: int = 64, error: float = 0.05, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the variances of three estimates of the bound and of their gradients.

    Data are N(0.1, 0.3^2) in every pixel, the network predicts (1 + error) times the best eps, the variance is "small"
    and the schedule linear, respaced to T steps. The gradient is by `error`, a weight that all pixels and t share.

    Args:
        num_timesteps: T.
        images: number of estimates by the two that use one t; a tenth as many of trajectories, each T network calls.
        pixels: pixels of an image; an estimate is their mean.
        error: relative error of the network.
        seed: seed of images, t and noise.

    Returns:
        For "trajectory", "pair" and "one_sample" the variance of the estimate in (nats per dimension)^2, and that of
        its gradient.
    """
    mean, std, rng = 0.1, 0.3, np.random.default_rng(seed + 1)  # not the seed of the images
    fine = schedules.linear()
    schedule = fine.respace(schedules.timestep_grid(fine, num_timesteps))
    diffusion = GaussianDiffusion(schedule)

    def variances(estimate, count, *draws):
        x_0 = tf.constant(gaussian_images(count, (pixels,), mean, std, seed) / 127.5 - 1)
        errors = tf.fill([count, 1], tf.constant(error, tf.float64))  # one per estimate, each with its own gradient

        def reverse(x_t, t):
            eps = (1 + errors) * gaussian_eps(schedule, x_t, t, mean, std)
            return diffusion.p_mean_log_variance(x_t, t, eps, None, parametrization.Objective())

        with tf.GradientTape() as tape:
            tape.watch(errors)
            values = estimate(diffusion, reverse, x_0, *draws)
        return float(np.var(values, ddof=1)), float(np.var(tape.gradient(values, errors), ddof=1))

    def normal(*shape):
        return tf.constant(rng.normal(size=shape))

    t = tf.constant(rng.integers(0, num_timesteps, images), tf.int32)
    few = max(images // 10, 2)
    return {
        "trajectory": variances(
            objectives.bound_from_trajectory_nats, few, normal(num_timesteps, few, pixels)
        ),
        "pair": variances(objectives.bound_from_pair_nats, images, t, normal(images, pixels), normal(images, pixels)),
        "one_sample": variances(objectives.bound_from_one_sample_nats, images, t, normal(images, pixels)),
    }  # fmt: skip
