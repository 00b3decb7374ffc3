"""Runs that are over in a moment, and run directories as train.py leaves them, of networks never trained."""

import csv

import keras
import numpy as np

from kddpm.runs import build, presets
from kddpm.runs.directory import RunDirectory

TINY = presets.make_config(
    "digits", width=8, multipliers=(1,), attention_resolutions=(), batch_size=16, steps=6, warmup_steps=2, log_every=2,
    checkpoint_every=3, sample_every=100, snapshot_every=0, num_timesteps=20, sampling_steps=2, sampler="ddim",
)  # fmt: skip


def make_run(path, dataset, digest="", image_shape=(8, 8, 1), class_names=(), weights=True, **changes):
    """A run of 20 timesteps with random averaged weights, or an empty file for them; `changes` are fields of its
    configuration."""
    config = presets.make_config(
        "digits", dataset=dataset, image_size=image_shape[:2], channels=image_shape[2],
        width=8, multipliers=(1,), attention_resolutions=(), num_timesteps=20, sampling_steps=None, **changes,
    )  # fmt: skip
    about_data = {"source": dataset, "digest": digest, "images": 0, "image_shape": list(image_shape)}
    run = RunDirectory(path)
    run.write(config, {**about_data, "class_names": list(class_names)})
    if not weights:
        run.weights_path.touch()
        return run.path
    keras.utils.set_random_seed(0)
    network = build.build_model(config, image_shape).ema_network
    rng = np.random.default_rng(0)
    for weight in network.weights:
        weight.assign(weight.numpy() + 0.1 * rng.normal(size=weight.shape))
    network.save_weights(run.weights_path)
    return run.path


def rows(run_dir):
    """Those of metrics.csv."""
    with open(run_dir / "metrics.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def averages(run_dir):
    """The averaged weights of a run."""
    return build.load_run(run_dir).ema_network.get_weights()


class StopAfter(keras.callbacks.Callback):
    """What a kill looks like to the files: an exception between two steps."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.batches:
            raise ConnectionAbortedError


def flip_a_byte(path):
    """In the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
