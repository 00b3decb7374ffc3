"""Data for which the best possible network is known in closed form, and walks of it. Nothing here uses the tables under
test but `alpha_bars`: the formulas are the papers'."""

import itertools
import math

import keras
import numpy as np
import tensorflow as tf

import kddpm
from kddpm.sampling import walks
from kddpm.sampling.samplers import DDIM, PredictorCorrector

MODES = {"eager": lambda f: f, "graph": tf.function, "xla": tf.function(jit_compile=True)}
# Error rates of the statistical tests, all at 5 standard errors: a right program fails a comparison with probability
# 6e-7 (once, when the seeds were chosen: they are fixed); one that is off by 8 standard errors passes with 1e-3.
STANDARD_ERRORS = 5


def assert_moments(samples, mean, variance):
    """Whether independent normal samples have that mean and variance, up to 5 standard errors of each."""
    assert abs(np.mean(samples) - mean) < STANDARD_ERRORS * math.sqrt(variance / samples.size)
    assert abs(np.var(samples) - variance) < STANDARD_ERRORS * variance * math.sqrt(2 / samples.size)


def gaussian_denoiser(schedule, mean, std, prediction="eps"):
    """The best possible output at (x_t, t) for data N(mean, std^2) in every element: a straight line in x_t."""
    alpha_bars = np.cumprod(1 - schedule.betas)
    before = np.append(1.0, alpha_bars[:-1])
    gain = np.sqrt(alpha_bars) * std**2 / (alpha_bars * std**2 + 1 - alpha_bars)
    x_t = np.array([np.ones(len(gain)), np.zeros(len(gain))])  # lines are rows (slope, offset)
    x_0 = np.array([gain, mean - gain * np.sqrt(alpha_bars) * mean])
    eps = (x_t - np.sqrt(alpha_bars) * x_0) / np.sqrt(1 - alpha_bars)
    of_unit = 1 - 0.75 * alpha_bars  # alpha_bar (sigma^2 + sigma_data^2) of Karras et al. 2022, eq. 7
    of_x0, of_xt = np.sqrt(before) * schedule.betas, np.sqrt(1 - schedule.betas) * (1 - before)
    slopes, offsets = {
        "eps": eps,
        "x0": x_0,
        "mu": (of_x0 * x_0 + of_xt * x_t) / (1 - alpha_bars),  # Ho et al. 2020, eq. 7
        "v": np.sqrt(alpha_bars) * eps - np.sqrt(1 - alpha_bars) * x_0,  # Salimans & Ho 2022, section 4
        "edm": (x_0 - 0.25 * np.sqrt(alpha_bars) / of_unit * x_t) * np.sqrt(4 * of_unit / (1 - alpha_bars)),
        "velocity": eps - x_0,  # Lipman et al. 2023
    }[prediction]

    def at(table, t, x):
        return tf.reshape(tf.gather(table.astype(np.float32), t), [-1] + [1] * (len(x.shape) - 1))

    return lambda x, t: at(slopes, t, x) * x + at(offsets, t, x)


def mixture_x0(schedule, modes, std):
    """The best possible x_0(x_t, t) for data from normals of that deviation, {mean: weight}; in the dtype of x_t."""

    def denoiser(x, t):
        alpha_bar = tf.reshape(tf.gather(schedule.alpha_bars.astype(x.dtype.as_numpy_dtype), t), [-1, 1, 1, 1, 1])
        means, weights = (tf.constant(list(column), x.dtype) for column in (modes.keys(), modes.values()))
        variance, apart = alpha_bar * std**2 + 1 - alpha_bar, x[..., tf.newaxis] - tf.sqrt(alpha_bar) * means
        shares = tf.nn.softmax(tf.math.log(weights) - apart**2 / (2 * variance))
        return tf.reduce_sum(shares * (means + tf.sqrt(alpha_bar) * std**2 / variance * apart), axis=-1)

    return denoiser


class BestNetwork(keras.Model):
    """The best possible eps for pictures of normal pixels, without weights.

    Args:
        image_shape: (H, W, C).
        betas: of the schedule, (T,).
        std: of every pixel.
        correlation: of neighbours, in reading order; of pixels n apart its n-th power.
        class_means: the mean of every pixel, one a class; "no class" has the mean 0, as do data without classes.
    """

    def __init__(self, image_shape, betas, std=0.25, correlation=0.0, class_means=(), name=None):
        super().__init__(name=name)
        self.arguments = {"std": std, "correlation": correlation, "class_means": tuple(class_means)}
        self.image_shape, self.betas, self.num_classes = tuple(image_shape), np.array(betas), len(class_means) or None
        pixel, alpha_bars = np.arange(math.prod(image_shape)), np.cumprod(1 - self.betas)[:, np.newaxis, np.newaxis]
        self.covariance = std**2 * correlation ** np.abs(pixel[:, np.newaxis] - pixel)
        marginal = alpha_bars * self.covariance + (1 - alpha_bars) * np.eye(len(pixel))
        self.matrices = (np.sqrt(1 - alpha_bars) * np.linalg.inv(marginal)).astype(np.float32)
        self.shifts = (np.sqrt(alpha_bars[..., 0]) * np.array([*class_means, 0.0])).astype(np.float32)

    def call(self, inputs, training=False):
        x, t, *label = inputs
        flat = tf.reshape(x, [-1, len(self.covariance)])
        column = label[0] if label else tf.fill(tf.shape(t), len(self.arguments["class_means"]))
        flat -= tf.gather(tf.gather(self.shifts, t), column, batch_dims=1)[:, tf.newaxis]
        return tf.reshape(tf.einsum("bij,bj->bi", tf.gather(self.matrices, t), flat), tf.shape(x))

    def get_config(self):
        return {"image_shape": self.image_shape, "betas": self.betas.tolist(), **self.arguments}


def best_model(image_shape, schedule=None, **network):
    """A `DiffusionModel` whose network is `BestNetwork`; T = 20 where no schedule is given."""
    schedule = schedule or kddpm.schedules.linear(20, 1e-3, 0.5)
    return kddpm.DiffusionModel(BestNetwork(image_shape, schedule.betas, **network), schedule)


def walked(denoiser, table, x, seeds=(0,), mode="eager", **limits):
    """The picture at the end of a walk that begins at x, float64 like x."""
    state = walks.initial_state(tf.constant(x, tf.float32), table)
    walk = MODES[mode](lambda state, seeds: walks.walk(denoiser, table, state, seeds, **limits))
    return np.array(walks.picture_of(walk(state, tf.constant(seeds)), table), np.float64)


def draw(denoiser, table, seeds, image_shape, mode="graph", **limits):
    """Samples as float64 (B, *image_shape)."""
    seeds = tf.constant(seeds)
    return walked(denoiser, table, walks.initial_noise(seeds, image_shape), seeds, mode, **limits)


def chain_moments(sampler, betas, kept, mean, std, start=(0.0, 1.0)):
    """Mean and variance at the end of the finite chain on data N(mean, std^2), from the papers' equations alone.

    eps*(x) = g (x - sqrt(alpha_bar) mean) makes every step linear in x, so both moments have a recursion. It begins
    with the mean and variance of `start`.
    """
    alpha_bars = np.cumprod(1 - betas)
    result, variance = start
    for i in reversed(range(len(kept))):
        alpha_bar, before = alpha_bars[kept[i]], alpha_bars[kept[i - 1]] if i else 1.0
        alpha, beta = alpha_bar / before, 1 - alpha_bar / before
        posterior = beta * (1 - before) / (1 - alpha_bar)
        g = math.sqrt(1 - alpha_bar) / (alpha_bar * std**2 + 1 - alpha_bar)
        if isinstance(sampler, DDIM):  # Song et al. 2021, eq. 12 and 16
            sigma = sampler.eta * math.sqrt((1 - before) / (1 - alpha_bar)) * math.sqrt(1 - alpha_bar / before)
            of_x = math.sqrt(before / alpha_bar)
            of_eps = math.sqrt(1 - before - sigma**2) - math.sqrt(before / alpha_bar) * math.sqrt(1 - alpha_bar)
        else:  # Ho et al. 2020, algorithm 2, line 4
            by_name, name = {"small": posterior, "large": beta}, getattr(sampler, "variance", "small")
            sigma = math.sqrt(by_name[name] if name in by_name else name[i])
            of_x, of_eps = 1 / math.sqrt(alpha), -beta / math.sqrt(1 - alpha_bar) / math.sqrt(alpha)
        factor = of_x + of_eps * g
        result = factor * result - of_eps * g * math.sqrt(alpha_bar) * mean
        variance = factor**2 * variance + (sigma**2 if i else 0)
        if isinstance(sampler, PredictorCorrector) and i:  # Song et al. 2021b, algorithm 5, at the level just reached
            alpha_there = before / (alpha_bars[kept[i - 2]] if i > 1 else 1.0)
            # |z| / |score| is |z| / |eps / sqrt(1 - alpha_bar)|, whose expected ratio is sqrt(1 - alpha_bar).
            size = 2 * alpha_there * (sampler.snr * math.sqrt(1 - before)) ** 2
            marginal = before * std**2 + 1 - before
            for _ in range(sampler.corrections):
                result += size / marginal * (math.sqrt(before) * mean - result)
                variance = (1 - size / marginal) ** 2 * variance + 2 * size
    return result, variance


def repaint_levels(steps, jump_length, resamplings):
    """Levels before and after every row, and after the climb that may follow: (t, reached, climbed to), data = -1.

    Lugmayr et al. 2022, appendix B: the list of times of the authors' `get_schedule_jump`, of which every two
    neighbours are a step down, taken by the network, or a step up, taken by the forward process.
    """
    jumps = dict.fromkeys(range(0, steps - jump_length, jump_length), resamplings - 1)
    t, times = steps, []
    while t >= 1:
        t -= 1
        times.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump_length):
                t += 1
                times.append(t)
    times.append(-1)
    rows = []
    for before, after in itertools.pairwise(times):
        if after < before:
            rows.append([before, after, after])
        else:
            rows[-1][2] = after
    return rows


def repaint_moments(sampler, alpha_bars, levels, known, std, correlation):
    """Mean and variance of the unknown one of two pixels at the end, from the papers' equations.

    x_0(x_t) = G x_t makes every row linear in the pair of pixels, so mean and covariance have a recursion.

    Args:
        sampler: `Ancestral` or `DDIM`.
        alpha_bars: of the kept steps.
        levels: of `repaint_levels`.
        known: the known pixel.
        std: of each pixel; their mean is 0.
        correlation: of the two.
    """
    covariance, one = std**2 * np.array([[1, correlation], [correlation, 1]]), np.eye(2)
    alpha_bars = np.append(alpha_bars, 1.0)  # [-1] is the data
    mean, spread = np.zeros(2), one
    for t, reached, climbed in levels:
        now, then = alpha_bars[t], alpha_bars[reached]
        alpha, beta = now / then, 1 - now / then
        gain = np.sqrt(now) * covariance @ np.linalg.inv(now * covariance + (1 - now) * one)
        variance = beta * (1 - then) / (1 - now)
        if isinstance(sampler, DDIM):  # Song et al. 2021, eq. 12
            variance *= sampler.eta**2
            eps = (one - np.sqrt(now) * gain) / np.sqrt(1 - now)
            step = np.sqrt(then) * gain + np.sqrt(1 - then - variance) * eps
        else:  # Ho et al. 2020, eq. 7
            step = (np.sqrt(then) * beta * gain + np.sqrt(alpha) * (1 - then) * one) / (1 - now)
            variance = variance if sampler.variance == "small" or reached < 0 else beta
        mean, spread = step @ mean, step @ spread @ step.T + variance * one
        # Lugmayr et al. 2022, algorithm 1: the known part from q(x_{t-1} | x_0), then back up
        mean[0], spread[0], spread[:, 0], spread[0, 0] = np.sqrt(then) * known, 0, 0, 1 - then
        kept = alpha_bars[climbed] / then
        mean, spread = np.sqrt(kept) * mean, kept * spread + (1 - kept) * one
    return mean[1], spread[1, 1]
