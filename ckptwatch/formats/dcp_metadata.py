"""The `.metadata` of torch.distributed.checkpoint: which bytes of which shard hold what.

Torch loads this bare pickle without any guard; here nothing of it is run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ckptwatch.formats.inert_pickle import Inert, load_inert
from ckptwatch.formats.pickle_walk import TooLargeError
from ckptwatch.formats.reading import open_regular

LIMIT = 32 * 1024 * 1024  # bytes; some 200,000 stored tensors
OPCODES = 10_000_000      # some 100,000 stored tensors: six seconds, and 300 MB for as long
LONGEST_PATH = 1024       # characters


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One stored tensor or object: `length` bytes from `offset` of a file."""

    name: str    # "model.layers.0.weight"; "" where the metadata does not say
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a `.metadata` says."""

    files: dict[str, list[Record]]  # by path below the directory of `.metadata`; in the order of their ends
    groups: tuple[str, ...] = ()    # outermost keys of the state dict that hold further keys: "model", "optim"


def read_index(path: Path) -> Index:
    """Raises OSError; TooLargeError for one that is not read; ValueError, in words, for no metadata of a checkpoint."""
    with open_regular(path) as file:
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise TooLargeError(f"more than {LIMIT:,} bytes")
    tree = load_inert(data, opcodes=OPCODES)
    content = _state_of(tree, "Metadata")
    stored = content.get("storage_data")
    if not isinstance(stored, dict) or not stored:
        raise ValueError("it lists no stored data")
    files: dict[str, list[Record]] = {}
    for name, record in _records(stored):
        files.setdefault(name, []).append(record)
    for records in files.values():
        records.sort(key=lambda r: (r.end, r.offset))
    return Index(files=files, groups=_groups(content.get("planner_data")))


def _records(stored: dict[Any, Any]) -> Iterator[tuple[str, Record]]:
    safe: set[str] = set()
    for key, value in stored.items():
        info = _state_of(value, "_StorageInfo")
        file, offset, length = info.get("relative_path"), info.get("offset"), info.get("length")
        if not (isinstance(file, str) and _is_count(offset) and _is_count(length)):
            raise ValueError("an entry of its stored data has no file, offset or length")
        if file not in safe and not lies_below(file):
            raise ValueError(f"it refers to a file outside the checkpoint: {file[:200]!r}")
        safe.add(file)
        name = _state_of(key, "MetadataIndex").get("fqn")
        yield file, Record(name=name if isinstance(name, str) else "", offset=offset, length=length)


def _state_of(value: Any, name: str) -> dict[Any, Any]:
    """The attributes of an object of that class in torch.distributed.checkpoint; {} for anything else."""
    ours = isinstance(value, Inert) and value.what.startswith("torch.distributed.checkpoint.")
    return value.state if ours and value.what.endswith(f".{name}") and isinstance(value.state, dict) else {}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def lies_below(name: str) -> bool:
    """Is this a plain relative path that does not leave its directory?"""
    path = PurePosixPath(name)
    return name.isprintable() and len(name) < LONGEST_PATH and not path.is_absolute() and ".." not in path.parts \
        and path.name != ""


def _groups(planned: Any) -> tuple[str, ...]:
    """The planner's data maps a flat name to its path in the state dict: `model.w` → ("model", "w")."""
    if not isinstance(planned, dict):
        return ()
    paths = (p for p in planned.values() if isinstance(p, tuple) and len(p) > 1)
    return tuple(dict.fromkeys(p[0] for p in paths if isinstance(p[0], str)))
