"""Reads everything of a checkpoint and says of each file whether it still holds what was written."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ckptwatch.formats.base import Claim, Format
from ckptwatch.formats.bulk import Advance, Bulk
from ckptwatch.formats.dcp_metadata import Record, read_index
from ckptwatch.formats.dcp_shards import is_shard
from ckptwatch.formats.integrity_checks import check_safetensors, check_shard, read_header
from ckptwatch.formats.integrity_zip import ZIP, Damage, NoChecksum, check_zip
from ckptwatch.formats.ocdbt import LIMIT, manifest_flaw
from ckptwatch.formats.ocdbt import NAME as MANIFEST
from ckptwatch.formats.parts import look
from ckptwatch.formats.pickle_walk import TooLargeError
from ckptwatch.formats.reading import read_json
from ckptwatch.formats.sharded_safetensors import listed_in
from ckptwatch.formats.tree import files_below, look_inside

_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".tar", ".metadata")


class State(StrEnum):
    OK = "ok"                    # a checksum fits
    DAMAGED = "damaged"          # it does not, or the file is not whole
    NO_CHECKSUM = "no checksum"  # whole as far as can be told; a changed byte of data would not show


@dataclass(frozen=True, kw_only=True)
class FileVerdict:
    path: Path
    state: State
    evidence: str  # in words; names the record that is damaged


def files_of(claim: Claim) -> list[Path]:
    """Everything that belongs to the checkpoint, links left out. Raises OSError, ValueError for far too many files."""
    files = []
    for member in claim.members:
        files += files_below(member) if member.is_dir() else [member]
    return files


def size_of(claim: Claim) -> int:
    """Bytes that `verify` will read. Raises OSError, ValueError."""
    return sum(path.lstat().st_size for path in files_of(claim))


def verify(claim: Claim, format_: Format, advance: Advance = lambda count: None) -> Iterator[FileVerdict]:
    """One verdict for each file, as soon as it has been read. Memory is bounded; the page cache is given back.

    `advance` is told of every few bytes that are done with. Raises OSError, ValueError where the files cannot be listed.
    """
    files = files_of(claim)
    try:
        sums: Mapping[Path, str] = format_.checksums(claim)
    except (OSError, ValueError) as error:
        yield FileVerdict(path=claim.path, state=State.DAMAGED, evidence=f"its list of checksums cannot be read: {error}")
        sums = {}
    for path in sorted(set(sums) - set(files)):
        yield FileVerdict(path=path, state=State.DAMAGED, evidence="listed with a checksum, but missing")
    records: dict[Path, list[Record]] = {}
    for path in files:
        if path.name == ".metadata":
            records.update(_records(path))
    for path in sorted(set(records) - set(files)):
        yield FileVerdict(path=path, state=State.DAMAGED, evidence=".metadata refers to it, but it is missing")
    for path in files:
        yield _verdict(path, advance, records.get(path), sums.get(path))
    for path in _links(claim):
        yield FileVerdict(path=path, state=State.NO_CHECKSUM, evidence="a link, which is not followed")


def _verdict(path: Path, advance: Advance, records: list[Record] | None, digest: str | None) -> FileVerdict:
    try:
        with Bulk(path, advance) as bulk:
            evidence = _check(bulk, records) if digest is None else _check_sum(bulk, records, digest)
    except Damage as error:
        return FileVerdict(path=path, state=State.DAMAGED, evidence=str(error))
    except NoChecksum as error:
        return FileVerdict(path=path, state=State.NO_CHECKSUM, evidence=str(error))
    except OSError as error:
        return FileVerdict(path=path, state=State.DAMAGED, evidence=f"cannot be read: {error.strerror or error}")
    return FileVerdict(path=path, state=State.OK, evidence=evidence)


def _check_sum(bulk: Bulk, records: list[Record] | None, digest: str) -> str:
    hashed = hashlib.sha256()
    for chunk in bulk.chunks():
        hashed.update(chunk)
    if hashed.hexdigest() == digest:
        return "SHA-256 is as listed"
    try:
        _check(bulk, records)  # to say where
    except Damage as error:
        raise Damage(f"SHA-256 differs from the listed one; {error}") from error
    except NoChecksum:
        pass
    raise Damage("SHA-256 differs from the listed one")


def _check(bulk: Bulk, records: list[Record] | None) -> str:
    """By the kind of file. Says what fits; raises Damage, NoChecksum, OSError."""
    name = bulk.path.name
    if records is not None or is_shard(name):
        return check_shard(bulk, records or [])
    if name.endswith(".safetensors"):
        return check_safetensors(bulk)
    if bulk.window().read(4) == ZIP:
        evidence = check_zip(bulk)
        _check_structure(bulk.path)  # a part that is missing has no CRC that could be wrong
        return evidence
    if name == MANIFEST and bulk.size <= LIMIT:
        if flaw := manifest_flaw(bulk.path):
            raise Damage(flaw)
        return "CRC-32C of the manifest"
    _check_structure(bulk.path)
    bulk.read_all()
    raise NoChecksum(_why(bulk.path))


def _check_structure(path: Path) -> None:
    if path.name == ".metadata":
        try:
            read_index(path)
        except TooLargeError as error:
            raise NoChecksum(f"not read: {error}") from error
        except ValueError as error:
            raise Damage(str(error)) from error
    elif path.name.endswith(".json"):
        part = look(path)
        if not part.whole:
            raise Damage(part.evidence)
        if path.name.endswith(".index.json"):
            _check_index(path)
    else:
        part = look_inside(path)
        if not part.whole:
            raise Damage(part.evidence)


def _check_index(path: Path) -> None:
    """Is every tensor that an index lists in the shard that it names?"""
    index = read_json(path)
    try:
        shards = listed_in(index)
    except ValueError as error:
        raise Damage(str(error)) from error
    held: dict[str, set[str] | None] = {}
    for name in shards:
        shard = path.with_name(name)
        if not shard.is_file():
            raise Damage(f"lists {name}, which is missing")
        if name.endswith(".safetensors"):
            held[name] = _tensors_in(shard)
    for tensor, name in index["weight_map"].items():
        tensors = held.get(name)
        if tensors is not None and tensor not in tensors:
            raise Damage(f"lists tensor {tensor} in {name}, which does not hold it")


def _tensors_in(path: Path) -> set[str] | None:
    """None for a shard whose header is broken: its own verdict says so."""
    try:
        with Bulk(path, lambda count: None) as bulk:
            return set(read_header(bulk)[0])
    except (Damage, OSError):
        return None


def _why(path: Path) -> str:
    if path.name.endswith(_PICKLES):
        return "whole pickles; they carry no checksum"
    return "read to its end; this kind of file carries no checksum"


def _records(path: Path) -> dict[Path, list[Record]]:
    """The records of every file that a `.metadata` refers to; none if it cannot be read, which its own verdict says."""
    try:
        return {path.parent / name: records for name, records in read_index(path).files.items()}
    except (OSError, ValueError):
        return {}


def _links(claim: Claim) -> Iterator[Path]:
    for member in claim.members:
        for folder, folders, files in os.walk(member):
            yield from (p for p in (Path(folder) / name for name in sorted(folders + files)) if p.is_symlink())
