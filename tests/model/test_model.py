import inspect
import json
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.networks import OneConv, T

import kddpm
from kddpm import data
from kddpm.base.errors import InputError
from kddpm.data import images
from kddpm.model.draws import EVALUATION, TRAINING
from kddpm.sampling import noise, samplers, walks
from kddpm.theory import objectives, parametrization, schedules

SHAPE = (4, 4, 1)


def small(optimizer="adam", network=None, **changes):
    """A compiled model around `OneConv`; the same weights every time. XLA would draw other noise."""
    keras.utils.set_random_seed(0)
    model = kddpm.DiffusionModel(OneConv(**(network or {})), kddpm.schedules.linear(T, 1e-3, 0.5), **changes)
    model.compile(optimizer, jit_compile=False)
    return model


def pictures(count, shape=SHAPE):
    return np.random.default_rng(0).integers(0, 256, (count, *shape)).astype("uint8")


def train(model, x, y=None, batch_size=4, **kwargs):
    return model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0, **kwargs).history


def evaluate(model, x, y=None, batch_size=4):
    return model.evaluate(x, y, batch_size=batch_size, verbose=0, return_dict=True)["loss"]


def weights(model):
    return [w.copy() for w in model.network.get_weights()]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def distance(ours, theirs):
    return np.sqrt(sum(np.square(a.astype(float) - b).sum() for a, b in zip(ours, theirs, strict=True)))


class Weights(keras.callbacks.Callback):
    """Keeps the weights after every step."""

    def on_train_begin(self, logs=None):
        self.history = [weights(self.model)]

    def on_train_batch_end(self, batch, logs=None):
        self.history.append(weights(self.model))


def draw(model, purpose, index, x_0, label=None):
    """t, weight, noise, labels and dropout seed of one step."""
    label = None if label is None else tf.constant(label, tf.int32)
    drawn = model._draw(purpose, tf.constant(index, tf.int64), x_0, label)
    return [None if part is None else part.numpy() for part in drawn]


def loss_by_hand(model, network, x_0, purpose, index, label=None):
    """L_simple of one batch in NumPy, from the model's draws and nothing else of it."""
    t, weight, eps, label, _ = draw(model, purpose, index, x_0, label)
    np.testing.assert_array_equal(weight, 1)
    alpha_bar = np.cumprod(1 - np.linspace(1e-3, 0.5, T))[t].reshape(-1, 1, 1, 1)
    x_t = np.sqrt(alpha_bar) * (x_0 / 127.5 - 1) + np.sqrt(1 - alpha_bar) * eps
    inputs = [x_t.astype("float32"), t] + ([] if label is None else [label])
    return np.square(eps - network(inputs).numpy()).mean()


# The loss.


@pytest.mark.parametrize("classes", [None, 3])
def test_the_reported_loss_is_l_simple_of_the_draws(classes):
    x, y = pictures(12), np.arange(12) % 3
    model = small(keras.optimizers.SGD(0.0), {"num_classes": classes}, label_dropout=0.5)
    history = train(model, x, y)
    assert set(history) == {"loss", "gradient_norm", "skipped_steps"}
    labels = [None if classes is None else y[4 * k : 4 * k + 4] for k in range(3)]
    by_hand = [loss_by_hand(model, model.network, x[4 * k : 4 * k + 4], TRAINING, k, labels[k]) for k in range(3)]
    np.testing.assert_allclose(history["loss"], [np.mean(by_hand)], rtol=1e-5)
    by_hand = [loss_by_hand(model, model.ema_network, x[i : i + 4], EVALUATION, i, labels[i // 4]) for i in (0, 4, 8)]
    np.testing.assert_allclose(evaluate(model, x, y), np.mean(by_hand), rtol=1e-5)


def test_draws_depend_on_seed_purpose_and_step_alone():
    x_0, y = np.zeros((64, *SHAPE), np.float32), np.arange(64) % 3

    def drawn(purpose=TRAINING, step=3, seed=5):
        model = small(network={"num_classes": 3}, seed=seed, label_dropout=0.5)
        t, _, eps, label, dropout_seed = draw(model, purpose, step, x_0, y)
        return [part.tolist() for part in (t, eps, label, dropout_seed)]

    assert drawn() == drawn()
    for other in (drawn(purpose=EVALUATION), drawn(step=4), drawn(seed=6)):
        assert all(a != b for a, b in zip(drawn(), other, strict=True))


def test_draws_are_uniform_timesteps_and_standard_normal_noise():
    """Bounds of 5 standard errors; the draws are fixed, so it passes or fails for good."""
    n = 20_000
    t, weight, eps, _, _ = draw(small(), TRAINING, 0, np.zeros((n, *SHAPE), np.float32))
    shares = np.bincount(t, minlength=T) / n
    assert len(shares) == T and (abs(shares - 1 / T) < 5 * np.sqrt(1 / T / n)).all()
    np.testing.assert_array_equal(weight, 1)
    assert abs(eps.mean()) < 5 / np.sqrt(eps.size)
    assert abs(eps.var() - 1) < 5 * np.sqrt(2 / eps.size)
    assert abs((eps[1:] * eps[:-1]).mean()) < 5 / np.sqrt(eps.size)


@pytest.mark.parametrize("timestep_sampling", parametrization.TIMESTEP_SAMPLINGS)
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_share_of_labels_that_is_dropped(rate, timestep_sampling):
    """A bound of 5 standard errors; the draws are fixed, so it passes or fails for good."""
    n = 20_000
    model = small(network={"num_classes": 3}, label_dropout=rate, timestep_sampling=timestep_sampling)
    if timestep_sampling == "importance":
        give_history(model)
    x_0, y = np.zeros((n, *SHAPE), np.float32), np.arange(n) % 3
    t, _, eps, label, _ = draw(model, TRAINING, 0, x_0, y)
    dropped = label == 3  # "no class"
    assert abs(dropped.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    np.testing.assert_array_equal(label[~dropped], y[~dropped])
    # Whether a label goes says nothing about the class, the timestep or the noise.
    for other in (y, t, eps.mean((1, 2, 3))):
        assert abs(np.corrcoef(dropped, other)[0, 1]) < 5 / np.sqrt(n)
    np.testing.assert_array_equal(draw(model, EVALUATION, 0, x_0, y)[3], y)  # evaluation shows every class


def test_no_label_is_dropped_where_none_is_to_be():
    x_0, y = np.zeros((64, *SHAPE), np.float32), np.arange(64) % 3
    np.testing.assert_array_equal(draw(small(network={"num_classes": 3}, label_dropout=0.0), TRAINING, 0, x_0, y)[3], y)
    assert draw(small(label_dropout=0.5), TRAINING, 0, x_0)[3] is None


class Replica:
    def __init__(self, replica, replicas):
        self.replica_id_in_sync_group, self.num_replicas_in_sync = replica, replicas


@pytest.mark.parametrize("timestep_sampling", parametrization.TIMESTEP_SAMPLINGS)
def test_replicas_share_the_draws_of_the_global_batch(make_model, monkeypatch, timestep_sampling):
    unet = {"dropout": 0.1, "num_classes": 3, "multipliers": (1,)}
    model = make_model(unet, timestep_sampling=timestep_sampling, label_dropout=0.5)
    if timestep_sampling == "importance":
        give_history(model)
    x_0, y = np.zeros((16, 8, 8, 1), np.float32), np.arange(16) % 3
    whole = draw(model, TRAINING, 3, x_0, y)
    assert 0 < np.sum(whole[3] == 3) < 16
    for replica in range(2):
        monkeypatch.setattr(tf.distribute, "get_replica_context", lambda replica=replica: Replica(replica, 2))
        mine = slice(8 * replica, 8 * replica + 8)
        for part, of_all in zip(draw(model, TRAINING, 3, x_0[mine], y[mine]), whole, strict=True):
            np.testing.assert_array_equal(part, of_all[mine])
    assert len(set(whole[-1])) == 16  # seeds of dropout


# Importance sampling of t.


def give_history(model):
    """Losses of every t as seen often, so that t are drawn unevenly; returns how often each is."""
    model.loss_squares.assign(np.arange(1, T + 1) ** 2)
    model.loss_counts.assign(np.full(T, 10))
    roots = np.arange(1, T + 1)
    return 0.999 * roots / roots.sum() + 0.001 / T


def test_importance_sampling_draws_what_has_large_losses_and_weighs_it_less():
    """Bounds of 5 standard errors; the draws are fixed, so it passes or fails for good."""
    n, model = 20_000, small(timestep_sampling="importance")
    x_0 = np.zeros((n, *SHAPE), np.float32)
    t, weight, *_ = draw(model, TRAINING, 0, x_0)
    np.testing.assert_allclose(weight, 1, rtol=1e-6)  # nothing has been seen
    assert (abs(np.bincount(t, minlength=T) / n - 1 / T) < 5 * np.sqrt(1 / T / n)).all()
    expected = give_history(model)
    t, weight, *_ = draw(model, TRAINING, 0, x_0)
    shares = np.bincount(t, minlength=T) / n
    assert (abs(shares - expected) < 5 * np.sqrt(expected / n)).all()
    np.testing.assert_allclose(weight, 1 / (T * expected[t]), rtol=1e-5)
    # Whatever depends on t has the mean that it has under uniform draws.
    for values in (np.ones(T), np.arange(T), np.arange(T) % 2, np.exp(-np.arange(T))):
        sample = weight * values[t]
        assert abs(sample.mean() - values.mean()) < 5 * sample.std() / np.sqrt(n)
    np.testing.assert_array_equal(  # evaluation stays uniform
        draw(model, EVALUATION, 0, x_0)[0], draw(small(), EVALUATION, 0, x_0)[0]
    )


def test_training_remembers_the_losses_of_each_t():
    """The unweighted ones, of every image; the weights of the network stay, so that they can be had by hand."""
    model = small(keras.optimizers.SGD(0.0), timestep_sampling="importance")
    give_history(model)
    squares, counts, reported = np.array(model.loss_squares), np.array(model.loss_counts), []
    x = pictures(12)
    for k in range(3):
        x_0 = images.to_float(x[4 * k : 4 * k + 4])
        t, weight, eps, _, _ = draw(model, TRAINING, k, x_0)
        x_t = model.diffusion.q_sample(x_0, t, eps)
        losses = np.square(eps - model.network([x_t, t]).numpy()).mean((1, 2, 3))
        squares, counts = objectives.updated_loss_history(tf.constant(squares), tf.constant(counts), t, losses)
        reported.append(np.mean(weight * losses))
        history = train(model, x[4 * k : 4 * k + 4])
        np.testing.assert_allclose(history["loss"], reported[-1:], rtol=1e-5)
        np.testing.assert_allclose(model.loss_squares, squares, rtol=1e-5)
        np.testing.assert_array_equal(model.loss_counts, counts)
    assert counts.numpy().sum() == 10 * T + 12 and len({*np.round(reported, 3)}) == 3
    evaluate(model, x)
    np.testing.assert_array_equal(model.loss_counts, counts)  # evaluation is not remembered


def test_a_model_of_uniform_timesteps_has_no_history():
    assert {v.name for v in small(timestep_sampling="importance").variables} - {v.name for v in small().variables} == {
        "loss_squares",
        "loss_counts",
    }


# What `fit` takes.


def as_dataset(x, y=None):
    return tf.data.Dataset.from_tensor_slices(x if y is None else (x, y)).batch(4)


def test_every_form_of_the_same_images_trains_the_same_way():
    x, y = pictures(8), np.arange(8) % 3
    expected = small()
    train(expected, x)
    as_float = (x / np.float32(127.5) - 1).astype("float32")
    for form in ([as_float], [x, y], [x, y + 100], [as_dataset(x), None, None], [as_dataset(as_float, y), None, None]):
        model = small()
        train(model, *form)
        assert_same(weights(model), weights(expected))
    assert distance(weights(expected), weights(small())) > 1e-3


def test_labels_of_a_dataset_and_of_an_array_train_the_same_way():
    x, y = pictures(8), np.arange(8) % 3
    models = [small(network={"num_classes": 3}) for _ in range(3)]
    train(models[0], x, y)
    train(models[1], as_dataset(x, y[:, np.newaxis]), None, None)
    train(models[2], x, (y + 1) % 3)
    assert_same(weights(models[0]), weights(models[1]))
    assert distance(weights(models[0]), weights(models[2])) > 1e-4


@pytest.mark.parametrize("form", ["array", "dataset"])
def test_a_network_with_classes_needs_labels(form):
    model, x = small(network={"num_classes": 3}), pictures(4)
    for call in (model.fit, model.evaluate):
        with pytest.raises(InputError, match="`network` has 3 classes and needs labels: pass \\(images, labels\\)"):
            call(x if form == "array" else as_dataset(x), verbose=0)


def test_labels_out_of_range():
    model, x = small(network={"num_classes": 3}), pictures(4)
    for call in (model.fit, model.evaluate):
        with pytest.raises(InputError, match=r"^`labels` must be integers in 0 \.\. 2. Received: int64 from 0 to 3$"):
            call(x, np.array([0, 1, 2, 3]), verbose=0)
        with pytest.raises(InputError, match=r"^Labels must lie in 0 \.\. 2\. Received: from -1 to 2$"):
            call(as_dataset(x, np.array([0, 1, 2, -1])), verbose=0)


def test_sample_weights_are_refused():
    with pytest.raises(InputError, match="`sample_weight` is not supported"):
        small().fit(pictures(4), np.zeros(4), sample_weight=np.ones(4), verbose=0)


def test_validation_data_and_split_report_the_loss_of_evaluate():
    x = pictures(12)
    model = small()
    for shown, arguments in (
        (x[:8], {"validation_data": x[8:], "epochs": 2}),
        (x[:8], {"validation_data": (x[8:],)}),
        (x[:8], {"validation_data": as_dataset(x[8:])}),
        (x, {"validation_split": 1 / 3}),
    ):
        history = train(model, shown, **arguments)
        assert set(history) == {"loss", "gradient_norm", "skipped_steps", "val_loss"}
        np.testing.assert_allclose(history["val_loss"][-1], evaluate(model, x[8:]), rtol=1e-6)


def test_validation_images_are_looked_at():
    with pytest.raises(InputError, match=r"Images must have the shape \(N, 4, 4, 1\) of the network"):
        small().fit(pictures(4), validation_data=pictures(4, (4, 4, 3)), verbose=0)


def test_the_loss_falls_on_real_digits(make_model):
    x = data.load("digits").images[:512]
    model = make_model({"multipliers": (1,), "dropout": 0.1})
    model.compile(keras.optimizers.Adam(3e-3))
    before = evaluate(model, x, batch_size=32)
    loss = train(model, x, batch_size=32, epochs=4)["loss"]
    assert 0.95 < before < 1.05  # a network that predicts nothing: the variance of the noise
    assert loss[-1] < 0.6 * loss[0]
    assert evaluate(model, x, batch_size=32) < 0.9 * before


# Averaged weights.


def test_evaluate_uses_the_averaged_weights_and_the_same_draws():
    x, model = pictures(8), small()
    first = evaluate(model, x)
    assert evaluate(model, x) == first
    model.network.set_weights([w + 1 for w in model.network.get_weights()])
    assert evaluate(model, x) == first
    model.ema_network.set_weights(model.network.get_weights())
    assert evaluate(model, x) != first


def test_the_average_warms_up_and_then_keeps_its_momentum():
    model, seen = small(keras.optimizers.SGD(1.0), ema_momentum=0.3), Weights()
    train(model, pictures(24), callbacks=[seen])
    average = seen.history[0]
    for step, current in enumerate(seen.history[1:]):
        momentum = min(0.3, (1 + step) / (10 + step))  # 0.1, 0.18, 0.25, 0.3, 0.3, 0.3
        average = [momentum * a + (1 - momentum) * w for a, w in zip(average, current, strict=True)]
    assert len(seen.history) == 7 and int(model.step.numpy()) == 6
    assert distance(average, weights(model)) > 1e-3
    for ours, by_hand in zip(model.ema_network.get_weights(), average, strict=True):
        np.testing.assert_allclose(ours, by_hand, atol=1e-6)


def test_averages_are_not_trained():
    model = small()
    assert model.trainable_variables == model.network.trainable_variables
    assert len(model.optimizer.variables) == len(small().optimizer.variables) > 0


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 1.5])
def test_impossible_momenta(momentum):
    with pytest.raises(InputError, match=rf"`ema_momentum` must lie in \[0, 1\). Received: {momentum}"):
        small(ema_momentum=momentum)


# Gradients and optimizers.


def gradients_by_hand(model, x, y):
    t, weight, eps, label, _ = draw(model, TRAINING, 0, x, y)
    x_t = model.diffusion.q_sample(images.to_float(x), t, eps)
    with tf.GradientTape() as tape:
        losses = tf.reduce_mean(tf.square(model.network([x_t, t, label]) - eps), (1, 2, 3))
        loss = tf.reduce_mean(weight * losses)
    return [tf.convert_to_tensor(g).numpy() for g in tape.gradient(loss, model.network.trainable_variables)]


@pytest.mark.parametrize("timestep_sampling", parametrization.TIMESTEP_SAMPLINGS)
@pytest.mark.parametrize("clip_norm", [None, 0.01, 1e6])
def test_gradients_are_clipped_by_their_global_norm(clip_norm, timestep_sampling):
    x, y = pictures(4), np.array([0, 1, 0, 0])  # the gradient of the labels' table is sparse, with repeated rows
    model = small(
        keras.optimizers.SGD(1.0), {"num_classes": 2}, clip_norm=clip_norm, timestep_sampling=timestep_sampling
    )
    if timestep_sampling == "importance":
        give_history(model)
    gradients = gradients_by_hand(model, x, y)
    norm = np.sqrt(sum(np.square(g).sum() for g in gradients))
    scale = 1 if clip_norm is None else min(1, clip_norm / norm)
    before = weights(model)
    history = train(model, x, y)
    assert norm > 0.1
    np.testing.assert_allclose(history["gradient_norm"], [norm], rtol=1e-5)
    for was, became, gradient in zip(before, weights(model), gradients, strict=True):
        np.testing.assert_allclose(became, was - scale * gradient, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [0, -1.0])
def test_impossible_clip_norms(clip_norm):
    with pytest.raises(InputError, match=f"`clip_norm` must be positive, or None. Received: {clip_norm}"):
        small(clip_norm=clip_norm)


def test_a_learning_rate_schedule_is_followed():
    warm_up = keras.optimizers.schedules.PolynomialDecay(0.0, decay_steps=4, end_learning_rate=8.0)
    model, seen = small(keras.optimizers.SGD(warm_up), clip_norm=1e-3), Weights()
    train(model, pictures(24), callbacks=[seen])
    moved = [distance(a, b) for a, b in zip(seen.history, seen.history[1:], strict=False)]
    np.testing.assert_allclose(moved, 1e-3 * np.array([0, 2, 4, 6, 8, 8]), atol=1e-6)


def test_callbacks_of_keras_work(tmp_path):
    x, model, epochs = pictures(8), small(), []
    history = train(
        model,
        x,
        epochs=5,
        validation_data=x,
        callbacks=[
            keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
            keras.callbacks.EarlyStopping(monitor="val_loss", min_delta=100, patience=1),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(sorted(logs))),
        ],
    )
    assert epochs == [["gradient_norm", "loss", "skipped_steps", "val_loss"]] * 2 and len(history["loss"]) == 2
    assert_same(weights(keras.models.load_model(tmp_path / "2.keras")), weights(model))


def test_compile_refuses_what_cannot_work():
    with pytest.raises(
        InputError, match="`loss` follows from the model's `prediction` and `weighting`. Received: loss='mse'"
    ):
        small().compile("adam", loss="mse")
    with pytest.raises(InputError, match="`network` must compute in float32 or bfloat16. .* mixed_float16"):
        small(network={"dtype": "mixed_float16"})


def test_mixed_bfloat16_trains(make_model):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = make_model({"multipliers": (1,)})
    assert model.network.compute_dtype == "bfloat16"
    assert {w.dtype for w in model.weights} == {"float32", "int64", "uint32"} - {"uint32"}
    model.compile(keras.optimizers.Adam(3e-3))
    loss = train(model, data.load("digits").images[:256], batch_size=32, epochs=4)["loss"]
    assert np.isfinite(loss).all() and loss[-1] < 0.9 * loss[0]


# Traces.


def count_traces(model):
    shapes, note = [], model._note_trace
    model._note_trace = lambda purpose, batch: shapes.append((purpose, *batch.shape)) or note(purpose, batch)
    return shapes


def test_a_step_is_traced_once_for_one_batch_shape():
    model = small()
    traces = count_traces(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(2):
            train(model, as_dataset(pictures(16)), None, None, epochs=2)
            evaluate(model, as_dataset(pictures(8)), None, None)
    assert [purpose for purpose, *_ in traces] == ["training", "evaluation"]


def test_another_batch_shape_warns():
    model = small()
    train(model, tf.data.Dataset.from_tensor_slices(pictures(8)).batch(4, drop_remainder=True), None, None)
    with pytest.warns(UserWarning, match=r"The training step, traced for a batch \(4, 4, 4, 1\), is traced again for"):
        train(model, tf.data.Dataset.from_tensor_slices(pictures(8)).batch(8, drop_remainder=True), None, None)


# The same run twice, saving and resuming.


def unet_model(make_model):
    model = make_model({"multipliers": (1,), "dropout": 0.3})
    model.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    return model


def test_training_is_a_function_of_the_seed():
    x = pictures(12)
    models = [small(keras.optimizers.Adam(1e-2), {"dropout": 0.3}, seed=seed) for seed in (3, 3, 4)]
    losses = [train(model, x)["loss"] for model in models]
    assert losses[0] == losses[1]
    assert_same(weights(models[0]), weights(models[1]))
    assert distance(weights(models[0]), weights(models[2])) > 1e-3


def test_a_saved_model_continues_as_if_it_had_never_stopped(make_model, tmp_path):
    x = pictures(24, (8, 8, 1))
    uninterrupted = unet_model(make_model)
    train(uninterrupted, x)

    first = unet_model(make_model)
    train(first, x[:12])
    first.save(tmp_path / "model.keras")
    keras.utils.set_random_seed(123)
    second = keras.models.load_model(tmp_path / "model.keras")
    assert int(second.step.numpy()) == int(second.optimizer.iterations.numpy()) == 3
    assert_same([v.numpy() for v in second.optimizer.variables], [v.numpy() for v in first.optimizer.variables])
    train(second, x[12:])
    assert_same(weights(second), weights(uninterrupted))
    assert_same(second.ema_network.get_weights(), uninterrupted.ema_network.get_weights())


def test_a_saved_model_is_loaded_by_keras_alone(make_model, tmp_path):
    model = make_model({"num_classes": 3, "dropout": 0.2}, seed=7, ema_momentum=0.5, clip_norm=None)
    model.compile(keras.optimizers.Adam(0.5), jit_compile=False)
    train(model, pictures(8, (8, 8, 1)), np.arange(8) % 3)
    model.save(tmp_path / "model.keras")
    script = """
import sys, keras, kddpm, numpy as np
model = keras.models.load_model(sys.argv[1] + "/model.keras")
np.save(sys.argv[1] + "/pictures.npy", model.generate(range(4)))
print(model.seed, model.ema_momentum, model.clip_norm, model.schedule.num_timesteps, int(model.step.numpy()))
print(float(model.optimizer.learning_rate.numpy()))
"""
    run = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert run.stdout.split() == ["7", "0.5", "None", "20", "2", "0.5"], run.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "pictures.npy"), model.generate(range(4)))


CHOICES = [
    ({"prediction": "v", "weighting": "min_snr", "variance": "large"}, {}),
    ({"weighting": "hybrid", "variance": "learned", "timestep_sampling": "importance"}, {"out_channels": 2}),
    ({"prediction": "mu", "weighting": "vlb", "label_dropout": 0.25}, {"num_classes": 3}),
]


@pytest.mark.parametrize(("choices", "network"), CHOICES)
def test_choices_survive_saving(choices, network, tmp_path):
    x, y = pictures(8), np.arange(8) % 3
    model = small(network=network, **choices)
    train(model, x, y)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    config = model.get_config()
    assert set(config) == set(inspect.signature(kddpm.DiffusionModel).parameters)
    assert {name: config[name] for name in choices} == {name: getattr(again, name) for name in choices} == choices
    assert {**again.get_config(), "network": None} == {**config, "network": None}
    assert_same([v.numpy() for v in again.variables], [v.numpy() for v in model.variables])
    np.testing.assert_array_equal(again.generate(range(4), num_steps=5), model.generate(range(4), num_steps=5))
    for trained in (model, again):
        train(trained, x, y)
    assert_same([v.numpy() for v in again.variables], [v.numpy() for v in model.variables])
    if "timestep_sampling" in choices:
        assert again.loss_counts.numpy().sum() == 16


# What does not go together.

ZERO_SNR = schedules.zero_terminal_snr(schedules.linear(T, 1e-3, 0.5))


@pytest.mark.parametrize(
    ("choices", "out_channels", "message"),
    [
        ({"prediction": "score"}, 1, "`prediction` must be one of eps, x0, mu, v. Received: 'score'"),
        (
            {"prediction": "v", "weighting": "mu"},
            1,
            "`weighting` must be one of simple, vlb, min_snr, hybrid, each in the form that belongs to `prediction`. "
            "Received: 'mu'",
        ),
        ({"variance": "fixed"}, 1, "`variance` must be one of small, large, learned. Received: 'fixed'"),
        (
            {"timestep_sampling": "uneven"},
            1,
            "`timestep_sampling` must be one of uniform, importance. Received: 'uneven'",
        ),
        *(
            (
                {"weighting": "hybrid", "variance": variance},
                1,
                "`weighting` hybrid is the loss of a learned variance and needs variance='learned'. "
                f"Received: variance='{variance}'",
            )
            for variance in ("small", "large")
        ),
        *(
            (
                {"weighting": weighting, "variance": "learned"},
                2,
                "`variance` learned needs weighting='hybrid' or 'vlb': no other term trains it. "
                f"Received: weighting='{weighting}'",
            )
            for weighting in ("simple", "min_snr")
        ),
        (
            {"weighting": "hybrid", "variance": "learned"},
            1,
            r"`network` must have 2 output channels for variance='learned' and images of 1: "
            r"UNet\(..., out_channels=2\). Received: 1",
        ),
        (
            {},
            2,
            r"`network` must have 1 output channels for variance='small' and images of 1: "
            r"UNet\(..., out_channels=1\). Received: 2",
        ),
        (
            {"schedule": ZERO_SNR},
            1,
            r"`prediction` must be x0, mu or v where the schedule ends at alpha_bar = 0 \(zero terminal SNR\): there "
            "eps is x_t itself and says nothing about the image. Received: 'eps'",
        ),
        ({"label_dropout": 1.0}, 1, r"`label_dropout` must lie in \[0, 1\). Received: 1.0"),
        ({"label_dropout": -0.1}, 1, r"`label_dropout` must lie in \[0, 1\). Received: -0.1"),
    ],
)
def test_choices_that_do_not_go_together_are_refused_with_the_reason(choices, out_channels, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        kddpm.DiffusionModel(
            OneConv(out_channels=out_channels), **{"schedule": schedules.linear(T, 1e-3, 0.5), **choices}
        )


@pytest.mark.parametrize("prediction", ["x0", "mu", "v"])
def test_the_other_predictions_train_to_the_end_of_the_signal(prediction):
    keras.utils.set_random_seed(0)
    model = kddpm.DiffusionModel(OneConv(), ZERO_SNR, prediction=prediction)
    model.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    loss = train(model, pictures(16), epochs=8)["loss"]
    assert np.isfinite(loss).all() and loss[-1] < loss[0]


# Two replicas.

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
    pictures = [
        model.generate(range(5), num_steps=5, jit_compile=jit_compile, return_trajectory=jit_compile * 3)
        for jit_compile in (False, True)
    ]
    pictures = [pictures[0].tolist(), *(part.tolist() for part in pictures[1])]
    bits = model.bits_per_dim(images[:5], labels[:5] if unet.num_classes else None, num_terms=4, batch_size=4).total
    evaluated = [model.evaluate(images, labels, batch_size=size, verbose=0) for size in (16, 13)]  # 13: 7 + 6
    return history, start, unet.get_weights(), averages, int(model.step.numpy()), seen, [*evaluated, bits], pictures


def largest(ours, theirs):
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs))


# One strategy for all: a second one would number its collective operations as the first did, with other shapes.
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
results = []
for unet, model in (
    (None, {"clip_norm": None, "accumulation": 2}),
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
    mirrored.run(lambda: model._account(value, value / 3, tf.constant(True)))


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
    run = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    unclipped, clipped, everything = json.loads(run.stdout.splitlines()[-1])
    for result in (unclipped, clipped, everything):
        assert result["steps"] == [20, 20]
        assert result["moved"] > 1e-3
        assert result["weights"] < 1e-6 and result["averages"] < 1e-6
        np.testing.assert_allclose(result["loss"][1], result["loss"][0], rtol=1e-5)
        np.testing.assert_allclose(result["gradient_norm"][1], result["gradient_norm"][0], rtol=1e-5)
        np.testing.assert_allclose(result["evaluated"][1], result["evaluated"][0], rtol=1e-5)
        assert result["pictures"] <= 1  # of 255
    assert clipped["gradient_norm"][0][0] > 0.2 and clipped["moved"] < 0.8 * unclipped["moved"]
    # Importance sampling, label dropout and a learned variance; both remember the 160 losses beside the 200 given.
    assert [counts for _, counts in everything["seen"]] == [360, 360]
    assert everything["seen_apart"] < 1e-6 and abs(everything["seen"][0][0] - 21) > 0.1
    straight, restored = json.loads(run.stdout.splitlines()[-3])
    assert straight == restored and all(0 < loss < 1 for loss, *_ in straight)
    one, two = json.loads(run.stdout.splitlines()[-2])
    assert one == two == [[5.0], True, True, 10]


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(make_model):
    model = make_model({"multipliers": (1,)})
    model.compile("adam")
    images = np.zeros((16, 8, 8, 1), np.uint8)
    model.fit(images, batch_size=8, verbose=0)
    kernel = model.network.trainable_variables[0]
    sound = kernel.numpy()
    kernel.assign(np.full(kernel.shape, np.nan))
    before = [v.numpy() for v in [*model.network.weights, *model.optimizer.variables]]
    history = model.fit(images, batch_size=8, verbose=0).history
    assert history["skipped_steps"] == [2.0] and int(model.skipped_in_a_row) == 2 and int(model.step) == 4
    for old, new in zip(before, [*model.network.weights, *model.optimizer.variables], strict=True):
        np.testing.assert_array_equal(old, new)
    kernel.assign(sound)
    history = model.fit(images, batch_size=8, verbose=0).history
    assert history["skipped_steps"] == [0.0] and history["loss"][0] > 0 and int(model.skipped_in_a_row) == 0


def test_training_that_is_lost_ends_with_its_step_loss_and_rate(make_model):
    model = make_model({"multipliers": (1,)})
    model.compile(keras.optimizers.Adam(0.25))
    model.network.trainable_variables[0].assign(np.full(model.network.trainable_variables[0].shape, np.inf))
    images = np.zeros((60, 8, 8, 1), np.uint8)
    with pytest.raises(InputError, match="finite in the last 10 steps, up to step 10: loss nan, learning rate 0.25"):
        model.fit(images, batch_size=4, verbose=0, callbacks=keras.callbacks.History())  # one alone is no list
    with pytest.raises(InputError, match="finite in the last 14 steps, up to step 14"):  # epochs of four
        model.fit(images[:16], batch_size=4, epochs=9, verbose=0)


@pytest.mark.parametrize(("network", "jit_compile"), [("unet", False), ("one layer", True)])
def test_micro_batches_make_the_step_of_the_whole(make_model, network, jit_compile):
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1)).astype(np.uint8)
    moved = {}
    for parts in (1, 4):
        if network == "unet":
            model = make_model({"dropout": 0.3, "multipliers": (1,)}, accumulation=parts)
        else:
            model = small(network={"image_shape": (8, 8, 1)}, accumulation=parts)
        start = model.network.get_weights()
        model.compile(keras.optimizers.SGD(0.1), jit_compile=jit_compile)
        history = model.fit(images, batch_size=8, verbose=0, shuffle=False).history
        moved[parts] = [model.network.get_weights(), history["loss"], history["gradient_norm"]]
        assert max(np.abs(a - b).max() for a, b in zip(start, moved[parts][0], strict=True)) > 1e-3
    for ours, whole in zip(moved[4][0], moved[1][0], strict=True):
        np.testing.assert_allclose(ours, whole, atol=1e-6)
    np.testing.assert_allclose(moved[4][1:], moved[1][1:], rtol=1e-5)


def test_batches_that_cannot_be_shared_are_refused(make_model):
    with pytest.raises(InputError, match="`accumulation` must be an integer of at least 1. Received: 0"):
        make_model(accumulation=0)
    model = make_model(accumulation=3)
    model.compile("adam")
    with pytest.raises(InputError, match="`accumulation`=3 needs batches of one size, divisible by it .*: 8"):
        model.fit(np.zeros((8, 8, 8, 1), np.uint8), batch_size=8, verbose=0)


# Pictures.


@pytest.fixture
def painter(make_model):
    """A model whose averaged weights are random and differ from the raw ones; nothing in it is compiled or trained."""

    def make(**unet):
        model = make_model({"multipliers": (1,), **unet})
        rng = np.random.default_rng(1)
        model.ema_network.set_weights([w + rng.normal(0, 0.05, w.shape) for w in model.ema_network.get_weights()])
        return model

    return make


def apart(ours, theirs):
    return np.abs(ours.astype(int) - theirs.astype(int)).max()


def test_ancestral_sampling_is_algorithm_2(painter):
    model, seeds = painter(), np.array([4, -9], np.int32)
    betas = np.linspace(1e-3, 0.5, T)
    alpha_bars = np.cumprod(1 - betas)
    x = noise.normal(seeds, noise.INITIAL_STREAM, 0, (8, 8, 1)).numpy().astype(float)
    for i, t in enumerate(reversed(range(T))):
        eps = model.ema_network([x.astype("float32"), np.full(2, t)]).numpy()
        z = noise.normal(seeds, noise.STEP_STREAM, i, (8, 8, 1)).numpy() if t else 0
        x = (x - betas[t] / np.sqrt(1 - alpha_bars[t]) * eps) / np.sqrt(1 - betas[t]) + np.sqrt(betas[t]) * z
    by_hand = np.clip(np.round((x + 1) * 127.5), 0, 255)
    assert apart(model.generate(seeds, samplers.Ancestral("large", clip=False)), by_hand) <= 1


def test_pictures_are_uint8_and_repeatable(painter):
    model = painter(image_shape=(8, 4, 3))
    made = model.generate(range(3))
    assert made.shape == (3, 8, 4, 3) and made.dtype == np.uint8
    np.testing.assert_array_equal(model.generate(range(3)), made)
    assert min(apart(made[i], made[j]) for i, j in [(0, 1), (0, 2), (1, 2)]) > 20
    assert apart(made, painter(image_shape=(8, 4, 3)).generate(range(3))) == 0


def test_a_picture_depends_on_its_own_seed_alone(painter):
    model = painter()
    many, many_frames = model.generate(range(64), return_trajectory=2)
    for seeds in ([63], [5, 0, 63]):
        few, frames = model.generate(seeds, return_trajectory=2)
        assert apart(few, many[seeds]) <= 1
        np.testing.assert_array_equal(frames[0], many_frames[0][seeds])


def test_chunks_with_a_remainder(painter):
    model, seeds = painter(), list(range(10, 17))
    expected, expected_frames = model.generate(seeds, return_trajectory=3)
    for batch_size in (1, 3, 7):
        made, frames = model.generate(seeds, batch_size=batch_size, return_trajectory=3)
        assert made.shape == expected.shape and apart(made, expected) <= 1
        assert frames.shape == expected_frames.shape and apart(frames, expected_frames) <= 1


def test_trajectories_go_from_noise_to_the_picture(painter):
    model, seeds = painter(), [1, 2]
    made, frames = model.generate(seeds, return_trajectory=5)
    assert frames.shape == (5, 2, 8, 8, 1) and frames.dtype == np.uint8
    start = walks.initial_noise(tf.constant(seeds), (8, 8, 1))
    np.testing.assert_array_equal(frames[0], images.to_uint8(start))
    np.testing.assert_array_equal(frames[-1], made)
    np.testing.assert_array_equal(made, model.generate(seeds))
    steps = model.generate(seeds, return_trajectory=True)[1]
    assert len(steps) == T + 1  # 50 are wanted and there are no more
    np.testing.assert_array_equal(steps[::5], frames)
    assert model.generate(seeds, return_trajectory=1)[1].shape == (1, 2, 8, 8, 1)


def test_samplers_by_name_and_as_objects(painter):
    model = painter()
    made = {
        name: model.generate([1, 2], sampler, num_steps)
        for name, sampler, num_steps in [
            ("ancestral", "ancestral", None),
            ("ancestral in 20", samplers.Ancestral(), 20),
            ("ddim", "ddim", 5),
            ("ddim in a list", samplers.DDIM(), [3, 7, 11, 15, 19]),
            ("ddim elsewhere", "ddim", [0, 1, 2, 3, 19]),
            ("ddim with noise", samplers.DDIM(eta=1.0), 5),
            ("large variance", samplers.Ancestral("large"), None),
        ]
    }
    np.testing.assert_array_equal(made["ancestral"], made.pop("ancestral in 20"))
    np.testing.assert_array_equal(made["ddim"], made.pop("ddim in a list"))
    assert len({pictures.tobytes() for pictures in made.values()}) == len(made) == 5


def test_xla_paints_the_same_pictures(painter):
    model = painter()
    assert apart(model.generate(range(4), num_steps=5), model.generate(range(4), num_steps=5, jit_compile=True)) <= 1


def test_sampling_is_traced_once(painter, monkeypatch):
    model, traces, walk = painter(), [], walks.walk
    monkeypatch.setattr(walks, "walk", lambda *args: traces.append(args) or walk(*args))
    model.generate([1, 2, 3])
    model.generate([4, 5, 6, 7])  # 3 and 4 share a batch of 4
    model.generate(range(9), batch_size=4, return_trajectory=4)
    assert len(traces) == 1
    model.generate([1, 2, 3], "ddim")
    assert len(traces) == 2


def test_pictures_of_classes(painter):
    model, seeds = painter(num_classes=3), [0, 1, 5, -1]
    made = model.generate(seeds)
    np.testing.assert_array_equal(made, model.generate(seeds, labels=[0, 1, 2, 2]))
    other = model.generate(seeds, labels=[1, 1, 2, 2])
    assert apart(made[0], other[0]) > 1 and apart(made[1:], other[1:]) <= 1


def test_pictures_are_of_the_averaged_weights(painter):
    model = painter()
    made = model.generate([1])
    model.network.set_weights([w + 1 for w in model.network.get_weights()])
    np.testing.assert_array_equal(model.generate([1]), made)
    model.ema_network.set_weights([w / 2 for w in model.ema_network.get_weights()])
    assert apart(model.generate([1]), made) > 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"seeds": []}, r"`seeds` must be a non-empty list of integers. Received: \[\]"),
        ({"seeds": [1.5]}, r"`seeds` must be a non-empty list of integers. Received: \[1.5\]"),
        ({"seeds": [2**31]}, "`seeds` must fit int32. Received: values from 2147483648 to 2147483648"),
        ({"sampler": "euler"}, "`sampler` must be one of ancestral, ddim, .*, or a sampler. Received: 'euler'"),
        ({"num_steps": 21}, r"`num_steps` must be an integer in 1 .. 20 \(T\). Received: 21"),
        ({"num_steps": 0}, r"`num_steps` must be an integer in 1 .. 20 \(T\). Received: 0"),
        ({"num_steps": [1, 20]}, r"`num_steps` must lie in 0 .. 19. Received: 1 .. 20"),
        ({"num_steps": [5, 3]}, "`num_steps` must be increasing integers"),
        ({"num_steps": [3, 18]}, "`num_steps` must end at T - 1 = 19, .* Received: a last step of 18"),
        ({"labels": [0]}, "`labels` were given, but the network has no classes"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1. Received: 0"),
    ],
)
def test_generate_refuses_what_it_cannot_use(arguments, message):
    with pytest.raises(InputError, match=message):
        small().generate(**{"seeds": [1], **arguments})


@pytest.mark.parametrize(
    ("scale", "classes", "label_dropout", "message"),
    [
        (
            2.0,
            None,
            0.1,
            r"`guidance_scale` needs a network with classes \(num_classes\). Received: 2.0 without classes",
        ),
        (
            2.0,
            3,
            0.0,
            "`guidance_scale` needs a model trained with label_dropout: this one never saw pictures without their "
            "class. Received: 2.0",
        ),
        (-1, 3, 0.1, "`guidance_scale` must be at least 0. Received: -1"),
        (float("nan"), 3, 0.1, "`guidance_scale` must be a number. Received: nan"),
        (float("inf"), 3, 0.1, "`guidance_scale` must be a number. Received: inf"),
        ("2", 3, 0.1, "`guidance_scale` must be a number. Received: '2'"),
    ],
)
def test_guidance_that_cannot_be_is_refused_with_the_reason(scale, classes, label_dropout, message):
    model = small(network={"num_classes": classes}, label_dropout=label_dropout)
    with pytest.raises(InputError, match=f"^{message}$"):
        model.generate([1], guidance_scale=scale)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0], "`labels` must be one a seed. Received: 1 labels, 2 seeds"),
        ([0, 3], r"`labels` must be integers in 0 .. 2. Received: int32 from 0 to 3"),
        ([0, -1], r"`labels` must be integers in 0 .. 2. Received: int32 from -1 to 0"),
        ([0.0, 1.0], "`labels` must be a non-empty list of integers"),
    ],
)
def test_generate_refuses_impossible_labels(labels, message):
    with pytest.raises(InputError, match=message):
        small(network={"num_classes": 3}).generate([1, 2], labels=labels)


# A respaced schedule keeps the names of its steps.


def test_training_and_sampling_tell_the_network_the_same_names():
    class Listener(keras.Model):
        image_shape, num_classes, told = (2, 2, 1), None, None

        def call(self, inputs, training=False, seed=None):
            type(self).told = inputs[1]
            return inputs[0] * 0.0

        def get_config(self):
            return {}

        @classmethod
        def from_config(cls, config):
            return cls()

    names = [99, 499, 999]
    model = kddpm.DiffusionModel(Listener(), kddpm.schedules.linear(1000).respace(names))
    model.compile(run_eagerly=True)
    model.test_step(np.zeros((64, 2, 2, 1), np.uint8))
    assert set(Listener.told.numpy()) == set(names)
