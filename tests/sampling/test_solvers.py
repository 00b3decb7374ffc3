import math
import statistics

import numpy as np
import pytest
import tensorflow as tf
from helpers.closed_form import gaussian_denoiser, mixture_x0, walked

from kddpm.sampling import samplers
from kddpm.sampling.inversion import Inversion
from kddpm.sampling.samplers import DDIM, DPMSolver, Heun
from kddpm.theory import schedules
from kddpm.theory.parametrization import Objective

linear_100 = schedules.linear(100, 1e-3, 0.2)

LEVELS = 257
TWO_MODES = {-0.6: 0.3, 0.4: 0.7}


def even_in_log_snr():
    """lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)) from 3 to -3 in even steps."""
    alpha_bars = 1 / (1 + np.exp(-2 * np.linspace(3, -3, LEVELS)))
    return schedules.NoiseSchedule(1 - alpha_bars / np.append(1.0, alpha_bars[:-1]))


def flowed(x, schedule, t, t_end, modes, std):
    """Where the probability-flow ODE takes x from t to t_end: in one dimension quantiles stay quantiles."""

    def below(x, t):
        spread = math.sqrt(schedule.alpha_bars[t] * std**2 + schedule.one_minus_alpha_bars[t]) * math.sqrt(2)
        erf = np.vectorize(math.erf)
        return sum(w * erf((x - math.sqrt(schedule.alpha_bars[t]) * mean) / spread) for mean, w in modes.items())

    low, high, target = np.full_like(x, -10), np.full_like(x, 10), below(x, t)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = np.where(below(middle, t_end) < target, (middle, high), (low, middle))
    return middle


@pytest.mark.parametrize("pattern", [[2, 2], [1, 3]], ids=["even", "uneven"])
@pytest.mark.parametrize(("modes", "std"), [({0.3: 1.0}, 0.5), (TWO_MODES, 0.3)], ids=["normal", "two modes"])
@pytest.mark.parametrize("sampler", [DDIM(clip=False), DPMSolver(clip=False), Heun(clip=False)], ids=str)
def test_errors_shrink_with_the_order(sampler, modes, std, pattern):
    """Down to the last level before the data, from which every sampler takes one step of first order.

    Steps of 1 and 3 in turn: DPM-Solver is of second order there only if it knows how long the step before was.
    """
    schedule, x_T = even_in_log_snr(), np.linspace(-2, 2, 9).reshape(1, 9, 1, 1)
    exact, errors = flowed(x_T, schedule, -1, 0, modes, std), []
    for steps in (32, 64, 128):
        grid = (LEVELS - 1) // 2 // steps * np.cumsum([0, *pattern * (steps // 2)])
        table = samplers.step_table(sampler, schedule, grid, Objective("x0"))
        end = walked(mixture_x0(schedule, modes, std), table, x_T, stop=table.num_rows - 1)
        errors.append(np.sqrt(np.mean((end - exact) ** 2)))
    assert errors[-1] > 5e-5  # float32 adds about 1e-6
    np.testing.assert_allclose(np.log2(errors[:-1]) - np.log2(errors[1:]), sampler.order, atol=0.2)


def dpm_solver_by_the_paper(x_0, signal, noise_, x):
    """Lu et al. 2022b, algorithm 2, with a last step of first order; x_0(x, i) at level i, noise first."""
    with np.errstate(divide="ignore"):
        log_snr = np.log(signal) - np.log(noise_)
    steps, seen = np.diff(log_snr), []
    for i, h in enumerate(steps):
        seen.append(x_0(x, i))
        towards = seen[i]
        if 0 < i < len(steps) - 1:
            r = steps[i - 1] / h
            towards = (1 + 1 / (2 * r)) * seen[i] - 1 / (2 * r) * seen[i - 1]
        x = noise_[i + 1] / noise_[i] * x - signal[i + 1] * np.expm1(-h) * towards
    return x


def heun_by_the_paper(x_0, signal, noise_, x):
    """Karras et al. 2022, algorithm 1, with dz/dw = x_0 in z = x / noise, w = signal / noise for its ODE."""
    w, z = signal[:-1] / noise_[:-1], x / noise_[0]
    for i in range(len(w) - 1):
        slope = x_0(z * noise_[i], i)
        z_next = z + (w[i + 1] - w[i]) * slope
        slope_next = x_0(z_next * noise_[i + 1], i + 1)
        z = z + (w[i + 1] - w[i]) * (slope + slope_next) / 2
    return signal[-1] * x_0(z * noise_[-2], len(w) - 1)  # Euler's step to the data


def test_heun_keeps_to_the_way_where_the_noise_level_leaps():
    """A cosine schedule in 20 steps begins with one from n / s = 20,000 to 13."""
    schedule = schedules.cosine(1000)
    best, x_T = mixture_x0(schedule, TWO_MODES, 0.1), np.linspace(-2, 2, 9).reshape(1, 9, 1, 1)
    fine, coarse = (
        walked(best, samplers.step_table(Heun(), schedule, steps, Objective("x0")), x_T) for steps in (1000, 20)
    )
    assert np.abs(coarse - fine).mean() < 0.05 and np.ptp(fine) > 1.2


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kept", [[256], [10, 256], [60, 150, 256], [0, 3, 12, 45, 90, 150, 256]], ids=len)
@pytest.mark.parametrize(("sampler", "by_the_paper"), [(DPMSolver, dpm_solver_by_the_paper), (Heun, heun_by_the_paper)])
def test_solvers_are_those_of_the_papers(sampler, by_the_paper, kept, clip):
    schedule, x_T = even_in_log_snr(), np.linspace(-3, 3, 7).reshape(1, 7, 1, 1)
    best = mixture_x0(schedule, {-1.2: 0.5, 0.8: 0.5}, 0.2)
    alpha_bars = np.append(np.cumprod(1 - schedule.betas)[kept[::-1]], 1.0)

    def x_0(x, level):
        predicted = best(tf.constant(x), [kept[::-1][level]]).numpy()
        return np.clip(predicted, -1, 1) if clip else predicted

    table = samplers.step_table(sampler(clip=clip), schedule, kept, Objective("x0"))
    expected = by_the_paper(x_0, np.sqrt(alpha_bars), np.sqrt(1 - alpha_bars), x_T)
    np.testing.assert_allclose(walked(best, table, x_T), expected, rtol=1e-4, atol=1e-5)


def std_of_samples(sampler, schedule, steps):
    """Of 1,001 quantiles of the noise, for data N(0.1, 0.3^2): a deterministic solver stretches them."""
    quantiles = np.array([statistics.NormalDist().inv_cdf(p) for p in (np.arange(1001) + 0.5) / 1001])
    table = samplers.step_table(sampler, schedule, steps)
    return walked(gaussian_denoiser(schedule, 0.1, 0.3), table, quantiles.reshape(1, -1, 1, 1)).std()


@pytest.mark.parametrize(("steps", "unguarded"), [(10, 0.370), (20, 0.389)])
@pytest.mark.parametrize("make", [schedules.linear, schedules.quadratic, schedules.cosine, schedules.sigmoid])
def test_dpm_solver_does_not_overshoot_in_a_last_step_that_is_long(make, steps, unguarded):
    """The last finite step of linspace is four times as long as the one before; without a guard the std of `linear`
    is 0.37 in 10 steps and 0.39 in 20."""
    std = std_of_samples(DPMSolver(clip=False, spacing="linspace"), make(1000), steps)
    assert 0.22 < std < 0.31 < unguarded


def test_a_step_of_ones_own_is_guarded_wherever_it_is_long():
    """A long step after a short one in the middle of the way; as many even steps are further from the data."""
    schedule = even_in_log_snr()
    grid = [0, 20, 40, 60, 80, 180, 185, 195, 220, 256]
    guarded = samplers.step_table(DPMSolver(), schedule, grid).rows
    h = 6 / (LEVELS - 1) * np.diff(grid)[::-1]
    towards = guarded.from_x0 + guarded.from_memory
    weight = -guarded.from_memory / towards
    expected = np.minimum(h[1:], np.maximum(h[:-1], 0.5)) / (2 * h[:-1])
    np.testing.assert_allclose(weight, [0, *expected, 0], rtol=1e-9)
    assert np.all(weight < 2.2), "h / (2 h_before) of the step from 180 to 80 is 10"


@pytest.mark.parametrize(("kind", "spacing"), [(DDIM, "trailing"), (DPMSolver, "karras"), (Heun, "karras")])
@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine, schedules.sigmoid])
def test_a_default_spacing_is_as_accurate_as_docs_say(kind, spacing, make):
    """docs/solvers.md; in 20 steps trailing gives 0.254 for Heun and 0.255 for DPM-Solver on `linear`."""
    assert kind().spacing == spacing
    if kind.order == 2:
        assert std_of_samples(kind(), make(1000), 20) == pytest.approx(0.3, abs=0.016)
        assert std_of_samples(kind(), make(1000), 50) == pytest.approx(0.3, abs=0.005)


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.cosine(1000),
        schedules.sigmoid(1000),
        schedules.constant(1000, 0.3),
        schedules.zero_terminal_snr(schedules.linear(1000)),
        schedules.cosine(10_000),
    ],
    ids=str,
)
def test_karras_spends_no_step_where_there_is_nothing_to_see(schedule):
    """Beyond sigma = 80 only T - 1, where sampling starts. Of ten steps on a cosine schedule six lay beyond."""
    kept = schedules.timestep_grid(schedule, 10, "karras")
    sigmas = np.exp(schedule.log_sigmas[kept[:-1]])
    assert kept[-1] == schedule.num_timesteps - 1 and np.all(sigmas < 80) and sigmas[-1] > 30


def test_heun_asks_twice_about_every_level_but_the_first():
    table = samplers.step_table(Heun(), linear_100, [9, 50, 99])
    assert table.timesteps.tolist() == [99, 50, 50, 9, 9]
    assert samplers.step_table(Heun(), linear_100).num_rows == 199
    assert samplers.step_table(DPMSolver(), linear_100).num_rows == 100


# Images to noise.


@pytest.mark.parametrize("iterations", [1, 3])
def test_inversion_follows_the_flow_to_first_order(iterations):
    schedule, x = even_in_log_snr(), np.linspace(-1, 1, 9).reshape(1, 9, 1, 1)
    exact, errors = flowed(x, schedule, 0, -1, TWO_MODES, 0.3), []
    for steps in (32, 64, 128):
        grid = np.arange(0, LEVELS, (LEVELS - 1) // steps)
        table = samplers.step_table(Inversion(iterations, clip=False), schedule, grid, Objective("x0"))
        end = walked(mixture_x0(schedule, TWO_MODES, 0.3), table, x, start=iterations)
        errors.append(np.sqrt(np.mean((end - exact) ** 2)))
    np.testing.assert_allclose(np.log2(errors[:-1]) - np.log2(errors[1:]), 1, atol=0.2)


def test_ddim_leads_back_to_the_inverted_image():
    """In the same steps: exactly, once the fixed point is found."""
    denoiser, errors = gaussian_denoiser(linear_100, 0.3, 0.5), []
    x_0 = np.random.default_rng(0).uniform(-1, 1, (3, 4, 4, 1))
    for iterations in (1, 4, 16):
        x = x_0
        for sampler in (Inversion(iterations), DDIM()):
            x = walked(denoiser, samplers.step_table(sampler, linear_100, 10), x, [0] * 3)
        errors.append(np.max(np.abs(x - x_0)))
    assert errors[0] > 0.1 > errors[1] > 1e-3 and errors[2] < 2e-6


@pytest.mark.parametrize("clip", [True, False, "dynamic"])
def test_every_step_of_ddim_is_inverted_with_its_clipping(clip):
    """Of a denoiser whose x_0 is 0.8 x_t, beyond 1 in some pixels at every level."""
    x, iterations = np.random.default_rng(0).normal(0, 1, (3, 4, 4, 1)), 30
    inverted = samplers.step_table(Inversion(iterations, clip=clip), linear_100, 10, Objective("x0"))
    back = samplers.step_table(DDIM(clip=clip), linear_100, 10, Objective("x0"))
    for level in range(1, 10):
        rows = {"start": level * iterations, "stop": (level + 1) * iterations}
        up = walked(lambda x, t: 0.8 * x, inverted, x, [0] * 3, **rows)
        down = walked(lambda x, t: 0.8 * x, back, up, [0] * 3, start=9 - level, stop=10 - level)
        np.testing.assert_allclose(down, x, atol=3e-6)
