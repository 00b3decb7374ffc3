"""A run from its beginning to its end, and what ends it before it begins."""

import collections
import dataclasses
import json
import math

import numpy as np
import pytest
from helpers.refusals import raises_in_flags
from helpers.small_runs import TINY, averages, rows
from PIL import Image

import kddpm
from kddpm.base import settings
from kddpm.base.errors import InputError
from kddpm.runs import build, training
from kddpm.runs.config import TrainConfig

pytestmark = pytest.mark.usefixtures("least_network")


def test_a_run_leaves_everything_that_was_promised(finished):
    stored = json.loads((finished / "config.json").read_text())
    assert TrainConfig(**stored["config"]) == TINY
    assert stored["kddpm"] == kddpm.__version__
    assert (stored["data"]["images"], stored["data"]["image_shape"]) == (1797, [8, 8, 1])
    assert [row["step"] for row in rows(finished)] == ["2", "4", "6"]
    assert all(0 < float(row["loss"]) < 3 and float(row["gradient_norm"]) > 0 for row in rows(finished))
    # The rate that the next step would use: after 2 warm-up steps, the full one.
    assert [float(row["learning_rate"]) for row in rows(finished)] == pytest.approx([TINY.learning_rate] * 3)
    saved = sorted(p.name for p in (finished / "checkpoints").iterdir())
    assert saved == [f"step_000000{step}.{suffix}" for step in (3, 6) for suffix in ("json", "npz")]
    with Image.open(finished / "samples" / "step_0000006.png") as grid, Image.open(finished / "loss.png") as curve:
        assert grid.size == (8 * 50 + 2, 8 * 50 + 2) and curve.size[0] > 500
    assert list((finished / "tensorboard").glob("events*"))


def test_the_loss_of_a_row_is_the_mean_since_the_last_row(tmp_path, finished):
    training.train(dataclasses.replace(TINY, log_every=1), tmp_path / "run", verbose=False)
    every = [float(row["loss"]) for row in rows(tmp_path / "run")]
    expected = [(every[i] + every[i + 1]) / 2 for i in (0, 2, 4)]
    assert [float(row["loss"]) for row in rows(finished)] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("warmup", [0, 2])
def test_a_learning_rate_that_decays_ends_at_zero(tmp_path, warmup):
    config = dataclasses.replace(TINY, log_every=1, warmup_steps=warmup, learning_rate_decay="cosine")
    training.train(config, tmp_path / "run", verbose=False)
    shares = [k / warmup if k < warmup else math.cos(math.pi / 2 * (k - warmup) / (6 - warmup)) ** 2 for k in range(7)]
    found = [float(row["learning_rate"]) for row in rows(tmp_path / "run")]
    assert found == pytest.approx([TINY.learning_rate * share for share in shares[1:]], rel=1e-5, abs=1e-9)


def test_a_sample_grid_that_cannot_be_is_refused_before_the_run_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainConfig, "__post_init__", lambda self: None)
    config = dataclasses.replace(TINY, guidance_scale=2.0)
    with pytest.raises(InputError, match="`guidance_scale` needs a network with classes"):
        training.train(config, tmp_path / "run", verbose=False)
    assert not (tmp_path / "run").exists()


def test_other_seeds_and_flips_give_other_weights(tmp_path, finished):
    for name, overrides in {"seed": {"seed": 1}, "flip": {"horizontal_flip": True}}.items():
        training.train(dataclasses.replace(TINY, **overrides), tmp_path / name, verbose=False)
        assert any((a != b).any() for a, b in zip(averages(tmp_path / name), averages(finished), strict=True))


def test_classes_and_bfloat16_train_and_generate(tmp_path, whole_network):
    config = dataclasses.replace(TINY, num_classes=10, precision="mixed_bfloat16", steps=2)
    training.train(config, tmp_path / "run", verbose=False)
    model = build.load_run(tmp_path / "run")
    assert model.network.compute_dtype == "bfloat16"
    assert model.generate([1, 2], labels=[0, 9]).shape == (2, 8, 8, 1)


def test_a_loaded_run_generates_what_the_trained_model_generates(trained):
    run_dir, model = trained
    loaded = build.load_run(run_dir)
    np.testing.assert_array_equal(loaded.generate(range(4)), model.generate(range(4)))


def test_data_larger_than_memory_are_kept_in_the_run(tmp_path, monkeypatch, finished):
    monkeypatch.setattr("kddpm.data.image_cache.MAX_RAM_BYTES", 1000)
    training.train(TINY, tmp_path / "run", verbose=False)
    assert list((tmp_path / "run" / "data").glob("images-*.npy"))
    for mapped, straight in zip(averages(tmp_path / "run"), averages(finished), strict=True):
        np.testing.assert_array_equal(mapped, straight)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"batch_size": 1798},
            "--batch_size must be at most the number of images. Received: 1798, and 1797 images",
        ),
        ({"num_classes": 9}, "--num_classes=9 needs labels in 0 .. 8. Received: from 0 to 9 in digits"),
        ({"dataset": "folder:/nowhere"}, "folder:/nowhere: expected a folder; no such file or folder"),
    ],
)
def test_data_that_do_not_fit_end_before_anything_is_written(tmp_path, overrides, message):
    with raises_in_flags(message):
        training.train(dataclasses.replace(TINY, **overrides), tmp_path / "run", verbose=False)
    assert not (tmp_path / "run").exists()


def test_labels_that_are_missing_are_named(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.zeros((20, 8, 8, 1), np.uint8))
    config = dataclasses.replace(TINY, dataset=f"npz:{tmp_path / 'data.npz'}", num_classes=10)
    with raises_in_flags("--num_classes must be none for images without labels. Received: 10, and --dataset npz:"):
        training.train(config, tmp_path / "run", verbose=False)


@pytest.mark.parametrize(("features", "accelerators", "says"), [
    ("avx2 avx512f", [], True), ("avx512_bf16", [], False), ("amx_bf16", [], False), ("avx2", ["GPU"], False),
])  # fmt: skip
def test_bfloat16_on_a_processor_without_it_is_said(tmp_path, monkeypatch, capsys, features, accelerators, says):
    monkeypatch.setattr(settings.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(settings.pathlib.Path, "read_text", lambda path: f"model: 1\nflags\t: {features}\nbugs: none\n")
    monkeypatch.setattr(training, "_accelerators", lambda: accelerators)
    monkeypatch.setattr(training, "_fit", lambda *arguments: None)
    config = dataclasses.replace(TINY, precision="mixed_bfloat16")
    training.train(config, tmp_path / "run")
    assert ("--precision=float32 would train several times as fast" in capsys.readouterr().out) == says


def test_a_full_disk_is_noticed_before_training(tmp_path, monkeypatch, whole_network):
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(free=10**5))
    with raises_in_flags(r"--run_dir needs about \d+ MB for checkpoints and snapshots. Received: .*run, with 0 MB"):
        training.train(TINY, tmp_path / "run", verbose=False)
    assert not (tmp_path / "run" / "config.json").exists()
