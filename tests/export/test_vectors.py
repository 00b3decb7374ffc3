"""export/vectors.tflite, a small file to try clients with: each paints the pictures that its side file holds."""

import base64
import hashlib
import io
import json
import pathlib
import subprocess

import numpy as np
import pytest
from PIL import Image

from export import site
from export.certificate import certificate
from export.edge.description import InputError
from export.edge.generator import Generator

EXPORT = pathlib.Path(site.__file__).parent
VECTORS = EXPORT / "vectors.tflite"


@pytest.fixture(scope="module")
def vectors(described):
    return described(VECTORS)["vectors"]


def pictures_of(vectors):
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(vector["picture"])))).astype(int) for vector in vectors]


def test_python_paints_the_vectors(vectors):
    rows, is_right, _ = certificate(Generator(VECTORS))
    assert is_right, rows
    assert len(vectors) == 8 and VECTORS.stat().st_size < 400_000


def test_cpp_paints_the_vectors(vectors, cpp_program, tmp_path):
    seeds = ",".join(str(vector["seed"]) for vector in vectors)
    subprocess.run([cpp_program, VECTORS, "--seeds", seeds, "--out", tmp_path / "out"], check=True)
    for vector, expected in zip(vectors, pictures_of(vectors), strict=True):
        found = np.asarray(Image.open(tmp_path / "out" / f"{vector['seed']}.png"))
        assert np.abs(found - expected).max() <= 1


def test_node_paints_the_vectors(vectors, needs, tmp_path):
    needs("node", "npm")
    site.install()
    vector, expected = vectors[-1], pictures_of(vectors)[-1]
    command = ["node", EXPORT / "web" / "generate" / "paint.js", VECTORS, f"--seed={vector['seed']}"]
    subprocess.run([*command, f"--out={tmp_path / 'picture.png'}"], check=True)
    found = np.asarray(Image.open(tmp_path / "picture.png"))
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 1


# A model that loads, but has an operator that no runtime can prepare: a factor's type is another.

_TYPE_OF_A_FACTOR = 295_869  # of this byte of the file, an int32 where the other factor is a float32


@pytest.fixture(scope="module")
def unfit(described, tmp_path_factory):
    path, content = tmp_path_factory.mktemp("unfit") / "m.tflite", bytearray(VECTORS.read_bytes())
    assert content[_TYPE_OF_A_FACTOR] == 2
    content[_TYPE_OF_A_FACTOR] = 0
    path.write_bytes(content)
    about = {**described(VECTORS), "file": path.name, "sha256": hashlib.sha256(content).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(about))
    return path


def test_a_call_that_fails_ends_in_a_line_in_python(unfit):
    with pytest.raises(InputError, match=f"{unfit} cannot be run by LiteRT: .*input1->type != input2->type"):
        list(Generator(unfit).generate([7]))


def test_a_call_that_fails_ends_in_a_line_in_node(unfit, needs, tmp_path):
    """LiteRT.js itself returns as if nothing had been, and the picture would be noise."""
    needs("node", "npm")
    site.install()
    command = ["node", EXPORT / "web" / "generate" / "paint.js", unfit, "--seed=7", f"--out={tmp_path / 'picture.png'}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and not (tmp_path / "picture.png").exists()
    assert (
        result.stderr.startswith("paint.js: The model cannot be run by LiteRT.js: ") and result.stderr.count("\n") == 1
    )
