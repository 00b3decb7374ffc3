import io
import os
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from helpers.image_samples import GREY, bad_lines, load_one, png, png_bytes, random_image, write_zip
from PIL import Image, ImageFile

from kddpm import data
from kddpm.base.errors import InputError
from kddpm.data import decoding

# What becomes of a picture.


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "ppm", "PNG", "Tiff"])
def test_lossless_formats_come_out_bit_for_bit(tmp_path, suffix):
    array = random_image(5, 7, 3)
    assert np.array_equal(load_one(tmp_path, Image.fromarray(array), f"a.{suffix}"), array)
    assert np.array_equal(load_one(tmp_path, Image.fromarray(array), f"a.{suffix}", image_size=(5, 7)), array)


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tif", "pgm"])
def test_grey_has_one_channel(tmp_path, suffix):
    array = random_image(5, 7)
    assert np.array_equal(load_one(tmp_path, Image.fromarray(array), f"a.{suffix}"), array[..., None])
    three = load_one(tmp_path, Image.fromarray(array), f"a.{suffix}", channels=3)
    assert np.array_equal(three, np.repeat(array[..., None], 3, -1))


@pytest.mark.parametrize("name, options", [("a.jpg", {"quality": 95}), ("a.jpeg", {}), ("a.webp", {"quality": 95})])
def test_lossy_formats(tmp_path, name, options):
    ramp = np.stack([*np.meshgrid(np.arange(0, 256, 8), np.arange(0, 256, 8)), np.full((32, 32), 90)], -1)
    file = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(file, "WEBP" if name.endswith("webp") else "JPEG", **options)
    assert np.abs(load_one(tmp_path, file.getvalue(), name).astype(int) - ramp).mean() < 4


def test_one_bit(tmp_path):
    bits = np.array([[0, 255, 0], [255, 255, 0]], np.uint8)
    assert np.array_equal(load_one(tmp_path, Image.fromarray(bits).convert("1"))[..., 0], bits)


def test_channels_none_is_grey_only_when_all_are(tmp_path):
    grey, colour = random_image(4, 4), random_image(4, 4, 3)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert data.load(f"folder:{tmp_path}").images.shape == (1, 4, 4, 1)
    Image.fromarray(colour).save(tmp_path / "b.png")
    images = data.load(f"folder:{tmp_path}").images
    assert images.shape == (2, 4, 4, 3) and (images[0] == grey[..., None]).all() and np.array_equal(images[1], colour)


def test_luma(tmp_path):
    array = random_image(6, 6, 3)
    luma = array @ np.array([0.299, 0.587, 0.114])
    assert np.abs(load_one(tmp_path, Image.fromarray(array), channels=1)[..., 0] - luma).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_over_white(tmp_path, mode):
    array = random_image(16, 16, len(mode))
    array[0, :, -1], array[1, :, -1] = 0, 255
    loaded = load_one(tmp_path, Image.fromarray(array, mode))
    alpha = array[..., -1:] / 255
    expected = array[..., :-1] * alpha + 255 * (1 - alpha)
    assert loaded.shape == expected.shape and np.abs(loaded - expected).max() <= 1
    assert (loaded[0] == 255).all() and np.array_equal(loaded[1], array[1, :, :-1])


def palette_image():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("L")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90], "RGB")
    assert image.mode == "P"
    return image


def test_palette(tmp_path):
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    assert load_one(tmp_path, palette_image()).tolist() == expected
    assert load_one(tmp_path, palette_image(), "a.gif").tolist() == expected


def test_palette_with_one_transparent_entry(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    white = [255, 255, 255]
    for name in ("a.png", "a.gif"):
        palette_image().save(folder / name, transparency=1)
        loaded = data.load(f"folder:{folder}").images[0]
        assert loaded.tolist() == [[[10, 20, 30], white], [[70, 80, 90], white]]
        os.remove(folder / name)


def test_palette_with_an_alpha_for_each_entry(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    palette_image().save(folder / "a.png", transparency=bytes([0, 255, 128]))
    loaded = data.load(f"folder:{folder}").images[0].astype(int)
    assert loaded[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    assert np.abs(loaded[1, 0] - [162, 167, 172]).max() <= 1


def test_transparent_colour_without_alpha_channel(tmp_path):
    rgb = np.array([[[9, 8, 7], [1, 2, 3]]])
    loaded = load_one(tmp_path, png(rgb, 8, 2, struct.pack(">HHH", 1, 2, 3)))
    assert loaded.tolist() == [[[9, 8, 7], [255, 255, 255]]]
    assert load_one(tmp_path, png(np.array([[5, 6]]), 8, 0, b"\0\6")).tolist() == [[[5], [255]]]


SIXTEEN = np.array([[0, 128, 129, 257], [300, 32768, 65406, 65535]])
EIGHT = [[0, 0, 1, 1], [1, 128, 254, 255]]  # round(v / 257); clipping would give 255 nearly everywhere


def test_sixteen_bit_grey(tmp_path):
    assert load_one(tmp_path, png(SIXTEEN, 16, 0))[..., 0].tolist() == EIGHT
    (tmp_path / "one" / "a.png").unlink()
    assert load_one(tmp_path, Image.fromarray(SIXTEEN.astype(np.uint16)), "a.tif")[..., 0].tolist() == EIGHT
    (tmp_path / "one" / "a.tif").unlink()
    pgm = b"P5 4 2 65535\n" + SIXTEEN.astype(">u2").tobytes()
    assert load_one(tmp_path, pgm, "a.pgm")[..., 0].tolist() == EIGHT
    assert Image.open(io.BytesIO(pgm)).mode == "I" and Image.open(io.BytesIO(png(SIXTEEN, 16, 0))).mode == "I;16"


def test_big_endian_sixteen_bit_tiff():
    image = Image.frombytes("I;16B", (4, 2), SIXTEEN.astype(">u2").tobytes())
    array, changes = decoding.to_array(image, (2, 4), 1)
    assert array[..., 0].tolist() == EIGHT and changes == "cut to 8 bits"


def test_sixteen_bit_grey_with_a_transparent_value(tmp_path):
    assert load_one(tmp_path, png(SIXTEEN, 16, 0, struct.pack(">H", 300)))[1].tolist() == [[255], [128], [254], [255]]


def test_sixteen_bit_colour_and_alpha(tmp_path):
    rgb = np.array([[[65535, 32768, 255], [256, 128, 1000]]])
    assert load_one(tmp_path, png(rgb, 16, 2)).tolist() == [[[255, 128, 0], [1, 0, 3]]]
    assert load_one(tmp_path, png(np.array([[[1000, 0], [30000, 65535]]]), 16, 4), channels=1).tolist() == [
        [[255], [117]]
    ]


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.float32), np.full((2, 2), 70000, np.int32)])
def test_deeper_pixels_are_refused(tmp_path, array):
    with pytest.raises(InputError, match=r"a.tif: (floating-point|32-bit) pixels; expected 8 or 16 bits a channel"):
        load_one(tmp_path, Image.fromarray(array), "a.tif")


def test_cmyk_jpeg(tmp_path):
    cmyk = Image.merge("CMYK", [Image.new("L", (16, 16), v) for v in (255, 0, 0, 0)])
    file = io.BytesIO()
    cmyk.save(file, "JPEG", quality=100)
    assert Image.open(io.BytesIO(file.getvalue())).mode == "CMYK"
    loaded = load_one(tmp_path, file.getvalue(), "a.jpg").astype(int)  # cyan
    assert np.abs(loaded - [0, 255, 255]).max() <= 3


# By the EXIF standard the file's first row and column are, for 1 to 8, the picture's: top left, top right, bottom
# right, bottom left, left top, right top, right bottom, left bottom. `upright` undoes it.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(4, 6, 3), (4, 6), (5, 5, 3)])
def test_exif_orientation(tmp_path, orientation, shape):
    array = random_image(*shape)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", exif=exif)
    loaded = load_one(tmp_path, file.getvalue())
    expected = UPRIGHT[orientation](array)
    assert np.array_equal(loaded, expected.reshape(*expected.shape[:2], -1))


@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_orientation_of_jpeg_and_sixteen_bits(tmp_path, orientation):
    array = np.zeros((16, 32), np.uint8)
    array[:8, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", exif=exif)
    loaded = load_one(tmp_path, file.getvalue(), "a.jpg")[..., 0]
    assert np.abs(loaded.astype(int) - UPRIGHT[orientation](array)).max() <= 4
    (tmp_path / "one" / "a.jpg").unlink()
    sixteen = Image.fromarray(array.astype(np.uint16) * 257)
    file = io.BytesIO()
    sixteen.save(file, "PNG", exif=exif)
    assert np.array_equal(load_one(tmp_path, file.getvalue())[..., 0], UPRIGHT[orientation](array))


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_first_frame_of_an_animation(tmp_path, name):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    folder = tmp_path / "one"
    folder.mkdir()
    options = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(folder / name, save_all=True, append_images=frames[1:], **options)
    assert Image.open(folder / name).n_frames == 3
    assert (data.load(f"folder:{folder}").images[0] == [255, 0, 0]).all()


# Sizes.


@pytest.mark.parametrize(
    "shape, target, box",
    [
        ((40, 60, 3), (10, 10), (0, 40, 10, 50)),  # wide: the middle 40 columns
        ((60, 40, 3), (10, 10), (10, 50, 0, 40)),
        ((36, 40), (6, 4), (0, 36, 8, 32)),  # 3:2 out of 9:10
        ((8, 8, 3), (4, 4), (0, 8, 0, 8)),
        ((9, 4, 3), (2, 4), (3, 5, 0, 4)),  # only cropped; the half pixel left over goes to the top
    ],
)
def test_crop_and_area_average(tmp_path, shape, target, box):
    array = random_image(*shape)
    top, bottom, left, right = box
    part = array[top:bottom, left:right].reshape(bottom - top, right - left, -1)
    if shape[0] == 9:
        part = array[4:6]
    rows, columns = part.shape[0] // target[0], part.shape[1] // target[1]
    means = part.reshape(target[0], rows, target[1], columns, -1).astype(np.float64).mean((1, 3))
    loaded = load_one(tmp_path, Image.fromarray(array), image_size=target)
    assert loaded.shape == means.shape and np.abs(loaded - means).max() <= 1.0  # two passes, each rounded


def test_shrinking_by_a_fraction_takes_the_pixels_whose_centres_lie_inside(tmp_path):
    array = random_image(5, 7)
    loaded = load_one(tmp_path, Image.fromarray(array), image_size=(2, 3))[..., 0]
    # 7:5 is cropped to 3:2 by rows: 7 columns and 4 2/3 rows from row 1/6 on; each target pixel is 7/3 wide and high.
    assert loaded.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            rows = [r for r in range(5) if 1 / 6 + i * 7 / 3 < r + 0.5 <= 1 / 6 + (i + 1) * 7 / 3]
            columns = [c for c in range(7) if j * 7 / 3 < c + 0.5 <= (j + 1) * 7 / 3]
            assert abs(loaded[i, j] - array[np.ix_(rows, columns)].mean()) <= 1


def test_enlarging_keeps_a_linear_ramp(tmp_path):
    ramp = np.repeat((20 + 20 * np.arange(10, dtype=np.uint8))[None], 10, 0)
    loaded = load_one(tmp_path, Image.fromarray(ramp), image_size=40)[..., 0]
    expected = 20 + 20 * ((np.arange(40) + 0.5) / 4 - 0.5)  # bicubic interpolation is exact on a line, edges apart
    assert loaded.shape == (40, 40) and np.abs(loaded[:, 8:-8] - expected[8:-8]).max() <= 1


@pytest.mark.parametrize("size", [(333, 77), (1, 9), (640, 479), (3, 1000)])
@pytest.mark.parametrize("target", [(7, 13), (64, 64), (32, 31)])
def test_any_size_fits_any_target(size, target):
    for value in (0, 255):
        array, _ = decoding.to_array(Image.new("RGB", size, (value,) * 3), target, 3)
        assert array.shape == (*target, 3) and (array == value).all()


def test_differing_sizes_are_listed(tmp_path):
    for i, size in enumerate([(8, 4), (8, 4), (4, 8), (5, 5)]):
        Image.new("L", size).save(tmp_path / f"{i}.png")
    with pytest.raises(
        InputError, match=r"name one with --image_size.*width x height \(images\): 8x4 \(2\), 5x5 \(1\), 4x8"
    ):
        data.load(f"folder:{tmp_path}")
    images = data.load(f"folder:{tmp_path}", 4).images
    assert images.shape == (4, 4, 4, 1)


# What is said to have changed the pixels.


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
    array = random_image(*shape)
    array[..., -1] = 255
    return array


def turned(array, form):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(array, form, exif=exif)


PICTURES = [
    # name, file, image_size and channels asked for, what was done
    ("grey", GREY, {}, ""),
    ("colour", png_bytes(random_image(4, 4, 3)), {}, ""),
    ("one bit", encoded(np.eye(4, dtype=bool)), {}, ""),
    ("lossy", encoded(random_image(4, 4, 3), "JPEG"), {}, ""),
    ("lossy grey", encoded(random_image(4, 4), "WEBP"), {"channels": 3}, ""),  # the format has no grey
    ("turned", turned(random_image(4, 6, 3), "PNG"), {"image_size": (6, 4)}, ""),
    ("turned, of the size that lies in the file", turned(random_image(4, 6, 3), "JPEG"), {"image_size": (4, 6)},
     "cropped and resized"),
    ("opaque", encoded(opaque(4, 4, 4)), {}, ""),
    ("opaque grey", encoded(opaque(4, 4, 2)), {}, ""),
    ("transparent", encoded(random_image(4, 4, 4)), {}, "laid over white"),
    ("transparent grey", encoded(random_image(4, 4, 2)), {}, "laid over white"),
    ("transparent colour", png(np.array([[[9, 8, 7], [1, 2, 3]]]), 8, 2, struct.pack(">HHH", 1, 2, 3)), {},
     "laid over white"),
    ("transparent colour of no pixel", png(np.array([[[9, 8, 7], [1, 2, 3]]]), 8, 2, struct.pack(">HHH", 5, 5, 5)),
     {}, ""),
    ("sixteen bits, grey", png(SIXTEEN, 16, 0), {}, "cut to 8 bits"),
    ("sixteen bits, PGM", b"P5 4 2 65535\n" + SIXTEEN.astype(">u2").tobytes(), {}, "cut to 8 bits"),
    ("sixteen bits, colour", png(random_image(4, 4, 3), 16, 2), {}, "cut to 8 bits"),
    ("sixteen bits, PPM", b"P6 4 2 65535\n" + bytes(48), {}, "cut to 8 bits"),
    ("sixteen bits, TIFF", tiff_of_sixteen_bits(random_image(4, 4, 3)), {}, "cut to 8 bits"),
    ("four bits, PPM", b"P6 4 2 15\n" + bytes(24), {}, ""),
    ("grey to RGB", GREY, {"channels": 3}, "made RGB"),
    ("RGB to grey", png_bytes(random_image(4, 4, 3)), {"channels": 1}, "made grey"),
    ("inks", encoded(random_image(4, 4, 4), "JPEG", "CMYK"), {}, "made RGB"),
    ("cropped", png_bytes(random_image(4, 6, 3)), {"image_size": 4}, "cropped"),
    ("resized", png_bytes(random_image(4, 6)), {"image_size": (2, 3)}, "resized"),
    ("enlarged", png_bytes(random_image(4, 6)), {"image_size": (8, 12)}, "resized"),
    ("all of it", encoded(random_image(4, 6, 4)), {"image_size": 2, "channels": 1},
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
    members = {f"{i}.png": png_bytes(random_image(4, 4)) for i in range(3)}
    members |= {f"wide{i}.png": png_bytes(random_image(4, 6)) for i in range(2)}
    members |= {"large.png": png_bytes(random_image(8, 8)), "bad.png": members["wide0.png"][:-30]}
    loaded = data.load(write_zip(tmp_path / "a.zip", members), image_size=4, skip_bad_images=True)
    assert len(loaded.images) == 6 and loaded.altered == {"cropped": 2, "resized": 1}


# One file.


def test_one_file_by_the_same_rules(tmp_path):
    path = tmp_path / "photo of mine"
    path.write_bytes(turned(random_image(4, 6, 3), "PNG"))
    array, changes, size = decoding.read_image("--photo", path, None, 3)
    assert np.array_equal(array, np.rot90(random_image(4, 6, 3), -1)) and changes == "" and size == (6, 4)
    array, changes, size = decoding.read_image("--photo", path, (3, 2), 1)
    assert array.shape == (3, 2, 1) and changes == "made grey and resized" and size == (6, 4)


@pytest.mark.parametrize(
    "content, text",
    [
        (None, "No such file or directory"),
        ("folder", "Is a directory"),
        (b"", "empty file"),
        (b"text", "not a readable image; expected png, jpg"),
        (png_bytes(random_image(40, 40))[:-300], "truncated"),
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


# Bad input.


def test_damaged_files_are_named_with_a_reason(tmp_path):
    (tmp_path / "0.png").write_bytes(GREY)
    (tmp_path / "1.png").write_bytes(png_bytes(random_image(40, 40, 3))[:-900])
    (tmp_path / "2.jpg").write_bytes(b"")
    (tmp_path / "3.gif").write_bytes(b"text")
    flipped = bytearray(png_bytes(random_image(40, 40, 3)))
    flipped[len(flipped) // 2] ^= 0xFF
    (tmp_path / "4.png").write_bytes(flipped)
    (tmp_path / "5.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # would start Ghostscript
    (tmp_path / "6.png").mkdir()  # a folder of no images
    (tmp_path / "7.txt").write_bytes(b"")
    lines = bad_lines(f"folder:{tmp_path}", image_size=4, channels=1)
    assert "5 of 6 image files cannot be used" in lines[0]
    assert [line.split(":")[0] for line in lines[1:]] == ["  1.png", "  2.jpg", "  3.gif", "  4.png", "  5.png"]
    assert "truncated" in lines[1] and "empty file" in lines[2]
    assert "not a readable image; expected png" in lines[3] and "not a readable image" in lines[5]
    assert all("object at 0x" not in line for line in lines)


def test_decompression_bombs_are_refused_by_their_headers(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # no pixel is decoded
    bomb = png(np.zeros((1, 1)), 8, 0)
    for name, width, height in (("a", 13378, 13377), ("b", 65535, 65535)):  # 70 more than the limit; Pillow's own limit
        header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        content = bomb[:12] + header + struct.pack(">I", zlib.crc32(header)) + bomb[33:]
        (tmp_path / f"{name}.png").write_bytes(content)
    lines = bad_lines(f"folder:{tmp_path}", image_size=4, channels=1)
    assert all("expected at most 178,956,970" in line for line in lines[1:3]) and len(lines) == 3


def test_large_pictures_are_decoded_one_after_the_other(tmp_path, monkeypatch):
    """A few kilobytes may be a gigabyte of black: as many of those as there are threads would not fit."""
    monkeypatch.setattr(decoding.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(decoding, "_BLOCK", 1)
    running, most, to_array = [], [], decoding.to_array

    def watched(*args):
        running.append(1)
        most.append(len(running))
        time.sleep(0.01)
        running.pop()
        return to_array(*args)

    monkeypatch.setattr(decoding, "to_array", watched)
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(GREY)
    data.load(f"folder:{tmp_path}", 4, 1)
    assert max(most) > 1
    most.clear()
    monkeypatch.setattr(decoding, "_LARGE_PIXELS", 15)
    data.load(f"folder:{tmp_path}", 4, 1)
    assert max(most) == 1


def text_bomb(inflated):
    """A PNG with a compressed comment."""
    comment = b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(inflated), 9)
    chunk = struct.pack(">I", len(comment) - 4) + comment + struct.pack(">I", zlib.crc32(comment))
    return GREY[:33] + chunk + GREY[33:]


def test_a_comment_is_not_unpacked_to_any_size(tmp_path):
    (tmp_path / "a.png").write_bytes(text_bomb(1000))
    (tmp_path / "b.png").write_bytes(text_bomb(2**26))
    lines = bad_lines(f"folder:{tmp_path}")
    assert len(lines) == 2 and lines[1].startswith("  b.png: ")


def test_the_pixel_limit_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 16)
    assert load_one(tmp_path, GREY).shape == (4, 4, 1)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 15)
    with pytest.raises(InputError, match=r"a.png: 4x4 pixels; expected at most 15 \(decompression bomb"):
        load_one(tmp_path, GREY)


def test_pillows_warning_below_the_limit_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert load_one(tmp_path, GREY).shape == (4, 4, 1)
    assert not seen


def test_progress_only_for_many_files(tmp_path, monkeypatch, capsys):
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(GREY)
    data.load(f"folder:{tmp_path}")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(decoding, "PROGRESS_FROM_FILES", 40)
    data.load(f"folder:{tmp_path}", progress=False)
    assert capsys.readouterr().err == ""
    data.load(f"folder:{tmp_path}")
    captured = capsys.readouterr()
    assert "Decoding" in captured.err and "40/40" in captured.err and captured.out == ""
