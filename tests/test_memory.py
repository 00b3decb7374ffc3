import sys

import numpy as np
import pytest

from kddpm import memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
MEGABYTE = 2**20


def test_the_peak_outlives_what_it_was_of():
    before = memory.peak()
    held = np.ones(64 * MEGABYTE, np.uint8)
    peak = memory.peak()
    assert peak >= before and peak > held.nbytes
    del held
    gain = memory.Gain()  # the system forgets its peak, kddpm does not
    assert memory.peak() > peak - MEGABYTE  # which Linux counts by and by
    assert gain.peak() < 32 * MEGABYTE


def test_a_gain_is_the_most_that_came_on_top():
    held = np.ones(64 * MEGABYTE, np.uint8)
    gain = memory.Gain()
    more = np.ones(96 * MEGABYTE, np.uint8)
    del more
    assert 90 * MEGABYTE < gain.peak() < 110 * MEGABYTE
    del held


def test_systems_without_these_files(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_PROCESS", tmp_path)
    assert memory.peak() is None and memory.Gain().peak() is None


def test_a_machine_has_more_than_a_process_holds():
    assert memory.peak() < memory.total() < 2**60
