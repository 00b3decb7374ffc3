import numpy as np
import pytest
from PIL import Image

from kddpm.base.errors import InputError
from kddpm.base.files import replacing
from kddpm.data import images

GREY = 128  # the gutter


def numbered(count, height, width, channels=1):
    """Images without two equal pixels next to each other, none of them gutter grey."""
    return (np.arange(count * height * width * channels) % 120).astype(np.uint8).reshape(count, height, width, channels)


def test_conversions_are_exact_and_inverse():
    levels = np.arange(256, dtype=np.uint8)
    x = np.array(images.to_float(levels))
    assert x.dtype == np.float32 and x[0] == -1 and x[255] == 1
    np.testing.assert_array_equal(x, levels.astype(np.float32) / np.float32(127.5) - np.float32(1))
    np.testing.assert_allclose(x, levels / 127.5 - 1, atol=6e-8)
    again = np.array(images.to_uint8(x))
    assert again.dtype == np.uint8
    np.testing.assert_array_equal(again, levels)


def test_to_uint8_rounds_to_the_nearest_level_and_clips():
    levels = np.arange(256)
    for offset in (-0.49, 0.49):
        np.testing.assert_array_equal(images.to_uint8((levels + offset) / 127.5 - 1), levels)
    outside = np.array([-np.inf, -5.0, -1.01, 1.01, 5.0, 1e9, np.inf])
    assert np.array(images.to_uint8(outside)).tolist() == [0, 0, 0, 255, 255, 255, 255]


def test_grid_puts_every_pixel_in_its_place():
    pictures = np.array([[[1, 2]], [[3, 4]], [[5, 6]]], np.uint8)[..., np.newaxis]
    result = images.grid(pictures, columns=2, gutter=1, enlarge=1)
    assert result.dtype == np.uint8
    assert result[..., 0].tolist() == [
        [GREY, GREY, GREY, GREY, GREY, GREY, GREY],
        [GREY, 1, 2, GREY, 3, 4, GREY],
        [GREY, GREY, GREY, GREY, GREY, GREY, GREY],
        [GREY, 5, 6, GREY, GREY, GREY, GREY],
        [GREY, GREY, GREY, GREY, GREY, GREY, GREY],
    ]
    enlarged = images.grid(pictures[:1], gutter=0, enlarge=2)
    assert enlarged[..., 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


def test_grid_keeps_colours():
    pictures = numbered(2, 3, 3, channels=3)
    result = images.grid(pictures, columns=2, gutter=2, enlarge=1)
    assert result.shape == (7, 12, 3)
    np.testing.assert_array_equal(result[2:5, 2:5], pictures[0])
    np.testing.assert_array_equal(result[2:5, 7:10], pictures[1])
    assert np.all(result[:2] == GREY) and np.all(result[:, 5:7] == GREY) and np.all(result[:, 10:] == GREY)


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (4, (2, 2)), (5, (2, 3)), (10, (3, 4))])
def test_grid_is_as_square_as_possible(count, shape):
    rows, columns = shape
    assert images.grid(numbered(count, 5, 4), gutter=1, enlarge=1).shape == (rows * 6 + 1, columns * 5 + 1, 1)


@pytest.mark.parametrize(("side", "factor"), [(1, 48), (8, 6), (28, 2), (32, 2), (48, 1), (64, 1), (200, 1)])
def test_small_pictures_are_enlarged(side, factor):
    assert images.grid(numbered(1, side, side), gutter=0).shape == (side * factor, side * factor, 1)
    assert images.grid(numbered(1, side, 1), gutter=0).shape == (side * factor, factor, 1)


def test_filmstrip_has_a_row_for_each_picture_and_time_goes_right():
    frames = np.arange(6, dtype=np.uint8).reshape(3, 2, 1, 1, 1)  # frames 0, 1, 2 of pictures 0 and 1
    result = images.filmstrip(frames, gutter=0, enlarge=1)
    assert result[..., 0].tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_png_reads_back(tmp_path, channels, mode):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, channels)).astype(np.uint8)
    images.save_png(tmp_path / "new" / "picture.png", picture)
    with Image.open(tmp_path / "new" / "picture.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", mode, (7, 5))
        np.testing.assert_array_equal(np.array(image).reshape(picture.shape), picture)


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_reads_back(tmp_path, channels):
    frames = [numbered(1, 5, 7, channels)[0] + np.uint8(10 * k) for k in range(4)]
    images.save_gif(tmp_path / "walk.gif", frames, duration_ms=80, hold_ms=1200)
    with Image.open(tmp_path / "walk.gif") as image:
        assert (image.format, image.size, image.n_frames, image.info["loop"]) == ("GIF", (7, 5), 4, 0)
        durations = []
        for k, frame in enumerate(frames):
            image.seek(k)
            durations.append(image.info["duration"])
            np.testing.assert_array_equal(np.array(image.convert("RGB")), np.broadcast_to(frame, (5, 7, 3)))
    assert durations == [80, 80, 80, 1200]


@pytest.mark.parametrize(
    ("pictures", "received"),
    [
        (np.zeros((2, 4, 4, 1), np.float32), r"float32 \(2, 4, 4, 1\)"),
        (np.zeros((2, 4, 4, 2), np.uint8), r"uint8 \(2, 4, 4, 2\)"),
        (np.zeros((2, 4, 4, 4), np.uint8), r"uint8 \(2, 4, 4, 4\)"),
        (np.zeros((4, 4, 1), np.uint8), r"uint8 \(4, 4, 1\)"),
        (np.zeros((0, 4, 4, 1), np.uint8), r"uint8 \(0, 4, 4, 1\)"),
    ],
)
def test_unusable_images_are_named(pictures, received):
    with pytest.raises(InputError, match=f"`images` must be uint8 .N, H, W, 1 or 3. with N > 0. Received: {received}"):
        images.grid(pictures)


def test_columns_are_at_least_one():
    with pytest.raises(InputError, match="`columns` must be at least 1. Received: 0"):
        images.grid(np.zeros((2, 4, 4, 1), np.uint8), columns=0)


def test_files_refuse_what_a_grid_refuses(tmp_path):
    with pytest.raises(InputError, match=r"Received: float64 \(1, 4, 4, 1\)"):
        images.save_png(tmp_path / "a.png", np.zeros((4, 4, 1)))
    with pytest.raises(InputError, match=r"Received: uint8 \(2, 4, 4, 2\)"):
        images.save_gif(tmp_path / "a.gif", [np.zeros((4, 4, 2), np.uint8)] * 2)
    assert not list(tmp_path.iterdir())


def test_replacing_leaves_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="disk full"), replacing(path) as beside:
        assert beside.parent.parent == tmp_path and beside.name == path.name  # on the same disk, with the same suffix
        beside.write_text("half")
        raise RuntimeError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch, name):
    def fail(image, path, *args, **kwargs):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    picture = np.zeros((4, 4, 1), np.uint8)
    with pytest.raises(OSError, match="disk full"):
        images.save_png(tmp_path / name, picture) if name == "a.png" else images.save_gif(tmp_path / name, [picture])
    assert not list(tmp_path.iterdir())
