"""Healthy runs raise no alarm, and a fault is called by its name; each of these runs trains for about half a minute."""

import shutil

import numpy as np
import pytest

from kddpm import data
from kddpm.runs import build, doctor, presets, training, weights_files
from kddpm.runs.directory import RunDirectory

pytestmark = pytest.mark.slow

SMALL = {"width": 16, "steps": 800, "log_every": 10, "checkpoint_every": 200, "sample_every": 800, "sampling_steps": 20}


def examined(folder, **changes):
    """A run of digits, trained and examined: the names of its faults."""
    training.train(presets.make_config("digits", **{**SMALL, **changes}), folder / "run", verbose=False)
    content = doctor.examine(folder / "run", verbose=False)
    return [each["fault"] for each in content["findings"] if each["fault"]]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A run that was trained well."""
    folder = tmp_path_factory.mktemp("healthy")
    training.train(presets.make_config("digits", **SMALL), folder, verbose=False)
    return folder


def scaled(network, scale=1.0, bias=0.0):
    """A network that says `scale` times what it said, and `bias` more."""
    network.conv_out.kernel.assign(scale * network.conv_out.kernel)
    network.conv_out.bias.assign(scale * network.conv_out.bias + bias)


def mostly_as_it_began(network):
    """What an average of m = 0.9999 without a warm-up is after 5,000 steps: 0.61 of it are the first weights."""
    for weight in network.weights:
        fresh = np.random.default_rng(0).normal(size=weight.shape) * np.std(weight)
        weight.assign(0.39 * weight + 0.61 * fresh)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda network: scaled(network, 0.0), "outputs zeros"),
        (lambda network: scaled(network, bias=0.3), "tinted"),
        (lambda network: scaled(network, 0.5), "still noise"),
        (lambda network: scaled(network, 1.3), "not learned at some t"),
        (lambda network: scaled(network, 0.0), "saturated"),
        (mostly_as_it_began, "EMA too slow"),
    ],
)
def test_weights_that_were_spoilt(healthy, tmp_path, change, fault):
    run = RunDirectory(shutil.copytree(healthy, tmp_path / "run"))
    network = build.load_run(run.path).ema_network
    change(network)
    weights_files.save(network, run.weights_path)
    content = doctor.examine(run.path, verbose=False)
    assert {"other weights", fault} <= {each["fault"] for each in content["findings"]}


def archive(path, change=lambda x: x, labels=None, count=None):
    """Digits that were changed, as a data set."""
    digits = data.load("digits", progress=False)
    given = {} if labels is None else {"labels": labels(digits.labels)[:count]}
    np.savez(path, images=change(digits.images)[:count], **given)
    return f"npz:{path}"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_healthy_runs_raise_no_alarm(tmp_path, seed):
    assert examined(tmp_path, seed=seed) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"prediction": "v"},
        {"num_classes": 10},
        {"weighting": "min_snr"},
        {"variance": "learned", "weighting": "hybrid"},
    ],
)
def test_healthy_runs_of_other_kinds_raise_no_alarm(tmp_path, changes):
    assert examined(tmp_path, **changes) == []


def test_inputs_in_0_1(tmp_path):
    spec = archive(tmp_path / "bright.npz", lambda x: (127.5 + x / 2).round().astype(np.uint8))
    assert examined(tmp_path, dataset=spec, steps=200)[0] == "inputs in [0, 1]"


def test_black_inputs(tmp_path):
    spec = archive(tmp_path / "black.npz", lambda x: (x / 255).round().astype(np.uint8))
    assert examined(tmp_path, dataset=spec, steps=200)[0] == "black inputs"


def test_a_rate_that_is_too_high(tmp_path):
    assert examined(tmp_path, learning_rate=0.3, steps=400)[0] == "rate too high"


def test_too_short_a_run(tmp_path):
    assert "not learned at some t" in examined(tmp_path, steps=60)


def test_labels_that_are_not_of_their_images(tmp_path):
    random = np.random.default_rng(0)
    spec = archive(tmp_path / "swapped.npz", labels=random.permutation)
    # The network finds that they say nothing, and leaves them out.
    assert examined(tmp_path, dataset=spec, num_classes=10) == ["labels ignored"]


def test_a_hundred_images_that_are_learned_by_heart(tmp_path):
    spec = archive(tmp_path / "few.npz", count=100)
    found = examined(tmp_path, dataset=spec, steps=2500, width=32, dropout=0.0)
    assert "copies" in found
