"""Runs that several files look at, each trained once."""

import contextlib
import dataclasses
import functools
import pathlib
import shutil

import pytest
from helpers import judged_runs
from helpers.networks import of_least_networks
from helpers.small_runs import TINY, StopAfter

import kddpm
from kddpm.evaluation import features
from kddpm.runs import build, evaluate, training


@pytest.fixture(scope="module")
def least_network():
    """What is trained does not matter to most tests of runs; `whole_network` is a `UNet` all the same."""
    with of_least_networks():
        yield


@pytest.fixture
def whole_network(least_network, monkeypatch):
    """A `UNet` after all."""
    monkeypatch.setattr(build, "UNet", kddpm.UNet)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished run and its model."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    with of_least_networks():
        return run_dir, training.train(TINY, run_dir, verbose=False)


@pytest.fixture(scope="session")
def finished(trained):
    """A finished run."""
    return trained[0]


@pytest.fixture(scope="session")
def begun(tmp_path_factory):
    """Beginnings of the run, trained once each: a function of where to stop, and whether by what a kill looks like."""

    @functools.cache
    def begin(steps, killed=False, **changes):
        run_dir = tmp_path_factory.mktemp("runs") / "begun"
        config = dataclasses.replace(TINY, **({} if killed else {"steps": steps}), **changes)
        with of_least_networks(), pytest.raises(ConnectionAbortedError) if killed else contextlib.nullcontext():
            training.train(config, run_dir, callbacks=[StopAfter(steps)] if killed else [], verbose=False)
        return run_dir

    return begin


@pytest.fixture
def begin(begun, tmp_path):
    """The same, copied to `run`."""
    return lambda *args, **kwargs: pathlib.Path(shutil.copytree(begun(*args, **kwargs), tmp_path / "run"))


@pytest.fixture(scope="session")
def judged(tmp_path_factory):
    """Images, runs of them, and an extractor (`judged_runs.make`)."""
    with of_least_networks():
        return judged_runs.make(tmp_path_factory.mktemp("judged"))


@pytest.fixture(scope="module")
def loaded_once():
    """Each run and each extractor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "load_run", functools.cache(build.load_run))
        patch.setattr(features, "load", functools.cache(features.load))
        yield


@pytest.fixture
def measured(judged, tmp_path):
    """evaluate() of the metrics of pictures, in a few steps, into tmp_path / "out"."""

    def measure(names=("fid",), run="run", **options):
        defaults = {"samplers": ("ddim:2",), "num_images": judged_runs.COUNT, "batch_size": 16, "verbose": False}
        defaults |= {"extractor": str(judged / "judge"), "out": tmp_path / "out"}
        return evaluate.evaluate(judged / run, names, **(defaults | options))["quality"]

    return measure
