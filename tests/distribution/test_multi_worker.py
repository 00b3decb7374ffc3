"""Several real processes over loopback, as several machines would be."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.comparing import apart
from helpers.places import ROOT
from helpers.processes import python, wait_for
from helpers.small_runs import make_run

from kddpm.distribution import local_cluster

BOUND = 120  # seconds in which a group must have noticed that one of it is gone
STEPS = 20

# As a user would write it: a scope, and fit. SGD, because Adam makes steps of rounding errors where gradients are 0.
SCRIPT = """
import json, os, sys
import keras, numpy as np, tensorflow as tf
import kddpm

if "TF_CONFIG" in os.environ:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    index = strategy.cluster_resolver.task_id
else:
    strategy, index = tf.distribute.get_strategy(), "alone"
keras.utils.set_random_seed(0)
with strategy.scope():
    unet = kddpm.UNet((8, 8, 1), 8, (1,), 1, (), dropout=0.3, groups=4, num_classes=10)
    rng = np.random.default_rng(1)
    unet.set_weights([w + rng.normal(0, 0.05, w.shape) for w in unet.get_weights()])
    model = kddpm.DiffusionModel(unet, kddpm.schedules.linear(20, 1e-3, 0.5), accumulation=2, label_dropout=0.5)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.5))
batches = kddpm.data.batches(kddpm.data.load("digits"), 24, seed=0, with_labels=True)
history = model.fit(batches, steps_per_epoch=20, verbose=0).history
images, labels = kddpm.data.load("digits").images[:31], kddpm.data.load("digits").labels[:31]
evaluated = model.evaluate(images, labels, batch_size=10, verbose=0)
pictures = model.generate(range(5), num_steps=5, labels=[1] * 5, guidance_scale=2.0)
bits = model.bits_per_dim(images[:5], labels[:5], num_terms=4, verbose=False).images
weights, after = np.concatenate([w.ravel() for w in model.get_weights()]), 0
if index != "alone":
    model.fit(images, labels, batch_size=12, epochs=2, verbose=0)  # arrays, whose order the workers must agree on
    after = np.concatenate([w.ravel() for w in model.get_weights()])
np.savez(
    f"{sys.argv[1]}/{index}.npz", weights=weights, after=after, pictures=pictures, bits=bits, loss=history["loss"],
    norm=history["gradient_norm"], evaluated=evaluated, step=model.step.numpy(),
)
"""


def ended(processes, seconds):
    """(status, output) of each process; one that is late is killed, and has the status -9."""
    late = time.monotonic() + seconds
    results = []
    for process in processes:
        try:
            output, _ = process.communicate(timeout=max(0.1, late - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        results.append((process.returncode, output))
    return results


def start(arguments, workers):
    return local_cluster.start(arguments, workers, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_workers_train_like_one_device(tmp_path, workers):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    alone = python(script, tmp_path)
    assert alone.returncode == 0, alone.stderr
    for status, output in ended(start([str(script), str(tmp_path)], workers), 300):
        assert status == 0, output
    with np.load(tmp_path / "alone.npz") as alone:
        for index in range(workers):
            with np.load(tmp_path / f"{index}.npz") as worker:
                assert int(worker["step"]) == 24  # 20, and twice 31 // 12
                assert np.abs(worker["weights"] - alone["weights"]).max() < 1e-6
                assert worker["pictures"].shape == (5, 8, 8, 1)
                assert apart(worker["pictures"], alone["pictures"]) <= 1
                for name in ("loss", "norm", "evaluated", "bits"):
                    np.testing.assert_allclose(worker[name], alone[name], rtol=1e-5)
                if not index:
                    first = dict(worker)
                for name in worker.files:
                    np.testing.assert_array_equal(worker[name], first[name])  # all hold the same


def command(run_dir, *flags):
    return [
        str(ROOT / "train.py"), "--strategy=multi_worker", "--preset=digits", "--width=8", "--multipliers=1",
        "--attention_resolutions=", "--batch_size=12", f"--steps={STEPS}", "--checkpoint_every=5", "--sample_every=10",
        "--num_timesteps=20", "--sampling_steps=5", "--log_every=6", "--num_classes=10", f"--run_dir={run_dir}", *flags,
    ]  # fmt: skip


def checkpoint(run_dir):
    with np.load(run_dir / "checkpoints" / f"step_{STEPS:07d}.npz") as archive:
        return [archive[name] for name in sorted(archive.files)]


def finished(run_dir, workers):
    """A group that trains to the end."""
    results = ended(start(command(run_dir), workers), 300)
    for status, output in results:
        assert status == 0, output
    return results


@pytest.mark.parametrize(("workers", "lost"), [(2, 1), pytest.param(3, 0, marks=pytest.mark.slow)])
def test_a_lost_worker_ends_the_group_and_the_same_command_goes_on_to_the_same_bits(tmp_path, workers, lost):
    for _, output in finished(tmp_path / "straight", workers)[1:]:
        assert "parameters" not in output  # the chief alone speaks of the run
    broken = tmp_path / "broken"
    processes = start(command(broken), workers)
    wait_for((broken / "checkpoints" / "step_0000005.json").exists, *processes)
    processes[lost].send_signal(signal.SIGKILL)
    results = ended(processes, BOUND)  # -9 of those that are late
    assert results.pop(lost)[0] == -9
    for status, output in results:
        assert status == 3 and f"worker {lost} does not answer. Start all of them again" in output, output
        assert "Traceback" not in output
    results = finished(broken, workers)
    assert "Going on after step" in results[0][1]
    for one, other in zip(checkpoint(tmp_path / "straight"), checkpoint(broken), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (broken / "metrics.csv").read_bytes() == (tmp_path / "straight" / "metrics.csv").read_bytes()
    with open(broken / "metrics.csv", newline="") as stream:
        steps = [*range(6, STEPS, 6), STEPS]
        assert [int(row["step"]) for row in csv.DictReader(stream)] == steps


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_a_group_paints_what_one_process_paints(tmp_path, workers):
    run = make_run(tmp_path / "run", "digits", num_classes=10)
    sampled = [f"--run_dir={run}", "--seeds=0-4"]
    alone = python(ROOT / "sample.py", *sampled, f"--out={tmp_path}/alone.npz")
    assert alone.returncode == 0, alone.stderr
    group = [str(ROOT / "sample.py"), "--strategy=multi_worker", *sampled, f"--out={tmp_path}/group.npz"]
    for status, output in ended(start(group, workers), 300):
        assert status == 0, output
    with np.load(tmp_path / "alone.npz") as alone, np.load(tmp_path / "group.npz") as group:
        assert apart(alone["images"], group["images"]) <= 1


def test_a_signal_to_one_worker_saves_and_ends_all(tmp_path):
    processes = start(command(tmp_path / "run", "--steps=100000"), 2)
    wait_for((tmp_path / "run" / "checkpoints" / "step_0000005.json").exists, *processes)
    processes[1].send_signal(signal.SIGTERM)
    for status, output in ended(processes, BOUND):
        assert status == 128 + signal.SIGTERM, output
    steps = sorted(json.loads(path.read_text())["step"] for path in (tmp_path / "run" / "checkpoints").glob("*.json"))
    assert steps[-1] > 5 and steps[-1] % 10 == 1  # they ask each other at every tenth, from the first on


ONE_BROKEN = """
import json, os, runpy, sys
from kddpm import data
from kddpm.base.errors import InputError

def load(*arguments, **options):
    raise InputError("this disk is broken")

if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 1:
    data.load = load
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_what_one_worker_cannot_do_ends_all(tmp_path):
    (tmp_path / "script.py").write_text(ONE_BROKEN)
    chief, other = ended(start([str(tmp_path / "script.py"), *command(tmp_path / "run")], 2), BOUND)
    assert chief[0] == 2 and "train.py: 1 other worker of 2 cannot go on, and said why" in chief[1]
    assert other[0] == 2 and "train.py: this disk is broken" in other[1]
    assert not (tmp_path / "run").exists()


def test_workers_with_other_flags_are_refused(tmp_path):
    (tmp_path / "script.py").write_text(ONE_BROKEN.replace("data.load = load", "sys.argv.append('--batch_size=24')"))
    for status, output in ended(start([str(tmp_path / "script.py"), *command(tmp_path / "run")], 2), BOUND):
        assert status == 2 and "All workers must be given the same command line. Received: different" in output, output


def test_a_worker_that_never_comes_is_waited_for_until_ctrl_c(tmp_path):
    (process, missing) = start(command(tmp_path / "run"), 2)
    missing.kill()
    missing.wait()
    for line in process.stdout:
        if line.startswith("Waiting for 127.0.0.1:"):
            break
    time.sleep(3)  # until it waits in TensorFlow
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=BOUND) == -signal.SIGINT


def test_the_launcher_shows_the_chief_and_the_errors_of_all(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys; index = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
        "print('x' * 300_000 if index else 'the chief'); print('wrong', file=sys.stderr); sys.exit(3 * index)"
    )
    launcher = [sys.executable, "-m", "kddpm.local_cluster", "--workers=3", script]
    result = subprocess.run(launcher, capture_output=True, text=True, timeout=BOUND)
    assert (result.returncode, result.stdout) == (3, "[0] the chief\n")
    assert sorted(result.stderr.splitlines()) == ["[0] wrong", "[1] wrong", "[2] wrong"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_workers_end_with_the_process_that_started_them(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text("import os, pathlib, time\npathlib.Path(f'{os.getpid()}.pid').touch()\ntime.sleep(600)\n")
    command = [sys.executable, "-m", "kddpm.local_cluster", "--workers=2", str(script)]
    starter = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    late = time.monotonic() + BOUND
    while len(workers := list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < late:
        time.sleep(0.05)
    starter.kill()
    starter.wait()

    def run(process):  # a zombie does not
        try:
            return pathlib.Path("/proc", process.stem, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    while any(map(run, workers)) and time.monotonic() < late:
        time.sleep(0.05)
    assert len(workers) == 2 and not any(map(run, workers))
