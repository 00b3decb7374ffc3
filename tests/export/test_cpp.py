"""export/cpp, built from nothing and run as a program."""

import base64
import dataclasses
import io
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from helpers.networks import one_conv_model
from helpers.png_chunks import GAMMA, QUARTER_TURN, with_chunk
from helpers.side_files import describe
from PIL import ExifTags, Image, ImageOps

import kddpm
from export.edge import generator as edge
from kddpm.sampling import samplers

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def paint(cpp, tmp_path):
    """The pictures that the client paints, uint8 (N, H, W, C)."""

    def call(model, seeds, *flags):
        result = cpp(model, f"--seeds={','.join(map(str, seeds))}", "--out=pictures", *flags)
        assert result.returncode == 0, result.stderr
        pictures = [np.asarray(Image.open(tmp_path / "pictures" / f"{seed}.png")) for seed in seeds]
        return np.stack([picture.reshape(*picture.shape[:2], -1) for picture in pictures])

    return call


def export(model, path, sampler, num_steps=6, **options):
    model.export(path, sampler=sampler, num_steps=num_steps, parity_seeds=1, verbose=False, **options)
    return path


def assert_close(pictures, expected):
    """Equal within a grey level."""
    assert pictures.shape == expected.shape
    assert np.abs(pictures.astype(int) - expected).max() <= 1


def photo_of(model, path, **options):
    """A picture of the model, which is also written as a PNG."""
    picture = model.generate([9], "ddim", 6, **options)[0]
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(path)
    return picture


SEEDS = [-2, 0, 1, 2, 3, 2**31 - 1]


@pytest.mark.parametrize("precision", ["float32", pytest.param("int8", marks=pytest.mark.slow)])
def test_pictures_are_those_of_python(paint, exported, trained_like, precision):
    path = exported(precision)
    pictures = paint(path, SEEDS, "--threads=1")
    np.testing.assert_array_equal(pictures, list(edge.Generator(path).generate(SEEDS)))
    if precision == "float32":
        assert_close(pictures, trained_like.generate(SEEDS, "ancestral", 6))


def test_a_grid_and_the_lines_are_those_of_python(cpp, exported, tmp_path):
    path = exported(sampler="heun")
    result = cpp(path, "--seeds", "4-8", "--out", tmp_path / "grid.png")
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "grid.png") as image:
        grid = np.asarray(image)
    script = [sys.executable, ROOT / "export" / "edge" / "generate.py", path]
    command = [*script, "--seeds=4-8", f"--out={tmp_path / 'python.png'}"]
    expected = subprocess.run(command, capture_output=True, text=True)
    with Image.open(tmp_path / "python.png") as image:
        np.testing.assert_array_equal(grid, np.asarray(image))
    assert result.stdout == expected.stdout.replace("python.png", "grid.png")
    assert re.fullmatch(r"\n55/55 network calls, \d+\.\d\d ms a call, \d+\.\d s\n", result.stderr)


def test_one_seed_makes_one_picture(cpp, exported, trained_like, tmp_path):
    result = cpp(exported(), "--seed", "7", "--out", "picture.png")
    assert result.stdout == "1 picture in picture.png, each in 6 steps of ancestral sampling\n"
    with Image.open(tmp_path / "picture.png") as image:
        assert_close(np.asarray(image), kddpm.images.grid(trained_like.generate([7], "ancestral", 6))[..., 0])


def test_the_pictures_of_the_description_are_painted(paint, exported, described):
    (vector,) = described(exported())["vectors"]
    with Image.open(io.BytesIO(base64.b64decode(vector["picture"]))) as image:
        assert_close(paint(exported(), [vector["seed"]])[0, ..., 0], np.asarray(image))


def test_labels_choose_the_class(paint, exported, trained_like_with_classes):
    for flags, labels in ([], None), (["--labels=2"], [2, 2, 2]), (["--labels=0-2"], [0, 1, 2]):
        expected = trained_like_with_classes.generate([-4, 5, 6], "ancestral", 6, labels=labels)
        assert_close(paint(exported(classes=True), [-4, 5, 6], *flags), expected)


def test_a_sampler_with_a_memory_paints_what_keras_paints(paint, exported, trained_like):
    pictures = paint(exported(sampler="dpm_solver"), [4, -6])
    assert_close(pictures, trained_like.generate([4, -6], "dpm_solver", 6))


@pytest.fixture(scope="module")
def quick():
    """A model that Keras traces in no time."""
    return one_conv_model({"image_shape": (8, 8, 1)})


@pytest.fixture(scope="module")
def free(quick, tmp_path_factory):
    """An export with the least that can be walked in any steps; the side file says by which sampler."""
    path = tmp_path_factory.mktemp("free") / "m.tflite"
    return export(quick, path, "ancestral", signatures=["denoise", "noise"])


@pytest.fixture
def spoiled(free, tmp_path):
    """A copy of that export, whose side file a test may change."""
    for file in (free, free.with_suffix(".json")):
        shutil.copy(file, tmp_path)
    return tmp_path / "m.tflite"


def use(model, sampler):
    """Writes another sampler into the side file; its steps stay those of the file."""
    options = {key: value for key, value in dataclasses.asdict(sampler).items() if value is not None}
    describe(model, sampler={"num_steps": 6, "variance": "small", **options, "name": samplers.name_of(sampler)})


def test_a_last_batch_is_filled_up(paint, cpp, tmp_path):
    model = one_conv_model()
    path = export(model, tmp_path / "m.tflite", "ancestral", batch_size=4)
    assert_close(paint(path, range(6)), model.generate(range(6), "ancestral", 6))
    assert_close(paint(path, range(6), "--num_steps=3"), model.generate(range(6), "ancestral", 3))


def test_generate_alone_is_enough(paint, cpp, tmp_path):
    model = one_conv_model()
    path = export(model, tmp_path / "m.tflite", "ddim", batch_size=2, signatures=["generate"])
    assert_close(paint(path, range(3)), model.generate(range(3), "ddim", 6))
    assert "--num_steps needs the signatures denoise and noise. Received: a file without" in (
        cpp(path, "--num_steps=3").stderr
    )


def test_a_file_for_gpus_is_walked_too(paint, tmp_path):
    """Its `step` gets the noise as an input."""
    model = one_conv_model()
    names = ["start", "step", "finish", "noise"]
    path = export(model, tmp_path / "m.tflite", "ancestral", target="gpu", signatures=names)
    assert_close(paint(path, [3, -9]), model.generate([3, -9], "ancestral", 6))


@pytest.mark.parametrize("learned", [False, True])
def test_denoise_and_noise_are_enough(paint, tmp_path, learned):
    choices = {"variance": "learned", "weighting": "hybrid"} if learned else {}
    model = one_conv_model({"out_channels": 4} if learned else {}, **choices)
    sampler = samplers.Ancestral("learned") if learned else samplers.DPMSolver(clip="dynamic")
    path = export(model, tmp_path / "m.tflite", sampler, signatures=["denoise", "noise"])
    assert_close(paint(path, [3, -9]), model.generate([3, -9], sampler, 6))


SAMPLERS = [
    samplers.DDIM(),
    samplers.DDIM(eta=0.7, clip="dynamic"),
    samplers.Ancestral(),
    samplers.Ancestral("large", clip=False),
]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_other_steps_are_those_of_keras(paint, spoiled, quick, sampler):
    use(spoiled, sampler)
    for steps in (1, 2, 7, 20):
        assert_close(paint(spoiled, [3, -9], f"--num_steps={steps}"), quick.generate([3, -9], sampler, steps))


@pytest.mark.parametrize("sampler", SAMPLERS[1:3])
def test_variations_are_those_of_keras(paint, spoiled, quick, tmp_path, sampler):
    use(spoiled, sampler)
    picture = photo_of(quick, tmp_path / "photo.png")
    flags = ["--variations=photo.png", "--num_steps=13"]
    for strength in (0, 0.1, 0.5, 1):
        expected = quick.variations(picture, strength, [1, 2], sampler=sampler, num_steps=13)
        assert_close(paint(spoiled, [1, 2], *flags, f"--strength={strength}"), expected)
    expected = quick.variations(picture, 0.5, [1, 2], sampler=sampler, num_steps=13)
    assert_close(paint(spoiled, [1, 2], *flags), expected)
    np.testing.assert_array_equal(paint(spoiled, [1], *flags, "--strength=0")[0], picture)


@pytest.mark.parametrize("options", [{}, {"num_steps": 1}, {"num_steps": 15}, {"jump_length": 2, "resamplings": 3}])
def test_inpainting_is_that_of_keras(paint, exported, trained_like_with_classes, tmp_path, options):
    model, mask = trained_like_with_classes, np.zeros((8, 8), bool)
    mask[2:, :5] = True
    picture = photo_of(model, tmp_path / "photo.png", labels=[1])
    Image.fromarray(mask).save(tmp_path / "mask.png")
    flags = [f"--{name}={value}" for name, value in options.items()]
    pictures = paint(exported(classes=True), [1, 2], "--inpaint=photo.png", "--mask=mask.png", "--labels=2", *flags)
    expected = model.inpaint(picture, mask, [1, 2], labels=[2, 2], **{"num_steps": 6, **options})
    assert_close(pictures, expected)
    np.testing.assert_array_equal(pictures[:, mask], np.stack([picture[mask]] * 2))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
def test_photos_are_read_as_grey_over_white(paint, free, tmp_path, mode):
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    image = Image.fromarray(values).convert(mode)
    image.save(tmp_path / "photo.png")
    rgba = image.convert("RGBA")
    white = Image.composite(rgba.convert("RGB"), Image.new("RGB", (8, 8), "white"), rgba.getchannel("A"))
    pictures = paint(free, [1], "--variations=photo.png", "--strength=0")
    assert_close(pictures[0, ..., 0], np.asarray(white.convert("L")))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_photos_are_upright(paint, free, tmp_path, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).convert(mode)
    for orientation in range(10):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        image.save(tmp_path / "photo.png", exif=exif)
        with Image.open(tmp_path / "photo.png") as photo:
            expected = np.asarray(ImageOps.exif_transpose(photo).convert("L"))
        assert_close(paint(free, [1], "--variations=photo.png", "--strength=0")[0, ..., 0], expected)


@pytest.mark.parametrize(
    ("name", "data", "turns"),
    [
        ("gAMA", GAMMA, 0),
        ("iCCP", b"profile\0\0" + zlib.compress(b"none"), 0),
        ("eXIf", QUARTER_TURN, 3),
        ("eXIf", QUARTER_TURN[:4] + b"\xff" * 4, 0),
        ("eXIf", b"", 0),
    ],
)
def test_what_a_photo_says_of_itself(paint, free, tmp_path, name, data, turns):
    """Its orientation counts, its gamma and profile do not."""
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(values).save(tmp_path / "photo.png")
    (tmp_path / "photo.png").write_bytes(with_chunk((tmp_path / "photo.png").read_bytes(), name, data))
    pictures = paint(free, [1], "--variations=photo.png", "--strength=0")
    np.testing.assert_array_equal(pictures[0, ..., 0], np.rot90(values, turns))


def test_a_photo_of_another_size_is_refused_by_its_header(cpp, free, tmp_path):
    png = b"\x89PNG\r\n\x1a\n"
    for name, data in ("IHDR", struct.pack(">IIBBBBB", 20000, 30000, 8, 2, 0, 0, 0)), ("IDAT", b"no pixels"):
        png = with_chunk(png, name, data, behind=len(png))
    (tmp_path / "photo.png").write_bytes(png)
    error = "--variations must be 8 x 8 pixels, as the model paints. Received: 30000 x 20000\n"
    assert cpp(free, "--variations=photo.png").stderr == f"generate: {error}"


@pytest.mark.parametrize("flags", [["--variations=photo.png"], ["--inpaint=photo.png", "--mask=photo.png"]])
def test_the_last_line_of_an_edit_is_that_of_python(cpp, free, tmp_path, flags):
    Image.new("L", (8, 8), 255).save(tmp_path / "photo.png")
    flags = [free, *flags, "--seeds=1", "--num_steps=5", "--out=grid.png"]
    script = [sys.executable, ROOT / "export" / "edge" / "generate.py"]
    expected = subprocess.run([*script, *flags], capture_output=True, text=True, cwd=tmp_path)
    assert cpp(*flags).stdout == expected.stdout != ""
