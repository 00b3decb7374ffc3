import numpy as np
import pytest
import tensorflow as tf
from helpers.small_runs import flip_a_byte

from kddpm.runs.pieces import ROWS, Pieces


@pytest.fixture
def counted(tmp_path):
    """A function that gets so many rows, of these facts, and returns which of them had to be made."""
    made = []

    def make(rows):
        made.extend(rows.tolist())
        return {"squares": rows.astype(np.int64)[:, None] ** 2}

    def rows(count, **facts):
        made.clear()
        pieces = Pieces(tmp_path, facts, {"squares": ((1,), "int64")}, tf.distribute.get_strategy())
        found = np.concatenate([piece["squares"] for piece in pieces.get(count, make)])
        assert np.array_equal(found[:, 0], np.arange(count) ** 2)
        return list(made)

    return rows


def test_rows_are_made_once(counted):
    assert counted(600) == list(range(600))
    assert counted(600) == [] and counted(10) == []


def test_what_was_interrupted_goes_on(counted):
    counted(ROWS)
    assert counted(600) == list(range(ROWS, 600))


def test_a_longer_request_keeps_whole_pieces(counted):
    counted(300)
    assert counted(700) == list(range(ROWS, 700))
    assert counted(300) == []


def test_other_facts_are_other_rows(counted):
    counted(10, seed=1)
    assert counted(10, seed=2) == list(range(10)) and counted(10, seed=1) == []


@pytest.mark.parametrize("damage", [flip_a_byte, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_damaged_files_are_made_again(counted, tmp_path, damage):
    counted(10)
    (path,) = tmp_path.glob("*/*.npz")
    damage(path)
    assert counted(10) == list(range(10))
    assert counted(10) == []


def test_files_of_other_names_are_left_aside(counted, tmp_path):
    counted(10)
    (path,) = tmp_path.glob("*/*.npz")
    for name in ("0000000_x.npz", "0000000_9999.npz", "0000000_.npz"):
        path.with_name(name).write_bytes(path.read_bytes())
    path.unlink()
    assert counted(10) == list(range(10))
