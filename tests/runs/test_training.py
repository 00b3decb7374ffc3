import collections
import contextlib
import csv
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal

import keras
import numpy as np
import pytest
from helpers.networks import least_unet
from PIL import Image

import kddpm
from kddpm.base.errors import InputError
from kddpm.base.files import held, replacing
from kddpm.plots import runs
from kddpm.runs import build, checkpoints, presets, training, weights_files
from kddpm.runs.config import TrainConfig
from kddpm.runs.directory import COLUMNS, RunDirectory

TINY = presets.make_config(
    "digits", width=8, multipliers=(1,), attention_resolutions=(), batch_size=16, steps=6, warmup_steps=2, log_every=2,
    checkpoint_every=3, sample_every=100, num_timesteps=20, sampling_steps=2, sampler="ddim",
)  # fmt: skip


def rows(run_dir):
    with open(run_dir / "metrics.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def weights(run_dir):
    return build.load_run(run_dir).ema_network.get_weights()


class StopAfter(keras.callbacks.Callback):
    """What a kill looks like to the files: an exception between two steps."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.batches:
            raise ConnectionAbortedError


@pytest.fixture(scope="module", autouse=True)
def least_network():
    """What is trained does not matter to most tests of runs; `whole_network` is a `UNet` all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "UNet", least_unet)
        patch.setattr(build, "_parameters", lambda *_: 0)  # the weights hold fewer than the configuration says
        yield


@pytest.fixture
def whole_network(monkeypatch):
    monkeypatch.setattr(checkpoints, "UNet", kddpm.UNet)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run and its model."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    return run_dir, training.train(TINY, run_dir, verbose=False)


@pytest.fixture(scope="module")
def finished(trained):
    return trained[0]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Beginnings of the run, trained once each: a function of where to stop, and whether by what a kill looks like."""

    @functools.cache
    def begin(steps, killed=False, **changes):
        run_dir = tmp_path_factory.mktemp("runs") / "begun"
        config = dataclasses.replace(TINY, **({} if killed else {"steps": steps}), **changes)
        with pytest.raises(ConnectionAbortedError) if killed else contextlib.nullcontext():
            training.train(config, run_dir, callbacks=[StopAfter(steps)] if killed else [], verbose=False)
        return run_dir

    return begin


@pytest.fixture
def begin(begun, tmp_path):
    """The same, copied to `run`."""
    return lambda *args, **kwargs: pathlib.Path(shutil.copytree(begun(*args, **kwargs), tmp_path / "run"))


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


@pytest.mark.parametrize("stop", [2, 4, pytest.param(5, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(begin, finished, stop):
    run_dir = begin(stop, killed=True)
    training.train(TINY, run_dir, verbose=False)
    assert (run_dir / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    for resumed, straight in zip(weights(run_dir), weights(finished), strict=True):
        np.testing.assert_array_equal(resumed, straight)


def test_every_kind_of_run_goes_on_to_the_same_bits(tmp_path, whole_network):
    """With importance sampling, a learned variance, classes and guidance, all at once."""
    changes = {"prediction": "v", "variance": "learned", "weighting": "hybrid", "timestep_sampling": "importance"}
    changes |= {"num_classes": 10, "label_dropout": 0.5, "sampler": "dpm_solver", "guidance_scale": 2.0}
    # Three steps, so that importance sampling has seen enough of each before the run stops.
    config = dataclasses.replace(TINY, num_timesteps=3, log_every=1, sample_every=3, **changes)
    straight = training.train(config, tmp_path / "straight", verbose=False)
    with pytest.raises(ConnectionAbortedError):
        training.train(config, tmp_path / "run", callbacks=[StopAfter(4)], verbose=False)
    resumed = training.train(config, tmp_path / "run", verbose=False)
    for ours, theirs in zip(resumed.variables, straight.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (tmp_path / "straight" / "metrics.csv").read_bytes()
    for grid in ("step_0000003.png", "step_0000006.png"):
        drawn = [(tmp_path / name / "samples" / grid).read_bytes() for name in ("run", "straight")]
        assert drawn[0] == drawn[1]
    counts = straight.loss_counts.numpy()
    assert counts.sum() == 6 * 16 and counts.min() >= 10 and straight.loss_squares.numpy().min() > 0


def test_work_is_saved_before_pictures_are_painted_of_it(tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, checkpoint_every=4, sample_every=4)

    def fail(*args, **kwargs):
        raise ConnectionAbortedError

    with monkeypatch.context() as patch:
        patch.setattr(kddpm.DiffusionModel, "generate", fail)
        with pytest.raises(ConnectionAbortedError):
            training.train(config, tmp_path / "run", verbose=False)
    assert (tmp_path / "run" / "checkpoints" / "step_0000004.json").exists()
    training.train(config, tmp_path / "run", verbose=False)


def test_a_sample_grid_that_cannot_be_is_refused_before_the_run_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainConfig, "__post_init__", lambda self: None)
    config = dataclasses.replace(TINY, guidance_scale=2.0)
    with pytest.raises(InputError, match="`guidance_scale` needs a network with classes"):
        training.train(config, tmp_path / "run", verbose=False)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_left_alone_and_more_steps_go_on(begin, finished, capsys):
    run_dir = begin(3)
    before = (run_dir / "metrics.csv").read_bytes()
    training.train(dataclasses.replace(TINY, steps=3), run_dir)
    assert "Already trained for 3 of 3 steps; raise --steps to go on" in capsys.readouterr().out
    assert (run_dir / "metrics.csv").read_bytes() == before
    training.train(TINY, run_dir)
    assert "Going on after step 3" in capsys.readouterr().out
    for continued, straight in zip(weights(run_dir), weights(finished), strict=True):
        np.testing.assert_array_equal(continued, straight)


def test_a_signal_saves_and_leaves(tmp_path, finished, capsys):
    class Signal(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if int(self.model.step.numpy()) == step - 1:
                os.kill(os.getpid(), number)

    run_dir = tmp_path / "run"
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    for step, number in ((4, signal.SIGTERM), (5, signal.SIGINT)):
        with pytest.raises(SystemExit) as left:
            training.train(TINY, run_dir, callbacks=[Signal()], verbose=False)
        assert left.value.code == 128 + number
        line = f"{number.name}: saved step {step}; the same command goes on from there"
        assert line in capsys.readouterr().err
        assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    training.train(TINY, run_dir, verbose=False)
    for resumed, straight in zip(weights(run_dir), weights(finished), strict=True):
        np.testing.assert_array_equal(resumed, straight)


def test_other_seeds_and_flips_give_other_weights(tmp_path, finished):
    for name, overrides in {"seed": {"seed": 1}, "flip": {"horizontal_flip": True}}.items():
        training.train(dataclasses.replace(TINY, **overrides), tmp_path / name, verbose=False)
        assert any((a != b).any() for a, b in zip(weights(tmp_path / name), weights(finished), strict=True))


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


def test_another_configuration_is_refused_by_name(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    with pytest.raises(
        InputError, match="belongs to another configuration: --width was 8, now 16; --seed was 0, now 1"
    ):
        training.train(dataclasses.replace(TINY, width=16, seed=1), finished, verbose=False)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_other_data_are_refused(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "data.npz", images=pictures)
    config = dataclasses.replace(TINY, dataset=f"npz:{tmp_path / 'data.npz'}", steps=1)
    training.train(config, tmp_path / "run", verbose=False)
    pictures[7, 3, 3] ^= 1
    np.savez(tmp_path / "data.npz", images=pictures)
    with pytest.raises(InputError, match="is not what --run_dir .* was trained on: 40 images of 8x8x1 then"):
        training.train(dataclasses.replace(config, steps=2), tmp_path / "run", verbose=False)


def test_data_larger_than_memory_are_kept_in_the_run(tmp_path, monkeypatch, finished):
    monkeypatch.setattr("kddpm.image_cache.MAX_RAM_BYTES", 1000)
    training.train(TINY, tmp_path / "run", verbose=False)
    assert list((tmp_path / "run" / "data").glob("images-*.npy"))
    for mapped, straight in zip(weights(tmp_path / "run"), weights(finished), strict=True):
        np.testing.assert_array_equal(mapped, straight)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"batch_size": 1798},
            "--batch_size must be at most the number of images. Received: batch_size=1798, 1797 images",
        ),
        ({"num_classes": 9}, "--num_classes=9 needs labels in 0 .. 8. Received: from 0 to 9 in digits"),
        ({"dataset": "folder:/nowhere"}, "folder:/nowhere: expected a folder; no such file or folder"),
    ],
)
def test_data_that_do_not_fit_end_before_anything_is_written(tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        training.train(dataclasses.replace(TINY, **overrides), tmp_path / "run", verbose=False)
    assert not (tmp_path / "run").exists()


def test_labels_that_are_missing_are_named(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.zeros((20, 8, 8, 1), np.uint8))
    config = dataclasses.replace(TINY, dataset=f"npz:{tmp_path / 'data.npz'}", num_classes=10)
    with pytest.raises(InputError, match="--num_classes needs labels, and --dataset npz:.* has none"):
        training.train(config, tmp_path / "run", verbose=False)


def test_foreign_directories_and_files_are_left_alone(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(
        InputError, match="--run_dir must be new, empty or a run of train.py. Received: .*full, with files"
    ):
        training.train(TINY, tmp_path / "full", verbose=False)
    with pytest.raises(InputError, match="--run_dir must be a directory. Received: the file"):
        training.train(TINY, tmp_path / "full" / "thesis.txt", verbose=False)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_a_full_disk_is_noticed_before_training(tmp_path, monkeypatch, whole_network):
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(free=10**5))
    with pytest.raises(
        InputError, match=r"--run_dir needs about \d+ MB for checkpoints. Received: .*run, with 0 MB free"
    ):
        training.train(TINY, tmp_path / "run", verbose=False)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path):
    class DiskFails(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 4:
                (tmp_path / "run" / "checkpoints").rename(tmp_path / "aside")
                (tmp_path / "run" / "checkpoints").touch()

    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(InputError, match="The checkpoint of step 6 cannot be written, earlier ones are whole: "):
        training.train(TINY, tmp_path / "run", callbacks=[DiskFails()], verbose=False)
    assert (tmp_path / "aside" / "step_0000003.json").exists()
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_line_of_metrics_that_was_cut_off_is_written_again(begin, finished):
    run_dir = begin(4, killed=True)
    with open(run_dir / "metrics.csv", "a") as stream:
        stream.write("6,0.3")
    training.train(TINY, run_dir, verbose=False)
    assert (run_dir / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def test_metrics_cut_at_any_byte_are_written_again(tmp_path):
    run, rows = RunDirectory(tmp_path), [dict.fromkeys(COLUMNS, step) for step in (3, 6)]
    for row in rows:
        run.append_row(row)
    whole = run.metrics_path.read_bytes()
    for size in range(len(whole) + 1):
        run.metrics_path.write_bytes(whole[:size])
        run.forget_rows_after(0)
        for row in rows:
            run.append_row(row)
        assert run.metrics_path.read_bytes() == whole, f"cut after {size} bytes"


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    config = dataclasses.replace(TINY, learning_rate=1e30, warmup_steps=0, clip_norm=None, log_every=1)
    message = "not finite in the last [1-6] steps, up to step 6: loss .* learning rate 1e.30. Try a smaller learning"
    with pytest.raises(InputError, match=message):
        training.train(config, tmp_path / "run", verbose=False)
    assert not (tmp_path / "run" / "checkpoints").exists()


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["npz", "json", "that of another step"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(begin, finished, damage, capsys):
    run_dir = begin(4, checkpoint_every=2)
    newest = run_dir / "checkpoints" / "step_0000004"
    if damage == "that of another step":
        shutil.copy(run_dir / "checkpoints" / "step_0000002.npz", newest.with_suffix(".npz"))
    else:
        flip_a_byte(newest.with_suffix(f".{damage}"))
    training.train(dataclasses.replace(TINY, checkpoint_every=2), run_dir)
    told = capsys.readouterr()
    assert "that of step 4 is damaged: " in told.err and "Going on after step 2" in told.out
    for continued, straight in zip(weights(run_dir), weights(finished), strict=True):
        np.testing.assert_array_equal(continued, straight)


def test_the_last_three_checkpoints_and_the_best_are_kept(tmp_path, monkeypatch):
    losses = iter([0.5, 0.1, 0.3, 0.4, 0.2, 0.6])
    save = checkpoints.Checkpoints.save
    monkeypatch.setattr(checkpoints.Checkpoints, "save", lambda self, step, loss: save(self, step, next(losses)))
    training.train(dataclasses.replace(TINY, checkpoint_every=1), tmp_path / "run", verbose=False)
    for suffix in ("json", "npz"):
        kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob(f"*.{suffix}"))
        assert kept == [f"step_000000{step}.{suffix}" for step in (2, 4, 5, 6)]


def killed_after(files):
    """`replacing`, and what a kill looks like once it has written this many."""
    written = []

    @contextlib.contextmanager
    def killed(path):
        with replacing(path) as beside:
            yield beside
        written.append(path)
        if len(written) == files:
            raise ConnectionAbortedError

    return killed


def test_a_kill_within_a_save_leaves_the_checkpoint_before(begin, finished, monkeypatch):
    """Wherever it strikes: what is not described yet is not there."""
    run_dir = begin(4, killed=True)
    for files in (1, 2, 3, 4):  # of the four that a save writes
        with monkeypatch.context() as patch:
            killed = killed_after(files)
            for room in (checkpoints, weights_files):
                patch.setattr(room, "replacing", killed)
            with pytest.raises((ConnectionAbortedError, InputError)):
                training.train(TINY, run_dir, verbose=False)
    training.train(TINY, run_dir, verbose=False)
    assert (run_dir / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    for ours, theirs in zip(weights(run_dir), weights(finished), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_a_kill_left_half_written_is_cleared_away(begin):
    run_dir = begin(3)
    for folder in (".", "checkpoints", "samples"):
        (run_dir / folder / ".part-abc").mkdir()
        (run_dir / folder / ".part-abc" / "half").touch()
    training.train(TINY, run_dir, verbose=False)
    assert not list(run_dir.rglob(".part-*"))


def test_other_circumstances_are_told(begin, monkeypatch, capsys):
    run_dir = begin(3)
    version = kddpm.__version__
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.setattr(kddpm, "__version__", "9.9")
    training.train(TINY, run_dir, verbose=False)
    line = f"From step 3 on, bits may differ from a run in one go: kddpm was {version}, now 9.9; onednn was 1, now 0\n"
    assert line in capsys.readouterr().err


def test_what_may_differ_is_named(begin):
    run_dir = begin(3)
    other = dataclasses.replace(TINY, learning_rate=1e-3, dropout=0.3)

    def resume(config, *named):
        training.train(config, run_dir, override_resume=named, verbose=False)

    with pytest.raises(InputError, match="--dropout was .*, now 0.3; --learning_rate .* with --override_resume"):
        resume(other)
    with pytest.raises(InputError, match="belongs to another configuration: --learning_rate was"):
        resume(other, "dropout")
    with pytest.raises(InputError, match="--override_resume must name flags of the configuration. Received: drop"):
        resume(other, "drop")
    resume(other, "dropout", "learning_rate")
    before = (run_dir / "config.json").read_bytes()
    assert json.loads(before)["config"]["dropout"] == 0.3
    with pytest.raises(InputError, match="The checkpoint of step 6 in .* belongs to another model"):
        resume(dataclasses.replace(other, width=16, steps=9), "width")
    assert (run_dir / "config.json").read_bytes() == before


@pytest.mark.parametrize("left", [".part-abc", "data", "cache"])
def test_a_run_that_was_killed_before_it_began_begins(tmp_path, finished, left):
    (tmp_path / "run" / left).mkdir(parents=True)
    (tmp_path / "run" / left / "half").touch()
    training.train(TINY, tmp_path / "run", cache_dir=tmp_path / "run" / "cache", verbose=False)
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def test_two_processes_do_not_train_one_run(begin, finished):
    run_dir = begin(4, killed=True)
    before = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")}
    with held(run_dir), pytest.raises(InputError, match="--run_dir .* is being trained by another process"):
        training.train(TINY, run_dir, verbose=False)
    assert {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")} == before
    training.train(TINY, run_dir, verbose=False)
    assert (run_dir / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def test_a_log_for_tensorboard_that_cannot_be_written_is_named(begin):
    pytest.importorskip("tensorboard")
    run_dir = begin(4, killed=True)
    shutil.rmtree(run_dir / "tensorboard")
    (run_dir / "tensorboard").touch()
    with pytest.raises(InputError, match="tensorboard cannot be written, checkpoints are whole: "):
        training.train(TINY, run_dir, verbose=False)


def lose_descriptions(checkpoints_path):
    for path in checkpoints_path.glob("*.json"):
        path.unlink()


def lose_folder(checkpoints_path):
    shutil.rmtree(checkpoints_path)


def put_a_file_there(checkpoints_path):
    shutil.rmtree(checkpoints_path)
    checkpoints_path.touch()


@pytest.mark.parametrize("lose", [lose_descriptions, lose_folder, put_a_file_there])
def test_training_does_not_begin_anew_where_checkpoints_were_lost(begin, lose):
    run_dir = begin(6)
    lose(run_dir / "checkpoints")
    before = (run_dir / "metrics.csv").read_bytes()
    with pytest.raises(InputError, match="checkpoints must hold the checkpoints of this run, and holds none that is"):
        training.train(TINY, run_dir, verbose=False)
    assert (run_dir / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("steps", [4, 6])
def test_pictures_that_a_kill_left_out_are_painted(begin, steps):
    """Of a run in its middle, and of one that has taken all its steps."""
    run_dir = begin(steps, killed=steps == 4, sample_every=3)
    pictures = [run_dir / "samples" / f"step_000000{steps // 3 * 3}.png", run_dir / "loss.png"]
    before = [path.read_bytes() for path in pictures]
    for path in pictures:
        path.unlink()
    training.train(dataclasses.replace(TINY, sample_every=3), run_dir, verbose=False)
    assert pictures[0].read_bytes() == before[0] and pictures[1].exists()


@pytest.mark.parametrize(
    "content", ["step,loss\r\n2,1.0\r\n", "loss,step,gradient_norm,skipped_steps,learning_rate\r\n"]
)
def test_metrics_of_other_columns_are_refused(begin, content):
    run_dir = begin(4, killed=True)
    (run_dir / "metrics.csv").write_text(content)
    with pytest.raises(InputError, match="metrics.csv must hold rows of numbers: expected the columns step,loss,grad"):
        training.train(TINY, run_dir, verbose=False)
    assert (run_dir / "metrics.csv").read_text() == content.replace("\r\n", "\n")


def test_a_damaged_checkpoint_is_named(begin):
    run_dir = begin(3)
    flip_a_byte(run_dir / "checkpoints" / "step_0000003.npz")
    with pytest.raises(InputError, match="No checkpoint in .* can be read: that of step 3 is damaged: its sha256"):
        training.train(TINY, run_dir, verbose=False)


def edited(old, new):
    return lambda run: (run / "config.json").write_text((run / "config.json").read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "must be a run of train.py: no config.json in"),
        (lambda run: (run / "config.json").write_text("{"), "config.json cannot be read: "),
        (lambda run: (run / "config.json").write_text("{}"), "config.json cannot be read: it must hold `config` and"),
        (edited('"width": 8', '"width": 8, "widht": 9'), "config.json cannot be read: .* unexpected keyword"),
        (edited('"images": ', '"pictures": '), "`data` must hold source, .* images, pictures are missing or unknown"),
        (edited('"digest": "', '"digest": 7, "source": "'), "`digest` of its `data` must be str. Received: 7"),
        (edited('"image_shape": [', '"image_shape": ["x", '), "`image_shape` of its `data` must be height, width and"),
        (edited('"width": 8', '"width": -8'), "holds a configuration that cannot be used: --width must be at least 1"),
        (edited('"width": 8', '"width": 16'), "ema.weights.h5 cannot be read, or does not fit config.json"),
        (lambda run: (run / "ema.weights.h5").unlink(), "has no weights yet: ema.weights.h5 comes with the first"),
        (lambda run: (run / "ema.weights.h5").write_bytes(b"x" * 99), "ema.weights.h5 cannot be read, or does not fit"),
    ],
)
def test_runs_that_cannot_generate_say_why(begin, damage, message):
    run_dir = begin(3)
    damage(run_dir)
    with pytest.raises(InputError, match=message):
        build.load_run(run_dir)


def test_the_loss_curve_is_a_picture_for_any_number_of_rows(tmp_path):
    for count in (1, 2, 200):
        some = [{"step": str(i + 1), "loss": str(1 / (i + 1))} for i in range(count)]
        runs.loss_curve(some, tmp_path / "loss.png")
        with Image.open(tmp_path / "loss.png") as image:
            pixels = np.asarray(image.convert("RGB"))
        assert (pixels != 255).any(axis=-1).mean() > 0.005
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]
