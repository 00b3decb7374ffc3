"""export/cpp: what cannot be painted ends in one line that names it, and what Ctrl-C leaves is whole."""

import contextlib
import hashlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess

import pytest
from helpers.side_files import WRONG, describe, with_entry
from PIL import Image


@pytest.fixture
def model(exported, tmp_path):
    """A copy of an export that a test may spoil."""
    for file in (exported(), exported().with_suffix(".json")):
        shutil.copy(file, tmp_path)
    return tmp_path / exported().name


def assert_refused(result, error):
    assert result.returncode == 1
    assert re.fullmatch(rf"generate: {error}[^\n]*\n", result.stderr)


def altered(content):
    return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda content: content[:-100], r"must be the file that tiny_float32\.json describes: \d+ bytes of another"),
        (altered, r"\d+ bytes, truncated, altered or of another export"),
    ],
)
def test_a_file_that_is_not_the_export_ends_in_one_line(cpp, model, tmp_path, change, error):
    model.write_bytes(change(model.read_bytes()))
    assert_refused(cpp(model, "--out=new/grid.png"), rf"\S+tiny_float32\.tflite .*{error}")
    assert not (tmp_path / "new").exists()


def test_a_file_that_its_hash_does_not_betray_ends_in_one_line(cpp, model):
    """One that was truncated or altered before its side file was written."""
    content = model.read_bytes()
    lengths = [0, 5, 7, 64, *range(len(content) // 6, len(content), len(content) // 6), len(content) - 1]
    for length in lengths:
        replace(model, content[:length])
        assert_refused(cpp(model), r"\S+tiny_float32\.tflite cannot be run by LiteRT: ")
    for at in range(0, 2000, 100):  # some of which say nothing to LiteRT
        replace(model, content[:at] + b"\xff\xff\xff\x7f" + content[at + 4 :])
        result = cpp(model)
        if result.returncode != 0:
            assert_refused(result, r"\S+tiny_float32\.\S+ (cannot be run by LiteRT: |must describe )")


def replace(model, content):
    model.write_bytes(content)
    describe(model, sha256=hashlib.sha256(content).hexdigest())


SOMETHING_ELSE = "must be the description that the export wrote"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"description_version": 2}, r"must have description_version 3, the one that generate reads\. Received: 2"),
        ({"description_version": "3"}, 'must have description_version 3, .* Received: "3"'),
        ({"description_version": None}, "must have description_version 3, .* Received: null"),
        ({"min_runtime_version": "99.1.0"}, r"needs TensorFlow Lite 99\.1\.0 or newer\. Received: LiteRT 2\.3"),
        ({"network_calls": 7}, r"must have steps\.t, a list of 7\. Received: a list of 6"),
        ({"sampler": {"name": "ddim"}}, r"must have sampler\.num_steps, a whole number of at least 1\. Received: none"),
        ({"sampler": []}, r"must have sampler\.name, a text\. Received: none"),
        ({"schedule": 3}, r"must have schedule\.alpha_bars, a list of numbers\. Received: none"),
        ({"steps": None}, r"must have steps\.t, a list of 6\. Received: none"),
        ({"state_channels": 2}, r"must describe tiny_float32\.tflite\. Received: other batches, shapes or classes"),
        ({"image_shape": [2**31 - 1] * 3}, "Received: other batches, shapes or classes"),
        ({"batch_size": 2}, "Received: other batches, shapes or classes"),
        ({"num_classes": 10}, "Received: other batches, shapes or classes"),
    ],
)
def test_a_side_file_of_something_else_ends_in_one_line(cpp, model, changes, error):
    describe(model, **changes)
    assert_refused(cpp(model), rf"\S+tiny_float32\.\S+ .*{error}")


@pytest.mark.parametrize("name", [*WRONG, "sampler.variance", "steps.from_memory", "steps.log_variance_low"])
def test_an_entry_that_no_export_writes_is_named(cpp, model, described, name):
    about = described(model)
    if name == "sampler.eta":
        about["sampler"]["name"] = "ddim"
    partner = {"steps.from_memory": "steps.memory_from_x0", "steps.log_variance_low": "steps.log_variance_high"}
    for value in WRONG.get(name, [[1.0] * 6] if name in partner else [None, "none", 3, [0.1, "x"]]):
        model.with_suffix(".json").write_text(json.dumps(with_entry(about, name, value)))
        error = rf"\S+tiny_float32\.json must have {re.escape(partner.get(name, name))}(\.\d)?, .+\. Received: "
        assert_refused(cpp(model), error)


@pytest.mark.parametrize("content", ["", "[3]", "[" * 100_000, '{"description_version": 3', None])
def test_a_side_file_without_a_description_ends_in_one_line(cpp, model, content):
    side = model.with_suffix(".json")
    side.unlink() if content is None else side.write_text(content)
    assert_refused(cpp(model), r"\S+json is missing: an export is" if content is None else rf"\S+json {SOMETHING_ELSE}")


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--seeds=two"], r"--seeds must look like 0-15 or 1,5,10-20\. Received: 'two'"),
        (["--seeds=9-3"], "--seeds must look like"),
        (["--seeds=" + "9" * 5000], "--seeds must look like"),
        (["--seeds=2147483648"], r"--seeds must fit int32, -2147483648 to 2147483647\. Received: 2147483648"),
        (["--seeds"], "--seeds needs a value"),
        (["--seed=1", "--threads=0"], r"--threads must lie in 1 \.\. 256\. Received: 0"),
        (["--threads=two"], r"--threads must be an integer of at most 9 digits\. Received: 'two'"),
        (["--labels=1"], "--labels were given, but the model has no classes"),
        (["--out=grid.jpg"], r"--out must end in \.png, or be a folder\. Received: grid\.jpg"),
        (["--out=folder.png"], r"--out must be a \.png file, or a folder\. Received: folder\.png, which is there"),
        (["--out=file/grid.png"], "--out must be in a folder that can be written to"),
        (["--num_steps=0"], r"--num_steps must lie in 1 \.\. 20\. Received: 0"),
        (["--num_steps=21"], r"--num_steps must lie in 1 \.\. 20\. Received: 21"),
        (["--num_steps=3e9"], "--num_steps must be an integer"),
        (["--num_steps=3000000000"], "--num_steps must be an integer"),
        (["--colour=1"], r"--help lists the flags\. Received: --colour"),
        (["--seeds=0-2147483647"], r"--seeds must be at most 100000 numbers in all\. Received: 2147483648"),
        (["--seeds=0-60000,1-40000"], r"--seeds must be at most 100000 numbers in all\. Received: 100001"),
        (["--out=nowhere"], r"--out must not be a link to nothing\. Received: nowhere"),
        (["--out=nowhere/grid.png"], r"--out must be in a folder .* Received: nowhere/grid\.png \("),
        (["--strength=0.5"], r"--strength belongs to --variations\. Received: none"),
        (["--variations=photo.png", "--mask=photo.png"], r"--mask belongs to --inpaint\. Received: none"),
        (["--jump_length=5"], r"--jump_length belongs to --inpaint\. Received: none"),
        (["--inpaint=photo.png"], "--inpaint needs --mask, an image file"),
        (["--inpaint=photo.png", "--variations=photo.png"], "--variations and --inpaint exclude each other"),
        (["--variations=photo.png", "--strength=1.5"], r"--strength must lie in \[0, 1\]\. Received: 1\.5"),
        (["--variations=photo.png", "--strength=nan"], r"--strength must be a number such as 0\.5\. Received: 'nan'"),
        (["--variations=none.png"], r"--variations must be a PNG file\. Received: none\.png \(no such file\)"),
        (["--variations=file"], r"--variations must be a PNG file\. Received: file \(Not a PNG file\)"),
        (["--variations=wide.png"], r"--variations must be 8 x 8 pixels, .* Received: 8 x 9"),
        (["--inpaint=photo.png", "--mask=wide.png"], r"--mask must be 8 x 8 pixels, .* Received: 8 x 9"),
        (["--inpaint=photo.png", "--mask=grey.png"], r"--mask must have white, above 127, .* Received: at most 100"),
        (["--inpaint=photo.png", "--mask=photo.png", "--jump_length=6"], r"--jump_length must be at least 1, and less"),
        (["--inpaint=photo.png", "--mask=photo.png", "--resamplings=0"], r"--resamplings must lie in 1 \.\. 1000\."),
        (["--inpaint=photo.png", "--mask=photo.png", "--resamplings=1001"], r"--resamplings must .* Received: 1001"),
    ],
)
def test_flags_that_cannot_be_end_in_one_line(cpp, exported, tmp_path, flags, error):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("no picture")
    (tmp_path / "nowhere").symlink_to("is/no/such/folder")
    for name, size, grey in ("photo", (8, 8), 255), ("wide", (9, 8), 255), ("grey", (8, 8), 100):
        Image.new("L", size, grey).save(tmp_path / f"{name}.png")
    assert_refused(cpp(exported(), *flags), error)
    assert not (tmp_path / "grid.png").exists()


def test_what_a_file_does_not_allow_ends_in_one_line(cpp, model, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "photo.png")
    describe(model, sampler={"name": "heun", "num_steps": 6, "clip": True})
    of_heun = r"a file of the sampler ancestral or ddim\. Received: one of heun"
    assert_refused(cpp(model, "--num_steps=3"), f"--num_steps needs {of_heun}")
    assert_refused(cpp(model, "--variations=photo.png"), f"variations and inpainting need {of_heun}")
    for variance, received in ("learned", "learned"), ([0.1] * 6, "one for each step"):
        describe(model, sampler={"name": "ancestral", "num_steps": 6, "clip": True, "variance": variance})
        error = rf"--num_steps needs a file with variance small or large\. Received: {received}"
        assert_refused(cpp(model, "--num_steps=3"), error)


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--labels=3"], r"--labels must lie in 0 \.\. 2\. Received: 3 to 3"),
        (["--labels=0,1"], r"--labels must be one a seed, or one\. Received: 2 for 3 seeds"),
        (["--variations=photo.png"], "--labels are needed here: the model has 3 classes"),
    ],
)
def test_labels_that_cannot_be_end_in_one_line(cpp, exported, tmp_path, flags, error):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    assert_refused(cpp(exported(classes=True), "--seeds=1-3", *flags), error)


def test_help_names_every_flag(cpp):
    result = cpp("--help")
    assert result.returncode == 0
    for flag in ("seeds", "labels", "out", "threads", "num_steps", "variations", "strength", "inpaint", "mask"):
        assert f"  --{flag} " in result.stdout


@pytest.mark.parametrize(
    ("out", "sent", "status", "error"),
    [
        ("grid.png", signal.SIGINT, 130, "interrupted; nothing written"),
        ("pictures", signal.SIGINT, 130, r"interrupted; (nothing|1 picture|\d+ pictures) written in pictures"),
        ("grid.png", signal.SIGSEGV, 1, r"\S+tiny_float32\.tflite cannot be run by LiteRT: it broke down on it"),
    ],
)
def test_what_ends_the_painting_is_said_and_what_is_written_is_whole(
    cpp_program, exported, tmp_path, out, sent, status, error
):
    terminal, stderr = pty.openpty()
    command = [cpp_program, exported(), "--seeds=0-99999", f"--out={out}"]
    with subprocess.Popen(command, stderr=stderr, cwd=tmp_path) as process:
        os.close(stderr)
        os.read(terminal, 1)  # the first call of the network
        process.send_signal(sent)
        shown = b""
        with contextlib.suppress(OSError):  # of a terminal that nobody writes to any more
            while chunk := os.read(terminal, 4096):
                shown += chunk
    os.close(terminal)
    assert process.returncode == status
    said = re.search(rf"generate: {error}\r\n$", shown.decode())
    assert said, shown[-200:]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == (int(number[0]) if (number := re.search(r"\d+(?= picture)", said[0])) else 0)
    for file in files:
        Image.open(file).verify()
