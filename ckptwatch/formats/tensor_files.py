"""Where the numbers of a checkpoint's files lie, file by file: torch.save, safetensors, torch.distributed.checkpoint."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

from ckptwatch.formats.bulk import Bulk
from ckptwatch.formats.dcp_metadata import Record
from ckptwatch.formats.dcp_shards import is_shard
from ckptwatch.formats.integrity_checks import read_header
from ckptwatch.formats.integrity_zip import ZIP, Damage
from ckptwatch.formats.reading import open_regular
from ckptwatch.formats.tensor_names import is_weight
from ckptwatch.formats.tensor_places import (
    KINDS,
    LONGEST_NAME,
    Kind,
    NotReadError,
    Places,
    PlacesError,
    View,
    brought_together,
)
from ckptwatch.formats.tensor_torch import torch_places
from ckptwatch.formats.torch_legacy import BEGIN
from ckptwatch.formats.tree import WEIGHTS

_SAFE: dict[str, tuple[Kind, int]] = {
    "F64": (KINDS["float64"], 1), "F32": (KINDS["float32"], 1), "F16": (KINDS["float16"], 1), "BF16": (KINDS["bfloat16"], 1),
    "F8_E5M2": (KINDS["float8_e5m2"], 1), "F8_E4M3": (KINDS["float8_e4m3fn"], 1), "F8_E8M0": (KINDS["float8_e8m0fnu"], 1),
    "F8_E5M2FNUZ": (KINDS["float8_e5m2fnuz"], 1), "F8_E4M3FNUZ": (KINDS["float8_e4m3fnuz"], 1), "C64": (KINDS["float32"], 2),
}
_OTHERS = {  # by suffix, as the words of NotReadError
    ".h5": "HDF5", ".hdf5": "HDF5", ".weights": "HDF5", ".keras": "Keras", ".npz": "NumPy", ".msgpack": "MessagePack",
    ".pkl": "a pickle of other objects", ".pickle": "a pickle of other objects", ".pdparams": "PaddlePaddle",
}


def places_in(path: Path, records: Sequence[Record] | None = None) -> Places | None:
    """Where the numbers of a file lie; None for one that holds no weights as far as its name and beginning tell.

    `records` are those of a shard of torch.distributed.checkpoint. Raises OSError; PlacesError for a file that is not whole
    or contradicts itself; NotReadError for a kind that is not looked into.
    """
    if records is not None or is_shard(path.name):
        return _shard_places(path, records or ())
    if path.name.endswith(".safetensors"):
        return _safetensors_places(path)
    if not path.name.endswith((*WEIGHTS, ".pickle", ".pt2")):
        return None
    with open_regular(path) as file:
        begin = file.read(len(BEGIN))
        if not begin:
            raise PlacesError("empty file")
        other = next((words for suffix, words in _OTHERS.items() if path.name.endswith(suffix)), "")
        if begin.startswith(b"PK") and not path.name.endswith((".npz", ".keras")):
            file.seek(0)
            return torch_places(file)
    if begin == BEGIN:
        raise NotReadError("a torch.save file of the older kind")
    if path.name.endswith((".pt", ".pth", ".ckpt", ".pt2")):
        raise PlacesError("it does not begin like a torch file")
    if not other and not begin.startswith(b"\x80"):
        return None  # raw numbers of somebody's own, a tokenizer, an archive
    raise NotReadError(other or "a pickle of other objects")


def _safetensors_places(path: Path) -> Places:
    with Bulk(path, lambda count: None) as bulk:
        try:
            header, begin = read_header(bulk)
        except Damage as error:
            raise PlacesError(str(error)) from error
        found = [pair for name, tensor in header.items() if name != "__metadata__"
                 for pair in _safe_view(name, tensor, begin, bulk.size)]
    for (_, before), (_, after) in pairwise(sorted(found, key=lambda f: f[1].begin)):
        if after.begin < before.end:
            raise PlacesError(f"tensors {before.name} and {after.name} overlap")
    return Places(extents=brought_together(found))


def _safe_view(name: str, tensor: Any, begin: int, size: int) -> list[tuple[Kind, View]]:
    """Nothing for integers and for types that have neither NaN nor infinity. Raises PlacesError."""
    shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME - 1]}…"
    try:
        kind, parts = _SAFE.get(tensor["dtype"], (None, 0))
        (first, last), shape = tensor["data_offsets"], tensor["shape"]
        if not all(type(n) is int and 0 <= n < 2**62 for n in (first, last, *shape)) or first > last:
            raise ValueError("impossible numbers")
        count = math.prod(shape[:64])
    except (TypeError, ValueError, KeyError) as error:
        raise PlacesError(f"tensor {shown}: {type(error).__name__}: {str(error)[:200]}") from error
    if begin + last > size:
        raise PlacesError(f"tensor {shown} ends at byte {begin + last:,}, the file has {size:,}")
    if kind is None or first == last or not is_weight(name):
        return []
    if count * parts * kind.size != last - first:
        raise PlacesError(f"tensor {shown}: {last - first:,} bytes do not make {tensor['dtype']} of shape {shape[:8]}")
    return [(kind, View(name=shown, begin=begin + first, end=begin + last))]


def _shard_places(path: Path, records: Sequence[Record]) -> Places:
    """Of a shard, each record of which torch.save wrote as a file of its own."""
    ordered = sorted(records, key=lambda r: (r.offset, r.end))
    with Bulk(path, lambda count: None) as bulk:
        if bulk.window(8, 9).read(1) == b"{":  # where the header of safetensors begins
            return _safetensors_places(path)
        if not ordered:
            raise NotReadError("a shard of which .metadata lists nothing")
        if max(r.end for r in ordered) > bulk.size:
            raise PlacesError(f"{bulk.size:,} bytes of {max(r.end for r in ordered):,}")
        for record, following in pairwise(ordered):
            if record.end > following.offset:
                raise PlacesError(f"records {record.name[:100]} and {following.name[:100]} overlap")
        extents, bare = [], 0
        for record in ordered:
            window = bulk.window(record.offset, record.end)
            if window.read(4) != ZIP:
                bare += 1
                continue
            extents += torch_places(cast(BinaryIO, window), record.offset, record.name[:LONGEST_NAME]).extents
    if bare == len(ordered):
        raise NotReadError("a shard whose records are no files of torch.save")
    return Places(extents=extents, left_out=f"{bare:,} records that are no files of torch.save" if bare else "")


def records_in(files: Sequence[Path]) -> Mapping[Path, list[Record]]:
    """The records of every shard that a `.metadata` among the files refers to.

    Raises OSError; PlacesError for one that is broken; NotReadError for one that is too large to be read.
    """
    from ckptwatch.formats.dcp_metadata import read_index
    from ckptwatch.formats.pickle_walk import TooLargeError

    found: dict[Path, list[Record]] = {}
    for path in files:
        if path.name != ".metadata":
            continue
        try:
            index = read_index(path)
        except TooLargeError as error:
            raise NotReadError(f"its .metadata has {error}") from error
        except ValueError as error:
            raise PlacesError(f".metadata: {error}") from error
        found |= {path.parent / name: records for name, records in index.files.items()}
    return found
