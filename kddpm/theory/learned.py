"""A noise schedule that is learned for a given denoiser (Kingma et al. 2021, VDM).

With gamma(t) = -log SNR, increasing on t in [0, 1], x_0 becomes z = s x_0 + n eps, s^2 = sigmoid(-gamma) and
n^2 = 1 - s^2. In the limit of many steps the bound on -log p(x_0) is

    (1)  L = L_T + L_0 + 1/2 E[gamma'(t) e],  e = SNR |x_0 - x_0'|^2,  t uniform in [0, 1]
           = L_T + L_0 + 1/2 integral of E[e | gamma] from gamma(0) to gamma(1)
         L_T = KL(q(z_1 | x_0) || N(0, 1)),  L_0 = -log of the mass of N(z_0 / s, n^2 / s^2) in a pixel's bin

The second form knows only the ends of gamma. Its shape changes how far the first scatters about it:

    (2)  E[l^2] = 1/4 integral of gamma'(t) E[e^2 | gamma] over gamma,  l = gamma'(t) e / 2

This is smallest where every t has the same, dt/dgamma in proportion to sqrt(E[e^2 | gamma]). So the ends are trained on
L, whose derivatives are 1/2 E[e] there, and the shape on (2), where gamma' alone depends on it. Neither needs a
derivative of the denoiser.

Losses are means over the elements of an image, in nats.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from kddpm.base import arguments
from kddpm.base.errors import InputError
from kddpm.base.types import Tensor
from kddpm.theory import objectives, schedules
from kddpm.theory.schedules import NoiseSchedule

_PIECES = 100
_BATCH = 128
_LEARNING_RATE = 0.05
_LARGEST_PIXEL = 4.0  # of normal pixels some lie beyond 1; those of uint8 pictures lie beyond this


class Gamma(tf.Module):
    """gamma(t), piecewise linear on pieces that rise equally; their shares of t are a softmax, the ends are free.

    Args:
        ends: gamma(0) and gamma(1), with which training begins; in between gamma is a straight line.
        pieces: how many.
    """

    def __init__(self, ends: tuple[float, float], pieces: int = _PIECES):
        super().__init__()
        self.ends = tf.Variable(ends, dtype=tf.float32)
        self.shape = tf.Variable(tf.zeros(pieces))

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return gamma and gamma' at t in [0, 1], both like t."""
        pieces = self.shape.shape[0]
        shares, rise = tf.nn.softmax(self.shape), (self.ends[1] - self.ends[0]) / pieces
        begin = tf.cumsum(shares, exclusive=True)
        piece = tf.searchsorted(begin, t, side="right") - 1
        slope = rise / tf.gather(shares, piece)
        return self.ends[0] + rise * tf.cast(piece, tf.float32) + slope * (t - tf.gather(begin, piece)), slope


def squared_error(denoise: Callable, x_0: Tensor, noise: Tensor, gamma: Tensor) -> Tensor:
    """Return e of equation (1), that of eps, the mean over an image, (B,).

    Args:
        denoise: (z, log SNR) -> x_0', like z; log SNR is (B,).
        x_0: images in [-1, 1], (B, ...).
        noise: standard normal, like x_0.
        gamma: -log SNR, (B,).
    """
    each = tf.reshape(gamma, [-1] + [1] * (len(x_0.shape) - 1))
    z = tf.sqrt(tf.sigmoid(-each)) * x_0 + tf.sqrt(tf.sigmoid(each)) * noise
    return tf.exp(-gamma) * objectives.mean_squared_error(x_0, denoise(z, -gamma))


def schedule(
    denoise: Callable,
    images: np.ndarray,
    num_timesteps: int = 1000,
    *,
    ends: tuple[float, float] = (-9.0, 6.0),
    train_ends: bool = True,
    steps: int = 2000,
    seed: int = 0,
) -> NoiseSchedule:
    """Train gamma for a denoiser, and return the schedule with gamma(0) at t = 0 and gamma(1) at T - 1.

    Args:
        denoise: (z, log SNR) -> x_0', like z; log SNR is (B,). `Denoiser.x0_at` is that of a trained network.
        images: x_0, float in [-1, 1], (N, ...).
        num_timesteps: T.
        ends: gamma(0) and gamma(1), with which training begins.
        train_ends: whether these are trained too.
        steps: training steps of 128 images.
        seed: of all draws.

    Raises:
        InputError: images that are not floats around [-1, 1], a number out of range, or ends that do not increase.

    Example:
        >>> images = np.random.default_rng(0).normal(0, 0.25, (4000, 64))
        >>> kddpm.learned.schedule(lambda z, log_snr: kddpm.toy.gaussian_x0(z, log_snr, 0.0, 0.25), images)
    """
    images, num_timesteps = _checked(images), arguments.count("num_timesteps", num_timesteps)
    steps, (seed,) = arguments.count("steps", steps), arguments.int32("seed", [seed])
    if np.shape(ends) != (2,) or not np.all(np.isfinite(ends)) or not ends[0] < ends[1]:
        raise InputError("ends", "must be two finite numbers that increase", repr(ends))
    gamma = Gamma(ends)
    step = _training_step(denoise, tf.constant(images), gamma, train_ends, steps, seed)
    for number in range(steps):
        step(tf.constant(number, tf.int64))
    at = np.linspace(1, 0, num_timesteps, dtype=np.float32)[::-1]
    return schedules.from_sigmas(np.exp(gamma(tf.constant(at))[0].numpy().astype(np.float64) / 2))


def _checked(images) -> np.ndarray:
    """Check images and return them as float32."""
    images = np.asarray(images)
    if images.dtype.kind != "f" or not images.size or not np.all(np.abs(images) < _LARGEST_PIXEL):
        expected = "must be float, in or about [-1, 1], at least one: `images.to_float` makes them of uint8"
        raise InputError("images", expected, f"{images.dtype} {images.shape}")
    return images.astype(np.float32)


def _training_step(denoise, images, gamma, train_ends, steps, seed):
    """Return a function that takes the training step of a number."""
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, steps))

    @tf.function(autograph=False)
    def step(number):
        draw = tf.random.experimental.stateless_fold_in(tf.constant([seed, 0], tf.int32), number)
        keys = tf.unstack(tf.random.experimental.stateless_split(draw, 3))
        chosen = tf.random.stateless_uniform([_BATCH], keys[0], 0, images.shape[0], dtype=tf.int32)
        x_0, noise = tf.gather(images, chosen), tf.random.stateless_normal([_BATCH, *images.shape[1:]], keys[1])
        t = (tf.random.stateless_uniform([], keys[2]) + tf.range(_BATCH, dtype=tf.float32) / _BATCH) % 1
        with tf.GradientTape() as tape:
            at, slope = gamma(t)
            with tape.stop_recording():
                square = tf.square(slope / 2 * squared_error(denoise, x_0, noise, at))
            scatter = tf.reduce_mean(tf.stop_gradient(square / slope) * slope)  # (2) knows gamma' once
        gradients = [tape.gradient(scatter, gamma.shape)]
        gradients.append(_gradient_of_ends(denoise, x_0, noise, gamma) if train_ends else tf.zeros(2))
        optimizer.apply(gradients, [gamma.shape, gamma.ends])

    return step


def _gradient_of_ends(denoise, x_0, noise, gamma):
    """Return the gradient of equation (1) by gamma(0) and gamma(1), each with e at that end."""
    errors = [tf.reduce_mean(squared_error(denoise, x_0, noise, tf.fill([_BATCH], gamma.ends[i]))) for i in range(2)]
    with tf.GradientTape() as tape:
        start, end = tf.unstack(gamma.ends)
        prior = objectives.gaussian_kl_nats(tf.sqrt(tf.sigmoid(-end)) * x_0, tf.math.log_sigmoid(end), 0.0, 0.0)
        pixels = objectives.decoder_log_likelihood_nats(x_0, x_0 + tf.exp(start / 2) * noise, start)
        rest = tf.reduce_mean(prior) - tf.reduce_mean(pixels)
    return tape.gradient(rest, gamma.ends) + tf.stack([-errors[0], errors[1]]) / 2
