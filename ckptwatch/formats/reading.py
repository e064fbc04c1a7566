"""Reading untrusted files within bounds."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

JSON_LIMIT = 64 * 1024 * 1024  # bytes; a trainer_state.json of a million logged steps has about 40 MiB
TEXT_LIMIT = 4096              # bytes; a tracker file names a checkpoint, anything larger is something else


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


def open_regular(path: Path) -> BinaryIO:
    """A file to read from. Raises OSError, also for what is no plain file: opening a pipe would wait for its other end."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115 - given away
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return file


def read_json(path: Path, limit: int = JSON_LIMIT) -> Any:
    """A JSON document. Raises OSError; ValueError, with words, for anything that is none or is larger than the limit."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"larger than {limit:,} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {type(error).__name__}: {str(error)[:200]}") from error


def read_text(path: Path, limit: int = TEXT_LIMIT) -> str:
    """The short text of a tracker file, stripped; "" for one that is missing, unreadable, longer or no text."""
    try:
        with open_regular(path) as file:
            data = file.read(limit + 1)
        return data.decode().strip() if len(data) <= limit else ""
    except (OSError, ValueError):
        return ""


def whole_number(value: Any) -> int | None:
    """A step or epoch: a non-negative integer of at most 63 bits, also as text or as a float that is whole."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if isinstance(value, float) and value != number:
        return None
    return number if 0 <= number < 2**63 else None


def is_name(key: Any, longest: int = 128) -> bool:
    """A metric's or variant's name that can be shown and recorded as it is: no control characters, no half characters."""
    return isinstance(key, str) and key != "" and key.isprintable() and len(key) <= longest


def numbers_in(mapping: Any) -> dict[str, float]:
    """The entries of a mapping that are metrics: a printable name and a number."""
    if not isinstance(mapping, dict):
        return {}
    return {
        k: float(v) for k, v in mapping.items()
        if is_name(k) and isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 2**1023
    } | {k: v for k, v in mapping.items() if is_name(k) and isinstance(v, float)}
