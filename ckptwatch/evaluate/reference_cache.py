"""Files in which what was computed of a reference set is kept: written in full or not at all, checked when they are read.

A full disk, or a cache that cannot be written, is no reason to fail: the value is then held in memory and not kept.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ckptwatch.evaluate.metrics.statistics import CHUNK, Moments, moments_of

SUM = 32         # bytes of SHA-256 behind the array of a file of features
READ = 1 << 20   # bytes at a time
_sound: set[tuple[Any, ...]] = set()  # files of features that this process has compared with their sums


def digest_of(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def contents_digest(files: Sequence[Path], cache_dir: Path) -> str:
    """SHA-256 over names and bytes of files; remembered by their size, time and inode, for 50,000 are slow to read.

    Raises OSError.
    """
    stats = [file.stat() for file in files]
    key = digest_of(
        f"{file.name}\0{s.st_size}\0{s.st_mtime_ns}\0{s.st_ctime_ns}\0{s.st_ino}\0{s.st_dev}"
        for file, s in zip(files, stats, strict=True)
    )
    memo = cache_dir / f"contents-{key[:32]}.txt"
    try:
        known = memo.read_text().strip()
        if len(known) == 64:
            return known
    except (OSError, ValueError):
        pass
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            own = hashlib.file_digest(opened, "sha256").hexdigest()
        total.update(f"{file.name}\0{own}\0".encode(errors="surrogateescape"))
    _write_atomically(memo, lambda out: out.write(total.hexdigest().encode()))
    return total.hexdigest()


# ---- mean and covariance --------------------------------------------------------------------------------------------


def load_arrays(path: Path, wanted: Mapping[str, int]) -> dict[str, Tensor] | None:
    """Float64 arrays of a file by name, of so many dimensions; None where there is none or it is damaged in any way."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in wanted}  # zipfile checks the CRC on reading
    except Exception:  # whatever is wrong with it, it is only a cache
        return None
    for name, ndim in wanted.items():
        if found[name].ndim != ndim or found[name].dtype != np.float64 or not np.isfinite(found[name]).all():
            return None
    return {name: torch.from_numpy(value) for name, value in found.items()}


def store_arrays(path: Path, values: Mapping[str, Tensor]) -> None:
    _write_atomically(path, lambda out: np.savez(out, **{name: value.numpy() for name, value in values.items()}))


class Tally:
    """Mean and covariance of rows that come in batches. Always added up in the same steps, whatever the batches are."""

    def __init__(self) -> None:
        self._moments: Moments | None = None
        self._waiting: list[Tensor] = []
        self._count = 0

    def add(self, rows: Tensor) -> None:
        """(k, d), finite."""
        for part in rows.split(CHUNK):
            room = CHUNK - self._count
            self._wait(part[:room])
            self._wait(part[room:])

    def moments(self) -> Moments:
        """Raises ValueError where there was nothing."""
        self._merge()
        if self._moments is None:
            raise ValueError("no features")
        return self._moments

    def _wait(self, rows: Tensor) -> None:
        if len(rows):
            self._waiting.append(rows)
            self._count += len(rows)
        if self._count == CHUNK:
            self._merge()

    def _merge(self) -> None:
        if self._count:
            own = moments_of(self._waiting)
            self._moments = own if self._moments is None else self._moments.merged(own)
            self._waiting, self._count = [], 0


# ---- features -------------------------------------------------------------------------------------------------------


def open_features(path: Path, count: int) -> Tensor | None:
    """float32 (count, d), mapped: what is written to it is not written to the file. None where the file is missing,
    damaged, or of another number of images."""
    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return None
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            begin = file.tell()
            info = os.fstat(file.fileno())
            fits = len(shape) == 2 and shape[0] == count and shape[1] > 0 and not fortran and dtype == np.dtype("<f4")
            if not fits or info.st_size != begin + 4 * shape[0] * shape[1] + SUM:
                return None
            identity = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
            if identity not in _sound and not _agrees_with_its_sum(file, info.st_size - SUM):
                return None
            _sound.add(identity)
            return _mapped(file, begin, shape)
    except (OSError, ValueError, SyntaxError):
        return None


def _mapped(file: BinaryIO, begin: int, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.memmap(file, dtype="<f4", mode="c", offset=begin, shape=shape))  # type: ignore[call-overload]


def _agrees_with_its_sum(file: BinaryIO, size: int) -> bool:
    file.seek(0)
    total = hashlib.sha256()
    while size:
        data = file.read(min(READ, size))
        if not data:
            return False
        total.update(data)
        size -= len(data)
    return file.read() == total.digest()


class FeatureWriter:
    """Features of `count` images on their way into a file of the cache: an npy file with its SHA-256 behind the array.

    Either `finish` or `abandon` must be called.
    """

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._count = count
        self._file: BinaryIO | None = None
        self._temporary: Path | None = None
        self._sum = hashlib.sha256()
        self._begin = 0      # of the array in the file, in bytes
        self._written = 0    # rows in it
        self._width = 0
        self._held: list[Tensor] = []  # where there is no file

    def add(self, rows: Tensor) -> None:
        """float32 (k, d), on the CPU."""
        if not self._width:
            self._width = rows.shape[1]
            self._guarded(self._open)
        if self._file is None:
            self._held.append(rows)
            return
        if not self._guarded(lambda: self._write(np.ascontiguousarray(rows.numpy(), dtype="<f4").data.cast("B"))):
            self._held.append(rows)
        self._written += len(rows)

    def finish(self) -> Tensor:
        """All of them, float32 (count, d): mapped from the file, if there could be one."""
        if self._file is not None:
            self._guarded(self._publish)
        if self._file is None:
            return torch.cat(self._held)
        with self._file as file:
            self._file = None
            return _mapped(file, self._begin, (self._count, self._width))

    def abandon(self) -> None:
        """Leaves nothing behind."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None

    def _guarded(self, step: Callable[[], None]) -> bool:
        """Did it work? If not, what is in the file goes into memory."""
        try:
            step()
            return True
        except OSError as error:
            _tell(self._path, error)
            if self._file is not None and self._written:
                self._file.seek(self._begin)
                rows = np.fromfile(self._file, dtype="<f4", count=self._written * self._width)
                self._held.append(torch.from_numpy(rows.reshape(-1, self._width)))
            self.abandon()
            return False

    def _open(self) -> None:
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        self._file, self._temporary = os.fdopen(handle, "w+b", buffering=0), Path(name)
        header = _Summed(self._write)
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (self._count, self._width)})
        self._begin = self._file.tell()

    def _write(self, data: Any) -> None:
        assert self._file is not None
        self._sum.update(data)
        left = memoryview(data)
        while left:
            left = left[self._file.write(left):]

    def _publish(self) -> None:
        assert self._file is not None and self._temporary is not None
        self._write(self._sum.digest())
        os.fsync(self._file.fileno())
        self._temporary.replace(self._path)
        self._temporary = None


class _Summed:
    """What numpy writes a header to."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.write = write


def _tell(path: Path, error: OSError) -> None:
    with suppress(OSError):  # the log may lie on the disk that is full
        print(f"cache {path} not written: {error}", flush=True)


def _write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Temporary file, fsync, rename."""
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as out:
            write(out)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    except OSError as error:
        _tell(path, error)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
