"""The samples for phones, as far as this machine can try them."""

import pathlib
import subprocess

import pytest

EXPORT = pathlib.Path(__file__).parents[2] / "export"
COMPILER = "kotlin-compiler@2.4.20"  # of npm


@pytest.mark.slow
def test_the_kotlin_sample_compiles(needs, tmp_path):
    """Against declarations of what it uses of Android and LiteRT, whose libraries are in no index that is at hand."""
    needs("java", "npm")
    subprocess.run(["npm", "install", "--silent", "--prefix", tmp_path, COMPILER], check=True)
    compiler = tmp_path / "node_modules" / "kotlin-compiler" / "bin" / "kotlinc"
    sources = [EXPORT / "android" / "Generator.kt", *(pathlib.Path(__file__).parent / "android").glob("*.kt")]
    command = ["bash", compiler, "-Werror", "-d", tmp_path / "classes", *sources]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "classes" / "Generator.class").is_file()
