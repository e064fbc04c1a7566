"""Zip files, read in full: every record against its CRC-32, and the directory against itself and the records' headers."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, cast
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_LZMA, ZIP_STORED, ZipInfo

from ckptwatch.formats.bulk import Bulk
from ckptwatch.formats.words import counted
from ckptwatch.formats.zip_directory import HEADER, ZipError, read_directory, start_of

ZIP = b"PK\x03\x04"
_PIECE = 1024 * 1024  # bytes unpacked at a time
_ENCRYPTED, _UTF8 = 0x2041, 0x800  # flags of a record
_DIRECTORY = 0x10     # attribute of a record
_NOT_READ = {ZIP_BZIP2, ZIP_LZMA, 93}  # methods of packing
_ENTRY = 46           # bytes of a record's entry in the directory, without name, extra and comment
_END = struct.Struct("<4s4H2LH")        # signature, disk, disk, entries, entries, size, offset, length of the comment
_LOCATOR = struct.Struct("<4sLQL")      # signature, disk, offset, disks
_END_64 = struct.Struct("<4sQ2H2L4Q")   # signature, size, versions, disk, disk, entries, entries, size, offset


class Damage(ValueError):
    """The file does not hold what was written; the text is evidence."""


class NoChecksum(Exception):
    """Nothing is wrong as far as can be told, but the content cannot be proven; the text says why."""


def check_zip(bulk: Bulk, begin: int = 0, end: int | None = None) -> str:
    """Every record of a zip file, or of one inside another file, against its CRC-32. Says what was checked.

    Raises Damage, NoChecksum, OSError.
    """
    end = bulk.size if end is None else end
    window = cast(BinaryIO, bulk.window(begin, end))
    try:
        records = sorted(read_directory(window), key=lambda r: r.header_offset)
        _check_end(window, records)
        unsummed = all(r.CRC == 0 for r in records)
        for record in records:
            start = begin + _start(window, record)
            crc, size = _sum(bulk, record, start)
            if size != record.file_size:
                raise Damage(f"record {record.filename}: {size:,} bytes of {record.file_size:,}")
            if crc != record.CRC and not unsummed:
                raise Damage(f"record {record.filename}: CRC-32 is {crc:08x}, was {record.CRC:08x} when it was written")
    except ZipError as error:
        raise Damage(str(error)) from error
    if unsummed:
        raise NoChecksum("a zip file whose records were written without CRC-32")
    return f"CRC-32 of {counted(len(records), 'record')}"


def _start(window: BinaryIO, record: ZipInfo) -> int:
    """Where the bytes of a record begin, if its own header agrees with the directory. Raises Damage, ZipError."""
    start = start_of(window, record)
    window.seek(record.header_offset)
    header = window.read(HEADER)
    known = _name(record)
    if (*struct.unpack_from("<2H", header, 6), window.read(len(known))) != (record.flag_bits, record.compress_type, known):
        raise Damage(f"record {record.filename}: its own header differs from the directory")
    if record.flag_bits & _ENCRYPTED or record.volume or (record.external_attr & _DIRECTORY and not record.is_dir()):
        raise Damage(f"record {record.filename}: said to be encrypted, on another disk, or a directory")
    return start


def _name(record: ZipInfo) -> bytes:
    return record.orig_filename.encode("utf-8" if record.flag_bits & _UTF8 else "cp437")


def _check_end(window: BinaryIO, records: Sequence[ZipInfo]) -> None:
    """Does what follows the directory agree with it? Python's reader is lenient there, torch's is not. Raises Damage."""
    length = window.seek(0, 2)
    window.seek(max(0, length - _END.size - 65535))
    tail = window.read()
    place = tail.rfind(b"PK\x05\x06")
    _, *disks, here, entries, size, offset, comment = _END.unpack_from(tail, place)
    end = directory_end = length - len(tail) + place
    found = [(entries, len(records), 0xFFFF), (here, len(records), 0xFFFF), *((disk, 0, 0xFFFF) for disk in disks)]
    locator = tail[max(0, place - _LOCATOR.size) : place]
    if locator.startswith(b"PK\x06\x07"):  # as torch writes it always
        _, disk, directory_end, disks_in_all = _LOCATOR.unpack(locator)
        window.seek(directory_end)
        long = _END_64.unpack(window.read(_END_64.size).ljust(_END_64.size, b"\0"))
        found += [(long[0], b"PK\x06\x06"), (directory_end + 12 + long[1], end - _LOCATOR.size), (disk, 0),
                  (disks_in_all, 1), *((number, 0) for number in long[4:6]),
                  *((number, len(records)) for number in long[6:8]),
                  (size, long[8], 0xFFFFFFFF), (offset, long[9], 0xFFFFFFFF)]
        size, offset = long[8], long[9]
    total = _length_of_directory(window, offset, len(records))
    found += [(size, total), (offset + size, directory_end), (end + _END.size + comment, length)]
    if any(value not in expected for value, *expected in found):
        raise Damage("the end of the zip directory is damaged")


def _length_of_directory(window: BinaryIO, offset: int, records: int) -> int:
    """As its entries give it: each has a fixed part, which tells the lengths of name, extra and comment."""
    begin = window.seek(offset)
    for _ in range(records):
        fixed = window.read(_ENTRY)
        if len(fixed) == _ENTRY:
            window.seek(sum(struct.unpack_from("<3H", fixed, 28)), 1)
    return window.tell() - begin


def _sum(bulk: Bulk, record: ZipInfo, start: int) -> tuple[int, int]:
    """CRC-32 and length of what a record unpacks to."""
    crc = size = 0
    for piece in _unpacked(bulk, record, start):
        crc = zlib.crc32(piece, crc)
        size += len(piece)
        if size > record.file_size:
            break  # a bomb, or damaged: enough of it
    return crc, size


def _unpacked(bulk: Bulk, record: ZipInfo, start: int) -> Iterator[bytes]:
    chunks = bulk.chunks(start, start + record.compress_size)
    if record.compress_type == ZIP_STORED:
        yield from chunks
    elif record.compress_type == ZIP_DEFLATED:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            for chunk in chunks:
                left = chunk
                while left and not unpacker.eof:
                    yield unpacker.decompress(left, _PIECE)
                    left = unpacker.unconsumed_tail
            yield unpacker.flush()
        except zlib.error as error:
            raise Damage(f"record {record.filename}: {error}") from error
    elif record.compress_type in _NOT_READ:
        raise NoChecksum(f"record {record.filename} is packed by method {record.compress_type}, which is not read")
    else:
        raise Damage(f"record {record.filename}: no method of packing has the number {record.compress_type}")
