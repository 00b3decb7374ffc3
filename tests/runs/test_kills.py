"""Real processes of train.py, killed by SIGKILL: in whatever they were doing."""

import re
import resource
import signal
import time

import h5py
import numpy as np
import pytest
from helpers.places import ROOT
from helpers.processes import started, wait_for

STEPS, FIRST = 20, 2
REPLICAS = ["--strategy=mirrored", "--cpu_replicas=2"]
EVERYTHING = [
    "--horizontal_flip", "--dropout=0.3", "--num_classes=10", "--precision=mixed_bfloat16", "--accumulation=2",
]  # fmt: skip


def command(run_dir, flags):
    return [
        ROOT / "train.py", "--preset=digits", "--width=8", "--multipliers=1", "--batch_size=16",
        "--attention_resolutions=", "--num_timesteps=20", "--sampling_steps=5", f"--steps={STEPS}", "--log_every=3",
        f"--checkpoint_every={FIRST}", "--sample_every=10", f"--run_dir={run_dir}", *flags,
    ]  # fmt: skip


def first(run_dir):
    """What is there once the first checkpoint is whole."""
    return run_dir / "checkpoints" / f"step_{FIRST:07d}.json"


def start(run_dir, flags):
    return started(*command(run_dir, flags))


def killed_at(run_dir, flags, condition):
    process = start(run_dir, flags)
    wait_for(condition, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()


def content(run_dir):
    """Every variable of training, the averaged weights, the snapshots, and metrics.csv."""
    with np.load(run_dir / "checkpoints" / f"step_{STEPS:07d}.npz") as archive:
        arrays = [archive[name] for name in sorted(archive.files)]
    with h5py.File(run_dir / "ema.weights.h5") as file:
        file.visititems(lambda name, item: arrays.append(item[()]) if isinstance(item, h5py.Dataset) else None)
    kept = [path.read_bytes() for path in sorted(run_dir.glob("snapshots/*.npz"))]
    return [array.tobytes() for array in arrays], kept, (run_dir / "metrics.csv").read_bytes()


@pytest.fixture(scope="module")
def straight_of(tmp_path_factory):
    """The directory of a run of these flags in one go."""
    runs = {}

    def run_of(flags):
        if tuple(flags) not in runs:
            run_dir = runs[tuple(flags)] = tmp_path_factory.mktemp("straight") / "run"
            output, errors = start(run_dir, flags).communicate()
            assert (run_dir / "metrics.csv").exists(), output + errors
        return runs[tuple(flags)]

    return run_of


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(EVERYTHING, id="everything"),
        pytest.param([*REPLICAS, *EVERYTHING], id="everything on two replicas", marks=pytest.mark.slow),
        pytest.param([], id="plain", marks=pytest.mark.slow),
        pytest.param(REPLICAS, id="two replicas", marks=pytest.mark.slow),
        pytest.param(["--jit_compile", "--dropout=0.3"], id="XLA", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_with_the_bits_of_one_in_one_go(tmp_path, straight_of, flags):
    flags = [*flags, "--snapshot_every=7"]
    straight, broken = straight_of(flags), tmp_path / "broken"
    assert sorted(path.name for path in straight.glob("snapshots/*")) == ["step_0000014.npz", "step_0000020.npz"]
    assert len((straight / "metrics.csv").read_text().splitlines()) == 1 + STEPS // 3 + 1
    # In the middle of some step, and while a checkpoint is being written.
    killed_at(broken, flags, first(broken).exists)
    killed_at(broken, flags, lambda: any(broken.glob("checkpoints/.part-*")))
    process = start(broken, flags)
    output, errors = process.communicate()
    assert process.returncode == 0 and "Going on after step" in output, output + errors
    assert content(broken) == content(straight)


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    flags = ["--num_timesteps=1000", "--sampling_steps=1000", f"--sample_every={FIRST}"]
    process = start(tmp_path / "run", flags)
    wait_for(first(tmp_path / "run").exists, process)
    for _ in range(2):  # while pictures are painted, for seconds
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, errors = process.communicate()
    assert process.returncode == 130 and "train.py: interrupted" in errors and "Traceback" not in errors, errors
    assert "saved" not in errors and not list((tmp_path / "run" / "samples").iterdir())


def test_a_disk_that_fills_up_ends_training_and_takes_nothing(tmp_path, straight_of):
    run_dir = tmp_path / "run"
    process = start(run_dir, [])
    wait_for(first(run_dir).exists, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))  # of a file; a checkpoint is larger
    output, errors = process.communicate()
    assert process.returncode == 2, output + errors
    assert re.search(r"\ntrain.py: The checkpoint of step \d+ cannot be written, earlier ones are whole: ", errors), (
        errors
    )
    assert not list(run_dir.glob("**/.part-*"))
    output, errors = start(run_dir, []).communicate()
    assert "Going on after step" in output, output + errors
    assert content(run_dir) == content(straight_of([]))
