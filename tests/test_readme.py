"""What the README prints, run as printed."""

import pathlib
import re
import subprocess
import sys

import pytest
from PIL import Image

from kddpm import data, presets

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_works_as_printed(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + program
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "digits.png") as grid:
        assert grid.size == (8 * 50 + 2, 8 * 50 + 2)
    assert (tmp_path / "digits.keras").exists()


@pytest.mark.parametrize("command", re.findall(r"^python (\w+\.py) (.*?)(?: +#.*)?$", README, re.MULTILINE))
def test_the_flags_of_the_readme_exist(command):
    script, flags = command
    known = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True).stdout
    names = re.findall(r"--(\w+)", flags)
    assert names and all(re.search(rf"--(\[no\])?{name}:", known) for name in names)


def test_the_tables_of_the_readme_are_complete():
    for kind in (*data.KINDS, *presets.PRESETS):
        assert f"| `{kind}` |" in README
    for path in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (ROOT / path).exists(), path
