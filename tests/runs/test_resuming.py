"""Runs that were ended, by a kill, a signal or their last step, and go on."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal

import keras
import numpy as np
import pytest
from helpers.refusals import raises_in_flags
from helpers.small_runs import TINY, StopAfter, averages

import kddpm
from kddpm.base.errors import InputError
from kddpm.base.files import locked
from kddpm.runs import fingerprint, training

pytestmark = pytest.mark.usefixtures("least_network")


@pytest.mark.parametrize("stop", [2, 4, pytest.param(5, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(begin, finished, stop):
    run_dir = begin(stop, killed=True)
    training.train(TINY, run_dir, verbose=False)
    assert (run_dir / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    for resumed, straight in zip(averages(run_dir), averages(finished), strict=True):
        np.testing.assert_array_equal(resumed, straight)


@pytest.mark.parametrize("stop", [None, 5])
def test_averages_that_were_deleted_are_written_anew(finished, begin, tmp_path, stop):
    run_dir = shutil.copytree(finished, tmp_path / "run") if stop is None else begin(stop, killed=True)
    weights = run_dir / "ema.weights.h5"
    before = averages(run_dir)
    weights.unlink()
    with contextlib.suppress(ConnectionAbortedError):
        training.train(TINY, run_dir, callbacks=[StopAfter(0)], verbose=False)
    for ours, theirs in zip(averages(run_dir), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


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


def test_a_finished_run_is_left_alone_and_more_steps_go_on(begin, finished, capsys):
    run_dir = begin(3)
    before = (run_dir / "metrics.csv").read_bytes()
    training.train(dataclasses.replace(TINY, steps=3), run_dir)
    assert "Already trained for 3 of 3 steps; more steps would go on from here" in capsys.readouterr().out
    assert (run_dir / "metrics.csv").read_bytes() == before
    training.train(TINY, run_dir)
    assert "Going on after step 3" in capsys.readouterr().out
    for continued, straight in zip(averages(run_dir), averages(finished), strict=True):
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
    for resumed, straight in zip(averages(run_dir), averages(finished), strict=True):
        np.testing.assert_array_equal(resumed, straight)


def test_another_configuration_is_refused_by_name(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    with raises_in_flags("belongs to another configuration: --width was 8, now 16; --seed was 0, now 1"):
        training.train(dataclasses.replace(TINY, width=16, seed=1), finished, verbose=False)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_other_data_are_refused(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "data.npz", images=pictures)
    config = dataclasses.replace(TINY, dataset=f"npz:{tmp_path / 'data.npz'}", steps=1)
    training.train(config, tmp_path / "run", verbose=False)
    pictures[7, 3, 3] ^= 1
    np.savez(tmp_path / "data.npz", images=pictures)
    with raises_in_flags("is not what --run_dir .* was trained on: 40 images of 8x8x1 then"):
        training.train(dataclasses.replace(config, steps=2), tmp_path / "run", verbose=False)


def test_a_line_of_metrics_that_was_cut_off_is_written_again(begin, finished):
    run_dir = begin(4, killed=True)
    with open(run_dir / "metrics.csv", "a") as stream:
        stream.write("6,0.3")
    training.train(TINY, run_dir, verbose=False)
    assert (run_dir / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


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
    monkeypatch.setattr(fingerprint, "__version__", "9.9")
    training.train(TINY, run_dir, verbose=False)
    line = f"From step 3 on, bits may differ from a run in one go: kddpm was {version}, now 9.9; onednn was 1, now 0\n"
    assert line in capsys.readouterr().err


def test_a_rate_that_decays_fixes_the_number_of_steps(begin):
    run_dir = begin(3, learning_rate_decay="cosine")
    decays = dataclasses.replace(TINY, learning_rate_decay="cosine")
    with raises_in_flags("--steps was 3, now 9. To go on all the same"):
        training.train(dataclasses.replace(decays, steps=9), run_dir, verbose=False)
    training.train(dataclasses.replace(decays, steps=9), run_dir, override_resume=["steps"], verbose=False)


def test_what_may_differ_is_named(begin):
    run_dir = begin(3)
    other = dataclasses.replace(TINY, learning_rate=1e-3, dropout=0.3)

    def resume(config, *named):
        training.train(config, run_dir, override_resume=named, verbose=False)

    with raises_in_flags("--dropout was .*, now 0.3; --learning_rate .* with --override_resume"):
        resume(other)
    with raises_in_flags("belongs to another configuration: --learning_rate was"):
        resume(other, "dropout")
    with raises_in_flags("--override_resume must name flags of the configuration. Received: drop"):
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
    with locked(run_dir), raises_in_flags("--run_dir .* is being trained by another process"):
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
