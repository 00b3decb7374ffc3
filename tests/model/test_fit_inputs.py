"""What `fit` and `evaluate` take, and how often they are traced."""

import warnings

import numpy as np
import pytest
import tensorflow as tf
from helpers.comparing import assert_same, distance
from helpers.image_samples import random_pixels
from helpers.small_models import SHAPE, as_dataset, evaluate, small, train, weights

from kddpm.base.errors import InputError


def test_every_form_of_the_same_images_trains_the_same_way():
    x, y = random_pixels(8, *SHAPE), np.arange(8) % 3
    expected = small()
    train(expected, x)
    as_float = (x / np.float32(127.5) - 1).astype("float32")
    known = as_dataset(x).map(lambda batch: tf.ensure_shape(batch, (4, *SHAPE)))
    for form in ([x, y], [x, y + 100], [known, None, None]):
        model = small()
        train(model, *form)
        assert_same(weights(model), weights(expected))
    # TensorFlow rounds x / 127.5 - 1 otherwise, and, on some processors, sums of gradients in batches of unknown size.
    for form in ([as_float], [as_dataset(as_float, y), None, None], [as_dataset(x), None, None]):
        model = small()
        train(model, *form)
        assert distance(weights(model), weights(expected)) < 1e-6
    assert distance(weights(expected), weights(small())) > 1e-3


def test_labels_of_a_dataset_and_of_an_array_train_the_same_way():
    x, y = random_pixels(8, *SHAPE), np.arange(8) % 3
    models = [small(network={"num_classes": 3}) for _ in range(3)]
    train(models[0], x, y)
    train(models[1], as_dataset(x, y[:, np.newaxis]), None, None)
    train(models[2], x, (y + 1) % 3)
    assert_same(weights(models[0]), weights(models[1]))
    assert distance(weights(models[0]), weights(models[2])) > 1e-4


@pytest.mark.parametrize("form", ["array", "dataset"])
def test_a_network_with_classes_needs_labels(form):
    model, x = small(network={"num_classes": 3}), random_pixels(4, *SHAPE)
    for call in (model.fit, model.evaluate):
        with pytest.raises(InputError, match="`network` has 3 classes and needs labels: pass \\(images, labels\\)"):
            call(x if form == "array" else as_dataset(x), verbose=0)


def test_labels_out_of_range():
    model, x = small(network={"num_classes": 3}), random_pixels(4, *SHAPE)
    for call in (model.fit, model.evaluate):
        with pytest.raises(InputError, match=r"^`labels` must be integers in 0 \.\. 2. Received: int64 from 0 to 3$"):
            call(x, np.array([0, 1, 2, 3]), verbose=0)
        with pytest.raises(InputError, match=r"^`labels` must be integers in 0 \.\. 2. Received: int64 from -1 to 2$"):
            call(as_dataset(x, np.array([0, 1, 2, -1])), verbose=0)


def test_sample_weights_are_refused():
    with pytest.raises(InputError, match="`sample_weight` is not supported"):
        small().fit(random_pixels(4, *SHAPE), np.zeros(4), sample_weight=np.ones(4), verbose=0)
    with pytest.raises(InputError, match="`sample_weight` is not supported"):
        small().evaluate(random_pixels(4, *SHAPE), sample_weight=np.ones(4), verbose=0)
    with pytest.raises(InputError, match="`sample_weight` is not supported"):
        x = random_pixels(4, *SHAPE)
        small().fit(x, validation_data=(x, np.zeros(4), np.ones(4)), verbose=0)


def test_validation_data_and_split_report_the_loss_of_evaluate():
    x = random_pixels(12, *SHAPE)
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
        small().fit(random_pixels(4, *SHAPE), validation_data=random_pixels(4, 4, 4, 3), verbose=0)


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
            train(model, as_dataset(random_pixels(16, *SHAPE)), None, None, epochs=2)
            evaluate(model, as_dataset(random_pixels(8, *SHAPE)), None, None)
    assert [purpose for purpose, *_ in traces] == ["training", "evaluation"]


def test_another_batch_shape_warns():
    model = small()
    x = tf.data.Dataset.from_tensor_slices(random_pixels(8, *SHAPE))
    train(model, x.batch(4, drop_remainder=True), None, None)
    with pytest.warns(UserWarning, match=r"The training step, traced for a batch \(4, 4, 4, 1\), is traced again for"):
        train(
            model,
            tf.data.Dataset.from_tensor_slices(random_pixels(8, *SHAPE)).batch(8, drop_remainder=True),
            None,
            None,
        )
