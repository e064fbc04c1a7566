"""The seam for checkpoint layouts, what a directory entry looks like to them, and the registry by entry point."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from ckptwatch.core.naming import NameFacts, parse_name
from ckptwatch.errors import CkptwatchError
from ckptwatch.model import Facts, Identity

GROUP = "ckptwatch.formats"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One directory entry with its stat, links not followed."""

    path: Path
    is_dir: bool
    device: int
    inode: int
    size: int      # bytes
    mtime_ns: int
    ctime_ns: int
    links: int

    @property
    def identity(self) -> Identity:
        """Without the format's fingerprint, which needs the file to be opened."""
        return Identity(device=self.device, inode=self.inode, size=self.size, mtime_ns=self.mtime_ns)


@runtime_checkable
class Format(Protocol):
    """One family of layouts. The answers come without reading tensors and without running code from the file."""

    name: str

    def claims(self, entry: Entry) -> bool:
        """Is this entry, by its name and kind alone, a checkpoint of this family?"""

    def examine(self, path: Path) -> Facts:
        """What the path holds. Never raises for its content: whatever is wrong is `complete=False` with evidence.

        Raises OSError where the path cannot be read at all.
        """


@cache
def formats() -> tuple[Format, ...]:
    """All installed formats, by name. Raises CkptwatchError for a name that is given twice."""
    found: dict[str, Format] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        if point.name in found:
            raise CkptwatchError("load formats", f"the format `{point.name}` is registered twice",
                                 hint="uninstall one of the packages that provide it")
        found[point.name] = point.load()()
    return tuple(found.values())


def format_of(entry: Entry, among: Sequence[Format] | None = None) -> Format | None:
    """The format that claims an entry."""
    return next((f for f in (formats() if among is None else among) if f.claims(entry)), None)


def examine(path: Path, format_: Format) -> Facts:
    """The format's facts, completed by what the name says. The name wins: people rename files on purpose.

    Raises OSError where the path cannot be read.
    """
    facts = format_.examine(path)
    name: NameFacts = parse_name(path.name)
    return replace(
        facts,
        step=facts.step if name.step is None else name.step,
        epoch=facts.epoch if name.epoch is None else name.epoch,
        metrics={**facts.metrics, **name.metrics},
    )


class BoundedReader:
    """A binary file that refuses to read more than a budget, so that a hostile header cannot make us read gigabytes.

    Raises ValueError past the budget.
    """

    def __init__(self, file: BinaryIO, budget: int) -> None:
        self._file = file
        self._left = budget

    def read(self, size: int = -1) -> bytes:
        if size is None or size < 0 or size > self._left:
            size = self._left + 1
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("directory of the file is larger than any real checkpoint's")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
