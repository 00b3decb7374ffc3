import dataclasses
import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.closed_form import (
    STANDARD_ERRORS,
    assert_moments,
    chain_moments,
    draw,
    gaussian_denoiser,
    mixture_x0,
    walked,
)
from helpers.networks import LEARNED
from helpers.places import GOLDENS

from kddpm.base.errors import InputError
from kddpm.sampling import noise, samplers, walks
from kddpm.sampling.inversion import Inversion
from kddpm.sampling.samplers import DDIM, Ancestral, DPMSolver, Heun, PredictorCorrector
from kddpm.theory import parametrization, schedules
from kddpm.theory.parametrization import Objective

GOLDEN = np.load(GOLDENS / "sampler_trajectories.npz")
# In the rows fixed_large/50 diffusers adds noise at the last step: see goldens/README.md.
TRAJECTORIES = [key[:-4] for key in GOLDEN if key.endswith("/x_0") and "fixed_large/50" not in key]

linear_100 = schedules.linear(100, 1e-3, 0.2)  # T = 1000 in a tenth of the steps
zero_snr_100 = schedules.zero_terminal_snr(linear_100)
EVERY_KIND = [
    Ancestral("small"),
    Ancestral("large"),
    DDIM(0.0),
    DDIM(0.5),
    DDIM(1.0),
    DPMSolver(),
    Heun(),
    PredictorCorrector(2),
    Inversion(),
]


def sampler_of(trajectory):
    kind, option, _, *clip = trajectory.split("/")
    if kind == "ddim":
        return DDIM(float(option.removeprefix("eta")), clip=False)
    return Ancestral(option.removeprefix("fixed_"), clip=clip == ["clip"])


@pytest.mark.parametrize("trajectory", TRAJECTORIES)
def test_trajectories_of_diffusers(trajectory, monkeypatch):
    schedule, stored = schedules.linear(1000), tf.constant(GOLDEN["noise"], tf.float32)
    table = samplers.step_table(sampler_of(trajectory), schedule, int(trajectory.split("/")[2]))
    np.testing.assert_array_equal(table.timesteps, GOLDEN[f"{trajectory}/timesteps"])
    used = GOLDEN[f"{trajectory}/noises_used"]
    # Where its last step is not t = 0, diffusers draws there too, and multiplies by 0 or 1e-10.
    assert np.count_nonzero(table.rows.noise_std) == used - bool(used and table.timesteps[-1])

    def row(seeds, stream, step, shape):
        assert stream == noise.STEP_STREAM and shape == (4,)
        return tf.gather(stored, step)

    monkeypatch.setattr(noise, "normal", row)
    denoiser = gaussian_denoiser(schedule, GOLDEN["mu"], GOLDEN["s"])
    x_0 = walked(denoiser, table, GOLDEN["x_T"], range(8), "graph")
    np.testing.assert_allclose(x_0, GOLDEN[f"{trajectory}/x_0"], rtol=0, atol=3e-5)


@pytest.mark.parametrize("kept", [range(100), range(9, 100, 10)], ids=len)
@pytest.mark.parametrize(
    "sampler",
    [
        Ancestral("small", clip=False),
        Ancestral("large", clip=False),
        "a sequence of variances",
        *(DDIM(eta, clip=False) for eta in (0.0, 0.5, 1.0)),
        PredictorCorrector(1, clip=False),
        PredictorCorrector(2, 0.3, clip=False),
    ],
    ids=str,
)
def test_gaussian_data_come_back_with_the_moments_of_the_chain(sampler, kept):
    if isinstance(sampler, str):
        sampler = Ancestral(np.linspace(1e-3, 0.05, len(kept)), clip=False)
    table = samplers.step_table(sampler, linear_100, len(kept))
    samples = draw(gaussian_denoiser(linear_100, 0.3, 0.2), table, range(64), (32, 32, 1), mode="xla")
    assert_moments(samples, *chain_moments(sampler, linear_100.betas, kept, 0.3, 0.2))


@pytest.mark.parametrize("sampler", [Ancestral("small", clip=False), DDIM(0.0, clip=False)], ids=str)
def test_two_modes_are_recovered(sampler):
    """0.3 N(-1, 0.2^2) + 0.7 N(1, 0.2^2) in 500 of 1000 steps.

    On top of the standard errors, 500 steps may shift weights and means by 0.003 and change a width by 4 %; four
    times the sample showed 0.002 and 3.6 % at most.
    """
    schedule, weight, std = schedules.linear(1000), 0.7, 0.2
    table = samplers.step_table(sampler, schedule, 500, Objective("x0"))
    samples = draw(mixture_x0(schedule, {-1: 1 - weight, 1: weight}, std), table, range(64), (32, 32, 1), mode="xla")
    above = samples > 0
    allowed = STANDARD_ERRORS * math.sqrt(weight * (1 - weight) / samples.size) + 0.003
    assert abs(np.mean(above) - weight) < allowed
    for mode, part in ((-1, samples[~above]), (1, samples[above])):
        assert abs(np.mean(part) - mode) < STANDARD_ERRORS * std / math.sqrt(part.size) + 0.003
        assert abs(np.std(part) - std) < STANDARD_ERRORS * std / math.sqrt(2 * part.size) + 0.04 * std


@pytest.mark.parametrize("corrections", [1, 3])
def test_langevin_rows_keep_the_marginal(corrections):
    """Its mean stays where it is and its variance V grows to V + delta^2 / V, the error of a finite step."""
    respaced = linear_100.respace([9, 50, 99])
    sampler = PredictorCorrector(corrections, 0.3, clip=False)
    table, denoiser = samplers.step_table(sampler, linear_100, [9, 50, 99]), gaussian_denoiser(linear_100, 0.3, 0.2)
    count = 1 + corrections
    assert table.num_rows == 3 * count - corrections
    assert table.timesteps.tolist() == [99, *[50] * count, *[9] * count]
    for row in set(range(table.num_rows)) - {0, count, 2 * count}:
        level = 1 - row // count  # into the respaced schedule
        alpha_bar, marginal_mean = respaced.alpha_bars[level], math.sqrt(respaced.alpha_bars[level]) * 0.3
        marginal = alpha_bar * 0.2**2 + 1 - alpha_bar
        x = tf.constant([[[[marginal_mean]], [[marginal_mean + 1]]]], tf.float32)
        after = np.ravel(walks.next_state(table, x, denoiser(x, table.timesteps[[row]]), row))
        delta = 2 * respaced.alphas[level] * 0.3**2 * (1 - alpha_bar)
        assert after[0] == pytest.approx(marginal_mean, rel=1e-5)
        variance = (after[1] - after[0]) ** 2 * marginal + table.rows.noise_std[row] ** 2
        assert variance == pytest.approx(marginal + delta**2 / marginal, rel=1e-5)


@pytest.mark.parametrize("kept", [[0, 1, 2, 99], [9, 50, 99], range(100)], ids=len)
def test_variances_are_those_between_the_kept_steps(kept):
    """The large one is that of q(x_t | x_prev); the small one has the precision of prior and likelihood together."""
    alphas = 1 - linear_100.betas
    small = samplers.step_table(Ancestral("small"), linear_100, kept).rows.noise_std ** 2
    large = samplers.step_table(Ancestral("large"), linear_100, kept).rows.noise_std ** 2
    walk = list(zip(kept[:0:-1], kept[-2::-1], strict=True))
    assert len(small) == len(large) == len(walk) + 1
    for i, (t, t_prev) in enumerate(walk):
        prior, alpha = 1 - np.prod(alphas[: t_prev + 1]), np.prod(alphas[t_prev + 1 : t + 1])
        assert large[i] == pytest.approx(1 - alpha, rel=1e-9)
        assert small[i] == pytest.approx(1 / (1 / prior + alpha / (1 - alpha)), rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_eta_leads_from_ddim_to_the_ancestral_sampler(eta):
    """Song et al. 2021, section 4.1: sigma is eta times that of algorithm 2, and eta = 1 is algorithm 2."""
    ddim, ancestral = (samplers.step_table(s, linear_100, 10) for s in (DDIM(eta), Ancestral("small")))
    np.testing.assert_allclose(ddim.rows.noise_std, eta * ancestral.rows.noise_std, rtol=1e-12)
    same = [
        np.allclose(getattr(ddim.rows, column), getattr(ancestral.rows, column), rtol=1e-9, atol=1e-12)
        for column in ("from_x0", "from_xt")
    ]
    assert same == [eta == 1] * 2


def test_a_sequence_of_variances_counts_from_the_data():
    table = samplers.step_table(Ancestral((9.0, 1.0, 4.0)), schedules.linear(3))
    assert table.rows.noise_std.tolist() == [2.0, 1.0, 0.0] and table.timesteps.tolist() == [2, 1, 0]


def test_the_variance_is_the_models_where_the_sampler_leaves_it():
    for variance in ("small", "large"):
        of_the_model = samplers.step_table(Ancestral(), linear_100, 10, Objective(variance=variance))
        assert of_the_model.fingerprint == samplers.step_table(Ancestral(variance), linear_100, 10).fingerprint
    assert samplers.step_table(Ancestral("large"), linear_100, 10, LEARNED).learned_variance is False
    assert samplers.step_table(PredictorCorrector(), linear_100, 10, LEARNED).learned_variance is True


@pytest.mark.parametrize("sampler", [*EVERY_KIND, Heun(churn=50.0)], ids=str)
def test_every_table_is_finite(sampler):
    """Also where nothing is left of the image at the end, and where there is one step."""
    for name in schedules.BY_NAME:
        for steps in (2, 3, 10, 100, 1000):
            plain = schedules.by_name(name, steps)
            for schedule in (plain, schedules.zero_terminal_snr(plain)):
                for num_steps in {1, 2, steps // 2, steps}:
                    assert_finite(sampler, schedule, num_steps, "v")


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.linear(1),
        schedules.linear(10_000),
        schedules.cosine(10_000),
        schedules.constant(1000, 0.12),  # alpha_bar_T = 1e-56
        schedules.constant(1000, 0.3),  # alpha_bar_T = 1e-155
        schedules.constant(3000, 0.5),  # alpha_bar is 0 in float64 from t = 1075
        schedules.zero_terminal_snr(schedules.constant(1000, 0.3)),
        schedules.linear(1000, 1e-9, 1e-8),
    ],
    ids=str,
)
@pytest.mark.parametrize("sampler", [*EVERY_KIND, Heun(churn=50.0)], ids=str)
def test_every_table_is_finite_in_float32_where_a_schedule_is_accepted(sampler, schedule):
    for prediction, spacing in itertools.product(parametrization.PREDICTIONS, schedules.SPACINGS):
        try:
            Objective(prediction).check_schedule(schedule)
        except InputError:
            continue
        sampler = dataclasses.replace(sampler, spacing=spacing)
        for num_steps in {1, min(7, schedule.num_timesteps), min(50, schedule.num_timesteps)}:
            assert_finite(sampler, schedule, num_steps, prediction)


def assert_finite(sampler, schedule, num_steps, prediction):
    """Whether every coefficient of the table is a number in float32."""
    if schedule.zero_terminal_snr and isinstance(sampler, Inversion):
        return
    table = samplers.step_table(sampler, schedule, num_steps, Objective(prediction))
    columns = [*vars(table.rows).values(), table.x0_from_xt, table.x0_from_output]
    columns = np.array([column for column in columns if column is not None])
    with np.errstate(under="ignore"):
        assert np.all(np.isfinite(columns.astype(np.float32))), (schedule, num_steps, prediction)


@pytest.mark.parametrize("strength", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("sampler", EVERY_KIND[:-1], ids=str)
def test_a_strength_takes_the_last_steps(sampler, strength):
    whole, part = (samplers.step_table(sampler, linear_100, 10, Objective("v"), strength=s) for s in (1.0, strength))
    rows = part.num_rows
    assert part.timesteps.tolist() == whole.timesteps[-rows:].tolist()
    away = np.abs(np.append(-1, whole.timesteps) + 1 - 100 * strength)
    assert part.timesteps[0] + 1 - 100 * strength in (min(away), -min(away)), "t / T, as near as the steps come"
    assert sampler.spacing != "trailing" or len(set(part.timesteps)) == 10 * strength
    first = int(isinstance(sampler, DPMSolver))  # whose first step remembers nothing
    for name in ("from_x0", "from_xt", "noise_std"):
        ours, theirs = (getattr(table.rows, name)[-rows:][first:] for table in (part, whole))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-15)


def test_a_strength_of_steps_of_ones_own():
    assert samplers.step_table(DDIM(), linear_100, [3, 5, 50, 99], strength=0.5).timesteps.tolist() == [50, 5, 3]
    assert samplers.step_table(DDIM(), linear_100, [3, 5, 50, 99], strength=0.2).timesteps.tolist() == [5, 3]
    assert samplers.step_table(DDIM(), linear_100, strength=0.02).timesteps.tolist() == [1, 0]


def test_names_and_steps():
    assert samplers.by_name("ancestral", variance="large") == Ancestral("large")
    assert samplers.by_name("ddim", eta=0.5, clip=False) == DDIM(0.5, clip=False)
    assert samplers.by_name("heun", clip="dynamic", spacing="karras") == Heun(clip="dynamic", spacing="karras")
    assert samplers.by_name("predictor_corrector", corrections=2, snr=0.1) == PredictorCorrector(2, 0.1)
    assert samplers.by_name(DDIM(0.25)) == DDIM(0.25)
    assert {samplers.name_of(kind()): kind for kind in samplers.BY_NAME.values()} == samplers.BY_NAME
    assert samplers.step_table(DDIM(), linear_100).timesteps.tolist() == list(range(99, -1, -1))
    assert samplers.step_table(DDIM(), linear_100, np.int64(3)).timesteps.tolist() == [99, 66, 32]
    assert samplers.step_table(DDIM(), linear_100, 3).num_rows == 3
    for spacing in schedules.SPACINGS:
        grid = schedules.timestep_grid(linear_100, 7, spacing)
        assert samplers.step_table(DDIM(spacing=spacing), linear_100, 7).timesteps.tolist() == grid[::-1].tolist()
    np.testing.assert_array_equal(
        walks.initial_noise(tf.range(2), [3, 3]), noise.normal(tf.range(2), noise.INITIAL_STREAM, 0, (3, 3))
    )


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: samplers.by_name("euler"),
            "`sampler` must be one of ancestral, ddim, dpm_solver, heun, predictor_corrector, or a sampler. "
            "Received: 'euler'",
        ),
        (
            lambda: Ancestral("medium"),
            '`variance` must be "small", "large", "learned" or a sequence. Received: \'medium\'',
        ),
        (lambda: Ancestral((0.1, -0.2)), r"`variance` must hold finite numbers >= 0. Received: \(0.1, -0.2\)"),
        (lambda: Ancestral((0.1, math.nan)), r"`variance` must hold finite numbers >= 0. Received: \(0.1, nan\)"),
        (lambda: Ancestral((0.1, math.inf)), r"`variance` must hold finite numbers >= 0. Received: \(0.1, inf\)"),
        (
            lambda: samplers.step_table(Ancestral((0.1, 0.2)), linear_100, 3),
            "`variance` must have one entry for each of 3 steps. Received: 2 entries",
        ),
        (lambda: Ancestral(0.5), "`variance` must be a name or a sequence of numbers. Received: 0.5"),
        (lambda: samplers.step_table(DDIM(), linear_100, 2.5), r"`num_steps` must be an integer .* Received: 2.5"),
        (lambda: DDIM(-0.1), r"`eta` must lie in \[0, 1\]. Received: -0.1"),
        (lambda: DDIM(1.1), r"`eta` must lie in \[0, 1\]. Received: 1.1"),
        (lambda: DDIM(math.nan), "`eta` must be a number. Received: nan"),
        (lambda: DDIM("a"), "`eta` must be a number. Received: 'a'"),
        (lambda: DDIM(None), "`eta` must be a number. Received: None"),
        (
            lambda: samplers.step_table(DDIM(), linear_100, 101),
            r"`num_steps` must be an integer in 1 .. 100 \(T\). .* 101",
        ),
        (lambda: samplers.step_table(DDIM(), linear_100, 0), r"`num_steps` must be an integer in 1 .. 100 \(T\). .* 0"),
        (
            lambda: samplers.step_table(DDIM(), linear_100, [0, 50, 98]),
            "`num_steps` must end at T - 1 = 99, where sampling starts. Received: a last step of 98",
        ),
        (lambda: samplers.step_table(DDIM(), linear_100, [50, 0, 99]), "`num_steps` must be increasing integers"),
        (lambda: samplers.step_table(DDIM(), linear_100, [50, 100]), "`num_steps` must lie in 0 .. 99"),
        (lambda: samplers.step_table(DDIM(), linear_100, []), "`num_steps` must be increasing integers"),
        (lambda: samplers.step_table(DDIM(), linear_100, "20"), "`num_steps` must be an integer in 1 .. 100"),
        (lambda: samplers.step_table(DDIM(), linear_100, np.array(20.0)), "`num_steps` must be an integer in 1 .. 100"),
        (lambda: DDIM(clip="sometimes"), "`clip` must be True, False or \"dynamic\". Received: 'sometimes'"),
        (lambda: Heun(spacing="even"), "`spacing` must be one of trailing, linspace, .*. Received: 'even'"),
        (lambda: PredictorCorrector(0), "`corrections` must be an integer of at least 1. Received: 0"),
        (lambda: PredictorCorrector(1.5), "`corrections` must be an integer of at least 1. Received: 1.5"),
        (lambda: PredictorCorrector(snr=0.0), "`snr` must lie between 0 and 0.7. Received: 0.0"),
        (lambda: PredictorCorrector(snr=0.8), "`snr` must lie between 0 and 0.7. Received: 0.8"),
        (lambda: PredictorCorrector(snr=math.nan), "`snr` must be a number. Received: nan"),
        (lambda: Inversion(0), "`iterations` must be an integer of at least 1. Received: 0"),
        (lambda: Inversion(2.5), "`iterations` must be an integer of at least 1. Received: 2.5"),
        (lambda: Inversion(clip="sometimes"), "`clip` must be True, False or \"dynamic\". Received: 'sometimes'"),
        (lambda: Inversion(spacing="even"), "`spacing` must be one of trailing, linspace, .*. Received: 'even'"),
        (
            lambda: samplers.step_table(Inversion(), zero_snr_100, 10, Objective("v")),
            r"must not end at alpha_bar = 0 \(zero terminal SNR\)",
        ),
        (
            lambda: samplers.step_table(Ancestral("learned"), linear_100, 10),
            "`variance` learned needs a model that learned one. Received: a model with 'small'",
        ),
        (
            lambda: samplers.step_table(DDIM(), linear_100, 10, Objective("score")),
            "`prediction` must be one of eps, x0, mu, v, edm, velocity. Received: 'score'",
        ),
    ],
)
def test_unusable_values_are_named(make, text):
    with pytest.raises(InputError, match=text):
        make()


def test_a_sampler_is_changed_by_options():
    assert samplers.by_name(DDIM(clip=False), eta=0.5) == DDIM(0.5, clip=False)
    assert PredictorCorrector(np.int64(2), np.float32(0.25)) == PredictorCorrector(2, 0.25)
    assert type(DDIM(np.float32(0.5)).eta) is float


def test_one_variance_a_step_serves_the_last_steps_too():
    each = tuple(np.linspace(0.1, 0.9, 10))
    whole, part = (samplers.step_table(Ancestral(each), linear_100, 10, strength=strength) for strength in (1.0, 0.5))
    np.testing.assert_array_equal(part.rows.noise_std, whole.rows.noise_std[-5:])
    with pytest.raises(InputError, match="`variance` must have one entry for each of 10 steps. Received: 9 entries"):
        samplers.step_table(Ancestral(each[1:]), linear_100, 10, strength=0.5)


def test_what_does_not_paint_is_no_sampler():
    with pytest.raises(TypeError, match="abstract"):
        samplers.Sampler()
    with pytest.raises(InputError, match="`sampler` must be one of ancestral, .*, or a sampler. Received: Inversion"):
        samplers.by_name(Inversion())


def test_a_walk_with_a_learned_variance_stays_finite_and_in_float32():
    table = samplers.step_table(Ancestral("learned"), linear_100, 10, LEARNED)
    for fraction in (-1e30, -300.0, 300.0, 1e30):
        output = tf.cast(tf.concat([tf.zeros((1, 2, 2, 1)), tf.fill((1, 2, 2, 1), fraction)], -1), tf.bfloat16)
        for index in range(table.num_rows):
            state = walks.next_state(table, tf.zeros((1, 2, 2, 1)), output, index, tf.ones((1, 2, 2, 1)))
            assert state.dtype == tf.float32 and np.all(np.isfinite(state))
