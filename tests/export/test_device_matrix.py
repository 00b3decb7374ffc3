"""benchmarks/device_matrix.py on the runtimes that once painted wrong in silence."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "device_matrix.py"
ONLY = "tflite-runtime==2.14.0,ai-edge-litert==1.1.2"


def matrix(files, page, *flags):
    command = [sys.executable, SCRIPT, f"--files={files}", f"--page={page}", *flags]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def page(tmp_path):
    return pathlib.Path(shutil.copy(ROOT / "docs" / "devices.md", tmp_path))


@pytest.mark.slow
def test_old_runtimes_paint_every_precision_right(exported, page, tmp_path):
    for precision in ("float32", "float16", "int8"):
        for suffix in (".tflite", ".json"):
            shutil.copy(exported(precision).with_suffix(suffix), tmp_path / f"{precision}{suffix}")
    result = matrix(tmp_path, page, f"--only={ONLY}", f"--cache={tmp_path / 'cache'}")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line for line in page.read_text().splitlines() if line.startswith(("| tflite-r", "| ai-edge"))]
    assert {row.split(" | ")[0] for row in rows} == {"| tflite-runtime 2.14.0", "| ai-edge-litert 1.1.2"}
    for row in rows:
        assert " | equal | 0, 0.000 | " in row and "refused" not in row and "not installed" not in row


def test_files_that_are_missing_end_in_one_line(page, tmp_path):
    before = page.read_text()
    result = matrix(tmp_path, page)
    assert result.returncode == 1
    assert result.stderr == (
        "device_matrix.py: --files must hold float32.tflite, which python -m export writes. Received: none\n"
    )
    assert page.read_text() == before
