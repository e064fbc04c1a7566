"""Writing files that a reader never sees half-written and a crash never leaves half-written."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: temporary file beside it, fsync, rename, fsync of the directory.

    The directory is made where it is missing. The temporary name is fixed, so what a killed writer left is overwritten
    by the next; only one process (the holder of the state lock) publishes. Raises OSError; then `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # Mode 0666 less the umask: unlike mkstemp's 0600, other people's tools can read it.
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_if_changed(path: Path, data: bytes) -> bool:
    """As `write_atomic`, unless the file already holds these bytes. True if it was written."""
    with contextlib.suppress(OSError):
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            return False
    write_atomic(path, data)
    return True


def write_document(path: Path, document: dict[str, Any]) -> bool:
    """Write a JSON document unless only its `updated` time differs from the file's. True if it was written."""
    if _timeless(read_document(path)) == _timeless(document):
        return False
    write_atomic(path, json.dumps(document, indent=2, allow_nan=False).encode() + b"\n")
    return True


def read_document(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where it is missing or is no such thing."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def sync_directory(directory: Path) -> None:
    """Make renames in it durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _timeless(document: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if document is None else {k: v for k, v in document.items() if k != "updated"}
