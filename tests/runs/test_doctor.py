"""The examination of runs of a moment, its files and its refusals; what it finds in trained ones is in
`test_doctor_on_runs.py`."""

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import json
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
from helpers.closed_form import best_model
from helpers.image_samples import random_pixels
from helpers.places import ROOT
from helpers.processes import python
from helpers.refusals import raises_in_flags
from helpers.small_runs import TINY, make_run
from PIL import Image

from kddpm import data
from kddpm.base.errors import InputError
from kddpm.runs import (
    build,
    data_findings,
    doctor,
    findings,
    network_examination,
    network_findings,
    probes,
    training,
    weights_files,
)
from kddpm.runs.directory import RunDirectory
from kddpm.theory import linear_denoiser

pytestmark = pytest.mark.usefixtures("least_network")
FEW = {"num_images": 8, "verbose": False}
CHANGE = "change of the predicted picture with the label"
HELD_OUT = "held-out loss above the training's"
LEARNED = "bound with the learned variance, above a table's"
WRONG_LABEL = "loss that a wrong label adds, over its change"


def named(content):
    """{what was measured: finding}"""
    found = {each["what"]: each for each in content["findings"]}
    assert len(found) == len(content["findings"])
    return found


@pytest.fixture(scope="module")
def examined(finished, tmp_path_factory):
    out, printed = tmp_path_factory.mktemp("doctor"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        content = doctor.examine(finished, out=out, num_images=8)
    return out, content, printed.getvalue().splitlines()


def test_the_files_say_what_was_found(examined, finished):
    out, content, _ = examined
    stored = json.loads((out / "doctor.json").read_text(), parse_constant=pytest.fail)
    assert sorted(path.name for path in out.iterdir()) == ["doctor.json", "doctor.png"]
    assert list(stored) == list(content) and stored["step"] == 6 and stored["num_images"] == 8
    assert [each["fault"] for each in stored["findings"]] == [each["fault"] for each in content["findings"]]
    assert stored["is_healthy"] is False  # six steps
    assert named(stored)["steps"]["measured"] == "6 of 6"
    assert stored["losses"]["t"] == [0, 2, 3, 5, 7, 9, 10, 12, 14, 16, 17, 19]
    assert all(len(column) == 12 for column in stored["losses"].values())
    with Image.open(out / "doctor.png") as figure:
        assert figure.size[0] > 900


def test_the_table_is_printed(examined, finished):
    out, content, lines = examined
    assert f"{finished} at step 6 of 6" in lines and lines[-1] == f"doctor.json and doctor.png in {out}"
    for each in content["findings"]:
        (line,) = (line for line in lines if line[2:].startswith(f"{each['what']}  "))
        assert each["measured"] in line and line[0] == ("!" if each["fault"] else " ")
        assert not each["fault"] or f"{each['fault']}: {each['advice']}." in lines


def test_the_checkpoint_from_which_on_it_copies_is_named(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(network_findings, "are_copies", lambda rate: True)
    content = doctor.examine(finished, out=tmp_path, **FEW)
    assert "already at the checkpoint of step 3" in named(content)["copies of training images"]["advice"]


def test_checkpoints_that_are_gone_end_the_search(finished, tmp_path, monkeypatch):
    run = RunDirectory(shutil.copytree(finished, tmp_path / "run"))
    (run.checkpoints_path / "step_0000003.npz").unlink()
    monkeypatch.setattr(network_findings, "are_copies", lambda rate: True)
    content = doctor.examine(run.path, **FEW)
    assert "already at the checkpoint of step 6" in named(content)["copies of training images"]["advice"]


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    """A copy of a run, and what the doctor says of what lies in its directory."""
    monkeypatch.setattr(network_examination, "_PAUSE", 0)
    run = RunDirectory(shutil.copytree(finished, tmp_path / "run"))
    return run, lambda: doctor.examine(run.path, out=tmp_path / "out", **FEW)


def test_the_weights_that_generate_are_examined(copied):
    run, examined = copied
    assert named(examined())["weights that generate"]["fault"] == ""
    network = build.load_run(run.path).ema_network
    network.set_weights([0 * weight for weight in network.get_weights()])
    weights_files.save(network, run.weights_path)
    found = named(examined())
    assert found["weights that generate"]["measured"] == "others"
    assert found["power of the output over the target's"]["fault"] == "outputs zeros"


@pytest.mark.parametrize("damage", [pathlib.Path.unlink, lambda path: path.write_bytes(b"no weights")])
def test_weights_that_cannot_be_read_come_from_the_checkpoint(copied, damage):
    run, examined = copied
    whole = examined()
    damage(run.weights_path)
    found = examined()
    assert named(found)["weights that generate"]["measured"] == "damaged, or not there"
    np.testing.assert_array_equal(found["losses"]["average"], whole["losses"]["average"])


def test_a_damaged_checkpoint_is_passed_over(copied):
    run, examined = copied
    (run.checkpoints_path / "step_0000006.npz").write_bytes(b"nothing")
    content = examined()
    assert content["step"] == 3
    assert named(content)["newest checkpoint"]["fault"] == "damaged checkpoint"
    assert named(content)["weights that generate"]["fault"] == ""  # they may be whole
    (run.checkpoints_path / "step_0000003.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match="The checkpoint of step 3 in .* cannot be read"):
        examined()


def test_lost_rows_are_noticed(copied):
    run, examined = copied
    run.forget_rows_after(2)
    assert named(examined())["last row of metrics.csv"]["fault"] == "rows are missing"
    run.metrics_path.unlink()
    assert named(examined())["last row of metrics.csv"]["measured"] == "0"


def test_a_run_that_dies_before_its_first_checkpoint_is_examined(tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(TINY, steps=60, checkpoint_every=50, log_every=50, learning_rate=1e30, clip_norm=None)
    with pytest.raises(InputError, match="not finite in the last"):
        training.train(config, tmp_path / "run", verbose=False)
    content = doctor.examine(tmp_path / "run", num_images=8)
    assert content["weights_sha256"] is None and content["losses"] == {}
    assert named(content)["skipped steps"]["fault"] == "loss not finite"
    printed = capsys.readouterr().out.splitlines()
    assert f"{tmp_path / 'run'} at step {content['step']} of 60, without a checkpoint so far" in printed
    assert printed[-1] == f"doctor.json in {tmp_path / 'run' / 'evaluation'}"


def test_noise_levels_that_training_leaves_out_are_not_judged(begin, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        network_findings, "of_losses", lambda *given: seen.append(given[5]) or data_findings.of_digest(True)
    )
    config = {"prediction": "edm", "schedule": "karras", "timestep_sampling": "log_normal"}
    doctor.examine(begin(5, killed=True, **config), out=tmp_path, **FEW)
    assert seen[0].tolist() == [False, *[True] * 7, *[False] * 4]


def test_mirror_images_are_copies_of_a_run_that_was_trained_on_them(begin, tmp_path, monkeypatch):
    mirrored = functools.partialmethod(lambda self: self._source.images[:64, :, ::-1])
    monkeypatch.setattr(network_examination.NetworkExamination, "_paint", mirrored)
    content = doctor.examine(begin(5, killed=True, horizontal_flip=True), out=tmp_path, **FEW)
    assert named(content)["copies of training images"]["value"] == 1


def test_a_run_without_rows_says_nothing_of_its_course(finished):
    run = RunDirectory(finished)
    config, source = run.read()[0], data.load("digits", progress=False)
    found = doctor.without_network(config, source.digest, source, [])
    assert "skipped steps" not in {each.what for each in found}


def test_the_command_reads_the_images_as_the_training_did(finished):
    run = RunDirectory(finished)
    given = {"tfds_data_dir": None, "cache_dir": "my cache", "skip_bad_images": True}
    line = doctor.in_a_line(run, run.read()[0], data.load("digits", progress=False), given)
    assert line.endswith(f"python -m kddpm.doctor --run_dir={finished} --cache_dir='my cache' --skip_bad_images")


def test_an_unfinished_run_with_classes_beside_held_out_images(begin, tmp_path):
    run = begin(5, killed=True, num_classes=10)  # a checkpoint of step 3, a row of step 4, and six steps in all
    os.utime(run / "checkpoints" / "step_0000003.json", (1000, 1000))
    os.utime(run / "metrics.csv", (1090, 1090))
    np.savez(tmp_path / "others.npz", images=random_pixels(20, 8, 8), labels=np.arange(20) % 10)
    content = doctor.examine(run, held_out=f"npz:{tmp_path}/others.npz", out=tmp_path / "out", **FEW)
    found, losses = named(content), content["losses"]
    assert found["steps"]["measured"] == "4 of 6, 3 minutes left"
    assert found["classes with images"]["measured"] == "10 of 10"
    assert {CHANGE, WRONG_LABEL} < set(found)
    assert found[HELD_OUT]["value"] == pytest.approx(losses["held_out"].mean() / losses["average"].mean() - 1)


def test_what_cannot_be_examined_ends_in_a_line(finished, tmp_path):
    with raises_in_flags(r"--run_dir must be a run of train.py: no config.json in "):
        doctor.examine(tmp_path, verbose=False)
    bare = make_run(tmp_path / "bare", "digits")
    with raises_in_flags(r"--run_dir must have checkpoints, and holds averaged weights alone; of a best/ name the run"):
        doctor.examine(bare, verbose=False)
    (bare / "ema.weights.h5").unlink()
    with raises_in_flags(r"--run_dir must have a row of metrics.csv or a checkpoint, and these come with --log_every"):
        doctor.examine(bare, verbose=False)
    with raises_in_flags(r"--num_images must be an integer of at least 2. Received: 1"):
        doctor.examine(finished, num_images=1, verbose=False)
    with raises_in_flags(r"none.npz: expected a NumPy .npz archive; no such file"):
        doctor.examine(finished, held_out=f"npz:{tmp_path}/none.npz", verbose=False)
    assert not (finished / "evaluation").exists()


def test_held_out_images_are_none_of_the_run(finished):
    with raises_in_flags("--held_out must be other images than those of the run. Received: "):
        doctor.examine(finished, held_out=RunDirectory(finished).read()[0].dataset, verbose=False)


def test_held_out_images_need_the_labels_of_the_run(begin, tmp_path):
    run = begin(5, killed=True, num_classes=10)
    np.savez(tmp_path / "plain.npz", images=random_pixels(20, 8, 8))
    with raises_in_flags(r"--held_out must have labels, as the run has 10 classes"):
        doctor.examine(run, held_out=f"npz:{tmp_path}/plain.npz", verbose=False)
    np.savez(tmp_path / "more.npz", images=random_pixels(20, 8, 8), labels=np.arange(20))
    with raises_in_flags(r"--held_out must have the run's classes, 0, 1, .*, with 0, 1, .*, \.\.\. \(20\)"):
        doctor.examine(run, held_out=f"npz:{tmp_path}/more.npz", verbose=False)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "doctor.py: --run_dir is needed"),
        (["--run_dir=x"], "doctor.py: --run_dir must be a run of train.py: no config.json in x"),
        (["--run_dir=x", "--num_images=1"], "doctor.py: --num_images must be at least 2. Received: 1"),
        (["--run_dir=x", "--seed=2147483648"], "doctor.py: --seed must be an int32. Received: 2147483648"),
    ],
)
def test_bad_flags_end_in_one_line_before_tensorflow_starts(flags, line, tmp_path):
    result = python("-m", "kddpm.doctor", *flags, cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.startswith(line) and result.stderr.count("\n") == 1
    assert "TensorFlow" not in result.stdout and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_ends_with_0_and_where_it_is_strict_with_1(tmp_path):
    flags = ["--width=8", "--multipliers=1", "--attention_resolutions=", "--num_timesteps=20", "--steps=2"]
    flags += ["--batch_size=16", "--sampling_steps=2", f"--run_dir={tmp_path / 'run'}"]
    trained = python(ROOT / "train.py", "--preset=digits", *flags)
    assert trained.returncode == 0, trained.stderr
    command = ["-m", "kddpm.doctor", f"--run_dir={tmp_path / 'run'}", "--num_images=4"]
    result = python(*command, cwd=ROOT)
    assert result.returncode == 0 and f"doctor.png in {tmp_path / 'run' / 'evaluation'}\n" in result.stdout
    assert f"python -m kddpm.doctor --run_dir={tmp_path / 'run'}\n" in trained.stdout
    assert python(*command, "--strict", cwd=ROOT).returncode == 1


def test_training_ends_with_a_verdict(tmp_path, capsys):
    training.train(TINY, tmp_path / "run")
    last = capsys.readouterr().out.splitlines()[-1]
    command = f"More by python -m kddpm.doctor --run_dir={tmp_path / 'run'}"
    assert last == f"healthy, as far as images tell. {command}"


def test_a_verdict_that_fails_does_not_fail_the_training(tmp_path, monkeypatch, capsys):
    def broken(*arguments):
        raise MemoryError("no room")

    monkeypatch.setattr(doctor, "without_network", broken)
    training.train(TINY, tmp_path / "run")
    assert "Nothing can be said of the run's health: no room" in capsys.readouterr().err


def test_losses_are_those_of_the_best_network_in_closed_form():
    """A network that is the best linear denoiser of Gaussian data has its loss, to 5 standard errors."""
    model = best_model((4, 4, 1), std=0.25, correlation=0.6)
    covariance = model.network.covariance
    x_0 = np.random.default_rng(0).multivariate_normal(np.zeros(16), covariance, 2000).reshape(-1, 4, 4, 1)
    timesteps = np.array([0, 9, 19], np.int32)
    told = []
    predict = probes.predictions(model.denoiser)
    found = probes.errors_at(predict, x_0.astype(np.float32), np.zeros(2000, np.int32), timesteps, 7, told.append)
    expected = linear_denoiser.losses(model.schedule, "eps", np.linalg.eigvalsh(covariance))[timesteps]
    errors = found.losses.std(axis=1) / np.sqrt(2000)
    assert (np.abs(found.losses.mean(axis=1) - expected) < 5 * errors).all() and (errors < 0.02 * expected).all()
    np.testing.assert_allclose(found.powers, 1, atol=0.03)  # of noise
    np.testing.assert_allclose(found.outputs, 1 - expected, atol=0.04)  # what is not explained is not said
    assert told == [2000] * 3


def test_labels_that_tell_lower_the_loss():
    """A network that says the label's number, where the target is the right one's."""
    labels = np.array([0, 1, 2, 1] * 20, np.int32)
    x_0 = labels[:, None, None, None].astype(np.float32) * np.ones((1, 2, 2, 1), np.float32)

    def predict(x_0, seeds, given, t):
        return x_0, given[:, None, None, None] * np.ones((1, 2, 2, 1))

    def deaf(x_0, seeds, given, t):
        return x_0, 0.5 * x_0

    change, share, error = probes.effect_of_labels(predict, x_0, labels, 3, 5, seed=0)
    assert change > 0.5 and share == pytest.approx(1) and 0 < error < 0.2
    assert probes.effect_of_labels(deaf, x_0, labels, 3, 5, seed=0) == (0, 0, 0)


def test_the_page_explains_every_figure_and_every_fault(examined):
    page = (ROOT / "docs" / "doctor.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \|([^|]*)\| [^|]+ \|$", page, re.MULTILINE)[1:]
    of_some_runs = {"classes with images", CHANGE, HELD_OUT, LEARNED, WRONG_LABEL}
    figures = [figure.strip() for figure, _ in rows]
    assert set(named(examined[1])) <= set(figures) and of_some_runs < set(figures)
    explained = {fault.strip() for _, faults in rows for fault in faults.split(";") if fault.strip()}
    # A fault is a tuple: whether it is so, its name, its advice.
    trees = [ast.parse(inspect.getsource(room)) for room in (data_findings, findings, network_findings)]
    tuples = [node.elts for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Tuple)]
    names = {elts[1].value for elts in tuples if len(elts) == 3 and isinstance(elts[1], ast.Constant)}
    assert explained == {name for name in names if isinstance(name, str)}
