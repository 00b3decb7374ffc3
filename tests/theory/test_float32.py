"""What training computes in float32, at the edges of its range."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from kddpm.base.errors import InputError
from kddpm.theory import objectives, parametrization, schedules
from kddpm.theory.parametrization import Objective
from kddpm.theory.process import GaussianDiffusion

EVERY_KIND = {
    f"{name}, T = {steps}": schedules.by_name(name, steps)
    for name, steps in itertools.product(schedules.BY_NAME, (1, 2, 3, 10, 1000, 10_000))
}
EVERY_KIND |= {f"zero, {name}": schedules.zero_terminal_snr(schedule) for name, schedule in EVERY_KIND.items()}
EVERY_KIND |= {
    "1e-56": schedules.constant(1000, 0.12),
    "1e-155": schedules.constant(1000, 0.3),
    "0 in float64": schedules.constant(3000, 0.5),
    "zero, 1e-155": schedules.zero_terminal_snr(schedules.constant(1000, 0.3)),
    "little noise": schedules.linear(1000, 1e-9, 1e-8),
    "respaced": schedules.constant(1000, 0.3).respace([0, 100, 999]),
    "exponential": schedules.from_alpha_bar(lambda u: np.exp(-700 * u)),
}


def accepted(objective, schedule):
    """Whether a model takes both."""
    try:
        objective.check_schedule(schedule)
    except InputError:
        return False
    return True


def every_objective():
    """Every combination that means something."""
    for chosen in itertools.product(parametrization.PREDICTIONS, parametrization.WEIGHTINGS, parametrization.VARIANCES):
        try:
            yield Objective(*chosen)
        except InputError:
            continue


@pytest.mark.parametrize("name", EVERY_KIND)
def test_every_weight_is_a_positive_number_wherever_a_schedule_is_accepted(name):
    schedule, taken = EVERY_KIND[name], 0
    for objective in every_objective():
        if objective.variance == "learned" or not accepted(objective, schedule):
            continue
        weights = parametrization.loss_weights(schedule, objective).astype(np.float32)
        assert np.all(np.isfinite(weights) & (weights > 0)), objective
        taken += 1
    assert taken >= 8, "x0 and v with simple and min_snr and two variances train on any schedule"


@pytest.mark.parametrize("name", [*(name for name in EVERY_KIND if "," not in name), "linear, T = 10000"])
def test_every_loss_and_its_gradient_are_numbers_at_every_end(name):
    """At the first step, the last, and the first at which alpha_bar leaves float32."""
    schedule = EVERY_KIND[name]
    diffusion, rng = GaussianDiffusion(schedule), np.random.default_rng(0)
    underflow = np.argmax(schedule.alpha_bars < 1e-38)
    t = np.unique([0, underflow, schedule.num_timesteps - 1]).astype(np.int32)
    x_0, noise = (rng.normal(size=(len(t), 2, 2, 1)).astype(np.float32) for _ in range(2))
    x_t = diffusion.q_sample(np.clip(x_0, -1, 1), t, noise)
    for objective in every_objective():
        if not accepted(objective, schedule):
            continue
        output = tf.Variable(rng.normal(size=(len(t), 2, 2, objective.out_channels(1))), dtype=tf.float32)
        with tf.GradientTape() as tape:
            loss = objectives.training_loss(diffusion, x_t, t, np.clip(x_0, -1, 1), noise, output, objective)
        assert np.all(np.isfinite(loss)) and np.all(np.isfinite(tape.gradient(loss, output))), objective


@pytest.mark.parametrize("name", ["1e-155", "0 in float64", "exponential"])
@pytest.mark.parametrize("prediction", ["eps", "mu"])
def test_a_prediction_that_float32_cannot_turn_into_x_0_is_refused(prediction, name):
    with pytest.raises(
        InputError, match=r"`prediction` must be x0, v, edm or velocity .* 1 / sqrt\(alpha_bar\)"
    ) as caught:
        Objective(prediction).check_schedule(EVERY_KIND[name])
    assert f"Received: {prediction!r}, and alpha_bar=" in str(caught.value) and "\n" not in str(caught.value)
    Objective(prediction).check_schedule(EVERY_KIND["1e-56"])  # 1e28 fits


@pytest.mark.parametrize(
    ("objective", "name", "t"),
    [
        (Objective("v", "vlb"), "1e-155", 287),
        (Objective("x0", "vlb", "learned"), "1e-155", 287),
        (Objective("mu", "min_snr"), "zero, linear, T = 1000", 999),
    ],
    ids=str,
)
def test_a_weight_of_zero_is_refused(objective, name, t):
    with pytest.raises(InputError, match="`weighting` must be another where .* the weight is 0 in float32") as caught:
        objective.check_schedule(EVERY_KIND[name])
    assert f"in float32 from t={t}. Received: {objective.weighting!r}" in str(caught.value)


def test_a_schedule_without_signal_in_float64_cannot_be_stretched():
    with pytest.raises(InputError, match="`schedule` must leave some signal before its last step"):
        schedules.zero_terminal_snr(EVERY_KIND["0 in float64"])


@pytest.mark.parametrize("name", ["1e-155", "linear, T = 10000", "0 in float64"])
def test_a_few_steps_of_a_strong_schedule_are_a_schedule(name):
    """beta between two kept steps is 1 in float64, but some signal is left, so it is not zero terminal SNR."""
    schedule = EVERY_KIND[name]
    respaced = schedule.respace(schedules.timestep_grid(schedule, 3))
    assert np.all(respaced.betas < 1) and not respaced.zero_terminal_snr
    again = schedules.NoiseSchedule.from_config(respaced.get_config())
    np.testing.assert_array_equal(again.betas, respaced.betas)
