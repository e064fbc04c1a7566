"""What a trainer still needs of its run, and where it may not be tripped up: links, tracker files, the formats' own word."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ckptwatch.core.naming import parse_name
from ckptwatch.formats.base import Folder, format_named, formats, list_folder
from ckptwatch.formats.reading import read_text
from ckptwatch.model import Alias, Checkpoint, Role, Run

TRACKERS = (
    "latest", "last_checkpoint", "checkpoint", "latest_checkpointed_iteration.txt", "latest.txt", "last.txt", "best.txt",
    "latest_checkpoint.txt", "LATEST", "LOWEST_VAL", "checkpoint_manager_snapshot.json",
)
TRACKER_LIMIT = 1024 * 1024  # bytes; TensorFlow's `checkpoint` lists all that are kept
_MOVING = re.compile(r"best|last|latest", re.IGNORECASE)


def protected(run: Run, living: Iterable[Checkpoint]) -> dict[int, tuple[str, ...]]:
    """Checkpoint id → why it may not be removed: what points to it, names it, or needs it. Reads the run's directories."""
    living = tuple(living)
    real = {directory: Path(os.path.realpath(directory)) for directory in {c.path.parent for c in living}}
    owner = {real[entry.parent] / entry.name: c.id for c in living for entry in c.entries}
    found: dict[int, list[str]] = {}
    for directory in sorted(_directories(run, living)):
        for path, words in _named_in(directory):
            owning = next((owner[p] for p in (path, *path.parents) if p in owner), None)
            if owning is not None and words not in found.setdefault(owning, []):
                found[owning].append(words)
    for c in living:
        if words := _twin_of(c) or _while_training(c, run):
            found.setdefault(c.id, []).append(words)
    return {number: tuple(words) for number, words in found.items()}


def alias_problem(aliases: Iterable[Alias], living: Iterable[Checkpoint]) -> str:
    """Why an alias may not be set where it is wanted; "" if all may. Trainers count, sort and parse what they find."""
    living = tuple(living)
    for alias in aliases:
        for c in living:
            if alias.link.is_relative_to(c.path):
                return f"{alias.link} would lie inside the checkpoint {c.path.name}: nothing is ever created in one"
            format_ = format_named(c.format)
            if c.path.parent != alias.link.parent or format_ is None or not format_.about.forbidden_names:
                continue
            if re.fullmatch(format_.about.forbidden_names, alias.link.name):
                return (f"{alias.link.name} may not stand beside checkpoints of {format_.about.title}: "
                        f"{format_.about.forbidden_because}")
    return ""


def _directories(run: Run, living: Iterable[Checkpoint]) -> set[Path]:
    """Where links and trackers are looked for: from the root down to each checkpoint."""
    found = {run.root, run.path}
    for directory in {c.path.parent for c in living}:
        found |= {d for d in (directory, *directory.parents) if d.is_relative_to(run.root)}
    return found


def _named_in(directory: Path) -> Iterator[tuple[Path, str]]:
    """Real paths that the links and tracker files of a directory refer to, and by what."""
    try:
        folder = list_folder(directory)
    except OSError:
        return  # gone or unreadable: then nothing is removed from it either
    for name in folder.links:
        # Through every link on the way: people reach one directory by several names.
        yield Path(os.path.realpath(directory / name)), f"{name} links here"
    for name in folder.files.intersection(TRACKERS):
        text = read_text(directory / name, TRACKER_LIMIT).strip("\0")
        if not text:
            yield from _all_in(folder, f"{name} cannot be read, and may name it")
        for word in {w.strip("\"',:[]{}") for w in text.split()} - {""}:
            for path in {directory / word, directory / Path(word).name}:
                with suppress(OSError, ValueError):  # what is no path names nothing
                    yield Path(os.path.realpath(path)), f"named by {name}"
    yield from _needed_by_trainers(folder)


def _all_in(folder: Folder, words: str) -> Iterator[tuple[Path, str]]:
    real = Path(os.path.realpath(folder.path))
    return ((real / name, words) for name in folder.files | folder.folders)


def _needed_by_trainers(folder: Folder) -> Iterator[tuple[Path, str]]:
    for format_ in formats():
        try:
            needed = [(Path(os.path.realpath(path)), words) for path, words in format_.needed(folder)]
        except Exception as error:  # an unreadable tracker, a third party's fault: neither may cost what a trainer needs
            needed = list(_all_in(folder, f"format {format_.name} could not say what its trainer needs: {error!r}"))
        yield from needed


def _twin_of(c: Checkpoint) -> str:
    """timm's `last` and `model_best` are hard links: the same file under a name that moves."""
    if c.role is not Role.REGULAR:
        return ""
    try:
        if c.path.lstat().st_nlink < 2 or c.path.is_dir():
            return ""
        with os.scandir(c.path.parent) as entries:
            for entry in entries:
                if (_MOVING.search(entry.name) and entry.inode() == c.path.lstat().st_ino
                        and parse_name(entry.name).role in (Role.BEST, Role.LAST)):
                    return f"{entry.name} is the same file"
    except OSError:
        pass  # it vanished; then there is nothing to remove
    return ""


def _while_training(c: Checkpoint, run: Run) -> str:
    format_ = format_named(c.format)
    because = format_.about.needed_while_training if format_ is not None else ""
    return because if because and run.ended_at is None else ""
