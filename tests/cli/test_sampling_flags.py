import pathlib

import pytest
from absl import flags as absl_flags

from kddpm.base.errors import InputError
from kddpm.cli import sampling_flags


@pytest.mark.parametrize(
    ("text", "count", "labels"), [(None, 3, None), ("", 3, None), ("4", 3, [4, 4, 4]), ("1,0-1", 3, [1, 0, 1])]
)
def test_labels_are_one_for_all_or_one_for_each(text, count, labels):
    assert sampling_flags.parse_labels(text, count) == labels


def test_other_numbers_of_labels_are_refused():
    with pytest.raises(InputError, match="--labels must be one for all, or one for each of 3 pictures. Received: 2"):
        sampling_flags.parse_labels("0,1", 3)
    with pytest.raises(InputError, match="--labels is needed"):
        sampling_flags.parse_labels(None, 3, needed=True)


def test_seeds_of_edited_pictures():
    assert sampling_flags.seeds_of_photos(None, 3) == [0, 1, 2]
    assert sampling_flags.seeds_of_photos(None, 1) == list(range(8))
    assert sampling_flags.seeds_of_photos([7, 9], 1) == [7, 9]
    assert sampling_flags.seeds_of_photos([7, 9], 2) == [7, 9]
    for seeds in ([7], [7, 8, 9]):
        with pytest.raises(
            InputError, match=f"--seeds must be one for each of 2 pictures to edit. Received: {len(seeds)}"
        ):
            sampling_flags.seeds_of_photos(seeds, 2)


@pytest.fixture
def given(monkeypatch):
    """Sets flags for a test, in a set of their own."""
    values = absl_flags.FlagValues()
    monkeypatch.setattr(absl_flags, "FLAGS", values)
    for name in ("frames", "columns"):
        absl_flags.DEFINE_integer(name, None, name, flag_values=values)
    values.mark_as_parsed()
    return lambda **new: [values.__setattr__(name, value) for name, value in new.items()]


@pytest.mark.parametrize("edit", [None, "variations", "inpaint", "interpolate"])
def test_forms_of_output(given, edit):
    animated = edit in (None, "interpolate")
    for name in ("a.png", "a.NPZ", "folder", *["a.gif"][:animated]):
        sampling_flags.check_form(pathlib.Path(name), edit)
    for name in ("a.jpg", *["a.gif"][animated:]):
        with pytest.raises(InputError, match=f"--out must end in .png.* or be a folder.*. Received: {name}"):
            sampling_flags.check_form(pathlib.Path(name), edit)


def test_flags_that_a_form_has_no_use_for_are_refused(given):
    given(frames=3)
    for name in ("a.png", "a.gif"):
        sampling_flags.check_form(pathlib.Path(name), None)
    for name in ("a.npz", "folder"):
        with pytest.raises(InputError, match=f"--frames belongs to .png, a filmstrip, or .gif. Received: --out={name}"):
            sampling_flags.check_form(pathlib.Path(name), None)
    given(columns=2)
    with pytest.raises(InputError, match="--columns belongs to a grid of pictures. Received: --out=a.png, which has"):
        sampling_flags.check_form(pathlib.Path("a.png"), None)
    sampling_flags.check_form(pathlib.Path("a.gif"), None)
    given(frames=None)
    sampling_flags.check_form(pathlib.Path("a.png"), "variations")
    for name, edit in (("a.npz", None), ("folder", "inpaint"), ("a.gif", "interpolate")):
        with pytest.raises(InputError, match=f"--columns belongs to a grid of pictures. Received: --out={name}, which"):
            sampling_flags.check_form(pathlib.Path(name), edit)
