"""The same seed in every runtime there is: the bits of the noise, and the pictures. Node and Chromium: test_web.py."""

import numpy as np
import pytest
import tensorflow as tf

from kddpm.device import litert
from kddpm.sampling import walks

SEEDS = np.array([0, 7, -5, 2**31 - 1, -(2**31)], np.int32)
STEPS = 6


def in_keras(model, mode):
    """(noise, pictures) of Keras run eagerly, as a graph or compiled by XLA."""
    tf.config.run_functions_eagerly(mode == "eager")
    try:
        draw = tf.function(lambda seeds: walks.initial_noise(seeds, model.image_shape), jit_compile=mode == "xla")
        fresh = type(model)(model.network, model.schedule)  # no function that another mode has traced
        fresh.ema_network.set_weights(model.ema_network.get_weights())
        return draw(SEEDS).numpy(), fresh.generate(SEEDS, "ancestral", STEPS, jit_compile=mode == "xla")
    finally:
        tf.config.run_functions_eagerly(False)


def by_signatures(run):
    """(noise, pictures) of the signatures `start` and `generate`."""
    seeds = SEEDS[:, np.newaxis]
    return tuple(
        np.concatenate([np.asarray(run[name](seed=seed)[output]) for seed in seeds])
        for name, output in (("start", "x"), ("generate", "image"))
    )


@pytest.fixture(scope="module")
def everywhere(trained_like, exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("everywhere") / "saved_model"
    trained_like.export(folder, "tf_saved_model", sampler="ancestral", num_steps=STEPS, parity_seeds=1, verbose=False)
    saved = tf.saved_model.load(str(folder)).signatures
    content = exported().read_bytes()
    return {
        **{f"keras {mode}": in_keras(trained_like, mode) for mode in ("eager", "graph", "xla")},
        "saved model": by_signatures({name: lambda seed, f=f: f(seed=tf.constant(seed)) for name, f in saved.items()}),
        "litert": by_signatures(litert.load(content)),
        "litert without xnnpack": by_signatures(litert.load(content, xnnpack=False)),
    }


RUNTIMES = ["keras eager", "keras xla", "saved model", "litert", "litert without xnnpack"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_noise_has_the_same_bits(everywhere, runtime):
    found, expected = everywhere[runtime][0], everywhere["keras graph"][0]
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))
    assert len(np.unique(found)) > 100


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_pictures_are_the_same(everywhere, runtime):
    found, expected = (everywhere[name][1].astype(int) for name in (runtime, "keras graph"))
    print(f"{runtime}: {np.mean(found == expected):.2%} of pixels identical")
    assert np.abs(found - expected).max() <= 1
    assert len(np.unique(expected)) > 20
