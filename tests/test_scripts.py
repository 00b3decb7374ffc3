"""train.py, sample.py and evaluate.py as a user runs them."""

import json
import signal

import numpy as np
import pytest
from helpers.places import ROOT
from helpers.processes import python, sampling, started, wait_for
from PIL import Image

TINY = [
    "--preset=digits", "--width=8", "--multipliers=1", "--attention_resolutions=", "--batch_size=16",
    "--num_timesteps=20", "--sampling_steps=2", "--log_every=2",
]  # fmt: skip


def run(script, *flags, cwd=None):
    return python(ROOT / script, *flags, cwd=cwd)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was stopped by SIGTERM and went on with the same command."""
    run_dir = tmp_path_factory.mktemp("scripts") / "run"
    process = started(ROOT / "train.py", *TINY, "--steps=4000", f"--run_dir={run_dir}")
    wait_for((run_dir / "metrics.csv").exists, process, seconds=120)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, out + err
    assert "SIGTERM: saved step " in err
    stopped_at = int(err.split("saved step ")[1].split(";")[0])
    assert 2 <= stopped_at < 4000
    last = stopped_at + 16  # so that the averages of a snapshot hold something
    result = run("train.py", *TINY, f"--steps={last}", f"--run_dir={run_dir}")
    assert result.returncode == 0, result.stderr
    assert f"Going on after step {stopped_at}" in result.stdout
    assert (run_dir / "metrics.csv").read_text().splitlines()[-1].startswith(f"{last},")
    return run_dir


def test_sample_paints_the_seeds(trained, tmp_path):
    result = run("sample.py", f"--run_dir={trained}", "--seeds=3,5", f"--out={tmp_path / 'grid.png'}")
    assert result.returncode == 0, result.stderr
    assert f"2 pictures in {tmp_path / 'grid.png'}" in result.stdout
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (2 * 50 + 2, 50 + 2)


@pytest.fixture(scope="module")
def sample(trained):
    """sample(out, *flags), which has to go well; all in one process."""
    with sampling() as main:

        def call(out, *flags):
            printed, error = main(f"--run_dir={trained}", "--seeds=3,5-9", f"--out={out}", *flags)
            assert error is None and f"6 pictures in {out}" in printed

        yield call


def test_sample_writes_each_kind_of_file(sample, tmp_path):
    sample(tmp_path / "raw.npz")
    with np.load(tmp_path / "raw.npz") as archive:
        pictures = archive["images"]
        assert pictures.dtype == np.uint8 and pictures.shape == (6, 8, 8, 1)
        assert archive["seeds"].tolist() == [3, 5, 6, 7, 8, 9]
    sample(tmp_path / "grid.png", "--columns=2")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (2 * 50 + 2, 3 * 50 + 2)
        assert (np.asarray(grid)[2:50:6, 52:100:6] == pictures[1, :, :, 0]).all()
    sample(tmp_path / "strip.png", "--frames=3")
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.size == (3 * 50 + 2, 6 * 50 + 2)
        assert (np.asarray(strip)[52:100:6, 102:150:6] == pictures[1, :, :, 0]).all()
    sample(tmp_path / "one_a_seed")
    assert sorted(p.name for p in (tmp_path / "one_a_seed").iterdir()) == [f"{s}.png" for s in (3, 5, 6, 7, 8, 9)]
    with Image.open(tmp_path / "one_a_seed" / "7.png") as image:
        assert (np.asarray(image) == pictures[3, :, :, 0]).all()
    sample(tmp_path / "way.gif", "--sampler=ddim", "--eta=1", "--num_steps=5")
    with Image.open(tmp_path / "way.gif") as animation:
        assert animation.n_frames == 6


def test_sample_paints_with_an_average_of_another_length(sample, tmp_path):
    sample(tmp_path / "own.npz")
    sample(tmp_path / "other.npz", "--ema_length=0.05")
    with np.load(tmp_path / "own.npz") as own, np.load(tmp_path / "other.npz") as other:
        assert not np.array_equal(own["images"], other["images"])


def test_evaluate_prints_and_writes_numbers(trained):
    result = run("evaluate.py", f"--run_dir={trained}", "--max_images=4", "--batch_size=4", "--noclip")
    assert result.returncode == 0, result.stderr
    assert "Bits per dimension of 4 of 1,797 images of digits, which the run was trained on\n" in result.stdout
    assert (
        f"bits_per_dim.json and bits_per_dim.png and rate_distortion.png in {trained / 'evaluation'}\n" in result.stdout
    )
    content = json.loads((trained / "evaluation" / "bits_per_dim.json").read_text())
    assert f"  total           {content['total']:.4f} +- {content['standard_error']:.4f}\n" in result.stdout
    assert (content["max_images"], content["batch_size"], content["clip"], content["seed"]) == (4, 4, False, 0)
    assert content["peak_bytes"] > 0 and content["bytes_per_image"] >= 0
    assert (trained / "evaluation" / "bits_per_dim.png").exists()


def test_evaluate_refuses_images_that_were_changed(trained, tmp_path):
    np.savez(tmp_path / "large.npz", images=np.zeros((3, 16, 16), np.uint8))
    flags = [f"--run_dir={trained}", f"--dataset=npz:{tmp_path}/large.npz", f"--out={tmp_path / 'out'}"]
    result = run("evaluate.py", *flags)
    assert result.returncode == 2 and not (tmp_path / "out").exists()
    line = result.stderr.splitlines()[-1]
    assert (
        line.startswith("evaluate.py: --dataset must hold grey images of 8x8") and "3 of 3 changed (3 resized)" in line
    )
    (tmp_path / "out").write_text("mine")
    result = run("evaluate.py", *flags)
    assert result.stderr.startswith("evaluate.py: --out must be a folder. Received: ")
    assert "TensorFlow" not in result.stdout


def test_outputs_that_cannot_be_are_named_before_sampling(trained, tmp_path):
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "folder.png").mkdir()
    for out, line in [
        ("notes", "--out must be a folder. Received: "),
        ("notes/x.png", "--out must be in a folder that can be written to. Received: "),
        ("folder.png", "--out must be a file. Received: "),
    ]:
        result = run("sample.py", f"--run_dir={trained}", f"--out={tmp_path / out}")
        assert result.returncode == 2 and line in result.stderr and "TensorFlow" not in result.stdout
    assert (tmp_path / "notes").read_text() == "mine"
    result = run("sample.py", f"--run_dir={trained}", "--eta=0.5", f"--out={tmp_path / 'x.png'}")
    assert "--eta belongs to --sampler=ddim. Received: --sampler=ancestral" in result.stderr


def test_impossible_numbers_of_steps_end_in_one_line(trained, tmp_path):
    for steps in (0, 21):
        result = run("sample.py", f"--run_dir={trained}", f"--num_steps={steps}", f"--out={tmp_path / 'x.png'}")
        assert result.returncode == 2
        line = f"sample.py: --num_steps must lie in 1 .. 20 (T). Received: {steps}"
        assert result.stderr.splitlines()[-1] == line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "flags", "line"),
    [
        ("train.py", ["--preset=digits"], "--run_dir is needed"),
        ("train.py", ["--preset=cifar"], "--preset must be one of digits, mnist"),
        ("train.py", ["--steps=lots"], "--steps must be a whole number. Received: 'lots'"),
        ("train.py", ["--image_size=30", "--preset=ddpm32"], "--image_size must be divisible by 8"),
        ("train.py", ["stray"], "flags must begin with --. Received: stray"),
        ("sample.py", [], "--run_dir is needed"),
        ("sample.py", ["--run_dir=x", "--seeds=a"], "--seeds must look like 0-63 or 1,5,10-20. Received: 'a'"),
        ("sample.py", ["--run_dir=x", "--out=x.jpg"], "--out must end in .png, .gif or .npz, or be a folder. Rec"),
        ("sample.py", ["--run_dir=x", "--columns=0"], "--columns must be at least 1. Received: 0"),
        ("sample.py", ["--run_dir=x", "--frames=1"], "--frames must be at least 2. Received: 1"),
        ("sample.py", ["--run_dir=x", "--batch_size=0"], "--batch_size must be at least 1. Received: 0"),
        ("sample.py", ["--run_dir=x", "--frames=3", "--out=x.npz"], "--frames belongs to .png, a filmstrip, or .gif"),
        ("sample.py", ["--run_dir=x"], "--run_dir must be a run of train.py: no config.json in x"),
        ("sample.py", ["--run_dir=x", "--strength=1"], "--strength belongs to --variations. Received: no such flag"),
        ("evaluate.py", [], "--run_dir is needed"),
        ("evaluate.py", ["--run_dir=x", "--metrics=bits_per_dim,is"], "--metrics must be among bits_per_dim, ode_"),
        ("evaluate.py", ["--run_dir=x", "--num_images=50"], "--num_images belongs to --metrics=fid,kid,"),
        ("evaluate.py", ["--run_dir=x", "--ema_lengths=0.1"], "--ema_lengths belongs to --metrics=fid,kid,"),
        ("evaluate.py", ["--run_dir=x", "--metrics=fid", "--ema_lengths=a"], "--ema_lengths must be numbers such as"),
        ("evaluate.py", ["--run_dir=x", "--metrics=fid", "--guidance_scales=1,b"], "--guidance_scales must be numbers"),
        ("evaluate.py", ["--run_dir=x", "--guidance_scales=2"], "--guidance_scales belongs to --metrics=fid,kid,"),
        ("evaluate.py", ["--run_dir=x", "--metrics=fid", "--samplers=ddim:x"], "--samplers must be NAME or NAME:STEPS"),
        ("evaluate.py", ["--run_dir=x", "--max_images=0"], "--max_images must be at least 1. Received: 0"),
        ("evaluate.py", ["--run_dir=x", "--num_trajectories=1"], "--num_trajectories must be at least 2. Received: 1"),
        ("evaluate.py", ["--run_dir=x", "--num_terms=1"], "--num_terms must be at least 2. Received: 1"),
        ("evaluate.py", ["--run_dir=x", "--batch_size=0"], "--batch_size must be at least 1. Received: 0"),
        ("evaluate.py", ["--run_dir=x", "--seed=2147483648"], "--seed must be an int32. Received: 2147483648"),
        ("evaluate.py", ["--run_dir=x"], "--run_dir must be a run of train.py: no config.json in x"),
    ],
)  # fmt: skip
def test_bad_flags_end_in_one_line_before_tensorflow_starts(script, flags, line, tmp_path):
    result = run(script, *flags, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"{script}: ") and line in result.stderr and result.stderr.count("\n") == 1
    assert "TensorFlow" not in result.stdout
    assert not list(tmp_path.iterdir())


def test_every_bad_image_is_listed_before_training(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(4):
        Image.new("L", (8, 8), i).save(pictures / f"{i}.png")
    (pictures / "empty.png").touch()
    (pictures / "text.png").write_text("no picture")
    flags = [f"--dataset=folder:{pictures}", *TINY, "--batch_size=2", f"--run_dir={tmp_path / 'run'}"]
    result = run("train.py", *flags)
    assert result.returncode == 2
    assert "2 of 6 image files cannot be used (--skip_bad_images leaves them out)" in result.stderr
    assert "empty.png: empty file" in result.stderr and "text.png: not a readable image" in result.stderr
    assert not (tmp_path / "run").exists()


def run_and_tell_tensorflow(cwd, script, *flags):
    """`run`, with a last line on stderr that says whether TensorFlow was imported."""
    program = f"""
import atexit, runpy, sys
atexit.register(lambda: print("tensorflow" in sys.modules, file=sys.stderr))
sys.argv = {[script, *flags]!r}
runpy.run_path({str(ROOT / script)!r}, run_name="__main__")
"""
    return python("-c", program, cwd=cwd)


@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("train.py", ["sampler"]),
        ("sample.py", ["sampler", "inpaint", "count"]),
        ("evaluate.py", ["metrics", "[no]clip"]),
    ],
)
def test_help_names_the_flags_and_unknown_flags_are_refused(script, names, tmp_path):
    result = run_and_tell_tensorflow(tmp_path, script, "--help")
    assert all(f"--{name}:" in result.stdout for name in ["run_dir", *names])
    assert result.stderr == "False\n"
    result = run(script, "--run_dri=x")
    assert result.returncode == 1 and "Unknown command line flag 'run_dri'. Did you mean: run_dir" in result.stderr


def test_dry_run_prints_the_configuration_and_needs_no_tensorflow(tmp_path):
    result = run_and_tell_tensorflow(tmp_path, "train.py", "--dry_run", "--preset=mnist", "--steps=7")
    printed = json.loads(result.stdout)
    assert (printed["steps"], printed["image_size"], printed["dataset"]) == (7, [28, 28], "tfds:mnist")
    assert result.stderr == "False\n"
