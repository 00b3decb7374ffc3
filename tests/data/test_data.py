import collections
import dataclasses
import io
import itertools
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kddpm import data
from kddpm.base.errors import InputError
from kddpm.base.files import held
from kddpm.data import decoding, image_cache, npz_files, sources


def numbered(count, shape=(2, 3, 1)):
    """Images that hold their own number, and labels 100 more, so that a batch tells what is in it."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, *shape)).copy()
    return data.ImageData(images, np.arange(count, dtype=np.int32) + 100, (), "numbered", "")


def numbers(dataset):
    return [batch[:, 0, 0, 0].tolist() for batch in dataset.as_numpy_iterator()]


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def write_images(folder, arrays, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i}{suffix}")


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


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
    with pytest.raises(InputError, match="--dataset must be one of digits, npz:FILE, folder:DIR, zip:FILE, tfds:NAME"):
        data.load(spec)


@pytest.mark.parametrize("size", [0, -3, (4,), (4, 0), (1, 2, 3), "8x"])
def test_impossible_image_sizes(size):
    with pytest.raises(InputError, match="--image_size must be"):
        data.load("digits", size)


def test_impossible_channels():
    with pytest.raises(InputError, match=r"channels must be 1, 3 or None. Received: channels=2"):
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
    images = random_images(3, 4, 4, 4)
    images[0, ..., 3] = 255
    assert data.load(write_npz(tmp_path / "a.npz", images=images)).altered == {"laid over white": 2}


@pytest.mark.parametrize("name, label_name", [("images", "labels"), ("x_train", "y_train"), ("x", "y")])
def test_npz_names(tmp_path, name, label_name):
    images, labels = random_images(5, 4, 6), np.array([0, 2, 1, 2, 0])
    other = {"x_test": random_images(9, 4, 6), "y_test": np.zeros(9)}
    loaded = data.load(write_npz(tmp_path / "a.npz", **{name: images, label_name: labels}, **other))
    assert np.array_equal(loaded.images, images[..., None])
    assert loaded.labels.tolist() == [0, 2, 1, 2, 0] and loaded.labels.dtype == np.int32
    assert loaded.class_names == ("0", "1", "2")


def test_npz_takes_the_only_fitting_array_and_any_memory_order(tmp_path):
    images = random_images(5, 4, 6, 3)
    spec = write_npz(tmp_path / "a.npz", pictures=np.asfortranarray(images), sizes=np.zeros((5, 4, 6, 3), np.float32))
    loaded = data.load(spec)
    assert np.array_equal(loaded.images, images)
    assert loaded.labels is None and loaded.class_names == ()


def test_npz_compressed_and_column_labels(tmp_path):
    images = random_images(7, 4, 4, 3)
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
        write_npz(path, images=random_images(50, 8, 8))
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


def test_folder_and_zip_give_the_same(tmp_path):
    for name, seed in (("b", 1), ("a", 2)):
        write_images(tmp_path / "in" / name, random_images(3, 5, 4, 3, seed=seed))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted((tmp_path / "in").rglob("*.png"), reverse=True):
            archive.write(path, path.relative_to(tmp_path))
    folder, zipped = data.load(f"folder:{tmp_path}/in"), data.load(f"zip:{tmp_path}/a.zip")
    assert folder.class_names == zipped.class_names == ("a", "b")
    assert folder.labels.tolist() == [0, 0, 0, 1, 1, 1] and folder.labels.dtype == np.int32
    expected = np.concatenate([random_images(3, 5, 4, 3, seed=2), random_images(3, 5, 4, 3, seed=1)])
    assert np.array_equal(folder.images, expected) and np.array_equal(zipped.images, expected)
    assert folder.digest == zipped.digest


def test_digest_covers_shape_pixels_and_labels():
    images, labels = random_images(4, 2, 3, 1), np.arange(4, dtype=np.int32)
    variants = [(images, labels), (images, None), (images, labels[::-1]), (images[::-1], labels)]
    variants += [(images.reshape(4, 3, 2, 1), labels)]
    assert len({image_cache.digest(*variant) for variant in variants}) == 5
    assert image_cache.digest(images, labels) == image_cache.digest(np.asfortranarray(images), labels)


def test_digest_does_not_depend_on_the_pieces_it_is_read_in(monkeypatch):
    images = random_images(9, 4, 4, 1)
    whole = image_cache.digest(images, None)
    monkeypatch.setattr(image_cache, "_DIGEST_BYTES", 33)
    assert image_cache.digest(images, None) == whole


def test_all_bad_files_are_listed_or_dropped(tmp_path, capsys):
    arrays = random_images(5, 4, 4, 3)
    write_images(tmp_path, arrays)
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(InputError) as caught:
        data.load(f"folder:{tmp_path}")
    lines = str(caught.value).splitlines()
    assert "2 of 5 image files cannot be used (--skip_bad_images" in lines[0]
    assert lines[1] == "  1.png: empty file" and lines[2].startswith("  3.png: not a readable image; expected png, jpg")
    loaded = data.load(f"folder:{tmp_path}", skip_bad_images=True)
    assert np.array_equal(loaded.images, arrays[[0, 2, 4]])
    assert capsys.readouterr().err.splitlines()[1:] == lines[1:]


def test_dropped_files_take_their_labels_along(tmp_path):
    write_images(tmp_path / "a", random_images(2, 4, 4))
    write_images(tmp_path / "b", random_images(2, 4, 4))
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


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(image_cache, "MAX_RAM_BYTES", 100)


def test_large_data_need_a_cache_dir(tmp_path, small_limit):
    with pytest.raises(InputError, match="name a folder for them with --cache_dir"):
        data.load("digits")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="--cache_dir: cannot write to"):
        data.load("digits", cache_dir=str(tmp_path / "file"))


def damaged_array(change):
    def damage(array, record):
        array.write_bytes(change(array.read_bytes()))

    return damage


def nest_labels(array, record):
    labels = json.loads(record.read_text())["labels"]
    damaged_record(labels=[[label] for label in labels])(array, record)


def damaged_record(**values):
    def damage(array, record):
        record.write_text(json.dumps({**json.loads(record.read_text()), **values}))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        damaged_array(lambda content: b""),
        damaged_array(lambda content: b"PK\x03\x04" + content[4:]),
        damaged_array(lambda content: content.replace(b"'shape': (", b"'shape': [(", 1)),
        damaged_array(lambda content: content.replace(b"(1797, ", b"(17 97, ", 1)),
        damaged_array(lambda content: content[:-1000] + bytes(1000)),
        damaged_record(count=-1),
        damaged_record(count=20),
        damaged_record(labels=[]),
        damaged_record(labels=[10**30] * 1797),
        nest_labels,
        damaged_record(dropped=3),
        lambda array, record: record.write_text("[" * 10**5),
    ],
)
def test_a_damaged_cache_is_made_again(tmp_path, small_limit, damage):
    whole = data.load("digits", cache_dir=str(tmp_path))
    expected, labels = np.array(whole.images), whole.labels
    (array,), (record,) = tmp_path.glob("*.npy"), tmp_path.glob("*.json")
    damage(array, record)
    again = data.load("digits", cache_dir=str(tmp_path))
    assert again.digest == whole.digest and np.array_equal(again.images, expected)
    assert np.array_equal(again.labels, labels)


def test_what_a_kill_left_of_a_cache_is_removed(tmp_path, small_limit):
    data.load("digits", cache_dir=str(tmp_path))
    (array,), (record,) = tmp_path.glob("*.npy"), tmp_path.glob("*.json")
    left, another = (tmp_path / f"{array.stem}-{name}.tmp" for name in ("abc", "def"))
    for path in (left, another):
        path.touch()
    record.unlink()
    with held(another):  # which is being written
        data.load("digits", cache_dir=str(tmp_path))
    assert sorted(tmp_path.iterdir()) == sorted([array, record, another])


def test_a_full_disk_is_an_error_before_writing(tmp_path, small_limit, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: usage(10, 0, 10))
    with pytest.raises(InputError, match=r"expected .* GiB of free disk for digits"):
        data.load("digits", cache_dir=str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_memory_map_equals_memory(tmp_path, monkeypatch):
    in_memory = data.load("digits")
    monkeypatch.setattr(image_cache, "MAX_RAM_BYTES", 100)
    mapped = data.load("digits", cache_dir=str(tmp_path / "new"))
    assert isinstance(mapped.images, np.memmap) and not mapped.images.flags.writeable
    assert mapped.digest == in_memory.digest and np.array_equal(mapped.images, in_memory.images)
    assert np.array_equal(mapped.labels, in_memory.labels) and mapped.class_names == in_memory.class_names
    assert sorted(os.path.splitext(name)[1] for name in os.listdir(tmp_path / "new")) == [".json", ".npy"]
    first, second = (numbers(data.batches(d, 64, seed=1, stop=3)) for d in (in_memory, mapped))
    assert first == second


def test_memory_map_is_used_again_until_something_changes(tmp_path, small_limit, monkeypatch, capsys):
    folder, cache = tmp_path / "in", str(tmp_path / "cache")
    write_images(folder, random_images(6, 8, 8, 3))
    (folder / "2.png").write_bytes(b"")
    decoded = []
    decode_all = decoding.decode_all
    monkeypatch.setattr(decoding, "decode_all", lambda *args: decoded.append(1) or decode_all(*args))

    def load(**kwargs):
        decoded.clear()
        result = data.load(f"folder:{folder}", cache_dir=cache, **{"skip_bad_images": True, **kwargs})
        return result, bool(decoded)

    first, fresh = load()
    assert fresh and len(first.images) == 5
    capsys.readouterr()
    again, fresh = load()
    assert not fresh and again.digest == first.digest and np.array_equal(again.images, first.images)
    assert "2.png: empty file" in capsys.readouterr().err
    assert load(image_size=4)[1] and load(image_size=8, channels=1)[1] and load()[1]
    with pytest.raises(InputError, match="1 of 6"):
        load(skip_bad_images=False)
    assert not load()[1]  # the failed start has left the array in place
    os.utime(folder / "1.png", ns=(1, 1))
    assert load()[1] and not load()[1]
    os.rename(folder / "1.png", folder / "9.png")
    assert load()[1] and not load()[1]
    (folder / "x.png").symlink_to(tmp_path)
    assert load()[1] and not load()[1]
    (name,) = (name for name in os.listdir(cache) if name.endswith(".npy"))
    os.truncate(os.path.join(cache, name), 200)
    assert load()[1] and not load()[1]
    (record,) = (tmp_path / "cache").glob("*.json")
    record.write_text(json.dumps({"manifest": json.loads(record.read_text())["manifest"]}))
    assert load()[1] and len(os.listdir(cache)) == 2


def test_what_was_changed_is_found_again_and_asked_of_older_caches(tmp_path, small_limit, monkeypatch):
    folder, cache = tmp_path / "in", tmp_path / "cache"
    write_images(folder, [*random_images(3, 8, 8), random_images(8, 12)])

    def load():
        return data.load(f"folder:{folder}", 8, cache_dir=str(cache)).altered

    assert load() == {"cropped": 1}
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode_all", None)  # it is not called again
        assert load() == {"cropped": 1}
    (record,) = cache.glob("*.json")
    content = json.loads(record.read_text())
    del content["altered"]
    record.write_text(json.dumps(content))
    assert load() == {"cropped": 1}
    with monkeypatch.context() as patch:
        patch.setattr(sources, "_FORMAT", 1)  # an earlier version's
        load()
        old = record.read_text()
    assert load() == {"cropped": 1} and record.read_text() != old


# What becomes of the files once they are read.


@pytest.mark.parametrize("where", ["memory", "memory map"])
@pytest.mark.parametrize("kind", ["npz", "folder", "zip"])
def test_files_that_vanish_or_change_leave_training_as_it_was(tmp_path, monkeypatch, kind, where):
    """So does a memory map whose file is taken away, or replaced by one of the same name."""
    arrays, path = random_images(12, 8, 8), tmp_path / "in"
    if kind == "npz":
        path = tmp_path / "in.npz"
        np.savez(path, images=arrays)
    elif kind == "folder":
        write_images(path, arrays)
    else:
        write_images(tmp_path / "some", arrays)
        shutil.make_archive(str(path), "zip", tmp_path / "some")
        path = tmp_path / "in.zip"
    if where == "memory map":
        monkeypatch.setattr(image_cache, "MAX_RAM_BYTES", 100)
    loaded = data.load(f"{kind}:{path}", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.images, np.memmap) == (where == "memory map")
    expected = list(data.batches(loaded, 5, seed=1, stop=6).as_numpy_iterator())
    batches = data.batches(loaded, 5, seed=1, stop=6).as_numpy_iterator()
    seen = [next(batches)]
    if kind == "folder":
        shutil.rmtree(path)
    else:
        path.write_bytes(b"something else")
    for i, cached in enumerate(sorted((tmp_path / "cache").glob("*"))):
        if i % 2:
            (tmp_path / "new").write_bytes(b"")
            os.replace(tmp_path / "new", cached)
        else:
            cached.unlink()
    seen += batches
    assert len(seen) == 6 and all(map(np.array_equal, seen, expected))


def test_an_archive_that_changes_between_its_header_and_its_pixels_is_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=random_images(4, 8, 8))
    archive = npz_files.open_npz("npz:a", str(path))
    np.savez(path, images=random_images(4, 4, 16))
    with pytest.raises(InputError, match="npz:a: cannot read `images`: it changed while it was read"):
        list(archive.blocks())


# Batches.


def test_an_epoch_shows_every_image_once():
    images = numbered(10)
    flat = list(
        itertools.chain(*numbers(data.batches(images, 4, seed=3, stop=5)))
    )  # 20 positions: two epochs; batch 2 spans both
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:] and flat[:10] != list(range(10))


@pytest.mark.parametrize("count, batch_size", [(1, 1), (2, 2), (7, 7), (12, 5), (64, 3)])
def test_batches_resume_at_any_step(count, batch_size):
    images = numbered(count)
    whole = numbers(data.batches(images, batch_size, seed=5, stop=9))
    assert len(whole) == 9
    for start in (0, 1, 4, 9):
        assert numbers(data.batches(images, batch_size, seed=5, start=start, stop=9)) == whole[start:]
    assert numbers(data.batches(images, batch_size, seed=5, start=2).take(3)) == whole[2:5]


def test_positions_do_not_depend_on_the_batch_size():
    images = numbered(24, (2, 3, 1))
    images.images[:, :, 0] += 100
    flat = [
        np.concatenate(list(data.batches(images, size, seed=2, stop=24 // size, horizontal_flip=True)))
        for size in (3, 8, 12)
    ]
    assert np.array_equal(flat[0], flat[1]) and np.array_equal(flat[0], flat[2])


def test_late_steps_are_computed_in_int64():
    images = numbered(12)
    start = 2**40 + 3  # 5 * start needs 43 bits
    position = start * 5
    first = -(-position // 12) * 12 - position  # where the next epoch begins within the batches
    flat = list(itertools.chain(*numbers(data.batches(images, 5, seed=1, start=start, stop=start + 9))))
    assert sorted(flat[first : first + 12]) == sorted(flat[first + 12 : first + 24]) == list(range(12))
    assert flat[first : first + 12] != flat[first + 12 : first + 24]


def test_orders_of_epochs_and_seeds_are_all_different():
    # The counters 0, 1, 2, ... used as keys of the permutation give 256 orders in all, the first of them unshuffled.
    images = numbered(64)
    orders = [tuple(batch) for batch in numbers(data.batches(images, 64, seed=0, stop=400))]
    orders += [tuple(numbers(data.batches(images, 64, seed=seed, stop=1))[0]) for seed in (1, 2, -1, 2**40)]
    assert len(set(orders)) == 404


def test_order_is_uniform():
    # 600 epochs of 10 images: each image falls on each place 60 times on average. The statistic has 81 degrees of
    # freedom; a fair shuffle exceeds 145 with probability 1.5e-5 (the seed is fixed: never, once it has passed).
    # Counters as keys, for which it is about 80 * 600 / 256, give 140 to 190 or more; 4,000 for no shuffle at all.
    table = np.zeros((10, 10))
    for order in numbers(data.batches(numbered(10), 10, seed=11, stop=600)):
        table[np.arange(10), order] += 1
    assert ((table - 60) ** 2 / 60).sum() < 145


def test_flips_are_fair_independent_coins():
    images = numbered(50, (1, 2, 1))
    images.images[:, :, 1] += 100  # left < right until it is mirrored
    labelled = data.batches(images, 50, seed=4, stop=40, horizontal_flip=True, with_labels=True)
    flips = np.zeros((40, 50), bool)
    for epoch, (batch, labels) in enumerate(labelled.as_numpy_iterator()):
        left, right = batch[:, 0, 0, 0].astype(int), batch[:, 0, 1, 0].astype(int)
        assert np.array_equal(np.minimum(left, right) + 100, labels) and (np.abs(right - left) == 100).all()
        flips[epoch, labels - 100] = left > right
    # 2,000 coins: the share of heads leaves 0.5 +- 0.05 with probability 8e-6.
    assert abs(flips.mean() - 0.5) < 0.05
    assert len({tuple(row) for row in flips}) == 40
    other = next(data.batches(images, 50, seed=5, horizontal_flip=True).as_numpy_iterator())
    plain = next(data.batches(images, 50, seed=5).as_numpy_iterator())
    flipped = (other != plain).any((1, 2, 3))
    assert flipped.any() and not flipped.all() and np.array_equal(other[flipped], plain[flipped][:, :, ::-1])


def test_labels_follow_their_images():
    dataset = data.batches(numbered(9), 4, seed=0, stop=7, with_labels=True)
    assert dataset.element_spec == (tf.TensorSpec((4, 2, 3, 1), tf.uint8), tf.TensorSpec((4,), tf.int32))
    for images, labels in dataset.as_numpy_iterator():
        assert np.array_equal(images[:, 0, 0, 0] + 100, labels)


def test_shapes_and_options():
    dataset = data.batches(numbered(9), 4, seed=0)
    assert dataset.element_spec == tf.TensorSpec((4, 2, 3, 1), tf.uint8)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    assert data.batches(numbered(9), 4, seed=0, start=3, stop=10).cardinality() == 7
    policy = dataset.options().experimental_distribute.auto_shard_policy
    assert policy == tf.data.experimental.AutoShardPolicy.DATA


@pytest.mark.parametrize(
    "kwargs, text",
    [
        ({"batch_size": 13}, "--batch_size must be at most the number of images. Received: batch_size=13, 12 images"),
        ({"batch_size": 0}, "--batch_size must be at least 1. Received: batch_size=0"),
        ({"batch_size": 2, "start": -1}, "0 <= start <= stop. Received: start=-1, stop=None"),
        ({"batch_size": 2, "start": 5, "stop": 4}, "Received: start=5, stop=4"),
        ({"batch_size": 2, "seed": 2**63}, "--seed must fit 64 bits"),
        ({"batch_size": 2, "with_labels": True}, "labels were asked for, but numbered has none"),
    ],
)
def test_impossible_batches(kwargs, text):
    images = dataclasses.replace(numbered(12), labels=None)
    with pytest.raises(InputError, match=text):
        data.batches(images, **{"seed": 0, **kwargs})


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
    store("pets", {"image": grey, "label": label}, image=random_images(5, 4, 5, 1), label=[0, 1, 1, 0, 1])
    mixed = [random_images(4, 4, 3), random_images(6, 8, 3)]
    store("mixed", {"image": tfds.features.Image(shape=(None, None, 3))}, image=mixed)
    store("numbers", {"x": tfds.features.Scalar(np.int64)}, x=[1, 2, 3])
    secret = {"image": grey, "label": tfds.features.Scalar(np.int64)}
    store("secret", secret, image=random_images(2, 4, 5, 1), label=[-1, -1])
    return path


def test_tfds(tfds_dir):
    pets = data.load("tfds:pets", tfds_data_dir=tfds_dir)
    assert np.array_equal(pets.images, random_images(5, 4, 5, 1))
    assert pets.labels.tolist() == [0, 1, 1, 0, 1] and pets.labels.dtype == np.int32
    assert pets.class_names == ("cat", "dog")
    assert len(data.load("tfds:pets:test", tfds_data_dir=tfds_dir).images) == 2
    part = data.load("tfds:pets:train[1:3]", tfds_data_dir=tfds_dir)
    assert np.array_equal(part.images, pets.images[1:3])
    assert pets.altered == {}
    small = data.load("tfds:pets", 2, 3, tfds_data_dir=tfds_dir)
    assert small.images.shape == (5, 2, 2, 3) and small.altered == {"made RGB, cropped and resized": 5}


def test_tfds_sizes_and_labels(tfds_dir):
    with pytest.raises(InputError, match=r"differ in size; name one with --image_size. Received.*: 4x4, 8x6"):
        data.load("tfds:mixed", tfds_data_dir=tfds_dir)
    mixed = data.load("tfds:mixed", 4, tfds_data_dir=tfds_dir)
    assert np.array_equal(mixed.images[0], random_images(4, 4, 3)) and mixed.labels is None and mixed.class_names == ()
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
