import types

import numpy as np
import pytest
import tensorflow as tf
from helpers.closed_form import BestNetwork, assert_moments, best_model, chain_moments, repaint_levels, repaint_moments
from helpers.comparing import apart

import kddpm
from kddpm.base.errors import InputError
from kddpm.data import images
from kddpm.sampling import editing, generation, noise, samplers, walks
from kddpm.sampling.samplers import DDIM, Ancestral

SHAPE = (4, 4, 1)
PHOTOS = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)
MASK = np.arange(16).reshape(4, 4) % 3 > 0  # the first pixel is to be painted, the second known, ...


@pytest.fixture(scope="module")
def model():
    return best_model(SHAPE, std=0.3, correlation=0.5)


@pytest.fixture(scope="module")
def model_with_classes():
    return best_model(SHAPE, std=0.1, class_means=(-0.6, 0.0, 0.6))


@pytest.fixture
def painted(monkeypatch):
    """What was given to `generation.paint` and what came of it, a call each."""
    calls, paint = [], generation.paint

    def recorded(model, table, seeds, labels, **options):
        floats, trajectory = paint(model, table, seeds, labels, **options)
        calls.append(types.SimpleNamespace(table=table, seeds=seeds, labels=labels, floats=floats, **options))
        return floats, trajectory

    monkeypatch.setattr(generation, "paint", recorded)
    return calls


def paint_from(model, x_T, num_steps=None, labels=None):
    """DDIM from a given x_T, float32."""
    table = model.denoiser.steps(DDIM(), num_steps)
    return generation.paint(model.denoiser, table, np.arange(len(x_T), dtype=np.int32), labels, x=x_T)[0]


# Inversion.


def test_an_inverted_image_is_painted_again(model):
    for iterations, allowed in ((1, 60), (4, 10), (16, 0)):
        x_T = model.invert(PHOTOS, iterations=iterations)
        again = images.to_uint8(paint_from(model, x_T)).numpy()
        assert apart(again, PHOTOS) <= allowed
        assert (apart(again, PHOTOS) == 0) == (iterations == 16)
    assert x_T.shape == PHOTOS.shape and x_T.dtype == np.float32


def test_inversion_of_a_network(trained_like):
    """More iterations come closer; the pictures are the network's own."""
    pictures, errors = trained_like.generate(range(4), "ddim"), []
    for iterations in (1, 8):
        again = paint_from(trained_like, trained_like.invert(pictures, iterations=iterations))
        errors.append(np.abs(images.to_uint8(again).numpy().astype(int) - pictures).mean())
    assert errors[0] > 2 and errors[1] < 0.2  # grey levels


def test_every_form_of_the_same_images_is_inverted_alike(model):
    x_T = model.invert(PHOTOS, 7)
    np.testing.assert_array_equal(model.invert(images.to_float(PHOTOS).numpy(), num_steps=7), x_T)
    np.testing.assert_array_equal(model.invert(PHOTOS, samplers.timestep_grid(model.schedule, 7)), x_T)
    np.testing.assert_allclose(model.invert(PHOTOS, 7, batch_size=2), x_T, atol=1e-5)
    assert not np.allclose(model.invert(PHOTOS, 7, spacing="karras"), x_T, atol=1e-2)
    for k in range(3):
        np.testing.assert_allclose(model.invert(PHOTOS[k : k + 1], 7), x_T[k : k + 1], atol=1e-5)


def test_inversion_of_images_with_classes(model_with_classes):
    x_T = model_with_classes.invert(PHOTOS, labels=[0, 1, 2])
    other = model_with_classes.invert(PHOTOS, labels=[0, 2, 2])
    np.testing.assert_allclose(other[[0, 2]], x_T[[0, 2]], atol=1e-5)
    assert not np.allclose(other[1], x_T[1], atol=0.1)


# Interpolation.


def test_the_ends_of_an_interpolation_are_the_images(trained_like):
    """Also where the inversion does not find the way back."""
    a, b = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    row = trained_like.interpolate(a, b, 4, num_steps=5, iterations=1)
    assert row.shape == (4, 8, 8, 1) and row.dtype == np.uint8
    np.testing.assert_array_equal(row[[0, -1]], [a, b])
    assert min(apart(row[i], row[j]) for i in range(4) for j in range(i)) > 20


def test_the_way_leads_along_the_sphere(model, monkeypatch, painted):
    """Ends of equal norm: every stop has it, and its angles to them are its shares of theirs."""
    ends = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    ends[1] *= np.linalg.norm(ends[0]) / np.linalg.norm(ends[1])
    monkeypatch.setattr(editing, "_inverted", lambda *args, **kwargs: ends)
    model.interpolate(*PHOTOS[:2], 7, num_steps=5)
    stops = painted[-1].x.reshape(7, -1).astype(np.float64)
    norms = np.linalg.norm(stops, axis=1)
    np.testing.assert_allclose(norms, norms[0], rtol=1e-5)
    angles = np.arccos(np.clip(stops @ stops[0] / norms**2, -1, 1))
    np.testing.assert_allclose(angles, np.linspace(0, angles[-1], 7), atol=1e-3)
    assert angles[-1] > 1
    assert painted[-1].x.dtype == np.float32


@pytest.mark.parametrize("factor", [1, 2, -1])
def test_parallel_ends_have_a_straight_way(model, monkeypatch, painted, factor):
    ends = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    monkeypatch.setattr(editing, "_inverted", lambda *args, **kwargs: np.concatenate([ends, factor * ends]))
    model.interpolate(*PHOTOS[:2], 3, num_steps=5)
    np.testing.assert_allclose(painted[-1].x[1], (1 + factor) / 2 * ends[0], atol=1e-6)


def test_an_interpolation_takes_the_class_of_the_nearer_end(model_with_classes, painted):
    model_with_classes.interpolate(*PHOTOS[:2], 5, labels=[2, 1])
    inverted, walked = painted
    assert inverted.labels.tolist() == [2, 1] and walked.labels.tolist() == [2, 2, 2, 1, 1]
    assert inverted.table.timesteps[-1] == walked.table.timesteps[0] == 19
    model_with_classes.interpolate(*PHOTOS[:2], 2, num_steps=4, labels=[0, 2])
    assert painted[-1].labels.tolist() == [0, 2] and painted[-1].table.num_rows == 4


def test_an_interpolation_at_a_t_mixes_noised_images(model, painted):
    """Ho et al. 2020, figure 8: both ends with the noise of the seed, so that what lies between has its variance."""
    alpha_bars = np.cumprod(1 - model.schedule.betas)
    row = model.interpolate(*PHOTOS[:2], 3, t=9, seed=5)
    (walked,) = painted
    assert walked.table.timesteps[0] == 9 and walked.seeds.tolist() == [5, 5, 5]
    a, b = PHOTOS[:2] / 127.5 - 1
    z = noise.normal(tf.constant([5]), noise.INITIAL_STREAM, 0, SHAPE).numpy()[0]
    expected = [np.sqrt(alpha_bars[9]) * x_0 + np.sqrt(1 - alpha_bars[9]) * z for x_0 in (a, (a + b) / 2, b)]
    np.testing.assert_allclose(walked.x, expected, atol=1e-5)
    np.testing.assert_array_equal(row[[0, 2]], model.variations(PHOTOS[:2], 0.5, [5, 5]))
    assert apart(model.interpolate(*PHOTOS[:2], 3, t=0, sampler="ddim")[1], 127.5 * ((a + b) / 2 + 1)) <= 30


@pytest.mark.parametrize(("num_steps", "t", "level"), [(None, 19, 19), (5, 18, 19), (5, 0, 3), (5, 8, 7)])
def test_an_interpolation_begins_at_the_nearest_level_from_noised_images(model, painted, num_steps, t, level):
    alpha_bars = np.cumprod(1 - model.schedule.betas)
    model.interpolate(*PHOTOS[:2], 2, num_steps=num_steps, t=t)
    (walked,) = painted
    assert walked.table.timesteps[0] == level
    apart = (PHOTOS[0].astype(float) - PHOTOS[1]) / 127.5
    np.testing.assert_allclose(walked.x[0] - walked.x[1], np.sqrt(alpha_bars[level]) * apart, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"sampler": "heun"}, "`sampler` has no meaning without `t`. Received: heun"),
        ({"seed": 3}, "`seed` has no meaning without `t`. Received: 3"),
        ({"guidance_scale": 2.0}, "`guidance_scale` has no meaning without `t`. Received: 2.0"),
        ({"t": 3, "iterations": 2}, "`iterations` has no meaning with `t`. Received: 2"),
    ],
)
def test_what_an_interpolation_does_not_use_is_refused(model, given, text):
    with pytest.raises(InputError, match=text):
        model.interpolate(*PHOTOS[:2], **given)


def test_an_interpolation_at_a_t_takes_sampler_and_classes(model_with_classes, painted):
    model_with_classes.interpolate(*PHOTOS[:2], 4, num_steps=4, labels=[2, 0], t=14, sampler="heun")
    (walked,) = painted
    assert walked.labels.tolist() == [2, 2, 0, 0] and walked.table.has_memory
    with pytest.raises(InputError, match=r"`t` must lie in 0 .. 19. Received: 20"):
        model_with_classes.interpolate(*PHOTOS[:2], labels=[0, 0], t=20)


# Variations.


@pytest.mark.parametrize("name", samplers.BY_NAME)
def test_strengths_lead_from_the_image_to_the_seed(model, name):
    seeds, options = [5, -7, 9], {"sampler": name, "num_steps": 5}
    np.testing.assert_array_equal(model.variations(PHOTOS, 0.0, seeds, **options), PHOTOS)
    np.testing.assert_array_equal(model.variations(PHOTOS, 0.02, seeds, **options), PHOTOS)  # less than half a step
    generated = model.generate(seeds, name, 5)
    np.testing.assert_array_equal(model.variations(PHOTOS, 1.0, seeds, **options), generated)
    between = model.variations(PHOTOS, 0.3, seeds, **options)
    assert between.shape == PHOTOS.shape and between.dtype == np.uint8
    assert apart(between, PHOTOS) > 20 and apart(between, generated) > 20
    np.testing.assert_array_equal(model.variations(PHOTOS, 0.3, seeds, **options), between)


def test_variations_depend_on_image_and_seed(model):
    alone = model.variations(PHOTOS[0], 0.25, [3, 4, 3])
    np.testing.assert_array_equal(alone[0], alone[2])
    assert apart(alone[0], alone[1]) > 10
    many = model.variations(PHOTOS, 0.25, [3, 4, 3])
    assert apart(many[0], alone[0]) <= 1 and apart(many[2], alone[2]) > 10
    assert apart(model.variations(PHOTOS, 0.25, [3, 4, 3], batch_size=2), many) <= 1
    assert apart(model.variations(images.to_float(PHOTOS).numpy(), 0.25, [3, 4, 3]), many) == 0
    assert apart(model.variations(PHOTOS, 0.25), model.variations(PHOTOS, 0.25, range(3))) == 0


@pytest.mark.parametrize("strength", [0.25, 0.8])
@pytest.mark.parametrize("sampler", [Ancestral("large", clip=False), DDIM(clip=False)], ids=str)
def test_variations_have_the_moments_of_the_chain(sampler, strength, painted):
    """From q(x_t | x_0) at the level of the strength down to the data."""
    model, photo = best_model((1, 2, 1), std=0.25), np.full((1, 2, 1), 191, np.uint8)
    model.variations(photo, strength, range(8192), sampler=sampler, batch_size=8192)
    x_0, steps = 191 / 127.5 - 1, round(20 * strength)
    alpha_bar = np.prod(1 - model.schedule.betas[:steps])
    start = np.sqrt(alpha_bar) * x_0, 1 - alpha_bar
    assert_moments(painted[0].x, *start)
    assert painted[0].table.timesteps.tolist() == list(range(steps))[::-1]
    moments = chain_moments(sampler, model.schedule.betas, range(steps), 0.0, 0.25, start)
    assert_moments(painted[0].floats, *moments)


def test_variations_of_a_respaced_model_begin_at_the_right_level(painted):
    """Its schedule has other names for its steps than 0 .. T - 1."""
    whole = kddpm.schedules.linear(100, 1e-3, 0.2)
    model = kddpm.DiffusionModel(BestNetwork((1, 2, 1), whole.betas), whole.respace(range(9, 100, 10)))
    model.variations(np.full((1, 2, 1), 191, np.uint8), 0.4, range(4096), sampler="ddim", batch_size=4096)
    assert painted[0].table.timesteps.tolist() == [39, 29, 19, 9]
    alpha_bar = whole.alpha_bars[39]
    assert_moments(painted[0].x, np.sqrt(alpha_bar) * (191 / 127.5 - 1), 1 - alpha_bar)


# Inpainting.


@pytest.mark.parametrize("resamplings", [1, 2, 5])
@pytest.mark.parametrize(("steps", "jump_length"), [(20, 1), (20, 3), (20, 10), (20, 19), (20, 30), (7, 2), (1, 1)])
def test_resampling_follows_the_published_schedule(model, monkeypatch, steps, jump_length, resamplings):
    asked = []

    def only_listen(model, table, *args, **kwargs):
        asked.extend(table.timesteps)
        return np.zeros((3, *SHAPE), np.float32), None

    monkeypatch.setattr(generation, "paint", only_listen)
    options = {"num_steps": steps, "jump_length": jump_length, "resamplings": resamplings}
    if resamplings > 1 and jump_length >= steps:
        with pytest.raises(InputError, match=f"`jump_length` must be less than the {steps} steps, .* {jump_length}$"):
            model.inpaint(PHOTOS, MASK, **options)
        return
    model.inpaint(PHOTOS, MASK, **options)
    grid = samplers.timestep_grid(model.schedule, steps)
    assert asked == [grid[t] for t, _, _ in repaint_levels(steps, jump_length, resamplings)]


@pytest.mark.parametrize(("steps", "jump_length"), [(20, 10), (11, 10), (10, 9), (2, 1)])
def test_jumps_fit_the_steps_where_none_are_asked_for(model, painted, steps, jump_length):
    model.inpaint(PHOTOS, MASK, num_steps=steps)
    model.inpaint(PHOTOS, MASK, num_steps=steps, jump_length=jump_length)
    first, second = (call.table.timesteps.tolist() for call in painted)
    assert first == second and len(first) > steps


@pytest.mark.parametrize("sampler", [Ancestral("large"), DDIM(), DDIM(1.0, clip="dynamic")], ids=str)
def test_known_pixels_are_those_of_the_image(model, sampler):
    options = {"sampler": sampler, "jump_length": 3, "resamplings": 2}
    made = model.inpaint(PHOTOS, MASK, [1, 2, 3], **options)
    assert made.shape == PHOTOS.shape and made.dtype == np.uint8
    np.testing.assert_array_equal(made[:, MASK], PHOTOS[:, MASK])
    of_one = model.inpaint(PHOTOS[0], MASK, [1, 1, 4], **options)
    np.testing.assert_array_equal(of_one[:, MASK], PHOTOS[[0, 0, 0]][:, MASK])
    assert apart(of_one[0], of_one[1]) == 0 and apart(of_one[0], made[0]) <= 1
    assert np.abs(of_one[0].astype(int) - of_one[2])[~MASK].max() > 10
    assert apart(model.inpaint(PHOTOS, MASK, [1, 2, 3], batch_size=2, **options), made) <= 1


def test_every_form_of_a_mask(model):
    options = {"resamplings": 2, "jump_length": 5, "num_steps": 10}
    made = model.inpaint(PHOTOS, MASK, **options)
    for mask in (MASK.astype(np.uint8) * 255, MASK.astype(float), MASK.tolist(), np.stack([MASK] * 3),
                 MASK * np.uint8(252) + np.uint8(2), MASK[..., np.newaxis]):  # fmt: skip
        np.testing.assert_array_equal(model.inpaint(PHOTOS, mask, **options), made)
    masks = np.stack([MASK, ~MASK, np.ones_like(MASK)])
    each = model.inpaint(PHOTOS, masks, **options)
    np.testing.assert_array_equal(each[masks], PHOTOS[masks])
    assert np.abs(each.astype(int) - PHOTOS)[~masks].max() > 10
    assert apart(each[0], made[0]) <= 1


def test_of_all_known_nothing_is_painted(model):
    np.testing.assert_array_equal(model.inpaint(PHOTOS, np.ones((4, 4), bool)), PHOTOS)


@pytest.mark.parametrize("name", ["ancestral", "ddim"])
def test_of_nothing_known_everything_is(model, name, painted):
    """Bit for bit: each row is followed by 1 x + 0 z, which changes no float."""
    made = model.inpaint(PHOTOS, np.zeros((4, 4)), [4, 5, 6], sampler=name, resamplings=1)
    np.testing.assert_array_equal(made, model.generate([4, 5, 6], name))
    np.testing.assert_array_equal(painted[0].floats, painted[1].floats)


CORRELATION, STD, KNOWN = 0.9, 0.25, float(images.to_float(np.uint8(191)))
FIFTY = kddpm.schedules.linear(50, 1e-3, 0.2)


def inpaint_one_of_two(sampler, count=4096, **options):
    """The left pixel of two that are correlated is known, 191."""
    model = best_model((1, 2, 1), FIFTY, std=STD, correlation=CORRELATION)
    photo = np.array([[[191], [0]]], np.uint8)
    model.inpaint(photo, [[True, False]], range(count), sampler=sampler, batch_size=count, **options)
    return model


@pytest.mark.parametrize(
    ("sampler", "num_steps", "jump_length", "resamplings"),
    [
        (Ancestral("small", clip=False), 50, 10, 1),
        (Ancestral("small", clip=False), 50, 10, 3),
        (Ancestral("large", clip=False), 25, 3, 3),
        (DDIM(clip=False), 25, 3, 3),
        (DDIM(1.0, clip=False), 10, 2, 5),
    ],
    ids=str,
)
def test_inpainting_has_the_moments_of_the_published_algorithm(sampler, num_steps, jump_length, resamplings, painted):
    options = {"num_steps": num_steps, "jump_length": jump_length, "resamplings": resamplings}
    inpaint_one_of_two(sampler, **options)
    alpha_bars = FIFTY.alpha_bars[samplers.timestep_grid(FIFTY, num_steps)]
    levels = repaint_levels(num_steps, jump_length, resamplings)
    expected = repaint_moments(sampler, alpha_bars, levels, KNOWN, STD, CORRELATION)
    assert_moments(painted[0].floats[:, 0, 1, 0], *expected)
    np.testing.assert_array_equal(painted[0].floats[:, 0, 0, 0], KNOWN)


def test_resampling_leads_to_the_conditional(painted):
    """The right pixel is N(rho x, std^2 (1 - rho^2)) given the left; "replacement" alone (once) does not paint that.

    Expected errors of the mean, of 4096 pictures to +-0.01 at 5 standard errors: 0.16, 0.10, 0.06; of 50 steps taken
    one at a time.
    """
    errors = []
    for resamplings in (1, 2, 5):
        inpaint_one_of_two(Ancestral("small", clip=False), jump_length=1, resamplings=resamplings)
        right = painted[-1].floats[:, 0, 1, 0]
        levels = repaint_levels(50, 1, resamplings)
        assert_moments(right, *repaint_moments(Ancestral("small"), FIFTY.alpha_bars, levels, KNOWN, STD, CORRELATION))
        errors.append(CORRELATION * KNOWN - np.mean(right, dtype=np.float64))
    assert errors[0] > 0.14 and errors[1] < 0.12 and 0 < errors[2] < 0.08
    assert np.var(right) == pytest.approx(STD**2 * (1 - CORRELATION**2), rel=0.5)


def test_known_pixels_have_the_noise_of_every_level(painted):
    """Row by row: q(x_t | x_0) at the level reached, jumps included."""
    count, sampler = 4096, Ancestral("small", clip=False)
    model = inpaint_one_of_two(sampler, count, num_steps=10, jump_length=2, resamplings=2)
    call, alpha_bars = painted[0], np.append(FIFTY.alpha_bars[4::5], 1.0)
    predict, seeds = model.denoiser.predictor(), tf.constant(call.seeds)
    x, levels = walks.initial_noise(seeds, (1, 2, 1)), repaint_levels(10, 2, 2)
    assert call.table.num_rows == len(levels)
    for row, (_, _, level) in enumerate(levels):
        x = walks.take_step(predict, call.table, x, seeds, row)
        x = call.edit.function(x, row, seeds, *call.edit.arrays)
        known, variance = np.array(x, np.float64)[:, 0, 0, 0], 1 - alpha_bars[level]
        if level < 0:
            np.testing.assert_array_equal(known, KNOWN)
        else:
            assert_moments(known, np.sqrt(alpha_bars[level]) * KNOWN, variance)
    np.testing.assert_allclose(x, call.floats, atol=1e-5)


# What all of them share.


def test_labels_and_guidance_are_passed_on(model_with_classes, painted):
    options = {"labels": [2, 0, 1], "guidance_scale": 2.0, "num_steps": 4}
    guided = model_with_classes.inpaint(PHOTOS, MASK, **options), model_with_classes.variations(PHOTOS, 0.5, **options)
    for call, made in zip(painted, guided, strict=True):
        assert call.labels.tolist() == [2, 0, 1] and call.guidance_scale == 2.0
        means = made[:, ~MASK].mean(axis=(1, 2))
        assert means[0] > 150 and means[1] < 100 and 100 < means[2] < 155
    model_with_classes.inpaint(PHOTOS, MASK, [4, -1, 3], labels=[1, 2, 0])
    model_with_classes.variations(PHOTOS, 0.5, [4, -1, 3], labels=[1, 2, 0])
    assert [call.guidance_scale for call in painted[2:]] == [1.0] * 2
    for edit in (
        lambda: model_with_classes.inpaint(PHOTOS, MASK),
        lambda: model_with_classes.variations(PHOTOS, 0.5),
        lambda: model_with_classes.interpolate(*PHOTOS[:2]),
        lambda: model_with_classes.invert(PHOTOS),
    ):
        with pytest.raises(InputError, match="`labels` are needed: the network has 3 classes. Received: None"):
            edit()


FLOATS = images.to_float(PHOTOS).numpy()


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda m: m.variations(PHOTOS, -0.1), r"`strength` must lie in \[0, 1\]. Received: -0.1"),
        (lambda m: m.variations(PHOTOS, 1.1), r"`strength` must lie in \[0, 1\]. Received: 1.1"),
        (lambda m: m.variations(PHOTOS, float("nan")), "`strength` must be a number. Received: nan"),
        (lambda m: m.variations(2 * FLOATS, 0.5), r"Images must be uint8, or finite floats in \[-1, 1\]"),
        (lambda m: m.variations(FLOATS / FLOATS.max() * np.nan, 0.5), r"finite floats in \[-1, 1\] .* NaN"),
        (lambda m: m.variations(PHOTOS.astype(int), 0.5), "Images must be uint8, or float .* Received: int64"),
        (lambda m: m.variations(PHOTOS[:, :3], 0.5), r"must have the shape \(N, 4, 4, 1\) .*: \(\d, 3, 4, 1\)"),
        (lambda m: m.variations(PHOTOS[0, :3], 0.5), r"must have the shape \(N, 4, 4, 1\) .*: \(\d, 3, 4, 1\)"),
        (lambda m: m.variations(PHOTOS[0, 0], 0.5), r"must have the shape \(N, 4, 4, 1\)"),
        (lambda m: m.variations(PHOTOS[:0], 0.5), "Images must be at least one. Received: none"),
        (lambda m: m.variations(PHOTOS, 0.5, [1, 2]), "`seeds` must be one an image. Received: 2 seeds, 3 images"),
        (lambda m: m.variations(PHOTOS, 0.5, [1.0, 2.0, 3.0]), "`seeds` must be a non-empty list of integers"),
        (lambda m: m.variations(PHOTOS, 0.5, sampler="euler"), "`sampler` must be one of .* Received: 'euler'"),
        (lambda m: m.variations(PHOTOS, 0.5, num_steps=21), r"`num_steps` must be an integer in 1 .. 20 \(T\)"),
        (lambda m: m.variations(PHOTOS, 0.5, labels=[0, 1, 2]), "`labels` were given, but the network has no classes"),
        (lambda m: m.variations(PHOTOS, 0.5, guidance_scale=2.0), "`guidance_scale` needs a network with classes"),
        (lambda m: m.variations(PHOTOS, 0.5, batch_size=0), "`batch_size` must be an integer of at least 1"),
        *(
            (lambda m, name=name: m.inpaint(PHOTOS, MASK, sampler=name),
             f"`sampler` must be ancestral or ddim for inpainting. Received: {name}")
            for name in ("heun", "dpm_solver", "predictor_corrector")
        ),
        (lambda m: m.inpaint(PHOTOS, MASK[:3]), r"`mask` must be 4 x 4, or 3 of these. Received: shape \(3, 4\)"),
        (lambda m: m.inpaint(PHOTOS, MASK[0]), r"`mask` must be 4 x 4, or 3 of these. Received: shape \(4,\)"),
        (lambda m: m.inpaint(PHOTOS, np.stack([MASK] * 5, -1)), r"`mask` must be 4 x 4, .* shape \(4, 4, 5\)"),
        (lambda m: m.inpaint(PHOTOS, MASK * 3), "`mask` must have white, above 127, .* Received: int64 from 0 to 3"),
        (lambda m: m.inpaint(PHOTOS, np.stack([MASK] * 2)), r"`mask` must be 4 x 4, or 3 .* shape \(2, 4, 4\)"),
        (lambda m: m.inpaint(PHOTOS, MASK.astype(str)), "`mask` must be bool or numbers. Received: <U5"),
        (lambda m: m.inpaint(PHOTOS, MASK, jump_length=0), "`jump_length` must be an integer of at least 1. Rec.*: 0"),
        (lambda m: m.inpaint(PHOTOS, MASK, resamplings=0), "`resamplings` must be an integer of at least 1. Rec.*: 0"),
        (lambda m: m.inpaint(PHOTOS, MASK, [1, 2]), "`seeds` must be one an image. Received: 2 seeds, 3 images"),
        (lambda m: m.inpaint(PHOTOS, MASK, guidance_scale=2.0), "`guidance_scale` needs a network with classes"),
        (lambda m: m.inpaint(2 * FLOATS, MASK), r"Images must be uint8, or finite floats in \[-1, 1\]"),
        (lambda m: m.invert(PHOTOS, iterations=0), "`iterations` must be an integer of at least 1. Received: 0"),
        (lambda m: m.invert(PHOTOS[0]), r"Images must have the shape \(N, 4, 4, 1\)"),
        (lambda m: m.invert(PHOTOS[:0]), "Images must be at least one. Received: none"),
        (lambda m: m.invert(PHOTOS, labels=[0, 1, 2]), "`labels` were given, but the network has no classes"),
        (lambda m: m.interpolate(*PHOTOS[:2], 1), "`count` must be an integer of at least 2. Received: 1"),
        (lambda m: m.interpolate(PHOTOS[0], PHOTOS[0, :3]), r"Images must have the shape \(N, 4, 4, 1\)"),
        (lambda m: m.interpolate(*PHOTOS[:2], labels=[0, 1]), "`labels` were given, but the network has no classes"),
    ],
)  # fmt: skip
def test_unusable_values_are_named(model, edit, text):
    with pytest.raises(InputError, match=text):
        edit(model)


def test_a_doubtful_scale_is_said_once(model):
    for edit in (model.invert, lambda x, **kwargs: model.interpolate(x[0], x[1], 3, **kwargs)):
        with pytest.warns(UserWarning, match="The images lie in") as said:
            edit(PHOTOS / np.float32(255), num_steps=3)
        assert len([warning for warning in said if "The images" in str(warning.message)]) == 1
