"""Files for GPUs: what GPUs take is known from a list, which tests/export/test_gpu.py tries on one."""

import numpy as np
import pytest
import tensorflow as tf

import kddpm
from kddpm.device import gpu, litert
from kddpm.networks import layers

PICTURE = tf.TensorSpec([1, 8, 8, 4], tf.float32, "x")
NUMBER = tf.TensorSpec([1], tf.int32, "x")
COLUMN = np.arange(20, dtype=np.float32)


@pytest.fixture
def exported(tmp_path):
    """Exports a model for GPUs, and returns the file's description and its signatures."""

    def export(model, **options):
        path = tmp_path / "model.tflite"
        about = model.export(path, target="gpu", parity_seeds=1, verbose=False, **options)
        return about, litert.load(path.read_bytes()), gpu.refused(path.read_bytes())

    return export


def converted(function, spec):
    """A `.tflite` of one function."""
    signature = tf.function(lambda x: {"y": function(x)}, [spec], autograph=False)
    return tf.lite.TFLiteConverter.from_concrete_functions([signature.get_concrete_function()], signature).convert()


def test_without_noise_everything_but_the_noise_runs_on_a_gpu(exported, trained_like_with_classes):
    """Guidance, which doubles the batch, and an unrolled `generate`; the parity gate compares it with Keras."""
    about, run, refused = exported(trained_like_with_classes, sampler="ddim", num_steps=2, guidance_scale=2)
    assert refused == [] and about["target"] == "gpu"
    assert list(about["signatures"]["generate"]["inputs"]) == ["x", "label"]
    assert list(about["signatures"]["step"]["inputs"]) == ["x", "index", "label"]
    assert about["parity"]["max_grey_levels"] <= 1 and about["parity"]["noise_identical"]
    seed, label = np.array([5], np.int32), np.array([1], np.int32)
    picture = trained_like_with_classes.generate(seed, "ddim", 2, labels=label, guidance_scale=2, verbose=False)
    made = run["generate"](x=run["start"](seed=seed)["x"], label=label)["image"]
    np.testing.assert_allclose(made, picture, atol=1)


def test_noise_is_an_input_of_a_step(exported, trained_like):
    about, run, refused = exported(trained_like, sampler="ancestral", num_steps=2)
    assert refused == [] and "generate" not in about["signatures"]
    assert list(about["signatures"]["step"]["inputs"]) == ["x", "index", "noise"]
    number = lambda n: np.array([n], np.int32)  # noqa: E731
    x = run["start"](seed=number(5))["x"]
    for index in range(2):
        noise = run["noise"](seed=number(5), stream=number(1), index=number(index))["noise"]
        x = run["step"](x=x, index=number(index), noise=noise)["x"]
    picture = trained_like.generate([5], "ancestral", 2, verbose=False)
    np.testing.assert_allclose(run["finish"](x=x)["image"], picture, atol=1)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize(
    "sampler", [kddpm.Heun(), kddpm.DPMSolver(clip="dynamic"), kddpm.PredictorCorrector(), kddpm.DDIM(eta=1)]
)
def test_every_sampler_and_precision_runs_on_a_gpu(exported, trained_like_with_classes, sampler, precision):
    about, _, refused = exported(
        trained_like_with_classes, sampler=sampler, num_steps=3, precision=precision, batch_size=2
    )
    assert refused == []
    assert ("generate" in about["signatures"]) == isinstance(sampler, kddpm.Heun | kddpm.DPMSolver)


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"sampler": "ancestral", "num_steps": 3}, "generate with a sampler that adds noise"),
        ({"sampler": "ddim", "num_steps": 11}, "generate with 11 network calls"),
        ({"sampler": "heun", "num_steps": 6}, "generate with 11 network calls"),
    ],
)
def test_a_generate_that_would_need_a_loop_is_refused(exported, trained_like, options, received, tmp_path):
    with pytest.raises(kddpm.InputError, match=rf"at most 10 times\. Received: {received}"):
        exported(trained_like, signatures=["generate", "step"], **options)
    assert not list(tmp_path.iterdir())


def test_a_target_is_refused_in_a_line(exported, trained_like, tmp_path):
    with pytest.raises(kddpm.InputError, match=r"`target` must be one of cpu, gpu\. Received: 'tpu'"):
        trained_like.export(tmp_path / "m.tflite", target="tpu")
    with pytest.raises(kddpm.InputError, match=r"`target` of a SavedModel is cpu\. Received: 'gpu'"):
        trained_like.export(tmp_path / "folder", "tf_saved_model", target="gpu")


@pytest.mark.parametrize(
    ("function", "spec"),
    [
        (lambda x: tf.nn.conv2d(tf.nn.silu(x), np.ones((3, 3, 4, 4), np.float32), 1, "SAME"), PICTURE),
        (lambda x: tf.gather(COLUMN, x) * 2, NUMBER),
        (lambda x: x[:, 1:, ::2] + 1, PICTURE),
        (lambda x: tf.tile(x * 2, [2, 1, 1, 1]), PICTURE),
    ],
)
def test_what_a_gpu_takes(function, spec):
    assert gpu.refused(converted(function, spec)) == []
    gpu.check(converted(function, spec))


@pytest.mark.parametrize(
    ("function", "spec", "expected"),
    [
        (lambda x: tf.bitwise.bitwise_xor(x, 5), NUMBER, "BITWISE_XOR"),
        (lambda x: tf.fill([2], x[0]), NUMBER, "FILL"),
        (lambda x: tf.gather(COLUMN, x[0]), NUMBER, "STRIDED_SLICE of a scalar"),
        (lambda x: tf.gather(COLUMN, x[:, tf.newaxis]), NUMBER, "GATHER of 2-dimensional indices"),
        (lambda x: tf.unstack(x, axis=3)[1], PICTURE, "UNPACK"),
        (lambda x: x[..., 1] * 2, PICTURE, "STRIDED_SLICE that changes the number of dimensions"),
        (lambda x: tf.reshape(x, [1, 8, 8, 2, 2]), PICTURE, "RESHAPE of 5 dimensions"),
        (lambda x: tf.subtract(*tf.split(x, 2, axis=3)), PICTURE, "SPLIT"),
        (lambda x: tf.concat([x, x], axis=0), PICTURE, "CONCATENATION of a tensor and itself"),
        (lambda x: tf.nn.conv2d(x, np.ones((3, 3, 2, 4), np.float32), 1, "SAME"), PICTURE, "CONV_2D in groups"),
        (lambda x: tf.while_loop(lambda y: tf.reduce_sum(y) < 9, lambda y: y + 1, [x])[0], PICTURE, "WHILE"),
    ],
)
def test_what_a_gpu_does_not_take(function, spec, expected):
    content = converted(function, spec)
    assert expected in gpu.refused(content)
    with pytest.raises(kddpm.InputError, match=rf"`target` gpu needs .* Received: .*{expected}"):
        gpu.check(content)


def test_sinusoids_from_a_table_are_the_same():
    t = np.array([0, 1, 998, 999], np.int32)
    for width in (8, 9):
        computed = layers.sinusoidal_embedding(t, width)
        with layers.for_devices(1000):
            np.testing.assert_allclose(layers.sinusoidal_embedding(t, width), computed, atol=1e-6)
