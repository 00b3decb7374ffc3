"""Averages beside the one that generates: kept in training, through kills, and rebuilt to any length from snapshots."""

import dataclasses
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest
from helpers.places import ROOT
from helpers.refusals import raises_in_flags
from helpers.small_runs import TINY, StopAfter, flip_a_byte, rows

from kddpm.base.errors import InputError
from kddpm.runs import build, checkpoints, evaluate, snapshots, training
from kddpm.runs.directory import RunDirectory
from kddpm.theory import power_averages

pytestmark = pytest.mark.usefixtures("least_network")

STEPS, EVERY = 80, 8
KEPT = dataclasses.replace(TINY, steps=STEPS, snapshot_every=EVERY, checkpoint_every=24, log_every=20)


class Recorder(keras.callbacks.Callback):
    """Keeps all weights after every step, flat."""

    def __init__(self):
        super().__init__()
        self.path = []

    def on_train_batch_end(self, batch, logs=None):
        self.path.append(flat(self.model.network.get_weights()))


def flat(weights):
    return np.concatenate([weight.ravel() for weight in weights])


def average(path, length):
    """The power-function average of weights, by its profile: step i has what lies between i - 1 and i."""
    ends = (np.arange(len(path) + 1) / len(path)) ** (power_averages.exponent_of(length) + 1)
    return np.diff(ends) @ np.array(path, np.float64)


def stored(run_dir, step):
    with np.load(run_dir / "snapshots" / f"step_{step:07d}.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run with snapshots, and its weights after every step."""
    run_dir, recorder = tmp_path_factory.mktemp("snapshots") / "run", Recorder()
    training.train(KEPT, run_dir, callbacks=[recorder], verbose=False)
    return run_dir, recorder.path


@pytest.fixture
def copied(recorded, tmp_path):
    return pathlib.Path(shutil.copytree(recorded[0], tmp_path / "run"))


def test_snapshots_hold_the_averages_of_every_eighth_step(recorded):
    run_dir, path = recorded
    assert snapshots.saved_steps(RunDirectory(run_dir)) == list(range(EVERY, STEPS + 1, EVERY))
    for step in (8, 40, 80):
        content = stored(run_dir, step)
        assert (content["count"], content["previous"]) == (step // snapshots.EVERY, step - EVERY)
        taken = path[:step][snapshots.EVERY - 1 :: snapshots.EVERY]
        for length in snapshots.LENGTHS:
            np.testing.assert_allclose(content[str(length)], average(taken, length), rtol=1e-5, atol=1e-6)


def test_a_run_without_them_has_the_same_bits(recorded, tmp_path):
    without = dataclasses.replace(KEPT, snapshot_every=0)
    model = training.train(without, tmp_path / "run", verbose=False)
    assert not (tmp_path / "run" / "snapshots").exists()
    assert rows(tmp_path / "run") == rows(recorded[0])
    np.testing.assert_array_equal(flat(model.network.get_weights()), recorded[1][-1])
    with (
        np.load(recorded[0] / "checkpoints" / "step_0000080.npz") as ours,
        np.load(tmp_path / "run" / "checkpoints" / "step_0000080.npz") as theirs,
    ):
        assert len(ours.files) == len(theirs.files) + 3
        for name in theirs.files:
            np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("stop", [23, 30, 70])
def test_a_killed_run_has_the_same_snapshots(recorded, tmp_path, stop):
    """Where the last checkpoint is older than the last snapshot, too."""
    with pytest.raises(ConnectionAbortedError):
        training.train(KEPT, tmp_path / "run", callbacks=[StopAfter(stop)], verbose=False)
    training.train(KEPT, tmp_path / "run", verbose=False)
    for ours in sorted((recorded[0] / "snapshots").iterdir()):
        assert ours.read_bytes() == (tmp_path / "run" / "snapshots" / ours.name).read_bytes()


def test_snapshots_after_the_last_checkpoint_are_forgotten(tmp_path):
    with pytest.raises(ConnectionAbortedError):
        training.train(KEPT, tmp_path / "run", callbacks=[StopAfter(41)], verbose=False)
    run = RunDirectory(tmp_path / "run")
    assert snapshots.saved_steps(run)[-1] == 40 and checkpoints.saved_steps(run) == [24]
    with pytest.raises(ConnectionAbortedError):
        training.train(KEPT, tmp_path / "run", callbacks=[StopAfter(1)], verbose=False)
    assert snapshots.saved_steps(run) == [8, 16, 24]


def test_a_step_that_was_skipped_does_not_enter(tmp_path):
    """Not even where its weights are finite again when the averages would take them in."""

    class NotFinite(Recorder):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 15:
                self.kernel = self.model.network.trainable_variables[0]
                self.sound = self.kernel.numpy()
                self.kernel.assign(np.full(self.kernel.shape, np.nan))

        def on_train_batch_end(self, batch, logs=None):
            if batch == 15:
                self.kernel.assign(self.sound)
            super().on_train_batch_end(batch, logs)

    recorder = NotFinite()
    training.train(dataclasses.replace(KEPT, steps=32), tmp_path / "run", callbacks=[recorder], verbose=False)
    assert float(rows(tmp_path / "run")[0]["skipped_steps"]) == 1
    content = stored(tmp_path / "run", 32)
    assert content["count"] == 3
    taken = [recorder.path[step - 1] for step in (8, 24, 32)]
    np.testing.assert_allclose(content["0.1"], average(taken, 0.1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [0.035, 0.05, 0.07, 0.1, 0.2])
def test_a_length_is_rebuilt(recorded, length):
    """To what profiles that differ by the allowed tenth can differ in, by Cauchy and Schwarz; mostly far less."""
    run_dir, path = recorded
    taken = np.array(path[snapshots.EVERY - 1 :: snapshots.EVERY], np.float64)
    wanted = average(taken, length)
    found = flat(build.load_run(run_dir, length).ema_network.get_weights())
    gamma = power_averages.exponent_of(length)
    norm = (gamma + 1) / np.sqrt((2 * gamma + 1) * len(taken))
    off = np.linalg.norm(found - wanted)
    assert off <= 0.1 * norm * np.linalg.norm(taken - taken.mean(axis=0))
    assert off < 0.15 * np.linalg.norm(found - taken[-1])
    if length in snapshots.LENGTHS:
        np.testing.assert_allclose(found, stored(run_dir, STEPS)[str(length)], rtol=1e-5, atol=1e-6)


def test_lengths_are_rows_of_a_table(recorded, tmp_path):
    run_dir, _ = recorded
    options = {"ema_lengths": [0.05, 0.2], "samplers": ["ddim:2"], "num_images": 20, "verbose": False}
    content = evaluate.evaluate(run_dir, ["accuracy"], out=tmp_path, **options)["quality"]
    own, *lengths = content["rows"][1:]
    assert own["name"] == "ddim, 2 steps" and "ema_length" not in own
    assert [row["name"] for row in lengths] == ["EMA length 0.05, ddim, 2 steps", "EMA length 0.2, ddim, 2 steps"]
    assert [row["ema_length"] for row in lengths] == content["ema_lengths"] == [0.05, 0.2]
    assert len({row["weights_sha256"] for row in content["rows"][1:]}) == 3
    pictures = []
    for path in (run_dir / "evaluation").glob("pictures/*/*.npz"):
        with np.load(path, allow_pickle=False) as archive:
            pictures.append(archive["pictures"].tobytes())
    for length in (None, 0.05, 0.2):
        model = build.load_run(run_dir, length)
        assert pictures.count(model.generate(range(20), "ddim", 2).tobytes()) == 1
    with raises_in_flags("--out has a result of another ema_lengths; name another folder"):
        evaluate.evaluate(run_dir, ["accuracy"], out=tmp_path, **options | {"ema_lengths": [0.05]})
    with raises_in_flags("--ema_lengths must lie in .* Received: 0.001"):
        evaluate.evaluate(run_dir, ["accuracy"], out=tmp_path / "no", **options | {"ema_lengths": [0.05, 0.001]})
    assert not (tmp_path / "no").exists()


# What ends in a line.


@pytest.mark.parametrize("length", [-1.0, 0.0, 0.01, 0.27, 5.0])
def test_lengths_that_snapshots_do_not_give_are_refused(recorded, length):
    message = f"--ema_length must lie in 0.028 .. 0.232, what the 10 snapshots of .* of them. Received: {length}"
    with raises_in_flags(message):
        build.load_run(recorded[0], length)
    with raises_in_flags("--ema_length must be a number. Received: nan"):
        build.load_run(recorded[0], float("nan"))


def test_lengths_between_those_that_uneven_snapshots_give_are_refused(recorded, monkeypatch):
    """Four far apart and many near the end give very short averages and long ones, and none in between."""
    counts = [312, 625, 937, *range(1250, 1263)]
    monkeypatch.setattr(snapshots, "_counts", lambda *_: (list(range(len(counts))), counts))
    run = RunDirectory(recorded[0])
    assert snapshots.check_lengths(run, [0.002, 0.05, 0.1], "ema_lengths") == len(counts) - 1
    with raises_in_flags(r"--ema_lengths must be a length that .* give to 10% of its profile. Received: 0.01, to 26%"):
        snapshots.check_lengths(run, [0.002, 0.01], "ema_lengths")


def test_lengths_of_a_run_that_was_stopped_say_at_which_step(copied):
    (copied / "checkpoints" / f"step_{STEPS:07d}.json").unlink()  # the one before is of step 72, as is a snapshot
    for step in (STEPS, 72):
        (copied / "snapshots" / f"step_{step:07d}.npz").unlink()
    options = {"ema_lengths": [0.1], "samplers": ["ddim:2"], "num_images": 20, "verbose": False}
    row = evaluate.evaluate(copied, ["accuracy"], **options)["quality"]["rows"][-1]
    last = snapshots.saved_steps(RunDirectory(copied))[-1]
    assert row["step"] == last < STEPS and row["name"] == f"EMA length 0.1 at step {last}, ddim, 2 steps"


def test_the_quoted_ranges():
    """Of snapshots every 250 steps, as `digits` has them."""
    page = (ROOT / "docs" / "evaluation.md").read_text()
    for count, quoted in ((20, "Twenty of them give lengths of 0.02 to 0.263"), (100, "a hundred 0.006 to 0.285")):
        assert quoted in page
        counts = [250 * k // snapshots.EVERY for k in range(1, count + 1)]
        assert snapshots.possible_lengths(counts) == tuple(map(float, re.findall(r"0\.\d+", quoted)))
    for count in (1, 2, 5, 20):
        least, most = snapshots.possible_lengths(range(1, count + 1))
        assert snapshots._combined(range(1, count + 1), np.linspace(least, most, 100))[1].max() <= 0.1


def test_snapshots_are_kept_from_the_beginning_or_not_at_all(copied):
    with raises_in_flags("--snapshot_every must be above 0, as it was when .* was begun. Received: 0"):
        training.train(dataclasses.replace(KEPT, snapshot_every=0), copied, override_resume=["snapshot_every"])
    training.train(dataclasses.replace(KEPT, snapshot_every=2 * EVERY), copied, verbose=False)


def test_before_the_first_checkpoint_snapshots_may_still_be_chosen(tmp_path):
    with pytest.raises(ConnectionAbortedError):
        without = dataclasses.replace(KEPT, snapshot_every=0)
        training.train(without, tmp_path / "run", callbacks=[StopAfter(3)], verbose=False)
    training.train(dataclasses.replace(KEPT, steps=2 * EVERY), tmp_path / "run", verbose=False)
    assert snapshots.saved_steps(RunDirectory(tmp_path / "run")) == [EVERY, 2 * EVERY]


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


def of_another_network(path):
    with np.load(path) as archive:
        content = {name: archive[name] for name in archive.files}
    np.savez(path, **content | {"0.1": content["0.1"][:-1]})


def of_no_weights(path):
    with np.load(path) as archive:
        np.savez(path, **{name: archive[name] for name in archive.files} | {"count": np.int64(0)})


@pytest.mark.parametrize(
    ("step", "damage", "received"),
    [
        (40, pathlib.Path.unlink, "no .*step_0000040.npz"),
        (8, pathlib.Path.unlink, "no .*step_0000008.npz"),
        (80, pathlib.Path.unlink, "no .*step_0000080.npz"),
        (16, flip_a_byte, ".*step_0000016.npz: Bad CRC-32 for file '0.\\d+.npy'"),
        (24, cut, ".*step_0000024.npz: File is not a zip file"),
        (80, of_another_network, r".*step_0000080.npz: expected float32 \(\d+,\) for 0.1. Received: float32 "),
        (8, of_no_weights, ".*step_0000008.npz: it says that 0 weights are in its averages"),
    ],
)
def test_snapshots_that_are_damaged_or_missing_are_named(copied, step, damage, received):
    damage(copied / "snapshots" / f"step_{step:07d}.npz")
    with raises_in_flags(f"--ema_length needs every snapshot of the run. Received: {received}"):
        build.load_run(copied, 0.1)


def test_a_snapshot_of_another_run_is_named(copied):
    shutil.copy(copied / "snapshots" / "step_0000032.npz", copied / "snapshots" / "step_0000036.npz")
    with raises_in_flags(
        "needs every snapshot of the run. Received: .*step_0000036.npz, which does not follow the one"
    ):
        build.load_run(copied, 0.1)


def test_a_run_without_snapshots_is_named(finished):
    line = (
        "--ema_length needs snapshots of the run, which train.py makes with `snapshot_every`. Received: .*, with none"
    )
    with raises_in_flags(line.replace("`snapshot_every`", "--snapshot_every")):
        build.load_run(finished, 0.1)


def test_a_snapshot_that_cannot_be_written_ends_training(tmp_path):
    class DiskFails(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 10:
                (tmp_path / "run" / "snapshots").rename(tmp_path / "aside")
                (tmp_path / "run" / "snapshots").touch()

    with pytest.raises(InputError, match="step_0000016.npz cannot be written, checkpoints are whole: "):
        training.train(KEPT, tmp_path / "run", callbacks=[DiskFails()], verbose=False)
