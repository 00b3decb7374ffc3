"""Weights from strangers: what leads elsewhere, claims too much or was changed is refused unread."""

import contextlib
import json
import pathlib

import h5py
import keras
import numpy as np
import pytest

from kddpm.base.errors import InputError
from kddpm.base.files import replacing
from kddpm.runs import weights_files


def network(units=3):
    keras.utils.set_random_seed(units)
    return keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(units)])


@pytest.fixture
def path(tmp_path):
    weights_files.save(network(), tmp_path / "ema.weights.h5")
    return tmp_path / "ema.weights.h5"


def kernel_of(file):
    """The dataset of the kernel, and the group that holds it."""
    found = []
    file.visititems(
        lambda name, item: found.append(item) if isinstance(item, h5py.Dataset) and item.ndim == 2 else None
    )
    return found[0], found[0].parent


def forged(path, change):
    """A file that was changed, with a hash that fits."""
    with h5py.File(path, "r+") as file:
        dataset, group = kernel_of(file)
        change(file, group, dataset.name.rsplit("/", 1)[1])
    weights_files.hash_file(path).write_text(json.dumps({"sha256": weights_files.sha256(path), "before": None}))


def test_what_was_saved_is_loaded(path):
    other = network()
    other.set_weights([np.zeros_like(w) for w in other.get_weights()])
    weights_files.load(other, path)
    for ours, theirs in zip(other.get_weights(), network().get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert sorted(p.name for p in path.parent.iterdir()) == ["ema.weights.h5", "ema.weights.json"]


def test_a_file_without_a_hash_is_read(path):
    weights_files.hash_file(path).unlink()
    other = network()
    other.set_weights([np.zeros_like(w) for w in other.get_weights()])
    weights_files.load(other, path)
    np.testing.assert_array_equal(other.get_weights()[0], network().get_weights()[0])


def test_every_flipped_byte_is_noticed(path):
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 40):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(InputError, match="ema.weights.h5 cannot be read, .* its sha256 is not that in"):
            weights_files.load(network(), path)


@pytest.mark.parametrize("moment", ["before the hash is in place", "before the weights are"])
def test_a_kill_within_a_save_leaves_weights_that_are_known(path, monkeypatch, moment):
    old = network().get_weights()

    @contextlib.contextmanager
    def killed(target):
        with replacing(target) as beside:
            yield beside
            if target != path and moment == "before the hash is in place":
                raise ConnectionAbortedError
        if target != path:
            raise ConnectionAbortedError

    other = network()
    other.set_weights([w + 1 for w in old])
    with monkeypatch.context() as patch:
        patch.setattr(weights_files, "replacing", killed)
        with pytest.raises(ConnectionAbortedError):
            weights_files.save(other, path)
    weights_files.load(other, path)
    for ours, theirs in zip(other.get_weights(), old, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def link_out(kind):
    def change(file, group, name):
        del group[name]
        group[name] = h5py.ExternalLink("/etc/hostname", "/x") if kind == "external" else h5py.SoftLink("/other")

    return change


def outside_values(file, group, name):
    del group[name]
    group.create_dataset(name, (4, 3), "f4", external=[("/etc/hostname", 0, 48)])


def virtual_values(file, group, name):
    del group[name]
    layout = h5py.VirtualLayout((4, 3), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (4, 3))
    group.create_virtual_dataset(name, layout)


def huge(file, group, name):
    group.create_dataset("more", (2**40,), "f4", chunks=(2**20,), compression="gzip")


def endless(file, group, name):
    group["again"] = file  # a hard link to the root: groups without end


def words(file, group, name):
    group.create_dataset("words", data=[b"import os"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (link_out("external"), "is a link to somewhere else"),
        (link_out("soft"), "is a link to somewhere else"),
        (outside_values, "has its values in another file"),
        (virtual_values, "has its values in another file"),
        (huge, "holds more than the 60 bytes of the network"),
        (endless, "lie too deep|holds more than"),
        (words, "words holds no numbers"),
    ],
)
def test_files_that_are_no_weights_are_refused(path, change, reason, monkeypatch):
    forged(path, change)
    monkeypatch.setattr(keras.Model, "load_weights", None)  # it is not asked
    with pytest.raises(InputError, match=reason):
        weights_files.load(network(), path)


def test_weights_of_another_network_are_refused(path):
    with pytest.raises(InputError, match="ema.weights.h5 cannot be read, or does not fit config.json: "):
        weights_files.load(network(units=5), path)


@pytest.mark.parametrize("content", ["[]", "{", '{"sha256": 1}'])
def test_hash_files_of_another_form_are_refused(path, content):
    pathlib.Path(weights_files.hash_file(path)).write_text(content)
    with pytest.raises(InputError, match="ema.weights.h5 cannot be read"):
        weights_files.load(network(), path)
