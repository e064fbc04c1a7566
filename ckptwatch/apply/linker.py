"""Aliases: relative symbolic links, swapped atomically, never dangling."""

import json
import os
from pathlib import Path

from ckptwatch.errors import CkptwatchError
from ckptwatch.model import Alias
from ckptwatch.publish.atomic import sync_directory, write_atomic

LIST = ".aliases.json"  # in our own directory: which links are ours, so that no other is ever touched


class AliasError(CkptwatchError):
    """An alias could not be set."""


def apply_aliases(aliases: tuple[Alias, ...], *, record_dir: Path) -> list[str]:
    """Make the links as planned and take away ours that are no longer wanted. Returns what changed, in words.

    Raises AliasError if a name is taken by something that is no link of ours, or cannot be written.
    """
    ours = _ours(record_dir)
    wanted = {a.link: a.target for a in aliases}
    changes = []
    for link in set(wanted) - ours:
        _check_free(link)
    if ours | set(wanted) != ours:
        _record(record_dir, ours | set(wanted))  # before the first link: a crash must not leave one that is nobody's
    for link, target in wanted.items():
        if _set(link, target):
            changes.append(f"{link.name} → {target.name}")
    for link in ours - set(wanted):
        if link.is_symlink():
            link.unlink(missing_ok=True)
            changes.append(f"{link.name} removed")
    if ours - set(wanted):
        _record(record_dir, set(wanted))
    return changes


def _check_free(link: Path) -> None:
    """A name that is not on our list may not be taken. Asked before it gets on the list, or it would be ours next time."""
    if os.path.lexists(link):
        what = "a link that is not ours" if link.is_symlink() else "a file"
        raise AliasError("set alias", f"{what} has this name", path=link, hint="choose another name under aliases:")


def _set(link: Path, target: Path) -> bool:
    relative = os.path.relpath(target, link.parent)
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            if str(link.readlink()) == relative:
                return False
            temporary = link.with_name(f".{link.name}.ckptwatch-tmp")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(relative)
            os.replace(temporary, link)
        else:
            _take(link, relative)
        sync_directory(link.parent)
    except OSError as error:
        raise AliasError("set alias", error.strerror or str(error), path=link) from error
    return True


def _take(link: Path, relative: str) -> None:
    """A new name is taken only if it is free at that very moment. Raises AliasError if it is not."""
    try:
        link.symlink_to(relative)
    except FileExistsError as error:
        raise AliasError("set alias", "a file has this name", path=link,
                         hint="choose another name under aliases:") from error


def _ours(record_dir: Path) -> set[Path]:
    try:
        return {Path(p) for p in json.loads((record_dir / LIST).read_text())}
    except (OSError, ValueError, TypeError):
        return set()


def _record(record_dir: Path, links: set[Path]) -> None:
    try:
        record_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(record_dir / LIST, (json.dumps(sorted(str(p) for p in links)) + "\n").encode())
    except OSError as error:
        raise AliasError("record aliases", error.strerror or str(error), path=record_dir) from error

