"""export/vectors.tflite, a small file to try clients with: each paints the pictures that its side file holds."""

import base64
import io
import pathlib
import subprocess

import numpy as np
import pytest
from PIL import Image

from export import site
from export.certificate import certificate
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
