"""Frechet and kernel distances, precision and recall, copies: against closed forms, loops and torch-fidelity.

The statistical tests fail by chance with a probability below 1e-4, at the seeds here never.
"""

import math

import numpy as np
import pytest
from helpers.places import GOLDENS
from helpers.refusals import raises_in_flags

from kddpm.evaluation import metrics, moments
from kddpm.evaluation.moments import GROUPS, Moments


def population(mean, covariance, count=10**6):
    """The moments of a distribution, as of so many pictures without sampling noise."""
    return Moments(count, np.asarray(mean, float), np.asarray(covariance, float) * (count - 1))


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "torch_fidelity.npz", allow_pickle=False) as archive:
        return dict(archive)


def test_the_figures_of_torch_fidelity_on_the_same_features(golden):
    generated, real = golden["generated"], golden["real"]
    assert metrics.kernel_distance(generated, real).value == pytest.approx(float(golden["kid"]), abs=1e-6)
    for name in ("real", "more_real"):
        found = metrics.precision_recall(generated, golden[name])
        expected = golden[f"precision_recall_{name}"]
        assert [found.precision.value, found.recall.value] == pytest.approx(expected, abs=1e-6)
        distance = metrics.frechet_distance(moments.of(generated), moments.of(golden[name]))
        assert distance == pytest.approx(float(golden[f"fid_{name}"]), abs=1e-6)


# Moments.


@pytest.mark.parametrize("sizes", [(40,), (1, 2, 3, 34), (0, 20, 20)])
def test_moments_of_batches_are_those_of_all(sizes):
    features = 1e3 + np.random.default_rng(0).normal(size=(40, 3))  # a mean that would cancel the squares
    parts = np.split(features, np.cumsum(sizes)[:-1])
    found = moments.merged([moments.of(part) for part in parts])
    assert found.count == 40
    np.testing.assert_allclose(found.mean, features.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(features.T), rtol=1e-9)


def test_pictures_are_dealt_to_groups_whatever_the_batches():
    features = np.random.default_rng(0).normal(size=(47, 2))
    for size in (1, 7, 47):
        groups = moments.in_groups(features[i : i + size] for i in range(0, 47, size))
        assert [group.count for group in groups] == [5] * 7 + [4] * 3
        for k, group in enumerate(groups):
            np.testing.assert_allclose(group.mean, features[k::GROUPS].mean(axis=0), rtol=1e-12)
            np.testing.assert_allclose(group.covariance, np.cov(features[k::GROUPS].T), rtol=1e-12)
    with raises_in_flags("--features must be of two pictures or more"):
        moments.in_groups([])


def test_rounds_of_all_classes_are_dealt_to_groups_whatever_the_batches():
    features = np.arange(130.0)[:, None]  # picture k, of class k % 3
    for size in (1, 7, 130):
        groups = moments.in_groups((features[i : i + size] for i in range(0, 130, size)), classes=3)
        for k, group in enumerate(groups):
            mine = [n for n in range(130) if n // 3 % GROUPS == k]
            assert group.count == len(mine) and group.mean == pytest.approx(np.mean(mine), rel=1e-12)


# Frechet distance.


def test_frechet_of_normal_distributions_with_a_common_basis():
    """(m_a - m_b)^2 + sum (s_a - s_b)^2, in any rotation."""
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    a, b = rng.uniform(0.1, 3, (2, 5))
    step = rng.normal(size=5)
    first = population(step, rotation * a**2 @ rotation.T)
    second = population(np.zeros(5), rotation * b**2 @ rotation.T)
    expected = step @ step + ((a - b) ** 2).sum()
    assert metrics.frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)
    assert metrics.frechet_distance(second, first) == pytest.approx(expected, rel=1e-12)
    assert metrics.frechet_distance(first, first) == pytest.approx(0, abs=1e-12)


def test_frechet_of_two_dimensions_without_a_common_basis():
    """tr (A B)^(1/2) = (tr AB + 2 (det AB)^(1/2))^(1/2) in two dimensions."""
    a, b = np.array([[2, 0.5], [0.5, 1]]), np.array([[1, -0.8], [-0.8, 3]])
    root = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a @ b)))
    found = metrics.frechet_distance(population([1, 2], a), population([0, 0], b))
    assert found == pytest.approx(5 + np.trace(a) + np.trace(b) - 2 * root, rel=1e-12)


def test_frechet_of_fewer_pictures_than_dimensions_is_finite():
    few = np.random.default_rng(0).normal(size=(5, 20))
    found = metrics.frechet_distance(moments.of(few), population(np.zeros(20), np.eye(20)))
    assert math.isfinite(found) and found > 5
    assert metrics.frechet_distance(moments.of(few), moments.of(few)) == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def drawn():
    """200 times 100 pictures of N(0.3, 1), 4 features, against N(0, 1)."""
    rng, reference = np.random.default_rng(1), population(np.zeros(4), np.eye(4))
    return [
        metrics.frechet(moments.in_groups([rng.normal(0.3, 1, (100, 4))]), reference) for _ in range(200)
    ], 4 * 0.3**2  # fmt: skip


def test_the_limit_of_many_pictures_has_less_bias(drawn):
    """Of 100 pictures the distance is 20 % too large; the line in 1 / N takes nine tenths of that away."""
    results, exact = drawn
    bias = np.mean([result.value for result in results]) - exact
    at_infinity = np.array([result.at_infinity for result in results])
    assert 0.05 < bias < 0.15
    assert abs(at_infinity.mean() - exact) < 0.1 * bias + 4 * at_infinity.std() / math.sqrt(200)


def test_the_standard_error_is_the_spread_of_repeated_draws(drawn):
    results, _ = drawn
    spread = np.std([result.value for result in results])
    assert np.sqrt(np.mean([result.standard_error**2 for result in results])) == pytest.approx(spread, rel=0.25)


def test_classes_in_turn_do_not_spoil_the_standard_error():
    """Ten classes far apart: the spread of repeated draws, not the distance of the classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 10
    reference = moments.of(10 * labels[:, None] + rng.normal(size=(400, 1)))

    def drawn():
        pictures = 10 * labels[:, None] + rng.normal(0.5, 1, (400, 1))
        return metrics.frechet(moments.in_groups([pictures], classes=10), reference)

    results = [drawn() for _ in range(200)]
    spread = np.std([result.value for result in results])
    assert np.sqrt(np.mean([result.standard_error**2 for result in results])) == pytest.approx(spread, rel=0.25)
    assert all(abs(result.at_infinity - result.value) < 10 * spread for result in results)


def test_groups_of_other_sizes_do_not_spoil_the_standard_error():
    """Five groups of 30 and five of 20: smaller ones have a larger distance, which is no spread."""
    rng, reference = np.random.default_rng(0), metrics.FrechetReference(population(np.zeros(64), np.eye(64)))
    results = [reference.of_groups(moments.in_groups([rng.normal(size=(250, 64))], classes=10)) for _ in range(60)]
    spread = np.std([result.value for result in results])
    assert 0.8 * spread < np.mean([result.standard_error for result in results]) < 1.7 * spread


@pytest.mark.parametrize(("count", "classes"), [(20, 3), (20, 10), (39, 3), (110, 10)])
def test_groups_that_are_too_small_tell_no_error(count, classes):
    pictures = np.random.default_rng(0).normal(size=(count, 2))
    found = metrics.frechet(moments.in_groups([pictures], classes), population(np.zeros(2), np.eye(2)))
    assert found.value == pytest.approx(metrics.frechet_distance(moments.of(pictures), population([0, 0], np.eye(2))))
    assert math.isnan(found.standard_error) and math.isnan(found.at_infinity)


@pytest.mark.parametrize(("count", "is_known"), [(80, False), (84, True)])
def test_the_limit_needs_more_than_four_pictures_a_feature(count, is_known):
    pictures = np.random.default_rng(0).normal(size=(count, 20))
    found = metrics.frechet(moments.in_groups([pictures]), population(np.zeros(20), np.eye(20)))
    assert math.isfinite(found.standard_error) and math.isfinite(found.at_infinity) == is_known


# Kernel distance.


def test_kernel_distance_is_the_sum_of_its_equation():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 3)), rng.normal(0.5, 1, (4, 3))

    def mean(pairs):
        return np.mean([(float(x @ y) / 3 + 1) ** 3 for x, y in pairs])

    def off(x):
        return mean((x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j)

    expected = off(a) + off(b) - 2 * mean((x, y) for x in a for y in b)
    assert metrics.kernel_distance(a, b).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("blocks", [1, 7])
def test_nothing_depends_on_the_blocks(monkeypatch, blocks):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(9, 3)), rng.normal(size=(8, 3))

    def all_of_them():
        return metrics.kernel_distance(a, b), metrics.precision_recall(a, b, 2), metrics.copies(a, b, a[:4], 0.5)

    expected = all_of_them()
    monkeypatch.setattr(metrics, "_BLOCK_VALUES", 4 * blocks)
    found = all_of_them()
    assert found[0].value == pytest.approx(expected[0].value, rel=1e-12)
    assert found[1] == expected[1] and found[2].rate == expected[2].rate and found[2].chance == expected[2].chance


@pytest.mark.parametrize(("shift", "largest"), [(0.5, 1.15), (0.0, 1.6)])
def test_kernel_distance_is_unbiased_and_knows_its_error(shift, largest):
    """In one dimension k = (x y + 1)^3, so that the distance is the sum of C(3, p) (E x^p - E y^p)^2 over p.

    E x, E x^2, E x^3 of N(s, 1): s, s^2 + 1, s^3 + 3 s. The error is exact where the two differ, and up to sqrt(2) too
    large where they do not.
    """
    rng = np.random.default_rng(3)
    exact = 3 * shift**2 + 3 * shift**4 + (shift**3 + 3 * shift) ** 2
    results = [metrics.kernel_distance(rng.normal(shift, 1, (60, 1)), rng.normal(0, 1, (50, 1))) for _ in range(400)]
    values = np.array([result.value for result in results])
    assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(400)
    ratio = math.sqrt(np.mean([result.standard_error**2 for result in results])) / values.std()
    assert 0.85 < ratio < largest


# Precision, recall and copies.


def test_precision_and_recall_of_two_clusters():
    """Real pictures in two places, generated ones in one of them and elsewhere."""
    rng = np.random.default_rng(0)
    here, there, elsewhere = (rng.uniform(size=(20, 2)) + place for place in (0, 100, 1000))
    real, generated = np.concatenate([here, there]), np.concatenate([here + 1e-3, here - 1e-3, elsewhere])
    found = metrics.precision_recall(generated, real)
    assert found.precision.value == pytest.approx(40 / 60)
    assert found.recall.value == pytest.approx(20 / 40)
    assert found.recall.standard_error == pytest.approx(math.sqrt(0.25 / 40))


def test_the_ball_reaches_to_the_kth_neighbour_and_no_farther():
    real = np.array([[0.0], [1.0], [3.0], [6.0]])  # radii to the second other: 3, 2, 3, 5
    generated = np.array([[-3.0], [-3.1], [10.9], [11.1], [50.0]])
    assert metrics.precision_recall(generated, real, 2).precision.value == pytest.approx(2 / 5)
    np.testing.assert_allclose(metrics.nearest_others(real, 2), [9, 4, 9, 25])


def test_numbers_of_bytes_do_not_wrap():
    a, b = np.random.default_rng(0).integers(0, 256, (2, 20, 3), np.uint8)
    for measure in (metrics.kernel_distance, metrics.precision_recall):
        assert measure(a, b) == measure(a.astype(np.float64), b.astype(np.float64))


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_copies_are_told_from_pictures_never_seen(dtype):
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (600, 3, 3, 1)).astype(dtype)
    train, held_out, fresh = np.split(real, [400, 500])
    honest = metrics.copies(fresh, train, held_out, quantile=0.1)
    for estimate in (honest.rate, honest.chance):
        assert estimate.value == pytest.approx(0.1, abs=4 * 0.03)
    half = np.concatenate([train[:50], rng.integers(0, 256, (50, 3, 3, 1)).astype(dtype)])
    found = metrics.copies(half, train, quantile=0.1)
    assert found.rate.value == pytest.approx(0.5 + 0.05, abs=4 * 0.015) and found.chance == metrics.Estimate(0.1)
    nearest = np.sort(np.sqrt(metrics.nearest_others(train.astype(float).reshape(400, 9)) / 9))
    assert nearest[38] < found.distance < nearest[41]  # pixels, as root mean square


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_images_that_are_there_twice_do_not_hide_copies(dtype):
    rng = np.random.default_rng(0)
    few = rng.integers(0, 256, (100, 6, 6, 1))
    nearly = (few + rng.integers(-2, 3, few.shape)).clip(0, 255).astype(dtype)
    train = np.repeat(few, 3, axis=0).astype(dtype)
    assert metrics.copies(nearly, train).rate.value == 1
    assert metrics.copies(rng.integers(0, 256, few.shape).astype(dtype), train).rate.value < 0.1
    same = np.repeat(train[:1], 10, axis=0)
    assert metrics.copies(same[:2], same).rate.value == 1 and metrics.copies(nearly[1:], same).rate.value == 0


def test_pictures_that_recur_are_copies_by_chance_as_well():
    rng = np.random.default_rng(0)
    pictures, recurring = rng.integers(0, 256, (900, 4, 4, 1)), rng.integers(0, 256, (20, 4, 4, 1))
    recurs = rng.random(900) < 0.3
    pictures[recurs] = recurring[rng.integers(0, 20, recurs.sum())]
    train, unseen = np.split(pictures.astype(np.uint8), 2)
    found = metrics.copies(unseen, train)
    assert found.rate.value == pytest.approx(0.3, abs=0.05)
    assert found.chance.value == pytest.approx(found.rate.value, abs=0.05)
    assert metrics.copies(unseen, train, mirrored=True).chance.value == 2 * found.chance.value


def test_images_that_are_there_nearly_twice_do_not_hide_copies():
    rng = np.random.default_rng(0)
    few = rng.integers(3, 253, (100, 6, 6, 1))
    train, nearly = ((few + rng.integers(-2, 3, (18, *few.shape))).reshape(-1, 6, 6, 1) for _ in range(2))
    assert metrics.copies(nearly[:64].astype(np.uint8), train.astype(np.uint8)).rate.value == 1


def test_mirror_images_are_copies_where_they_were_trained_on():
    train, others = np.split(np.random.default_rng(0).integers(0, 256, (500, 3, 4, 3), np.uint8), [400])
    pictures = np.concatenate([train[:20], train[20:50, :, ::-1], others[:50]])
    assert metrics.copies(pictures, train).rate.value == pytest.approx(0.2, abs=0.04)
    found = metrics.copies(pictures, train, mirrored=True)
    assert found.rate.value == pytest.approx(0.5, abs=0.04) and found.chance == metrics.Estimate(0.02)
    measured = metrics.copies(pictures, train, others, mirrored=True).chance
    assert measured == metrics.copies(others, train, mirrored=True).rate


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: metrics.copies(x, x, mirrored=True), r"--train must be images \(N, H, W, C\) to be mirrored"),
        (lambda x: metrics.kernel_distance(x, x[:, :2]), r"--features must have \(2,\) values a picture. Received"),
        (lambda x: metrics.kernel_distance(x[:2], x), r"--features must be \(N, D\), N >= 3. Received: \(2, 3\)"),
        (lambda x: metrics.kernel_distance(x[:, None], x[:, None]), r"--features must be \(N, D\), .* \(6, 1, 3\)"),
        (lambda x: metrics.precision_recall(x[:3], x), r"--features must be \(N, D\), N >= 4. Received: \(3, 3\)"),
        (lambda x: metrics.precision_recall(x, x, 0), "--neighbours must be an integer of at least 1. Received: 0"),
        (lambda x: metrics.precision_recall(x * np.nan, x), "--features must be finite. Received: NaN or infinite"),
        (lambda x: metrics.copies(x, x, quantile=1), "--quantile must lie between 0 and 1. Received: 1"),
        (lambda x: metrics.copies(x, x[:1]), "--train must be an integer of at least 2. Received: 1"),
        (lambda x: metrics.frechet([moments.of(x)], moments.of(x)), "--groups must be an integer of at least 2"),
        (lambda x: metrics.frechet_distance(moments.of(x), moments.of(x[:, :2])), "--features must have 2 values"),
        (lambda x: metrics.frechet_distance(moments.of(x[:1]), moments.of(x)), "must be of two pictures or more"),
        (lambda x: metrics.frechet_distance(moments.of(x * np.inf), moments.of(x)), "--features must be finite"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_cannot_be_measured_is_refused(call, text):
    with raises_in_flags(text):
        call(np.random.default_rng(0).normal(size=(6, 3)))


def test_numbers_are_shown_with_their_errors():
    assert str(metrics.Estimate(12.3456, 0.1234)) == "12.35 +- 0.12"
    assert str(metrics.Estimate(0.5)) == "0.5"
