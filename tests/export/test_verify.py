"""`python -m export.verify`: right files are called right, others not."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from export import certificate, verify
from export.edge.generator import Generator
from kddpm.device import parity


@pytest.fixture
def file(exported, tmp_path):
    for path in (exported(), exported().with_suffix(".json")):
        shutil.copy(path, tmp_path)
    return tmp_path / exported().name


def verified(capsys, *flags):
    with pytest.raises(SystemExit) as end:
        verify.main([str(flag) for flag in flags])
    return end.value.code, capsys.readouterr().out


def alter(file, **changes):
    side = file.with_suffix(".json")
    about = json.loads(side.read_text())
    about.update(changes)
    side.write_text(json.dumps(about))


def test_a_right_file_is_called_right(file, capsys, tmp_path):
    code, printed = verified(capsys, file, f"--out={tmp_path / 'compared.png'}")
    assert code == 0 and printed.endswith("verdict     right\n")
    assert re.search(r"^runtime +ai-edge-litert 2\.\d+\.\d+, 2 threads, with XNNPACK$", printed, re.M)
    assert re.search(r"^noise +the bits of Keras, of 1 seed$", printed, re.M)
    assert re.search(
        r"^pictures +of 1 seed off by 0\.\d+ grey levels on the mean, [01] at most; \d+\.\d+% of ", printed, re.M
    )
    assert re.search(r"^latency +\d+\.\d+ ms a network call, \d+\.\d ms a picture$", printed, re.M)
    assert re.search(r"^peak memory +\d\d+ MiB, of this process$", printed, re.M)
    shown = np.asarray(Image.open(tmp_path / "compared.png")).astype(int)
    expected, painted, difference = (shown[50 * row + 2 : 50 * row + 50, 2:50] for row in range(3))
    np.testing.assert_array_equal(np.abs(expected - painted), difference)
    assert difference.max() <= 1 and len(np.unique(expected)) > 5


@pytest.mark.parametrize("what", ["noise", "pictures"])
def test_a_file_that_paints_something_else_is_called_wrong(file, capsys, what):
    (vector,) = json.loads(file.with_suffix(".json").read_text())["vectors"]
    if what == "noise":
        alter(file, vectors=[{**vector, "noise_sha256": "0" * 64}])
    else:
        alter(file, vectors=[{**vector, "seed": vector["seed"] + 1}])
    code, printed = verified(capsys, file)
    assert code == 1 and re.search(rf"^verdict +WRONG: .*{what}$", printed, re.M)
    if what == "noise":
        assert re.search(r"^noise +OTHER BITS than Keras's, of the seeds 0$", printed, re.M)


def test_a_file_with_classes_and_generate_alone_is_verified(trained_like_with_classes, tmp_path, capsys):
    path = tmp_path / "m.tflite"
    trained_like_with_classes.export(path, num_steps=3, signatures=["generate"], parity_seeds=2, verbose=False)
    code, printed = verified(capsys, path, "--no-xnnpack")
    assert code == 0 and "none in this file that could be compared" in printed and "without XNNPACK" in printed


def test_what_cannot_be_verified_ends_in_one_line(file, tmp_path):
    for spoil, error in (
        (lambda: alter(file, vectors=[]), "must hold the vectors and limits of an export. Received: no vectors"),
        (lambda: file.write_bytes(b"?"), "must be the file that .* describes"),
        (lambda: file.unlink(), "is missing: an export is NAME.tflite"),
    ):
        spoil()
        with pytest.raises(SystemExit, match=rf"^export\.verify: [^\n]*{error}[^\n]*$"):
            verify.main([str(file)])


@pytest.fixture
def nothing_painted(monkeypatch):
    """What is refused must be refused before the work."""
    monkeypatch.setattr(Generator, "generate", lambda *of: pytest.fail("painted"))


@pytest.mark.parametrize("limit", [None, 1e300, -1, 1.5, True, "1", []])
@pytest.mark.parametrize("name", ["mean_grey_levels", "max_grey_levels"])
def test_limits_that_compare_nothing_are_refused(file, nothing_painted, name, limit):
    alter(file, limits={"mean_grey_levels": 1, "max_grey_levels": 1, name: limit})
    error = rf"must hold the vectors and limits of an export\. Received: {name} [^\n]*, which is no number from 0 to 1$"
    with pytest.raises(SystemExit, match=rf"^export\.verify: [^\n]*tiny_float32\.json {error}"):
        verify.main([str(file)])


def test_the_bounds_of_limits_are_those_of_the_export():
    bounds = {name: (of.mean_grey_levels, of.max_grey_levels) for name, of in parity.LIMITS.items()}
    assert certificate.BOUNDS == bounds


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"limits": None}, "mean_grey_levels null, which is no number"),
        ({"precision": "int4"}, "precision 'int4', which is none of float32, float16, int8"),
        ({"vectors": None}, "no vectors"),
        ({"vectors": [3]}, "vector 0 with TypeError"),
        ({"seed": 2**31}, "vector 0 with .*a seed out of range"),
        ({"seed": True}, "vector 0 with .*a seed out of range"),
        ({"noise_sha256": None}, "vector 0 with TypeError"),
        ({"noise_sha256": "x"}, "vector 0 with .*no hash of noise"),
        ({"picture": "AAAA"}, "vector 0 with UnidentifiedImageError"),
        ({"picture": None}, "vector 0 with TypeError"),
        ({"picture_sha256": "0" * 64}, "vector 0 with .*a picture of another picture_sha256"),
    ],
)
def test_vectors_that_are_not_an_export_s_are_refused(file, nothing_painted, changes, error):
    (vector,) = json.loads(file.with_suffix(".json").read_text())["vectors"]
    alter(file, **(changes if not set(changes) & set(vector) else {"vectors": [{**vector, **changes}]}))
    with pytest.raises(SystemExit, match=rf"^export\.verify: [^\n]* limits of an export\. Received: {error}[^\n]*$"):
        verify.main([str(file)])


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--out=x.jpg"], r"--out must end in \.png\. Received: x\.jpg"),
        (["--out={0}/none/none"], r"--out must end in \.png\. Received"),
        (["--out={0}/tiny_float32.json/x.png"], "--out must be in a folder that can be written to"),
        (["--out="], "--out must be a path. Received: ''"),
        (["--threads=1_0"], "--threads must be an integer"),
        (["--thread=1"], "unrecognized arguments: --thread=1"),
    ],
)
def test_flags_are_checked_before_the_work(file, nothing_painted, flags, error):
    with pytest.raises(SystemExit, match=rf"^export\.verify: {error}[^\n]*$"):
        verify.main([str(file), *(flag.format(file.parent) for flag in flags)])


def test_it_runs_as_a_module_without_kddpm(file):
    code = "import runpy, sys; sys.modules['kddpm'] = sys.modules['tensorflow'] = None; sys.argv = sys.argv[1:]; "
    code += "runpy.run_module('export.verify', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, "verify", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("verdict     right\n")
