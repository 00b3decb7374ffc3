"""Every prediction with every weighting, variance and sampler, as docs/combinations.md says."""

import functools
import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.networks import OneConv, T
from helpers.places import ROOT

import kddpm
from kddpm.base.errors import InputError
from kddpm.sampling import generation, samplers
from kddpm.theory import parametrization, schedules

DOCUMENT = ROOT / "docs" / "combinations.md"
CHOICES = {
    "prediction": parametrization.PREDICTIONS,
    "weighting": parametrization.WEIGHTINGS,
    "variance": parametrization.VARIANCES,
    "sampler": tuple(samplers.BY_NAME),
}
OF_DRAWS = {"timestep_sampling": parametrization.TIMESTEP_SAMPLINGS, "weighting": parametrization.WEIGHTINGS}
SHAPE, CLASSES, STEPS = (4, 4, 1), 2, 3
WHOLE = schedules.linear(T, 1e-3, 0.5)
ZERO_SNR = schedules.zero_terminal_snr(WHOLE)
LITTLE_SIGNAL = schedules.constant(T, 1 - 1e-8)  # ends at alpha_bar = 1e-160


def table(*columns):
    """The table of those columns in the document: (choice, ...) -> list of statements."""
    lines = DOCUMENT.read_text().splitlines()
    begin = lines.index(f"| {' | '.join(columns)} | |") + 2
    said = {}
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines[begin:]):
        *cells, statement = (cell.strip() for cell in line.strip("|").split("|"))
        chosen = []
        for column, cell in zip(columns, cells, strict=True):
            every = (CHOICES | OF_DRAWS)[column]
            names = every if cell == "any" else tuple(re.split(r",\s*", cell))
            assert set(names) <= set(every), f"{cell} is no {column}"
            chosen.append(names)
        for combination in itertools.product(*chosen):
            said.setdefault(combination, []).append(statement)
    return said


SAID, SAID_OF_ZERO_SNR = table(*CHOICES), table("prediction", "sampler")
SAID_OF_LITTLE_SIGNAL, SAID_OF_DRAWS = table("prediction", "weighting"), table(*OF_DRAWS)


def test_the_document_says_one_thing_of_every_combination():
    for said, columns in (
        (SAID, tuple(CHOICES)),
        (SAID_OF_ZERO_SNR, ("prediction", "sampler")),
        (SAID_OF_LITTLE_SIGNAL, ("prediction", "weighting")),
        (SAID_OF_DRAWS, tuple(OF_DRAWS)),
    ):
        every = list(itertools.product(*((CHOICES | OF_DRAWS)[column] for column in columns)))
        assert list(said) and sorted(said) == sorted(every)
        assert all(len(statements) == 1 for statements in said.values())
        assert all(re.fullmatch(r'works|refused: ".+"', statements[0]) for statements in said.values())
    works = sum(statements == ["works"] for statements in SAID.values())
    assert f"{len(SAID)} combinations: {works} work, {len(SAID) - works} are refused" in DOCUMENT.read_text().replace(
        "\n", " "
    )


@pytest.fixture(autouse=True)
def eagerly():
    """Nothing here runs often enough to be worth tracing."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def images_and_labels():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (8, *SHAPE), np.uint8), np.arange(8, dtype=np.int32) % CLASSES


def new_model(prediction, weighting, variance, schedule=WHOLE, **choices):
    """A compiled model around a network of one layer."""
    keras.utils.set_random_seed(0)
    network = OneConv(SHAPE, CLASSES, out_channels=2 if variance == "learned" else 1)
    model = kddpm.DiffusionModel(
        network, schedule, prediction=prediction, weighting=weighting, variance=variance, ema_momentum=0.5, **choices
    )
    model.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
    return model


def take_a_step(model):
    """The loss of one training step and, in numbers, how far each weight moved at most."""
    before = model.network.get_weights()
    logs = model.train_on_batch(*images_and_labels(), return_dict=True)
    moved = [np.abs(a - b).max() for a, b in zip(model.network.get_weights(), before, strict=True)]
    return float(logs["loss"]), moved


def pictures_of(model, sampler, monkeypatch, **arguments):
    """What `generate` paints, as uint8 and before it became that, where NaN would show."""
    painted, paint = [], generation.paint

    def watched(*args, **kwargs):
        painted.append(paint(*args, **kwargs))
        return painted[-1]

    monkeypatch.setattr(generation, "paint", watched)
    pictures = model.generate([1, 2], sampler, STEPS, verbose=False, **arguments)
    ((floats, _),) = painted
    return pictures, floats


def assert_two_pictures(pictures, floats):
    assert pictures.dtype == np.uint8 and pictures.shape == floats.shape == (2, *SHAPE)
    assert np.isfinite(floats).all()
    assert len(np.unique(pictures)) > 1 and (pictures[0] != pictures[1]).any()


@functools.cache
def trained(prediction, weighting, variance):
    """A model after one step, its loss, how far its weights moved and its bits per dimension; samplers share it."""
    model = new_model(prediction, weighting, variance)
    loss, moved = take_a_step(model)
    images, labels = images_and_labels()
    return model, loss, moved, model.bits_per_dim(images, labels, num_terms=2, verbose=False)


@pytest.mark.parametrize(("prediction", "weighting", "variance", "sampler"), sorted(SAID))
def test_every_combination_works_or_is_refused_as_documented(prediction, weighting, variance, sampler, monkeypatch):
    (statement,) = SAID[prediction, weighting, variance, sampler]
    if statement != "works":
        with pytest.raises(InputError) as refused:
            new_model(prediction, weighting, variance)
        assert statement.removeprefix("refused: ").strip('"') in str(refused.value)
        return
    model, loss, moved, bits = trained(prediction, weighting, variance)
    assert np.isfinite(loss) and loss > 0
    assert all(np.isfinite(distance) and distance > 0 for distance in moved)
    assert np.isfinite(bits.images).all() and np.isfinite(bits.prior) and bits.total > 0
    assert_two_pictures(*pictures_of(model, sampler, monkeypatch))


@pytest.mark.parametrize(("prediction", "sampler"), sorted(SAID_OF_ZERO_SNR))
def test_a_schedule_without_signal_at_its_end_works_or_is_refused_as_documented(prediction, sampler, monkeypatch):
    (statement,) = SAID_OF_ZERO_SNR[prediction, sampler]

    def paint():
        model = new_model(prediction, "vlb", "learned", ZERO_SNR)
        loss, moved = take_a_step(model)
        assert np.isfinite(loss) and all(np.isfinite(distance) and distance > 0 for distance in moved)
        return pictures_of(model, sampler, monkeypatch)

    if statement == "works":
        assert_two_pictures(*paint())
    else:
        with pytest.raises(InputError) as refused:
            paint()
        assert statement.removeprefix("refused: ").strip('"') in str(refused.value)


@pytest.mark.parametrize(("prediction", "weighting"), sorted(SAID_OF_LITTLE_SIGNAL))
def test_a_schedule_whose_signal_leaves_float32_works_or_is_refused_as_documented(prediction, weighting, monkeypatch):
    (statement,) = SAID_OF_LITTLE_SIGNAL[prediction, weighting]
    variance = "learned" if weighting in ("vlb", "hybrid") else "small"
    if statement != "works":
        with pytest.raises(InputError) as refused:
            new_model(prediction, weighting, variance, LITTLE_SIGNAL)
        assert statement.removeprefix("refused: ").strip('"') in str(refused.value)
        return
    model = new_model(prediction, weighting, variance, LITTLE_SIGNAL)
    loss, moved = take_a_step(model)
    assert np.isfinite(loss) and all(np.isfinite(distance) and distance > 0 for distance in moved)
    for sampler in samplers.BY_NAME:
        assert_two_pictures(*pictures_of(model, sampler, monkeypatch))
    images, labels = images_and_labels()
    assert np.isfinite(model.bits_per_dim(images, labels, num_terms=2, verbose=False).total)


@pytest.mark.parametrize("prediction", parametrization.PREDICTIONS)
def test_variance_exploding_is_a_schedule_like_any_other(prediction, monkeypatch):
    model = new_model(prediction, "vlb", "learned", schedules.variance_exploding(T))
    loss, moved = take_a_step(model)
    assert np.isfinite(loss) and all(np.isfinite(distance) and distance > 0 for distance in moved)
    for sampler in samplers.BY_NAME:
        assert_two_pictures(*pictures_of(model, sampler, monkeypatch))


def test_mu_has_no_min_snr_where_no_signal_is_left():
    with pytest.raises(InputError, match="the weight is 0 in float32 from t=19"):
        new_model("mu", "min_snr", "small", ZERO_SNR)


LOSSES = [
    (weighting, variance)
    for weighting, variance in itertools.product(parametrization.WEIGHTINGS, parametrization.VARIANCES)
    if SAID["eps", weighting, variance, "ddim"] == ["works"]
]


@pytest.mark.parametrize("timestep_sampling", parametrization.TIMESTEP_SAMPLINGS[1:])
@pytest.mark.parametrize(("weighting", "variance"), LOSSES)
@pytest.mark.parametrize("prediction", parametrization.PREDICTIONS)
def test_every_way_to_draw_t_goes_with_every_loss_as_documented(prediction, weighting, variance, timestep_sampling):
    (statement,) = SAID_OF_DRAWS[timestep_sampling, weighting]
    if statement != "works":
        with pytest.raises(InputError) as refused:
            new_model(prediction, weighting, variance, timestep_sampling=timestep_sampling)
        assert statement.removeprefix("refused: ").strip('"') in str(refused.value)
        return
    model = new_model(prediction, weighting, variance, timestep_sampling=timestep_sampling)
    if timestep_sampling == "importance":
        model.loss_squares.assign(np.arange(1, T + 1))
        model.loss_counts.assign(np.full(T, 10))
    loss, moved = take_a_step(model)
    assert np.isfinite(loss) and all(np.isfinite(distance) and distance > 0 for distance in moved)
    if timestep_sampling == "importance":
        assert np.isfinite(model.loss_squares).all() and model.loss_counts.numpy().sum() == 10 * T + 8


def test_log_normal_is_refused_where_it_never_draws_the_last_t():
    with pytest.raises(InputError, match="log_normal never draws the last t, where sampling starts"):
        new_model("edm", "simple", "small", ZERO_SNR, timestep_sampling="log_normal")


@pytest.mark.parametrize("sampler", samplers.BY_NAME)
@pytest.mark.parametrize("clip", [False, "dynamic"])
@pytest.mark.parametrize("spacing", schedules.SPACINGS)
def test_guidance_clipping_and_spacing_go_with_every_sampler(sampler, clip, spacing, monkeypatch):
    model, *_ = trained("v", "hybrid", "learned")
    chosen = samplers.by_name(sampler, clip=clip, spacing=spacing)
    assert_two_pictures(*pictures_of(model, chosen, monkeypatch, guidance_scale=2.0, labels=[0, 1]))


@pytest.mark.parametrize("sampler", samplers.BY_NAME)
def test_edits_go_with_the_samplers_that_the_document_names(sampler):
    model, *_ = trained("v", "hybrid", "learned")
    photos, labels = (part[:2] for part in images_and_labels())
    given = {"sampler": sampler, "num_steps": 6, "labels": labels, "verbose": False}
    varied = model.variations(photos, 0.5, **given)
    assert varied.shape == photos.shape and (varied != photos).any() and (varied[0] != varied[1]).any()
    mask = np.arange(16).reshape(4, 4) % 2 == 0
    if sampler in ("ancestral", "ddim"):
        painted = model.inpaint(photos, mask, jump_length=2, resamplings=2, **given)
        np.testing.assert_array_equal(painted[:, mask], photos[:, mask])
        assert (painted[:, ~mask] != photos[:, ~mask]).any()
    else:
        with pytest.raises(
            InputError, match=f"`sampler` must be ancestral or ddim for inpainting. Received: {sampler}"
        ):
            model.inpaint(photos, mask, **given)


def test_nothing_is_inverted_where_no_signal_is_left():
    model, photos = new_model("v", "simple", "small", ZERO_SNR), images_and_labels()[0][:2]
    for call in (
        lambda: model.invert(photos, 3, labels=[0, 1]),
        lambda: model.interpolate(*photos, count=2, num_steps=3, labels=[0, 1]),
    ):
        with pytest.raises(InputError, match=r"must not end at alpha_bar = 0 \(zero terminal SNR\)"):
            call()
