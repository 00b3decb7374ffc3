"""Chunks of a PNG that say how it is to be seen."""

import struct
import zlib

HEADER = 33  # bytes of the signature and the header
GAMMA = struct.pack(">I", 20000)  # of gAMA: far from that of a screen
QUARTER_TURN = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"  # of eXIf: to the right, to be upright


def with_chunk(png: bytes, name: str, data: bytes, behind: int = HEADER) -> bytes:
    """A PNG with another chunk behind so many bytes."""
    named = name.encode() + data
    chunk = struct.pack(">I", len(data)) + named + struct.pack(">I", zlib.crc32(named))
    return png[:behind] + chunk + png[behind:]
