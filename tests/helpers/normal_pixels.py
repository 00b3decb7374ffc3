"""Data of normal pixels rounded to uint8, for which the bound has a closed form whatever a linear network predicts."""

import math

import keras
import numpy as np

import kddpm
from kddpm.theory import parametrization, schedules

MEAN, STD = 0.2, 0.3

PIXELS = np.arange(256) / 127.5 - 1


def pixel_probabilities(mean=MEAN, std=STD):
    """Of the 256 values of a rounded N(mean, std^2), what lies beyond the ends given to them."""
    below = [0.5 * math.erfc(-(x + 1 / 255 - mean) / std / math.sqrt(2)) for x in PIXELS[:-1]]
    return np.diff([0.0, *below, 1.0])


def draw_images(count, shape, mean=MEAN, seed=0):
    """uint8 pictures of such pixels."""
    drawn = np.random.default_rng(seed).choice(256, (count, *shape), p=pixel_probabilities(mean))
    return drawn.astype(np.uint8)


def best_line(alpha_bars, mean=MEAN, std=STD):
    """E[x_0 | x_t] = slope x_t + offset for x_0 ~ N(mean, std^2)."""
    slope = np.sqrt(alpha_bars) * std**2 / (alpha_bars * std**2 + 1 - alpha_bars)
    return slope, mean * (1 - slope * np.sqrt(alpha_bars))


def log_mass(x_0, mean, std):
    """log of the normal's mass in the bin of x_0, equation (13) of Ho et al. 2020."""
    upper, lower = ((x_0 + end - mean) / std / math.sqrt(2) for end in (1 / 255, -1 / 255))
    upper, lower = np.where(x_0 == 1, np.inf, upper), np.where(x_0 == -1, -np.inf, lower)
    flip = lower > 0  # in the upper tail, 1 - 1 has no digits
    upper, lower = np.where(flip, -lower, upper), np.where(flip, -upper, lower)
    erfc = np.vectorize(math.erfc)
    return np.log((erfc(-upper) - erfc(-lower)) / 2)


def closed_form_nats(schedule, slope, offset, variance="small"):
    """E[L_0 .. L_{T-1}, L_T | x_0] of each of the 256 values, (256, T + 1), where x_0' = slope_t x_t + offset_t.

    x_0 - x_0' = (1 - slope sqrt(alpha_bar)) x_0 - offset - slope sqrt(1 - alpha_bar) eps is linear in eps, so that the
    mean of its square, and with it that of the KL, is exact. L_0 is a sum over Gauss-Hermite's points.
    """
    x_0, signal = PIXELS[:, None], np.sqrt(schedule.alpha_bars)
    squared_error = ((1 - slope * signal) * x_0 - offset) ** 2 + slope**2 * schedule.one_minus_alpha_bars
    posterior, sigma = schedule.posterior_variances.copy(), schedule.betas.copy()
    posterior[0] = sigma[0] = posterior[1]
    sigma = posterior if variance == "small" else sigma
    ratio = posterior / sigma
    nats = (ratio - 1 - np.log(ratio) + schedule.posterior_coefs_x0**2 * squared_error / sigma) / 2
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    x_t = signal[0] * x_0 + np.sqrt(schedule.one_minus_alpha_bars[0]) * points
    nats[:, 0] = -log_mass(x_0, slope[0] * x_t + offset[0], np.sqrt(sigma[0])) @ weights / math.sqrt(2 * math.pi)
    left = schedule.alpha_bars[-1]
    prior = (left * x_0**2 - left - np.log1p(-left)) / 2
    return np.concatenate([nats, prior], axis=1)


def chain_moments(schedule, slope, offset, variance="small"):
    """Mean and deviation of p(x_0), but for the bins, where x_0' = slope_t x_t + offset_t and p(x_T) = N(0, 1).

    p(x_{t-1} | x_t) = N(c0 x_0' + ct x_t, sigma^2) is linear in x_t, so that x_{t-1} stays normal. At t = 0 the mass of
    a normal in a bin, averaged over a normal mean, is the mass of their sum.
    """
    sigma = (schedule.posterior_variances if variance == "small" else schedule.betas).copy()
    sigma[0] = schedule.posterior_variances[1]
    mean, square = 0.0, 1.0
    for t in range(len(sigma))[::-1]:
        gain = schedule.posterior_coefs_x0[t] * slope[t] + schedule.posterior_coefs_xt[t]
        mean = gain * mean + schedule.posterior_coefs_x0[t] * offset[t]
        square = gain**2 * square + sigma[t]
    return mean, math.sqrt(square)


@keras.saving.register_keras_serializable("tests")
class BestLine(keras.Model):
    """What the best network says of N(mean, std^2) pixels, of which those of class k are 0.1 k brighter."""

    def __init__(
        self, betas, prediction="eps", mean=MEAN, image_shape=(8, 8, 1), num_classes=None, fraction=None, name=None
    ):
        super().__init__(name=name)
        self.config = {
            "betas": list(betas), "prediction": prediction, "mean": mean, "image_shape": image_shape,
            "num_classes": num_classes, "fraction": fraction,
        }  # fmt: skip
        self.image_shape, self.num_classes, self.fraction = image_shape, num_classes, fraction
        self.out_channels = image_shape[-1] * (1 if fraction is None else 2)
        schedule = schedules.NoiseSchedule(betas)
        slope, offset = best_line(schedule.alpha_bars, mean)
        a, b = parametrization.x0_coefficients(schedule, prediction)
        # x_0' = a x_t + b output is to be slope x_t + offset
        self.tables = (slope - a) / b, offset / b, (1 - slope * np.sqrt(schedule.alpha_bars)) * 0.1 / b

    def call(self, inputs):
        x_t, t, *label = inputs
        slope, offset, of_class = (
            keras.ops.reshape(keras.ops.take(table.astype("float32"), t), (-1, 1, 1, 1)) for table in self.tables
        )
        output = slope * x_t + offset
        if label:
            output += of_class * keras.ops.reshape(keras.ops.cast(label[0], "float32"), (-1, 1, 1, 1))
        if self.fraction is None:
            return output
        return keras.ops.concatenate([output, keras.ops.full_like(output, self.fraction)], axis=-1)

    def get_config(self):
        return self.config


def make_best(schedule, prediction="eps", asked=None, **changes):
    """A `DiffusionModel` of a `BestLine`; `asked` = the schedule whose steps the network knows, None = the same."""
    names = ("variance", "weighting")
    mine = {name: changes.pop(name) for name in names if name in changes}
    network = BestLine((asked or schedule).betas, prediction, **changes)
    return kddpm.DiffusionModel(network, schedule, prediction=prediction, **mine)
