"""Pictures that are damaged, too large or something else."""

import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from helpers.image_samples import GREY, bad_lines, load_one, png, png_bytes, random_pixels
from PIL import Image, ImageFile

from kddpm import data
from kddpm.base.errors import InputError
from kddpm.data import decoding


def test_damaged_files_are_named_with_a_reason(tmp_path):
    (tmp_path / "0.png").write_bytes(GREY)
    (tmp_path / "1.png").write_bytes(png_bytes(random_pixels(40, 40, 3))[:-900])
    (tmp_path / "2.jpg").write_bytes(b"")
    (tmp_path / "3.gif").write_bytes(b"text")
    flipped = bytearray(png_bytes(random_pixels(40, 40, 3)))
    flipped[len(flipped) // 2] ^= 0xFF
    (tmp_path / "4.png").write_bytes(flipped)
    (tmp_path / "5.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # would start Ghostscript
    (tmp_path / "6.png").mkdir()  # a folder of no images
    (tmp_path / "7.txt").write_bytes(b"")
    lines = bad_lines(f"folder:{tmp_path}", image_size=4, channels=1)
    assert "5 of 6 image files cannot be used" in lines[0]
    assert [line.split(":")[0] for line in lines[1:]] == ["  1.png", "  2.jpg", "  3.gif", "  4.png", "  5.png"]
    assert "truncated" in lines[1] and "empty file" in lines[2]
    assert "not a readable image; expected PNG" in lines[3] and "not a readable image" in lines[5]
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


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.qoi", b"qoif" + struct.pack(">IIBB", 60_000, 60_000, 3, 0)),
        ("a.tga", struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, 60_000, 60_000, 24, 0)),
        ("a.sgi", struct.pack(">HBBHHHH", 474, 1, 1, 3, 60_000, 60_000, 3) + bytes(500)),
        ("a.pcx", struct.pack("<BBBBHHHH", 10, 5, 1, 8, 0, 0, 60_000, 60_000) + bytes(53) + b"\3\x60\xea" + bytes(60)),
        ("a.pgm", b"P5 60000 60000 255 "),
    ],
)
def test_bombs_of_other_formats_are_refused_by_their_headers(tmp_path, name, header):
    (tmp_path / name).write_bytes(header)
    began = time.process_time()
    (line,) = bad_lines(f"folder:{tmp_path}", image_size=4, channels=1)[1:]
    assert "decompression bomb?" in line and time.process_time() - began < 5


def test_a_bomb_in_a_jpeg_2000_and_an_avif_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 15)
    for name, form in (("a.jp2", "JPEG2000"), ("b.avif", "AVIF")):
        Image.new("L", (4, 4)).save(tmp_path / name, form)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("it was decoded"))
    _, *lines = bad_lines(f"folder:{tmp_path}", image_size=4, channels=1)
    assert len(lines) == 2 and all("4x4 pixels; expected at most 15 (decompression bomb?)" in line for line in lines)


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
