"""Two replicas in one process."""

import json

import numpy as np
from helpers.processes import python

TWO_REPLICAS = """
import json, sys
import numpy as np, tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, kddpm
from helpers.networks import OneConv

images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1)).astype("uint8")
labels = np.arange(40) % 3


def train(strategy, unet, model):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        if unet is None:  # where the network does not matter
            unet = OneConv()
        else:
            unet = kddpm.UNet((4, 4, 1), 8, (1,), 1, (), groups=4, **unet)
        rng = np.random.default_rng(1)
        unet.set_weights([w + rng.normal(0, 0.05, w.shape) for w in unet.get_weights()])
        model = kddpm.DiffusionModel(unet, kddpm.schedules.linear(20, 1e-3, 0.5), **model)
        model.compile(keras.optimizers.SGD(0.05, momentum=0.5))
        seen = []
        if model.objective.timestep_sampling == "importance":
            seen = [model.loss_squares, model.loss_counts]
            seen[0].assign(np.arange(1.0, 21.0) / 10)
            seen[1].assign(np.full(20, 10))  # enough to draw by
    start = unet.get_weights()
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8, drop_remainder=True)
    history = model.fit(dataset, epochs=4, verbose=0).history
    averages, seen = model.ema_network.get_weights(), [variable.numpy() for variable in seen]
    pictures = [model.generate(range(5), num_steps=5, jit_compile=False).tolist()]
    few = images[:5], labels[:5] if unet.num_classes else None
    bits = [model.bits_per_dim(*few, num_terms=4, batch_size=4).total]
    if isinstance(unet, OneConv):  # quick to trace and to compile
        compiled = model.generate(range(5), num_steps=5, jit_compile=True, return_trajectory=3)
        pictures += [part.tolist() for part in compiled]
        bits.append(model.bits_per_dim(*few, num_steps=3, num_trajectories=2, batch_size=4).total)
        bits.append(kddpm.likelihood.ode_bits_per_dim(model, *few, num_steps=3, batch_size=4).total)
    evaluated = [model.evaluate(images, labels, batch_size=size, verbose=0) for size in (16, 13)]  # 13: 7 + 6
    return history, start, unet.get_weights(), averages, int(model.step.numpy()), seen, [*evaluated, *bits], pictures


def largest(ours, theirs):
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs))


# One strategy for all: a second one would number its collective operations as the first did, with other shapes.
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
results = []
for unet, model in (
    (None, {"clip_norm": None, "accumulation": 2, "timestep_sampling": "stratified"}),
    (None, {"clip_norm": 0.1}),
    (
        {"num_classes": 3, "out_channels": 2, "dropout": 0.3},
        {
            "weighting": "hybrid", "variance": "learned", "timestep_sampling": "importance", "label_dropout": 0.5,
            "accumulation": 2,
        },
    ),
):
    one = train(tf.distribute.get_strategy(), unet, model)
    two = train(mirrored, unet, model)
    results.append({
        "moved": largest(one[1], one[2]),
        "weights": largest(one[2], two[2]),
        "averages": largest(one[3], two[3]),
        "seen": [[float(part.sum()) for part in of[5]] for of in (one, two)],
        "seen_apart": largest(one[5], two[5]) if one[5] else 0.0,
        "steps": [one[4], two[4]],
        "evaluated": [one[6], two[6]],
        "pictures": max(largest(np.array(a), np.array(b)) for a, b in zip(one[7], two[7])),
        "loss": [one[0]["loss"], two[0]["loss"]],
        "gradient_norm": [one[0]["gradient_norm"], two[0]["gradient_norm"]],
    })
# Weights that leave float32 in the second step: what follows is skipped on both.
lost = []
for strategy in (tf.distribute.get_strategy(), mirrored):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = kddpm.DiffusionModel(OneConv(), kddpm.schedules.linear(20, 1e-3, 0.5))
        model.compile(keras.optimizers.Adam(1e-3))
        model.fit(images, batch_size=8, verbose=0)
        good = model.network.get_weights()
        model.network.trainable_variables[0].assign(np.full(model.network.trainable_variables[0].shape, np.inf))
        spoilt, iterations = model.network.get_weights(), int(model.optimizer.iterations.numpy())
    skipped = model.fit(images, batch_size=8, verbose=0).history["skipped_steps"]
    same = all(np.array_equal(a, b) for a, b in zip(spoilt, model.network.get_weights()))
    lost.append([skipped, same, int(model.optimizer.iterations.numpy()) == iterations, int(model.step.numpy())])
# Means that are saved and restored within a row of metrics.csv go on to the same bits.
with mirrored.scope():
    model = kddpm.DiffusionModel(OneConv(), kddpm.schedules.linear(20, 1e-3, 0.5))


@tf.function
def account(value):
    mirrored.run(lambda: model._update_metrics(value, value / 3, tf.constant(True)))


rows = []
for restored in (False, True):
    rng = np.random.default_rng(0)
    for row in range(20):
        model.reset_metrics()
        for step in range(12):
            if restored and step == 7:
                for variable, value in [(v, v.numpy()) for metric in model.metrics for v in metric.variables]:
                    variable.assign(value)
            account(tf.constant(rng.random(), tf.float32))
        rows.append([float(metric.result()) for metric in model.metrics])
print(json.dumps([rows[:20], rows[20:]]))
print(json.dumps(lost))
print(json.dumps(results))
"""


def test_two_replicas_train_like_one(tmp_path):
    script = tmp_path / "two_replicas.py"
    script.write_text(TWO_REPLICAS)
    run = python(script)
    assert run.returncode == 0, run.stderr
    unclipped, clipped, everything = json.loads(run.stdout.splitlines()[-1])
    for result in (unclipped, clipped, everything):
        assert result["steps"] == [20, 20]
        assert result["moved"] > 1e-3
        assert result["weights"] < 1e-6 and result["averages"] < 1e-6
        np.testing.assert_allclose(result["loss"][1], result["loss"][0], rtol=1e-5)
        np.testing.assert_allclose(result["gradient_norm"][1], result["gradient_norm"][0], rtol=1e-5)
        np.testing.assert_allclose(result["evaluated"][1], result["evaluated"][0], rtol=1e-5)
        assert abs(result["evaluated"][1][1] / result["evaluated"][0][0] - 1) < 1e-5  # in batches of 13 and of 16
        assert result["pictures"] <= 1  # of 255
    assert clipped["gradient_norm"][0][0] > 0.2 and clipped["moved"] < 0.8 * unclipped["moved"]
    # Importance sampling, label dropout and a learned variance; both remember the 160 losses beside the 200 given.
    assert [counts for _, counts in everything["seen"]] == [360, 360]
    assert everything["seen_apart"] < 1e-6 and abs(everything["seen"][0][0] - 21) > 0.1
    straight, restored = json.loads(run.stdout.splitlines()[-3])
    assert straight == restored and all(0 < loss < 1 for loss, *_ in straight)
    one, two = json.loads(run.stdout.splitlines()[-2])
    assert one == two == [[5.0], True, True, 10]
