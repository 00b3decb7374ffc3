"""Pictures of noise, and images encoded in every way that the tests of `data` need."""

import io
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from kddpm import data
from kddpm.base.errors import InputError

SIXTEEN = np.array([[0, 128, 129, 257], [300, 32768, 65406, 65535]])  # of 16-bit pixels


def random_pixels(*shape, seed=0):
    """A picture of noise, or several."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def png(array, bits, color_type, extra=b""):
    """A PNG of any depth, which Pillow does not write: grey 0, RGB 2, grey with alpha 4."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = array.shape[:2]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
    rows = b"".join(b"\0" + row.tobytes() for row in array.astype(">u2" if bits == 16 else "u1"))
    extra = chunk(b"tRNS", extra) if extra else b""
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def palette_image():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("L")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90], "RGB")
    assert image.mode == "P"
    return image


def load_one(tmp_path, content, name="a.png", **kwargs):
    """The only image of a folder, given as bytes or as a Pillow image."""
    folder = tmp_path / "one"
    folder.mkdir(exist_ok=True)
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        content.save(folder / name)
    return data.load(f"folder:{folder}", **kwargs).images[0]


def write_zip(path, members):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return f"zip:{path}"


def write_folder(path, members):
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return f"folder:{path}"


def write(tmp_path, members, zipped):
    """The spec of a zip archive, or of a folder to which the members are added."""
    return write_zip(tmp_path / "a.zip", members) if zipped else write_folder(tmp_path / "in", members)


def write_npz(path, **arrays):
    """The spec of a .npz archive."""
    np.savez(path, **arrays)
    return f"npz:{path}"


def write_images(folder, arrays, suffix=".png"):
    """Files 0.png, 1.png, ... in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i}{suffix}")


def png_bytes(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


GREY = png_bytes(random_pixels(4, 4))


def bad_lines(spec, **kwargs):
    with pytest.raises(InputError) as caught:
        data.load(spec, **kwargs)
    return str(caught.value).splitlines()
