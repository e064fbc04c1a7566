"""Manifests of OCDBT, the database in which Orbax keeps arrays. What they refer to is packed, and not followed."""

from pathlib import Path

from ckptwatch.formats.reading import open_regular

NAME = "manifest.ocdbt"
LIMIT = 256 * 1024  # bytes; of a larger one only the length is checked
_MAGIC = b"\x0c\xdb\x3a\x2a"
_POLYNOMIAL = 0x82F63B78  # of CRC-32C, bits reversed


def manifest_flaw(path: Path) -> str:
    """What is wrong with a manifest: cut off, or a wrong sum; "" if nothing is. Raises OSError.

    Layout: a magic number, its own length in 8 bytes, content, CRC-32C of all before it.
    """
    with open_regular(path) as file:
        data = file.read(LIMIT)
        size = file.seek(0, 2)
    if len(data) < 16 or not data.startswith(_MAGIC):
        return "no manifest, or cut off"
    length = int.from_bytes(data[4:12], "little")
    if length != size:
        return f"{size:,} bytes of {length:,}"
    if size > len(data):
        return ""
    return "" if crc32c(data[:-4]) == int.from_bytes(data[-4:], "little") else "its sum (CRC-32C) is wrong"


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _entry(number: int) -> int:
    for _ in range(8):
        number = (number >> 1) ^ (_POLYNOMIAL if number & 1 else 0)
    return number


_TABLE = tuple(map(_entry, range(256)))
