"""The classifiers whose features judge pictures: training, files, the two that come with the package."""

import functools
import json

import keras
import numpy as np
import pytest
from helpers.places import ROOT
from helpers.processes import python
from helpers.refusals import raises_in_flags

from kddpm import data
from kddpm.evaluation import classifier, extractor, features

ASSETS = ROOT / "kddpm" / "assets"


def stripes(count, seed=0):
    """Noisy stripes across or along, as class 0 and 1."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    pattern = np.zeros((8, 8, 1), np.uint8)
    pattern[::2] = 200
    images = np.where(labels[:, None, None, None] == 0, pattern, pattern.swapaxes(0, 1))
    return (images + rng.integers(0, 56, images.shape)).astype(np.uint8), labels


@pytest.fixture(scope="module")
def network():
    return classifier.train(*stripes(256), 2, epochs=4, batch_size=32, verbose=False)


def about(**changes):
    return classifier.About(**{
        "kddpm": "0", "image_shape": [8, 8, 1], "class_names": ["across", "along"], "dataset": "x", "data_sets": ["x"],
        "images": 1, "held_out": "y", "held_out_images": 1, "accuracy": 0.5, "epochs": 1, "batch_size": 1, "seed": 0,
        **changes,
    })  # fmt: skip


@pytest.fixture
def saved(network, tmp_path):
    classifier.save(network, about(), tmp_path / "judge")
    return tmp_path / "judge"


def test_it_learns_what_it_is_shown_and_says_how_well(network):
    images, labels = stripes(200, seed=1)
    assert classifier.accuracy(network, images, labels, batch_size=64) == 1
    assert classifier.accuracy(network, images, 1 - labels) == 0


def test_the_seed_decides_the_weights():
    def weights():
        return classifier.train(*stripes(64), 2, epochs=1, batch_size=32, seed=1, verbose=False).get_weights()

    begun, other = (classifier.build((8, 8, 1), 2, seed).get_weights() for seed in (1, 2))
    first, again = weights(), weights()
    assert all(np.allclose(a, b, atol=1e-3) for a, b in zip(first, again, strict=True))
    assert np.abs(first[0] - begun[0]).max() < 0.05 < np.abs(first[0] - other[0]).max()


def test_shifted_images_are_the_images_elsewhere():
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 3), np.uint8)
    shifted = classifier._shifted(images, np.random.default_rng(1))
    assert shifted.shape == images.shape and shifted.dtype == np.uint8
    offsets = set()
    for before, after in zip(images, shifted, strict=True):
        (found,) = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if np.array_equal(after[5:20, 5:20], before[5 + down : 20 + down, 5 + right : 20 + right])
        ]
        offsets.add(found)
    assert len(offsets) > 10  # of 25
    small = images[:, :8, :8]
    assert classifier._shifted(small, np.random.default_rng(1)) is small


def test_features_are_of_float32_under_every_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    network = classifier.build((8, 8, 1), 3)
    assert {layer.compute_dtype for layer in network.layers} == {"float32"}
    assert keras.config.dtype_policy().name == "mixed_bfloat16"


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 48, 3), (5, 3, 1)])
def test_sizes_of_pictures(shape):
    network = classifier.build(shape, 3)
    found, logits = network(np.zeros((2, *shape), np.float32))
    assert found.shape == (2, 64) and logits.shape == (2, 3)


def test_a_file_gives_the_features_again(network, saved):
    images, labels = stripes(30, seed=2)
    extractor = features.load(saved, (8, 8, 1))
    found, probabilities = extractor.features()(images)
    expected, logits = network(images.astype(np.float32) / 127.5 - 1, training=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(probabilities, keras.ops.softmax(logits), atol=1e-5)
    assert np.array_equal(probabilities.argmax(axis=1), labels)
    assert extractor.class_names == ("across", "along") and extractor.size == 64
    assert extractor.describe()["sha256"] == json.loads(saved.with_suffix(".json").read_text())["sha256"]


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _say(**changes):
    def change(path):
        path = path.with_suffix(".json")
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_flip, "the sha256 of judge.npz is not that in judge.json"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.with_suffix(".json").unlink(), "No such file"),
        (_say(image_shape=[8, 8, 2]), "`image_shape` must be height, width and 1 or 3"),
        (_say(image_shape=[8, 8, 3]), "expected float16"),
        (_say(class_names=["one"]), "`class_names` must be two names or more"),
        (_say(class_names=["a", "b", "c"]), "expected float16"),
        (_say(accuracy="high"), "`accuracy` must lie in 0 .. 1. Received: 'high'"),
        (_say(accuracy=99), "`accuracy` must lie in 0 .. 1. Received: 99"),
        (_say(more=1), "unexpected keyword argument"),
    ],
)
def test_damaged_files_are_refused(saved, damage, text):
    damage(saved.with_suffix(".npz"))
    with raises_in_flags(f"--extractor .*judge.npz cannot be read: .*{text}"):
        features.load(saved, (8, 8, 1))


def test_an_extractor_of_other_pictures_is_refused(saved):
    with raises_in_flags("--extractor must be for pictures of 28x28, grey. Received: .*judge, for 8x8, grey"):
        features.load(saved, (28, 28, 1))


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 1], [-1, 0, 1]])
def test_labels_that_do_not_fit_are_refused(labels):
    with raises_in_flags("--labels must be one an image, in 0 .. 1"):
        classifier.train(np.zeros((3, 8, 8, 1), np.uint8), labels, 2)


def test_the_command_trains_one_and_says_how_good_it_is(tmp_path):
    images, labels = stripes(100)
    np.savez(tmp_path / "stripes.npz", images=images, labels=labels)
    flags = ["--dataset=npz:stripes.npz", "--epochs=8", "--batch_size=16", "--also=tfds:stripes", "--out=judge.npz"]
    result = python("-m", "kddpm.evaluation.extractor", *flags, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert "% of 20 held-out images are named right\njudge.npz and judge.json\n" in result.stdout, result.stderr
    _, stated = classifier.load(tmp_path / "judge")
    assert stated.accuracy > 0.8 and stated.images == 80 and stated.held_out == "one in 5 of npz:stripes.npz"
    assert stated.data_sets == ["tfds:stripes", data.load(f"npz:{tmp_path}/stripes.npz").digest]
    assert f"{100 * stated.accuracy:.2f} % of 20" in result.stdout


def test_size_and_channels_can_be_chosen(tmp_path):
    images, labels = stripes(20)
    np.savez(tmp_path / "stripes.npz", images=images, labels=labels)
    command = ["-m", "kddpm.evaluation.extractor", "--dataset=npz:stripes.npz", "--epochs=1", "--out=judge"]
    run = functools.partial(python, *command, cwd=tmp_path, PYTHONPATH=str(ROOT))
    result = run("--image_size=6x0")
    assert result.stderr.endswith("--image_size must be one number of pixels, or HEIGHTxWIDTH. Received: 6x0\n")
    assert result.returncode == 2 and len(list(tmp_path.iterdir())) == 1
    assert run("--image_size=6x10", "--channels=3").returncode == 0
    assert classifier.load(tmp_path / "judge")[1].image_shape == [6, 10, 3]


def source(name, count=20, classes=("a", "b")):
    labels = np.zeros(count, np.int32) if classes else None
    return data.ImageData(np.zeros((count, 8, 8, 1), np.uint8), labels, classes, f"npz:{name}", digest=name)


@pytest.mark.parametrize(
    ("images", "held_out", "line"),
    [
        (source("x", classes=()), None, "--dataset must have labels of two classes or more. Received: npz:x"),
        (source("x", classes=("a",)), source("y"), "--dataset must have labels of two classes or more"),
        (
            source("x", count=4),
            None,
            "--dataset must have 5 images or more, .*or name --held_out. Received: npz:x, with 4",
        ),
        (source("x"), source("x"), "--held_out must be other images than --dataset. Received: npz:x"),
        (source("x"), source("y", classes=()), "--held_out must have the classes of --dataset, a, b. .*y, with none"),
        (
            source("x"),
            source("y", classes=("b", "a")),
            "--held_out must have the classes .* Received: npz:y, with b, a",
        ),
    ],
)
def test_images_that_cannot_train_or_test_one_are_refused(images, held_out, line):
    with raises_in_flags(line):
        extractor.check(images, held_out)


def test_images_to_train_and_test_one():
    extractor.check(source("x", count=5), None)
    extractor.check(source("x", count=4), source("y"))


def test_the_name_of_a_shipped_one_is_refused(tmp_path):
    flags = ["-m", "kddpm.evaluation.extractor", "--dataset=digits", "--out=mnist.npz"]
    result = python(*flags, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert "--out must be another name: --extractor takes this for one that comes with kddpm" in result.stderr
    assert result.returncode == 2 and not list(tmp_path.iterdir())


def test_only_an_extractor_is_replaced(tmp_path):
    images, labels = stripes(20)
    np.savez(tmp_path / "stripes.npz", images=images, labels=labels)
    before = (tmp_path / "stripes.npz").read_bytes()
    with raises_in_flags("--out must be a new name, or that of an extractor. Received: .*stripes.npz, which is there"):
        classifier.check_output("out", tmp_path / "stripes")
    (tmp_path / "folder.json").mkdir()
    with raises_in_flags("--out must be a file. Received: .*folder.json"):
        classifier.check_output("out", tmp_path / "folder.npz")
    classifier.save(classifier.build((8, 8, 1), 2), about(), tmp_path / "judge")
    classifier.check_output("out", tmp_path / "judge")
    flags = ["-m", "kddpm.evaluation.extractor", "--dataset=npz:stripes.npz", "--out=stripes"]
    result = python(*flags, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 2 and "--out must be a new name" in result.stderr
    assert (tmp_path / "stripes.npz").read_bytes() == before


# What comes with the package.


def test_the_shipped_extractor_of_digits_is_as_good_as_it_says():
    source = data.load("digits")
    stated = classifier.read_about(ASSETS / "extractor_digits.json")
    chosen = np.random.default_rng(0).permutation(1797)[: 1797 // 5]  # as the command holds them out
    network, _ = classifier.load(ASSETS / "extractor_digits")
    found = classifier.accuracy(network, source.images[chosen], source.labels[chosen])
    assert found == pytest.approx(stated.accuracy) and stated.accuracy > 0.98 and stated.held_out_images == 359


def test_the_shipped_extractors_are_small_and_good():
    for name, least in (("digits", 0.98), ("mnist", 0.992)):
        stated = classifier.read_about(ASSETS / f"extractor_{name}.json")
        assert stated.accuracy >= least and (ASSETS / f"extractor_{name}.npz").stat().st_size < 400_000
        for page in (ASSETS / "README.md", ROOT / "docs" / "evaluation.md"):
            assert f"{100 * stated.accuracy:.2f} %" in page.read_text()
        features.load(name, tuple(stated.image_shape))


def test_the_extractor_that_fits_is_chosen():
    digits = data.load("digits").digest
    assert features.default("digits", set(), (8, 8, 1)) == "digits"
    assert features.default("npz:x.npz", {digits}, (8, 8, 1)) == "digits"
    assert features.default("tfds:mnist:test", {"0"}, (28, 28, 1)) == "mnist"
    with raises_in_flags("--extractor is needed: those that come with kddpm, digits and mnist, know other pictures"):
        features.default("npz:x.npz", {"0"}, (8, 8, 1))
    with raises_in_flags("--extractor is needed: .* Received: tfds:mnist in 32x32, grey"):
        features.default("tfds:mnist", set(), (32, 32, 1))
