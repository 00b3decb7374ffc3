"""The K-sample bound on Gaussian pixels, where p(x_0) of the chain is known; error rates as in test_likelihood."""

import itertools
import math

import numpy as np
import pytest
from helpers.closed_form import STANDARD_ERRORS, best_model
from helpers.normal_pixels import MEAN, PIXELS, best_line, chain_moments, closed_form_nats, log_mass, make_best

from kddpm.base.errors import InputError
from kddpm.evaluation import trajectories
from kddpm.theory import schedules

COARSE = schedules.quadratic(20, 1e-3, 0.6)
# Not the two at the ends: their bins are open, and what lies far beyond them weighs much and is hardly ever drawn.
VALUES = np.array([60, 110, 153, 170, 200, 235], np.uint8)
IMAGES = np.tile(VALUES, 64).reshape(-1, 1, 1, 1)  # of one pixel, each with its own noise


def exact_nats(values, variance="large"):
    """-log p of pixels under the whole chain with the best x_0."""
    return -log_mass(PIXELS[values], *chain_moments(COARSE, *best_line(COARSE.alpha_bars), variance))


def bits(model, images, labels=None, **options):
    return model.bits_per_dim(images, labels, **{"clip": False, "verbose": False, "num_trajectories": 2, **options})


@pytest.fixture(scope="module")
def weighed():
    """384 images of one pixel by 32 trajectories."""
    return bits(make_best(COARSE, image_shape=(1, 1, 1), variance="large"), IMAGES, num_trajectories=32, batch_size=384)


def test_weights_have_the_exact_likelihood_as_their_mean(weighed):
    """For each of the values: 2,048 weights know their mean to 2 %; and all of them to 0.7 %."""
    shares = np.exp(exact_nats(IMAGES)[..., 0, 0] - weighed.trajectories * math.log(2))
    for value in range(len(VALUES)):
        mine = shares[value :: len(VALUES)]
        assert abs(mine.mean() - 1) < STANDARD_ERRORS * mine.std() / math.sqrt(mine.size) < 0.15
    assert abs(shares.mean() - 1) < STANDARD_ERRORS * shares.std() / math.sqrt(shares.size) < 0.05


def test_the_bound_tightens_with_every_doubling(weighed):
    """From the bound, L_1, to the exact value: at K = 32 the rest is half the variance of w / p over K."""
    exact, sizes = exact_nats(IMAGES)[:, 0, 0, 0], (1, 2, 4, 8, 16, 32)
    nats = weighed.trajectories * math.log(2)
    gaps = [trajectories.bound_from_weights_nats(nats, 1, size) - exact for size in sizes]
    means = [gap.mean() for gap in gaps]
    assert all(later < 0.7 * earlier for earlier, later in itertools.pairwise(means)), means
    bound = closed_form_nats(COARSE, *best_line(COARSE.alpha_bars), "large").sum(axis=1)[IMAGES][:, 0, 0, 0]
    error = gaps[0].std(ddof=1) / math.sqrt(len(gaps[0]))
    assert abs(means[0] - np.mean(bound - exact)) < STANDARD_ERRORS * error < 0.1
    shares = np.exp(exact[:, np.newaxis] - nats)
    assert means[-1] == pytest.approx(shares.var() / 64, abs=STANDARD_ERRORS * gaps[-1].std() / math.sqrt(384))
    np.testing.assert_allclose(weighed.images * math.log(2), gaps[-1] + exact, rtol=1e-12)


def test_terms_are_those_of_the_bound(weighed):
    """Each trajectory is one more draw of the noise at every t; and what the weights gain is in no term."""
    by_value = closed_form_nats(COARSE, *best_line(COARSE.alpha_bars), "large")
    expected = by_value[VALUES].mean(axis=0) / math.log(2)
    np.testing.assert_allclose(weighed.terms, expected[:-1], rtol=0.1)
    assert weighed.prior == pytest.approx(expected[-1], rel=1e-9)
    assert weighed.elbo == pytest.approx(weighed.terms.sum() + weighed.prior)
    error = weighed.trajectories.std() / math.sqrt(weighed.trajectories.size)
    assert abs(weighed.elbo - weighed.trajectories.mean()) < STANDARD_ERRORS * error < 0.1
    assert weighed.total < weighed.elbo - 0.1


def test_the_stated_error_is_that_of_repeated_measurements():
    """25 totals have their spread to 14 %; to first order in 1 / K."""
    model = make_best(COARSE, image_shape=(1, 1, 1), variance="large")
    repeated = [bits(model, IMAGES[:24], num_trajectories=16, seed=seed) for seed in range(0, 2500, 100)]
    stated = np.mean([result.monte_carlo_error for result in repeated])
    assert 0.6 < np.std([result.total for result in repeated], ddof=1) / stated < 1.5
    assert repeated[0].standard_error >= repeated[0].monte_carlo_error > 0
    assert f", of which the trajectories {repeated[0].monte_carlo_error:.4f}" in str(repeated[0])


def test_an_image_has_its_trajectories_whatever_stands_beside_it():
    """Whatever the batch; alone with its own seed; and the first of many are those of few."""
    model = best_model((4, 4, 1), correlation=0.5)
    images = np.random.default_rng(0).integers(40, 220, (5, 4, 4, 1)).astype(np.uint8)
    together = bits(model, images, seed=3, num_trajectories=3)
    batched = bits(model, images, seed=3, num_trajectories=3, batch_size=2)
    np.testing.assert_allclose(batched.trajectories, together.trajectories, rtol=1e-5)
    np.testing.assert_allclose(batched.images, together.images, rtol=1e-5)
    alone = bits(model, images[4:], seed=7, num_trajectories=2)
    np.testing.assert_allclose(alone.trajectories[0], together.trajectories[4, :2], rtol=1e-5)
    other = bits(model, images, seed=100, num_trajectories=3)
    assert np.all(np.abs(other.trajectories / together.trajectories - 1) > 1e-6)
    assert together.trajectories.shape == (5, 3) and np.ptp(together.trajectories, axis=1).min() > 0


def test_labels_are_what_the_network_is_asked_with():
    images = np.tile(np.uint8(127.5 * (1 + MEAN + 0.3)), (4, 8, 8, 1))
    model = make_best(COARSE, num_classes=4, variance="large")
    right, wrong = bits(model, images, [3] * 4), bits(model, images, [0] * 4)
    assert np.all(right.trajectories < wrong.trajectories - 0.1)


def test_weights_of_many_dimensions_do_not_overflow():
    """3,072 dimensions of 5 nats are exp(-15,360); and two weights, one of them nothing, are half the other."""
    nats = np.array([[5.0, 5.0], [5.0, 6.0]])
    np.testing.assert_allclose(
        trajectories.bound_from_weights_nats(nats, 3072), [5, 5 + math.log(2) / 3072], rtol=1e-12
    )
    np.testing.assert_allclose(trajectories.bound_from_weights_nats(nats, 3072, 1), [5, 5.5], rtol=1e-12)
    one = math.log(3.0)  # weights 1 and 1/3, of mean 2/3 and variance 2/9
    np.testing.assert_allclose(trajectories.bound_from_weights_nats(np.array([[0.0, one]]), 1), math.log(1.5))
    np.testing.assert_allclose(trajectories.variances_of_bound_nats(np.array([[0.0, one]]), 1), 1 / 4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_trajectories": 1}, "`num_trajectories` must be an integer of at least 2. Received: 1"),
        ({"num_trajectories": 2.5}, "`num_trajectories` must be an integer of at least 2. Received: 2.5"),
        (
            {"num_terms": 5},
            "`num_terms` must be None where trajectories are weighed: they have every term. Received: 5",
        ),
    ],
)
def test_what_cannot_be_weighed_is_refused_by_name(options, expected):
    with pytest.raises(InputError, match=expected):
        bits(make_best(COARSE, image_shape=(1, 1, 1)), IMAGES[:2], **options)


@pytest.mark.parametrize("size", [0, 3])
def test_groups_of_trajectories_are_whole(size):
    with pytest.raises(InputError, match=f"`size` must divide the number of trajectories, 4. Received: {size}"):
        trajectories.bound_from_weights_nats(np.ones((1, 4)), 1, size)
