"""export/edge/flags.py: what flags may say, checked before the work; and how a command ends."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import pytest
from helpers.places import ROOT
from packaging.requirements import Requirement
from PIL import Image

from export.edge import command, flags, pictures

VECTORS = ROOT / "export" / "vectors.tflite"


def refused(error):
    return pytest.raises(flags.InputError, match=rf"^{error}$")


def test_numbers():
    assert flags.numbers("--seeds", "0-3, 7,-2--1") == [0, 1, 2, 3, 7, -2, -1]
    assert len(flags.numbers("--seeds", "1-99999,5")) == flags.MOST_NUMBERS


@pytest.mark.parametrize("text", ["", "1_0", "1_0-20", "٣", "+1", "1.0", "0x1", "1,,2", "3-1", "1-", "9" * 5000])
def test_what_is_no_number_is_refused(text):
    with refused(r"--seeds must look like 0-15 or 1,5,10-20\. Received: '.{0,100}"):
        flags.numbers("--seeds", text)
    with refused(r"--threads must be an integer of at most 9 digits\. Received: '.{0,100}"):
        flags.integer("--threads", text)


@pytest.mark.parametrize("text", ["", "1_0.5", "nan", "inf", "0,5", " 1", "٣.٣", "1e", "."])
def test_what_is_no_decimal_is_refused(text):
    with refused(r"--strength must be a number such as 0\.5\. Received: '.*'"):
        flags.decimal("--strength", text)


def test_decimals():
    assert [flags.decimal("--strength", text) for text in ("0.5", "1", "-.5", "1.", "5e-1")] == [0.5, 1, -0.5, 1, 0.5]


@pytest.mark.parametrize(
    ("text", "total"), [("0-2147483647", 2**31), ("0-99999,7", 100_001), ("-2147483648-2147483647", 2**32)]
)
def test_numbers_are_counted_before_they_are_listed(text, total):
    """Listed, they would take minutes and all of the memory."""
    with refused(rf"--seeds must be at most 100000 numbers in all\. Received: {total}"):
        flags.numbers("--seeds", text)


@pytest.mark.parametrize(
    ("out", "error"),
    [
        ("", r"--out must be a path\. Received: ''"),
        ("grid.jpg", r"--out must end in \.png, or be a folder\. Received: grid\.jpg"),
        ("{tmp}/file", r"--out must be a \.png file, or a folder\. Received: \S+, which is there and is not"),
        ("{tmp}/link", r"--out must not be a link to nothing\. Received: \S+/link"),
        ("{tmp}/link.png", r"--out must not be a link to nothing\. Received: \S+/link\.png"),
        ("{tmp}/link/x.png", r"--out must be in a folder that can be written to\. Received: \S+/link/x\.png \(.+\)"),
        ("{tmp}/link/deep/out", r"--out must be in a folder that can be written to\. .*"),
        ("{tmp}/file/out", r"--out must be in a folder that can be written to\. .* \(\S+/file: Not a directory\)"),
        ("{tmp}/" + 300 * "n" + ".png", r"--out must be in a folder .* File name too long\)"),
        ("/proc/none/grid.png", r"--out must be in a folder that can be written to\. .*"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(tmp_path, out, error):
    (tmp_path / "file").touch()
    for link in ("link", "link.png"):
        (tmp_path / link).symlink_to(tmp_path / "nothing")
    with refused(error):
        flags.output(out.format(tmp=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "link.png"]


def test_a_folder_without_permission_is_refused():
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:  # not pytest's, where nobody else may look
        os.chmod(folder, 0o555)
        if user == 0:
            os.seteuid(65534)  # root writes everywhere
        try:
            for out in ("grid.png", "folder", "deep/folder"):
                with refused(rf"--out must be in a folder .* \({folder}: Permission denied\)"):
                    flags.output(f"{folder}/{out}")
        finally:
            os.seteuid(user)


def test_an_output_that_can_be_written_is_not_made_yet(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for out in (
        "grid.png",
        "folder",
        "deep/down/grid.png",
        "there",
        "there/folder",
        "link/grid.png",
        "n" * 250 + ".png",
    ):
        assert flags.output(str(tmp_path / out)) == tmp_path / out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]
    assert not list((tmp_path / "there").iterdir())
    pictures.save(tmp_path / ("n" * 250 + ".png"), np.zeros((1, 1, 1), np.uint8))


def test_no_warning_of_pillow_reaches_the_terminal(tmp_path, monkeypatch):
    """Of many pixels, and of metadata that are broken; more pixels than Pillow opens are refused in a line."""
    image = Image.new("RGB", (30, 30), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "photo.jpg", exif=exif.tobytes()[:-10])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
        assert pictures.opened("--variations", tmp_path / "photo.jpg", [8, 8, 1]).shape == (8, 8, 1)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
        with refused(r"--variations must be an image file\. Received: \S+photo\.jpg \(Image size \(900 pixels\) .*\)"):
            pictures.opened("--variations", tmp_path / "photo.jpg", [8, 8, 1])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (flags.InputError("a name\nwith a line"), "x.py: a name with a line"),
        (OSError(28, "No space left on device"), "x.py: [Errno 28] No space left on device"),
        (MemoryError(), "x.py: MemoryError"),
    ],
)
def test_errors_end_in_a_line(error, line):
    with pytest.raises(SystemExit) as end, flags.ending_in_a_line("x.py"):
        raise error
    assert end.value.code == line


@pytest.mark.parametrize("out", ["pictures", "grid.png"])
def test_ctrl_c_leaves_whole_pictures(tmp_path, out):
    """The pictures of a folder that were ready, or nothing, and one line."""
    (tmp_path / "pictures").mkdir()
    code = [sys.executable, ROOT / "export" / "edge" / "generate.py", VECTORS, "--seeds=0-99999", f"--out={out}"]
    with subprocess.Popen(code, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            if out == "pictures":
                while not (tmp_path / "pictures" / "2.png").exists():
                    assert process.poll() is None
                    time.sleep(0.01)
            else:
                process.stderr.readline()  # LiteRT's own, of the delegate
            process.send_signal(signal.SIGINT)
            printed, said = process.communicate(timeout=60)
        finally:
            process.kill()
    written = sorted((tmp_path / "pictures").iterdir())
    said = [line for line in said.splitlines() if not line.startswith("INFO")]
    assert process.returncode == 130 and printed == "" and not (tmp_path / "grid.png").exists()
    if out == "grid.png":
        assert said == ["generate.py: interrupted; nothing written"] and not written
    else:
        assert re.fullmatch(r"generate\.py: interrupted; (\d+) pictures written in pictures", *said)
        assert {path.name for path in written} == {f"{seed}.png" for seed in range(len(written))}
        for path in written:
            with Image.open(path) as image:
                assert np.asarray(image).shape == (8, 8)


@pytest.mark.parametrize("flag", ["out", "seeds", "labels", "threads", "num_steps", "variations", "inpaint"])
def test_an_empty_flag_is_refused_by_name(flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = ["--mask=x.png"] if flag == "inpaint" else []
    with pytest.raises(SystemExit, match=rf"^generate\.py: --{flag} must [^\n]*\. Received: ''$"):
        command.main(["m.tflite", f"--{flag}=", *needed])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "armv7l"])
@pytest.mark.parametrize("minor", range(7, 14))
def test_every_python_has_one_runtime_and_what_it_needs(minor, machine):
    wanted = {}
    for line in (ROOT / "export" / "edge" / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker.evaluate({"python_version": f"3.{minor}", "platform_machine": machine}):
                assert requirement.name not in wanted
                wanted[requirement.name] = requirement
    has_litert = minor >= 9 and machine != "armv7l"
    runtime = "ai-edge-litert" if has_litert else "tflite-runtime"
    assert set(wanted) == {runtime, "numpy", "pillow"}
    assert has_litert or str(wanted["numpy"].specifier).startswith("==1.")
