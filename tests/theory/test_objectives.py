import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.places import GOLDENS

from kddpm.theory import objectives, parametrization, schedules
from kddpm.theory.parametrization import Objective
from kddpm.theory.process import GaussianDiffusion

GOLDEN = np.load(GOLDENS / "tables_mpmath.npz")
SCHEDULE = schedules.linear(1000)
DIFFUSION = GaussianDiffusion(SCHEDULE)
STEPS = np.array([0, 1, 2, 30, 500, 998, 999])
MODES = {"graph": tf.function, "xla": tf.function(jit_compile=True)}
COMBINATIONS = [
    (prediction, weighting, variance)
    for prediction in parametrization.PREDICTIONS
    for weighting in parametrization.WEIGHTINGS
    for variance in parametrization.VARIANCES
    if (variance == "learned") == (weighting == "hybrid") or (variance, weighting) == ("learned", "vlb")
]
# log p(pixel) under a normal, mpmath with 50 digits, formula in goldens/README.md: (pixel, mean, std, nats).
FAR_TAIL = [
    (128, -1.0, 0.01, -5005.524208694205),
    (0, 1.0, 0.0073, -37389.98942987036),
    (255, -0.5, 0.02, -2803.0473284981017),
    (3, 3.0, 0.5, -36.697906276177264),
    (3, 3.1, 0.5, -38.30846149551755),
    (255, 0.0, 0.11, -44.13298137280303),
    (255, 0.25, 0.0625, -74.65452858696705),
    (0, -3.0, 0.01, 0.0),
]


def pixels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape) / 127.5 - 1


def normals(shape, count, seed=1):
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape) for _ in range(count)]


def a_batch(spread, variance="small"):
    """x_0, x_t, noise, the network's x_0' that far from x_0, and a fraction of the learned variance; t is STEPS."""
    shape = (len(STEPS), 2, 3, 2)
    x_0 = pixels(shape)
    noise, error, fraction = normals(shape, 3)
    x_t = np.array(DIFFUSION.q_sample(x_0, STEPS, noise))
    return x_0, x_t, noise, x_0 + spread * error, fraction if variance == "learned" else None


def output_of(prediction, x_t, predicted, fraction):
    output = np.array(DIFFUSION.from_x0(x_t, STEPS, predicted, prediction))
    return output if fraction is None else np.concatenate([output, fraction], axis=-1)


def gradient(function, *variables):
    with tf.GradientTape() as tape:
        variables = [tf.convert_to_tensor(v) for v in variables]
        tape.watch(variables)
        value = function(*variables)
    return value, tape.gradient(value, variables)


# Losses.


def numpy_loss(x_0, x_t, noise, predicted, fraction, prediction, weighting, variance):
    """`training_loss` at STEPS from the papers' formulas, with the network's x_0' in place of its output."""

    def at(table):
        return table[STEPS].reshape(-1, 1, 1, 1)

    def over_pixels(x):
        return x.reshape(len(x), -1).mean(axis=1)

    alpha_bar, beta = at(np.cumprod(1 - SCHEDULE.betas)), at(SCHEDULE.betas)
    previous = at(np.concatenate([[1.0], np.cumprod(1 - SCHEDULE.betas)[:-1]]))
    snr = alpha_bar / (1 - alpha_bar)
    to_mu = np.sqrt(previous) * beta / (1 - alpha_bar)

    def mean(x):  # Ho et al. 2020, eq. 7
        return to_mu * x + np.sqrt(1 - beta) * (1 - previous) / (1 - alpha_bar) * x_t

    def said(x):  # what a network says that means x; Salimans & Ho 2022, section 4, for v
        eps = (x_t - np.sqrt(alpha_bar) * x) / np.sqrt(1 - alpha_bar)
        v = np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x
        y, sigma = x_t / np.sqrt(alpha_bar), np.sqrt(1 / snr)  # of Karras et al. 2022, whose F this is
        edm = (x - 0.25 / (sigma**2 + 0.25) * y) / (0.5 * sigma / np.sqrt(sigma**2 + 0.25))
        return {"eps": eps, "x0": x, "mu": mean(x), "v": v, "edm": edm, "velocity": eps - x}[prediction]

    squared = over_pixels((said(x_0) - said(predicted)) ** 2)
    if weighting == "simple":
        return squared
    if weighting == "min_snr":  # Hang et al. 2023, section 3.4, with a least 0.1; mu as an affine function of x0
        low, floored = np.minimum(snr, 5), np.clip(snr, 0.1, 5)
        of = {"eps": low / snr, "x0": floored, "mu": low / to_mu**2, "v": floored / (snr + 1)}
        of |= {"edm": floored / (4 + snr), "velocity": floored / (1 + np.sqrt(snr)) ** 2}
        return of[prediction].ravel() * squared
    small = at(SCHEDULE.betas) * (1 - previous) / (1 - alpha_bar)
    small[0] = small[1]  # STEPS begin with 0 and 1
    sigma = {"small": small, "large": np.where(at(np.arange(1000)) == 0, small, beta)}.get(variance)
    if variance != "learned":
        return over_pixels((mean(x_0) - mean(predicted)) ** 2 / (2 * sigma))
    share = (fraction + 1) / 2
    sigma = beta**share * small ** (1 - share)  # Nichol & Dhariwal 2021, eq. 15
    kl = 0.5 * (np.log(sigma / small) + (small + (mean(x_0) - mean(predicted)) ** 2) / sigma - 1)
    std, erf = np.sqrt(sigma[0]), np.vectorize(math.erf)
    upper, lower = (erf((x_0[0] + end - predicted[0]) / std / math.sqrt(2)) for end in (1 / 255, -1 / 255))
    upper[x_0[0] == 1], lower[x_0[0] == -1] = 1, -1
    bound = np.append(-np.log((upper - lower) / 2).mean(), over_pixels(kl)[1:])
    return bound if weighting == "vlb" else squared + 0.001 * 1000 / np.log(2) * bound


@pytest.mark.parametrize("prediction, weighting, variance", COMBINATIONS)
def test_training_loss_is_that_of_the_papers(prediction, weighting, variance):
    x_0, x_t, noise, predicted, fraction = a_batch(0.01, variance)
    output = output_of(prediction, x_t, predicted, fraction)
    arguments, objective = (x_t, STEPS, x_0, noise, output), Objective(prediction, weighting, variance)
    loss = objectives.training_loss(DIFFUSION, *arguments, objective)
    expected = numpy_loss(x_0, x_t, noise, predicted, fraction, prediction, weighting, variance)
    assert loss.shape == (len(STEPS),) and loss.dtype == "float64"
    np.testing.assert_allclose(loss, expected, rtol=1e-8, atol=1e-15)  # a KL of 1e-11 is a sum of larger numbers
    single = objectives.training_loss(
        DIFFUSION, *(tf.constant(a, tf.float32 if a.dtype == float else tf.int32) for a in arguments),
        objective,
    )  # fmt: skip
    assert single.dtype == "float32"
    # x_0' is 0.01 from x_0: float32 keeps 1e-5 of that, and less where eps or mu says x_0 in its last digits.
    np.testing.assert_allclose(single[:-2], expected[:-2], rtol=3e-3)


def test_edm_with_simple_is_the_loss_of_karras_et_al():
    """Table 1: lambda |D - x_0|^2, lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, in y and sigma alone."""
    x_0, x_t, noise, output, _ = a_batch(0.5)
    alpha_bar = SCHEDULE.alpha_bars[STEPS].reshape(-1, 1, 1, 1)
    sigma, y = np.sqrt((1 - alpha_bar) / alpha_bar), x_t / np.sqrt(alpha_bar)
    denoised = 0.25 / (sigma**2 + 0.25) * y + 0.5 * sigma / np.sqrt(sigma**2 + 0.25) * output
    expected = np.mean((sigma**2 + 0.25) / (0.5 * sigma) ** 2 * (denoised - x_0) ** 2, axis=(1, 2, 3))
    loss = objectives.training_loss(DIFFUSION, x_t, STEPS, x_0, noise, output, Objective("edm"))
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_a_velocity_is_that_of_the_straight_line():
    """The target is eps - x_0; the data of sigma_data = 0.5 and its eps give EDM's target unit variance at every t."""
    x_0, x_t, noise, _, _ = a_batch(0.5)
    np.testing.assert_allclose(DIFFUSION.from_x0(x_t, STEPS, x_0, "velocity"), noise - x_0, rtol=0, atol=1e-12)
    a, b = parametrization.x0_coefficients(SCHEDULE, "edm")
    s, n = np.sqrt(SCHEDULE.alpha_bars), np.sqrt(SCHEDULE.one_minus_alpha_bars)
    of_x0, of_eps = (1 - a * s) / b, -a * n / b
    np.testing.assert_allclose(0.25 * of_x0**2 + of_eps**2, 1, rtol=1e-12)


@pytest.mark.parametrize("prediction", parametrization.PREDICTIONS)
def test_hybrid_teaches_the_prediction_by_simple_and_the_variance_by_the_bound(prediction):
    x_0, x_t, noise, predicted, fraction = a_batch(0.05, "learned")
    output = output_of(prediction, x_t, predicted, fraction)

    def loss(output, weighting, variance):
        return objectives.training_loss(
            DIFFUSION, x_t, STEPS, x_0, noise, output, Objective(prediction, weighting, variance)
        )

    _, (hybrid,) = gradient(lambda output: loss(output, "hybrid", "learned"), output)
    _, (simple,) = gradient(lambda output: loss(output, "simple", "small"), output[..., :2])
    bound_loss, (bound,) = gradient(lambda output: loss(output, "vlb", "learned"), output)
    np.testing.assert_allclose(hybrid[..., :2], simple, rtol=1e-12)
    np.testing.assert_allclose(hybrid[..., 2:], 0.001 * 1000 / np.log(2) * bound[..., 2:], rtol=1e-12, atol=1e-20)
    assert np.all(np.abs(bound) > 0), "the bound alone teaches both"
    terms = objectives.bound_term_nats(DIFFUSION, x_t, STEPS, x_0, output, Objective(prediction, "vlb", "learned"))
    np.testing.assert_array_equal(bound_loss, terms)


@pytest.mark.parametrize("prediction, weighting, variance", COMBINATIONS)
def test_gradients_are_finite_however_wrong_the_network(prediction, weighting, variance):
    """In float32, at both ends of the schedule: the branch that is not taken must not turn 0 into NaN."""
    x_0, x_t, noise, _, fraction = (None if a is None else tf.cast(a, tf.float32) for a in a_batch(0, variance))
    for size in (0.0, 1.5, 1e2, 1e4, -1e4):
        output = size * tf.ones_like(x_t)
        if variance == "learned":
            output = tf.concat([output, tf.clip_by_value(size, -20, 20) * tf.sign(fraction)], axis=-1)
        loss, (slope,) = gradient(
            lambda output: objectives.training_loss(
                DIFFUSION, x_t, STEPS, x_0, noise, output, Objective(prediction, weighting, variance)
            ),
            output,
        )
        assert np.all(np.isfinite(loss)) and np.all(np.isfinite(slope)), size
        assert size == 0 or np.all(np.abs(slope[..., :2]) > 0), "no pixel is right, and each is told so"


@pytest.mark.parametrize("weighting", ["vlb", "hybrid"])
@pytest.mark.parametrize("size", [300.0, 1e4, 1e30, -300.0, -1e4, -1e30])
def test_no_learned_variance_leaves_float32(size, weighting):
    x_0, x_t, noise, predicted, fraction = (tf.cast(a, tf.float32) for a in a_batch(0.1, "learned"))
    output, objective = (
        tf.concat([predicted, tf.fill(fraction.shape, size)], axis=-1),
        Objective("eps", weighting, "learned"),
    )
    loss, (slope,) = gradient(
        lambda output: objectives.training_loss(DIFFUSION, x_t, STEPS, x_0, noise, output, objective),
        output,
    )
    assert np.all(np.isfinite(loss)) and np.all(np.isfinite(slope))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_same_hybrid_loss(mode):
    x_0, x_t, noise, predicted, fraction = a_batch(0.05, "learned")
    objective = Objective("v", "hybrid", "learned")

    def loss(output):
        return objectives.training_loss(DIFFUSION, x_t, STEPS, x_0, noise, output, objective)

    def both(output):
        return gradient(loss, output)

    output = tf.constant(output_of("v", x_t, predicted, fraction))
    (value, (slope,)), (other, (other_slope,)) = both(output), MODES[mode](both)(output)
    np.testing.assert_allclose(other, value, rtol=1e-10)
    np.testing.assert_allclose(other_slope, slope, rtol=1e-8, atol=1e-10)


def test_last_step_loss_is_the_bound_with_a_noisier_target():
    """Over x_{t-1} given x_t and x_0, exactly: a quadratic's mean is that of its values one deviation off the mean."""
    t = np.arange(1, 1000)
    x_0, eps, predicted = normals((999, 3), 3)
    x_t = np.array(DIFFUSION.q_sample(x_0, t, eps))
    mean, variance = (np.array(moment) for moment in DIFFUSION.posterior_mean_variance(x_t, t, x_0))
    beta, alpha = SCHEDULE.betas[1:, None], SCHEDULE.alphas[1:, None]
    e = (x_t - np.sqrt(alpha) * mean) / beta  # on average
    spread = np.sqrt(SCHEDULE.one_minus_alpha_bars[1:, None])
    np.testing.assert_allclose(e, eps / spread, rtol=1e-7, atol=1e-7)

    def noisy(predicted):
        pair = (mean + sign * np.sqrt(variance) for sign in (-1, 1))
        return sum(objectives.last_step_loss_nats(DIFFUSION, x_t, t, x, predicted / spread) for x in pair) / 2

    def clean(predicted):
        return objectives.training_loss(DIFFUSION, x_t, t, x_0, eps, predicted, Objective("eps", "vlb", "small"))

    (noisy_loss, (noisy_slope,)), (clean_loss, (clean_slope,)) = (gradient(f, predicted) for f in (noisy, clean))
    constant = 1 / 2  # beta^2 / (2 sigma^2 alpha) times the variance of e, alpha sigma^2 / beta^2: half a nat
    np.testing.assert_allclose(noisy_loss - clean_loss, np.full(999, constant), rtol=1e-6)
    np.testing.assert_allclose(noisy_slope, clean_slope, rtol=1e-6, atol=1e-6 * np.abs(clean_slope).max())


# The terms of the bound.


def test_decoder_has_the_digits_of_mpmath():
    """The archive stores nothing below log 1e-40. In float32 x_0 - mean keeps 1e-7, divided by the deviation."""
    pixel, mean, std, expected = np.concatenate([GOLDEN["decoder/pixel_mean_std_logp_nats"], FAR_TAIL]).T
    stored = np.append(expected[: -len(FAR_TAIL)] > math.log(1e-40) + 1e-9, [True] * len(FAR_TAIL))
    arguments = pixel / 127.5 - 1, mean, 2 * np.log(std)
    nats = np.array(objectives.decoder_log_likelihood_nats(*map(tf.constant, arguments)))
    assert stored.sum() > 50 and np.all(nats <= 0)
    np.testing.assert_allclose(nats[stored], expected[stored], rtol=1e-11, atol=1e-14)
    assert np.all(nats[~stored] < math.log(1e-40) + 1e-9) and np.all(np.isfinite(nats))
    single = objectives.decoder_log_likelihood_nats(*(tf.constant(a, tf.float32) for a in arguments))
    assert single.dtype == tf.float32
    np.testing.assert_allclose(single[stored], expected[stored], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype, atol", [("float64", 1e-12), ("float32", 2e-5)])
def test_decoder_probabilities_add_up_to_1(dtype, atol):
    x_0 = np.arange(256) / 127.5 - 1
    mean, std = np.meshgrid([-3.0, -1.0, -0.3, 0.0, 0.5001, 1.0, 1.3], [1e-3, 0.01, 0.1, 1.0, 5.0])
    mean, log_variance = mean.reshape(-1, 1), 2 * np.log(std.reshape(-1, 1))
    nats = objectives.decoder_log_likelihood_nats(*(tf.constant(a, dtype) for a in (x_0, mean, log_variance)))
    np.testing.assert_allclose(np.exp(nats).sum(axis=1), 1, atol=atol)


def test_decoder_is_open_at_both_ends():
    """All that lies beyond -1 or 1 belongs to the last pixel, and its neighbour has only its own bin."""
    wide = 2 * math.log(10.0)
    nats = objectives.decoder_log_likelihood_nats(tf.constant([-1.0, 1.0, 253 / 127.5 - 1]), 0.0, wide)
    beyond = 0.5 * math.erfc((1 - 1 / 255) / 10 / math.sqrt(2))
    own = 2 / 255 / (10 * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(np.exp(nats), [beyond, beyond, own], rtol=1e-2)


def test_decoder_has_no_floor_and_points_back_to_the_pixel():
    """Far out log p is that of the nearest edge, (distance - 1/255)^2 / (2 variance), and falls along it."""
    x_0, mean, std = (np.array(a, np.float32) for a in ([1.0, -1.0, 0.0, 1.0], [-1.0, 1.0, 1.0, -99.0], 0.01))
    nats, (slope,) = gradient(lambda m: objectives.decoder_log_likelihood_nats(x_0, m, 2 * np.log(std)), mean)
    way = np.abs(x_0 - mean) - 1 / 255
    np.testing.assert_allclose(nats, -(way**2) / (2 * std**2), rtol=1e-2)
    np.testing.assert_allclose(slope, np.sign(x_0 - mean) * way / std**2, rtol=1e-2)


def test_kl_has_the_digits_of_mpmath():
    mean_1, variance_1, mean_2, variance_2, expected = GOLDEN["kl/mean1_var1_mean2_var2_nats"].T
    arguments = mean_1, np.log(variance_1), mean_2, np.log(variance_2)
    nats = objectives.gaussian_kl_nats(*map(tf.constant, arguments))
    np.testing.assert_allclose(nats, expected, rtol=1e-12, atol=1e-15)
    small = tf.constant(1e-3)  # r - log r - 1 of two variances that nearly agree, (log r)^2 / 2: float32 keeps 4 digits
    np.testing.assert_allclose(objectives.gaussian_kl_nats(0.0, small, 0.0, 0 * small), 1e-6 / 4, rtol=1e-3)


def test_prior_has_the_digits_of_mpmath():
    expected = float(GOLDEN["linear/prior_kl_bits_at_1"])
    nats = objectives.prior_nats(DIFFUSION, np.ones((2, 3, 1, 1)))
    np.testing.assert_allclose(np.array(nats) / math.log(2), [expected] * 2, rtol=1e-10)
    single = objectives.prior_nats(DIFFUSION, np.ones((2, 3, 1, 1), np.float32))
    np.testing.assert_allclose(np.array(single) / math.log(2), [expected] * 2, atol=1e-9)
    nothing_left = GaussianDiffusion(schedules.zero_terminal_snr(SCHEDULE))
    assert np.all(np.array(objectives.prior_nats(nothing_left, np.ones((2, 3)))) == 0)
