"""TFRecord framing: length (8 bytes), its checksum (4), data, the data's checksum (4); all little-endian.

The checksums are CRC-32C, rotated and shifted so that a record within a record does not pass for one:
https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

import struct

HEADER, FOOTER = 12, 4  # bytes before and after the data

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(map(_entry, range(256)))


def masked_crc(data: bytes | memoryview) -> int:
    """The checksum as it is stored. About 10 MB/s: not for megabytes."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def length_at(data: bytes, at: int) -> int | None:
    """Bytes of data in the record that begins there; None where the length's checksum is wrong. At least HEADER bytes."""
    length, crc = _HEADER.unpack_from(data, at)
    return int(length) if masked_crc(data[at:at + 8]) == crc else None


def is_intact(data: bytes | memoryview, record: bytes, end: int) -> bool:
    """Does the checksum at `end` of `record` match the data before it?"""
    return bool(_CRC.unpack_from(record, end)[0] == masked_crc(data))
