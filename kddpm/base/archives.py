"""Zip archives of pictures and of arrays (.npz) that may come from anyone.

What a member claims of its size is believed no further than memory allows: an archive of a few kilobytes can hold
gigabytes of zeros, the same bytes many times over, or more than it says.
"""

import os
import zipfile
from typing import IO

from kddpm.base.files import check_regular

_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
_HEADER_BYTES = 30  # before the name of a member, at the least
_UNSUSPICIOUS_BYTES = 2**26
_LARGEST_RATIO = 100  # above that size; deflate itself ends at 1,032


def opened(path: str | os.PathLike) -> zipfile.ZipFile:
    """An archive whose members lie beside each other.

    Raises:
        OSError, ValueError, NotImplementedError or zipfile.BadZipFile: no such file, or no such archive.
    """
    check_regular(path)
    archive = zipfile.ZipFile(path)
    end = 0
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        if member.header_offset < end:
            archive.close()
            raise zipfile.BadZipFile("its members overlap (zip bomb?)")
        end = member.header_offset + _HEADER_BYTES + member.compress_size
    return archive


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    """A member to read from, by a number of bytes: no more than that is inflated.

    Raises:
        ValueError: a member that is compressed in another way than stored or deflated, whose pieces have no bounds.
    """
    if member.compress_type not in _METHODS:
        method = zipfile.compressor_names.get(member.compress_type, member.compress_type)  # type: ignore[attr-defined]
        raise ValueError(f"compressed by {method}; expected {' or '.join(_METHODS.values())}")
    return archive.open(member)


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The whole of a member.

    Raises:
        ValueError: as `open_member`, and one that is large and nearly nothing but compression.
    """
    if member.file_size > max(_UNSUSPICIOUS_BYTES, _LARGEST_RATIO * member.compress_size):
        raise ValueError(f"{member.compress_size:,} bytes that claim to be {member.file_size:,} (zip bomb?)")
    with open_member(archive, member) as file:
        return file.read(member.file_size)  # without a number it would inflate what lies beyond, too
