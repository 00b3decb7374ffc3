import json
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.networks import OneConv
from helpers.refusals import raises_in_flags

import kddpm
from kddpm.base.errors import InputError, WorkerLostError
from kddpm.cli import commands
from kddpm.distribution import STRATEGIES, strategies, workers
from kddpm.runs import checkpoints, presets, training
from kddpm.runs.directory import COLUMNS, RunDirectory


def tf_config(workers=2, index=0):
    addresses = [f"host{number}:2222" for number in range(workers)]
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})


class Two:
    """The default strategy, which says that it has two replicas."""

    num_replicas_in_sync = 2

    def __getattr__(self, name):
        return getattr(tf.distribute.get_strategy(), name)


def test_the_flag_has_the_names_that_there_are():
    assert commands.STRATEGIES == STRATEGIES == ("auto", *strategies._MAKERS)


@pytest.mark.parametrize(
    ("name", "cpu_replicas", "environment", "text"),
    [
        ("gpu", 1, None, "--strategy must be one of auto, one, mirrored, multi_worker, tpu. Received: 'gpu'"),
        ("mirrored", 1, None, "needs two GPUs or more, or --cpu_replicas to try it. Received: 0 GPUs"),
        ("one", 2, None, "--cpu_replicas needs --strategy=mirrored. Received: one"),
        ("tpu", 1, None, "--strategy=tpu needs a TPU on this machine. Received: "),
        ("multi_worker", 1, None, "--strategy=multi_worker needs TF_CONFIG in the environment, such as {"),
        ("multi_worker", 1, "host1,host2", "TF_CONFIG must look like {.*}.* Received: host1,host2"),
        ("auto", 1, "{}", "TF_CONFIG must look like {.*}.* Received: {}"),
        ("auto", 1, tf_config(2, 2), "TF_CONFIG must look like {.*}.* Received: {"),
        ("auto", 1, tf_config().replace("host1:2222", "host1"), "TF_CONFIG must look like {.*}.* Received: {"),
    ],
)
def test_what_there_is_not_is_named(monkeypatch, name, cpu_replicas, environment, text):
    if environment is not None:
        monkeypatch.setenv("TF_CONFIG", environment)
    with raises_in_flags(text.replace("{", r"\{").replace("}", r"\}")) as refused:
        strategies.make(name, cpu_replicas)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("environment", "tpu", "cpu_replicas", "chosen"),
    [
        (None, None, 1, "one"),
        (tf_config(1), None, 1, "one"),
        (tf_config(2), None, 1, "multi_worker"),
        (None, "local", 1, "tpu"),
        (None, None, 2, "mirrored"),
    ],
)
def test_auto_takes_the_largest_that_there_is(monkeypatch, environment, tpu, cpu_replicas, chosen):
    for name, value in (("TF_CONFIG", environment), ("TPU_NAME", tpu)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(strategies, "_MAKERS", {name: lambda _, name=name: name for name in strategies._MAKERS})
    assert strategies.make("auto", cpu_replicas) == chosen


def test_one_device_is_no_group():
    strategy = strategies.make("one")
    assert workers.is_chief(strategy) and workers.num_workers(strategy) == 1
    assert workers.describe(strategy) == "" and workers.total(strategy, 7) == 7
    with pytest.raises(InputError, match="mine"), workers.all_or_none(strategy):
        raise InputError("mine")


def test_what_ends_another_worker_ends_this_one(monkeypatch):
    strategy = tf.distribute.get_strategy()
    monkeypatch.setattr(workers, "num_workers", lambda _: 3)
    monkeypatch.setattr(workers, "total", lambda _, mine: mine + 1)
    with pytest.raises(InputError, match="1 other worker of 3 cannot go on, and said why"):
        with workers.all_or_none(strategy):
            pass
    with pytest.raises(InputError, match="mine"), workers.all_or_none(strategy):
        raise InputError("mine")


class Group(Two):
    """Worker 1 of three."""

    cluster_resolver = types.SimpleNamespace(task_id=1)


# What TensorFlow said to worker 1 when worker 2 was killed: it names itself first.
OF_A_KILL = """Graph execution error:

Detected at node CollectiveReduceV2 defined at (most recent call last):
Collective ops is aborted by: failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:2222: Failed to
connect to remote host: Connection refused
Additional GRPC error information from remote target /job:worker/replica:0/task:2 while calling RecvBuf:
[[{{node CollectiveReduceV2}}]] on /job:worker/replica:0/task:1/device:CPU:0"""


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            OF_A_KILL,
            "Another worker of the 3 was lost: worker 2 does not answer. Start all of them again with the same",
        ),
        ("/job:worker/replica:0/task:1: cancelled", "was lost: it does not answer"),
    ],
)
def test_a_lost_worker_is_told_in_a_line(monkeypatch, message, text):
    error = tf.errors.UnavailableError(None, None, message)
    with pytest.raises(tf.errors.UnavailableError), workers.using(tf.distribute.get_strategy()):
        raise error
    monkeypatch.setattr(workers, "num_workers", lambda _: 3)
    with pytest.raises(WorkerLostError, match=text) as told, workers.using(Group()):
        raise error
    assert "\n" not in str(told.value)


def model_of(strategy):
    model = kddpm.DiffusionModel(OneConv((8, 8, 1)), kddpm.schedules.linear(20, 1e-3, 0.5))
    model._distribute_strategy = strategy
    return model


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"jit_compile": True}, "`jit_compile` must be False with 2 replicas, .* Received: True"),
        ({"steps_per_execution": 4}, "`steps_per_execution` must be 1 with 2 replicas, .* Received: 4"),
        ({"optimizer": keras.optimizers.Adam(clipnorm=1.0)}, "leave clipnorm to `clip_norm` of the model"),
        ({"optimizer": keras.optimizers.Adam(global_clipnorm=1.0)}, "leave global_clipnorm to `clip_norm`"),
        ({"optimizer": keras.optimizers.Adam(clipvalue=1.0)}, "leave clipvalue to `clip_norm`"),
        ({"optimizer": keras.optimizers.Adam(loss_scale_factor=2.0)}, "leave loss_scale_factor to float16"),
        ({"optimizer": keras.optimizers.Adam(use_ema=True)}, "leave use_ema to `ema_momentum` of the model"),
        (
            {"optimizer": keras.optimizers.Adam(gradient_accumulation_steps=2)},
            "`optimizer` must leave gradient_accumulation_steps to `accumulation` of the model. Received: .*=2",
        ),
        ({"optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())}, "must not scale losses"),
    ],
)
def test_what_replicas_cannot_do_is_refused(arguments, text):
    with pytest.raises(InputError, match=text):
        model_of(Two()).compile(**arguments)


@pytest.mark.parametrize(
    ("x", "batch_size", "text"),
    [
        (np.zeros((9, 8, 8, 1), np.uint8), 5, "one size, divisible by the 2 replicas, .* Received: 5"),
        (np.zeros((9, 8, 8, 1), np.uint8), 10, "`batch_size` must be at most the 9 images. Received: 10"),
        (tf.data.Dataset.from_tensors(tf.zeros([5, 8, 8, 1])), None, "divisible by the 2 replicas, .* Received: 5"),
        (
            tf.data.Dataset.from_tensor_slices(tf.zeros([6, 8, 8, 1])).batch(4),
            None,
            r"`.batch\(size, drop_remainder=True\)` of a dataset. Received: any size",
        ),
        (iter([np.zeros((4, 8, 8, 1))]), None, "2 replicas train on an array or a tf.data.Dataset. Received: "),
    ],
)
def test_batches_that_replicas_cannot_share_are_refused(x, batch_size, text):
    model = model_of(Two())
    model.compile("adam")
    with pytest.raises(InputError, match=text):
        model.fit(x, batch_size=batch_size)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"validation_split": 0.5}, "`validation_split` is for one device; with 2 replicas pass `validation_data`"),
        ({"sample_weight": np.ones(8)}, "`sample_weight` is not supported: every image counts the same"),
        ({"class_weight": {0: 1.0}}, "`class_weight` is not supported: every image counts the same"),
    ],
)
def test_what_fit_does_not_know_is_refused(arguments, text):
    model = model_of(Two())
    model.compile("adam")
    with pytest.raises(InputError, match=text):
        model.fit(np.zeros((8, 8, 8, 1), np.uint8), batch_size=4, **arguments)


def test_a_run_whose_batch_cannot_be_shared_names_its_flags():
    config = presets.make_config("digits", batch_size=64, accumulation=4)
    training._check_batch(config, 2)
    with raises_in_flags("--batch_size must be divisible by the 3 replicas of --strategy, each of"):
        training._check_batch(config, 3)


def test_a_worker_that_is_not_the_chief_writes_nothing(tmp_path):
    model = model_of(tf.distribute.get_strategy())
    model.compile("adam")
    run = RunDirectory(tmp_path / "run", writes=False)
    with run.locked(0):
        run.write(presets.make_config("digits"), {"digest": ""})
    run.append_row(dict.fromkeys(COLUMNS, 1))
    run.forget_rows_after(0)
    checkpoints.Checkpoints(run, model, {}, print).save(1, 0.5)
    assert not run.path.exists()
