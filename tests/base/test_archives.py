"""Archives that hold more than they say, or less, or the same twice: refused in a line, and in little memory."""

import io
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from helpers.image_samples import GREY, bad_lines, write_zip

from kddpm import data
from kddpm.base import archives
from kddpm.base.errors import InputError
from kddpm.data import image_cache

COMPRESSED_BYTES, FILE_BYTES, HEADER_OFFSET = 20, 24, 42  # where a record of the central directory holds them
MIB = 2**20


def deflated(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def forged(path, name, place, value):
    """One number of a member's record in the central directory replaced."""
    content = bytearray(path.read_bytes())
    record = content.rindex(name.encode()) - 46
    assert content[record : record + 4] == b"PK\1\2"
    struct.pack_into("<I", content, record + place, value)
    path.write_bytes(content)
    return path


def peak(work):
    """Bytes that Python holds at most meanwhile."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_zeros_that_were_packed_to_a_thousandth_are_not_unpacked(tmp_path):
    path = deflated(tmp_path / "a.zip", {"a.png": bytes(80 * MIB), "b.png": GREY})
    lines = []
    assert peak(lambda: lines.extend(bad_lines(f"zip:{path}"))) < 8 * MIB
    assert "1 of 2" in lines[0] and lines[1].endswith("bytes that claim to be 83,886,080 (zip bomb?)")


def test_large_members_that_hardly_shrink_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_UNSUSPICIOUS_BYTES", 10)
    assert len(data.load(f"zip:{deflated(tmp_path / 'a.zip', {'a.png': GREY})}").images) == 1


def test_flat_pictures_shrink_a_lot_and_are_read(tmp_path):
    flat = b"P6 1000 1000 255\n" + bytes(3 * 10**6)
    path = deflated(tmp_path / "a.zip", {"a.ppm": flat})
    assert os.path.getsize(path) < len(flat) / 500
    assert data.load(f"zip:{path}", 4).images.shape == (1, 4, 4, 1) or data.load(f"zip:{path}", 4, 3).images.any() == 0


def test_no_more_is_unpacked_than_a_member_claims(tmp_path):
    path = forged(deflated(tmp_path / "a.zip", {"a.png": bytes(80 * MIB)}), "a.png", FILE_BYTES, 1000)
    lines = []
    assert peak(lambda: lines.extend(bad_lines(f"zip:{path}"))) < 8 * MIB
    assert lines[1] == "  a.png: Bad CRC-32 for file 'a.png'"


@pytest.mark.parametrize(
    ("claim", "text"),
    [
        (2**30 + 1, "1,073,741,825 bytes; expected at most 1,073,741,824"),
        (2**30, "claim to be 1,073,741,824 (zip bomb?)"),
        (len(GREY) + 1, ""),
    ],
)
def test_members_that_claim_more_than_they_are(tmp_path, claim, text):
    path = forged(deflated(tmp_path / "a.zip", {"a.png": GREY}), "a.png", FILE_BYTES, claim)
    if text:
        assert text in bad_lines(f"zip:{path}")[1]
    else:
        assert len(data.load(f"zip:{path}").images) == 1  # the picture is all there


@pytest.mark.parametrize(("method", "name"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "lzma")])
def test_methods_that_unpack_without_bounds_are_not_used(tmp_path, method, name):
    path = deflated(tmp_path / "a.zip", {"a.png": bytes(MIB)}, method)
    assert bad_lines(f"zip:{path}")[1] == f"  a.png: compressed by {name}; expected stored or deflated"
    path = deflated(tmp_path / "a.npz", {"images.npy": bytes(MIB)}, method)
    with pytest.raises(InputError, match=f"compressed by {name}"):
        data.load(f"npz:{path}")


@pytest.mark.parametrize("kind", ["zip", "npz"])
def test_members_that_overlap_are_refused(tmp_path, kind):
    path = deflated(tmp_path / "a", {"a.png": GREY, "b.png": GREY})
    forged(path, "b.png", HEADER_OFFSET, 1)
    with pytest.raises(InputError, match=r"its members overlap \(zip bomb\?\)"):
        data.load(f"{kind}:{path}")


def test_archives_within_archives_stay_closed(tmp_path):
    inner = deflated(tmp_path / "inner.png", {"a.png": GREY})
    lines = bad_lines(write_zip(tmp_path / "a.zip", {"b.png": inner.read_bytes()}))
    assert "b.png: not a readable image" in lines[1]


def test_members_are_read_one_at_a_time(tmp_path):
    """Their sum may be larger than memory."""
    one = b"P6 1000 1000 255\n" + np.random.default_rng(0).bytes(3 * 10**6)
    path = deflated(tmp_path / "a.zip", {f"{i}.ppm": one for i in range(40)}, zipfile.ZIP_STORED)
    threads = min(8, os.cpu_count() or 1)
    assert peak(lambda: data.load(f"zip:{path}", 4)) < (threads + 3) * len(one) < os.path.getsize(path)


@pytest.mark.parametrize("kind", ["zip", "npz"])
def test_a_pipe_is_not_waited_for(tmp_path, kind):
    os.mkfifo(tmp_path / "a")
    with pytest.raises(InputError, match="regular file"):
        data.load(f"{kind}:{tmp_path / 'a'}")


# Arrays.


def npy(shape, content=b"", descr="|u1", version=(1, 0)):
    stream = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    write = np.lib.format.write_array_header_1_0 if version == (1, 0) else np.lib.format.write_array_header_2_0
    write(stream, header)
    return stream.getvalue() + content


def with_header(text):
    content = text.encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(content)) + content


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"images.npy": npy((10**15, 8, 8))}, "`images` is 64,000,000,000,000,000 bytes by its header, and 128 with"),
        ({"images.npy": npy((10**4000, 8, 8))}, "expected a NumPy .npz archive"),
        ({"images.npy": npy((-5, 8, 8), bytes(320))}, "must be .N, H, W.*Received: .-5, 8, 8"),
        ({"images.npy": npy((5, 8, 8), bytes(320), version=(2, 0))}, "expected version 1.0 of the .npy format"),
        ({"images.npy": npy((5, 8, 8), bytes(319))}, "`images` is 320 bytes by its header, and 447 with it|end after"),
        (
            {"images.npy": npy((2, 8, 8), bytes(128)), "labels.npy": npy((10**12,), descr="<i8")},
            "`labels` is 8,000,000,000,000 bytes by its header",
        ),
        ({"images.npy": with_header("((((")}, "expected a NumPy .npz archive"),
        ({"images.npy": with_header("-" * 9000 + "1")}, "expected a NumPy .npz archive"),
        ({"images.npy": with_header("{[]: 1}")}, "expected a NumPy .npz archive"),
        ({"images.npy": with_header("'" * 3 + " " * 60000)}, "expected a NumPy .npz archive"),
    ],
)
def test_headers_that_cannot_be_are_refused(tmp_path, members, text):
    path = deflated(tmp_path / "a.npz", members)
    with pytest.raises(InputError, match=text) as caught:
        data.load(f"npz:{path}")
    assert "\n" not in str(caught.value)


def test_images_that_were_packed_to_a_thousandth_need_a_cache(tmp_path, monkeypatch):
    """They are what they say they are, 80 MiB of black; but more than is kept in memory."""
    path = deflated(tmp_path / "a.npz", {"images.npy": npy((20 * MIB, 2, 2), bytes(80 * MIB))})
    monkeypatch.setattr(image_cache, "MAX_RAM_BYTES", 40 * MIB)

    def refused():
        with pytest.raises(InputError, match="are more than the .* kept in memory"):
            data.load(f"npz:{path}")

    assert peak(refused) < 8 * MIB


def test_no_more_of_an_array_is_unpacked_than_a_member_claims(tmp_path):
    path = deflated(tmp_path / "a.npz", {"images.npy": npy((2, 8, 8), bytes(80 * MIB))})
    forged(path, "images.npy", FILE_BYTES, 128 + 128)

    def refused():
        with pytest.raises(InputError, match="Bad CRC-32"):
            data.load(f"npz:{path}")

    assert peak(refused) < 8 * MIB
