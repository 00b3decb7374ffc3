"""What is said to have changed the pixels of a picture, and one file by the same rules."""

import io
import struct

import numpy as np
import pytest
from helpers.image_samples import GREY, SIXTEEN, palette_image, png, png_bytes, random_pixels, write_zip
from PIL import Image

from kddpm import data
from kddpm.base.errors import InputError
from kddpm.data import decoding


def encoded(array, form="PNG", mode=None, **options):
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, form, **options)
    return file.getvalue()


def tiff_of_sixteen_bits(array):
    """An RGB TIFF of 16 bits a channel, which Pillow does not write."""
    height, width, channels = array.shape
    pixels = array.astype("<u2").tobytes()
    end = 8 + 2 + 9 * 12 + 4
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, end), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, end + 6), (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, len(pixels))]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<HHH", 16, 16, 16) + pixels


def opaque(*shape):
    array = random_pixels(*shape)
    array[..., -1] = 255
    return array


def turned(array, form):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(array, form, exif=exif)


PICTURES = [
    # name, file, image_size and channels asked for, what was done
    ("grey", GREY, {}, ""),
    ("colour", png_bytes(random_pixels(4, 4, 3)), {}, ""),
    ("one bit", encoded(np.eye(4, dtype=bool)), {}, ""),
    ("lossy", encoded(random_pixels(4, 4, 3), "JPEG"), {}, ""),
    ("lossy grey", encoded(random_pixels(4, 4), "WEBP"), {"channels": 3}, ""),  # the format has no grey
    ("turned", turned(random_pixels(4, 6, 3), "PNG"), {"image_size": (6, 4)}, ""),
    ("turned, of the size that lies in the file", turned(random_pixels(4, 6, 3), "JPEG"), {"image_size": (4, 6)},
     "cropped and resized"),
    ("opaque", encoded(opaque(4, 4, 4)), {}, ""),
    ("opaque grey", encoded(opaque(4, 4, 2)), {}, ""),
    ("transparent", encoded(random_pixels(4, 4, 4)), {}, "laid over white"),
    ("transparent grey", encoded(random_pixels(4, 4, 2)), {}, "laid over white"),
    ("transparent colour", png(np.array([[[9, 8, 7], [1, 2, 3]]]), 8, 2, struct.pack(">HHH", 1, 2, 3)), {},
     "laid over white"),
    ("transparent colour of no pixel", png(np.array([[[9, 8, 7], [1, 2, 3]]]), 8, 2, struct.pack(">HHH", 5, 5, 5)),
     {}, ""),
    ("sixteen bits, grey", png(SIXTEEN, 16, 0), {}, "cut to 8 bits"),
    ("sixteen bits, PGM", b"P5 4 2 65535\n" + SIXTEEN.astype(">u2").tobytes(), {}, "cut to 8 bits"),
    ("sixteen bits, colour", png(random_pixels(4, 4, 3), 16, 2), {}, "cut to 8 bits"),
    ("sixteen bits, PPM", b"P6 4 2 65535\n" + bytes(48), {}, "cut to 8 bits"),
    ("sixteen bits, TIFF", tiff_of_sixteen_bits(random_pixels(4, 4, 3)), {}, "cut to 8 bits"),
    ("four bits, PPM", b"P6 4 2 15\n" + bytes(24), {}, ""),
    ("grey to RGB", GREY, {"channels": 3}, "made RGB"),
    ("RGB to grey", png_bytes(random_pixels(4, 4, 3)), {"channels": 1}, "made grey"),
    ("inks", encoded(random_pixels(4, 4, 4), "JPEG", "CMYK"), {}, "made RGB"),
    ("cropped", png_bytes(random_pixels(4, 6, 3)), {"image_size": 4}, "cropped"),
    ("resized", png_bytes(random_pixels(4, 6)), {"image_size": (2, 3)}, "resized"),
    ("enlarged", png_bytes(random_pixels(4, 6)), {"image_size": (8, 12)}, "resized"),
    ("all of it", encoded(random_pixels(4, 6, 4)), {"image_size": 2, "channels": 1},
     "laid over white, made grey, cropped and resized"),
]  # fmt: skip


@pytest.mark.parametrize("content, kwargs, done", [row[1:] for row in PICTURES], ids=[row[0] for row in PICTURES])
def test_what_was_done_to_a_picture_is_said(tmp_path, content, kwargs, done):
    (tmp_path / "a.png").write_bytes(content)
    assert data.load(f"folder:{tmp_path}", **kwargs).altered == ({done: 1} if done else {})


def test_palettes_are_read_and_not_changed(tmp_path):
    palette_image().save(tmp_path / "a.png", transparency=2)
    palette_image().save(tmp_path / "b.gif")
    assert data.load(f"folder:{tmp_path}").altered == {"laid over white": 1}
    assert data.load(f"folder:{tmp_path}", channels=1).altered == {"laid over white and made grey": 1, "made grey": 1}


def test_changed_files_are_counted_without_the_bad_ones(tmp_path):
    members = {f"{i}.png": png_bytes(random_pixels(4, 4)) for i in range(3)}
    members |= {f"wide{i}.png": png_bytes(random_pixels(4, 6)) for i in range(2)}
    members |= {"large.png": png_bytes(random_pixels(8, 8)), "bad.png": members["wide0.png"][:-30]}
    loaded = data.load(write_zip(tmp_path / "a.zip", members), image_size=4, skip_bad_images=True)
    assert len(loaded.images) == 6 and loaded.altered == {"cropped": 2, "resized": 1}


# One file.


def test_one_file_by_the_same_rules(tmp_path):
    path = tmp_path / "photo of mine"
    path.write_bytes(turned(random_pixels(4, 6, 3), "PNG"))
    array, changes, size = decoding.read_image("--photo", path, None, 3)
    assert np.array_equal(array, np.rot90(random_pixels(4, 6, 3), -1)) and changes == "" and size == (6, 4)
    array, changes, size = decoding.read_image("--photo", path, (3, 2), 1)
    assert array.shape == (3, 2, 1) and changes == "made grey and resized" and size == (6, 4)


@pytest.mark.parametrize(
    "content, text",
    [
        (None, "No such file or directory"),
        ("folder", "Is a directory"),
        (b"", "empty file"),
        (b"text", "not a readable image; expected PNG, JPEG"),
        (png_bytes(random_pixels(40, 40))[:-300], "truncated"),
    ],
)
def test_one_file_that_is_no_picture_names_the_flag(tmp_path, content, text):
    path = tmp_path / "a.png"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"--photo: cannot read .*a.png: .*{text}") as caught:
        decoding.read_image("--photo", path, None, 3)
    assert "\n" not in str(caught.value)
