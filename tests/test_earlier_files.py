"""Files that the flat package wrote, before it was divided into wings, still load and go on."""

import dataclasses
import pathlib
import shutil

import keras
import numpy as np
import pytest

import kddpm
from kddpm.runs.directory import RunDirectory

EARLIER = pathlib.Path(__file__).parent / "goldens" / "flat_package"


@pytest.fixture(scope="module")
def pictures():
    with np.load(EARLIER / "pictures.npz") as archive:
        return {name: archive[name].astype(int) for name in archive.files}


def assert_same(painted, expected):
    """Up to the rounding of another processor."""
    assert np.abs(painted.astype(int) - expected).max() <= 1


def test_a_keras_file_loads_and_paints_what_it_painted(pictures):
    model = keras.models.load_model(EARLIER / "model.keras")
    assert model.objective == kddpm.Objective("v", "min_snr")
    assert int(model.step.numpy()) == 4
    assert_same(model.generate(range(4), num_steps=5), pictures["keras"])


def test_a_run_loads_and_paints_what_it_painted(pictures):
    model = kddpm.load_run(EARLIER / "run")
    assert_same(model.generate(range(4), "ddim", num_steps=5), pictures["run"])


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    shutil.copytree(EARLIER / "run", tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    config, _ = run.read()
    model = kddpm.train(dataclasses.replace(config, steps=6), run.path, verbose=False)
    assert int(model.step.numpy()) == 6
    assert [int(row["step"]) for row in run.rows()] == [2, 4, 6]
