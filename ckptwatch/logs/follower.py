"""One log, followed as it grows: what came since the last look, read once, whatever happens to the file meanwhile."""

import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Self

from ckptwatch.core.series import LogRow
from ckptwatch.formats.reading import JSON_LIMIT, open_regular
from ckptwatch.logs.base import HEAD, Dialect, Fed, Reader
from ckptwatch.model import Logged

PORTION = 1 << 20  # bytes read at a time, unless a caller says otherwise
RECORD = 2 << 20   # bytes within which a reader must find an end, or pass over what has none
TAIL = 64          # bytes before the offset by which a file is known again


@dataclass(frozen=True, kw_only=True)
class Place:
    """How far a log has been read, and by what to know it again. JSON-ready.

    An inode alone does not tell: it is another after a file was written anew and moved into place, or mounted again, and may
    be the same for another file. A file goes on where it was left if it begins with the same bytes and has the same before
    the offset.
    """

    inode: int = 0
    size: int = 0        # bytes, as last seen
    mtime_ns: int = 0
    offset: int = 0      # bytes that are done with
    head_size: int = 0   # bytes, at most HEAD
    head: str = ""       # digest of the first of them
    tail: str = ""       # digest of the TAIL bytes before the offset, or as many as there are
    state: Mapping[str, Any] = field(default_factory=dict)  # the reader's

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self | None:
        """None for what is no place: the log is read from its beginning."""
        with suppress(TypeError, ValueError):
            numbers = {k: int(plain[k]) for k in ("inode", "size", "mtime_ns", "offset", "head_size") if k in plain}
            if len(numbers) == 5 and numbers["offset"] >= 0:
                return cls(**numbers, head=str(plain.get("head", "")), tail=str(plain.get("tail", "")),
                           state=dict(plain.get("state", {})))
        return None


@dataclass(frozen=True, kw_only=True)
class Polled:
    """What a look at a log found."""

    rows: Sequence[LogRow] = ()
    bad: int = 0             # records that were left out
    trouble: str = ""        # why, of the last of them; or why the file cannot be read
    restarted: bool = False  # it is another file, or was truncated or written anew: rows are from its beginning
    more: bool = False       # there is more to read at once


class Follower:
    """Follows one log. Holds it open only while it reads; writes nothing, locks nothing."""

    def __init__(self, path: Path, dialect: Dialect, logged: Logged, place: Place | None = None) -> None:
        self._path = path
        self._dialect = dialect
        self._logged = logged
        self._place = place or Place()
        self._reader: Reader = dialect.reader(logged, self._place.state or None)
        self._seen: tuple[int, int, int] | None = None if place is None else (place.inode, place.size, place.mtime_ns)
        self._behind = not self._reader.whole and self._place.offset < self._place.size
        self._unended = False  # are there bytes after the last record, which nobody has yet been told may be its end?
        self._trouble = ""

    def goes_on_in(self, path: Path) -> bool:
        """Is what has been read of this log now in the file at `path`? A file that merely got the inode of one that was
        removed is another."""
        place = self._place
        try:
            with open_regular(path) as file:
                head = os.pread(file.fileno(), HEAD, 0)
                size = os.fstat(file.fileno()).st_size
        except OSError:
            return False
        return 0 < place.offset <= size and _digest(head[:place.head_size]) == place.head

    @property
    def whole(self) -> bool:
        """Is it one document, written anew each time, and not one that grows?"""
        return self._reader.whole

    @property
    def place(self) -> Place:
        return self._place

    def poll(self, info: os.stat_result | None = None, limit: int = PORTION, *, final: bool = False) -> Polled:
        """Read what has come since, at most `limit` bytes (more only where one record is larger). Nothing is opened if size,
        time and inode are as they were. A file that is missing has nothing; it may come back.

        `final`: nobody will write on, so a last line without its end is taken too, if it is whole.
        """
        try:
            info = info or self._path.stat()
            if (info.st_ino, info.st_size, info.st_mtime_ns) == self._seen and not self._behind and not (
                    final and self._unended):
                return Polled(trouble=self._trouble)
            if not stat.S_ISREG(info.st_mode):  # opening a pipe would wake its writer
                return self._failed("it is not a plain file")
            with open_regular(self._path) as file:
                polled = self._read_whole(file) if self._reader.whole else self._read(file, max(1, limit), final=final)
        except (FileNotFoundError, NotADirectoryError):
            return Polled()
        except OSError as error:
            return self._failed(error.strerror or str(error))
        self._trouble = polled.trouble
        return polled

    def _failed(self, why: str) -> Polled:
        self._seen, self._trouble = None, f"cannot read it: {why}"  # the cause may go away and leave no trace in its stat
        return Polled(trouble=self._trouble)

    # ---- a log that grows ----------------------------------------------------------------------------------------

    def _read(self, file: BinaryIO, limit: int, *, final: bool) -> Polled:
        fd = file.fileno()
        info = os.fstat(fd)
        head = os.pread(fd, HEAD, 0)
        before = min(TAIL, self._place.offset)
        window = os.pread(fd, before + limit, self._place.offset - before)
        restarted = self._is_other(head, window[:before])
        if restarted:
            self._reader = self._dialect.reader(self._logged)
            self._place, before = Place(), 0
            window = os.pread(fd, limit, 0)
        begin = self._place.offset
        fed = self._reader.feed(window[before:])
        if not fed.consumed and limit < RECORD and begin + len(window) - before < info.st_size:
            window += os.pread(fd, RECORD - (len(window) - before), begin + len(window) - before)
            fed = self._reader.feed(window[before:])
        reached = begin + len(window) - before
        more = reached < info.st_size
        if not fed.consumed and more:  # a dialect without an answer to records of this size must not stop us for good
            fed = Fed(consumed=len(window) - before, bad=1, trouble=f"no end of a record in {RECORD:,} bytes")
        unended = window[before + fed.consumed:]
        if final and unended and not more:
            fed = self._with_rest(fed, unended)
            unended = b""
        if more:
            os.posix_fadvise(fd, begin, fed.consumed, os.POSIX_FADV_DONTNEED)  # a back catalogue nobody else reads
        self._go_on(info, head, window[:before + fed.consumed], begin + fed.consumed)
        self._behind, self._unended = more, bool(unended)
        return Polled(rows=fed.rows, bad=fed.bad, trouble=fed.trouble, restarted=restarted, more=more)

    def _is_other(self, head: bytes, tail: bytes) -> bool:
        """Is this not the file that was read so far, with more at its end? One that is shorter has another tail, or none."""
        place = self._place
        return place.offset > 0 and (_digest(head[:place.head_size]) != place.head or _digest(tail) != place.tail)

    def _with_rest(self, fed: Fed, rest: bytes) -> Fed:
        """What was fed, and a last line without its end, if there is nothing wrong with it."""
        trial = self._dialect.reader(self._logged, self._reader.state())
        more = trial.feed(rest + b"\n")
        if more.bad or not more.rows or more.consumed != len(rest) + 1:
            return fed
        self._reader = trial
        return replace(fed, consumed=fed.consumed + len(rest), rows=(*fed.rows, *more.rows))

    def _go_on(self, info: os.stat_result, head: bytes, done: bytes, offset: int) -> None:
        """Note how far we are. `done` ends with the bytes before the offset."""
        head_size = min(len(head), offset)
        self._seen = (info.st_ino, info.st_size, info.st_mtime_ns)
        self._place = Place(
            inode=info.st_ino, size=info.st_size, mtime_ns=info.st_mtime_ns, offset=offset, head_size=head_size,
            head=_digest(head[:head_size]), tail=_digest(done[-TAIL:]), state=self._reader.state())

    # ---- a document that is written anew -------------------------------------------------------------------------

    def _read_whole(self, file: BinaryIO) -> Polled:
        info = os.fstat(file.fileno())
        self._seen = (info.st_ino, info.st_size, info.st_mtime_ns)
        data = file.read(JSON_LIMIT + 1)
        if len(data) > JSON_LIMIT:
            return Polled(bad=1, trouble=f"larger than {JSON_LIMIT:,} bytes")
        fed = self._reader.feed(data)
        self._place = Place(inode=info.st_ino, size=info.st_size, mtime_ns=info.st_mtime_ns, offset=fed.consumed,
                            state=self._reader.state())
        return Polled(rows=fed.rows, bad=fed.bad, trouble=fed.trouble)


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()
