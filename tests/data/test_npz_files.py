"""NumPy archives: which arrays are taken, and which archives are refused."""

import io
import zipfile

import numpy as np
import pytest
from helpers.image_samples import random_pixels, write_npz

from kddpm import data
from kddpm.base.errors import InputError
from kddpm.data import npz_files


@pytest.mark.parametrize("name, label_name", [("images", "labels"), ("x_train", "y_train"), ("x", "y")])
def test_npz_names(tmp_path, name, label_name):
    images, labels = random_pixels(5, 4, 6), np.array([0, 2, 1, 2, 0])
    other = {"x_test": random_pixels(9, 4, 6), "y_test": np.zeros(9)}
    loaded = data.load(write_npz(tmp_path / "a.npz", **{name: images, label_name: labels}, **other))
    assert np.array_equal(loaded.images, images[..., None])
    assert loaded.labels.tolist() == [0, 2, 1, 2, 0] and loaded.labels.dtype == np.int32
    assert loaded.class_names == ("0", "1", "2")


def test_npz_takes_the_only_fitting_array_and_any_memory_order(tmp_path):
    images = random_pixels(5, 4, 6, 3)
    spec = write_npz(tmp_path / "a.npz", pictures=np.asfortranarray(images), sizes=np.zeros((5, 4, 6, 3), np.float32))
    loaded = data.load(spec)
    assert np.array_equal(loaded.images, images)
    assert loaded.labels is None and loaded.class_names == ()


def test_npz_compressed_and_column_labels(tmp_path):
    images = random_pixels(7, 4, 4, 3)
    np.savez_compressed(tmp_path / "a.npz", images=images, labels=np.arange(7, dtype=np.uint8)[:, None])
    loaded = data.load(f"npz:{tmp_path}/a.npz")
    assert np.array_equal(loaded.images, images) and loaded.labels.tolist() == list(range(7))


def test_npz_alpha_is_composited_over_white(tmp_path):
    images = np.zeros((2, 4, 4, 4), np.uint8)
    images[1, ..., 3] = 255
    loaded = data.load(write_npz(tmp_path / "a.npz", images=images)).images
    assert loaded.shape == (2, 4, 4, 3) and (loaded[0] == 255).all() and (loaded[1] == 0).all()


@pytest.mark.parametrize(
    "arrays, text",
    [
        ({"images": np.zeros((2, 4, 4), np.float32)}, r"`images` must be uint8, 0..255. Received: float32"),
        ({"images": np.zeros((2, 4, 4), np.int64)}, r"must be uint8.*int64 of shape \(2, 4, 4\)"),
        ({"images": np.array([None, 1])}, "must be uint8.*object"),
        ({"images": np.zeros((2, 3, 32, 32), np.uint8)}, r"channels last. Received: \(2, 3, 32, 32\)"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, r"Received: \(0, 4, 4\)"),
        ({"images": np.zeros((2, 4), np.uint8)}, r"must be \(N, H, W\)"),
        ({"a": np.zeros((2, 4, 4), np.uint8), "b": np.zeros((2, 4, 4), np.uint8)}, "expected an array named images"),
        ({"a": np.zeros(3)}, r"Received: a float64\(3,\)"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.zeros(3, int)}, r"one label for each of 2 images.*\(3,\)"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.zeros(2)}, "`y` must be integers. Received: float64"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.array([0, -1])}, "must lie in 0..999999. Received: -1..0"),
        (
            {"x": np.zeros((2, 4, 4), np.uint8), "y": np.array([0, 10**6])},
            "must lie in 0..999999. Received: 0..1000000",
        ),
    ],
)
def test_npz_of_another_kind(tmp_path, arrays, text):
    with pytest.raises(InputError, match=text):
        data.load(write_npz(tmp_path / "a.npz", **arrays))


@pytest.mark.parametrize("content", [None, b"", b"text", b"pickle", b"cut", b"lies"])
def test_files_that_are_no_npz(tmp_path, content):
    path = tmp_path / "a.npz"
    if content == b"pickle":
        np.save(tmp_path / "b.npy", np.array([{}]), allow_pickle=True)
        content = (tmp_path / "b.npy").read_bytes()
    elif content == b"cut":
        write_npz(path, images=random_pixels(50, 8, 8))
        content = path.read_bytes()[:-200]
    elif content == b"lies":  # a header of 100 images before the pixels of 2
        array = io.BytesIO()
        np.lib.format.write_array_header_1_0(array, {"descr": "|u1", "fortran_order": False, "shape": (100, 8, 8)})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", array.getvalue() + bytes(128))
        content = path.read_bytes()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"npz:.*a.npz: (expected a NumPy .npz archive|cannot read `images`: expected 100)"
    ):
        data.load(f"npz:{path}")


def test_an_archive_that_changes_between_its_header_and_its_pixels_is_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=random_pixels(4, 8, 8))
    archive = npz_files.open_npz("npz:a", str(path))
    np.savez(path, images=random_pixels(4, 4, 16))
    with pytest.raises(InputError, match="npz:a: cannot read `images`: it changed while it was read"):
        list(archive.blocks())
