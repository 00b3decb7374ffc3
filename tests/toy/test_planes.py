import keras
import numpy as np
import pytest

import kddpm
from kddpm import toy
from kddpm.base.errors import InputError
from kddpm.sampling import samplers
from kddpm.theory import schedules

# At 5 standard errors a right sampler fails a comparison with probability 6e-7, once: the seeds are fixed.
COUNT, STANDARD_ERRORS = 2000, 5


@pytest.fixture(scope="module", params=["points", pytest.param("moons", marks=pytest.mark.slow)])
def trained(request):
    """(plane, its trained model)"""
    plane = toy.BY_NAME[request.param]
    return plane, toy.train(plane, verbose=False)


def test_samples_land_where_the_data_are(trained):
    plane, model = trained
    landed = toy.backwards(model, range(COUNT))[-1]
    _, distances = plane.nearest(landed)
    _, of_data = plane.nearest(plane.draw(COUNT, seed=1))
    assert np.mean(of_data < 1.6) > 0.98  # what the next line asks is what data do
    assert np.mean(distances < 1.6) > 0.96
    assert np.mean(distances < 4) > 0.998
    assert distances.mean() < 1.25 * of_data.mean()


def test_every_part_gets_its_share(trained):
    plane, model = trained
    landed = toy.backwards(model, range(COUNT))[-1]
    part, _ = plane.nearest(landed)
    share = 1 / plane.parts
    off = np.abs(np.bincount(part, minlength=plane.parts) / COUNT - share)
    assert off.max() < STANDARD_ERRORS * np.sqrt(share * (1 - share) / COUNT) + 0.01  # what the network may be off by
    for k in range(plane.parts):  # and all along each part, not in one place of it
        along = plane.draw(COUNT, seed=2)[plane.nearest(plane.draw(COUNT, seed=2))[0] == k]
        assert np.abs(landed[part == k].mean(axis=0) - along.mean(axis=0)).max() < 0.8
        assert np.abs(landed[part == k].std(axis=0) - along.std(axis=0)).max() < 0.6


def test_a_few_steps_of_another_sampler_land_too(trained):
    plane, model = trained
    way = toy.backwards(model, range(500), "dpm_solver", 25)
    assert way.shape == (26, 500, 2)
    assert np.mean(plane.nearest(way[-1])[1] < 2) > 0.9


def test_the_way_back_starts_at_noise_and_ends_where_generate_does(trained):
    plane, model = trained
    seeds = range(8)
    way = toy.backwards(model, seeds)
    assert way.shape == (model.schedule.num_timesteps + 1, 8, 2)
    pixels = model.generate(seeds, verbose=False).reshape(8, 2)
    np.testing.assert_allclose(way[-1], (pixels / 127.5 - 1) * toy.LIMIT, atol=toy.LIMIT / 255 + 1e-3)
    wide = toy.backwards(model, range(COUNT), num_steps=1)[0]
    assert np.abs(wide.std(axis=0) / toy.LIMIT - 1).max() < STANDARD_ERRORS / np.sqrt(2 * COUNT)
    assert np.abs(way[0]).max() > plane.nearest(way[-1])[1].max()


@pytest.mark.parametrize("sampler", ["heun", "predictor_corrector"])
def test_samplers_of_several_rows_a_step_are_drawn_call_by_call(sampler):
    model = kddpm.DiffusionModel(toy.MLP(), schedules.cosine(20))
    way = toy.backwards(model, range(3), sampler, 5)
    pixels = model.generate(range(3), sampler, 5, verbose=False).reshape(3, 2)
    assert len(way) == samplers.step_table(samplers.by_name(sampler), model.schedule, 5).num_rows + 1 == 10
    np.testing.assert_allclose(np.clip(way[-1] / toy.LIMIT, -1, 1), pixels / 127.5 - 1, atol=1 / 255 + 1e-4)


@pytest.mark.parametrize("plane", toy.BY_NAME.values(), ids=lambda plane: plane.name)
def test_data(plane):
    points = plane.draw(4000, seed=3)
    part, distances = plane.nearest(points)
    assert np.abs(points).max() < toy.LIMIT and np.ptp(points[:, 0]) > 20
    assert np.abs(np.bincount(part) / 4000 - 1 / plane.parts).max() < 0.04
    assert 0.5 * plane.spread < distances.mean() < 1.5 * plane.spread
    np.testing.assert_allclose(toy.to_points(toy.to_images(points)), points, atol=1e-5)
    assert np.array_equal(points, plane.draw(4000, seed=3)) and not np.array_equal(points, plane.draw(4000, seed=4))


def test_the_four_points_are_where_they_are_said_to_be():
    part, distances = toy.BY_NAME["points"].nearest(np.array([[10, 10], [-10, 10], [-10, -7], [13, -14]]))
    assert part.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(distances, [0, 0, 3, 5])
    part, distances = toy.BY_NAME["moons"].nearest(np.array([[-10 / 3, 5], [10 / 3, -5], [-10 / 3, -5 / 3]]))
    assert part.tolist()[:2] == [0, 1]  # the summits of the two half circles, and the centre of the first
    np.testing.assert_allclose(distances[:2], [0, 0], atol=0.05)


def test_forwards_is_the_process():
    """Mean and variance of q(x_t | x_0) at every t of the chain, to 5 standard errors."""
    schedule = schedules.cosine(30)
    way = toy.forwards(schedule, np.full((COUNT, 2), 10.0)) / toy.LIMIT
    assert way.shape == (31, COUNT, 2) and np.all(way[0] == np.float32(0.8))
    for t in range(30):
        variance = schedule.one_minus_alpha_bars[t]
        off = np.abs(way[t + 1].mean() - 0.8 * np.sqrt(schedule.alpha_bars[t]))
        assert off < STANDARD_ERRORS * np.sqrt(variance / way[0].size)
        assert np.abs(way[t + 1].var() / variance - 1) < STANDARD_ERRORS * np.sqrt(2 / way[0].size)


def test_an_mlp_is_a_network(tmp_path):
    mlp = toy.MLP((2, 3, 1), width=8, depth=2)
    x, t = np.random.default_rng(0).normal(size=(5, 2, 3, 1)), np.arange(5)
    assert np.all(mlp([x, t]) == 0) and mlp.compute_output_shape([(5, 2, 3, 1), (5,)]) == (5, 2, 3, 1)
    rng = np.random.default_rng(1)
    mlp.set_weights([rng.normal(size=w.shape) for w in mlp.weights])
    assert not np.allclose(mlp([x, t]), mlp([x, t + 1]))
    model = kddpm.DiffusionModel(mlp, schedules.cosine(20))
    model.save(tmp_path / "toy.keras")
    again = keras.models.load_model(tmp_path / "toy.keras")
    np.testing.assert_array_equal(again.network([x, t]), mlp([x, t]))
    assert np.array_equal(
        again.generate([1], num_steps=3, verbose=False), model.generate([1], num_steps=3, verbose=False)
    )
    wide = toy.MLP((2, 3, 1), width=8, depth=1, out_channels=2)
    assert wide([x, t]).shape == (5, 2, 3, 2) == wide.compute_output_shape([(5, 2, 3, 1), (5,)])
    with pytest.raises(InputError, match="`width` must be divisible by 4. Received: 6"):
        toy.MLP(width=6)


# Gaussian data.


@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [
        ("x0", schedules.zero_terminal_snr(schedules.cosine(10))),
        pytest.param("v", schedules.cosine(10), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_min_snr_trains_the_x_0_with_which_sampling_starts(prediction, schedule):
    """docs/theory.md, section 6: where no signal is left the mean of the data is best. A floor misses it by 0.05 after
    these 600 steps, and without one training misses it by 0.24 (x0) and 0.10 (v)."""
    keras.utils.set_random_seed(0)
    points = toy.to_images(toy.BY_NAME["points"].draw(5000))
    model = kddpm.DiffusionModel(toy.MLP(), schedule, prediction=prediction, weighting="min_snr", ema_momentum=0.99)
    rate = keras.optimizers.schedules.CosineDecay(4e-3, 600)
    model.compile(keras.optimizers.Adam(rate), jit_compile=True, steps_per_execution=50)
    model.fit(points, batch_size=250, epochs=30, verbose=0)
    noise = np.random.default_rng(0).normal(size=(2000, *toy.IMAGE_SHAPE)).astype(np.float32)
    t = np.full(2000, 9, np.int32)
    x_0 = model.diffusion.x0_from(noise, t, model.ema_network([noise, t]), prediction)
    error = np.sqrt(np.mean((x_0 - points.mean(axis=0)) ** 2))
    assert error < 0.075


def test_the_density_of_four_points_is_the_mixture_and_its_entropy_that_of_one_normal_and_a_choice():
    """Cells of 0.2 about the points: the mass is 1 and the entropy log(4 * 2 pi e spread^2), to 1e-9."""
    plane = toy.BY_NAME["points"]
    points = plane.draw(5, seed=1)
    squares = np.sum((points[:, None] - toy.CENTRES) ** 2, axis=-1)
    mixture = np.mean(np.exp(-squares / (2 * 0.5**2)), axis=1) / (2 * np.pi * 0.5**2)
    np.testing.assert_allclose(np.exp(plane.log_density(points)), mixture, rtol=1e-12)
    side = np.arange(-15, 15, 0.2) + 0.1
    near = side[np.abs(np.abs(side) - 10) < 5]
    cells = np.stack(np.meshgrid(near, near), axis=-1).reshape(-1, 2)
    log_p = np.concatenate([plane.log_density(chunk) for chunk in np.array_split(cells, 10)])
    mass = np.exp(log_p) * 0.2**2
    assert mass.sum() == pytest.approx(1, abs=1e-9)
    assert -np.sum(mass * log_p) == pytest.approx(np.log(4 * 2 * np.pi * np.e * 0.5**2), abs=1e-9)
    many = plane.draw(20_000, seed=2)
    expected = np.log(4 * 2 * np.pi * np.e * 0.5**2) / 2 - np.log(toy.LIMIT)
    assert toy.exact_nats(plane, many) == pytest.approx(expected, abs=5 * 0.5 / np.sqrt(20_000))


def test_the_density_of_moons_has_mass_one_and_is_that_of_finer_places():
    """The mass to 1e-6 in cells of 0.2; against 40,000 places of the skeleton, to 1e-3 nats at drawn points."""
    plane = toy.BY_NAME["moons"]
    cells = np.stack(np.meshgrid(np.arange(-13, 13, 0.2), np.arange(-9, 9, 0.2)), axis=-1).reshape(-1, 2)
    mass = sum(np.exp(plane.log_density(chunk)).sum() for chunk in np.array_split(cells, 12)) * 0.2**2
    assert mass == pytest.approx(1, abs=1e-6)
    points, u = plane.draw(100, seed=1), (np.arange(40_000) + 0.5) / 40_000
    squares = np.sum((points[:, None] - plane.skeleton(u)) ** 2, axis=-1) / 0.4**2
    fine = np.log(np.mean(np.exp(-squares / 2), axis=1) / (2 * np.pi * 0.4**2))
    np.testing.assert_allclose(plane.log_density(points), fine, atol=1e-3)
