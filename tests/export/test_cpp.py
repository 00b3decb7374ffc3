"""export/cpp, built from nothing and run as a program."""

import base64
import dataclasses
import hashlib
import io
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
from export.edge import generator as edge
from kddpm.sampling import samplers

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def run(cpp_program, tmp_path):
    """Runs the client on the flags and returns what it did."""

    def call(*flags):
        return subprocess.run([cpp_program, *map(str, flags)], capture_output=True, text=True, cwd=tmp_path)

    return call


@pytest.fixture
def paint(run, tmp_path):
    """The pictures that the client paints, uint8 (N, H, W, C)."""

    def call(model, seeds, *flags):
        result = run(model, f"--seeds={','.join(map(str, seeds))}", "--out=pictures", *flags)
        assert result.returncode == 0, result.stderr
        pictures = [np.asarray(Image.open(tmp_path / "pictures" / f"{seed}.png")) for seed in seeds]
        return np.stack([picture.reshape(*picture.shape[:2], -1) for picture in pictures])

    return call


@pytest.fixture
def model(exported, tmp_path):
    """A copy of an export that a test may spoil."""
    for file in (exported(), exported().with_suffix(".json")):
        shutil.copy(file, tmp_path)
    return tmp_path / exported().name


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


def test_a_grid_and_the_lines_are_those_of_python(run, exported, tmp_path):
    path = exported(sampler="heun")
    result = run(path, "--seeds", "4-8", "--out", tmp_path / "grid.png")
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


def test_one_seed_makes_one_picture(run, exported, trained_like, tmp_path):
    result = run(exported(), "--seed", "7", "--out", "picture.png")
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


def test_a_last_batch_is_filled_up(paint, run, tmp_path):
    model = one_conv_model()
    path = export(model, tmp_path / "m.tflite", "ancestral", batch_size=4)
    assert_close(paint(path, range(6)), model.generate(range(6), "ancestral", 6))
    assert_close(paint(path, range(6), "--num_steps=3"), model.generate(range(6), "ancestral", 3))


def test_generate_alone_is_enough(paint, run, tmp_path):
    model = one_conv_model()
    path = export(model, tmp_path / "m.tflite", "ddim", batch_size=2, signatures=["generate"])
    assert_close(paint(path, range(3)), model.generate(range(3), "ddim", 6))
    assert_refused(
        run(path, "--num_steps=3"), "--num_steps needs the signatures denoise and noise. Received: a file without"
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


def altered(content):
    return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda content: content[:-100], r"must be the file that tiny_float32\.json describes: \d+ bytes of another"),
        (altered, r"\d+ bytes, truncated, altered or of another export"),
        (lambda content: b"hello", r"cannot be run by LiteRT: Model provided must have at least"),
    ],
)
def test_a_file_that_is_not_the_export_ends_in_one_line(run, model, tmp_path, change, error):
    model.write_bytes(change(model.read_bytes()))
    if "LiteRT" in error:
        describe(model, sha256=hashlib.sha256(b"hello").hexdigest())
    assert_refused(run(model, "--out=new/grid.png"), rf"\S+tiny_float32\.tflite .*{error}")
    assert not (tmp_path / "new").exists()


def describe(model, **changes):
    side = model.with_suffix(".json")
    side.write_text(json.dumps({**json.loads(side.read_text()), **changes}))


def assert_refused(result, error):
    assert result.returncode == 1
    assert re.fullmatch(rf"generate: {error}[^\n]*\n", result.stderr)


SOMETHING_ELSE = "must be the description that the export wrote"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"description_version": 2}, r"must have description_version 3, the one that generate reads\. Received: 2"),
        ({"description_version": "3"}, 'must have description_version 3, .* Received: "3"'),
        ({"description_version": None}, "must have description_version 3, .* Received: null"),
        (
            {"min_runtime_version": "99.1.0"},
            r"needs TensorFlow Lite 99\.1\.0 or newer\. Received: LiteRT 2\.3",
        ),
        ({"min_runtime_version": "2.13"}, SOMETHING_ELSE),
        ({"min_runtime_version": None}, SOMETHING_ELSE),
        ({"network_calls": 0}, SOMETHING_ELSE),
        ({"network_calls": True}, SOMETHING_ELSE),
        ({"sampler": {"name": "ddim"}}, SOMETHING_ELSE),
        ({"image_shape": [8, 8]}, SOMETHING_ELSE),
        ({"state_channels": "x"}, SOMETHING_ELSE),
        ({"num_classes": "x"}, SOMETHING_ELSE),
        ({"batch_size": 2**40}, SOMETHING_ELSE),
        ({"state_channels": 2}, r"must describe tiny_float32\.tflite\. Received: other batches, shapes or classes"),
        ({"batch_size": 2}, "Received: other batches, shapes or classes"),
        ({"num_classes": 10}, "Received: other batches, shapes or classes"),
    ],
)
def test_a_side_file_of_something_else_ends_in_one_line(run, model, changes, error):
    describe(model, **changes)
    assert_refused(run(model), rf"\S+tiny_float32\.\S+ .*{error}")


@pytest.mark.parametrize("content", ["", "[3]", '{"description_version": 3', '{"description_version": 3}', None])
def test_a_side_file_without_a_description_ends_in_one_line(run, model, content):
    side = model.with_suffix(".json")
    side.unlink() if content is None else side.write_text(content)
    assert_refused(run(model), r"\S+json is missing: an export is" if content is None else rf"\S+json {SOMETHING_ELSE}")


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--seeds=two"], r"--seeds must look like 0-15 or 1,5,10-20\. Received: 'two'"),
        (["--seeds=9-3"], "--seeds must look like"),
        (["--seeds=" + "9" * 5000], "--seeds must look like"),
        (["--seeds=2147483648"], r"--seeds must fit int32, -2147483648 to 2147483647\. Received: 2147483648"),
        (["--seeds"], "--seeds needs a value"),
        (["--seed=1", "--threads=0"], r"--threads must lie in 1 \.\. 256\. Received: 0"),
        (["--threads=two"], r"--threads must be an integer\. Received: 'two'"),
        (["--labels=1"], "--labels were given, but the model has no classes"),
        (["--out=grid.jpg"], r"--out must end in \.png, or be a folder\. Received: grid\.jpg"),
        (["--out=folder.png"], r"--out must be a \.png file, or a folder\. Received: folder\.png, which is there"),
        (["--out=file/grid.png"], "--out must be in a folder that can be written to"),
        (["--num_steps=0"], r"--num_steps must lie in 1 \.\. 20\. Received: 0"),
        (["--num_steps=21"], r"--num_steps must lie in 1 \.\. 20\. Received: 21"),
        (["--num_steps=3e9"], "--num_steps must be an integer"),
        (["--num_steps=3000000000"], "--num_steps must be an integer"),
        (["--colour=1"], r"--help lists the flags\. Received: --colour"),
        (["--strength=0.5"], r"--strength belongs to --variations\. Received: none"),
        (["--variations=photo.png", "--mask=photo.png"], r"--mask belongs to --inpaint\. Received: none"),
        (["--jump_length=5"], r"--jump_length belongs to --inpaint\. Received: none"),
        (["--inpaint=photo.png"], "--inpaint needs --mask, an image file"),
        (["--inpaint=photo.png", "--variations=photo.png"], "--variations and --inpaint exclude each other"),
        (["--variations=photo.png", "--strength=1.5"], r"--strength must lie in \[0, 1\]\. Received: 1\.5"),
        (["--variations=photo.png", "--strength=nan"], r"--strength must lie in \[0, 1\]\. Received: nan"),
        (["--variations=none.png"], r"--variations must be a PNG file\. Received: none\.png \(no such file\)"),
        (["--variations=file"], r"--variations must be a PNG file\. Received: file \(Not a PNG file\)"),
        (["--variations=wide.png"], r"--variations must be 8 x 8 pixels, .* Received: 8 x 9"),
        (["--inpaint=photo.png", "--mask=wide.png"], r"--mask must be 8 x 8 pixels, .* Received: 8 x 9"),
        (["--inpaint=photo.png", "--mask=grey.png"], r"--mask must have white, above 127, .* Received: at most 100"),
        (["--inpaint=photo.png", "--mask=photo.png", "--jump_length=6"], r"--jump_length must be at least 1, and less"),
        (
            ["--inpaint=photo.png", "--mask=photo.png", "--resamplings=0"],
            r"--resamplings must be at least 1\.",
        ),
    ],
)
def test_flags_that_cannot_be_end_in_one_line(run, exported, tmp_path, flags, error):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("no picture")
    for name, size, grey in ("photo", (8, 8), 255), ("wide", (9, 8), 255), ("grey", (8, 8), 100):
        Image.new("L", size, grey).save(tmp_path / f"{name}.png")
    assert_refused(run(exported(), *flags), error)
    assert not (tmp_path / "grid.png").exists()


def test_what_a_file_does_not_allow_ends_in_one_line(run, spoiled, described, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "photo.png")
    describe(spoiled, sampler={"name": "heun", "num_steps": 6, "clip": True})
    of_heun = r"a file of the sampler ancestral or ddim\. Received: one of heun"
    assert_refused(run(spoiled, "--num_steps=3"), f"--num_steps needs {of_heun}")
    assert_refused(run(spoiled, "--variations=photo.png"), f"variations and inpainting need {of_heun}")
    for variance, received in ("learned", "learned"), ([0.1] * 6, "one for each step"):
        describe(spoiled, sampler={"name": "ancestral", "num_steps": 6, "clip": True, "variance": variance})
        error = rf"--num_steps needs a file with variance small or large\. Received: {received}"
        assert_refused(run(spoiled, "--num_steps=3"), error)
    alpha_bars = described(spoiled)["schedule"]["alpha_bars"]
    for changes in {"schedule": {"timesteps": [3], "alpha_bars": alpha_bars}}, {"schedule": {}}, {"steps": []}:
        describe(spoiled, **changes)
        assert_refused(run(spoiled), rf"(\S+|MODEL's .)json {SOMETHING_ELSE}")


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--labels=3"], r"--labels must lie in 0 \.\. 2\. Received: 3 to 3"),
        (["--labels=0,1"], r"--labels must be one a seed, or one\. Received: 2 for 3 seeds"),
        (["--variations=photo.png"], "--labels are needed here: the model has 3 classes"),
    ],
)
def test_labels_that_cannot_be_end_in_one_line(run, exported, tmp_path, flags, error):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    assert_refused(run(exported(classes=True), "--seeds=1-3", *flags), error)


def test_help_names_every_flag(run):
    result = run("--help")
    assert result.returncode == 0
    for flag in ("seeds", "labels", "out", "threads", "num_steps", "variations", "strength", "inpaint", "mask"):
        assert f"  --{flag} " in result.stdout
