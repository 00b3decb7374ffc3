import numpy as np
import pytest

from kddpm import toy
from kddpm.base.errors import InputError
from kddpm.toy import Mixture

STANDARD_ERRORS = 5  # a right chain fails a comparison with probability 6e-7, once: the seeds are fixed
NORMAL = Mixture([1], [[0.0]], [0.25])
PAIR = Mixture([1, 2], [[-0.6, 0.0], [0.4, 0.2]], [0.09, 0.16])


def test_detailed_balance():
    """q(x) k(x' | x) min(1, a) is the same from x' to x; k written out once more."""
    (x, y), delta = np.random.default_rng(0).normal(size=(2, 300, 2)), 0.2

    def flow(start, end):
        kernel = -np.sum((end - start - delta * PAIR.score(start)) ** 2, axis=1) / (4 * delta) - np.log(
            4 * np.pi * delta
        )
        return PAIR.log_density(start) + kernel + np.minimum(0, toy.log_acceptance(PAIR, start, end, delta))

    np.testing.assert_allclose(flow(x, y), flow(y, x), rtol=1e-12, atol=1e-11)
    assert np.ptp(toy.log_acceptance(PAIR, x, y, delta)) > 1


@pytest.mark.parametrize("delta", [0.02, 0.08, 0.16])
def test_unadjusted_steps_settle_at_another_variance_and_adjusted_ones_do_not(delta):
    """v / (1 - delta / (2 v)) on N(0, v), to 5 standard errors of 20,000 independent chains; MALA stays at v."""
    count, variance = 20_000, 0.25
    start = NORMAL.draw(count, seed=1)
    for adjusted, expected in ((False, variance / (1 - delta / (2 * variance))), (True, variance)):
        way = toy.langevin_paths(NORMAL, start, delta, 60, adjusted, seed=2)
        assert way.shape == (61, count, 1) and np.array_equal(way[0], start)
        assert abs(np.var(way[-1]) / expected - 1) < STANDARD_ERRORS * np.sqrt(2 / count)
        assert abs(np.mean(way[-1])) < STANDARD_ERRORS * np.sqrt(expected / count)


def test_mala_leaves_a_mixture_as_it_is():
    """Moments up to the fourth after 40 steps from 20,000 draws; without the correction they leave it."""
    delta, start = 0.15, PAIR.draw(20_000, seed=1)
    exact = PAIR.draw(500_000, seed=2)
    off = {}
    for adjusted in (False, True):
        end = toy.langevin_paths(PAIR, start, delta, 40, adjusted, seed=3)[-1]
        off[adjusted] = max(
            abs(np.mean(end[:, axis] ** power) - np.mean(exact[:, axis] ** power))
            / np.sqrt(np.var(exact[:, axis] ** power) / len(end))
            for axis in (0, 1)
            for power in (1, 2, 3, 4)
        )
        assert len(np.unique(end[:, 0])) == len(end)
    assert off[True] < STANDARD_ERRORS < off[False] / 2


def test_a_rejected_step_stays():
    way = toy.langevin_paths(PAIR, PAIR.draw(500), 1.5, 10, adjusted=True)
    stayed = np.all(way[1:] == way[:-1], axis=-1)
    assert 0.3 < stayed.mean() < 0.99


def test_annealing_finds_both_modes_in_proportion():
    """From far noise; plain Langevin dynamics from one mode stay there in as many steps."""
    apart, sigmas = Mixture([1, 4], [[-3.0, 0.0], [3.0, 0.0]], [0.04, 0.04]), np.geomspace(10, 0.05, 40)
    start = np.random.default_rng(0).normal(scale=10, size=(2000, 2))
    way = toy.annealed_paths(apart, start, sigmas, num_steps=20, seed=1)
    assert way.shape == (801, 2000, 2)
    assert abs(np.mean(way[-1][:, 0] < 0) - 0.2) < STANDARD_ERRORS * np.sqrt(0.2 * 0.8 / 2000) + 0.02
    assert np.abs(way[-1][:, 1].std() - 0.2) < 0.03
    stuck = toy.langevin_paths(apart, np.full((500, 2), [-3.0, 0.0]), 0.004, 800, seed=1)[-1]
    assert np.all(stuck[:, 0] < 0)


@pytest.mark.parametrize(
    ("delta", "steps", "text"),
    [(0, 5, "`delta` must be positive. Received: 0"), (0.1, 0, "`num_steps` must be an integer of at least 1")],
)
def test_bad_steps_are_refused(delta, steps, text):
    with pytest.raises(InputError, match=text):
        toy.langevin_paths(NORMAL, np.zeros((1, 1)), delta, steps)


@pytest.mark.parametrize("sigmas", [[1.0, 2.0], [1.0, 0.0]])
def test_noise_that_does_not_fall_is_refused(sigmas):
    with pytest.raises(InputError, match="`sigmas` must be positive and decrease. Received: "):
        toy.annealed_paths(NORMAL, np.zeros((1, 1)), sigmas, 2)
