"""Reading whole files once: in chunks, with progress, and without driving other files out of the page cache."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

CHUNK = 2 * 1024 * 1024  # bytes

Advance = Callable[[int], None]  # is told how many bytes of the checkpoint are done with


class Bulk:
    """One file that is read from end to end. Use it in a `with` statement."""

    def __init__(self, path: Path, advance: Advance) -> None:
        """Raises OSError."""
        self.path = path
        self._advance = advance
        self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size
        self._told = 0

    def __enter__(self) -> "Bulk":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)  # what was read ahead, and pages at the borders of chunks
        os.close(self._fd)
        self._tell(self.size - self._told)  # what lies between records

    def chunks(self, begin: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `begin` to `end`. Fewer if the file is shorter. Raises OSError."""
        position, end = begin, self.size if end is None else end
        while position < end:
            data = os.pread(self._fd, min(CHUNK, end - position), position)
            if not data:
                return
            os.posix_fadvise(self._fd, position, len(data), os.POSIX_FADV_DONTNEED)
            position += len(data)
            self._tell(min(len(data), self.size - self._told))
            yield data

    def read_all(self) -> None:
        """For the errors it may raise."""
        for _ in self.chunks():
            pass

    def window(self, begin: int = 0, end: int | None = None) -> "Window":
        return Window(self._fd, begin, self.size if end is None else end)

    def _tell(self, count: int) -> None:
        if count > 0:
            self._told += count
            self._advance(count)


class Window:
    """A part of a file as a file of its own, for readers of directories and headers."""

    def __init__(self, fd: int, begin: int, end: int) -> None:
        self._fd = fd
        self._begin = begin
        self._length = end - begin
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._position)
        data = os.pread(self._fd, left if size < 0 else min(size, left), self._begin + self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        position = offset + (0, self._position, self._length)[whence]
        if position < 0:
            raise OSError(22, "before the beginning of the file")
        self._position = min(position, self._length)  # where a damaged directory points may be anywhere
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def close(self) -> None: ...
