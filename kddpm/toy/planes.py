"""Points in the plane, a small network for them, and their ways to noise and back.

A point of the plane is an "image" of one pixel and two channels, so that it goes through the same `DiffusionModel` and
the same samplers as pictures.
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
from kddpm.theory import schedules
from kddpm.theory.process import GaussianDiffusion
from kddpm.theory.schedules import NoiseSchedule

LIMIT = 12.5  # half the side of the plane, in its units; this is 1 in the model
IMAGE_SHAPE = (1, 1, 2)

_TRAINING_POINTS = 20_000
_BATCH = 250
_STEPS_A_CALL = 50  # `fit` returns to Python this often, to move the progress bar
_LEARNING_RATE = 4e-3
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

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Return log p of points (N, 2) in nats, (N,): a normal about each of 400 places of every piece.

        Exact where the skeleton is points; along lines the rule of midpoints, whose places are closer than the noise.
        """
        places = 400 * self.parts
        means = self.skeleton((np.arange(places) + 0.5) / places)
        squares = np.sum((points[:, np.newaxis] - means) ** 2, axis=-1) / self.spread**2
        return np.logaddexp.reduce(-squares / 2, axis=1) - np.log(2 * np.pi * self.spread**2 * places)

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


def exact_nats(plane: Plane, points: np.ndarray) -> float:
    """Return the mean of -log p of points (N, 2), as images, by the plane's own density, in nats per dimension."""
    return float(-np.mean(plane.log_density(points)) / 2 - np.log(LIMIT))


@keras.saving.register_keras_serializable("kddpm")
class MLP(keras.Model):
    """A network for images of a few numbers, called on [x_t, t]: residual dense layers, each with the timestep added.

    The input is x_t with sines and cosines of it, without which a small network smooths everything (Tancik et al.
    2020).

    Args:
        image_shape: (H, W, C).
        width: units of each layer; divisible by 4.
        depth: number of residual layers.
        out_channels: channels of the output; None = C. 2 C for a learned variance.

    Raises:
        InputError: 4 does not divide the width.
    """

    num_classes = None

    def __init__(
        self,
        image_shape=IMAGE_SHAPE,
        width: int = 64,
        depth: int = 3,
        out_channels: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        width, depth = arguments.count("width", width), arguments.count("depth", depth, 0)
        if width % 4:
            raise InputError("width", "must be divisible by 4", width)
        self.image_shape = tuple(image_shape)
        self.width = width
        self.depth = depth
        self.out_channels = arguments.count(
            "out_channels", self.image_shape[-1] if out_channels is None else out_channels
        )
        self.embed_timestep = TimestepEmbedding(width // 4, name="embed_timestep")
        self.dense_in = keras.layers.Dense(width, name="dense_in")
        self.shifts = [keras.layers.Dense(width, name=f"shift_{i}") for i in range(depth)]
        self.hidden = [keras.layers.Dense(width, name=f"hidden_{i}") for i in range(depth)]
        self.dense_out = keras.layers.Dense(
            int(np.prod(self.output_image_shape)), kernel_initializer="zeros", name="dense_out"
        )
        self.build()

    @property
    def output_image_shape(self) -> Shape:
        """(H, W, out_channels)."""
        return (*self.image_shape[:-1], self.out_channels)

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
            float32 (B, H, W, out_channels).
        """
        x_t, t = inputs
        x = ops.reshape(x_t, (-1, self._size))
        waves = [wave(np.pi * k * x) for k in _FREQUENCIES for wave in (ops.sin, ops.cos)]
        embedding = ops.silu(self.embed_timestep(t))
        h = self.dense_in(ops.concatenate([x, *waves], axis=1))
        for shift, hidden in zip(self.shifts, self.hidden, strict=True):
            h = h + hidden(ops.silu(h + shift(embedding)))
        return ops.reshape(self.dense_out(ops.silu(h)), (-1, *self.output_image_shape))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return (B, H, W, out_channels)."""
        return (input_shape[0][0], *self.output_image_shape)

    def get_config(self) -> Config:
        """Return the arguments of `__init__`."""
        return {
            **super().get_config(),
            "image_shape": self.image_shape,
            "width": self.width,
            "depth": self.depth,
            "out_channels": self.out_channels,
        }


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
