"""Frechet distances while a run trains, and the weights that had the lowest one."""

import dataclasses
import json
import shutil
import types

import keras
import numpy as np
import pytest
from helpers.places import ROOT
from helpers.processes import python
from helpers.refusals import raises_in_flags
from helpers.small_runs import TINY, StopAfter, averages
from PIL import Image

from kddpm import data
from kddpm.base.errors import InputError
from kddpm.evaluation import features, metrics, moments
from kddpm.runs import build, callbacks, judging, training

pytestmark = pytest.mark.usefixtures("least_network")

CHANGES = {"eval_every": 2, "eval_images": 70, "eval_sampler": "ddim:2"}
MONITORED = dataclasses.replace(TINY, **CHANGES)


class Averages(keras.callbacks.Callback):
    """Keeps the averaged weights after every step."""

    def on_train_begin(self, logs=None):
        self.after = {}

    def on_train_batch_end(self, batch, logs=None):
        self.after[len(self.after) + 1] = self.model.ema_network.get_weights()


@pytest.fixture(scope="module")
def straight(tmp_path_factory, least_network):
    """A run in one go, and its model."""
    run_dir = tmp_path_factory.mktemp("monitored") / "run"
    return run_dir, training.train(MONITORED, run_dir, verbose=False)


@pytest.fixture
def again(straight, tmp_path):
    """A copy of it."""
    return shutil.copytree(straight[0], tmp_path / "again")


def stored(run_dir):
    return json.loads((run_dir / "frechet.json").read_text(), parse_constant=pytest.fail)


def distances(run_dir):
    return {row["step"]: row["frechet"] for row in stored(run_dir)["rows"]}


def same_arrays(found, expected):
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_training_is_the_same_to_the_bit(straight, finished):
    run_dir, _ = straight
    assert (run_dir / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    with (
        np.load(run_dir / "checkpoints" / "step_0000006.npz") as found,
        np.load(finished / "checkpoints" / "step_0000006.npz") as expected,
    ):
        assert found.files == expected.files and len(found.files) > 5
        assert same_arrays(found.values(), expected.values())


def test_the_distance_is_that_of_the_pictures_from_all_images(straight):
    run_dir, model = straight
    images = data.load("digits").images
    see = features.load("digits", (8, 8, 1)).features()
    real, found = (see(pictures)[0].astype(float) for pictures in (images, model.generate(range(70), "ddim", 2)))
    expected = metrics.frechet(moments.in_groups([found]), moments.of(real))
    last = stored(run_dir)["rows"][-1]
    assert last["step"] == 6 and last["num_images"] == 70
    assert last["frechet"] == pytest.approx(expected.value, rel=1e-4)
    assert last["frechet_standard_error"] == pytest.approx(expected.standard_error, rel=1e-3)
    with Image.open(run_dir / "frechet.png") as curve:
        assert curve.size[0] > 500


def test_a_run_that_was_killed_ends_with_the_same_distances(straight, tmp_path):
    """After step 4, with a checkpoint of step 3: step 4 is measured again."""
    run_dir = tmp_path / "run"
    with pytest.raises(ConnectionAbortedError):
        training.train(MONITORED, run_dir, callbacks=[StopAfter(4)], verbose=False)
    assert list(distances(run_dir)) == [2, 4]
    training.train(MONITORED, run_dir, verbose=False)
    assert distances(run_dir) == pytest.approx(distances(straight[0]), rel=1e-6)
    assert stored(run_dir)["best"]["step"] == stored(straight[0])["best"]["step"]
    assert same_arrays(averages(run_dir / "best"), averages(straight[0] / "best"))


def test_a_distance_that_a_kill_prevented_is_measured_when_the_run_goes_on(again):
    before = distances(again)
    content = stored(again)
    (again / "frechet.json").write_text(json.dumps({**content, "rows": content["rows"][:-1]}))
    training.train(MONITORED, again, verbose=False)  # which has taken all its steps
    assert distances(again) == pytest.approx(before, rel=1e-6)


def test_weights_of_another_step_than_the_file_says_are_no_best_ones(again):
    """As after a kill between the two."""
    shutil.copy(again / "ema.weights.h5", again / "best" / "ema.weights.h5")
    content = stored(again)
    content["rows"] = [row for row in content["rows"] if row["step"] < 6]
    content["best"]["weights_sha256"] = "0" * 64
    (again / "frechet.json").write_text(json.dumps(content))
    training.train(MONITORED, again, verbose=False)  # measures step 6
    assert stored(again)["best"]["step"] == 6
    assert same_arrays(averages(again / "best"), averages(again))


def test_the_weights_with_the_lowest_distance_are_kept_and_named(tmp_path, monkeypatch, capsys):
    scores, kept, written = iter([3.0, 1.0, 2.0]), Averages(), []
    row = {"num_images": 70, "frechet_standard_error": 0.5}
    monkeypatch.setattr(judging.Judge, "row", lambda self, pictures, labels: {**row, "frechet": next(scores)})
    monkeypatch.setattr(
        callbacks.TensorBoard, "write", lambda self, step, summary, values: written.append((step, values))
    )
    training.train(MONITORED, tmp_path / "run", callbacks=[kept])
    assert stored(tmp_path / "run")["best"]["step"] == 4
    best = build.load_run(tmp_path / "run" / "best")
    assert same_arrays(best.ema_network.get_weights(), kept.after[4])
    assert not same_arrays(kept.after[4], kept.after[6]) and best.generate([1]).shape == (1, 8, 8, 1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Step ")]
    assert [line.split(" of 70 pictures, in ")[0] for line in lines] == [
        f"Step {step}: Frechet distance {value} +- 0.5" for step, value in ((2, 3), (4, 1), (6, 2))
    ]
    verdicts = ["the lowest so far", "the lowest so far", "the lowest is 1 +- 0.5, of step 4"]
    assert [line.split(" s; ")[1] for line in lines] == verdicts
    numbers = [values for _, values in written if "frechet" in values]
    assert numbers == [{"frechet": value, "frechet_standard_error": 0.5} for value in (3.0, 1.0, 2.0)]
    with pytest.raises(InputError, match="checkpoints must hold the checkpoints of this run, and holds none"):
        training.train(MONITORED, tmp_path / "run" / "best", verbose=False)


def test_of_equal_distances_the_first_is_kept(tmp_path, monkeypatch):
    row = {"num_images": 70, "frechet": 1.0, "frechet_standard_error": 0.5}
    monkeypatch.setattr(judging.Judge, "row", lambda self, pictures, labels: dict(row))
    training.train(MONITORED, tmp_path / "run", verbose=False)
    assert stored(tmp_path / "run")["best"]["step"] == 2


def test_the_last_distance_stands_in_the_progress_line(monkeypatch):
    times, shown = iter([0.0, 100.0]), []
    monkeypatch.setattr(callbacks, "time", types.SimpleNamespace(monotonic=lambda: next(times)))
    progress = callbacks.Progress(TINY, 0, verbose=True)
    progress.after_step({"loss": 0.5})
    progress.note = "Frechet 3 +- 0.5"
    progress.bar.set_postfix_str = lambda text, refresh: shown.append(text)
    progress.step = 5
    progress.after_step({"loss": 0.25})
    progress.close()
    assert shown == ["loss 0.2500, 1 images/s, Frechet 3 +- 0.5"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"dataset": "npz"},
            "--extractor is needed: those that come with kddpm, digits and mnist, know other pictures",
        ),
        ({"extractor": "nowhere"}, "--extractor nowhere.npz cannot be read: .*No such file"),
        ({"extractor": "mnist"}, "--extractor must be for pictures of 8x8, grey. Received: mnist, for 28x28, grey"),
        ({"eval_images": 64}, "--eval_images must be more than the 64 features of --extractor digits. Received: 64"),
        (
            {"num_classes": 10, "eval_images": 199},
            "--eval_images must be at least 200 with --num_classes=10: two of each class in each group .*ceived: 199",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_run_begins(tmp_path, changes, line):
    if "dataset" in changes:
        np.savez(tmp_path / "images.npz", images=np.zeros((20, 8, 8, 1), np.uint8))
        changes = {"dataset": f"npz:{tmp_path / 'images.npz'}"}
    with raises_in_flags(line):
        training.train(dataclasses.replace(MONITORED, **changes), tmp_path / "run", verbose=False)
    assert not (tmp_path / "run").exists()


def test_distances_of_other_pictures_are_no_comparison(again):
    before = {path: path.stat().st_mtime_ns for path in again.rglob("*")}
    other = dataclasses.replace(MONITORED, steps=8, eval_images=80, eval_sampler="ddim:3")
    with raises_in_flags(
        "--run_dir has Frechet distances of another --eval_images and --eval_sampler, which are no com"
    ):
        training.train(other, again, verbose=False)
    assert {path: path.stat().st_mtime_ns for path in again.rglob("*")} == before
    (again / "frechet.json").unlink()
    training.train(other, again, verbose=False)
    assert list(distances(again)) == [6, 8] and stored(again)["settings"]["eval_images"] == 80


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda content: "{", "Expecting"),
        (lambda content: "[]", "list indices must be"),
        (lambda content: "{}", "lacks 'settings'"),
        (lambda content: json.dumps({**content, "best": None}), "'NoneType' object is not subscriptable"),
        (lambda content: json.dumps({**content, "rows": [{"step": 2}]}), "lacks 'frechet'"),
        (lambda content: json.dumps({**content, "rows": [{**content["best"], "step": "2"}]}), "must hold the numbers"),
    ],
)
def test_files_that_hold_no_distances_are_refused(again, change, text):
    (again / "frechet.json").write_text(change(stored(again)))
    with pytest.raises(InputError, match=f"frechet.json must hold the Frechet distances of this run: .*{text}"):
        training.train(MONITORED, again, verbose=False)


@pytest.mark.slow
def test_two_replicas_measure_and_train_as_without(tmp_path):
    flags = [
        "--preset=digits", "--width=8", "--multipliers=1", "--attention_resolutions=", "--batch_size=16", "--steps=6",
        "--num_timesteps=20", "--sampling_steps=2", "--strategy=mirrored", "--cpu_replicas=2", "--num_classes=10",
    ]  # fmt: skip
    for name, more in (("with", ["--eval_every=3", "--eval_images=200", "--eval_sampler=ddim:2"]), ("without", [])):
        result = python(ROOT / "train.py", *flags, *more, f"--run_dir={tmp_path / name}")
        assert not result.returncode, result.stderr
    assert list(distances(tmp_path / "with")) == [3, 6]
    assert same_arrays(averages(tmp_path / "with"), averages(tmp_path / "without"))
