"""The table of doors in docs/reliability.md, cell by cell."""

import gc
import itertools
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.comparing import assert_same
from helpers.image_samples import random_pixels
from helpers.places import ROOT
from helpers.small_models import SHAPE, small, train, weights

from kddpm.base.errors import InputError

PAGE = (ROOT / "docs" / "reliability.md").read_text()
TABLE = re.search(r"\| source \|(.*)\n\|-.*\n((?:\|.*\n)+)", PAGE)
CHECKS = [name.strip() for name in TABLE[1].strip("| ").split("|")]
CELLS = [
    (source.strip(" `"), check, cell.strip())
    for source, *cells in (row.strip("| ").split("|") for row in TABLE[2].splitlines())
    for check, cell in zip(CHECKS, cells, strict=True)
]
SOURCES = list(dict.fromkeys(source for source, *_ in CELLS))
CLASSES = 3

PIXELS = random_pixels(4, *SHAPE)
GOOD = (PIXELS / np.float32(127.5) - 1, np.arange(4) % CLASSES)  # a batch
WRONG = {
    "shape": [(np.zeros((4, 4, 6, 1), "float32"), GOOD[1]), (np.zeros((4, 1, 4, 4), "float32"), GOOD[1])],
    "type": [(PIXELS.astype("int32"), GOOD[1]), (PIXELS > 127, GOOD[1])],
    "range": [(PIXELS.astype("float32"), GOOD[1]), (GOOD[0] * np.float32(1.01), GOOD[1]), (GOOD[0] - 1, GOOD[1])],
    "NaN": [(np.where(GOOD[0] < 0.9, GOOD[0], np.float32(bad)), GOOD[1]) for bad in (np.nan, np.inf)],
    "labels": [(GOOD[0], np.array(bad)) for bad in ([0, 1, 2, 3], [0, -1, 2, 1], [0, 1, 2, 2**32], [0.7, 1, 2, 0])],
    "number of labels": [(GOOD[0], GOOD[1][:3]), (GOOD[0], np.eye(4, dtype="int64"))],
}
LINES = {
    "shape": r"Images must have the shape \(N, 4, 4, 1\) of the network\. Received: \((4|12|N), \d, \d, \d\)",
    "type": r"Images must be uint8, or float in \[-1, 1\]\. Received: (int32|bool)",
    "range": r"Images must be uint8, or finite floats in \[-1, 1\].* Received: (from \S+ to \S+|other values)",
    "NaN": r"Images must be uint8, or finite floats in \[-1, 1\].* Received: (NaN|from \S+ to inf|other values)",
    "labels": r"(`labels` must be integers|Images must be .*, labels) in 0 \.\. 2\. Received: (int|float|other).*",
    "number of labels": r"(`labels` must be one an image|Labels must be class numbers, one an image)\. Received: .*",
}
SCALES = {
    "[0, 1]": (PIXELS / np.float32(255), r"The images lie in \[0\S*, \S+\]; .* pass x \* 2 - 1"),
    "black": (
        PIXELS / np.float32(255 * 127.5) - 1,
        r"The images lie in .*, which is black\. .* pass x \* 2 - 1 instead",
    ),
    "0 and 1": ((PIXELS > 127).astype("uint8"), r"The images are 0 and 1, of .* pass x \* 255"),
}


@pytest.fixture(autouse=True)
def no_iterator_grows_old():
    """TensorFlow looks after an iterator in periods that grow to a minute, and whoever frees it waits for their end."""
    yield
    gc.collect()


class Batches(keras.utils.PyDataset):
    def __init__(self, batches, **kwargs):
        super().__init__(**kwargs)
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def as_dataset(batches):
    """A `tf.data.Dataset` of these batches, whose shapes are known as far as they agree."""
    first, *others = (tf.data.Dataset.from_tensors(batch) for batch in batches)
    for other in others:
        first = first.concatenate(other)
    return first


def source_of(name, batches):
    """The arguments x and y of `fit` for these batches."""
    if name == "array or tensor":
        return tuple(np.concatenate(part) for part in zip(*batches, strict=True))
    if name == "tf.data.Dataset":
        return as_dataset(batches), None
    if name == "PyDataset":
        return Batches(batches), None
    if name == "generator":
        return (batch for batch in batches), None
    assert name == "another iterable"
    one_device = tf.distribute.OneDeviceStrategy("/cpu:0")
    return one_device.experimental_distribute_dataset(as_dataset(batches)), None


def enter(model, method, x, y):
    """Go in by one of the methods."""
    if method == "validation_data":
        return model.fit(*GOOD, batch_size=4, validation_data=(x, y), verbose=0)
    return getattr(model, method)(x, y, batch_size=4, verbose=0, **({"shuffle": False} if method == "fit" else {}))


@pytest.fixture(scope="module")
def model():
    """One for all: what is refused changes nothing of it."""
    return small(network={"num_classes": CLASSES})


def wrong_cases():
    for (source, check, cell), method in itertools.product(CELLS, ("fit", "validation_data", "evaluate")):
        for number, _ in enumerate(WRONG.get(check, ())[: None if method == "fit" else 1]):
            yield pytest.param(source, check, cell, method, number, id=f"{source}-{check}-{method}-{number}")


@pytest.mark.parametrize(("source", "check", "cell", "method", "number"), list(wrong_cases()))
def test_what_is_wrong_ends_in_a_line_by_every_door(model, source, check, cell, method, number):
    wrong = WRONG[check][number]
    is_first = cell == "before" or (source, cell) == ("another iterable", "read")
    if source == "array or tensor" and check in ("range", "NaN"):
        batches = [GOOD, GOOD, wrong]  # wherever in the array
    else:
        is_static = wrong[1].dtype != GOOD[1].dtype or wrong[1].ndim != GOOD[1].ndim  # what a dataset's spec tells
        batches = [wrong] * 3 if is_first or is_static else [GOOD, GOOD, wrong]
    before, step = weights(model), int(model.step.numpy())
    with pytest.raises(InputError, match=f"^{LINES[check]}$") as caught:
        enter(model, method, *source_of(source, batches))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 160
    taken = int(model.step.numpy()) - step
    assert taken <= {"before": 0, "read": 2, "step": 3}[cell]
    if not taken:
        assert_same(weights(model), before)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", ["fit", "validation_data", "evaluate"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_scale_that_is_wrong_is_said_once_by_every_door(model, source, method, scale):
    images, text = SCALES[scale]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        enter(model, method, *source_of(source, [(images, GOOD[1])] * 3))
    said = [str(warning.message) for warning in caught if "The images " in str(warning.message)]
    assert len(said) == 1 and re.fullmatch(text, said[0])


@pytest.mark.parametrize("source", SOURCES)
def test_rounding_is_clipped_by_every_door(source):
    images = GOOD[0].copy()
    images[:, 0], images[:, 1] = -1, 1
    models = [small(network={"num_classes": CLASSES}) for _ in range(2)]
    for model, batch in zip(models, (images, images * np.float32(1.000001)), strict=True):
        x, y = source_of(source, [(batch, GOOD[1])] * 2)
        train(model, x, y, None if y is None else 4)
    interior = np.abs(images) < 1
    assert 0 < interior.mean() < 1
    np.testing.assert_allclose(models[1].network.get_weights()[0], models[0].network.get_weights()[0], atol=1e-5)


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_right_passes_every_door(source):
    expected, model = (small(network={"num_classes": CLASSES}) for _ in range(2))
    train(expected, *source_of("array or tensor", [GOOD] * 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        enter(model, "fit", *source_of(source, [GOOD] * 3))
    assert not [warning for warning in caught if "images" in str(warning.message)]
    assert int(model.step.numpy()) == 3  # no step more where only TensorFlow notices that the data end
    for weight, same in zip(weights(model), weights(expected), strict=True):
        np.testing.assert_allclose(weight, same, atol=1e-7)  # a batch of unknown size is summed in another order


@pytest.mark.parametrize("method", ["train_on_batch", "test_on_batch"])
@pytest.mark.parametrize("check", WRONG)
def test_a_single_batch_is_checked_before_its_step(model, method, check):
    before, step = weights(model), int(model.step.numpy())
    for wrong in WRONG[check]:
        with pytest.raises(InputError, match=f"^{LINES[check]}$"):
            getattr(model, method)(*wrong)
    assert int(model.step.numpy()) == step
    assert_same(weights(model), before)


@pytest.mark.parametrize("method", ["train_on_batch", "test_on_batch"])
def test_the_scale_of_single_batches_is_said_once_a_model(method):
    model = small(network={"num_classes": CLASSES})
    images, text = SCALES["[0, 1]"]
    with pytest.warns(UserWarning, match=text):
        getattr(model, method)(images, GOOD[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        getattr(model, method)(images, GOOD[1])


# Where nothing but the step sees the data.


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_step_with_wrong_values_changes_nothing(jit_compile):
    model = small(network={"num_classes": CLASSES})
    step = tf.function(lambda x, y: model.train_step((x, y)), jit_compile=jit_compile)
    step(*GOOD)
    kept = [model.network, model.ema_network, model.optimizer]
    before = [np.array(v) for part in kept for v in part.variables]
    for images, labels in WRONG["range"] + WRONG["NaN"] + WRONG["labels"][:3]:
        step(images, labels)
        with pytest.raises(InputError, match=r"^Images must be .*, labels in 0 \.\. 2\. Received: other values$"):
            model.check_valid()
    assert_same([np.array(v) for part in kept for v in part.variables], before)
    assert int(model.step.numpy()) == 9 and int(model.skipped_in_a_row.numpy()) == 8
    step(*GOOD)
    model.check_valid()


@pytest.mark.parametrize("check", ["shape", "type"])
def test_a_step_of_another_shape_or_type_is_not_traced(check):
    model = small(network={"num_classes": CLASSES})
    for wrong in WRONG[check]:
        for step in (model.train_step, tf.function(model.train_step, autograph=False), model.test_step):
            with pytest.raises(InputError, match=f"^{LINES[check]}$"):
                step(tuple(tf.constant(part) for part in wrong))


def test_the_loss_of_a_wrong_batch_is_not_a_number():
    model = small(network={"num_classes": CLASSES})
    step = tf.function(lambda x, y: model.test_step((x, y)))
    assert np.isfinite(step(*GOOD)["loss"])
    assert np.isnan(step(*WRONG["range"][0])["loss"])


# Kinds of sources that the table has no row for.


@pytest.mark.parametrize("options", [{"workers": 2}, {"workers": 2, "use_multiprocessing": True}], ids=str)
def test_workers_of_a_py_dataset_raise_the_line(model, options):
    batches = Batches([GOOD, GOOD, GOOD, WRONG["range"][0]], **options)
    with pytest.raises(InputError, match=f"^{LINES['range']}$"):
        enter(model, "fit", batches, None)


def test_images_alone_are_a_batch():
    model = small()
    for source in (Batches([PIXELS]), Batches([GOOD[0]]), iter([GOOD[0].astype("float16")] * 2)):
        assert np.isfinite(train(model, source, None, None)["loss"][0])


def test_batches_of_two_types_are_refused(model):
    for source in (Batches([GOOD, (PIXELS, GOOD[1])]), iter([(PIXELS, GOOD[1]), GOOD])):
        with pytest.raises(InputError, match=r"^Images must be of one type\. Received: \w+, then \w+$"):
            enter(model, "fit", source, None)


@pytest.mark.parametrize(
    "batch", [{"image": GOOD[0]}, ([GOOD[0]],), "photo.png", 3], ids=["dict", "list", "str", "int"]
)
def test_what_is_no_batch(model, batch):
    for source in (Batches([batch]), iter([batch])):
        with pytest.raises(InputError, match=r"^A batch must be images, or \(images, labels\)\. Received: \w+$"):
            enter(model, "fit", source, None)


@pytest.mark.parametrize("source", [None, 3, "photos", [GOOD[0]], {"x": GOOD[0]}, tf.RaggedTensor.from_tensor(GOOD[0])])
def test_what_is_no_source(model, source):
    with pytest.raises(InputError, match=r"^Images must be one array \(N, H, W, C\), a tf\.data\.Dataset, .*: \w+$"):
        enter(model, "fit", source, None)


def test_a_bound_does_not_wrap_in_the_type_of_the_labels():
    model = small(network={"num_classes": 256})
    for dtype in ("uint8", "int8", "int16", "uint64"):
        for source in ("tf.data.Dataset", "PyDataset", "array or tensor"):
            enter(model, "evaluate", *source_of(source, [(PIXELS, np.arange(4, dtype=dtype))]))
    with pytest.raises(InputError, match=r"^`labels` must be integers in 0 \.\. 255\. Received: uint16 from 0 to 256$"):
        enter(model, "evaluate", *source_of("tf.data.Dataset", [(PIXELS, np.array([0, 256, 1, 2], "uint16"))]))


def test_pictures_do_not_come_from_predict(model):
    x_t, t = GOOD[0], np.zeros(4, "int32")
    assert model.predict([x_t, t, GOOD[1]], verbose=0).shape == (4, *SHAPE)
    for method in (model.predict, model.predict_on_batch, model):
        with pytest.raises(
            InputError, match=r"^The model is called on \[x_t, t, label\]. `generate\(seeds\)` returns pictures"
        ):
            method(PIXELS)
    with pytest.raises(InputError, match=r"^The model is called on \[x_t, t, label\].* Received: 2 inputs$"):
        model.predict([x_t, t])


def test_labels_in_lists_are_labels(model):
    batch = (GOOD[0], GOOD[1].tolist())
    for source, labels in ((Batches([batch]), None), (iter([batch] * 2), None), batch):
        assert np.isfinite(enter(model, "evaluate", source, labels))


def test_words_are_no_labels(model):
    words = (GOOD[0], np.array(["0", "1", "2", "0"]))
    for name in ("array or tensor", "PyDataset"):
        with pytest.raises(InputError, match=r"^`labels` must be integers in 0 \.\. 2\. Received: <U1$"):
            enter(model, "fit", *source_of(name, [words]))


def test_an_epoch_without_a_step_has_no_loss():
    model = small()
    model.network.set_weights([np.full_like(weight, np.inf) for weight in model.network.get_weights()])
    assert np.isnan(train(model, GOOD[0])["loss"]).all()
