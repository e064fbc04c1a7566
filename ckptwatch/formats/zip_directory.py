"""The directory of a zip file: whole, plausible, and describing all of the file.

Writers put the central directory last, so a valid one whose records all lie before it proves that the file is complete; one
byte cut off already breaks it.
"""

import errno
import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePosixPath
from typing import BinaryIO

from ckptwatch.formats.reading import BoundedReader

BUDGET = 16 << 20  # bytes of directory; that of a file with 100,000 tensors takes about 8 MiB
RATIO = 100        # a record that unpacks to more than so many times its size is a bomb, not a checkpoint
HEADER = 30        # bytes of a record's own header before its name


class ZipError(ValueError):
    """Not a whole zip file, or none that a checkpoint could be; the text is evidence."""


def read_directory(file: BinaryIO) -> list[zipfile.ZipInfo]:
    """The records of a zip file, in the order of the directory. No record is read. Raises OSError, ZipError."""
    try:
        with zipfile.ZipFile(BoundedReader(file, BUDGET)) as archive:  # type: ignore[arg-type]
            records, start = archive.infolist(), archive.start_dir
    except OSError as error:
        if error.errno != errno.EINVAL:  # what seeking to a place before the beginning gives
            raise
        raise ZipError("the zip directory points before the beginning of the file") from error
    except zipfile.BadZipFile as error:
        raise ZipError(f"zip directory missing or broken: {error} (still being written, or cut off)") from error
    except Exception as error:  # zipfile raises half a dozen types on mutated input
        raise ZipError(f"unreadable zip directory: {type(error).__name__}: {error}") from error
    if not records:
        raise ZipError("an empty zip file")
    _check_names(records)
    _check_places(records, start)
    return records


def _check_names(records: Sequence[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for record in records:
        name = record.filename
        if name in seen:
            raise ZipError(f"two records are named {name[:200]!r}")
        seen.add(name)
        unusual = name != record.orig_filename or "\\" in name or not name.isprintable()
        if unusual or name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise ZipError(f"the name of a record, {record.orig_filename[:200]!r}, is none that belongs into an archive")


def _check_places(records: Sequence[zipfile.ZipInfo], start: int) -> None:
    ordered = sorted(records, key=lambda r: r.header_offset)
    if ordered[0].header_offset != 0:  # else a zip file stored inside a truncated one would pass for it
        raise ZipError("the zip directory at its end does not describe its beginning")
    for record, after in pairwise([*ordered, None]):
        limit = start if after is None else after.header_offset
        if record is not None and record.header_offset + HEADER + record.compress_size > limit:
            into = "the zip directory" if after is None else f"record {after.filename[:200]}"
            raise ZipError(f"record {record.filename[:200]} reaches into {into}")


def digest_of(records: Sequence[zipfile.ZipInfo]) -> str:
    """The CRCs in the directory make this a digest of the content."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{record.filename}\0{record.CRC}\0{record.file_size}\0{record.header_offset}\n".encode())
    return digest.hexdigest()[:16]


def start_of(file: BinaryIO, record: zipfile.ZipInfo) -> int:
    """Where the bytes of a record begin. Raises OSError, ZipError."""
    file.seek(record.header_offset)
    header = file.read(HEADER)
    if len(header) < HEADER or not header.startswith(b"PK\x03\x04"):
        raise ZipError(f"record {record.filename[:200]} has no header where the directory says")
    return record.header_offset + HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def unpack(file: BinaryIO, record: zipfile.ZipInfo, limit: int) -> bytes:
    """A record's bytes, checked against its CRC. Raises OSError; ZipError, too for one that is larger than the limit."""
    if record.file_size > limit or record.file_size > RATIO * max(record.compress_size, 1):
        raise ZipError(f"{record.filename[:200]} claims {record.file_size:,} bytes, packed into {record.compress_size:,}")
    file.seek(start_of(file, record))
    data = file.read(record.compress_size)
    if record.compress_type == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, record.file_size + 1)
        except zlib.error as error:
            raise ZipError(f"{record.filename[:200]} cannot be unpacked: {error}") from error
    elif record.compress_type != zipfile.ZIP_STORED:
        raise ZipError(f"{record.filename[:200]} is packed in a way that torch does not use")
    if len(data) != record.file_size or record.CRC not in (0, zlib.crc32(data)):
        raise ZipError(f"{record.filename[:200]} is not what was written: its CRC-32 differs")
    return data
