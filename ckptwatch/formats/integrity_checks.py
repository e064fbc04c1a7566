"""What can be said of the content of a file without a checksum of its own: shards whose records have one, safetensors."""

import json
import math
from itertools import pairwise
from typing import Any

from ckptwatch.formats.bulk import Bulk
from ckptwatch.formats.dcp_metadata import Record
from ckptwatch.formats.integrity_zip import ZIP, Damage, NoChecksum, check_zip
from ckptwatch.formats.safetensors_file import HEADER_LIMIT
from ckptwatch.formats.words import counted

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}


def check_shard(bulk: Bulk, records: list[Record]) -> str:
    """Every record of a shard of torch.distributed.checkpoint; torch.save wrote each as a zip file of its own.

    Raises Damage, NoChecksum, OSError.
    """
    if not records:
        bulk.read_all()
        raise NoChecksum("no record is known to lie in it: .metadata does not list it, or is not read")
    ordered = sorted(records, key=lambda r: (r.offset, r.end))
    begins = {bulk.window(r.offset, r.end).read(4) for r in ordered}
    if ZIP not in begins:
        if bulk.window(8, 9).read(1) == b"{":  # where the header of safetensors begins
            return check_safetensors(bulk)
        bulk.read_all()
        raise NoChecksum("its records are no files of torch.save, and carry no checksum")
    if ordered[-1].end > bulk.size:
        raise Damage(f"{bulk.size:,} bytes of {ordered[-1].end:,}")
    for record, following in pairwise(ordered):
        if record.end > following.offset:
            raise Damage(f"record {following.name} overlaps with {record.name}")
    bare = sum(not _check_record(bulk, record) for record in ordered)
    if bare:
        raise NoChecksum(f"{bare:,} of {counted(len(ordered), 'record')} carry no checksum")
    return f"CRC-32 of {counted(len(records), 'record')}"


def _check_record(bulk: Bulk, record: Record) -> bool:
    """Is there a checksum, which fits? Raises Damage."""
    begin = bulk.window(record.offset, record.end).read(4)
    try:
        if begin == ZIP:
            check_zip(bulk, record.offset, record.end)
            return True
    except NoChecksum:
        return False
    except Damage as error:
        raise Damage(f"record {record.name}: {error}") from error
    if begin[:1] != b"\x80":  # neither a zip file nor a pickle, where the others are
        raise Damage(f"record {record.name} does not begin as what torch.save writes")
    for _ in bulk.chunks(record.offset, record.end):
        pass
    return False


def check_safetensors(bulk: Bulk) -> str:
    """The header in full: tensors of the right length that lie side by side and fill the file. Then reads to the end.

    Raises Damage, or NoChecksum, since there is none in this layout; OSError.
    """
    header, begin = read_header(bulk)
    ranges = sorted((*_range(name, tensor), name) for name, tensor in header.items() if name != "__metadata__")
    position = 0
    for first, last, name in ranges:
        if first != position:
            raise Damage(f"tensor {name}: begins at {first:,}, where {position:,} was expected: "
                         f"{'a hole' if first > position else 'an overlap'}")
        position = last
    if begin + position != bulk.size:
        raise Damage(f"its tensors end at byte {begin + position:,}, the file has {bulk.size:,}")
    bulk.read_all()
    raise NoChecksum(f"{counted(len(ranges), 'tensor')} side by side, without hole or overlap; but safetensors carries no "
                     "checksum: a flipped byte inside a tensor cannot be seen")


def read_header(bulk: Bulk) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where the data begin. Raises Damage, OSError."""
    window = bulk.window()
    length = int.from_bytes(window.read(8), "little")
    if not 2 <= length <= min(HEADER_LIMIT, bulk.size - 8):
        raise Damage(f"a header of {length:,} bytes in a file of {bulk.size:,}")
    try:
        header = json.loads(window.read(length), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise Damage(f"broken header: {str(error)[:200]}") from error
    if not isinstance(header, dict):
        raise Damage("broken header: no JSON object")
    return header, 8 + length


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice")
    return found


def _range(name: str, tensor: Any) -> tuple[int, int]:
    try:
        first, last = tensor["data_offsets"]
        shape, kind = tensor["shape"], tensor["dtype"]
        if not all(isinstance(n, int) and 0 <= n < 2**62 for n in (first, last, *shape)) or first > last:
            raise ValueError("impossible numbers")
        bits = _BITS.get(kind)
        if bits is not None and 8 * (last - first) != bits * math.prod(shape):
            raise Damage(f"tensor {name}: {last - first:,} bytes do not make {kind} of shape {shape}")
    except (TypeError, ValueError, KeyError) as error:
        if isinstance(error, Damage):
            raise
        raise Damage(f"tensor {name}: {type(error).__name__}: {str(error)[:200]}") from error
    return first, last
