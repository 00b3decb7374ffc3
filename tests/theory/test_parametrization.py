import itertools

import numpy as np
import pytest
from helpers.places import GOLDENS

from kddpm.base.errors import InputError
from kddpm.theory import objectives, parametrization, schedules
from kddpm.theory.parametrization import Objective
from kddpm.theory.process import GaussianDiffusion

GOLDEN = np.load(GOLDENS / "tables_mpmath.npz")
SCHEDULES = {
    **{name: schedules.by_name(name) for name in schedules.BY_NAME},
    "respaced": schedules.cosine().respace([0, 3, 4, 99, 500, 998, 999]),
    "one step": schedules.NoiseSchedule([0.995]),
    "zero terminal": schedules.zero_terminal_snr(schedules.linear()),
}
PREDICTIONS = parametrization.PREDICTIONS


def of_every_t(schedule, size=3, count=3):
    """t = 0 .. T - 1, and `count` arrays of normal numbers (T, size)."""
    random = np.random.default_rng(0)
    steps = schedule.num_timesteps
    return np.arange(steps), *(random.standard_normal((steps, size)) for _ in range(count))


def without_eps(name):
    """eps is no prediction where alpha_bar = 0."""
    return [p for p in PREDICTIONS if p != "eps" or name != "zero terminal"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_coefficients_are_the_named_conversions(name):
    schedule = SCHEDULES[name]
    diffusion = GaussianDiffusion(schedule)
    t, x_t, output = of_every_t(schedule, count=2)
    for prediction in without_eps(name):
        x_0 = np.array(diffusion.x0_from(x_t, t, output, prediction))
        a, b = (table[:, None] for table in parametrization.x0_coefficients(schedule, prediction))
        np.testing.assert_allclose(a * x_t + b * output, x_0, rtol=1e-12, atol=1e-12 * np.abs(x_0).max())
        eps = np.array(diffusion.eps_from_x0(x_t, t, x_0))
        a, b = (table[:, None] for table in parametrization.eps_coefficients(schedule, prediction))
        # eps_from_x0 subtracts numbers as large as x_0 at t = 0 and divides by the root of 1 - alpha_bar.
        np.testing.assert_allclose(a * x_t + b * output, eps, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_one_x0_has_one_vlb_loss_whatever_it_is_said_in(name, variance):
    """The network's x_0' written as each of them; the loss is (c0 (x_0 - x_0'))^2 / (2 sigma^2) in all of them."""
    schedule = SCHEDULES[name]
    diffusion = GaussianDiffusion(schedule)
    t, x_0, noise, predicted = of_every_t(schedule)
    x_t = diffusion.q_sample(x_0, t, noise)
    sigma_squared = np.exp(parametrization.log_variances(schedule, variance))
    expected = schedule.posterior_coefs_x0**2 * np.mean((x_0 - predicted) ** 2, axis=1) / (2 * sigma_squared)
    for prediction in without_eps(name):
        output = diffusion.from_x0(x_t, t, predicted, prediction)
        loss = objectives.training_loss(diffusion, x_t, t, x_0, noise, output, Objective(prediction, "vlb", variance))
        # The cosine's eps at T - 1 holds x_0 times 5e-5, and loses those digits.
        np.testing.assert_allclose(loss, expected, rtol=1e-9, err_msg=prediction)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "one step"])
def test_vlb_loss_is_the_bound_up_to_a_constant_of_t(name, variance):
    """None for the small variance; for the large one r - log r - 1 over 2, r the ratio of the two variances."""
    schedule = SCHEDULES[name]
    diffusion = GaussianDiffusion(schedule)
    t, x_0, noise, predicted = of_every_t(schedule)
    x_t = diffusion.q_sample(x_0, t, noise)
    ratio = schedule.posterior_variances[1:] / schedule.betas[1:]
    constant = 0 if variance == "small" else (ratio - np.log(ratio) - 1) / 2
    for prediction in without_eps(name):
        output = diffusion.from_x0(x_t, t, predicted, prediction)
        loss = objectives.training_loss(diffusion, x_t, t, x_0, noise, output, Objective(prediction, "vlb", variance))
        bound = objectives.bound_term_nats(diffusion, x_t, t, x_0, output, Objective(prediction, variance=variance))
        # Where the ratio is nearly 1 the constant loses digits: of 1e-16 nats, all of them.
        np.testing.assert_allclose(bound[1:], loss[1:] + constant, rtol=1e-9, atol=1e-15, err_msg=prediction)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "zero terminal"])
def test_eps_weight_of_the_bound_is_that_of_ho_et_al(name):
    schedule = SCHEDULES[name]
    for variance, sigma_squared in (("small", schedule.posterior_variances), ("large", schedule.betas)):
        weights = parametrization.loss_weights(schedule, Objective("eps", "vlb", variance))
        ho = schedule.betas**2 / (2 * schedule.alphas * schedule.one_minus_alpha_bars)
        np.testing.assert_allclose(weights[1:], ho[1:] / sigma_squared[1:], rtol=1e-11)
    assert parametrization.loss_weights(schedule, Objective("eps", "vlb"))[0] > 0, (
        "at t = 0 training has a weight where the bound has the decoder"
    )


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_eps_weight_of_the_bound_has_the_digits_of_mpmath(name):
    weights = parametrization.loss_weights(schedules.by_name(name, 1000), Objective("eps", "vlb", "small"))
    np.testing.assert_allclose(weights[1:], GOLDEN[f"{name}/eps_loss_weight"][1:], rtol=1e-11)


@pytest.mark.parametrize("name", SCHEDULES)
def test_min_snr_is_that_of_hang_et_al(name):
    """But for x0, v, edm and velocity the minimum of the SNR and 5 is at least 0.1."""
    schedule = SCHEDULES[name]
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = schedule.alpha_bars / schedule.one_minus_alpha_bars
        low, floored = np.minimum(snr, 5), np.clip(snr, 0.1, 5)
        to_mu = schedule.posterior_coefs_x0
        expected = {"eps": low / snr, "x0": floored, "v": floored / (snr + 1), "mu": low / to_mu**2}
        expected["edm"] = floored / (4 + snr)  # c_out^2, of sigma_data = 0.5
        expected["velocity"] = floored / (1 + np.sqrt(snr)) ** 2  # u^2
    for prediction in without_eps(name):
        weights = parametrization.loss_weights(schedule, Objective(prediction, "min_snr"))
        np.testing.assert_allclose(weights, expected[prediction], rtol=1e-11, err_msg=prediction)
        assert np.all(parametrization.loss_weights(schedule, Objective(prediction, "simple")) == 1)
    if schedule.num_timesteps == 1000:
        assert snr.min() < 5 < snr.max(), "both sides of the minimum are met"


@pytest.mark.parametrize("name", SCHEDULES)
def test_variances(name):
    schedule = SCHEDULES[name]
    small, large = (np.exp(parametrization.log_variances(schedule, v)) for v in ("small", "large"))
    low, high = np.exp(parametrization.log_variance_range(schedule))
    np.testing.assert_allclose(small[1:], schedule.posterior_variances[1:], rtol=1e-12)
    np.testing.assert_allclose(large[1:], schedule.betas[1:], rtol=1e-12)
    assert small[0] == large[0] == (small[1] if len(small) > 1 else large[0]), "t = 1 stands in"
    assert np.all(np.isfinite(np.log(small))) and np.all(np.isfinite(np.log(large)))
    np.testing.assert_array_equal(low, small)
    np.testing.assert_allclose(high, schedule.betas, rtol=1e-12)


def test_every_combination_is_accepted_or_refused_with_a_reason():
    names = (parametrization.PREDICTIONS, parametrization.WEIGHTINGS, parametrization.VARIANCES, (False, True))
    for prediction, weighting, variance, zero in itertools.product(*names):
        learned = (weighting in ("vlb", "hybrid")) if variance == "learned" else weighting != "hybrid"
        schedule = SCHEDULES["zero terminal" if zero else "linear"]
        without_weight = zero and (prediction, weighting) == ("mu", "min_snr")
        if learned and not (zero and prediction == "eps") and not without_weight:
            Objective(prediction, weighting, variance).check_schedule(schedule)
        else:
            with pytest.raises(InputError, match="^`(weighting|variance|prediction)` .*Received: ") as caught:
                Objective(prediction, weighting, variance).check_schedule(schedule)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["prediction", "weighting", "variance", "timestep_sampling"])
def test_check_refuses_an_unknown_name(name):
    good = {"prediction": "eps", "weighting": "simple", "variance": "small", "timestep_sampling": "uniform"}
    assert Objective() == Objective(**good)
    with pytest.raises(InputError, match=f"`{name}` must be one of .*Received: 'epsilon'"):
        Objective(**{**good, name: "epsilon"})


def test_tables_refuse_an_unknown_name():
    schedule = SCHEDULES["linear"]
    with pytest.raises(
        InputError, match="`prediction` must be one of eps, x0, mu, v, edm, velocity. Received: 'score'"
    ):
        parametrization.x0_coefficients(schedule, "score")
    with pytest.raises(InputError, match="`prediction` must be one of .*Received: 'score'"):
        parametrization.eps_coefficients(schedule, "score")
    with pytest.raises(InputError, match="`weighting` must be simple, vlb or min_snr for a table. Received: 'hybrid'"):
        parametrization.loss_weights(schedule, Objective("eps", "hybrid", "learned"))
    with pytest.raises(InputError, match='`variance` must be "small" or "large" for a table. Received: \'learned\''):
        parametrization.loss_weights(schedule, Objective("eps", "vlb", "learned"))
