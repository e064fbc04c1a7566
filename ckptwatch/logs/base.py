"""The seam of log dialects: who recognises a log, and what reads it as it grows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Protocol

from ckptwatch.core.series import LogRow
from ckptwatch.model import Logged

State = Mapping[str, Any]  # JSON-ready
HEAD = 4096                # bytes of a file that are shown to a dialect


@dataclass(frozen=True, kw_only=True)
class Fed:
    """What a reader made of some bytes."""

    consumed: int                # so many of them are done with; the rest is half a record and comes again, with more
    rows: Sequence[LogRow] = ()
    bad: int = 0                 # records that could not be read, and were left out
    trouble: str = ""            # why, of the last of them, in words


class Reader(Protocol):
    """Reads one log from its beginning, piece by piece. Anything but MemoryError that bytes could make it raise is a fault:
    what is damaged is counted and left out."""

    whole: bool  # is the file one document, given whole each time it changes, and rows told before not told again?

    def feed(self, data: bytes) -> Fed:
        """The bytes that follow those consumed so far."""
        ...

    def state(self) -> State:
        """What it needs to go on after a restart; small, whatever the length of the log."""
        ...


class Dialect(Protocol):
    """One way of writing logs."""

    name: str        # "mmengine-json": in the database, in what is shown
    precedence: int  # lower ones are asked first
    title: str       # for docs: "MMEngine and MMCV, one JSON object a line"
    files: str       # for docs: the names it is recognised by

    def claims(self, path: PurePath, head: bytes) -> bool:
        """Is a file (path below its run's directory; its first bytes, at most HEAD) of this dialect? Never raises."""
        ...

    def reader(self, logged: Logged, state: State | None = None) -> Reader:
        """From the beginning, or from where a state was taken. `logged` names columns where a user did."""
        ...
