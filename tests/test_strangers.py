"""Files with a payload that leaves a canary where it is run: none of the readers runs it, each says what is wrong."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib

import h5py
import keras
import numpy as np
import pytest
from helpers.image_samples import GREY, write
from helpers.refusals import raises_in_flags

from kddpm import data
from kddpm.base.errors import InputError
from kddpm.base.files import sha256
from kddpm.data import decoding, image_cache
from kddpm.runs import build, directory, presets, training, weights_files


class Payload:
    """Makes the canary when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def canary(tmp_path):
    """Where the payload leaves its trace; there must be none at the end."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "what was in a file has been run"


def pickled(canary):
    return pickle.dumps(Payload(canary))


def object_array(canary):
    """A .npy whose values are the payload."""
    stream = io.BytesIO()
    np.save(stream, np.array([Payload(canary)], dtype=object), allow_pickle=True)
    return stream.getvalue()


def program(canary):
    return f"__import__('pathlib').Path({str(canary)!r}).touch()"


def shell(canary):
    """A name that is a command where a shell reads it; no slash, so that it can be a file's."""
    return f"a;$(cd {str(canary.parent).replace('/', '${HOME:0:1}')}&&touch canary)`touch canary`|touch canary&.png"


def lambda_model(canary):
    """A saved Keras model that runs a program when it is built."""
    path = canary.parent / "lambda.keras"
    code = keras.layers.Lambda(eval(f"lambda x: ({program(canary)}, x)[1]"))
    keras.Sequential([keras.layers.Input((2,)), code]).save(path)
    canary.unlink()  # building it once has run it
    return path


# The payloads work: so that the rest can fail.


def test_unpickling_the_payload_makes_the_canary(canary):
    for run in (
        lambda: pickle.loads(pickled(canary)),
        lambda: np.load(io.BytesIO(object_array(canary)), allow_pickle=True),
        lambda: eval(program(canary)),
    ):
        assert not canary.exists()
        run()
        assert canary.exists()
        canary.unlink()


def test_loading_the_model_in_unsafe_mode_makes_the_canary(canary):
    path = lambda_model(canary)
    assert not canary.exists()
    keras.models.load_model(path, safe_mode=False)
    assert canary.exists()
    canary.unlink()


# Runs.


@pytest.fixture(scope="module")
def sound_run(tmp_path_factory):
    """A run of one step, with its weights and a checkpoint."""
    config = presets.make_config(
        "digits", width=8, multipliers=(1,), attention_resolutions=(), batch_size=16, steps=1, num_timesteps=20,
        sampling_steps=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("runs") / "run"
    training.train(config, path, verbose=False)
    return path


@pytest.fixture
def run_dir(sound_run, tmp_path):
    shutil.copytree(sound_run, tmp_path / "run")
    return tmp_path / "run"


def rewrite(path, old, new):
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))


def strange_configuration(old, new):
    return lambda run, canary: rewrite(run / "config.json", old, new.replace("PROGRAM", program(canary)))


def pickle_for(name):
    return lambda run, canary: (run / name).write_bytes(pickled(canary))


LAMBDA = '{"module": "keras.layers", "class_name": "Lambda", "config": {"function": "PROGRAM"}}'


@pytest.mark.parametrize(
    "change",
    [
        strange_configuration('"cosine"', '"PROGRAM"'),
        strange_configuration('"eps"', '"PROGRAM"'),
        strange_configuration('"eps"', LAMBDA),
        strange_configuration('"float32"', '{"class_name": "DTypePolicy", "config": {"name": "PROGRAM"}}'),
        strange_configuration('"width": 8', '"width": "PROGRAM"'),
        strange_configuration('"width": 8', '"width": 8, "__class__": "PROGRAM"'),
        strange_configuration('"width": 8', '"width": 8, "__reduce__": ["os.system", ["PROGRAM"]]'),
        strange_configuration('"class_names": [', '"class_names": [' + LAMBDA + ","),
        lambda run, canary: (run / "config.json").write_text(f"!!python/object/apply:eval [{program(canary)!r}]"),
        lambda run, canary: (run / "config.json").write_text("[" * 10**5),
        pickle_for("config.json"),
        pickle_for("ema.weights.h5"),
        pickle_for("ema.weights.json"),
        lambda run, canary: shutil.copy(lambda_model(canary), run / "ema.weights.h5"),
    ],
)
def test_runs_are_read_and_not_run(run_dir, canary, change):
    change(run_dir, canary)
    with pytest.raises(InputError) as caught:
        build.load_run(run_dir)
    assert "\n" not in str(caught.value)


def test_what_is_said_beside_the_weights_is_not_listened_to(run_dir, canary):
    """Attributes, of which Keras's older formats kept the model in one, are left alone; words in place of numbers are
    refused."""
    model = lambda_model(canary)
    with zipfile.ZipFile(model) as archive:
        configuration = archive.read("config.json")
    weights_files.hash_file(run_dir / "ema.weights.h5").unlink()
    before = build.load_run(run_dir).ema_network.get_weights()
    with h5py.File(run_dir / "ema.weights.h5", "r+") as file:
        for item in (file, *file.values()):
            item.attrs["model_config"] = configuration
            item.attrs["training_config"] = program(canary)
            item.attrs["pickle"] = np.void(pickled(canary))
    after = build.load_run(run_dir).ema_network.get_weights()
    assert all(map(np.array_equal, before, after))
    with h5py.File(run_dir / "ema.weights.h5", "r+") as file:
        file.create_dataset("more", data=np.void(pickled(canary)))
    with pytest.raises(InputError, match="more holds no numbers"):
        build.load_run(run_dir)


# What asks for more than there is.


def asks_for(run, **changes):
    described = json.loads((run / "config.json").read_text())
    described["config"] |= changes
    if "image_size" in changes:
        described["data"]["image_shape"] = [*changes["image_size"], 1]
    (run / "config.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"width": 10**5}, "ema.weights.h5 .* and config.json asks for 1,560,007,600,001 parameters of 4"),
        ({"width": 10**6}, "`width` must be at most 100,000. Received: 1000000"),
        ({"multipliers": [10**4]}, "config.json asks for [0-9,]+ parameters of 4"),
        ({"multipliers": [2**40]}, "`multipliers` must be at most 100,000 channels with width=8"),
        (
            {"multipliers": [1] * 10**5},
            "`multipliers` must be at most 4 numbers for image_size='8x8'",
        ),
        ({"blocks_per_level": 100}, "config.json asks for [0-9,]+ parameters of 4"),
        ({"blocks_per_level": 10**5}, "`blocks_per_level` must be at most 100. Received: 100000"),
        ({"num_classes": 10**6}, "config.json asks for [0-9,]+ parameters of 4"),
        ({"num_classes": 10**12}, "`num_classes` must be at most 1,000,000, or none"),
        ({"num_timesteps": 10**12}, "`num_timesteps` must be at most 100,000"),
        ({"image_size": [2**14, 2**14]}, "a network of [0-9,]+ parameters, which takes [0-9,.]+ GB or more. Received"),
        ({"image_size": [2**40, 2**40]}, "`image_size` must be at most 16,384 a side"),
        ({"learning_rate": 10**400}, "`learning_rate` must fit 64 bits. Received: a number of 1329 bits"),
    ],
)
def test_networks_larger_than_memory_are_not_made(run_dir, monkeypatch, changes, text):
    asks_for(run_dir, **changes)
    monkeypatch.setattr(build, "UNet", None)  # it is not asked
    with pytest.raises(InputError, match=text) as caught:
        build.load_run(run_dir)
    assert "\n" not in str(caught.value)


def test_a_weights_file_of_holes_makes_room_for_no_network(run_dir, monkeypatch):
    """A file may claim any size and take none."""
    asks_for(run_dir, width=10**5)
    os.truncate(run_dir / "ema.weights.h5", 2**43)
    monkeypatch.setattr(build, "UNet", None)
    with pytest.raises(InputError, match="1,560,007,600,001 parameters, which takes 12,480[0-9.]+ GB or more"):
        build.load_run(run_dir)


def test_a_new_run_is_told_that_it_does_not_fit(tmp_path, monkeypatch):
    config = presets.make_config("ddpm32", dataset="digits", channels=1)
    monkeypatch.setattr(build.memory, "total", lambda: 2 * 10**8)
    with pytest.raises(InputError, match="35,741,697 parameters, which takes 0.29 GB or more. Received: .* of 0.20 GB"):
        training.train(config, tmp_path / "run", verbose=False)
    assert not (tmp_path / "run").exists()


def test_data_of_another_size_than_the_configuration_are_refused(run_dir):
    rewrite(run_dir / "config.json", '"image_shape": [\n      8,', '"image_shape": [\n      9,')
    with raises_in_flags(r"`image_shape` of its `data` must be that of image_size=8x8.*\[9, 8, 1\]"):
        build.load_run(run_dir)


def test_side_files_of_any_size_are_not_read(run_dir):
    os.truncate(run_dir / "config.json", 2**40)
    with pytest.raises(InputError, match="it is larger than the 33,554,432 bytes that are read"):
        build.load_run(run_dir)


# Checkpoints.


def change_member(content):
    """The first array of a checkpoint replaced, with a hash that fits."""

    def change(run, canary):
        path, about = run / "checkpoints" / "step_0000001.npz", run / "checkpoints" / "step_0000001.json"
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members[min(members)] = content(canary)
        with zipfile.ZipFile(path, "w") as archive:
            for name, data_of in members.items():
                archive.writestr(name, data_of)
        about.write_text(json.dumps({**json.loads(about.read_text()), "sha256": sha256(path)}))

    return change


def replace_archive(run, canary):
    path, about = run / "checkpoints" / "step_0000001.npz", run / "checkpoints" / "step_0000001.json"
    path.write_bytes(object_array(canary))
    about.write_text(json.dumps({**json.loads(about.read_text()), "sha256": sha256(path)}))


def described_as(**changes):
    def change(run, canary):
        path = run / "checkpoints" / "step_0000001.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}).replace("PROGRAM", program(canary)))

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (change_member(object_array), "is damaged"),
        (change_member(pickled), "is damaged"),
        (replace_archive, "is damaged"),
        (pickle_for("checkpoints/step_0000001.npz"), "is damaged: its sha256"),
        (pickle_for("checkpoints/step_0000001.json"), "is damaged"),
        (described_as(__class__="PROGRAM"), "is damaged"),
        (described_as(loss="PROGRAM"), "is damaged"),
        (described_as(variables=[[[10**12], "float32"]]), "belongs to another model"),
        (described_as(variables=[[[1], "PROGRAM"]] * 10**5), "belongs to another model"),
        (lambda run, canary: (run / "metrics.csv").write_text(f"step,loss\n{program(canary)},=cmd\n"), "metrics.csv"),
        (lambda run, canary: (run / "metrics.csv").write_bytes(b"step\n" + b'"' + bytes(10**6) + b"\n"), "metrics.csv"),
    ],
)
def test_training_goes_on_from_nothing_that_would_run(run_dir, canary, change, text):
    change(run_dir, canary)
    config, _ = directory.RunDirectory(run_dir).read()
    with pytest.raises(InputError, match=text) as caught:
        training.train(config, run_dir, verbose=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "ema.weights.h5", "ema.weights.json"])
def test_files_without_an_end_are_not_read(run_dir, name):
    (run_dir / name).unlink()
    (run_dir / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match="not a regular file|cannot be read"):
        build.load_run(run_dir)


# Data.


def write_npz(path, canary, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content(canary) if callable(content) else content)
    return f"npz:{path}"


def npy_of(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def program_as_header(canary):
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({program(canary)}, 8, 8)}}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "members",
    [
        {"images": object_array},
        {"images": pickled},
        {"images": npy_of(np.zeros((1, 8, 8), np.uint8)), "labels": object_array},
        {"images": npy_of(np.zeros((1, 8, 8), np.uint8)), "labels": pickled},
        {"images": program_as_header},
        {"a": object_array, "b": object_array},
    ],
)
def test_arrays_are_not_unpickled(tmp_path, canary, members):
    spec = write_npz(tmp_path / "a.npz", canary, **members)
    with pytest.raises(InputError) as caught:
        data.load(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["npz", "zip", "folder"])
@pytest.mark.parametrize("content", [object_array, pickled])
def test_a_pickle_is_no_data(tmp_path, canary, kind, content):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.png"
    path.write_bytes(content(canary))
    with pytest.raises(InputError):
        data.load(f"{kind}:{path.parent if kind == 'folder' else path}")


def test_a_cache_is_not_unpickled(tmp_path, canary, monkeypatch):
    monkeypatch.setattr(image_cache, "MAX_RAM_BYTES", 100)
    data.load("digits", cache_dir=str(tmp_path / "cache"))
    (cached,) = (tmp_path / "cache").glob("*.npy")
    cached.write_bytes(object_array(canary))
    assert len(data.load("digits", cache_dir=str(tmp_path / "cache")).images) == 1797


@pytest.mark.parametrize("zipped", [False, True])
def test_names_are_not_commands(tmp_path, canary, zipped, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = shell(canary)
    members = {f"{name}/{name}": GREY, f"b/{name}": b"", "c/-rf.png": GREY, "c/%s{0}%n.png": GREY}
    spec = write(tmp_path, members, zipped)
    loaded = data.load(spec, skip_bad_images=True)
    assert len(loaded.images) == 3
    with pytest.raises(InputError, match="1 of 4 image files cannot be used"):
        data.load(spec)


def test_what_is_said_beside_the_pixels_is_not_listened_to(tmp_path, canary):
    comment = b"tEXtComment\0" + pickled(canary)
    chunk = struct.pack(">I", len(comment) - 4) + comment + struct.pack(">I", zlib.crc32(comment))
    (tmp_path / "a.png").write_bytes(GREY[:33] + chunk + GREY[33:])
    (tmp_path / "b.png").write_bytes(GREY)
    first, second = data.load(f"folder:{tmp_path}").images
    assert np.array_equal(first, second)


def test_a_picture_of_the_users_is_not_unpickled(tmp_path, canary):
    (tmp_path / "a.png").write_bytes(object_array(canary))
    with raises_in_flags("--inpaint: cannot read"):
        decoding.read_image("--inpaint", tmp_path / "a.png", None, 1)
