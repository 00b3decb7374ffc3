"""One rule says which pixels a mask keeps, for arrays, pictures and files."""

import io

import numpy as np
import pytest
from PIL import Image

from kddpm.base.errors import InputError
from kddpm.cli import picture_files
from kddpm.data import masks

KEPT = np.zeros((4, 6), bool)
KEPT[:2, 1:] = True
GREY = np.where(KEPT, 254, 2).astype(np.uint8)  # as a JPEG leaves white and black
WHITE_FIRST = Image.fromarray((~KEPT).astype(np.uint8), "P")
WHITE_FIRST.putpalette([255, 255, 255, 0, 0, 0])
FORMS = {
    "bool": KEPT,
    "0 and 1": KEPT.astype(np.int64),
    "0 and 255": KEPT * np.uint8(255),
    "grey values": GREY,
    "cut at 127": np.where(KEPT, 128, 127).astype(np.uint8),
    "grey values as int32": GREY.astype(np.int32),
    "floats": np.where(KEPT, 0.5, 0.49),
    "resized floats": np.where(KEPT, 1.0000002, -1e-7).astype("float32"),
    "lists": KEPT.tolist(),
    "a last axis": KEPT[..., np.newaxis],
    "channels": np.repeat(KEPT[..., np.newaxis], 3, -1),
    "RGB": np.stack([GREY, GREY, np.minimum(GREY, 250)], -1),
    "grey with alpha": np.stack([GREY, np.full_like(GREY, 255)], -1),
    "RGBA": np.stack([*[GREY] * 3, np.full_like(GREY, 255)], -1),
    "picture": Image.fromarray(GREY),
    "picture in colour": Image.fromarray(GREY).convert("RGB"),
    "picture of 1 bit": Image.fromarray(KEPT),
    "palette with white first": WHITE_FIRST,
    "one of a batch": KEPT[np.newaxis],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_mask_keeps_the_same(form):
    found = masks.known(FORMS[form], (4, 6), 3)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, KEPT)


@pytest.mark.parametrize("axes", [(), (1,), (3,)])
def test_a_mask_for_each_image(axes):
    each = np.stack([KEPT, ~KEPT, KEPT])
    given = np.broadcast_to((each * np.uint8(255)).reshape(*each.shape, *[1] * len(axes)), (*each.shape, *axes))
    np.testing.assert_array_equal(masks.known(given, (4, 6), 3), each)


def _changed(value):
    return np.where(KEPT, value, 0)


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (_changed(np.nan), r"`mask` must lie in \[0, 1\] as floats, .* Received: float64 from nan to nan"),
        (_changed(255.0), r"`mask` must lie in \[0, 1\] as floats, .* Received: float64 from 0 to 255"),
        (_changed(-1.0), r"`mask` must lie in \[0, 1\] as floats, .* from -1 to 0"),
        (_changed(-1), "`mask` must be bool, 0 and 1, or grey values in 0 .. 255. Received: int64 from -1 to 0"),
        (_changed(65535), "`mask` must be bool, .* Received: int64 from 0 to 65535"),
        (_changed(3), "`mask` must have white, above 127, .* or be 0 and 1. Received: int64 from 0 to 3"),
        (KEPT.astype(str), "`mask` must be bool or numbers. Received: <U5"),
        (KEPT.astype(complex), "`mask` must be bool or numbers. Received: complex128"),
        (KEPT.T, r"`mask` must be 4 x 6, or 3 of these. Received: shape \(6, 4\)"),
        (np.stack([KEPT, ~KEPT, KEPT], -1), "`mask` must be the same in every channel, or uint8. Received: bool"),
        (np.stack([KEPT] * 2), r"`mask` must be 4 x 6, or 3 of these. Received: shape \(2, 4, 6\)"),
    ],
)  # fmt: skip
def test_other_masks_are_refused_in_a_line(mask, text):
    with pytest.raises(InputError, match=text) as caught:
        masks.known(mask, (4, 6), 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpeg", "png"])
def test_a_file_keeps_what_its_array_keeps(tmp_path, suffix):
    kept = np.zeros((16, 16), bool)
    kept[3:, :9] = True
    stream = io.BytesIO()
    Image.fromarray(kept * np.uint8(255)).save(stream, suffix)
    path = tmp_path / f"mask.{suffix}"
    path.write_bytes(stream.getvalue())
    array = np.asarray(Image.open(path))
    assert suffix == "png" or 0 < array[~kept].max() < 127  # the greys that compression leaves in black
    np.testing.assert_array_equal(masks.known(array, (16, 16), 1), kept)
    np.testing.assert_array_equal(picture_files.read_mask("--mask", str(path), (16, 16), (16, 16)), kept)


def test_a_file_of_0_and_1_is_a_mask(tmp_path):
    Image.fromarray(KEPT.astype(np.uint8)).save(tmp_path / "mask.png")
    found = picture_files.read_mask("--mask", str(tmp_path / "mask.png"), (4, 6), (4, 6))
    np.testing.assert_array_equal(found, KEPT)


def test_a_file_without_white_is_refused_by_its_name(tmp_path):
    Image.fromarray(_changed(3).astype(np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=r"--mask must have white, .* Received: .*mask.png, uint8 from 0 to 3"):
        picture_files.read_mask("--mask", str(tmp_path / "mask.png"), (4, 6), (4, 6))
