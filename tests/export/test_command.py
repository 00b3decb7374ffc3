"""`python -m export` as a user runs it."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers.sites import files_of
from PIL import Image

from kddpm.device import litert
from kddpm.runs import build, directory, presets, snapshots

ROOT = pathlib.Path(__file__).parents[2]
QUIET = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}  # as a user's shell is


def export(*flags):
    command = [sys.executable, "-m", "export", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=QUIET)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run directory as train.py leaves it, with weights like trained ones."""
    path = tmp_path_factory.mktemp("runs") / "run"
    config = presets.make_config(
        "digits", width=8, multipliers=(1,), attention_resolutions=(), num_timesteps=20, schedule="cosine",
        num_classes=3, sampling_steps=2, dropout=0.0,
    )  # fmt: skip
    data = {"source": "digits", "digest": "0", "images": 9, "image_shape": [8, 8, 1], "class_names": ["a", "b", "c"]}
    run = directory.RunDirectory(path)
    run.write(config, data)
    model = build.build_model(config, (8, 8, 1))
    rng = np.random.default_rng(0)
    for weight in model.ema_network.weights:
        weight.assign(weight + rng.normal(size=weight.shape) * 0.05)
    model.ema_network.save_weights(run.weights_path)
    for weight in model.network.weights:  # of the snapshot
        weight.assign(weight + rng.normal(size=weight.shape) * 0.05)
    averages = snapshots.Averages(model.network)
    averages.update()
    snapshots.save(run, averages, 8)
    return path


def test_a_run_becomes_a_file_that_the_client_runs(finished_run, tmp_path):
    out = tmp_path / "phone.tflite"
    made = export(f"--run_dir={finished_run}", f"--out={out}", "--precision=int8", "--num_steps=3", "--parity_seeds=2")
    assert made.returncode == 0, made.stderr
    for row in ("file ", "signatures ", "operators ", "delegated ", "latency ", "noise ", "parity "):
        assert re.search(rf"^{row}", made.stdout, re.MULTILINE), made.stdout
    assert made.stdout.endswith(
        "--sampler=ancestral --num_steps=3 --clip=True --spacing=trailing --variance=small --guidance_scale=1.0\n"
    )
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["class_names"] == ["a", "b", "c"] and about["precision"] == "int8"

    script = ROOT / "export" / "edge" / "generate.py"
    grid = tmp_path / "grid.png"
    command = [sys.executable, script, out, "--seeds=0-8", "--labels=1", f"--out={grid}"]
    painted = subprocess.run(command, capture_output=True, text=True)
    assert painted.returncode == 0, painted.stderr
    with Image.open(grid) as image:
        assert image.size == (3 * 50 + 2, 3 * 50 + 2)


def test_a_run_with_more_classes_than_names_becomes_a_saved_model_without_names(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    config = json.loads((run / "config.json").read_text())
    config["data"]["class_names"] = ["a", "b"]
    (run / "config.json").write_text(json.dumps(config))
    out = tmp_path / "saved"
    made = export(
        f"--run_dir={run}", "--format=saved_model", f"--out={out}", "--num_steps=2", "--parity_seeds=1",
        "--sampler=ancestral", "--variance=large", "--batch_size=2",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    about = json.loads((tmp_path / "saved.json").read_text())
    chosen = {"name": "ancestral", "num_steps": 2, "clip": True, "spacing": "trailing", "variance": "large"}
    assert about["sampler"] == chosen and about["batch_size"] == 2
    assert about["class_names"] is None and about["num_classes"] == 3
    assert (out / "saved_model.pb").exists()


def test_the_command_that_is_printed_paints_the_pictures_of_the_file(finished_run, tmp_path):
    made = export(
        f"--run_dir={finished_run}", f"--out={tmp_path / 'm.tflite'}", "--sampler=heun", "--num_steps=4",
        "--spacing=karras", "--clip=dynamic", "--guidance_scale=2", "--parity_seeds=1", "--ema_length=0.05",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    about = json.loads((tmp_path / "m.json").read_text())
    assert (about["sampler"]["num_steps"], about["network_calls"], about["guidance_scale"]) == (4, 7, 2)
    command = shlex.split(made.stdout.splitlines()[-1].partition("are those of: ")[2])
    painted = subprocess.run(
        [sys.executable, *command[1:], "--seeds=0-8", f"--out={tmp_path / 'keras.npz'}"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert command[0] == "python" and painted.returncode == 0, painted.stderr
    run = litert.load((tmp_path / "m.tflite").read_bytes())
    with np.load(tmp_path / "keras.npz") as archive:
        for seed, picture in zip(archive["seeds"], archive["images"], strict=True):
            found = run["generate"](seed=np.array([seed]), label=np.array([seed % 3], np.int32))["image"]
            assert np.abs(found - picture.astype(int)).max() <= 1
        assert len(np.unique(archive["images"])) > 10


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ([], "--run_dir is needed"),
        (["--run_dir={nowhere}"], "--run_dir must be a run of train.py: no config.json"),
        (["--run_dir={empty}"], "has no weights yet"),
        (["--run_dir={run}", "--out=phone.bin"], r"--out must end in \.tflite. Received: phone\.bin"),
        (["--run_dir={run}", "--out={file}/m.tflite"], "--out must be in a folder that can be written to"),
        (["--run_dir={run}", "--eta=1", "--sampler=ancestral"], "--eta belongs to --sampler=ddim"),
        (["--run_dir={run}", "--corrections=2", "--sampler=heun"], "--corrections belongs to --sampler=predictor_cor"),
        (["--run_dir={run}", "--sampler=euler"], "--sampler must be one of ancestral, ddim, .* Received: euler"),
        (["--run_dir={run}", "--serve"], "--serve belongs to --format=web. Received: --format=tflite"),
        (["--run_dir={run}", "--format=web", "--batch_size=2"], "--batch_size must be 1 with --format=web"),
        (["--format=web", "--serve", "--out={nowhere}"], "--out must be a site that was built"),
        (["--run_dir={run}", "phone.tflite"], "flags must begin with --. Received: phone.tflite"),
    ],
)
def test_bad_flags_end_in_one_line(finished_run, tmp_path, flags, error):
    (tmp_path / "file").write_text("mine")
    config = (finished_run / "config.json").read_text()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(config)
    names = {"run": finished_run, "nowhere": tmp_path / "no", "empty": tmp_path / "empty", "file": tmp_path / "file"}
    defaults = [] if any("--out" in flag for flag in flags) else [f"--out={tmp_path / 'm.tflite'}"]
    before = sorted(tmp_path.rglob("*"))
    result = export(*(flag.format(**names) for flag in flags), *defaults)
    assert result.returncode == 2
    assert re.fullmatch(rf"export: [^\n]*{error}[^\n]*\n", result.stderr), result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_steps_beyond_t_and_unknown_precisions_are_named(finished_run, tmp_path):
    result = export(f"--run_dir={finished_run}", "--num_steps=21", f"--out={tmp_path / 'm.tflite'}")
    assert result.returncode == 2
    assert re.fullmatch(r"export: [^\n]*20[^\n]*21[^\n]*\n", result.stderr), result.stderr
    result = export(f"--run_dir={finished_run}", "--precision=int4", f"--out={tmp_path / 'm.tflite'}")
    assert result.returncode != 0 and "float32|float16|int8" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_becomes_a_site_that_is_served(finished_run, tmp_path, needs):
    needs("npm")
    out = tmp_path / "site"
    command = [
        sys.executable, "-m", "export", f"--run_dir={finished_run}", "--format=web", f"--out={out}", "--serve",
        "--port=0", "--num_steps=2", "--parity_seeds=1",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=QUIET
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("http://localhost:"):
                break
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        assert process.returncode == 0, "".join(lines) + process.stderr.read()
    about = json.loads((files_of(out) / "model.json").read_text())
    assert about["network_calls"] == 2
    assert sorted(about["signatures"]) == ["denoise", "finish", "noise"]
    assert (out / "index.html").exists() and (files_of(out) / "model.tflite").exists()
