"""Rate and distortion, and the bound in fewer steps, on Gaussian pixels; error rates as in test_likelihood."""

import math

import numpy as np
import pytest
from helpers.closed_form import STANDARD_ERRORS
from helpers.normal_pixels import PIXELS, STD, best_line, closed_form_nats, draw_images, log_mass, make_best

import kddpm
from kddpm import toy
from kddpm.base.errors import InputError
from kddpm.theory import schedules

FINE = schedules.linear(1000)


def bits(model, images, **options):
    return model.bits_per_dim(images, **{"clip": False, "verbose": False, **options})


# Rate and distortion.


@pytest.fixture(scope="module")
def gaussian():
    """4,096 pixels N(0.1, 0.2^2) by the exact chain in 60 steps, and its noise variances."""
    schedule = schedules.linear(60, 1e-3, 0.3)
    network = toy.GaussianNetwork((8, 8, 1), schedule, 0.1, 0.2)
    model = kddpm.DiffusionModel(network, schedule, weighting="hybrid", variance="learned")
    return bits(model, toy.gaussian_images(64, (8, 8, 1), 0.1, 0.2)), np.cumprod(1 - schedule.betas)


def test_distortions_are_the_deviations_of_x0_given_xt(gaussian):
    """std^2 n^2 / w of every t, in grey levels; 4,096 squares know their root to 1.1 %."""
    result, kept = gaussian
    expected = 127.5 * np.sqrt(0.2**2 * (1 - kept) / (kept * 0.2**2 + 1 - kept))
    np.testing.assert_allclose(result.distortions, expected, rtol=STANDARD_ERRORS / math.sqrt(2 * 4096))


def test_rates_are_the_information_in_xt(gaussian):
    """The exact chain pays I(x_0; x_t) = log2(1 + SNR std^2) / 2, and what x_T differs from N(0, 1), in any T.

    The terms scatter as the images' squares do: 2.2 % of the 0.0 to 5 bits.
    """
    result, kept = gaussian
    w = kept[-1] * 0.2**2 + 1 - kept[-1]
    last = (kept[-1] * 0.1**2 + w - 1 - math.log(w)) / 2 / math.log(2)
    expected = np.log2(1 + kept / (1 - kept) * 0.2**2) / 2 + last
    np.testing.assert_allclose(result.rates, expected, rtol=0.05, atol=1e-4)
    np.testing.assert_allclose(result.rates[-1], result.prior, rtol=1e-12)
    assert result.rates[0] == pytest.approx(result.total - result.terms[0], rel=1e-12)


def test_many_steps_reach_the_rate_distortion_function_from_above():
    """R(D) = log2(std / D) of Gaussian data: with the posterior's variance a chain needs many steps to come near."""
    images, excess = draw_images(8, (16, 16, 1)), []
    for schedule in (FINE.respace(schedules.timestep_grid(FINE, n, "quadratic")) for n in (30, 100, 1000)):
        schedule = schedules.NoiseSchedule(schedule.betas)
        result = bits(make_best(schedule, image_shape=(16, 16, 1)), images)
        rates, distortions = result.rates, result.distortions / 127.5
        middle = (distortions > 0.1 * STD) & (distortions < 0.9 * STD)
        excess.append(np.mean(rates[middle] - np.log2(STD / distortions[middle])))
    assert excess[0] > 2 * excess[1] > 4 * excess[2] > 0 and excess[2] < 0.03, excess


def test_a_term_that_was_not_drawn_leaves_no_rate_below_it():
    result = bits(make_best(schedules.quadratic(20, 1e-3, 0.6)), draw_images(2, (8, 8, 1)), num_terms=3)
    first = np.flatnonzero(np.isnan(result.terms)).max()
    assert np.isfinite(result.rates[first:]).all() and np.isnan(result.rates[:first]).all()
    assert np.array_equal(np.isnan(result.distortions), np.isnan(result.terms))


def test_clipping_is_in_the_distortion():
    model, images = make_best(schedules.quadratic(20, 1e-3, 0.6), mean=0.9), draw_images(8, (8, 8, 1), mean=0.9)
    assert bits(model, images, clip=True).distortions[3] < bits(model, images).distortions[3]


# Fewer steps.


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("num_steps", [25, [0, 1, 5, 20, 60, 150, 300, 600, 999]], ids=["number", "list"])
def test_fewer_steps_have_the_bound_of_the_respaced_chain(variance, num_steps):
    """The network knows the steps by their names in the whole schedule; 5 standard errors are 0.05 bits or less."""
    kept = schedules.timestep_grid(FINE, 25) if num_steps == 25 else num_steps
    schedule = FINE.respace(kept)
    images = draw_images(60, (32, 32, 1))
    result = bits(make_best(FINE, image_shape=(32, 32, 1), variance=variance), images, num_steps=num_steps)
    by_value = closed_form_nats(schedule, *best_line(schedule.alpha_bars), variance).sum(axis=1) / math.log(2)
    difference = result.images - by_value[images].mean(axis=(1, 2, 3))
    error = difference.std(ddof=1) / math.sqrt(60)
    assert abs(difference.mean()) < STANDARD_ERRORS * error and error < 0.01 * result.total
    assert len(result.terms) == len(kept) == len(result.rates) == len(result.distortions)


@pytest.mark.parametrize("prediction", ["x0", "mu", "v"])
def test_fewer_steps_are_the_same_whatever_the_network_predicts(prediction):
    """mu is the mean of a step of the whole schedule, which the respaced chain has not."""
    images = draw_images(4, (8, 8, 1))
    ours, eps = (bits(make_best(FINE, kind, variance="large"), images, num_steps=20) for kind in (prediction, "eps"))
    np.testing.assert_allclose(ours.images, eps.images, rtol=1e-5)


def test_fewer_steps_go_with_trajectories():
    """A chain of two steps, whose p(x_0) is a normal of one: `test_trajectories` has the rest."""
    images = np.full((200, 1, 1, 1), 150, np.uint8)
    model = make_best(FINE, image_shape=(1, 1, 1), variance="large")
    result = bits(model, images, num_steps=[100, 999], num_trajectories=20)
    schedule = FINE.respace([100, 999])
    slope, offset = best_line(schedule.alpha_bars)
    c0, ct, variance = schedule.posterior_coefs_x0, schedule.posterior_coefs_xt, schedule.posterior_variances[1]
    gain, shift = c0[1] * slope[1] + ct[1], c0[1] * offset[1]
    at_first = shift, gain**2 + schedule.betas[1]  # mean and variance of x_t at t = 0
    mean = slope[0] * at_first[0] + offset[0]
    exact = -log_mass(PIXELS[150], mean, math.sqrt(slope[0] ** 2 * at_first[1] + variance))
    shares = np.exp(exact - result.trajectories * math.log(2))
    assert abs(shares.mean() - 1) < STANDARD_ERRORS * shares.std() / math.sqrt(shares.size) < 0.2


def test_all_steps_are_the_bound_itself():
    model, images = make_best(schedules.quadratic(20, 1e-3, 0.6)), draw_images(3, (8, 8, 1))
    np.testing.assert_array_equal(bits(model, images, num_steps=20).images, bits(model, images).images)


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [
        (21, "`num_steps` must be an integer in 1 .. 20 .T.. Received: 21"),
        ([0, 5], "`num_steps` must end at T - 1 = 19"),
        ([5, 5, 19], "`num_steps` must be increasing integers"),
    ],
)
def test_steps_that_the_schedule_has_not_are_refused(num_steps, expected):
    with pytest.raises(InputError, match=expected):
        bits(make_best(schedules.quadratic(20, 1e-3, 0.6)), draw_images(2, (8, 8, 1)), num_steps=num_steps)
