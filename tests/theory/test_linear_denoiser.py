"""The loss of the best linear denoiser, beside the same from whole matrices: least squares, without eigenvalues."""

import numpy as np
import pytest

from kddpm.base.errors import InputError
from kddpm.theory import linear_denoiser, schedules

SCHEDULE = schedules.linear(20, 1e-3, 0.5)
SHAPE = (2, 3, 1)
RANDOM = np.random.default_rng(0)
# Images that are no Gaussians: +-1 of some patterns, with pixels that depend on each other.
IMAGES = np.tanh(RANDOM.choice([-1.0, 1.0], (80, 6)) @ RANDOM.normal(size=(6, 6)) + 0.3).reshape(80, *SHAPE)


def in_terms_of_data_and_noise(prediction, t):
    """A target as alpha x_0 + beta eps."""
    alpha_bars = np.cumprod(1 - SCHEDULE.betas)
    s, n = np.sqrt(alpha_bars[t]), np.sqrt(1 - alpha_bars[t])
    before = alpha_bars[t - 1] if t else 1.0
    of_x0 = np.sqrt(before) * SCHEDULE.betas[t] / (1 - alpha_bars[t])  # Ho et al. 2020, eq. 7
    of_xt = np.sqrt(1 - SCHEDULE.betas[t]) * (1 - before) / (1 - alpha_bars[t])
    skip, out = 0.25 * s / (n**2 + 0.25 * s**2), 0.5 * n / np.sqrt(n**2 + 0.25 * s**2)  # Karras et al. 2022, eq. 7
    return s, n, {
        "eps": (0, 1), "x0": (1, 0), "v": (-n, s), "velocity": (-1, 1), "mu": (of_x0 + of_xt * s, of_xt * n),
        "edm": ((1 - skip * s) / out, -skip * n / out),
    }[prediction]  # fmt: skip


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "velocity", "mu", "edm"])
def test_it_is_what_least_squares_leave(prediction):
    found = linear_denoiser.losses(SCHEDULE, prediction, linear_denoiser.variances(IMAGES))
    covariance, one = np.cov(IMAGES.reshape(80, 6).T, bias=True), np.eye(6)
    for t in range(20):
        s, n, (alpha, beta) = in_terms_of_data_and_noise(prediction, t)
        of_target = alpha**2 * covariance + beta**2 * one
        of_both = alpha * s * covariance + beta * n * one
        of_input = s**2 * covariance + n**2 * one
        left = of_target - of_both @ np.linalg.solve(of_input, of_both.T)
        assert found[t] == pytest.approx(np.trace(left) / 6, rel=1e-9), t


def test_no_affine_function_does_better_on_samples():
    """The expected loss is that on samples, to 5 standard errors of their mean, for the regression on them."""
    t, count = 8, 200_000
    random = np.random.default_rng(1)
    x_0 = IMAGES.reshape(80, 6)[random.integers(0, 80, count)]
    eps = random.normal(size=x_0.shape)
    alpha_bar = np.cumprod(1 - SCHEDULE.betas)[t]
    inputs = np.column_stack([np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * eps, np.ones(count)])
    residuals = eps - inputs @ np.linalg.lstsq(inputs, eps)[0]
    each = np.square(residuals).mean(axis=1)
    expected = linear_denoiser.losses(SCHEDULE, "eps", linear_denoiser.variances(IMAGES))[t]
    assert abs(each.mean() - expected) < 5 * each.std() / np.sqrt(count)


def test_of_few_images_the_spectrum_is_known():
    """The shifts of a picture have a covariance that plane waves make diagonal: there the two bases are one."""
    picture = np.random.default_rng(2).normal(size=(4, 4, 1))
    shifts = np.array([np.roll(picture, (i, j), axis=(0, 1)) for i in range(4) for j in range(4)])
    exact = np.linalg.eigvalsh(np.cov(shifts.reshape(16, 16).T, bias=True))
    np.testing.assert_allclose(np.sort(linear_denoiser.variances(shifts)), exact, atol=1e-12)


def test_channels_that_go_together_are_taken_together():
    """Waves of three channels that are one signal in other shares: a third of the axes has all of the variance."""
    grey = np.random.default_rng(3).normal(size=(20, 4, 4, 1))
    colours = np.array([0.6, 0.0, 0.8])
    found = linear_denoiser.variances(grey * colours).reshape(-1, 3)
    expected = linear_denoiser.variances(grey)
    np.testing.assert_allclose(found[:, 2], expected, rtol=1e-9)
    assert (found[:, :2] < 1e-12).all()


def test_another_basis_is_never_better():
    few = linear_denoiser.variances(IMAGES[:50])  # fewer than ten a dimension
    flat = IMAGES[:50].reshape(50, 6)
    exact = np.linalg.eigvalsh(np.cov(flat.T, bias=True))
    assert few.sum() == pytest.approx(exact.sum())
    by_waves, by_covariance = (linear_denoiser.losses(SCHEDULE, "eps", each) for each in (few, exact))
    assert (by_waves >= by_covariance - 1e-12).all() and by_waves.mean() > 1.01 * by_covariance.mean()


def test_many_images_are_taken_a_block_at_a_time():
    images = np.random.default_rng(3).normal(size=(600, 8, 8, 1)).astype(np.float32)
    waves = np.abs(np.fft.fft2(images[..., 0] - images[..., 0].mean(axis=0))) ** 2 / 64
    np.testing.assert_allclose(linear_denoiser.variances(images), waves.mean(axis=0).ravel(), rtol=1e-4)


def test_an_unknown_prediction_is_named():
    with pytest.raises(InputError, match="`prediction` must be one of eps, x0, mu, v"):
        linear_denoiser.losses(SCHEDULE, "score", np.ones(3))
