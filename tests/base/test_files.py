"""Files that are written whole, and paths that are checked before the work."""

import pytest

import kddpm
from kddpm.base.files import check_output, replacing


def test_replacing_a_folder_keeps_the_old_one_until_the_new_one_is_whole(tmp_path):
    folder = tmp_path / "site"
    for text in ("first", "second"):
        with replacing(folder) as beside:
            beside.mkdir()
            (beside / "page").write_text(text)
    with pytest.raises(RuntimeError), replacing(folder) as beside:
        beside.mkdir()
        raise RuntimeError("disk full")
    assert [p.name for p in tmp_path.iterdir()] == ["site"]
    assert (folder / "page").read_text() == "second"


def test_two_at_once_do_not_see_each_other(tmp_path):
    for neighbour in ("part.grid.png", "old.grid.png"):
        (tmp_path / neighbour).mkdir()
    with replacing(tmp_path / "grid.png") as first, replacing(tmp_path / "grid.png") as second:
        first.write_text("first")
        second.write_text("half")
        assert not (tmp_path / "grid.png").exists()
    assert (tmp_path / "grid.png").read_text() == "first"  # the outer block ends last
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grid.png", "old.grid.png", "part.grid.png"]


def test_outputs_are_checked_by_the_name_of_their_flag(tmp_path):
    (tmp_path / "file").write_text("mine")
    check_output("out", tmp_path / "new" / "grid.png", is_folder=False)
    with pytest.raises(kddpm.InputError, match="`out` must be a folder"):
        check_output("out", tmp_path / "file", is_folder=True)
    with pytest.raises(kddpm.InputError, match="`out` must be a file"):
        check_output("out", tmp_path, is_folder=False)
    with pytest.raises(kddpm.InputError, match="`out` must be in a folder that can be written to"):
        check_output("out", tmp_path / "file" / "grid.png", is_folder=False)
    with pytest.raises(kddpm.InputError, match="`out` must have a name of its own"):
        check_output("out", ".", is_folder=True)
