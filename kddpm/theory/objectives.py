"""Training losses and the variational bound, with its estimators and the decoder.

The bound on -log p(x_0) of a chain p(x_{t-1} | x_t) (Ho et al. 2020, eq. 3 and 5), with 0-based t and "x_{-1}" = x_0:

    (1)  L = L_T + sum_t L_t,   L_T = KL(q(x_T | x_0) || N(0, 1)),   L_0 = -log p(x_0 | x_t at t = 0)
    (2)  L_t = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)),  t > 0
    (3)  p(x_0 | x_t at t = 0) = the normal's mass in a pixel's bin, 2/255 wide; the outermost are open     (Ho, eq. 13)

Other samples estimate the same number (Ho et al. 2020, appendix A; Luo 2022, section 3):

    (4)  L = E[-log p(x_T) + sum_t log q(x_t | x_{t-1}) - log p(x_{t-1} | x_t)]     over whole trajectories x_1 .. x_T
    (5)  the same with T times one term of the sum, t drawn uniformly                           over pairs x_{t-1}, x_t
    (6)  L_T + T L_t, t drawn uniformly, the KL in closed form                                                 over x_t

Losses and bounds are means over the pixels of an image, (B,), the bounds in nats; divided by log 2 they are bits per
dimension. Arithmetic has the dtype of the inputs, float32 or float64. Everything is plain `keras.ops`.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from keras import ops

from kddpm.base.types import Tensor
from kddpm.theory import parametrization
from kddpm.theory.parametrization import Objective
from kddpm.theory.process import GaussianDiffusion, as_float, at_t, split_output

_HYBRID_BOUND_WEIGHT = 0.001 / math.log(2)  # Nichol & Dhariwal 2021, eq. 16, whose bound is in bits
_HALF_BIN = 1 / 255  # half the distance between uint8 values scaled to [-1, 1]
_FAR = 8.0  # standard deviations beyond which a tail is computed in logarithms; float32 underflows at 13
_FRACTIONS = 12  # depth of the tail's continued fraction; its error is 2e-15 at 8 standard deviations
_TINY = 1e-37  # keeps logarithms finite in the branch that is not selected


def training_loss(
    diffusion: GaussianDiffusion,
    x_t: Tensor,
    t: Tensor,
    x_0: Tensor,
    noise: Tensor,
    output: Tensor,
    objective: Objective | None = None,
) -> Tensor:
    """Return the loss that one training step minimises (`kddpm.parametrization`, equation (2)).

    Args:
        diffusion: a `GaussianDiffusion`.
        x_t: `diffusion.q_sample(x_0, t, noise)`.
        t: int (B,).
        x_0: images in [-1, 1], (B, ..., C).
        noise: eps, like x_0.
        output: the network's at (x_t, t), (B, ..., C), or (B, ..., 2 C) with a learned variance.
        objective: prediction, weighting and variance; None = eps, by its mean squared error.

    Returns:
        (B,), one value an image; for "vlb" in nats: its mean over t is 1 / T of the bound, up to constants. At t = 0
        the squared error replaces the decoder, unless the variance is learned.
    """
    objective = objective or Objective()
    predicted, fraction = split_output(output, objective)
    if objective.variance == "learned" and objective.weighting == "vlb":
        return _bound_term(diffusion, x_t, t, x_0, predicted, fraction, objective)
    target = noise if objective.prediction == "eps" else diffusion.from_x0(x_t, t, x_0, objective.prediction)
    error = mean_squared_error(target, predicted)
    if objective.weighting == "hybrid":
        bound = _bound_term(diffusion, x_t, t, x_0, ops.stop_gradient(predicted), fraction, objective)
        return error + _HYBRID_BOUND_WEIGHT * diffusion.schedule.num_timesteps * bound
    if objective.weighting == "simple":
        return error
    return at_t(parametrization.loss_weights(diffusion.schedule, objective), t, error) * error


def mean_squared_error(target: Tensor, predicted: Tensor) -> Tensor:
    """Return the mean of |target - predicted|^2 over all axes but the batch, (B,); at least float32."""
    target = as_float(target)
    return _mean(ops.square(target - ops.cast(predicted, ops.dtype(target))))


def last_step_loss_nats(
    diffusion: GaussianDiffusion, x_t: Tensor, t: Tensor, x_prev: Tensor, predicted: Tensor
) -> Tensor:
    """Return the bound's term from the noise of the last step only, up to a constant: the "denoising" view.

    x_t = sqrt(alpha_t) x_{t-1} + beta_t e, where e has the units in which the mean of p(x_{t-1} | x_t) is
    (x_t - beta_t e_theta) / sqrt(alpha_t). Then

        L = beta_t^2 / (2 sigma_t^2 alpha_t) |e - e_theta|^2,   sigma_t^2 the posterior variance.

    Given x_t and x_0, the mean of e is eps / sqrt(1 - alpha_bar_t), minus the score: this is the "vlb" loss of eps with
    a noisier target, and has the same best prediction (Vincent 2011; Ho et al. 2020, section 3.2).

    Args:
        diffusion: a `GaussianDiffusion`.
        x_t: noisy images, (B, ...).
        t: int (B,), at least 1.
        x_prev: x_{t-1}, one step closer to the data, (B, ...).
        predicted: e_theta(x_t, t), (B, ...).

    Returns:
        (B,) in nats.
    """
    schedule = diffusion.schedule
    x_prev, x_t = as_float(x_prev), as_float(x_t)
    noise = (x_t - at_t(np.sqrt(schedule.alphas), t, x_t) * x_prev) / at_t(schedule.betas, t, x_t)
    weights = schedule.betas**2 / (2 * np.exp(parametrization.log_variances(schedule, "small")) * schedule.alphas)
    error = mean_squared_error(noise, predicted)
    return at_t(weights, t, error) * error


# The terms of the bound.


def gaussian_kl_nats(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """Return KL(N(mean_1, variance_1) || N(mean_2, variance_2)) of each element, in nats; the arguments broadcast."""
    ratio = log_variance_1 - log_variance_2
    return 0.5 * (ops.expm1(ratio) - ratio + ops.square(mean_1 - mean_2) * ops.exp(-log_variance_2))


def normal_log_likelihood_nats(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the log-density of a normal at x, of each element, in nats; the arguments broadcast."""
    return -0.5 * (math.log(2 * math.pi) + log_variance + ops.square(x - mean) * ops.exp(-log_variance))


def decoder_log_likelihood_nats(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return log p(x_0) of pixels under a normal, discretised to the 256 values of a pixel, equation (3).

    A bin lies between `near` and `far` standard deviations from the mean, and its mass is a difference of the upper
    tail Q of a normal, without cancellation. Where Q underflows, a continued fraction gives its logarithm:

        log p = log(Q(near) - Q(far)),  Q = 1 or 0 at the open end of an outermost bin
        log Q(z) = -z^2 / 2 - log(sqrt(2 pi) c(z)),  c(z) = z + 1 / (z + 2 / (z + 3 / ...))

    So log p has no lower limit: even far from the pixel, the gradient by the mean points back to it.

    Args:
        x_0: pixels in [-1, 1], x / 127.5 - 1 of a uint8 x.
        mean: mean of the normal; broadcasts.
        log_variance: log-variance of the normal; broadcasts.

    Returns:
        log p of each element in nats, at most 0.

    Reference:
        Abramowitz & Stegun 1964, "Handbook of mathematical functions", 26.2.14 (the continued fraction).
    """
    scale = ops.exp(-0.5 * log_variance)
    centred = x_0 - mean
    right = centred > 0  # the pixel is above the mean
    distance = ops.where(right, centred, -centred)
    lowest, highest = x_0 < -1 + _HALF_BIN, x_0 > 1 - _HALF_BIN
    open_near, open_far = ops.where(right, lowest, highest), ops.where(right, highest, lowest)
    near, width = (distance - _HALF_BIN) * scale, 2 * _HALF_BIN * scale

    mass = ops.where(open_near, 1.0, _upper_tail(near)) - ops.where(open_far, 0.0, _upper_tail(near + width))
    start = ops.maximum(near, _FAR)
    fraction, next_fraction = _tail_fraction(start), _tail_fraction(start + width)
    fall = width * (start + width / 2) + ops.log(next_fraction / fraction)  # log Q(near) - log Q(far)
    kept = ops.where(open_far, 0.0, ops.log(-ops.expm1(-ops.maximum(fall, _TINY))))
    far_log_mass = kept - 0.5 * ops.square(start) - ops.log(math.sqrt(2 * math.pi) * fraction)
    is_far = ops.logical_and(near > _FAR, ops.logical_not(open_near))
    return ops.where(is_far, far_log_mass, ops.log(ops.maximum(mass, _TINY)))


def prior_nats(diffusion: GaussianDiffusion, x_0: Tensor) -> Tensor:
    """Return L_T, equation (1): how far x_T is from pure noise, in nats, (B,)."""
    alpha_bar = float(diffusion.schedule.alpha_bars[-1])
    mean = math.sqrt(alpha_bar) * as_float(x_0)
    zero = ops.zeros_like(mean)
    return _mean(gaussian_kl_nats(mean, zero + math.log1p(-alpha_bar), zero, zero))


def bound_term_nats(
    diffusion: GaussianDiffusion,
    x_t: Tensor,
    t: Tensor,
    x_0: Tensor,
    output: Tensor,
    objective: Objective | None = None,
    clip: bool = False,
) -> Tensor:
    """Return L_t of equation (1) in nats, (B,): the KL of (2), or at t = 0 the decoder (3).

    Args:
        diffusion: a `GaussianDiffusion`.
        x_t: noisy images, like x_0.
        t: int (B,).
        x_0: images in [-1, 1], (B, ..., C).
        output: the network's at (x_t, t), (B, ..., C), or (B, ..., 2 C) with a learned variance.
        objective: the meaning of the output; None = eps, and the posterior's variance.
        clip: whether the predicted x_0 is clipped to [-1, 1], as samplers do.
    """
    objective = objective or Objective()
    return _bound_term(diffusion, x_t, t, x_0, *split_output(output, objective), objective, clip)


# Estimators of the bound. `reverse` is (x_t, t) -> mean and log-variance of p(x_{t-1} | x_t). `decoder` is
# (x_0, mean, log-variance) -> log p(x_0 | x_t) of each element: that of pixels, or of a density.


def bound_from_chain_nats(
    encode: Callable,
    reverse: Callable,
    x_0: Tensor,
    noises: Sequence[Tensor],
    decoder: Callable = normal_log_likelihood_nats,
) -> Tensor:
    """Estimate the bound by equation (4) where both directions are anybody's: a hierarchical VAE.

    Args:
        encode: (x_{t-1}, t) -> (mean, log-variance) of q(x_t | x_{t-1}), t an integer.
        reverse: (x_t, t) -> (mean, log-variance) of p(x_{t-1} | x_t), t an integer.
        x_0: data, (B, ...).
        noises: standard normal, one for each step, of the shape of x_t; latents may be of another size than the data.
        decoder: of x_0 at t = 0.

    Returns:
        (B,) in nats per dimension of x_0.
    """
    total, x_prev, log_likelihood = 0.0, as_float(x_0), decoder
    for t, noise in enumerate(noises):
        mean, log_variance = encode(x_prev, t)
        x_t = mean + ops.exp(0.5 * log_variance) * noise
        forward = normal_log_likelihood_nats(x_t, mean, log_variance)
        total = total + _sum(forward) - _sum(log_likelihood(x_prev, *reverse(x_t, t)))
        x_prev, log_likelihood = x_t, normal_log_likelihood_nats
    last = _sum(_standard_normal(x_prev))
    return (total + last) / math.prod(x_0.shape[1:])


def bound_from_trajectory_nats(
    diffusion: GaussianDiffusion,
    reverse: Callable,
    x_0: Tensor,
    noises: Tensor,
    decoder: Callable = decoder_log_likelihood_nats,
) -> Tensor:
    """Estimate the bound by equation (4), from a whole trajectory: T calls of `reverse`.

    Args:
        diffusion: a `GaussianDiffusion`.
        reverse: (x_t, t) -> (mean, log-variance) of p(x_{t-1} | x_t).
        x_0: images in [-1, 1], (B, ...).
        noises: standard normal, (T, B, ...), one for each step.
        decoder: of x_0 at t = 0.

    Returns:
        (B,) in nats.
    """

    def every_image(index):
        return ops.full((ops.shape(x_0)[0],), index, "int32")

    return bound_from_chain_nats(
        lambda x_prev, index: diffusion.q_step_mean_log_variance(x_prev, every_image(index)),
        lambda x_t, index: reverse(x_t, every_image(index)),
        x_0,
        ops.unstack(noises, diffusion.schedule.num_timesteps),
        decoder,
    )


def trajectory_term_nats(
    diffusion: GaussianDiffusion,
    reverse: Callable,
    x_t: Tensor,
    t: Tensor,
    x_0: Tensor,
    x_prev: Tensor,
    decoder: Callable = decoder_log_likelihood_nats,
) -> Tensor:
    """Return log q(x_t | x_{t-1}) - log p(x_{t-1} | x_t), a term of equation (4); at t = 0 p is the decoder.

    Args:
        diffusion: a `GaussianDiffusion`.
        reverse: (x_t, t) -> (mean, log-variance) of p(x_{t-1} | x_t).
        x_t: noisy images, like x_0.
        t: int (B,).
        x_0: images in [-1, 1], (B, ...).
        x_prev: x_{t-1}, one step closer to the data; at t = 0 x_0 itself.
        decoder: of x_0 at t = 0.

    Returns:
        (B,) in nats.
    """
    mean, log_variance = reverse(x_t, t)
    forward = normal_log_likelihood_nats(x_t, *diffusion.q_step_mean_log_variance(x_prev, t))
    backward = normal_log_likelihood_nats(x_prev, mean, log_variance)
    return _mean(forward) - ops.where(t == 0, _mean(decoder(x_0, mean, log_variance)), _mean(backward))


def standard_normal_nats(x: Tensor) -> Tensor:
    """Return -log p(x) of a standard normal, such as p(x_T), in nats, (B,)."""
    return _mean(_standard_normal(as_float(x)))


def bound_from_pair_nats(
    diffusion: GaussianDiffusion,
    reverse: Callable,
    x_0: Tensor,
    t: Tensor,
    noise_prev: Tensor,
    noise: Tensor,
    decoder: Callable = decoder_log_likelihood_nats,
) -> Tensor:
    """Estimate the bound by equation (5), from x_{t-1} and x_t at one t: one call of `reverse`.

    Args:
        diffusion: a `GaussianDiffusion`.
        reverse: (x_t, t) -> (mean, log-variance) of p(x_{t-1} | x_t).
        x_0: images in [-1, 1], (B, ...).
        t: int (B,), drawn uniformly from 0 .. T - 1.
        noise_prev: standard normal, leads from x_0 to x_{t-1}; (B, ...).
        noise: standard normal, leads from x_{t-1} to x_t; (B, ...).
        decoder: of x_0 at t = 0.

    Returns:
        (B,) in nats.
    """
    schedule = diffusion.schedule
    x_0 = as_float(x_0)
    mean = at_t(np.sqrt(schedule.alpha_bars_prev), t, x_0) * x_0
    x_prev = mean + at_t(np.sqrt(schedule.one_minus_alpha_bars_prev), t, x_0) * noise_prev
    x_t = diffusion.q_step(x_prev, t, noise)
    alpha_bar = float(schedule.alpha_bars[-1])
    # E[-log p(x_T)], where x_T ~ N(sqrt(alpha_bar) x_0, 1 - alpha_bar)
    last = 0.5 * _mean(math.log(2 * math.pi) + alpha_bar * ops.square(x_0) + 1 - alpha_bar)
    return last + schedule.num_timesteps * trajectory_term_nats(diffusion, reverse, x_t, t, x_0, x_prev, decoder)


def bound_from_one_sample_nats(
    diffusion: GaussianDiffusion,
    reverse: Callable,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    decoder: Callable = decoder_log_likelihood_nats,
) -> Tensor:
    """Estimate the bound by equation (6), from x_t at one t and the KL in closed form: one call of `reverse`.

    Args:
        diffusion: a `GaussianDiffusion`.
        reverse: (x_t, t) -> (mean, log-variance) of p(x_{t-1} | x_t).
        x_0: images in [-1, 1], (B, ...).
        t: int (B,), drawn uniformly from 0 .. T - 1.
        noise: standard normal, leads from x_0 to x_t; (B, ...).
        decoder: of x_0 at t = 0.

    Returns:
        (B,) in nats.
    """
    x_t = diffusion.q_sample(x_0, t, noise)
    mean, log_variance = reverse(x_t, t)
    term = _term(diffusion, x_t, t, x_0, mean, log_variance, decoder)
    return prior_nats(diffusion, x_0) + diffusion.schedule.num_timesteps * term


def _bound_term(diffusion, x_t, t, x_0, predicted, fraction, objective, clip=False):
    """Return `bound_term_nats` of an output that is already split."""
    reverse = diffusion.p_mean_log_variance(x_t, t, predicted, fraction, objective, clip)
    return _term(diffusion, x_t, t, x_0, *reverse)


def _term(diffusion, x_t, t, x_0, mean, log_variance, decoder=decoder_log_likelihood_nats):
    """Return L_t if p(x_{t-1} | x_t) has this mean and log-variance, (B,)."""
    x_t = as_float(x_t)
    x_0 = ops.cast(x_0, ops.dtype(x_t))
    true_log_variance = at_t(parametrization.log_variances(diffusion.schedule, "small"), t, x_t)
    kl = gaussian_kl_nats(diffusion.mu_from_x0(x_t, t, x_0), true_log_variance, mean, log_variance)
    return ops.where(t == 0, -_mean(decoder(x_0, mean, log_variance)), _mean(kl))


def _standard_normal(x):
    """Return minus the log-density of a standard normal at x, of each element."""
    return 0.5 * (math.log(2 * math.pi) + ops.square(x))


def _upper_tail(z):
    """Return Q(z), the mass of a standard normal above z."""
    return 0.5 * ops.erfc(z * math.sqrt(0.5))


def _tail_fraction(z):
    """Return c(z) of `decoder_log_likelihood_nats`, for z >= `_FAR`."""
    fraction = z
    for k in range(_FRACTIONS, 0, -1):
        fraction = z + k / fraction
    return fraction


def _mean(x):
    """Return the mean over all axes but the batch, (B,)."""
    return ops.mean(x, axis=tuple(range(1, len(x.shape))))


def _sum(x):
    """Return the sum over all axes but the batch, (B,)."""
    return ops.sum(x, axis=tuple(range(1, len(x.shape))))
