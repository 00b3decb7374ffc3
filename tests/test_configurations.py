"""Configurations of every kind: what is one trains, what is none ends in a line that names the flag."""

import dataclasses
import itertools
import json
import math

import keras
import numpy as np
import pytest
from helpers.refusals import raises_in_flags
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from kddpm import data
from kddpm.base.errors import InputError
from kddpm.networks.levels import count_parameters
from kddpm.networks.unet import UNet
from kddpm.runs import build, presets
from kddpm.runs.config import TrainConfig, _typed, parse
from kddpm.sampling import samplers
from kddpm.theory import parametrization, schedules

FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
NAMES = st.sampled_from(sorted(FIELDS))

same_examples_each_time = settings(derandomize=True, deadline=None, database=None)
cheap = settings(same_examples_each_time, max_examples=500)


def check_refusal(error, names):
    """One line that can be printed, not too long, and that names one of these flags."""
    text = error.as_flags({name: name for name in FIELDS})
    assert text.isprintable() and len(text) < 600
    if "zero_terminal_snr" in names:
        names = {*names, "prediction"}  # what it does not go with
    assert any(f"--{name}" in text for name in names)


# What is no configuration.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
HUGE = st.integers(0, 20_000).map(lambda bits: 2**bits) | st.integers(0, 20_000).map(lambda bits: -(2**bits))
LISTS = st.lists(st.integers(-3, 40) | HUGE, max_size=40)
VALUES = JSON | HUGE | LISTS | st.integers(-3, 3000) | st.floats(-2, 2)


@cheap
@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3), st.sampled_from(["digits", "ddpm32"]))
def test_values_of_any_kind_make_a_configuration_or_a_line(overrides, preset):
    values = {**presets.PRESETS[preset], **overrides}
    try:
        config = TrainConfig(**values)
    except InputError as error:
        check_refusal(error, overrides)
    else:
        assert TrainConfig(**json.loads(json.dumps(vars(config)))) == config


@cheap
@given(NAMES, VALUES)
def test_a_value_that_cannot_be_is_named(name, value):
    """Alone it is wrong by itself, or beside a flag that its line names as well."""
    try:
        presets.make_config("digits", **{name: value})
    except InputError as error:
        check_refusal(error, {name})


@cheap
@given(st.lists(JSON, min_size=1, max_size=3), st.sampled_from(["image_size", "multipliers", "attention_resolutions"]))
def test_lists_of_anything_else_than_whole_numbers_are_refused(values, name):
    assume(not all(type(value) is int for value in values))
    with raises_in_flags(f"--{name} must"):
        presets.make_config("digits", **{name: values})


# What is no flag.

TEXTS = (
    st.text(max_size=30)
    | st.text("0123456789_.,x+-eE naNinfty", max_size=12)
    | st.from_regex(r"[0-9]{1,3}([x,] ?[0-9]{1,3}){0,3}", fullmatch=True)
    | st.sampled_from(
        ["none", "None", "nan", "inf", "-0", "1e999", "1_0", "9" * 5000, "\u0663", "0x10", "1,", ",", "x"]
    )
)


@settings(cheap, max_examples=2000)
@given(NAMES, TEXTS)
def test_texts_of_any_kind_make_a_flag_or_a_line(name, text):
    try:
        value = parse(FIELDS[name], text)
        config = presets.make_config("digits", **{name: value})
    except InputError as error:
        check_refusal(error, {name})
    else:
        assert getattr(config, name) == _typed(FIELDS[name], value)


# What is one.


def goes_together(*words, zero_terminal_snr):
    schedule = schedules.linear(2)
    try:
        objective = parametrization.Objective(*words)
        objective.check_schedule(schedules.zero_terminal_snr(schedule) if zero_terminal_snr else schedule)
    except InputError:
        return False
    return True


THEORY = ("prediction", "weighting", "variance", "timestep_sampling", "zero_terminal_snr")
THEORIES = [
    words
    for words in itertools.product(
        parametrization.PREDICTIONS,
        parametrization.WEIGHTINGS,
        parametrization.VARIANCES,
        parametrization.TIMESTEP_SAMPLINGS,
        (False, True),
    )
    if goes_together(*words[:-1], zero_terminal_snr=words[-1])
]


@st.composite
def configurations(draw, most_levels=3):
    """Of every word with every other, on images and networks as small as they may be."""
    levels = draw(st.integers(1, most_levels))
    sides = st.integers(1, 3).map(lambda n: n * 2 ** (levels - 1))
    size = draw(st.tuples(sides, sides))
    resolutions = [max(size) // 2**level for level in range(levels)]
    classes = draw(st.none() | st.integers(10, 12))
    label_dropout = draw(st.sampled_from([0.0, 0.1, 0.9]))
    theory = dict(zip(THEORY, draw(st.sampled_from(THEORIES)), strict=True))
    timesteps = draw(st.integers(2 if theory["zero_terminal_snr"] else 1, 30))
    accumulation = draw(st.sampled_from([1, 2, 4]))
    steps = draw(st.none() | st.integers(1, timesteps))
    return {
        "dataset": "digits",
        "image_size": size,
        "channels": draw(st.sampled_from([1, 3])),
        "num_classes": classes,
        "label_dropout": label_dropout,
        "horizontal_flip": draw(st.booleans()),
        "schedule": draw(st.sampled_from(sorted(schedules.BY_NAME))),
        "num_timesteps": timesteps,
        **theory,
        "width": draw(st.integers(1, 9)),
        "multipliers": tuple(draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels))),
        "blocks_per_level": draw(st.integers(1, 2)),
        "attention_resolutions": tuple(draw(st.lists(st.sampled_from(resolutions), unique=True))),
        "dropout": draw(st.sampled_from([0.0, 0.3, 0.99])),
        "batch_size": accumulation * draw(st.integers(1, 2)),
        "learning_rate": draw(st.floats(1e-6, 1e-2)),
        "clip_norm": draw(st.none() | st.floats(1e-3, 10)),
        "accumulation": accumulation,
        "ema_momentum": draw(st.floats(0, 0.9999)),
        "seed": draw(st.integers(-(2**31), 2**31 - 1)),
        "precision": draw(st.sampled_from(["float32", "mixed_bfloat16"])),
        "sampler": draw(st.sampled_from(sorted(samplers.BY_NAME))),
        "sampling_steps": steps,
        "guidance_scale": draw(st.sampled_from([1.0, 2.5])) if classes and label_dropout else 1.0,
    }


def check_that_it_trains(values):
    """One step."""
    config = TrainConfig(**values)
    source = data.load("digits", config.image_size, config.channels)
    model = build.build_model(config, source.images.shape[1:])
    model.compile(keras.optimizers.SGD(config.learning_rate))
    with_labels = config.num_classes is not None
    batches = data.batches(
        source, config.batch_size, seed=config.seed, stop=1, horizontal_flip=config.horizontal_flip,
        with_labels=with_labels,
    )  # fmt: skip
    before = [weight.numpy() for weight in model.network.trainable_weights]
    losses = model.fit(batches, verbose=0).history
    assert math.isfinite(losses["loss"][0]) and losses["skipped_steps"] == [0]
    after = [weight.numpy() for weight in model.network.trainable_weights]
    assert all(np.isfinite(weight).all() for weight in after)
    assert not all(map(np.array_equal, before, after))


without_shrinking = settings(same_examples_each_time, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


@pytest.mark.filterwarnings("ignore:The schedule ends at alpha_bar")
@settings(without_shrinking, max_examples=4)
@given(configurations(most_levels=1))
def test_configurations_train(values):
    check_that_it_trains(values)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The schedule ends at alpha_bar")
@settings(without_shrinking, max_examples=100)
@given(configurations())
def test_a_hundred_configurations_train(values):
    check_that_it_trains(values)


@settings(without_shrinking, max_examples=20)
@given(configurations())
def test_parameters_are_counted_without_a_network(values):
    channels, classes = values["channels"], values["num_classes"]
    shape = (*values["image_size"], channels)
    sizes = [values[name] for name in ("width", "multipliers", "blocks_per_level")]
    network = UNet(shape, *sizes, values["attention_resolutions"], num_classes=classes)
    counted = count_parameters(shape, *sizes, values["attention_resolutions"], classes, channels)
    assert counted == network.count_params()
