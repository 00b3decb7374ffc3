"""Runs that several files look at, each trained once."""

import contextlib
import dataclasses
import functools
import pathlib
import shutil

import pytest
from helpers.networks import least_unet
from helpers.small_runs import TINY, StopAfter

import kddpm
from kddpm.runs import build, training


@contextlib.contextmanager
def of_least_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "UNet", least_unet)
        patch.setattr(build, "_parameters", lambda *_: 0)  # the weights hold fewer than the configuration says
        yield


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
