import keras
import numpy as np
import pytest
import tensorflow as tf

import kddpm
from kddpm import toy
from kddpm.base.errors import InputError
from kddpm.sampling import samplers
from kddpm.theory import objectives, parametrization, schedules

GAUSSIAN = {"image_shape": (8, 8, 1), "mean": 0.1, "std": 0.3}
# At 5 standard errors a right sampler fails a comparison with probability 6e-7, once: the seeds are fixed.
COUNT, STANDARD_ERRORS = 2000, 5


@pytest.fixture(scope="module", params=toy.BY_NAME)
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
    with pytest.raises(InputError, match="`width` must be divisible by 4. Received: 6"):
        toy.MLP(width=6)


# Gaussian data.


def test_the_closed_form_is_what_a_sample_of_the_process_shows():
    """Regression of eps, and of x_{t-1}, on x_t over 400,000 draws: slope, offset and scatter, to 5 standard errors."""
    schedule, count, rng = schedules.linear(10, 0.01, 0.6), 400_000, np.random.default_rng(0)
    diffusion = kddpm.GaussianDiffusion(schedule)
    for index in (0, 4, 9):
        t = np.full(1, index)
        x_0 = rng.normal(0.1, 0.3, (1, count))
        before = x_0 if index == 0 else diffusion.q_sample(x_0, t - 1, rng.normal(size=x_0.shape))
        x_t = np.asarray(diffusion.q_step(before, t, rng.normal(size=x_0.shape)))
        signal, noise = np.sqrt(schedule.alpha_bars[index]), np.sqrt(schedule.one_minus_alpha_bars[index])
        eps = (x_t - signal * x_0) / noise
        rest = eps - toy.gaussian_eps(schedule, x_t, t, 0.1, 0.3)
        for regressor in (np.ones_like(x_t), x_t):  # what is left has nothing to do with x_t
            assert abs(np.mean(rest * regressor)) < STANDARD_ERRORS * np.std(rest * regressor) / np.sqrt(count)
        slope, offset = np.polyfit(x_t[0], np.asarray(before)[0], 1)
        left = np.var(before - (slope * x_t + offset))
        expected = toy.gaussian_variances(schedule, 0.3)[index]
        assert abs(left / expected - 1) < STANDARD_ERRORS * np.sqrt(2 / count)


def network_of(schedule, variance):
    """(network, arguments of the model) for "learned", which is exact, or with one of the two fixed variances."""

    class FixedVariance(toy.GaussianNetwork):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.out_channels = self.image_shape[-1]

        def call(self, inputs, training=False, seed=None):
            return super().call(inputs)[..., :1]

    kind = toy.GaussianNetwork if variance == "learned" else FixedVariance
    weighting = "hybrid" if variance == "learned" else "simple"
    return kind(schedule=schedule, **GAUSSIAN), {"variance": variance, "weighting": weighting}


def expected_terms_nats(schedule, variance, std):
    """E[L_t] for t > 0 of the best eps with that variance, in closed form, (T - 1,), and the model's variances, (T,).

    E[KL] = (log(s^2 / q) + v / s^2 - 1) / 2 with s^2 the model's variance, q the posterior's, and v that of x_{t-1}
    given x_t alone.
    """
    real = toy.gaussian_variances(schedule, std)
    model = real if variance == "learned" else np.exp(parametrization.log_variances(schedule, variance))
    terms = (np.log(model[1:] / schedule.posterior_variances[1:]) + real[1:] / model[1:] - 1) / 2
    return terms, model


@pytest.mark.parametrize("variance", ["learned", "small", "large"])
def test_every_term_of_the_bound_is_what_it_must_be(variance):
    """4,096 squares a term scatter by 2.2 %; 5 standard errors of 99 terms fail a right network with 6e-5, once."""
    schedule = schedules.linear(100, 1e-3, 0.2)
    network, options = network_of(schedule, variance)
    model = kddpm.DiffusionModel(network, schedule, **options)
    result = model.bits_per_dim(toy.gaussian_images(64, **GAUSSIAN), clip=False, verbose=False)
    expected, _ = expected_terms_nats(schedule, variance, GAUSSIAN["std"])
    np.testing.assert_allclose(result.terms[1:] * np.log(2), expected, rtol=STANDARD_ERRORS * np.sqrt(2 / 4096))


@pytest.mark.parametrize(("variance", "expected"), [("learned", 0.0), ("small", 0.73), ("large", 0.12)])
def test_nothing_beats_the_exact_variance(variance, expected):
    """Bits per dimension above the information in Gaussian data: docs/theory.md quotes these for T = 1000.

    L_0 is the mean over 200,000 pixels and scatters by 0.005.
    """
    schedule, std, rng = schedules.linear(1000), 0.2, np.random.default_rng(1)
    terms, variances = expected_terms_nats(schedule, variance, std)
    x_0 = tf.constant(toy.gaussian_images(200_000, (1,), 0.0, std) / 127.5 - 1)
    t = np.zeros(1, int)
    x_t = kddpm.GaussianDiffusion(schedule).q_sample(x_0, t, rng.normal(size=x_0.shape))
    mean = kddpm.GaussianDiffusion(schedule).x0_from_eps(x_t, t, toy.gaussian_eps(schedule, x_t, t, 0.0, std))
    decoded = objectives.decoder_log_likelihood_nats(x_0, mean, np.log(variances[0]))
    information = objectives.decoder_log_likelihood_nats(x_0, 0.0, 2 * np.log(std))
    excess = (terms.sum() + np.mean(information - decoded)) / np.log(2)
    assert excess == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    "schedule", [schedules.constant(1, 0.5), schedules.constant(200, 0.3), schedules.cosine(1000)], ids=str
)
def test_a_learned_variance_without_a_range_is_its_one_value(schedule):
    """T = 1 has one variance, beta; and where no signal is left, that of the posterior is beta as well."""
    network = toy.GaussianNetwork(schedule=schedule, **GAUSSIAN)
    model = kddpm.DiffusionModel(network, schedule, weighting="hybrid", variance="learned")
    t = np.arange(schedule.num_timesteps)
    x = np.random.default_rng(0).normal(size=(len(t), 8, 8, 1))
    eps, fraction = np.split(network([x, t]), 2, axis=-1)
    assert np.isfinite(eps).all() and np.isfinite(fraction).all()
    variances = np.exp(model.diffusion.log_variance(x, t, "learned", fraction))[:, 0, 0, 0]
    best = toy.gaussian_variances(schedule, GAUSSIAN["std"])
    np.testing.assert_allclose(variances[1:], best[1:], rtol=1e-5)
    assert len(t) > 1 or variances == pytest.approx(0.5)
    assert np.isfinite(model.bits_per_dim(toy.gaussian_images(2, **GAUSSIAN), verbose=False).total)


def test_a_gaussian_network_round_trips_and_wants_plain_steps(tmp_path):
    schedule = schedules.cosine(20)
    network = toy.GaussianNetwork(schedule=schedule, **GAUSSIAN)
    model = kddpm.DiffusionModel(network, schedule, weighting="hybrid", variance="learned")
    model.save(tmp_path / "gaussian.keras")
    again = keras.models.load_model(tmp_path / "gaussian.keras")
    x, t = np.random.default_rng(0).normal(size=(3, 8, 8, 1)), np.array([0, 7, 19])
    np.testing.assert_array_equal(again.network([x, t]), network([x, t]))
    assert network([x, t]).shape == (3, 8, 8, 2)
    with pytest.raises(InputError, match="Received: a respaced schedule"):
        toy.GaussianNetwork(schedule=schedule.respace([3, 19]), **GAUSSIAN)


@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [("x0", schedules.zero_terminal_snr(schedules.cosine(10))), ("v", schedules.cosine(10))],
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
