"""The bound on Gaussian pixels, where it has a closed form: its estimators and `bits_per_dim`.

Error rates of the statistical tests: a right estimate is 5 standard errors off with probability 6e-7 (once, when the
seeds were chosen: they are fixed); one that is wrong by 8 of them passes with 1e-3. The tests say how much that is.
"""

import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.closed_form import STANDARD_ERRORS
from helpers.normal_pixels import (
    MEAN,
    PIXELS,
    best_line,
    closed_form_nats,
    draw_images,
    log_mass,
    make_best,
    pixel_probabilities,
)

from kddpm.base.errors import InputError
from kddpm.evaluation import terms
from kddpm.sampling import noise
from kddpm.theory import objectives, schedules
from kddpm.theory.parametrization import Objective
from kddpm.theory.process import GaussianDiffusion


def assert_unbiased(found, expected, largest_standard_error):
    """Estimates (N,) of numbers (N,), the mean of the differences within 5 of its standard errors, which is small."""
    differences = np.array(found) - expected
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    assert abs(differences.mean()) < STANDARD_ERRORS * error and error < largest_standard_error, (
        f"{differences.mean():.5f} off, standard error {error:.5f}"
    )


# The three estimators.


@pytest.mark.parametrize("variance, biases", [("small", (0.16, 0.16, 0.2)), ("large", (0.04, 0.06, 0.1))])
def test_three_estimators_have_the_closed_form_as_their_mean(variance, biases):
    """For a model that is wrong on purpose; `biases`, of some 7 and 5 nats, would be seen.

    Their variances: a t that is drawn adds T times the spread between the terms, which neither (4) nor all terms of (6)
    have; the KL in closed form spares (6) the noise of the x_{t-1} that (5) draws.
    """
    schedule = schedules.quadratic(20, 1e-3, 0.6)
    diffusion, count = GaussianDiffusion(schedule), 10000
    slope, offset = best_line(schedule.alpha_bars)
    slope, offset = 0.95 * slope, offset + 0.02
    images = draw_images(count, (4,))
    x_0 = tf.constant(PIXELS[images])
    expected = closed_form_nats(schedule, slope, offset, variance).sum(axis=1)[images].mean(axis=1)
    random = np.random.default_rng(1)
    noises = random.standard_normal((21, count, 4))

    def reverse(x_t, t):
        predicted = tf.gather(slope, t)[:, None] * x_t + tf.gather(offset, t)[:, None]
        return diffusion.p_mean_log_variance(x_t, t, predicted, None, Objective("x0", variance=variance), clip=False)

    def pair(t, first, second):
        return np.array(objectives.bound_from_pair_nats(diffusion, reverse, x_0, t, noises[first], noises[second]))

    def one(t, first):
        return np.array(objectives.bound_from_one_sample_nats(diffusion, reverse, x_0, t, noises[first]))

    trajectory = np.array(objectives.bound_from_trajectory_nats(diffusion, reverse, x_0, noises[:20]))
    every_pair = sum(pair(np.full(count, t), t, t + 1) for t in range(20)) / 20
    every_one = sum(one(np.full(count, t), t) for t in range(20)) / 20
    assert trajectory.shape == every_one.shape == (count,) and trajectory.dtype == np.float64
    for found, bias in zip((trajectory, every_one, every_pair), biases, strict=True):
        assert_unbiased(found, expected, bias / 8)
    drawn = random.integers(0, 20, count)
    drawn_pair, drawn_one = pair(drawn, 0, 1), one(drawn, 2)
    assert_unbiased(drawn_pair, expected, 0.3)
    assert_unbiased(drawn_one, expected, 0.2)
    spread = [np.std(found - expected) for found in (trajectory, every_one, drawn_one, drawn_pair)]
    assert max(spread[:2]) < spread[2] < spread[3], spread


# Bits per dimension against the truth.

FINE = schedules.linear(1000)


def respaced(steps):
    """`FINE` in fewer steps, with its first two, so that L_0 and its variance stay what they are."""
    return FINE.respace(np.union1d([0, 1], schedules.timestep_grid(FINE, steps, "quadratic")))


@pytest.mark.parametrize("variance, bias", [("small", 0.2), ("large", 0.06)])
def test_bits_are_the_closed_form_whatever_the_network_predicts(variance, bias):
    """`bias`, of 11 and 8 bits, would be seen."""
    schedule, shape = schedules.NoiseSchedule(respaced(20).betas), (32, 32, 1)
    by_value = closed_form_nats(schedule, *best_line(schedule.alpha_bars), variance) / math.log(2)
    images = draw_images(100, shape)

    def bits(prediction, count):
        model = make_best(schedule, prediction, image_shape=shape, variance=variance)
        return model.bits_per_dim(images[:count], clip=False, verbose=False)

    result = bits("eps", 100)
    assert_unbiased(result.images, by_value.sum(axis=1)[images].mean(axis=(1, 2, 3)), bias / 8)
    terms = np.bincount(images.ravel(), minlength=256) / images.size @ by_value
    np.testing.assert_allclose(result.terms, terms[:-1], rtol=0.03)
    assert result.prior == pytest.approx(terms[-1], rel=1e-9)
    first = bits("eps", 10)
    np.testing.assert_allclose(first.images, result.images[:10], rtol=1e-6)
    for prediction in ("x0", "mu", "v"):  # float32: at T - 1 eps and mu say x_0 in their last digits
        other = bits(prediction, 10)
        np.testing.assert_allclose(other.images, first.images, rtol=2e-6)
        np.testing.assert_allclose(other.terms, first.terms, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_more_steps_come_closer_to_the_entropy_and_never_below(variance):
    """In closed form, and as found with a network that is asked by the names of a respaced schedule's steps."""
    probabilities = pixel_probabilities()
    code = -np.log2(probabilities)  # what a value costs whoever knows the probabilities
    images = draw_images(60, (32, 32, 1))
    gaps, found = {}, {}
    for steps in (10, 30, 100, 300, 1000):
        schedule = respaced(steps)
        bits = closed_form_nats(schedule, *best_line(schedule.alpha_bars), variance).sum(axis=1) / math.log(2)
        gaps[steps] = probabilities @ (bits - code)
        if steps < 100:
            model = make_best(schedule, asked=FINE, image_shape=(32, 32, 1), variance=variance)
            result = model.bits_per_dim(images, clip=False, verbose=False)
            found[steps] = result.total - code[images].mean()
            assert abs(found[steps] - gaps[steps]) < STANDARD_ERRORS * result.standard_error
            assert found[steps] > STANDARD_ERRORS * result.standard_error
    for several in (gaps, found):
        assert list(several.values()) == sorted(several.values(), reverse=True), several
    assert gaps[1000] > 0


# What `bits_per_dim` does with a model.

COARSE = schedules.quadratic(20, 1e-3, 0.6)


def bits(model, images, labels=None, **options):
    return model.bits_per_dim(images, labels, **{"clip": False, "verbose": False, **options})


@pytest.mark.parametrize("variance, clip", [("small", False), ("large", True), ("learned", True), ("learned", False)])
def test_terms_are_those_of_numpy_in_float64(variance, clip):
    """For the same x_t and the same answers of a network that takes the pixels for brighter than they are."""
    learned = {"weighting": "hybrid", "fraction": 0.3} if variance == "learned" else {}
    model = make_best(COARSE, mean=0.9, variance=variance, **learned)
    images = draw_images(3, (8, 8, 1))
    result = bits(model, images, seed=5, clip=clip)
    posterior, beta = COARSE.posterior_variances.copy(), COARSE.betas
    posterior[0] = posterior[1]
    sigma = {
        "small": posterior,
        "large": np.append(posterior[0], beta[1:]),
        "learned": beta ** ((1 + 0.3) / 2) * posterior ** ((1 - 0.3) / 2),
    }[variance]
    x_0, expected = PIXELS[images], []
    for t, alpha_bar in enumerate(COARSE.alpha_bars):
        z = np.float64(noise.normal(tf.constant([5, 6, 7]), noise.BOUND_STREAM, t, (8, 8, 1)))
        x_t = np.float32(np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * z)
        eps = np.float64(model.ema_network([x_t, tf.fill([3], t)]))[..., :1]
        predicted = (x_t.astype(np.float64) - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar)
        predicted = np.clip(predicted, -1, 1) if clip else predicted
        ratio = posterior[t] / sigma[t]
        nats = (ratio - 1 - np.log(ratio) + (COARSE.posterior_coefs_x0[t] * (x_0 - predicted)) ** 2 / sigma[t]) / 2
        expected.append((nats if t else -log_mass(x_0, predicted, np.sqrt(sigma[0]))).mean() / math.log(2))
    np.testing.assert_allclose(result.terms, expected, rtol=1e-6)
    prior = np.mean(alpha_bar * x_0**2 - alpha_bar - np.log1p(-alpha_bar)) / 2 / math.log(2)
    assert result.prior == pytest.approx(prior, rel=1e-9)


def test_the_parts_add_up():
    images = draw_images(6, (8, 8, 1))
    result = bits(make_best(COARSE), images)
    assert result.images.shape == (6,) and result.terms.shape == (20,)
    assert result.total == pytest.approx(result.images.mean(), rel=1e-12)
    assert result.total == pytest.approx(result.prior + result.terms.sum(), rel=1e-12)
    assert result.standard_error == pytest.approx(result.images.std(ddof=1) / math.sqrt(6))
    assert result.monte_carlo_error == 0 and result.seconds_per_image > 0
    assert str(result) == f"{result.total:.4f} bits per dimension, standard error {result.standard_error:.4f}"
    alone = bits(make_best(COARSE), images[:1])
    assert math.isnan(alone.standard_error) and alone.total == alone.images[0]


@pytest.mark.parametrize("num_terms", [None, 6])
def test_an_image_has_its_bits_whatever_stands_beside_it(num_terms, trained_like):
    """Whatever the batch, and alone with its own seed; up to how float32 rounds in batches of another size."""
    images = draw_images(7, (8, 8, 1))
    together = bits(trained_like, images, num_terms=num_terms, seed=3)
    for batch_size in (1, 3, 7):
        batched = bits(trained_like, images, num_terms=num_terms, seed=3, batch_size=batch_size)
        np.testing.assert_allclose(batched.images, together.images, rtol=1e-5)
        np.testing.assert_allclose(batched.terms, together.terms, rtol=1e-5)
        assert batched.monte_carlo_error == pytest.approx(together.monte_carlo_error, rel=1e-5)
    for k in (0, 4):
        alone = bits(trained_like, images[k : k + 1], num_terms=num_terms, seed=3 + k)
        assert alone.total == pytest.approx(together.images[k], rel=1e-5)
    assert bits(trained_like, images, num_terms=num_terms, seed=4).total != pytest.approx(together.total, rel=1e-3)


def test_some_terms_estimate_all_of_them():
    """For the same images; 8 standard errors are 0.2 of 8 bits."""
    images, model = draw_images(300, (8, 8, 1)), make_best(COARSE, variance="large")
    every, some = bits(model, images), bits(model, images, num_terms=5, seed=1000)
    assert 0 < some.monte_carlo_error < 0.2
    assert abs(some.total - every.total) < STANDARD_ERRORS * some.monte_carlo_error
    assert f"of which the choice of terms {some.monte_carlo_error:.4f}" in str(some)
    repeated = [bits(model, images[:40], num_terms=5, seed=seed) for seed in range(0, 4000, 100)]
    spread = np.std([result.total for result in repeated], ddof=1)
    stated = np.mean([result.monte_carlo_error for result in repeated])
    assert 0.6 < spread / stated < 1.5, "40 totals have their spread to 11 %, and the noise of x_t adds a little"
    few = bits(model, images[:2], num_terms=2)
    assert np.isnan(few.terms).sum() >= 20 - 1 - 4 and not np.isnan(few.terms[0])
    for many in (19, 20, 10**6):
        np.testing.assert_allclose(bits(model, images[:2], num_terms=many).images, every.images[:2], rtol=1e-12)


def test_a_learned_variance_lies_between_the_two_fixed_ones():
    images = draw_images(4, (8, 8, 1))
    learned = {
        fraction: bits(make_best(COARSE, variance="learned", weighting="hybrid", fraction=fraction), images).terms
        for fraction in (-1.0, 1.0)
    }
    for fraction, variance in ((-1.0, "small"), (1.0, "large")):
        fixed = bits(make_best(COARSE, variance=variance), images).terms
        np.testing.assert_allclose(learned[fraction][1:], fixed[1:], rtol=1e-6)
        assert (learned[fraction][0] == pytest.approx(fixed[0], rel=1e-6)) == (variance == "small")


def test_clipping_never_costs_bits():
    """No x_0 lies outside [-1, 1]: whatever is clipped comes closer.

    But at t = 0 what lies beyond belongs to the end pixels, and a mean clipped to their value has half a normal there:
    each may cost a bit more.
    """
    images = draw_images(30, (8, 8, 1), mean=0.8)
    model = make_best(COARSE, mean=0.8)
    clipped, free = bits(model, images, clip=True), bits(model, images, clip=False)
    assert np.all(clipped.terms[1:] <= free.terms[1:]) and np.all(clipped.terms[1:5] < 0.98 * free.terms[1:5])
    ends = np.mean((images == 0) | (images == 255))
    assert free.terms[0] < clipped.terms[0] < free.terms[0] + ends and clipped.total < free.total


def test_labels_are_what_the_network_is_asked_with():
    images = np.concatenate([draw_images(20, (8, 8, 1), mean=MEAN + 0.1 * k) for k in (0, 3)])
    model, labels = make_best(COARSE, num_classes=4, variance="large"), np.repeat([0, 3], 20)
    right, wrong = bits(model, images, labels), bits(model, images, labels[::-1])
    assert np.all(wrong.images > right.images + 0.1)
    alone = bits(make_best(COARSE, variance="large"), images[:20])
    np.testing.assert_allclose(right.images[:20], alone.images, rtol=1e-6)
    with pytest.raises(InputError, match=r"`labels` are needed: the network has 4 classes. Received: None"):
        bits(model, images)
    with pytest.raises(InputError, match=r"`labels` must be one an image, \(40,\). Received: shape \(2,\)"):
        bits(model, images, [0, 1])
    with pytest.raises(InputError, match=r"`labels` must be integers in 0 .. 3. Received: int32 from 4 to 4"):
        bits(model, images[:1], [4])
    with pytest.raises(InputError, match="`labels` were given, but the network has no classes"):
        bits(make_best(COARSE), images, labels)


def test_the_averaged_weights_are_judged(trained_like):
    images = draw_images(2, (8, 8, 1))
    before = bits(trained_like, images).total
    kept = trained_like.network.get_weights()
    trained_like.network.set_weights([weight + 1 for weight in kept])
    assert bits(trained_like, images).total == before
    trained_like.network.set_weights(kept)


@pytest.mark.parametrize(
    "images, options, expected",
    [
        (
            np.zeros((2, 8, 8, 1), np.float32),
            {},
            "`images` must be exact uint8 .* Received: float32",
        ),
        (np.zeros((2, 8, 8, 3), np.uint8), {}, r"shape \(N, 8, 8, 1\) of the network. Received: \(\d, 8, 8, 3\)"),
        (np.zeros((8, 8, 1), np.uint8), {}, r"shape \(N, 8, 8, 1\) of the network. Received: \(\d, 8, 1\)"),
        (np.zeros((0, 8, 8, 1), np.uint8), {}, "`images` must be at least one. Received: none"),
        (None, {"num_terms": 1}, "`num_terms` must be an integer of at least 2. Received: 1"),
        (None, {"num_terms": 2.5}, "`num_terms` must be an integer of at least 2. Received: 2.5"),
        (None, {"batch_size": 0}, "`batch_size` must be an integer of at least 1. Received: 0"),
        (None, {"seed": 2**31 - 1}, "`seed` must fit int32. Received: values from 2147483647 to 2147483648"),
        (None, {"seed": 0.5}, r"`seed` must be a non-empty list of integers. Received: \[0.5\]"),
    ],
)
def test_what_cannot_be_judged_is_refused_by_name(images, options, expected):
    images = np.zeros((2, 8, 8, 1), np.uint8) if images is None else images
    with pytest.raises(InputError, match=expected):
        bits(make_best(COARSE), images, **options)


def test_terms_drawn_like_their_size_tell_more_than_terms_drawn_evenly(monkeypatch):
    images, model = draw_images(32, (8, 8, 1)), make_best(schedules.linear(1000), variance="large")
    some = bits(model, images, num_terms=10)
    assert some.standard_error >= some.monte_carlo_error > 0
    monkeypatch.setattr(terms, "shares", lambda num_timesteps: np.full(num_timesteps - 1, 1 / 999))
    assert bits(model, images, num_terms=10).monte_carlo_error > 2 * some.monte_carlo_error


@pytest.mark.parametrize("clip", ["dynamic", "no", 1, None])
def test_a_bound_is_clipped_or_not(clip):
    with pytest.raises(InputError, match="`clip` must be True or False for bits per dimension. Received: "):
        make_best(COARSE).bits_per_dim(draw_images(1, (8, 8, 1)), clip=clip)


def test_memory_is_told_for_each_image_of_a_batch():
    model, images = make_best(COARSE), draw_images(8, (8, 8, 1))
    assert np.isnan(bits(model, images, batch_size=1).bytes_per_image)
    assert 0 <= bits(model, images, batch_size=8).bytes_per_image < 2**27
