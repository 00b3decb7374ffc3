import time

import numpy as np

from kddpm.base import memory

MEGABYTE = 2**20


def test_the_peak_outlives_what_it_was_of():
    before = memory.peak()
    held = np.ones(64 * MEGABYTE, np.uint8)
    peak = memory.peak()
    assert peak >= before and peak > held.nbytes
    del held
    assert memory.peak() >= peak


def test_a_gain_is_the_most_that_came_on_top():
    held = np.ones(64 * MEGABYTE, np.uint8)
    with memory.Gain() as gain:
        more = np.ones(96 * MEGABYTE, np.uint8)
        time.sleep(0.1)
        del more
    assert 90 * MEGABYTE < gain.bytes < 110 * MEGABYTE
    del held


def test_nothing_more_is_no_gain():
    with memory.Gain() as gain:
        pass
    assert 0 <= gain.bytes < MEGABYTE


def test_a_machine_has_more_than_a_process_holds():
    assert memory.peak() < memory.total() < 2**60
