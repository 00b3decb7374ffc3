"""Reading of untrusted zip archives of pictures and of arrays (.npz).

The size that a member claims is not trusted: an archive of a few kilobytes can hold gigabytes of zeros, the same bytes
many times over, or more than it says.
"""

import os
import zipfile
from typing import IO

from kddpm.base.files import check_regular

_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
_HEADER_BYTES = 30  # minimum size of a local file header, without the name
_UNSUSPICIOUS_BYTES = 2**26
_LARGEST_RATIO = 100  # compression ratio allowed above that size; deflate itself reaches at most 1,032


def opened(path: str | os.PathLike) -> zipfile.ZipFile:
    """Open an archive and check that its members do not overlap.

    Raises:
        OSError, ValueError, NotImplementedError or zipfile.BadZipFile: the file is missing, or no such archive.
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
    """Open a member for reading; `read(n)` inflates no more than n bytes.

    Raises:
        ValueError: the member is neither stored nor deflated; other methods do not bound what one read inflates.
    """
    if member.compress_type not in _METHODS:
        method = zipfile.compressor_names.get(member.compress_type, member.compress_type)  # type: ignore[attr-defined]
        raise ValueError(f"compressed by {method}; expected {' or '.join(_METHODS.values())}")
    return archive.open(member)


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Return the whole content of a member.

    Raises:
        ValueError: as in `open_member`, or the member is large and its compression ratio is suspicious.
    """
    if member.file_size > max(_UNSUSPICIOUS_BYTES, _LARGEST_RATIO * member.compress_size):
        raise ValueError(f"{member.compress_size:,} bytes that claim to be {member.file_size:,} (zip bomb?)")
    with open_member(archive, member) as file:
        return file.read(member.file_size)  # without a size it would also inflate what lies beyond
