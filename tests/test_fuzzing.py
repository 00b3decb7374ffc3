"""Files with thousands of random faults: an error that says so, or the right result; nothing else."""

import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from kddpm import data
from kddpm.base.errors import InputError
from kddpm.base.files import sha256
from kddpm.runs import checkpoints, presets, training
from kddpm.runs.directory import RunDirectory

pytestmark = pytest.mark.slow
TRIES = 2000
TINY = presets.make_config(
    "digits", width=8, multipliers=(1,), attention_resolutions=(), batch_size=16, steps=1, log_every=1,
    num_timesteps=20, sampling_steps=2,
)  # fmt: skip


def mutated(content: bytes, rng) -> bytes:
    """One to three faults: bytes changed, cut out, put in, repeated or zeroed, more often near either end."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        size = len(content)
        where = rng.choice(["anywhere", "begin", "end"])
        edge = rng.integers(min(200, size))
        place = {"anywhere": rng.integers(size), "begin": edge, "end": size - 1 - edge}[where]
        length = int(rng.integers(1, 50))
        kind = rng.integers(6)
        if kind == 0:
            content[place] ^= 1 << rng.integers(8)
        elif kind == 1:
            content[place : place + length] = rng.integers(0, 256, length, np.uint8).tobytes()
        elif kind == 2:
            del content[place : place + length]
        elif kind == 3:
            content[place:place] = rng.integers(0, 256, length, np.uint8).tobytes()
        elif kind == 4:
            content[place:place] = content[place : place + length]
        else:
            del content[place:]
        if not content:
            content = bytearray(b"\0")
    return bytes(content)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("fuzz") / "run"
    return run_dir, training.train(TINY, run_dir, verbose=False)


def restored(run_dir, model):
    """Every variable after a restore, from zero."""
    keeper = checkpoints.Checkpoints(RunDirectory(run_dir), model, {}, lambda line: None)
    for variable in keeper._variables:
        variable.assign(np.zeros(variable.shape, variable.dtype))
    keeper.restore()
    return [variable.numpy() for variable in keeper._variables]


@pytest.mark.parametrize("part", ["npz", "json"])
def test_checkpoints_with_faults_are_refused_or_right(trained, part):
    """The hash is made to fit, so that what lies behind it is tried as well."""
    run_dir, model = trained
    folder = run_dir / "checkpoints"
    (about,), (archive,) = folder.glob("*.json"), folder.glob("*.npz")
    sound, described = archive.read_bytes(), about.read_text()
    expected, refused = restored(run_dir, model), 0
    rng = np.random.default_rng(0)
    try:
        for _ in range(TRIES):
            if part == "npz":
                archive.write_bytes(mutated(sound, rng))
                about.write_text(json.dumps({**json.loads(described), "sha256": sha256(archive)}))
            else:
                about.write_bytes(mutated(described.encode(), rng))
            try:
                found = restored(run_dir, model)
            except InputError as error:
                refused += 1
                assert "\n" not in str(error)
                continue
            assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    finally:
        archive.write_bytes(sound)
        about.write_text(described)
    assert refused > TRIES / 2


def test_configurations_with_faults_are_refused_or_right(trained):
    run_dir, _ = trained
    path = run_dir / "config.json"
    sound, refused = path.read_text(), 0
    rng = np.random.default_rng(1)
    try:
        for _ in range(TRIES):
            path.write_bytes(mutated(sound.encode(), rng))
            try:
                config, about = RunDirectory(run_dir).read()
            except InputError as error:
                refused += 1
                assert "\n" not in str(error)
                continue
            assert dataclasses.asdict(config) and len(about["image_shape"]) == 3
    finally:
        path.write_text(sound)
    assert refused > TRIES / 2


@pytest.mark.parametrize("kind", ["npz", "zip", "folder"])
def test_images_with_faults_are_refused_or_right(tmp_path, kind):
    """Archives carry checksums; a lone PNG does too, in every chunk that matters to its pixels."""
    images = np.random.default_rng(2).integers(0, 256, (3, 6, 5), np.uint8)
    files = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        files.append(stream.getvalue())
    if kind == "npz":
        path = tmp_path / "a.npz"
        np.savez(path, images=images)
    elif kind == "zip":
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for i, content in enumerate(files):
                archive.writestr(f"{i}.png", content)
    else:
        path = tmp_path / "in" / "1.png"
        path.parent.mkdir()
        for i, content in enumerate(files):
            (path.parent / f"{i}.png").write_bytes(content)
    spec = f"folder:{path.parent}" if kind == "folder" else f"{kind}:{path}"
    sound, refused, rng = path.read_bytes(), 0, np.random.default_rng(3)
    for _ in range(TRIES):
        path.write_bytes(mutated(sound, rng))
        try:
            found = data.load(spec, image_size=(6, 5), channels=1, progress=False)
        except InputError:
            refused += 1
            continue
        known = {image.tobytes() for image in images}
        assert all(image.tobytes() in known for image in found.images[..., 0]), "a picture that was never there"
    assert refused > TRIES / 3
