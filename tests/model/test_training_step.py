"""A step of `fit`: its loss, its gradients, the averages, and what is done where they are not finite."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.comparing import assert_same, distance
from helpers.image_samples import random_pixels
from helpers.networks import T
from helpers.small_models import SHAPE, Weights, drawn_by, evaluate, give_history, small, train, weights

from kddpm import data
from kddpm.base.errors import InputError
from kddpm.data import images
from kddpm.model.draws import draw_evaluation
from kddpm.theory import parametrization


def loss_by_hand(network, x_0, t, eps, label):
    """L_simple of one batch in NumPy, from the model's draws and nothing else of it."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-3, 0.5, T))[t].reshape(-1, 1, 1, 1)
    x_t = np.sqrt(alpha_bar) * (x_0 / 127.5 - 1) + np.sqrt(1 - alpha_bar) * eps
    inputs = [x_t.astype("float32"), t] + ([] if label is None else [label])
    return np.square(eps - network(inputs).numpy()).mean()


# The loss.


@pytest.mark.parametrize("classes", [None, 3])
def test_the_reported_loss_is_l_simple_of_the_draws(classes):
    x, y = random_pixels(12, *SHAPE), np.arange(12) % 3
    model = small(keras.optimizers.SGD(0.0), {"num_classes": classes}, label_dropout=0.5)
    history = train(model, x, y)
    assert set(history) == {"loss", "gradient_norm", "skipped_steps"}
    labels = [None if classes is None else y[4 * k : 4 * k + 4] for k in range(3)]
    by_hand = []
    for k in range(3):
        t, weight, eps, label, _ = drawn_by(model, k, x[4 * k : 4 * k + 4], labels[k])
        np.testing.assert_array_equal(weight, 1)
        by_hand.append(loss_by_hand(model.network, x[4 * k : 4 * k + 4], t, eps, label))
    np.testing.assert_allclose(history["loss"], [np.mean(by_hand)], rtol=1e-5)
    t, eps = (part.numpy() for part in draw_evaluation(0, 0, x, T))
    by_hand = loss_by_hand(model.ema_network, x, t, eps, None if classes is None else y)
    np.testing.assert_allclose(evaluate(model, x, y), by_hand, rtol=1e-5)


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
    x, model = random_pixels(8, *SHAPE), small()
    first = evaluate(model, x)
    assert evaluate(model, x) == first
    model.network.set_weights([w + 1 for w in model.network.get_weights()])
    assert evaluate(model, x) == first
    model.ema_network.set_weights(model.network.get_weights())
    assert evaluate(model, x) != first


def test_the_average_warms_up_and_then_keeps_its_momentum():
    model, seen = small(keras.optimizers.SGD(1.0), ema_momentum=0.3), Weights()
    train(model, random_pixels(24, *SHAPE), callbacks=[seen])
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
    t, weight, eps, label, _ = drawn_by(model, 0, x, y)
    x_t = model.diffusion.q_sample(images.to_float(x), t, eps)
    with tf.GradientTape() as tape:
        losses = tf.reduce_mean(tf.square(model.network([x_t, t, label]) - eps), (1, 2, 3))
        loss = tf.reduce_mean(weight * losses)
    return [tf.convert_to_tensor(g).numpy() for g in tape.gradient(loss, model.network.trainable_variables)]


@pytest.mark.parametrize("timestep_sampling", parametrization.TIMESTEP_SAMPLINGS)
@pytest.mark.parametrize("clip_norm", [None, 0.01, 1e6])
def test_gradients_are_clipped_by_their_global_norm(clip_norm, timestep_sampling):
    x, y = (
        random_pixels(4, *SHAPE),
        np.array([0, 1, 0, 0]),
    )  # the gradient of the labels' table is sparse, with repeated rows
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
    train(model, random_pixels(24, *SHAPE), callbacks=[seen])
    moved = [distance(a, b) for a, b in zip(seen.history, seen.history[1:], strict=False)]
    np.testing.assert_allclose(moved, 1e-3 * np.array([0, 2, 4, 6, 8, 8]), atol=1e-6)


def test_callbacks_of_keras_work(tmp_path):
    x, model, epochs = random_pixels(8, *SHAPE), small(), []
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
    images = random_pixels(16, 8, 8, 1)
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
    with pytest.raises(InputError, match="accumulation=3 needs batches of one size, divisible by it .*: 8"):
        model.fit(np.zeros((8, 8, 8, 1), np.uint8), batch_size=8, verbose=0)
