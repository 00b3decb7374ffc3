"""Run directories as train.py leaves them, of networks that were never trained."""

import keras
import numpy as np

from kddpm.runs import build, presets
from kddpm.runs.directory import RunDirectory


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
