"""Where the logs of a run lie: by names alone, within bounds. Runs when directories have changed, not at every look."""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from ckptwatch.core.naming import parse_name, suffix_of
from ckptwatch.model import Logged, Role

DEEPEST = 4                # directories below the run's own that are looked into
MOST_DIRECTORIES = 300
MOST_ENTRIES = 20_000      # of one directory; one with more holds pictures or data
MOST_FILES = 500
OURS = ".ckptwatch"

_NAMES = re.compile(
    r".+\.(?:jsonl|ndjson|csv|tsv|out)|.+\.log(?:\.\d{1,4})?|.*tfevents.*"
    r"|.+\.log\.json|scalars\.json|\d{8}_\d{6}\.json|trainer_state\.json|checkpoint_metadata\.json"
    r"|(?:train(?:ing)?[-_]?)?(?:logs?|metrics|stats)\.json"
    r"|(?:logs?|train|std|out|console|nohup|slurm|metrics|loss)[\w.-]{0,200}\.txt(?:\.\d{1,4})?|stdout|stderr",
    re.IGNORECASE | re.ASCII)
_STATE = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,18})", re.ASCII)
_PICTURES = re.compile(
    r"(?:images?|imgs?|pictures?|samples?|figures?|plots?|visuals?|videos?|media|vis_images?|evaluation_samples|wandb|mlruns|"
    r"node_modules|__pycache__|site-packages|code|src|datasets?)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Found:
    files: tuple[Path, ...]        # names that can be logs, sorted
    directories: tuple[Path, ...]  # a change of one of their times is why to look again


@dataclass(frozen=True, kw_only=True)
class _Listing:
    files: frozenset[str]
    folders: tuple[str, ...]


def find_logs(run_dir: Path, others: Collection[Path] = (), logged: Logged | None = None) -> Found:
    """The files in a run's directory, and below, that can be logs.

    Not looked into: what is hidden, other runs' directories (`others`), links, checkpoints, pictures. Of the Hugging Face
    Trainer's state, which each checkpoint has in full, only that of the highest step, and one in the run's own directory. Of
    records that are written twice only the exact one: MMEngine's text beside its JSON.

    `logged.files`, if there are any, are patterns below the run's directory and say it all; they may hold `..` and `**`,
    and a link they lead to is followed.
    """
    if logged is not None and logged.files:
        return _by_patterns(run_dir, logged.files)
    files: list[Path] = []
    directories: list[Path] = []
    elsewhere = {str(path) for path in others}
    level = [run_dir]
    for depth in range(DEEPEST + 1):
        below: list[Path] = []
        for directory in level[:max(0, MOST_DIRECTORIES - len(directories))]:
            listing = _list(directory)
            if listing is None:
                continue
            directories.append(directory)
            files += _logs_in(directory, listing)
            state = _newest_state(directory, listing)
            if state is not None:
                directories.append(state.parent)
                files += [state] if os.path.isfile(state) else []  # noqa: PTH113 - unlike Path.is_file it never raises
            if depth < DEEPEST:
                below += [directory / name for name in listing.folders
                          if not _is_no_place(name) and str(directory / name) not in elsewhere]
        level = below
    return Found(files=tuple(sorted(files)[:MOST_FILES]), directories=tuple(directories))


def _list(directory: Path) -> _Listing | None:
    """Names of plain files, and of directories in their order; None where they cannot be had."""
    files, folders = set(), []
    try:
        with os.scandir(directory) as entries:
            for entry in islice(entries, MOST_ENTRIES):
                if entry.is_file(follow_symlinks=False):
                    files.add(entry.name)
                elif entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                    folders.append(entry.name)
    except OSError:
        return None
    return _Listing(files=frozenset(files), folders=tuple(sorted(folders)))


def _logs_in(directory: Path, listing: _Listing) -> list[Path]:
    return [directory / name for name in listing.files
            if can_be_log(name) and not _is_said_better(directory.name, name, listing)]


def can_be_log(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(OURS) and len(name) <= 255 and _NAMES.fullmatch(name) is not None


def _is_said_better(directory: str, name: str, listing: _Listing) -> bool:
    """Does another file say the same with all digits?"""
    if directory == "vis_data":
        return "scalars.json" in listing.files and name.endswith(".json") and name != "scalars.json"
    return f"{name}.json" in listing.files or (name == f"{directory}.log" and "vis_data" in listing.folders)


def _newest_state(directory: Path, listing: _Listing) -> Path | None:
    """Where the state in the checkpoint of the highest step is, or will be."""
    steps = [(int(found[1]), name) for name in listing.folders if (found := _CHECKPOINT.fullmatch(name))]
    newest = sorted(steps, reverse=True)[:3]  # the newest may be half-written
    return next((directory / name / _STATE for _, name in newest if os.path.isfile(directory / name / _STATE)),  # noqa: PTH113
                directory / newest[0][1] / _STATE if newest else None)


def _is_no_place(name: str) -> bool:
    """Does a directory's name say that it holds no logs: pictures, or one checkpoint? A bare number may be a job's."""
    if _PICTURES.fullmatch(name) or suffix_of(name):
        return True
    facts = parse_name(name)
    counts = facts.step is not None or facts.epoch is not None
    return facts.role is not Role.REGULAR or (counts and not name.isdigit() and "epochs=" not in name)


# ---- patterns -------------------------------------------------------------------------------------------------------


def _by_patterns(run_dir: Path, patterns: Sequence[str]) -> Found:
    looked: dict[Path, None] = {}
    files: set[Path] = set()
    for pattern in patterns:
        start = Path("/") if pattern.startswith("/") else run_dir
        parts = [part for part in pattern.split("/") if part not in ("", ".")]
        for path in islice(_expand(start, parts, looked), MOST_FILES):
            if os.path.isfile(path) and not path.name.endswith(OURS):  # noqa: PTH113
                files.add(path)
    return Found(files=tuple(sorted(files)[:MOST_FILES]), directories=tuple(looked))


def _expand(base: Path, parts: Sequence[str], looked: dict[Path, None]) -> Iterator[Path]:
    """The paths that a pattern's parts lead to from a directory. Each directory looked into is noted."""
    if not parts:
        yield base
        return
    part, *rest = parts
    if part == "..":
        yield from _expand(base.parent, rest, looked)
    elif part == "**":
        for directory in _all_below(base, looked):
            yield from _expand(directory, rest, looked)
    elif any(c in part for c in "*?["):
        for name in sorted(_names_in(base, looked)):
            if fnmatchcase(name, part) and (not name.startswith(".") or part.startswith(".")):
                yield from _expand(base / name, rest, looked)
    else:
        _note(base, looked)
        yield from _expand(base / part, rest, looked)


def _names_in(directory: Path, looked: dict[Path, None]) -> list[str]:
    if not _note(directory, looked):
        return []
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in islice(entries, MOST_ENTRIES)]
    except OSError:
        return []


def _all_below(base: Path, looked: dict[Path, None]) -> Iterator[Path]:
    """A directory and those below it, not through links."""
    level = [base]
    for _ in range(DEEPEST + 1):
        below: list[Path] = []
        for directory in level:
            listing = _list(directory) if _note(directory, looked) else None
            if listing is not None:
                yield directory
                below += [directory / name for name in listing.folders]
        level = below


def _note(directory: Path, looked: dict[Path, None]) -> bool:
    """False if there is no such directory, or have been enough of them."""
    if directory in looked:
        return True
    if len(looked) >= MOST_DIRECTORIES or not os.path.isdir(directory):  # noqa: PTH112 - unlike Path.is_dir it never raises
        return False
    looked[directory] = None
    return True
