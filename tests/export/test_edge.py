"""export/edge/generate.py as it runs on a board."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.networks import one_conv_model
from PIL import Image

import kddpm
from export.edge import command, pictures
from export.edge.generator import Generator
from kddpm.data import decoding

EDGE = pathlib.Path(command.__file__).parent


@pytest.fixture
def model(exported, tmp_path):
    """A copy of an export that a test may spoil."""
    for file in (exported(), exported().with_suffix(".json")):
        shutil.copy(file, tmp_path)
    return tmp_path / exported().name


def run(*flags):
    return command.main([str(flag) for flag in flags])


def painted(generator, *of, **options):
    return np.stack(list(generator.generate(*of, **options)))


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A Python with nothing but the client's requirements."""
    folder = tmp_path_factory.mktemp("board")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "-r", EDGE / "requirements.txt"], check=True)
    return python


def test_a_board_without_tensorflow_paints_the_same_pictures(board, exported, trained_like, tmp_path):
    script = tmp_path / "my client" / "generate.py"  # alone, far from the project
    shutil.copytree(EDGE, script.parent, ignore=shutil.ignore_patterns("__pycache__"))
    command = [board, "-s", "-E", script, exported(), "--seeds=-2,0-3,2147483647", f"--out={tmp_path / 'grid.png'}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "36/36 network calls" in result.stderr
    assert result.stdout == f"6 pictures in {tmp_path / 'grid.png'}, each in 6 steps of ancestral sampling\n"
    missing = subprocess.run([board, "-c", "import tensorflow"], capture_output=True, text=True)
    assert "ModuleNotFoundError" in missing.stderr
    with Image.open(tmp_path / "grid.png") as image:
        shown = np.asarray(image).astype(int)
    painted = trained_like.generate([-2, 0, 1, 2, 3, 2**31 - 1], "ancestral", 6)
    expected = kddpm.images.grid(painted)[..., 0]
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).max() <= 1


@pytest.mark.parametrize("n", [1, 2, 5, 9])
@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 7, 3), (60, 30, 3)])
def test_the_grid_is_that_of_the_project(n, shape):
    some = np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)
    np.testing.assert_array_equal(pictures.grid(some), kddpm.images.grid(some))


def test_a_folder_gets_a_file_a_seed(model, trained_like, tmp_path):
    run(model, "--seeds=5,7", f"--out={tmp_path / 'pictures'}", "--no-xnnpack")
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["5.png", "7.png"]
    with Image.open(tmp_path / "pictures" / "7.png") as image:
        picture = trained_like.generate([7], "ancestral", 6)[0, ..., 0]
        assert np.abs(np.asarray(image).astype(int) - picture).max() <= 1


def test_a_command_writes_over_its_picture(model, tmp_path):
    written = []
    for seed in (5, 7):
        run(model, f"--seeds={seed}", f"--out={tmp_path / 'grid.png'}")
        written.append((tmp_path / "grid.png").read_bytes())
    assert written[0] != written[1]


def test_labels_choose_the_class(exported, trained_like_with_classes):
    generator = Generator(exported(classes=True))
    model = trained_like_with_classes
    for labels in (None, [2, 2, 2], [0, 1, 2]):
        expected = model.generate([4, 5, 6], "ancestral", 6, labels=labels)
        assert np.abs(painted(generator, [4, 5, 6], labels).astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(painted(generator, [4, 5], [1]), painted(generator, [4, 5], [1, 1]))


@pytest.mark.parametrize("sampler", ["dpm_solver", "heun"])
def test_samplers_with_a_memory_paint_what_keras_paints(exported, described, trained_like, sampler):
    """Their state is more than a picture; the client passes it on without a look."""
    path = exported(sampler=sampler)
    generator, calls = Generator(path), []
    found = painted(generator, [4, -6], progress=lambda *of: calls.append(of)).astype(int)
    assert np.abs(found - trained_like.generate([4, -6], sampler, 6)).max() <= 1
    total = 2 * {"dpm_solver": 6, "heun": 11}[sampler]
    assert calls == [(done, total) for done in range(1, total + 1)]
    about = described(path)
    assert about["signatures"]["step"]["inputs"]["x"]["shape"] == [1, 8, 8, about["state_channels"]] == [1, 8, 8, 2]


def test_steps_of_several_calls_are_told_from_the_calls(exported, tmp_path, capsys):
    run(exported(sampler="heun"), "--seeds=4", f"--out={tmp_path / 'grid.png'}")
    printed = capsys.readouterr()
    assert printed.out == f"1 picture in {tmp_path / 'grid.png'}, each in 6 steps of Heun's method, 11 network calls\n"
    assert re.fullmatch(r"\r11/11 network calls, \d+\.\d\d ms a call, \d+\.\d s\n", printed.err)


def test_a_last_batch_is_filled_up(tmp_path):
    model = one_conv_model()
    model.export(tmp_path / "m.tflite", sampler="ddim", num_steps=2, batch_size=4, parity_seeds=1, verbose=False)
    generator = Generator(tmp_path / "m.tflite")
    calls = []
    found = painted(generator, list(range(6)), progress=lambda *of: calls.append(of))
    assert np.abs(found.astype(int) - model.generate(range(6), "ddim", 2)).max() <= 1
    assert calls[-1] == (4, 4)


def spoil(model, how):
    side = model.with_suffix(".json")
    if how == "truncated":
        model.write_bytes(model.read_bytes()[:-100])
    elif how == "altered":
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(content)
    elif how == "no side file":
        side.unlink()
    elif how == "no model":
        model.unlink()
    elif how == "side file of something else":
        side.write_text(json.dumps({"description_version": 3, "sha256": "x"}))
    elif how == "no version":
        about = json.loads(side.read_text())
        del about["description_version"]
        side.write_text(json.dumps(about))
    elif how == "list":
        side.write_text("[2]")
    elif how == "side file cut off":
        side.write_text(side.read_text()[:100])
    elif isinstance(how, dict):
        side.write_text(json.dumps({**json.loads(side.read_text()), **how}))
    elif how == "not a model":
        about = json.loads(side.read_text())
        model.write_bytes(b"hello")
        about["sha256"] = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
        side.write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (
            "truncated",
            r"must be the file that tiny_float32\.json describes: \d+ bytes of another sha256. Received: \d+",
        ),
        ("altered", "truncated, altered or of another export"),
        ("no side file", r"tiny_float32\.json is missing"),
        ("no model", r"tiny_float32\.tflite is missing"),
        ("side file of something else", "must be the description that the export wrote"),
        ("side file cut off", "must be the description that the export wrote"),
        ("not a model", "cannot be run by LiteRT"),
        ("list", "must be the description that the export wrote"),
        (
            "no version",
            r"tiny_float32\.json must have description_version 3, the one that is read here\. Received: none, as",
        ),
        (
            {"description_version": 4},
            r"must have description_version 3, the one that is read here\. Received: 4$",
        ),
        ({"description_version": "2"}, 'must have description_version 3, .* Received: "2"$'),
        ({"description_version": None}, "must have description_version 3, .* Received: null$"),
        ({"network_calls": 0}, "must be the description that the export wrote"),
        ({"network_calls": True}, "must be the description that the export wrote"),
        ({"sampler": {"name": "ddim"}}, "must be the description that the export wrote"),
        ({"image_shape": [8, 8]}, "must be the description that the export wrote"),
        ({"state_channels": "x"}, "must be the description that the export wrote"),
        ({"state_channels": 2}, "Received: other batches, shapes or classes"),
        ({"batch_size": 0}, "must be the description that the export wrote"),
        ({"num_classes": "x"}, "must be the description that the export wrote"),
        (
            {"batch_size": 2},
            r"tiny_float32\.json must describe tiny_float32\.tflite\. Received: other batches, shapes or classes",
        ),
        ({"num_classes": 10}, "Received: other batches, shapes or classes"),
    ],
)
def test_files_that_are_not_an_export_end_in_one_line(model, how, error, tmp_path):
    spoil(model, how)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit, match=rf"^generate\.py: [^\n]*{error}[^\n]*$"):
        run(model, f"--out={tmp_path / 'grid.png'}")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--seeds=two"], r"--seeds must look like 0-15 or 1,5,10-20\. Received: 'two'"),
        (["--seeds=9-3"], "--seeds must look like"),
        (["--seeds=2147483648"], "--seeds must fit int32, -2147483648 to 2147483647. Received: 2147483648"),
        (["--seeds=2147483600-2147483700"], "--seeds must fit int32"),
        (["--labels=1"], "--labels were given, but the model has no classes"),
        (["--threads=0"], r"--threads must lie in 1 \.\. 256\. Received: 0"),
        (["--threads=32000"], "--threads must lie in"),
        (["--out=grid.jpg"], r"--out must end in \.png, or be a folder\. Received: grid\.jpg"),
        (["--seeds=" + "9" * 5000], "--seeds must look like"),
        (
            ["--out={tmp}/folder.png"],
            r"--out must be a \.png file, or a folder\. Received: .*folder\.png, which is there",
        ),
        (["--out={tmp}/file/grid.png"], "--out must be in a folder that can be written to"),
    ],
)
def test_flags_that_cannot_be_end_in_one_line(model, flags, error, tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    with pytest.raises(SystemExit, match=rf"^generate\.py: {error}[^\n]*$"):
        run(model, *flags)


@pytest.mark.parametrize("name", [".", "/"])
def test_a_model_without_a_name_ends_in_one_line(name):
    with pytest.raises(SystemExit, match=r"^generate\.py: [^\n]* is missing: an export is NAME\.tflite[^\n]*$"):
        run(name)


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ("3", "must lie in 0 .. 2. Received: 3 to 3"),
        ("-1", "must lie in 0 .. 2"),
        ("0,1", "must be one a seed, or one"),
    ],
)
def test_labels_that_cannot_be_end_in_one_line(exported, labels, error, tmp_path):
    with pytest.raises(SystemExit, match=rf"^generate\.py: --labels {error}[^\n]*$"):
        run(exported(classes=True), "--seeds=1-3", f"--labels={labels}", f"--out={tmp_path / 'grid.png'}")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def editable(trained_like, tmp_path_factory):
    """A file that edits, a photo that is larger than its pictures, and a mask."""
    folder = tmp_path_factory.mktemp("editable")
    trained_like.export(folder / "m.tflite", sampler="ddim", num_steps=4, parity_seeds=1, verbose=False)
    photo = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    Image.fromarray(photo).save(folder / "photo.png")
    mask = np.full((24, 24), 255, np.uint8)
    mask[9:, :9] = 0
    Image.fromarray(mask).save(folder / "mask.png")
    Image.new("L", (24, 24), 100).save(folder / "grey.png")
    return folder


def test_the_command_edits_photos(editable, tmp_path):
    model, out = editable / "m.tflite", tmp_path / "out"
    run(model, f"--inpaint={editable / 'photo.png'}", f"--mask={editable / 'mask.png'}", f"--out={out}")
    assert len(list(out.iterdir())) == 8
    with Image.open(editable / "photo.png") as image:
        cropped, _ = decoding.to_array(image, (8, 8), 1)
    painted = np.asarray(Image.open(out / "3.png")).astype(int)
    changed = np.abs(painted - cropped[..., 0]) > 1
    assert not changed[:3].any() and not changed[:, 3:].any() and changed[3:, :3].any()
    run(model, f"--variations={editable / 'photo.png'}", "--strength=0", "--seeds=1", f"--out={out}")
    assert np.abs(np.asarray(Image.open(out / "1.png")).astype(int) - cropped[..., 0]).max() <= 1


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--variations={0}/photo.png", "--inpaint={0}/photo.png"], "--variations and --inpaint exclude each other"),
        (["--strength=0.3"], "--strength belongs to --variations. Received: none"),
        (["--variations={0}/photo.png", "--mask={0}/mask.png"], "--mask belongs to --inpaint"),
        (["--inpaint={0}/photo.png"], "--inpaint needs --mask, an image file. Received: none"),
        (["--variations={0}/none.png"], "--variations must be an image file. Received: .*none.png"),
        (["--variations={0}/m.json"], "--variations must be an image file. Received: .*m.json"),
        (["--inpaint={0}/photo.png", "--mask={0}/grey.png"], "--mask must have white, .* Received: at most 100"),
        (["--num_steps=0"], "--num_steps must lie in 1 .. 20. Received: 0"),
    ],
)
def test_edits_that_cannot_be_end_in_one_line(editable, tmp_path, flags, error):
    with pytest.raises(SystemExit, match=rf"^generate\.py: [^\n]*{error}[^\n]*$"):
        run(editable / "m.tflite", *(flag.format(editable) for flag in flags), f"--out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()
