import json
import math

import numpy as np
import pytest
from helpers.places import GOLDENS

from kddpm.base.errors import InputError
from kddpm.theory import schedules
from kddpm.theory.schedules import NoiseSchedule

GOLDEN = np.load(GOLDENS / "tables_mpmath.npz")
ATTRIBUTES = {
    "beta": "betas",
    "alpha_bar": "alpha_bars",
    "one_minus_alpha_bar": "one_minus_alpha_bars",
    "posterior_variance": "posterior_variances",
    "posterior_coef_x0": "posterior_coefs_x0",
    "posterior_coef_xt": "posterior_coefs_xt",
}
MAKERS = {**schedules.BY_NAME, "from_alpha_bar": lambda steps: schedules.from_alpha_bar(lambda u: 1 - u**2, steps)}

every_schedule = pytest.mark.parametrize(
    "schedule", [MAKERS[n](t) for n in MAKERS for t in (1, 2, 10, 100, 1000)], ids=str
)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_tables_agree_with_fifty_digit_arithmetic(name, attribute):
    table = getattr(schedules.by_name(name), ATTRIBUTES[attribute])
    np.testing.assert_allclose(table, GOLDEN[f"{name}/{attribute}"], rtol=1e-11, atol=0)


@every_schedule
def test_tables_are_those_of_a_schedule(schedule):
    assert np.all((schedule.betas > 0) & (schedule.betas < 1))
    assert np.all(np.diff(schedule.alpha_bars, prepend=1) < 0) and schedule.alpha_bars[-1] > 0
    np.testing.assert_allclose(schedule.alpha_bars, np.cumprod(1 - schedule.betas), rtol=1e-11)
    np.testing.assert_array_equal(schedule.alpha_bars_prev, [1, *schedule.alpha_bars[:-1]])
    np.testing.assert_allclose(schedule.alpha_bars + schedule.one_minus_alpha_bars, 1, rtol=1e-15)
    np.testing.assert_array_equal(schedule.one_minus_alpha_bars_prev, [0, *schedule.one_minus_alpha_bars[:-1]])
    np.testing.assert_array_equal(schedule.timesteps, np.arange(schedule.num_timesteps))


@every_schedule
def test_posterior_of_the_first_step_is_the_image_itself(schedule):
    assert schedule.posterior_variances[0] == 0
    assert np.all(schedule.posterior_variances[1:] > 0)
    assert np.all(schedule.posterior_variances <= schedule.betas)
    assert schedule.posterior_coefs_xt[0] == 0
    np.testing.assert_array_max_ulp(schedule.posterior_coefs_x0[0], 1.0, maxulp=1)
    assert np.float32(schedule.posterior_coefs_x0[0]) == 1


@pytest.mark.parametrize("t", [1, 2, 30, 500, 998, 999])
@pytest.mark.parametrize("name", MAKERS)
def test_posterior_is_the_normalised_product_of_prior_and_likelihood(name, t):
    schedule, x_0 = MAKERS[name](1000), 0.6
    alpha_bar_prev, alpha_bar = np.prod(1 - schedule.betas[:t]), np.prod(1 - schedule.betas[: t + 1])
    x_t = math.sqrt(alpha_bar) * x_0 + 0.7 * math.sqrt(1 - alpha_bar)
    x_prev = math.sqrt(alpha_bar_prev) * x_0 + math.sqrt(1 - alpha_bar_prev) * np.linspace(-12, 12, 20001)
    log_prior = -((x_prev - math.sqrt(alpha_bar_prev) * x_0) ** 2) / (2 * (1 - alpha_bar_prev))
    log_likelihood = -((x_t - math.sqrt(1 - schedule.betas[t]) * x_prev) ** 2) / (2 * schedule.betas[t])
    density = np.exp(log_prior + log_likelihood - np.max(log_prior + log_likelihood))
    mean = np.sum(x_prev * density) / np.sum(density)
    variance = np.sum((x_prev - mean) ** 2 * density) / np.sum(density)
    assert schedule.posterior_variances[t] == pytest.approx(variance, rel=1e-8)
    assert schedule.posterior_coefs_x0[t] * x_0 + schedule.posterior_coefs_xt[t] * x_t == pytest.approx(mean, rel=1e-8)


def test_each_name_has_its_shape():
    u = np.arange(11) / 10
    np.testing.assert_allclose(schedules.linear(10, 0.1, 0.5).betas, 0.1 + 0.4 * np.arange(10) / 9)
    np.testing.assert_allclose(np.diff(np.sqrt(schedules.quadratic(10, 0.04, 0.25).betas)), 0.3 / 9)
    np.testing.assert_array_equal(schedules.constant(10, 0.25).betas, [0.25] * 10)
    sigmoid = (1 / (1 + np.exp(-6.0)) - 1 / (1 + np.exp(2 - 8 * u))) / (1 / (1 + np.exp(-6.0)) - 1 / (1 + np.exp(2.0)))
    made = schedules.sigmoid(10, start=-1.0, end=3.0, tau=0.5)
    np.testing.assert_allclose(made.alpha_bars[:-1], sigmoid[1:-1], rtol=1e-12)
    assert made.betas[-1] == 0.999


@pytest.mark.parametrize("steps", [2, 18, 1000])
def test_the_sigmas_of_karras_and_of_a_straight_line(steps):
    """Karras et al. 2022, eq. 5, counted from the noise; and sigma = u / (1 - u) at u = 1/T .. (T - 1)/T."""
    i = np.arange(steps)
    sigmas = (80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    made = np.sqrt(np.expm1(-np.cumsum(np.log1p(-schedules.karras(steps).betas))))
    np.testing.assert_allclose(made[::-1], sigmas, rtol=1e-12)
    u, made = np.arange(1, steps) / steps, schedules.flow(steps)
    np.testing.assert_allclose(made.alpha_bars[:-1], (1 - u) ** 2 / ((1 - u) ** 2 + u**2), rtol=1e-12)
    assert made.betas[-1] == 0.999
    endless = schedules.from_sigmas([0.1, 2.0, math.inf])
    assert endless.zero_terminal_snr
    np.testing.assert_allclose(endless.alpha_bars, [1 / 1.01, 1 / 5, 0], rtol=1e-14)


def test_a_function_is_scaled_to_begin_at_one_and_clipped_at_its_end():
    schedule = schedules.from_alpha_bar(lambda u: 0.9 * math.exp(-u), 10)
    np.testing.assert_allclose(schedule.alpha_bars, np.exp(-np.arange(1, 11) / 10), rtol=1e-12)
    assert schedules.from_alpha_bar(lambda u: 1 - u, 10).betas[-1] == 0.999


@pytest.mark.parametrize("name", MAKERS)
def test_respacing_keeps_alpha_bar_and_composes(name):
    schedule, random = MAKERS[name](100), np.random.default_rng(0)
    for size in (1, 2, 17, 99, 100):
        kept = np.sort(random.choice(100, size, replace=False))
        respaced = schedule.respace(kept)
        np.testing.assert_allclose(respaced.alpha_bars, schedule.alpha_bars[kept], rtol=1e-11)
        np.testing.assert_array_equal(respaced.timesteps, kept)
        inner = np.sort(random.choice(size, (size + 1) // 2, replace=False))
        twice, once = respaced.respace(inner), schedule.respace(kept[inner])
        np.testing.assert_allclose(twice.betas, once.betas, rtol=1e-11)
        np.testing.assert_array_equal(twice.timesteps, once.timesteps)


def test_pairs_walk_from_noise_to_data():
    assert schedules.linear(3).pairs == [(2, 1), (1, 0), (0, -1)]
    assert schedules.linear(100).respace([5, 40, 99]).pairs == [(99, 40), (40, 5), (5, -1)]
    assert schedules.linear(1).pairs == [(0, -1)]


@pytest.mark.parametrize(
    ("spacing", "steps", "kept", "expected"),
    [
        ("trailing", 1000, 50, list(range(19, 1000, 20))),
        ("trailing", 1000, 1, [999]),
        ("trailing", 5, 5, [0, 1, 2, 3, 4]),
        ("trailing", 10, 3, [2, 6, 9]),
        ("trailing", 9, 6, [1, 2, 3, 5, 7, 8]),  # halves go to even, as in NumPy: 1.5 -> 2, 4.5 -> 4, 7.5 -> 8
        ("linspace", 1000, 4, [0, 333, 666, 999]),
        ("linspace", 1000, 1, [999]),
        ("linspace", 10, 3, [0, 4, 9]),
        ("quadratic", 101, 11, [n**2 for n in range(11)]),
        ("quadratic", 5, 4, [0, 1, 2, 4]),  # 0, 0.44, 1.78, 4: the first two would be 0
    ],
)
def test_known_grids(spacing, steps, kept, expected):
    assert schedules.timestep_grid(schedules.constant(steps), kept, spacing).tolist() == expected


@pytest.mark.parametrize("spacing", schedules.SPACINGS)
@pytest.mark.parametrize(
    "make", [schedules.linear, schedules.cosine, schedules.sigmoid], ids=["linear", "cosine", "sigmoid"]
)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_every_grid_is_distinct_and_ends_at_the_noise(make, zero_snr, spacing):
    for steps in (1, 2, 3, 7, 50, 1000):
        schedule = schedules.zero_terminal_snr(make(steps)) if zero_snr else make(steps)
        for kept in {*range(1, min(steps, 60) + 1), steps // 2 or 1, steps - 1 or 1, steps}:
            timesteps = schedules.timestep_grid(schedule, kept, spacing)
            assert timesteps.dtype == np.int64 and len(timesteps) == kept
            assert timesteps[0] >= 0 and timesteps[-1] == steps - 1 and np.all(np.diff(timesteps) > 0)
        np.testing.assert_array_equal(schedules.timestep_grid(schedule, steps, spacing), range(steps))


@pytest.mark.parametrize("kept", [5, 10, 20])
@pytest.mark.parametrize(
    "make",
    [
        *(schedules.linear, schedules.constant, schedules.quadratic, schedules.cosine, schedules.sigmoid),
        schedules.variance_exploding,
    ],
)
def test_karras_steps_are_even_in_the_seventh_root_of_sigma(make, kept):
    """Karras et al. 2022, eq. 5, as near as steps of T = 1000 come, from at most sigma = 80, in table 1."""
    schedule = make(1000)
    roots = ((1 - schedule.alpha_bars) / schedule.alpha_bars) ** (1 / 14)
    wanted = roots[0] + np.arange(kept) / (kept - 1) * (min(roots[-1], 80 ** (1 / 7)) - roots[0])
    nearest = np.argmin(np.abs(roots[:, np.newaxis] - wanted), axis=0)
    nearest[-1] = 999
    assert np.all(np.diff(nearest) > 0)
    assert np.max(np.abs(schedules.timestep_grid(schedule, kept, "karras") - nearest)) <= 1


def test_spacings_differ_in_where_they_look_closely():
    grids = {spacing: schedules.timestep_grid(schedules.linear(1000), 20, spacing) for spacing in schedules.SPACINGS}
    assert grids["trailing"][0] == 49 and grids["linspace"][0] == grids["quadratic"][0] == grids["karras"][0] == 0
    for spacing in ("trailing", "linspace"):
        assert np.ptp(np.diff(grids[spacing])) <= 1
    assert np.all(np.diff(np.diff(grids["quadratic"])) >= 0) and grids["quadratic"][10] < 1000 / 3
    assert len({grid.tobytes() for grid in grids.values()}) == 4


def enforce_zero_terminal_snr(betas):
    """Lin et al. 2023, algorithm 1, line by line."""
    alphas_bar_sqrt = np.sqrt(np.cumprod(1 - betas))
    alphas_bar_sqrt_0, alphas_bar_sqrt_T = alphas_bar_sqrt[0], alphas_bar_sqrt[-1]
    alphas_bar_sqrt = alphas_bar_sqrt - alphas_bar_sqrt_T
    alphas_bar_sqrt = alphas_bar_sqrt * alphas_bar_sqrt_0 / (alphas_bar_sqrt_0 - alphas_bar_sqrt_T)
    alphas_bar = alphas_bar_sqrt**2
    return 1 - np.concatenate([alphas_bar[:1], alphas_bar[1:] / alphas_bar[:-1]])


@pytest.mark.parametrize("steps", [2, 10, 1000])
@pytest.mark.parametrize("name", MAKERS)
def test_zero_terminal_snr_is_the_published_algorithm(name, steps):
    before = MAKERS[name](steps)
    after = schedules.zero_terminal_snr(before)
    np.testing.assert_allclose(after.betas, enforce_zero_terminal_snr(before.betas), rtol=1e-9, atol=1e-15)
    assert after.zero_terminal_snr and not before.zero_terminal_snr
    assert after.alpha_bars[-1] == 0 and after.one_minus_alpha_bars[-1] == 1
    np.testing.assert_allclose(after.alpha_bars[0], before.alpha_bars[0], rtol=1e-12)
    assert np.all(np.diff(after.alpha_bars) < 0)
    tables = [after.posterior_variances, after.posterior_coefs_x0, after.posterior_coefs_xt]
    assert (
        np.all(np.isfinite(tables)) and after.posterior_coefs_xt[-1] == 0
    )  # the noise says nothing of the step before


def test_zero_terminal_snr_stays():
    schedule = schedules.zero_terminal_snr(schedules.linear(100))
    respaced = schedule.respace([3, 50, 99])
    assert respaced.zero_terminal_snr and respaced.betas[-1] == 1 and respaced.alpha_bars[-1] == 0
    np.testing.assert_allclose(respaced.alpha_bars, schedule.alpha_bars[[3, 50, 99]], rtol=1e-11)
    assert schedule.respace([99]).betas.tolist() == [1] and not schedule.respace([3, 50]).zero_terminal_snr
    twice = schedules.zero_terminal_snr(schedule)
    np.testing.assert_allclose(twice.betas, schedule.betas, rtol=1e-9)
    named = schedules.zero_terminal_snr(schedules.linear(100).respace([3, 50, 99]))
    assert named.timesteps.tolist() == [3, 50, 99] and named.zero_terminal_snr
    assert schedules.zero_terminal_snr(schedules.constant(1)).betas.tolist() == [1]


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.cosine(1000),
        schedules.sigmoid(100).respace([3, 50, 99]),
        schedules.zero_terminal_snr(schedules.linear(1000)),
    ],
    ids=str,
)
def test_configuration_survives_json_exactly(schedule):
    again = NoiseSchedule.from_config(json.loads(json.dumps(schedule.get_config())))
    assert again.num_timesteps == schedule.num_timesteps
    for name, table in vars(schedule).items():
        np.testing.assert_array_equal(getattr(again, name), table, err_msg=name)


def test_tables_are_read_only_and_apart_from_what_was_given():
    given = np.array([0.1, 0.2])
    schedule = NoiseSchedule(given)
    given[0] = 0.5
    assert schedule.betas[0] == 0.1
    tables = [table for table in vars(schedule).values() if isinstance(table, np.ndarray)]
    assert len(tables) == 11
    for table in tables:
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: NoiseSchedule([]), r"`betas` must be a non-empty list of numbers. Received: shape \(0,\)"),
        (lambda: NoiseSchedule([[0.1, 0.2]]), r"`betas` must be a non-empty list .* shape \(1, 2\)"),
        (lambda: NoiseSchedule(0.1), r"`betas` must be a non-empty list .* shape \(\)"),
        (lambda: NoiseSchedule([0.0, 0.1]), "`betas` must lie strictly between 0 and 1. Received: beta=0.0 at t=0"),
        (lambda: NoiseSchedule([0.1, 1.0, 0.1]), "`betas` must lie strictly .* beta=1.0 at t=1"),
        (lambda: NoiseSchedule([0.1, 1.0000001]), "`betas` must lie strictly .* beta=1.0000001 at t=1"),
        (lambda: NoiseSchedule([0.1, 1.1]), "`betas` must lie strictly .* beta=1.1 at t=1"),
        (lambda: NoiseSchedule([0.1, -0.2]), "`betas` must lie strictly .* beta=-0.2 at t=1"),
        (lambda: NoiseSchedule([0.1, math.nan]), "`betas` must lie strictly .* beta=nan at t=1"),
        (lambda: NoiseSchedule([0.1, 0.2], [1]), "`timesteps` must have 2 entries, one a beta. Received: 1"),
        (lambda: NoiseSchedule([0.1, 0.2], [3, 3]), r"`timesteps` must be increasing integers. Received: \[3, 3\]"),
        (lambda: NoiseSchedule([0.1, 0.2], [0.0, 1.0]), "`timesteps` must be increasing integers"),
        (lambda: schedules.linear(10).respace([2, 1]), r"`timesteps` must be increasing integers. Received: \[2, 1\]"),
        (lambda: schedules.linear(10).respace([]), r"`timesteps` must be increasing integers. Received: \[\]"),
        (lambda: schedules.linear(10).respace([[1, 2]]), "`timesteps` must be increasing integers"),
        (lambda: schedules.linear(10).respace([-1, 2]), r"`timesteps` must lie in 0 .. 9. Received: -1 .. 2"),
        (lambda: schedules.linear(10).respace([1, 10]), r"`timesteps` must lie in 0 .. 9. Received: 1 .. 10"),
        (lambda: schedules.linear(10, end=1.5), "`betas` must lie strictly .* beta=1.0000333\\d* at t=6"),
        (lambda: schedules.quadratic(10, start=0), "`start` and `end` must lie strictly .* start=0, end=0.02"),
        (lambda: schedules.quadratic(10, end=-1), "`start` and `end` must lie strictly .* end=-1"),
        (lambda: schedules.constant(10, 0), "`betas` must lie strictly .* beta=0.0 at t=0"),
        (lambda: schedules.cosine(10, offset=0), "`offset` must be positive. Received: offset=0"),
        (lambda: schedules.sigmoid(10, start=3, end=3), "`sigmoid` needs start < end and tau > 0. .* start=3, end=3"),
        (lambda: schedules.sigmoid(10, tau=0), "`sigmoid` needs start < end and tau > 0. .* tau=0"),
        (lambda: schedules.from_alpha_bar(lambda u: 0.5, 10), "`function` must decrease strictly .* alpha_bar.0.=0.5"),
        (lambda: schedules.from_alpha_bar(lambda u: math.cos(9 * u), 10), "`function` must decrease strictly"),
        (lambda: schedules.from_alpha_bar(lambda u: 1.5 - u, 10), "`function` must decrease strictly within"),
        (lambda: schedules.from_alpha_bar(lambda u: 0.5 - u, 10), "`function` must decrease strictly within"),
        (lambda: schedules.from_alpha_bar(lambda u: math.nan, 10), "`function` must decrease strictly within"),
        (lambda: schedules.from_sigmas([1.0, 0.5]), "`sigmas` must be increasing positive numbers. .*0.5"),
        (lambda: schedules.from_sigmas([0.0, 0.5]), "`sigmas` must be increasing positive numbers"),
        (lambda: schedules.karras(10, 2.0, 1.0), "`sigma_min` must lie between 0 and sigma_max=1.0. Received: 2.0"),
        (lambda: schedules.by_name("square"), "`schedule` must be one of linear, cosine, .*. Received: 'square'"),
        (
            lambda: schedules.timestep_grid(schedules.constant(10), 11),
            r"`num_steps` must be an integer in 1 .. 10 \(T\). Received: 11",
        ),
        (
            lambda: schedules.timestep_grid(schedules.constant(10), 2.5),
            r"`num_steps` must be an integer in 1 .. 10 \(T\). Received: 2.5",
        ),
        (
            lambda: schedules.timestep_grid(schedules.constant(10), True),
            r"`num_steps` must be an integer in 1 .. 10 \(T\). Received: True",
        ),
        (
            lambda: schedules.timestep_grid(schedules.constant(10), 5, "even"),
            "`spacing` must be one of trailing, linspace, quadratic, karras. Received: 'even'",
        ),
        (lambda: schedules.NoiseSchedule(["a"]), r"`betas` must be a list of numbers. Received: \['a'\]"),
        (
            lambda: schedules.timestep_grid(schedules.constant(10), 0),
            r"`num_steps` must be an integer in 1 .. 10 \(T\). Received: 0",
        ),
    ],
)
def test_unusable_values_are_named(make, text):
    with pytest.raises(InputError, match=text):
        make()


@pytest.mark.parametrize("steps", [0, -1, 2.5, "10", None])
@pytest.mark.parametrize("name", MAKERS)
def test_the_number_of_timesteps_is_a_positive_integer(name, steps):
    with pytest.raises(InputError, match=f"`num_timesteps` must be a positive integer. Received: {steps!r}"):
        MAKERS[name](steps)
