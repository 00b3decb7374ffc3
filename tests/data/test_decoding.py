"""What becomes of a picture: formats, channels, depths, orientations and sizes."""

import io
import os
import struct

import numpy as np
import pytest
from helpers.image_samples import SIXTEEN, load_one, palette_image, png, random_pixels
from PIL import Image

from kddpm import data
from kddpm.base.errors import InputError
from kddpm.data import decoding


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "ppm", "PNG", "Tiff"])
def test_lossless_formats_come_out_bit_for_bit(tmp_path, suffix):
    array = random_pixels(5, 7, 3)
    assert np.array_equal(load_one(tmp_path, Image.fromarray(array), f"a.{suffix}"), array)
    assert np.array_equal(load_one(tmp_path, Image.fromarray(array), f"a.{suffix}", image_size=(5, 7)), array)


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tif", "pgm"])
def test_grey_has_one_channel(tmp_path, suffix):
    array = random_pixels(5, 7)
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
    grey, colour = random_pixels(4, 4), random_pixels(4, 4, 3)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert data.load(f"folder:{tmp_path}").images.shape == (1, 4, 4, 1)
    Image.fromarray(colour).save(tmp_path / "b.png")
    images = data.load(f"folder:{tmp_path}").images
    assert images.shape == (2, 4, 4, 3) and (images[0] == grey[..., None]).all() and np.array_equal(images[1], colour)


def test_luma(tmp_path):
    array = random_pixels(6, 6, 3)
    luma = array @ np.array([0.299, 0.587, 0.114])
    assert np.abs(load_one(tmp_path, Image.fromarray(array), channels=1)[..., 0] - luma).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_over_white(tmp_path, mode):
    array = random_pixels(16, 16, len(mode))
    array[0, :, -1], array[1, :, -1] = 0, 255
    loaded = load_one(tmp_path, Image.fromarray(array, mode))
    alpha = array[..., -1:] / 255
    expected = array[..., :-1] * alpha + 255 * (1 - alpha)
    assert loaded.shape == expected.shape and np.abs(loaded - expected).max() <= 1
    assert (loaded[0] == 255).all() and np.array_equal(loaded[1], array[1, :, :-1])


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
    array = random_pixels(*shape)
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
    array = random_pixels(*shape)
    top, bottom, left, right = box
    part = array[top:bottom, left:right].reshape(bottom - top, right - left, -1)
    if shape[0] == 9:
        part = array[4:6]
    rows, columns = part.shape[0] // target[0], part.shape[1] // target[1]
    means = part.reshape(target[0], rows, target[1], columns, -1).astype(np.float64).mean((1, 3))
    loaded = load_one(tmp_path, Image.fromarray(array), image_size=target)
    assert loaded.shape == means.shape and np.abs(loaded - means).max() <= 1.0  # two passes, each rounded


def test_shrinking_by_a_fraction_takes_the_pixels_whose_centres_lie_inside(tmp_path):
    array = random_pixels(5, 7)
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
        InputError, match=r"name one with `image_size`.*width x height \(images\): 8x4 \(2\), 5x5 \(1\), 4x8"
    ):
        data.load(f"folder:{tmp_path}")
    images = data.load(f"folder:{tmp_path}", 4).images
    assert images.shape == (4, 4, 4, 1)
