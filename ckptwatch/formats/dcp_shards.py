"""Is a directory of torch.distributed.checkpoint whole? Asked of a checkpoint, and of a part of one."""

import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ckptwatch.formats.dcp_metadata import Index, Record, read_index
from ckptwatch.formats.pickle_walk import TooLargeError
from ckptwatch.formats.reading import open_regular
from ckptwatch.formats.safetensors_file import look_safetensors
from ckptwatch.formats.words import counted

_SUFFIX = ".distcp"
_ZIP, _ZIP_END = b"PK\x03\x04", 22  # torch.save writes a zip file, whose directory ends with so many bytes
_SHARD = re.compile(r"__(?P<rank>\d{1,9}+)_\d{1,9}+\.distcp")
_OWN_METADATA = re.compile(r"__\d{1,9}+\.metadata(?:\.tmp)?")
# Outermost keys of a state dict that are no weights one could evaluate.
_STATE = re.compile(r"optim.*|opt_state|(?:lr_)?sched.*|train(?:er|ing)?(?:_state)?|data_?loader.*|rng.*|random.*|.*scaler|"
                    r"args|step|global_step|iteration|epoch|metadata|config|hyper_parameters|callbacks|loops", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class DcpVerdict:
    whole: bool
    evidence: str
    files: tuple[Path, ...] = ()     # `.metadata` and the shards it refers to
    variants: tuple[str, ...] = ()


def is_shard(name: str) -> bool:
    return name.endswith(_SUFFIX)


def shards_among(names: Collection[str]) -> bool:
    """Mostly there are none, which one search in all the names tells."""
    return _SUFFIX in "/".join(names) and any(map(is_shard, names))


def holds_shards(names: Collection[str]) -> bool:
    return ".metadata" in names or shards_among(names)


def judge_dcp(directory: Path) -> DcpVerdict:
    """Whole if `.metadata`, renamed into place after the shards, is there, and every shard it refers to is there, has the
    length it describes and ends as it must. Reads kilobytes beside `.metadata`. Raises OSError where it cannot be read."""
    names = os.listdir(directory)
    if ".metadata.tmp" in names:
        return _no(".metadata.tmp is there: the save has not finished")
    shards = sum(map(is_shard, names))
    if not _is_file(directory / ".metadata"):
        if any(map(_OWN_METADATA.fullmatch, names)):
            return _no("each rank wrote metadata of its own, and nothing says how many ranks there are")
        return _no(f"{counted(shards, 'shard')}, .metadata, which is written last, is missing")
    try:
        index = read_index(directory / ".metadata")
    except TooLargeError as error:
        return _by_names(directory, names, str(error))
    except ValueError as error:
        return _no(f".metadata: {error}")
    return _by_index(directory, index)


def _by_index(directory: Path, index: Index) -> DcpVerdict:
    missing = sorted(name for name in index.files if not _is_file(directory / name))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return _no(f".metadata lists {counted(len(index.files), 'shard')}, {len(index.files) - len(missing)} present; "
                   f"missing {missing[0]}{more}")
    for name, records in sorted(index.files.items()):
        if evidence := _wrong(directory / name, records[-1]):
            return _no(f"{name}: {evidence}")
    entries = sum(map(len, index.files.values()))
    return DcpVerdict(
        whole=True,
        evidence=f".metadata lists {counted(entries, 'entry')} in {counted(len(index.files), 'shard')}, all there and of "
                 "the length it describes",
        files=(directory / ".metadata", *(directory / name for name in sorted(index.files))),
        variants=tuple(g for g in index.groups if g.isprintable() and len(g) <= 128 and not _STATE.fullmatch(g)))


def _wrong(path: Path, last: Record) -> str:
    """What is wrong with a shard of which we know the last record; "" if nothing is. Raises OSError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < last.end:
            return f"{size:,} bytes of {last.end:,}"
        begin, own, end = _at(file, 0, 4), _at(file, last.offset, 4), _at(file, last.end - _ZIP_END, 4)
    # In the layout of safetensors, what .metadata tells are places within the data, so that the file is longer.
    if size > last.end:
        part = look_safetensors(path)
        if own == _ZIP or not part.whole:
            said = "" if own == _ZIP else f" ({part.evidence})"
            return f"{size:,} bytes, .metadata describes {last.end:,}: of another save, or being written again{said}"
    if own == _ZIP and end != b"PK\x05\x06":
        return "its last record has no end"
    if size and bytes(4) in (begin, own) and last.length:
        return "zeros where a record begins: not written yet"
    return ""


def _by_names(directory: Path, names: list[str], reason: str) -> DcpVerdict:
    """A metadata too large to be read: its shards are known by their names alone."""
    shards = sorted(name for name in names if is_shard(name))
    ranks = {int(match["rank"]) for match in map(_SHARD.fullmatch, shards) if match}
    gaps = sorted({*range(len(ranks))} - ranks)
    if gaps:
        return _no(f"no shard of rank {gaps[0]}")
    if not shards:
        return _no("no shards")
    return DcpVerdict(
        whole=True, files=tuple(directory / name for name in (".metadata", *shards)),
        evidence=f".metadata, written last, is there, and {counted(len(shards), 'shard')}; it was not held against them: "
                 f"{reason}")


def _at(file: BinaryIO, offset: int, length: int) -> bytes:
    if offset < 0:
        return b""
    file.seek(offset)
    return file.read(length)


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False



def _no(evidence: str) -> DcpVerdict:
    return DcpVerdict(whole=False, evidence=evidence)
