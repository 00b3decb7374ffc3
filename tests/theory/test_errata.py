"""The errata of docs/theory.md: each right form against quadrature, Bayes' rule or a difference, and each slip off."""

import math
import re

import numpy as np
import pytest
from helpers.places import ROOT

from kddpm import toy
from kddpm.sampling import samplers
from kddpm.theory import objectives, parametrization, schedules, sde
from kddpm.theory.parametrization import Objective
from kddpm.theory.process import GaussianDiffusion

PAGE = (ROOT / "docs" / "theory.md").read_text()
ROWS = re.findall(r"^\| (.+?) \| ", PAGE.split("Errata: where texts slip")[1].split("\n## ")[0], re.MULTILINE)[1:]
SCHEDULE = schedules.linear(20, 1e-2, 0.3)
DIFFUSION = GaussianDiffusion(SCHEDULE)
T, X_0, EPS = 11, 0.4, -0.7
BETA, ALPHA, ALPHA_BAR, BEFORE, POSTERIOR = (
    float(table[T])
    for table in (
        SCHEDULE.betas, SCHEDULE.alphas, SCHEDULE.alpha_bars, SCHEDULE.alpha_bars_prev, SCHEDULE.posterior_variances,
    )
)  # fmt: skip
LOST = 1 - ALPHA_BAR
X_T = math.sqrt(ALPHA_BAR) * X_0 + math.sqrt(LOST) * EPS
GRID = np.linspace(-8, 8, 16001)


def mean_on_grid(values, log_density):
    """The mean of values on GRID under a density known up to a factor."""
    weights = np.exp(log_density - log_density.max())
    return np.sum(values * weights) / np.sum(weights)


def log_posterior():
    """log q(x_{t-1} | x_t, x_0) on GRID by Bayes' rule, up to a constant."""
    forward = -((X_T - math.sqrt(ALPHA) * GRID) ** 2) / (2 * BETA)
    return forward - (GRID - math.sqrt(BEFORE) * X_0) ** 2 / (2 * (1 - BEFORE))


def posterior_mean():
    def reduced(sign, lost):
        return (X_T + sign * BETA / math.sqrt(lost) * EPS) / math.sqrt(ALPHA)

    return mean_on_grid(GRID, log_posterior()), reduced(-1, LOST), [reduced(1, LOST), reduced(-1, 1 - BEFORE)]


def weight_of_noise():
    """KL of two normals by quadrature over a squared error of eps, with x_0 from each eps and the mean of eq. (4)."""
    guess = EPS + 0.3
    x_0 = (X_T - math.sqrt(LOST) * guess) / math.sqrt(ALPHA_BAR)
    c, d = SCHEDULE.posterior_coefs_x0[T], SCHEDULE.posterior_coefs_xt[T]
    logs = [-((GRID - c * x - d * X_T) ** 2) / (2 * POSTERIOR) for x in (X_0, x_0)]
    weight = BETA**2 / (2 * POSTERIOR * ALPHA)
    truth = mean_on_grid(logs[0] - logs[1], logs[0]) / 0.3**2
    assert parametrization.loss_weights(SCHEDULE, Objective("eps", "vlb"))[T] == pytest.approx(truth, rel=1e-9)
    return truth, weight / LOST, [weight / math.sqrt(LOST), weight / LOST**2]


def divergence():
    """Correlated normals in two dimensions, on a grid."""
    side = np.linspace(-7, 7, 561)
    x = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    covariances = np.array([[[0.5, 0.2], [0.2, 0.4]], [[0.9, -0.3], [-0.3, 0.6]]])
    apart = np.array([0.3, -0.5])
    logs = []
    for shift, covariance in ((apart, covariances[0]), (0.0, covariances[1])):
        square = np.einsum("ni,ij,nj->n", x - shift, np.linalg.inv(covariance), x - shift)
        logs.append(-square / 2 - np.log(2 * np.pi) - np.log(np.linalg.det(covariance)) / 2)
    truth = np.sum(np.exp(logs[0]) * (logs[0] - logs[1])) * (side[1] - side[0]) ** 2
    inverse = np.linalg.inv(covariances[1])
    quadratic = np.trace(inverse @ covariances[0]) + apart @ inverse @ apart
    log_ratio = np.log(np.linalg.det(covariances[1]) / np.linalg.det(covariances[0]))
    assert float(objectives.gaussian_kl_nats(0.3, -1.0, 0.3, -1.0)) == 0
    return truth, (quadratic - 2 + log_ratio) / 2, [(quadratic + log_ratio) / 2, (quadratic - 2) / 2]


def single_step_target():
    step_noise = (X_T - math.sqrt(ALPHA) * GRID) / BETA
    return mean_on_grid(step_noise, log_posterior()), EPS / math.sqrt(LOST), [EPS / math.sqrt(BETA)]


def conditional_score():
    def log_q(x):
        return -((x - math.sqrt(ALPHA_BAR) * X_0) ** 2) / (2 * LOST)

    slope = (log_q(X_T + 1e-5) - log_q(X_T - 1e-5)) / 2e-5
    right = float(DIFFUSION.score_from_eps(np.array([[X_T]]), np.array([T]), np.array([[EPS]]))[0, 0])
    return slope, right, [-EPS, -EPS / LOST]


def tweedie():
    """Data at 1 and -1."""
    root = math.sqrt(ALPHA_BAR)
    logs = -((X_T - root * np.array([1.0, -1.0])) ** 2) / (2 * LOST)
    truth = np.array([1, -1]) @ np.exp(logs) / np.exp(logs).sum()
    noisy = toy.Mixture([1, 1], [[1.0], [-1.0]], [0, 0]).noised(root, math.sqrt(LOST))
    moved = X_T + LOST * noisy.score(np.array([[X_T]]))[0, 0]
    return truth, moved / root, [moved]


def reverse_variance():
    """x_{t-1} and x_t are jointly normal for data N(0, s^2): what remains of the variance once x_t is known."""

    def remaining(variance):
        before = BEFORE * variance + 1 - BEFORE
        return before - ALPHA * before**2 / (ALPHA * before + BETA)

    return np.array([remaining(0.0), remaining(1.0)]), np.array([POSTERIOR, BETA]), [np.array([BETA, POSTERIOR])]


def drift_backwards():
    """The variance of Gaussian data an instant earlier, from one small Euler step back; c is the score's factor."""
    process, t, h, std = sde.linear(0.1, 5.0), 0.4, 1e-6, 0.5

    def variance(at):
        return process.signal(at) ** 2 * std**2 + process.noise(at) ** 2

    f, g2 = process.drift(t), process.diffusion_squared(t)

    def speed(c, noisy):
        return 2 * f * variance(t) + 2 * c * g2 - (g2 if noisy else 0)

    truth = (variance(t + h) - variance(t - h)) / (2 * h)
    assert sde.euler_step(process, 1.0, -1 / variance(t), t, -h, 0.0) == pytest.approx(1 - h * (f + g2 / variance(t)))
    return np.full(2, truth), np.array([speed(1, True), speed(0.5, False)]), [speed(0.5, True), speed(1, False)]


def langevin_noise():
    """The stationary variance on N(0, 1) of x' = (1 - delta) x + noise, by its recursion from 1."""
    delta = 1e-4

    def settled(noise_variance):
        variance = 1.0
        for _ in range(100_000):
            variance = (1 - delta) ** 2 * variance + noise_variance
        return variance

    step = toy.langevin_paths(toy.Mixture([1], [[0.0]], [1.0]), np.zeros((10_000, 1)), delta, 1)[-1]
    assert np.var(step) == pytest.approx(2 * delta, rel=0.1)
    return 1.0, settled(2 * delta), [settled(delta)]


def ddim():
    small, large = (samplers.Ancestral(name).rows(SCHEDULE) for name in ("small", "large"))
    rows = samplers.DDIM(eta=1).rows(SCHEDULE)
    columns = ("from_x0", "from_xt", "noise_std")
    truth, right, slip = (np.stack([getattr(each, name) for name in columns]) for each in (rows, small, large))
    return truth, right, [slip]


def last_noise():
    """One step to the data from t = 0 and from t = 1, where x_0 is known: q(x_{t-1} | x_t, x_0) has what variance?"""
    found = samplers.Ancestral().rows(SCHEDULE).noise_std[::-1][:2]
    second = math.sqrt(SCHEDULE.betas[1] * SCHEDULE.betas[0] / SCHEDULE.one_minus_alpha_bars[1])
    return np.array([0.0, second]), found, [np.zeros(2)]


def min_snr_of_v():
    """An error of x_0 by 0.1, as an error of v; the weighted squares are the same."""
    snr = ALPHA_BAR / LOST
    v, other = ((math.sqrt(ALPHA_BAR) * X_T - x) / math.sqrt(LOST) for x in (X_0, X_0 + 0.1))
    truth = min(snr, 5) * 0.1**2 / (v - other) ** 2
    assert parametrization.loss_weights(SCHEDULE, Objective("v", "min_snr"))[T] == pytest.approx(truth, rel=1e-9)
    return truth, min(snr, 5) / (snr + 1), [min(snr, 5) / snr]


CHECKS = {
    "posterior mean, from noise": posterior_mean,
    r"weight of an error of $\epsilon$": weight_of_noise,
    "KL in d dimensions, summed": divergence,
    "target of a single step": single_step_target,
    "score, given the picture": conditional_score,
    "Tweedie's formula": tweedie,
    "variance of a reverse step": reverse_variance,
    "drift backwards in time": drift_backwards,
    "noise of a Langevin step": langevin_noise,
    r"DDIM with $\eta = 1$": ddim,
    "last ancestral step": last_noise,
    '"min_snr" for v': min_snr_of_v,
}


def test_every_row_is_checked():
    assert list(CHECKS) == ROWS


@pytest.mark.parametrize("row", CHECKS)
def test_the_right_form_is_right_and_the_slip_is_not(row):
    """To 1e-4 where a step is taken (Langevin), else to 1e-6; slips are off by more than a hundredth."""
    truth, right, slips = CHECKS[row]()
    np.testing.assert_allclose(right, truth, rtol=1e-4 if "Langevin" in row else 1e-6, atol=1e-12)
    for slip in slips:
        assert np.max(np.abs(np.asarray(slip) - truth)) > 0.01 * np.max(np.abs(truth))
