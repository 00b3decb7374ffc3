import dataclasses
import json

import pytest

from kddpm import presets
from kddpm.errors import InputError

FIELDS = {field.name: field for field in dataclasses.fields(presets.TrainConfig)}


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_preset_is_a_configuration_that_survives_json(preset):
    config = presets.make_config(preset, dataset="digits")
    assert presets.TrainConfig(**json.loads(json.dumps(vars(config)))) == config


def test_ddpm32_is_the_cifar10_experiment_of_the_paper():
    config = presets.make_config("ddpm32")
    assert (config.width, config.multipliers, config.blocks_per_level) == (128, (1, 2, 2, 2), 2)
    assert (config.attention_resolutions, config.dropout, config.horizontal_flip) == ((16,), 0.1, True)
    assert (config.schedule, config.num_timesteps, config.batch_size) == ("linear", 1000, 128)
    assert (config.learning_rate, config.warmup_steps, config.ema_momentum) == (2e-4, 5000, 0.9999)


def test_the_preset_follows_the_data_set_when_none_is_named():
    assert presets.make_config().dataset == "digits"
    assert presets.make_config(dataset="folder:x") == presets.make_config("ddpm32", dataset="folder:x")


def test_every_field_has_a_help_text():
    assert all(presets.help_of(field) for field in FIELDS.values())


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "800_000", 800_000),
        ("learning_rate", "2e-4", 2e-4),
        ("image_size", "32", (32, 32)),
        ("image_size", "24x16", (24, 16)),
        ("multipliers", "1,2, 4", (1, 2, 4)),
        ("attention_resolutions", "", ()),
        ("num_classes", "none", None),
        ("num_classes", "10", 10),
        ("clip_norm", "None", None),
        ("dataset", "folder:None", "folder:None"),
    ],
)
def test_flags_are_read_as_the_type_of_their_field(name, text, value):
    assert presets.parse(FIELDS[name], text) == value


@pytest.mark.parametrize(
    ("name", "text"), [("steps", "many"), ("steps", "1.5"), ("dropout", "a"), ("multipliers", "1;2")]
)
def test_flags_of_another_type_are_named(name, text):
    with pytest.raises(InputError, match=f"--{name} must be .* Received: '{text}'"):
        presets.parse(FIELDS[name], text)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1. Received: 0"),
        ({"steps": "10"}, "--steps must be a whole number. Received: '10'"),
        ({"steps": True}, "--steps must be a whole number. Received: True"),
        ({"dropout": 1.0}, r"--dropout must be in \[0, 1\). Received: 1.0"),
        ({"learning_rate": float("nan")}, "--learning_rate must be positive. Received: nan"),
        ({"ema_momentum": 1}, r"--ema_momentum must be in \[0, 1\)"),
        ({"seed": 2**31}, "--seed must be an int32"),
        ({"channels": 4}, "--channels must be 1, 3 or none. Received: 4"),
        ({"num_classes": 1}, "--num_classes must be at least 2, or none"),
        (
            {"precision": "mixed_float16"},
            "--precision must be one of float32, mixed_bfloat16. Received: 'mixed_float16'",
        ),
        ({"sampler": "euler"}, "--sampler must be one of ancestral, ddim. Received: 'euler'"),
        ({"schedule": "cosin"}, "--schedule must be one of linear, cosine, .* Received: 'cosin'"),
        (
            {"sampling_steps": 1001},
            r"--sampling_steps must be in 1 .. 1000 \(--num_timesteps\), or none. Received: 1001",
        ),
        (
            {"attention_resolutions": (12,)},
            "--attention_resolutions must be among 32, 16, 8, 4, the sizes .* Received: 12",
        ),
        ({"multipliers": ()}, "--multipliers must be numbers >= 1"),
        ({"multipliers": (1, 0)}, "--multipliers must be numbers >= 1"),
        ({"image_size": (32, 20)}, "--image_size must be divisible by 8, because 4 levels .* Received: 32x20"),
    ],
)
def test_impossible_values_are_named(overrides, message):
    with pytest.raises(InputError, match=message):
        presets.make_config("ddpm32", **overrides)


def test_unknown_presets_and_a_missing_data_set_are_named():
    with pytest.raises(InputError, match="--preset must be one of digits, mnist, .* Received: 'cifar'"):
        presets.make_config("cifar")
    with pytest.raises(InputError, match="--dataset is needed: the preset ddpm256 has none of its own"):
        presets.make_config("ddpm256")
