"""Which runtimes paint an exported file as Keras does?

    python benchmarks/device_matrix.py --files=FOLDER             # float32.tflite, float16.tflite and int8.tflite there

Installs each version of ai-edge-litert and tflite-runtime that the index has, each in an environment of its own, with
this Python, or the newest of the machine's others (PATH, pyenv, uv) that has a wheel; and with each Python the newest
version for it. Each runs export/edge/generate.py, with and without XNNPACK, on the seeds whose pictures the side files
hold. The table goes into docs/devices.md. A cell must be right, or refused by the client in a line; else this fails.
"""

import argparse
import base64
import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
EDGE = ROOT / "export" / "edge"
PACKAGES = ("tflite-runtime", "ai-edge-litert")
LIMITS = {"float32": 0.1, "float16": 0.5, "int8": 2}  # of the mean difference, grey levels; broken files had 50 or more
MINORS = range(7, 20)  # of Python 3
TIMEOUT = 900  # seconds, of a command
BEGIN, END = "<!-- the table of benchmarks/device_matrix.py -->\n", "<!-- end of the table -->\n"
NOISE = """
import hashlib, json, pathlib, sys
sys.path.insert(0, sys.argv[1])
from edge import generator
noise = generator.Generator(pathlib.Path(sys.argv[2]), 1, sys.argv[3] == "True").noise(json.loads(sys.argv[4]))
print(json.dumps([hashlib.sha256(x.astype("<f4").tobytes()).hexdigest() for x in noise]))
"""


@dataclasses.dataclass(frozen=True, order=True)
class Runtime:
    """A version of a package under a version of Python."""

    package: str
    version: tuple[int, ...]
    minor: int  # of Python 3

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{self.package} {'.'.join(map(str, self.version))}"

    @property
    def requirements(self) -> list[str]:
        """For pip; runtimes that were built for NumPy 1 crash with 2."""
        is_old = self.package == "tflite-runtime" or self.version < (1, 2)
        return [self.name.replace(" ", "=="), "numpy<2" if is_old else "numpy", "pillow"]


class Unavailable(Exception):
    """A runtime cannot be installed; the message says why."""


def run(command, **options):
    """Run a command; return its exit status, and what it wrote to stdout and stderr."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, timeout=TIMEOUT, **options)
    except subprocess.TimeoutExpired:
        return 124, "", f"took more than {TIMEOUT} s"
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def pythons():
    """The machine's Pythons, {minor: path}."""
    found = {sys.version_info.minor: pathlib.Path(sys.executable)}
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    for minor in MINORS:
        candidates = [path / "bin" / "python" for path in sorted(pyenv.glob(f"3.{minor}.*"))]
        candidates += filter(None, [shutil.which(f"python3.{minor}")])
        if shutil.which("uv"):
            candidates.append(run(["uv", "python", "find", f"3.{minor}"])[1].strip())
        for candidate in filter(None, candidates):
            status, printed, _ = run([candidate, "-c", "import sys, venv; print(sys.version_info[1])"])
            if status == 0 and printed.strip() == str(minor):
                found.setdefault(minor, candidate)
    return found


def versions(package, minor):
    """The versions of a package that the index has for a Python, newest first."""
    options = ["--python-version", f"3.{minor}", "--only-binary=:all:", "--disable-pip-version-check"]
    _, printed, _ = run([sys.executable, "-m", "pip", "index", "versions", package, *options])
    listed = re.search(r"Available versions: (.*)", printed)
    return [tuple(map(int, text.split("."))) for text in re.findall(r"[\d.]+", listed[1])] if listed else []


def plan(minors):
    """The runtimes to try: each version once, and the newest that a Python has with that Python."""
    chosen = set()
    for package in PACKAGES:
        homes = {}
        for minor in sorted(minors, key=lambda minor: (minor == sys.version_info.minor, minor)):
            there = versions(package, minor)
            homes.update(dict.fromkeys(there, minor))
            chosen.update(Runtime(package, version, minor) for version in there[:1])
        chosen.update(Runtime(package, version, minor) for version, minor in homes.items())
    return sorted(chosen, key=lambda runtime: (PACKAGES.index(runtime.package), runtime.version, runtime.minor))


def installed(runtime, python, cache):
    """The Python of an environment that holds a runtime, made if it is not there."""
    folder = cache / f"{runtime.name.replace(' ', '-')}-py3.{runtime.minor}"
    if not (folder / "installed").exists():
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--only-binary=:all:"]
        for command in ([python, "-m", "venv", "--clear", folder], [*pip, *runtime.requirements]):
            status, _, errors = run(command)
            if status:
                raise Unavailable(re.sub(r"\s+", " ", (errors.strip() or "no reason given").splitlines()[-1])[:200])
        (folder / "installed").touch()
    return folder / "bin" / "python"


def painted(python, file, xnnpack):
    """Differences of the pictures from Keras's, (largest, mean) in grey levels, or the client's line."""
    vectors = json.loads(file.with_suffix(".json").read_text())["vectors"]
    seeds = ",".join(str(vector["seed"]) for vector in vectors)
    with tempfile.TemporaryDirectory() as folder:
        # Two threads of LiteRT 1.1 to 1.3 wait for each other a hundredfold where other work has the cores.
        flags = [f"--seeds={seeds}", f"--out={folder}", "--threads=1", *([] if xnnpack else ["--no-xnnpack"])]
        status, _, errors = run([python, EDGE / "generate.py", file, *flags])
        if status:
            lines = [line for line in errors.splitlines() if line.startswith("generate.py: ")]
            return (
                lines[-1].replace(str(file), "the file") if lines else (errors.splitlines() or ["no reason given"])[-1]
            )
        pictures = [np.asarray(Image.open(pathlib.Path(folder) / f"{vector['seed']}.png")) for vector in vectors]
    expected = [np.asarray(Image.open(io.BytesIO(base64.b64decode(vector["picture"])))) for vector in vectors]
    difference = np.abs(np.stack(pictures).astype(int) - np.stack(expected))
    return int(difference.max()), float(difference.mean())


def same_noise(python, file, xnnpack):
    """Whether x_T has the bits of Keras's, or the reason why there is none."""
    vectors = json.loads(file.with_suffix(".json").read_text())["vectors"]
    seeds = json.dumps([vector["seed"] for vector in vectors])
    status, printed, errors = run([python, "-c", NOISE, EDGE.parent, file, xnnpack, seeds])
    if status:
        return (errors.splitlines() or [""])[-1][:200]
    return json.loads(printed.splitlines()[-1]) == [vector["noise_sha256"] for vector in vectors]


def is_right(precision, cell):
    """Whether a cell is right, or refused by the client in a line."""
    return cell.startswith("generate.py: ") if isinstance(cell, str) else cell[1] <= LIMITS[precision]


def shown(cells, notes):
    """Cells with and without XNNPACK as text; refusals are collected in notes."""

    def text(cell):
        if isinstance(cell, str):
            line = cell.replace("generate.py: ", "")
            notes.setdefault(line, len(notes) + 1)
            return f"refused ({notes[line]})" if line != cell else f"**failed** ({notes[line]})"
        return f"{cell[0]}, {cell[1]:.3f}"

    return " / ".join(dict.fromkeys(text(cell) for cell in cells))


def tried(runtime, python, files, notes):
    """The row of a runtime for the table, and whether all of it is right."""
    noise = [same_noise(python, files["float32"], xnnpack) for xnnpack in (True, False)]
    cells = {name: [painted(python, file, xnnpack) for xnnpack in (True, False)] for name, file in files.items()}
    refused = all(isinstance(cell, str) for cell in cells["float32"])
    bits = "none" if refused else "equal" if all(equal is True for equal in noise) else "**other**"
    right = bits != "**other**" and all(is_right(name, cell) for name in cells for cell in cells[name])
    columns = [f"3.{runtime.minor}", bits, *(shown(pair, notes) for pair in cells.values())]
    return f"| {runtime.name} | {' | '.join(columns)} |" + ("" if right else " **wrong**"), right


def table(rows, notes):
    """The text between the markers."""
    head = "| runtime | Python | noise bits | float32 | float16 | int8 |\n|---|---|---|---|---|---|\n"
    return head + "".join(f"{row}\n" for row in rows) + "".join(f"\n({n}) {line}\n" for line, n in notes.items())


def written(page, text):
    """Put the table into a page, between its markers."""
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + BEGIN + text + END + rest.split(END)[1])


def main():
    """Flags to the table; the exit status says whether every cell is right."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--files", type=pathlib.Path, required=True, help="a folder of exports, one a precision")
    parser.add_argument("--cache", type=pathlib.Path, default=ROOT / "demo" / "runtimes", help="of the environments")
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "docs" / "devices.md", help="gets the table")
    parser.add_argument(
        "--only", help="runtimes such as tflite-runtime==2.14.0,ai-edge-litert==1.3.0; all if not given"
    )
    flags = parser.parse_args()
    files = {precision: flags.files.absolute() / f"{precision}.tflite" for precision in LIMITS}
    for file in files.values():
        if not file.is_file():
            sys.exit(f"device_matrix.py: --files must hold {file.name}, which python -m export writes. Received: none")
    if not flags.page.is_file() or BEGIN not in flags.page.read_text():
        sys.exit(f"device_matrix.py: --page must be a file with the line {BEGIN.strip()}. Received: {flags.page}")
    found = pythons()
    print(f"Pythons: {', '.join(f'3.{minor}' for minor in sorted(found))}", flush=True)
    runtimes = plan(found)
    if flags.only:
        wanted = flags.only.split(",")
        runtimes = [runtime for runtime in runtimes if runtime.requirements[0] in wanted]
    if not runtimes:
        sys.exit(f"device_matrix.py: the index must have a runtime. Received: none of {flags.only or 'any version'}")
    rows, notes, all_right = [], {}, True
    for number, runtime in enumerate(runtimes, 1):
        try:
            python = installed(runtime, found[runtime.minor], flags.cache.absolute())
            row, right = tried(runtime, python, files, notes)
        except Unavailable as error:
            row, right = f"| {runtime.name} | 3.{runtime.minor} | not installed: {error} | | | |", True
        rows.append(row)
        all_right &= right
        print(f"{number}/{len(runtimes)} {row}", flush=True)
        written(flags.page, table(rows, notes))
    sys.exit(0 if all_right else "device_matrix.py: wrong pictures, see **wrong** in the table")


if __name__ == "__main__":
    main()
