"""Data sets by name: digits, folders, archives and TensorFlow Datasets."""

import zipfile

import numpy as np
import pytest
from helpers.image_samples import random_pixels, write_images, write_npz

from kddpm import data
from kddpm.base.errors import InputError


def test_digits_are_the_uci_ones():
    digits = data.load("digits")
    assert digits.images.shape == (1797, 8, 8, 1) and digits.images.dtype == np.uint8
    assert digits.labels.dtype == np.int32 and digits.class_names == tuple("0123456789")
    assert digits.source == "digits"
    # Facts of the published data: the images of each class, and the first image's first row on the scale 0..16.
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.round(digits.images[0, 0, :, 0] / 255 * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert set(np.unique(digits.images)) == {int(np.round(v * 255 / 16)) for v in range(17)}


@pytest.mark.parametrize("spec", ["", "mnist", "npz:", "digits:x", "png:a", "folder:"])
def test_unknown_specs_list_the_kinds(spec):
    with pytest.raises(InputError, match="`dataset` must be one of digits, npz:FILE, folder:DIR, zip:FILE, tfds:NAME"):
        data.load(spec)


@pytest.mark.parametrize("size", [0, -3, (4,), (4, 0), (1, 2, 3), "8x"])
def test_impossible_image_sizes(size):
    with pytest.raises(InputError, match="`image_size` must be"):
        data.load("digits", size)


def test_impossible_channels():
    with pytest.raises(InputError, match=r"`channels` must be 1, 3 or None. Received: 2"):
        data.load("digits", channels=2)


def test_arrays_are_resized_and_recoloured():
    digits = data.load("digits")
    half = data.load("digits", 4, 3)
    means = digits.images[..., 0].reshape(1797, 4, 2, 4, 2).mean((2, 4))
    assert half.images.shape == (1797, 4, 4, 3)
    assert np.abs(half.images - means[..., None]).max() <= 1
    assert data.load("digits", (8, 16)).images.shape == (1797, 8, 16, 1)


def test_arrays_say_what_was_changed(tmp_path):
    assert data.load("digits").altered == data.load("digits", 8, 1).altered == {}
    assert data.load("digits", 4).altered == {"resized": 1797}
    assert data.load("digits", (8, 16), 3).altered == {"made RGB, cropped and resized": 1797}
    images = random_pixels(3, 4, 4, 4)
    images[0, ..., 3] = 255
    assert data.load(write_npz(tmp_path / "a.npz", images=images)).altered == {"laid over white": 2}


def test_folder_and_zip_give_the_same(tmp_path):
    for name, seed in (("b", 1), ("a", 2)):
        write_images(tmp_path / "in" / name, random_pixels(3, 5, 4, 3, seed=seed))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted((tmp_path / "in").rglob("*.png"), reverse=True):
            archive.write(path, path.relative_to(tmp_path))
    folder, zipped = data.load(f"folder:{tmp_path}/in"), data.load(f"zip:{tmp_path}/a.zip")
    assert folder.class_names == zipped.class_names == ("a", "b")
    assert folder.labels.tolist() == [0, 0, 0, 1, 1, 1] and folder.labels.dtype == np.int32
    expected = np.concatenate([random_pixels(3, 5, 4, 3, seed=2), random_pixels(3, 5, 4, 3, seed=1)])
    assert np.array_equal(folder.images, expected) and np.array_equal(zipped.images, expected)
    assert folder.digest == zipped.digest


def test_all_bad_files_are_listed_or_dropped(tmp_path, capsys):
    arrays = random_pixels(5, 4, 4, 3)
    write_images(tmp_path, arrays)
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(InputError) as caught:
        data.load(f"folder:{tmp_path}")
    lines = str(caught.value).splitlines()
    assert "2 of 5 image files cannot be used (`skip_bad_images`" in lines[0]
    assert lines[1] == "  1.png: empty file" and lines[2].startswith(
        "  3.png: not a readable image; expected PNG, JPEG"
    )
    loaded = data.load(f"folder:{tmp_path}", skip_bad_images=True)
    assert np.array_equal(loaded.images, arrays[[0, 2, 4]])
    assert capsys.readouterr().err.splitlines()[1:] == lines[1:]


def test_dropped_files_take_their_labels_along(tmp_path):
    write_images(tmp_path / "a", random_pixels(2, 4, 4))
    write_images(tmp_path / "b", random_pixels(2, 4, 4))
    (tmp_path / "a" / "0.png").write_bytes(b"")
    loaded = data.load(f"folder:{tmp_path}", skip_bad_images=True)
    assert loaded.labels.tolist() == [0, 1, 1] and len(loaded.images) == 3


def test_more_than_fifty_bad_files_are_counted(tmp_path):
    for i in range(53):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        data.load(f"folder:{tmp_path}")
    assert len(str(caught.value).splitlines()) == 52 and str(caught.value).endswith("  and 3 more")
    with pytest.raises(InputError, match="none of the 53 images is readable"):
        data.load(f"folder:{tmp_path}", skip_bad_images=True)


# TensorFlow Datasets, built here: nothing is downloaded.


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    import tensorflow_datasets as tfds

    path = str(tmp_path_factory.mktemp("tfds"))

    def store(name, features, **columns):
        examples = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

        class Stored(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
                )

            def _split_generators(self, dl_manager):
                return {"train": enumerate(examples), "test": enumerate(examples[:2])}

            def _generate_examples(self):
                raise NotImplementedError

        Stored.name = name
        Stored(data_dir=path).download_and_prepare()

    grey = tfds.features.Image(shape=(4, 5, 1))
    label = tfds.features.ClassLabel(names=["cat", "dog"])
    store("pets", {"image": grey, "label": label}, image=random_pixels(5, 4, 5, 1), label=[0, 1, 1, 0, 1])
    mixed = [random_pixels(4, 4, 3), random_pixels(6, 8, 3)]
    store("mixed", {"image": tfds.features.Image(shape=(None, None, 3))}, image=mixed)
    store("numbers", {"x": tfds.features.Scalar(np.int64)}, x=[1, 2, 3])
    secret = {"image": grey, "label": tfds.features.Scalar(np.int64)}
    store("secret", secret, image=random_pixels(2, 4, 5, 1), label=[-1, -1])
    return path


def test_tfds(tfds_dir):
    pets = data.load("tfds:pets", tfds_data_dir=tfds_dir)
    assert np.array_equal(pets.images, random_pixels(5, 4, 5, 1))
    assert pets.labels.tolist() == [0, 1, 1, 0, 1] and pets.labels.dtype == np.int32
    assert pets.class_names == ("cat", "dog")
    assert len(data.load("tfds:pets:test", tfds_data_dir=tfds_dir).images) == 2
    part = data.load("tfds:pets:train[1:3]", tfds_data_dir=tfds_dir)
    assert np.array_equal(part.images, pets.images[1:3])
    assert pets.altered == {}
    small = data.load("tfds:pets", 2, 3, tfds_data_dir=tfds_dir)
    assert small.images.shape == (5, 2, 2, 3) and small.altered == {"made RGB, cropped and resized": 5}


def test_tfds_sizes_and_labels(tfds_dir):
    with pytest.raises(InputError, match=r"differ in size; name one with `image_size`. Received.*: 4x4, 8x6"):
        data.load("tfds:mixed", tfds_data_dir=tfds_dir)
    mixed = data.load("tfds:mixed", 4, tfds_data_dir=tfds_dir)
    assert np.array_equal(mixed.images[0], random_pixels(4, 4, 3)) and mixed.labels is None and mixed.class_names == ()
    assert mixed.altered == {"cropped and resized": 1}
    secret = data.load("tfds:secret", 4, tfds_data_dir=tfds_dir)
    assert secret.labels is None and secret.class_names == () and secret.altered == {"cropped": 2}


@pytest.mark.parametrize(
    "spec, text",
    [
        ("tfds:no_such_dataset", "cannot load `no_such_dataset`, split `train`: "),
        ("tfds:pets/other", "cannot load `pets/other`"),
        ("tfds:pets:validation", "cannot load `pets`, split `validation`: .*validation"),
        ("tfds:numbers", "expected a feature `image` of uint8"),
    ],
)
def test_tfds_errors_are_one_line(tfds_dir, spec, text):
    with pytest.raises(InputError, match=text) as caught:
        data.load(spec, tfds_data_dir=tfds_dir)
    assert "\n" not in str(caught.value)
