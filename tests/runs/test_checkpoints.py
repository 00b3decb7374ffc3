"""Checkpoints that cannot be written, were damaged or lost; and which are kept."""

import contextlib
import dataclasses
import shutil
import signal

import keras
import numpy as np
import pytest
from helpers.small_runs import TINY, averages, flip_a_byte

from kddpm.base.errors import InputError
from kddpm.base.files import replacing
from kddpm.runs import checkpoints, training, weights_files

pytestmark = pytest.mark.usefixtures("least_network")


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


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    config = dataclasses.replace(TINY, learning_rate=1e30, warmup_steps=0, clip_norm=None, log_every=1)
    message = "not finite in the last [1-6] steps, up to step 6: loss .* learning rate 1e.30. Try a smaller learning"
    with pytest.raises(InputError, match=message):
        training.train(config, tmp_path / "run", verbose=False)
    assert not (tmp_path / "run" / "checkpoints").exists()


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
    for continued, straight in zip(averages(run_dir), averages(finished), strict=True):
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
    for ours, theirs in zip(averages(run_dir), averages(finished), strict=True):
        np.testing.assert_array_equal(ours, theirs)


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


def test_a_damaged_checkpoint_is_named(begin):
    run_dir = begin(3)
    flip_a_byte(run_dir / "checkpoints" / "step_0000003.npz")
    with pytest.raises(InputError, match="No checkpoint in .* can be read: that of step 3 is damaged: its sha256"):
        training.train(TINY, run_dir, verbose=False)
