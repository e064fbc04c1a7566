"""Images of a directory that a program is still writing, read as soon as they are whole and their place is certain."""

import time
from collections import deque
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from torch import Tensor

from ckptwatch.evaluate.failures import sampler_error
from ckptwatch.evaluate.images import DECODERS, unreadable
from ckptwatch.evaluate.samplers.arrays import UnfitArrayError
from ckptwatch.evaluate.samplers.files import Found, names_of_files
from ckptwatch.evaluate.samplers.numbering import Numbering
from ckptwatch.evaluate.samplers.stored import Mark, Piece, count_images, is_array, mark_of, may_be_written

AHEAD = 2      # batches that are decoded while the caller works on another
SETTLE = 0.05  # seconds for which a file must not have changed: below a clock tick a second write may leave no trace


@dataclass
class _Group:
    """One batch that is being read."""

    pieces: list[Piece] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    futures: list["Future[Tensor]"] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.pieces))


class Arriving:
    """Reads full batches from a directory in natural order while it fills: at most `limit`, AHEAD of them in memory.

    A file is whole when it did not change for a moment, nobody has it open for writing, it decodes completely and is the
    same before and afterwards; one that does not decode is tried again when it has changed. What was read holds only if
    `stands` says so after the last write.
    """

    def __init__(self, directory: Path, *, firsts: Collection[int], batch_size: int, limit: int) -> None:
        self._directory = directory
        self._batch_size = batch_size
        self._limit = limit
        self._numbering = Numbering(firsts)
        self._first: int | None = None  # number of the file with which reading began
        self._stopped = False           # something does not fit: the rest is for when all is there
        self._taken: list[tuple[Path, Mark]] = []
        self._seen: dict[Path, tuple[Mark, float]] = {}
        self._sizes: dict[str, int] = {}
        self._pool = ThreadPoolExecutor(DECODERS)
        self._restart(None)

    def __enter__(self) -> "Arriving":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def look(self) -> int:
        """Takes in what is new, and says how many images there are. Raises EvaluationError (SAMPLER)."""
        try:
            names = names_of_files(self._directory)
        except OSError:  # some programs empty their output directory by making it anew
            names = []
        self._numbering.update(names)
        first = self._numbering.first
        if first != self._first:
            if self._taken:
                self._stopped = True
            else:
                self._restart(first)
        self._extend()
        return sum(map(self._images_in, names))

    def batch(self) -> tuple[list[Piece], list[Tensor]] | None:
        """The next batch, once it is whole; what it holds is then taken."""
        if self._stopped or not self._groups:
            return None
        group = self._groups[0]
        images = [self._result(group, n) for n in range(len(group.pieces))]
        whole = [part for part in images if part is not None]
        if len(whole) < len(images):
            return None
        self._groups.popleft()
        self._taken += zip((piece.path for piece in group.pieces), group.marks, strict=True)
        for piece in group.pieces:
            self._seen.pop(piece.path, None)
        self._extend()
        return group.pieces, whole

    def stands(self, found: Found) -> bool:
        """Are the files that were read the first ones of all, and unchanged?"""
        read = list(dict(self._taken))
        if read != [path for path, count in found.files if count][:len(read)]:
            return False
        try:
            return all(mark_of(path) == mark for path, mark in self._taken)
        except OSError:
            return False

    def _restart(self, first: int | None) -> None:
        self._first = self._next = first
        self._planned = 0                           # batches
        self._groups: deque[_Group] = deque()       # full ones
        self._open = _Group()                       # the one that is not
        self._file: tuple[Path, Mark] | None = None
        self._rows = range(0)                       # of the file, not yet in a group

    def _extend(self) -> None:
        """Starts reading what is certain and whole, up to AHEAD batches."""
        while not self._stopped and len(self._groups) < AHEAD and self._planned < self._limit:
            if not self._rows and not self._open_next():
                return
            assert self._file is not None
            path, mark = self._file
            rows = self._rows[:self._batch_size - len(self._open)]
            self._rows = self._rows[len(rows):]
            piece = Piece(path, rows)
            self._open.pieces.append(piece)
            self._open.marks.append(mark)
            self._open.futures.append(self._pool.submit(piece.read_unchanged, mark))
            if len(self._open) == self._batch_size:
                self._groups.append(self._open)
                self._open, self._planned = _Group(), self._planned + 1

    def _open_next(self) -> bool:
        """Turns to the next file that has images; False while it is not there, or not whole."""
        while self._next is not None and (name := self._numbering.name(self._next)) is not None:
            path = self._directory / name
            try:
                mark = self._settled(path)
                count = 0 if mark is None else count_images(path)
                written = may_be_written(path)
            except UnfitArrayError as error:
                raise unreadable(path, error, sampler_error) from error
            except (OSError, ValueError):
                return False
            if mark is None or written:
                return False
            self._next += 1
            self._file, self._rows = (path, mark), range(count)
            if count:
                return True
        return False

    def _images_in(self, name: str) -> int:
        if is_array(name) and name not in self._sizes:
            try:
                self._sizes[name] = count_images(self._directory / name)
            except (OSError, ValueError):
                return 0
        return self._sizes.get(name, 1)

    def _settled(self, path: Path) -> Mark | None:
        """The file's mark, if it has not changed for SETTLE seconds: by its own clock, or by ours where that is ahead."""
        mark, now = mark_of(path), time.monotonic()
        if time.time_ns() - mark.mtime_ns > SETTLE * 1e9:
            return mark
        known, since = self._seen.get(path, (None, now))
        self._seen[path] = (mark, since if known == mark else now)
        return mark if known == mark and now - since > SETTLE else None

    def _result(self, group: _Group, n: int) -> Tensor | None:
        """The images of a piece; None, and perhaps another attempt under way, where its file is not whole."""
        try:
            return group.futures[n].result()
        except (OSError, ValueError):
            self._try_again(group, n)
            return None

    def _try_again(self, group: _Group, n: int) -> None:
        piece = group.pieces[n]
        if is_array(piece.path.name):
            return  # it was whole before: it is being written anew, perhaps with another number of images
        try:
            mark = self._settled(piece.path)
            written = may_be_written(piece.path)
        except OSError:
            return
        if mark is not None and mark != group.marks[n] and not written:
            group.marks[n] = mark
            group.futures[n] = self._pool.submit(piece.read_unchanged, mark)
