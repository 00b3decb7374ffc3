"""Heun with churn, against algorithm 2 of Karras et al. 2022 written out in sigma and y; and flow matching's Euler."""

import math

import numpy as np
import pytest
from helpers.closed_form import draw, gaussian_denoiser

from kddpm.base.errors import InputError
from kddpm.sampling import samplers
from kddpm.sampling.samplers import DDIM, Heun
from kddpm.theory import schedules
from kddpm.theory.parametrization import Objective

CHURN = Heun(churn=10.0, churn_min=0.05, churn_max=20.0, churn_noise=1.007, clip=False)
SCHEDULES = {
    "karras": schedules.karras(1000),
    "linear": schedules.linear(1000),
    "zero": schedules.zero_terminal_snr(schedules.cosine(200)),
}


def d(y, sigma):
    """A denoiser that is no straight line, and the x_0 that it finds."""
    return np.tanh(y / (1 + sigma)) / (1 + sigma**2 / 4)


def walked(table, schedule, x, zs):
    """The rows of a table in float64, equations (1) and (2) of `step_table`, where x_0 is that of `d`."""
    rows, memory, every = table.rows, x, dict(zip(schedule.timesteps, range(schedule.num_timesteps), strict=True))
    for row, z in zip(range(table.num_rows), zs, strict=True):
        t = every[table.timesteps[row]]
        alpha_bar = schedule.alpha_bars[t]
        with np.errstate(divide="ignore", invalid="ignore"):
            x_0 = d(x / np.sqrt(alpha_bar), np.sqrt((1 - alpha_bar) / alpha_bar)) if alpha_bar else np.zeros_like(x)
        after = rows.from_x0[row] * x_0 + rows.from_xt[row] * x + rows.from_memory[row] * memory
        memory = rows.memory_from_x0[row] * x_0 + rows.memory_from_xt[row] * x + rows.memory_from_memory[row] * memory
        x = after + rows.noise_std[row] * z
    return x


def algorithm_2(sampler, sigmas, kept, x, zs):
    """Karras et al. 2022, algorithm 2, on y = x / s, with a noise level rounded to one that the network knows.

    Its steps 6 and 10 are taken in z = y / sigma and 1 / sigma, as `samplers` does, where dz / d(1 / sigma) = D.
    """
    steps, inverse = [*kept[::-1], None], 1 / sigmas
    first = sigmas[steps[0]]
    z = x if np.isinf(first) else x / np.sqrt(first**2 / (1 + first**2))  # y / sigma = x / n
    for i, t in enumerate(steps[:-1]):
        sigma, rises = sigmas[t], i > 0 and sampler.churn_min <= sigmas[t] <= sampler.churn_max
        gamma = min(sampler.churn / len(kept), math.sqrt(2) - 1) if rises else 0.0
        raised = t if gamma == 0 else np.argmin(np.abs(np.log(sigmas) - np.log(sigma * (1 + gamma))))
        if gamma:
            y = z * sigma + sampler.churn_noise * np.sqrt(sigmas[raised] ** 2 - sigma**2) * zs[2 * i - 1]
            z = y / sigmas[raised]
        slope = d(z * sigmas[raised], sigmas[raised]) if np.isfinite(sigmas[raised]) else np.zeros_like(z)
        if steps[i + 1] is None:
            return slope  # at sigma = 0
        step = inverse[steps[i + 1]] - inverse[raised]
        euler = z + step * slope
        z = z + step / 2 * (slope + d(euler * sigmas[steps[i + 1]], sigmas[steps[i + 1]]))


@pytest.mark.parametrize(
    "sampler", [CHURN, Heun(churn=1e3, clip=False, churn_max=1e9), Heun(clip=False, churn_max=1.0)]
)
@pytest.mark.parametrize("name", SCHEDULES)
def test_churn_is_algorithm_2(name, sampler):
    schedule, rng = SCHEDULES[name], np.random.default_rng(0)
    table = samplers.step_table(sampler, schedule, 18, Objective("x0"))
    x, zs = rng.normal(size=9), rng.normal(size=(table.num_rows, 9))
    with np.errstate(divide="ignore"):
        sigmas = np.sqrt(np.expm1(-np.cumsum(np.log1p(-schedule.betas))))
    expected = algorithm_2(sampler, sigmas, samplers.kept_steps(sampler, schedule, 18), x, zs)
    np.testing.assert_allclose(walked(table, schedule, x, zs), expected, rtol=0, atol=1e-12)
    assert table.num_rows == 35 and table.is_noisy == bool(sampler.churn)
    assert (len(set(table.timesteps)) > 18) == bool(sampler.churn)


def test_without_churn_the_steps_are_those_kept():
    schedule = SCHEDULES["linear"]
    plain, none = (samplers.step_table(s, schedule, 18) for s in (Heun(), Heun(churn=5.0, churn_min=1e4)))
    assert plain.fingerprint == none.fingerprint and not plain.is_noisy
    kept = samplers.kept_steps(Heun(), schedule, 18)[::-1]
    np.testing.assert_array_equal(plain.rows.at, [kept[0], *np.repeat(kept[1:], 2)])


def variance_at_the_end(table, schedule, std, share_in_noise=1.0):
    """Of x, in float64: every row is linear in x and the memory.

    The network is the best one for N(0, std^2), or says a share of that x_0 where there is more noise than signal.
    """
    covariance, rows = np.ones((2, 2)), table.rows
    for row in range(table.num_rows):
        alpha_bar = schedule.alpha_bars[rows.at[row]]
        gain = np.sqrt(alpha_bar) * std**2 / (alpha_bar * std**2 + 1 - alpha_bar)
        gain *= share_in_noise if alpha_bar < 0.5 else 1.0
        of_x = rows.from_x0[row] * gain + rows.from_xt[row]
        of_memory = rows.memory_from_x0[row] * gain + rows.memory_from_xt[row]
        step = np.array([[of_x, rows.from_memory[row]], [of_memory, rows.memory_from_memory[row]]])
        covariance = step @ covariance @ step.T + np.diag([rows.noise_std[row] ** 2, 0.0])
    return covariance[0, 0]


def test_churn_keeps_the_distribution():
    """Noise that is taken in is taken away again: the error of the variance falls with the square of the steps."""
    schedule = schedules.karras(20_000)
    errors = []
    for steps in (50, 100, 200, 400):
        table = samplers.step_table(Heun(churn=20.0, clip=False), schedule, steps, Objective("x0"))
        assert np.count_nonzero(table.rows.noise_std) > 0.9 * steps
        errors.append(abs(variance_at_the_end(table, schedule, 0.5) / 0.25 - 1))
    assert errors[-1] < 0.003 and 3.3 < errors[-2] / errors[-1] < 4.5


def test_churn_forgets_what_a_network_got_wrong():
    """docs/solvers.md; without churn 4 % of the variance are missing, however many the steps."""
    schedule = schedules.cosine(1000)

    def error(churn, share):
        table = samplers.step_table(Heun(churn=churn, clip=False), schedule, 160, Objective("x0"))
        return abs(variance_at_the_end(table, schedule, 0.3, share) / 0.09 - 1)

    assert error(0.0, 0.5) == pytest.approx(0.042, abs=0.001) and error(10.0, 0.5) < 0.3 * error(0.0, 0.5)
    assert error(10.0, 1.0) > 2 * error(0.0, 1.0)


def test_one_seed_has_one_picture():
    schedule = SCHEDULES["karras"]
    table, denoiser = samplers.step_table(CHURN, schedule, 6), gaussian_denoiser(schedule, 0.3, 0.2)
    one, two, other = (
        draw(denoiser, table, [seed], (4, 4, 1), mode) for seed, mode in ((1, "graph"), (1, "eager"), (2, "graph"))
    )
    np.testing.assert_allclose(one, two, atol=1e-6)
    assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize("name", ["churn", "churn_min", "churn_max", "churn_noise"])
def test_unusable_values_are_named(name):
    with pytest.raises(InputError, match=f"`{name}` must be at least 0. Received: -1.0"):
        Heun(**{name: -1})
    with pytest.raises(InputError, match=f"`{name}` must be a number. Received: inf"):
        Heun(**{name: math.inf})


@pytest.mark.parametrize("steps", [1, 10, 100])
def test_a_step_of_flow_matching_is_one_of_ddim(steps):
    """Euler along the velocity of (1 - u) x_0 + u eps, from the last u to 0, against DDIM with eta = 0, in float64."""
    schedule = schedules.zero_terminal_snr(schedules.flow(100))
    with np.errstate(divide="ignore"):
        u = 1 / (1 + np.sqrt(schedule.alpha_bars / schedule.one_minus_alpha_bars))
    table = samplers.step_table(DDIM(clip=False), schedule, steps, Objective("velocity"))
    x = path = np.random.default_rng(0).normal(size=7)

    def velocity(point, u):
        return np.sin(3 * point) + u * point

    for row in range(table.num_rows):
        t = table.timesteps[row]
        norm = np.sqrt((1 - u[t]) ** 2 + u[t] ** 2)
        said = velocity(x * norm, u[t])
        x_0 = table.x0_from_xt[row] * x + table.x0_from_output[row] * said
        x = table.rows.from_x0[row] * x_0 + table.rows.from_xt[row] * x
        before = u[table.timesteps[row + 1]] if row + 1 < table.num_rows else 0.0
        path = path + (before - u[t]) * velocity(path, u[t])
        np.testing.assert_allclose(x * np.sqrt((1 - before) ** 2 + before**2), path, rtol=0, atol=1e-12)
