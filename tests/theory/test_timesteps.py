import numpy as np
import pytest
import tensorflow as tf

from kddpm.theory import schedules, timesteps


@pytest.mark.parametrize("name", ["linear", "karras", "flow"])
def test_log_normal_probabilities_are_masses_of_the_nearest_levels(name):
    """By quadrature: a fine grid of log(sigma), each point to the level that is nearest to it."""
    schedule = schedules.by_name(name, 50)
    grid = np.linspace(-1.2 - 10 * 1.2, -1.2 + 10 * 1.2, 400_001)
    levels = np.log(np.expm1(-np.cumsum(np.log1p(-schedule.betas)))) / 2
    nearest = np.argmin(np.abs(grid[:, np.newaxis] - levels), axis=1)
    density = np.exp(-(((grid + 1.2) / 1.2) ** 2) / 2)
    expected = np.bincount(nearest, density / density.sum(), minlength=50)
    found = timesteps.log_normal_probabilities(schedule)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)  # the grid's step times the density
    assert found.sum() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(("name", "last"), [("karras", 189), ("cosine", 25)])
def test_the_noisiest_levels_are_hardly_ever_drawn(name, last):
    """docs/combinations.md quotes these."""
    shares = timesteps.log_normal_probabilities(schedules.by_name(name, 1000))
    assert shares[-last:].sum() < 1e-4 < shares[-last - 1 :].sum()


def test_a_loss_beyond_all_measure_does_not_end_importance_sampling():
    squares, counts = np.ones(4, np.float32), np.full(4, 100, np.float32)
    squares, counts = timesteps.updated_loss_history(squares, counts, tf.constant([2]), tf.constant([1e20]))
    shares = timesteps.importance_probabilities(squares, counts)
    assert np.all(np.isfinite(shares)) and np.argmax(shares) == 2 and np.sum(shares) == pytest.approx(1, rel=1e-6)


def test_probabilities_follow_the_root_of_the_mean_square_once_every_t_was_seen():
    squares = np.array([1.0, 4.0, 0.0, 100.0], np.float32)
    uniform = np.full(4, 0.25)
    seen = np.full(4, 10, np.float32)
    roots = np.sqrt(squares) / np.sqrt(squares).sum()
    found = np.array(timesteps.importance_probabilities(tf.constant(squares), tf.constant(seen)))
    np.testing.assert_allclose(found, 0.999 * roots + 0.001 * uniform, rtol=1e-6)
    assert found.min() > 0, "a t whose losses were 0 is drawn still"
    seen[2] = 9
    found = timesteps.importance_probabilities(tf.constant(squares), tf.constant(seen))
    np.testing.assert_allclose(found, uniform, rtol=1e-6)


def test_weighted_losses_are_unbiased_and_vary_less():
    """Exactly, over all t: E[L_t / (T p_t)] is the mean loss; its second moment is below that of drawing evenly."""
    losses = np.abs(np.random.default_rng(0).normal(size=50)) * np.linspace(10, 0.1, 50)
    counts = np.full(50, 10.0)
    shares = np.array(timesteps.importance_probabilities(tf.constant(losses**2), tf.constant(counts)))
    assert shares.sum() == pytest.approx(1, rel=1e-12)
    weighted = losses / (50 * shares)
    assert np.sum(shares * weighted) == pytest.approx(losses.mean(), rel=1e-12)
    assert np.sum(shares * weighted**2) < 1.01 * losses.mean() ** 2 < 0.8 * np.mean(losses**2)


def test_loss_history_is_a_running_mean_of_what_each_t_saw():
    """Against one t after the other: n losses in a batch count as n, with their mean."""
    random = np.random.default_rng(0)
    squares, counts = np.zeros(6), np.zeros(6)
    found = tf.constant(squares, tf.float32), tf.constant(counts, tf.float32)
    for _ in range(20):
        t, losses = random.integers(0, 5, 8), random.uniform(0, 3, 8).astype(np.float32)  # 5 is never drawn
        for step in range(6):
            mine = losses[t == step]
            if len(mine):
                kept = 0.9 ** len(mine) if counts[step] else 0
                squares[step] = kept * squares[step] + (1 - kept) * np.mean(mine**2)
                counts[step] += len(mine)
        found = timesteps.updated_loss_history(*found, tf.constant(t, tf.int32), tf.constant(losses))
        np.testing.assert_allclose(found[0], squares, rtol=1e-5)
        np.testing.assert_array_equal(found[1], counts)
    assert counts[5] == squares[5] == 0 and counts[:5].min() > 10


def test_one_endless_loss_leaves_the_history_of_the_other_t():
    """Its square, which no float32 holds, is that of the largest loss that counts."""
    squares, counts = timesteps.updated_loss_history(
        tf.ones(3), tf.ones(3), tf.constant([1, 2]), tf.constant([1e30, 2.0])
    )
    np.testing.assert_allclose(squares, [1, 0.9 + 0.1 * 1e30, 0.9 + 0.1 * 4], rtol=1e-6)
    np.testing.assert_array_equal(counts, [1, 2, 2])
