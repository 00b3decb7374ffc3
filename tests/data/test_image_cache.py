"""What is too large for memory: a map on the disk, made once, and again where anything changed."""

import collections
import json
import os
import shutil

import numpy as np
import pytest
from helpers.comparing import assert_same
from helpers.image_samples import random_pixels, write_images

from kddpm import data
from kddpm.base.errors import InputError
from kddpm.base.files import locked
from kddpm.data import decoding, image_cache, sources


def test_digest_covers_shape_pixels_and_labels():
    images, labels = random_pixels(4, 2, 3, 1), np.arange(4, dtype=np.int32)
    variants = [(images, labels), (images, None), (images, labels[::-1]), (images[::-1], labels)]
    variants += [(images.reshape(4, 3, 2, 1), labels)]
    assert len({image_cache.digest(*variant) for variant in variants}) == 5
    assert image_cache.digest(images, labels) == image_cache.digest(np.asfortranarray(images), labels)


def test_digest_does_not_depend_on_the_pieces_it_is_read_in(monkeypatch):
    images = random_pixels(9, 4, 4, 1)
    whole = image_cache.digest(images, None)
    monkeypatch.setattr(image_cache, "_DIGEST_BYTES", 33)
    assert image_cache.digest(images, None) == whole


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(image_cache, "MAX_RAM_BYTES", 100)


def test_large_data_need_a_cache_dir(tmp_path, small_limit):
    with pytest.raises(InputError, match="name a folder for them with `cache_dir`"):
        data.load("digits")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="`cache_dir` must be a folder that can be written to"):
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
    with locked(another):  # which is being written
        data.load("digits", cache_dir=str(tmp_path))
    assert sorted(tmp_path.iterdir()) == sorted([array, record, another])


def test_a_full_disk_is_an_error_before_writing(tmp_path, small_limit, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: usage(10, 0, 10))
    with pytest.raises(InputError, match=r"`cache_dir` must have .* GiB of free disk for digits"):
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
    first, second = (list(data.batches(d, 64, seed=1, stop=3).as_numpy_iterator()) for d in (in_memory, mapped))
    assert_same(first, second)


def test_memory_map_is_used_again_until_something_changes(tmp_path, small_limit, monkeypatch, capsys):
    folder, cache = tmp_path / "in", str(tmp_path / "cache")
    write_images(folder, random_pixels(6, 8, 8, 3))
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
    write_images(folder, [*random_pixels(3, 8, 8), random_pixels(8, 12)])

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
    arrays, path = random_pixels(12, 8, 8), tmp_path / "in"
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
