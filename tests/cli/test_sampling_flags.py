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
    for name in ("columns", "shared_until", "interpolate_t"):
        absl_flags.DEFINE_integer(name, None, name, flag_values=values)
    absl_flags.DEFINE_string("frames", None, "frames", flag_values=values)
    absl_flags.DEFINE_string("frames_of", "x_t", "frames_of", flag_values=values)
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
    given(frames="3")
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


def test_stages_are_a_number_or_levels(given):
    assert sampling_flags.frames() is None
    for text, stages in {"12": 12, "900,500,100": [900, 500, 100]}.items():
        given(frames=text)
        assert sampling_flags.frames() == stages
    for text, line in {"1": "--frames must be at least 2. Received: 1", "a": "--frames must look like 0-63"}.items():
        given(frames=text)
        with pytest.raises(InputError, match=line):
            sampling_flags.frames()


@pytest.mark.parametrize(
    ("flag", "value"), [("frames", "1000,5"), ("shared_until", 1000), ("shared_until", -1), ("interpolate_t", 1000)]
)
def test_levels_lie_within_the_schedule(given, flag, value):
    given(**{flag: value})
    with pytest.raises(InputError, match=rf"--{flag} must lie in 0 .. 999 \(T - 1\). Received: {str(value)[:4]}"):
        sampling_flags.check_levels(1000)


def test_what_frames_and_shared_pictures_exclude(given):
    given(frames_of="x0")
    sampling_flags.check_form(pathlib.Path("a.gif"), None)
    with pytest.raises(InputError, match="--frames_of belongs to --frames, or to .gif. Received: --out=a.png"):
        sampling_flags.check_form(pathlib.Path("a.png"), None)
    given(frames="5", shared_until=3)
    with pytest.raises(InputError, match="--shared_until has no stages to show. Received: --out=a.png, --frames=5"):
        sampling_flags.check_form(pathlib.Path("a.png"), None)
