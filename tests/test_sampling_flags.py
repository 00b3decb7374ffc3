import pathlib

import pytest

from kddpm import sampling_flags
from kddpm.errors import InputError


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
    assert sampling_flags.seeds_of_photos([7, 9], 1) == [7, 9]
    assert sampling_flags.seeds_of_photos([7, 9], 2) == [7, 9]
    for seeds in ([7], [7, 8, 9]):
        with pytest.raises(
            InputError, match=f"--seeds must be one for each of 2 pictures to edit. Received: {len(seeds)}"
        ):
            sampling_flags.seeds_of_photos(seeds, 2)


@pytest.mark.parametrize("edit", [None, "variations", "inpaint", "interpolate"])
def test_forms_of_output(edit):
    animated = edit in (None, "interpolate")
    for name in ("a.png", "a.NPZ", "folder", *["a.gif"][:animated]):
        sampling_flags.check_suffix(pathlib.Path(name), edit)
    for name in ("a.jpg", *["a.gif"][animated:]):
        with pytest.raises(InputError, match=f"--out must end in .png.* or be a folder.*. Received: {name}"):
            sampling_flags.check_suffix(pathlib.Path(name), edit)
