"""The scan: every checkpoint-like entry below a root, with its stat. It is the truth; events only say when to look."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from ckptwatch.formats.base import Entry, Format, format_of

OURS = ".ckptwatch"


@dataclass(frozen=True, kw_only=True)
class Sighting:
    entry: Entry
    format: Format


@dataclass(kw_only=True)
class Scan:
    """What one scan saw. `unreadable` directories are not evidence that anything below them is gone."""

    sightings: list[Sighting] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    directories: int = 0


def entry_of(path: Path) -> Entry:
    """The entry of a path, links not followed. Raises OSError."""
    return _entry(path, path.lstat())


def scan(top: Path, *, root: Path, formats: Sequence[Format], exclude: Sequence[str] = ()) -> Scan:
    """All checkpoint-like entries at and below `top`, or of the whole root where `top` is not below it.

    Symbolic links and hidden directories are never followed.
    """
    result = Scan()
    below = top.relative_to(root) if top.is_relative_to(root) else Path()
    if any(part.startswith(".") for part in below.parts):
        return result  # a hint from inside a hidden directory
    pending = [str(root / below)]
    while pending:
        directory = pending.pop()
        result.directories += 1
        try:
            with os.scandir(directory) as found:
                for item in found:
                    _look(item, root, formats, exclude, result, pending)
        except FileNotFoundError:
            continue  # a trainer rotated it away between the listing and now; the next scan of its parent tells
        except OSError as error:
            result.unreadable.append((Path(directory), error.strerror or str(error)))
    return result


def _look(
    item: os.DirEntry[str], root: Path, formats: Sequence[Format], exclude: Sequence[str], result: Scan,
    pending: list[str],
) -> None:
    is_dir = item.is_dir(follow_symlinks=False)
    if item.is_symlink() or (is_dir and item.name.startswith(".")):
        return
    if exclude and _excluded(item.path, root, exclude):
        return
    if not item.name.isascii() and not _is_text(item.name):
        result.unreadable.append((Path(item.path), "its name is not UTF-8"))  # it could be neither recorded nor shown
        return
    if not is_dir and not item.is_file(follow_symlinks=False):
        return
    entry = None
    for format_ in _claiming(item, is_dir, formats):
        try:
            entry = entry or _entry(Path(item.path), item.stat(follow_symlinks=False))
        except OSError:
            return  # vanished between listing and stat
        if format_.claims(entry):
            result.sightings.append(Sighting(entry=entry, format=format_))
            return
    if is_dir:
        pending.append(item.path)


def _claiming(item: os.DirEntry[str], is_dir: bool, formats: Sequence[Format]) -> Iterator[Format]:
    """Formats worth a stat: asked with a stat-less entry first, because most entries are no checkpoints."""
    probe = Entry(path=Path(item.path), is_dir=is_dir, device=0, inode=0, size=0, mtime_ns=0, ctime_ns=0, links=1)
    if (format_ := format_of(probe, formats)) is not None:
        yield format_


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _excluded(path: str, root: Path, patterns: Sequence[str]) -> bool:
    relative = os.path.relpath(path, root)
    return any(fnmatchcase(relative, p) or fnmatchcase(relative, f"{p}/*") for p in patterns)


def signed64(number: int) -> int:
    """The number as SQLite holds it. Inodes of overlay and FUSE mounts, and times after 2262, need the 64th bit."""
    return (number + 2**63) % 2**64 - 2**63


def _entry(path: Path, info: os.stat_result) -> Entry:
    return Entry(
        path=path, is_dir=stat.S_ISDIR(info.st_mode), device=signed64(info.st_dev), inode=signed64(info.st_ino),
        size=info.st_size, mtime_ns=signed64(info.st_mtime_ns), ctime_ns=info.st_ctime_ns, links=info.st_nlink,
    )
