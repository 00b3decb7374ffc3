import dataclasses
import json

import pytest
from helpers.refusals import raises_in_flags

from kddpm.runs import presets
from kddpm.runs.config import CHANGEABLE, TrainConfig, help_of, parse
from kddpm.sampling import samplers
from kddpm.theory import parametrization, schedules

FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_preset_is_a_configuration_that_survives_json(preset):
    config = presets.make_config(preset, dataset="digits")
    assert TrainConfig(**json.loads(json.dumps(vars(config)))) == config


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
    assert all(help_of(field) for field in FIELDS.values())


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
    assert parse(FIELDS[name], text) == value


@pytest.mark.parametrize(
    ("name", "text"), [("steps", "many"), ("steps", "1.5"), ("dropout", "a"), ("multipliers", "1;2")]
)
def test_flags_of_another_type_are_named(name, text):
    with raises_in_flags(f"--{name} must be .* Received: '{text}'"):
        parse(FIELDS[name], text)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1. Received: 0"),
        ({"steps": "10"}, "--steps must be a whole number. Received: '10'"),
        ({"steps": True}, "--steps must be a whole number. Received: True"),
        ({"dropout": 1.0}, r"--dropout must be in \[0, 1\). Received: 1.0"),
        ({"learning_rate": float("nan")}, "--learning_rate must be a number. Received: nan"),
        ({"learning_rate": float("inf")}, "--learning_rate must be a number. Received: inf"),
        ({"learning_rate": 0.0}, "--learning_rate must be positive. Received: 0.0"),
        ({"ema_momentum": 1}, r"--ema_momentum must be in \[0, 1\)"),
        ({"seed": 2**31}, "--seed must be an int32"),
        ({"channels": 4}, "--channels must be 1, 3 or none. Received: 4"),
        ({"num_classes": 1}, "--num_classes must be at least 2, or none"),
        (
            {"precision": "mixed_float16"},
            "--precision must be one of float32, mixed_bfloat16. Received: 'mixed_float16'",
        ),
        (
            {"sampler": "euler"},
            "--sampler must be one of ancestral, ddim, dpm_solver, heun, predictor_corrector. Received: 'euler'",
        ),
        (
            {"schedule": "cosin"},
            "--schedule must be one of linear, cosine, .*, variance_exploding, karras, flow. Received: 'cosin'",
        ),
        ({"prediction": "score"}, "--prediction must be one of eps, x0, mu, v, edm, velocity. Received: 'score'"),
        (
            {"weighting": "mu", "prediction": "v"},
            "--weighting must be one of simple, vlb, min_snr, hybrid, each in the form that belongs to --prediction. "
            "Received: 'mu'",
        ),
        ({"variance": "fixed"}, "--variance must be one of small, large, learned. Received: 'fixed'"),
        (
            {"timestep_sampling": "uneven"},
            "--timestep_sampling must be one of uniform, stratified, importance, log_normal. Received: 'uneven'",
        ),
        (
            {"timestep_sampling": "log_normal", "weighting": "vlb"},
            "--timestep_sampling log_normal is itself a choice of what counts and goes with --weighting=simple or "
            "'hybrid'. Received: weighting='vlb'",
        ),
        (
            {"timestep_sampling": "log_normal", "prediction": "edm", "zero_terminal_snr": True},
            r"--timestep_sampling must be another where the schedule ends at alpha_bar = 0 \(zero terminal SNR\): "
            "log_normal never draws the last t, where sampling starts. Received: 'log_normal'",
        ),
        (
            {"weighting": "hybrid"},
            "--weighting hybrid is the loss of a learned variance and needs --variance=learned. "
            "Received: variance='small'",
        ),
        (
            {"variance": "learned", "weighting": "min_snr"},
            "--variance learned needs --weighting=hybrid or 'vlb': no other term trains it. "
            "Received: weighting='min_snr'",
        ),
        (
            {"zero_terminal_snr": True},
            r"--prediction must be x0, mu, v, edm or velocity where the schedule ends at alpha_bar = 0 \(zero "
            r"terminal SNR\): there eps is x_t itself and says nothing about the image. Received: 'eps'",
        ),
        (
            {"zero_terminal_snr": True, "prediction": "v", "num_timesteps": 1},
            "--num_timesteps must be at least 2 with --zero_terminal_snr. Received: 1",
        ),
        (
            {"num_timesteps": 10**5},
            r"--prediction must be x0, v, edm or velocity where a schedule leaves so little signal: the factor "
            r"1 / sqrt\(alpha_bar\) by which x_0 follows from eps or mu leaves float32 from t=36717. "
            "Received: 'eps', and alpha_bar=0 at",
        ),
        ({"zero_terminal_snr": "yes"}, "--zero_terminal_snr must be true or false. Received: 'yes'"),
        ({"label_dropout": 1.0}, r"--label_dropout must be in \[0, 1\). Received: 1.0"),
        ({"label_dropout": -0.1}, r"--label_dropout must be in \[0, 1\). Received: -0.1"),
        ({"guidance_scale": -1}, "--guidance_scale must be at least 0. Received: -1.0"),
        ({"guidance_scale": float("nan")}, "--guidance_scale must be a number. Received: nan"),
        ({"guidance_scale": 2}, "--guidance_scale must be 1 without --num_classes. Received: 2.0"),
        (
            {"guidance_scale": 2, "num_classes": 10, "label_dropout": 0},
            "--guidance_scale must be 1 with --label_dropout=0: the network never sees pictures without their class. "
            "Received: 2.0",
        ),
        (
            {"sampling_steps": 1001},
            r"--sampling_steps must be in 1 .. 1000 \(--num_timesteps\), or none. Received: 1001",
        ),
        (
            {"eval_sampler": "euler:9"},
            "--eval_sampler must be NAME or NAME:STEPS, NAME being one of ancestral, .* Received: 'euler:9'",
        ),
        ({"eval_sampler": f"ddim:{'9' * 5000}"}, "--eval_sampler must be NAME or NAME:STEPS, .* Received: 'ddim:9+$"),
        (
            {"eval_every": 100, "eval_sampler": "ddim:1001"},
            r"--eval_sampler must be of at most 1000 steps \(--num_timesteps\), for --eval_every. Received: ddim:1001",
        ),
        ({"eval_images": 19}, "--eval_images must be at least 20. Received: 19"),
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
    with raises_in_flags(message):
        presets.make_config("ddpm32", **overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        {"prediction": "v", "zero_terminal_snr": True, "weighting": "min_snr", "variance": "large"},
        {"variance": "learned", "weighting": "hybrid", "timestep_sampling": "importance"},
        {"variance": "learned", "weighting": "vlb", "prediction": "mu"},
        {"num_classes": 10, "label_dropout": 0.2, "guidance_scale": 3, "sampler": "dpm_solver"},
        {"num_classes": 10, "label_dropout": 0.0, "guidance_scale": 1.0},
    ],
)
def test_what_goes_together_is_a_configuration_that_survives_json(overrides):
    config = presets.make_config("ddpm32", **overrides)
    assert {name: getattr(config, name) for name in overrides} == overrides
    assert TrainConfig(**json.loads(json.dumps(vars(config)))) == config


def test_the_names_in_the_flags_are_those_there_are():
    """In the texts of --help."""
    for name, choices in {
        "sampler": samplers.BY_NAME,
        "schedule": schedules.BY_NAME,
        "prediction": parametrization.PREDICTIONS,
        "weighting": parametrization.WEIGHTINGS,
        "variance": parametrization.VARIANCES,
        "timestep_sampling": parametrization.TIMESTEP_SAMPLINGS,
    }.items():
        assert all(choice in help_of(FIELDS[name]) for choice in choices)


def test_pictures_may_change_while_a_run_goes_on_but_not_what_it_trains():
    assert {"sampler", "sampling_steps", "guidance_scale", "eval_every", "extractor"} <= set(CHANGEABLE)
    assert not {"prediction", "weighting", "variance", "label_dropout", "zero_terminal_snr"} & set(CHANGEABLE)


def test_unknown_presets_and_a_missing_data_set_are_named():
    with raises_in_flags("--preset must be one of digits, mnist, .* Received: 'cifar'"):
        presets.make_config("cifar")
    with raises_in_flags("--dataset is needed: the preset ddpm256 has none of its own"):
        presets.make_config("ddpm256")
