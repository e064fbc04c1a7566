"""The scan: every checkpoint below a root, with its stat. It is the truth; events only say where to look.

A scanner remembers what it saw, so that looking again costs little more than listing the directories: formats are asked
only about directories whose names changed, and only what changed is reported.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from ckptwatch.core.naming import parse_name
from ckptwatch.formats.base import UNFINISHED, Claim, Folder, Format, claims_in, list_folder, with_marker
from ckptwatch.model import Role
from ckptwatch.watch.sightings import Sighting, sight, sighting_of

OURS = ".ckptwatch"


@dataclass(kw_only=True)
class Scan:
    """What a look at a root, or at a part of it, found changed since the last look."""

    # Directory → all checkpoints in it, for each directory in which at least one is new, changed or gone.
    changed: dict[Path, tuple[Sighting, ...]] = field(default_factory=dict)
    gone: set[Path] = field(default_factory=set)   # directories that held checkpoints and are no more
    # A look at everything: whatever was known below a directory that is not in here is gone.
    visited: set[str] | None = None
    unreadable: list[tuple[Path, str]] = field(default_factory=list)  # no evidence that anything in there is gone


@dataclass(slots=True)
class _Seen:
    """One directory as it was last seen."""

    path: Path
    files: list[str]
    folders: list[str]
    links: list[str]
    claims: tuple[Claim, ...] = ()   # of entries in it
    with_folders: tuple[Claim, ...] = ()  # those of them that directories belong to
    whole: Claim | None = None       # of the directory itself
    watched: frozenset[str] = frozenset()  # files that belong to a claim
    descend: tuple[str, ...] = ()    # directories that belong to none
    stats: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sightings: dict[Path, Sighting] = field(default_factory=dict)  # subdirectories that are checkpoints included


class Scanner:
    """Looks at one root. Symbolic links and hidden directories are never followed."""

    def __init__(self, root: Path, formats: Sequence[Format], exclude: Sequence[str] = ()) -> None:
        self.root = root
        self._formats = formats
        self._exclude = exclude
        self._seen: dict[str, _Seen] = {}

    def scan(self) -> Scan:
        """Look at everything."""
        result = Scan(visited=set())
        self._visit_all([str(self.root)], result, deep=True)
        blind = tuple(f"{directory}{os.sep}" for directory, _ in result.unreadable)
        for directory in [d for d in self._seen if d not in result.visited and not f"{d}{os.sep}".startswith(blind or "\0")]:
            del self._seen[directory]
        return result

    def look(self, directory: Path) -> Scan:
        """Look at one directory, and at what is new below it. Cheap enough for every event."""
        result = Scan()
        if not directory.is_relative_to(self.root):
            return result
        start = self.root
        for part in directory.relative_to(self.root).parts:
            known = self._seen.get(str(start))
            if part.startswith("."):
                break  # what is hidden lies in the directory above or nowhere
            if known is None or known.whole is not None or str(start / part) not in self._seen:
                break  # it is one checkpoint with all that is in it, or what is new in it will be found from here
            start = start / part
        self._visit_all([str(start)], result, deep=False)
        return result

    def links(self) -> Iterator[Path]:
        """Every symbolic link that was seen below the root, outside of checkpoints."""
        for directory, seen in self._seen.items():
            for name in seen.links if seen.whole is None else ():
                yield Path(directory, name)

    def sight(self, claim: Claim) -> Sighting | None:
        """The claim as it is now. None if there is no such checkpoint any more.

        Raises OSError.
        """
        if not claim.whole:
            return sight(claim)  # what joins it or leaves is found by scanning its directory
        folder = list_folder(claim.path)
        folder = self._without_excluded(folder) if self._exclude else folder
        now = next((c for c in claims_in(folder, self._formats) if c.whole), None)
        return None if now is None else sight(replace(now, witnesses=claim.witnesses))

    # ---- one directory -------------------------------------------------------------------------------------------

    def _visit_all(self, pending: list[str], result: Scan, *, deep: bool) -> None:
        while pending:
            directory = pending.pop()
            before = self._seen.get(directory)
            seen = self._visit(directory, result)
            if seen is None:
                continue
            if result.visited is not None:
                result.visited.add(directory)
            # A marker beside a directory that came or went says something new of it.
            names = {*seen.files, *(before.files if before else ())} if not deep else ()
            marked = [name for name in names if name.endswith(UNFINISHED)]
            below = {name: f"{directory}{os.sep}{name}" for name in seen.descend}
            pending += below.values() if deep else [
                path for name, path in below.items() if path not in self._seen or f"{name}{UNFINISHED}" in marked]

    def _visit(self, directory: str, result: Scan) -> _Seen | None:
        """Look at one directory. None if there is nothing further to look at in it."""
        before = self._seen.get(directory)
        try:
            files, folders, links, infos = _list(directory, before.watched if before is not None else frozenset())
        except FileNotFoundError:
            self._forget(directory, result)  # rotated away between the listing of its parent and now
            return None
        except OSError as error:
            result.unreadable.append((Path(directory), error.strerror or str(error)))
            return None
        if before is None or files != before.files or folders != before.folders or links != before.links:
            try:
                seen = self._ask(directory, files, folders, links, before, result)
            except Exception as error:
                # A third party's format. What it would have claimed must not pass for another's, nor what is known for gone;
                # nothing is remembered of the directory, so that the next look asks again.
                result.unreadable.append((Path(directory), f"a format failed: {error!r}"))
                return None
            self._seen[directory] = seen
            infos = _stat_all(directory, seen.watched)
        else:
            seen = before
        if seen.whole is not None:
            self._take_whole(seen.whole, result)
            if result.visited is not None:
                result.visited.add(directory)
            return None
        if before is None:
            result.changed[seen.path] = ()  # what was known of it before we started is held against what is there
        elif before.whole is not None and self._displace(seen.path):
            self._report(seen.path.parent, result)
        self._take_entries(seen, infos, result)
        return seen

    def _ask(
        self, directory: str, files: list[str], folders: list[str], links: list[str], before: _Seen | None, result: Scan,
    ) -> _Seen:
        """The formats' claims in a directory whose names are new. Raises what a format raises, and then changes nothing."""
        path = before.path if before is not None else Path(directory)
        seen = _Seen(path=path, files=files, folders=folders, links=links)
        folder = Folder(path=path, files=frozenset(_texts(files, path, result)), is_root=path == self.root,
                        folders=frozenset(_texts(folders, path, result)), links=frozenset(links))
        if self._exclude:
            folder = self._without_excluded(folder)
        claims = tuple(claims_in(folder, self._formats))
        if claims and claims[0].whole:
            seen.whole = claims[0]
        else:
            seen.claims = tuple(c for c in claims if not c.aside)
            taken = {member.name for claim in claims for member in claim.members}
            seen.watched = frozenset(taken & folder.files)
            if taken & folder.folders:
                seen.with_folders = tuple(c for c in seen.claims if any(m.name in folder.folders for m in c.members))
            seen.descend = tuple(name for name in folders if name in folder.folders and name not in taken)
        if before is not None:
            kept = {path / name for name in seen.descend}
            seen.sightings = {p: s for p, s in before.sightings.items() if s.claim.whole and p in kept}
            if len(seen.sightings) != len(before.sightings):
                result.changed[path] = ()  # filled in by _take_entries
            for name in {*before.descend} - {*seen.descend}:
                self._forget(f"{directory}{os.sep}{name}", result)
            if seen.whole is not None and path in result.changed:
                del result.changed[path]
                result.gone.add(path)
        return seen

    def _take_entries(self, seen: _Seen, infos: dict[str, os.stat_result], result: Scan) -> None:
        """The checkpoints among the entries of a directory; the directory itself is none."""
        if not seen.claims and seen.path not in result.changed:
            return
        path = seen.path
        stats = {n: (i.st_ino, i.st_size, i.st_mtime_ns, i.st_ctime_ns, i.st_nlink) for n, i in infos.items()}
        if stats == seen.stats and not seen.with_folders and path not in result.changed:
            return
        seen.stats = stats
        own = {p: s for p, s in seen.sightings.items() if s.claim.whole}
        for claim in _without_twins(seen.claims, infos):
            try:
                if claim in seen.with_folders:
                    own[claim.path] = sight(claim)
                else:
                    own[claim.path] = sighting_of(claim, infos[claim.path.name], [infos[m.name] for m in claim.members])
            except (KeyError, FileNotFoundError):
                continue  # a member vanished meanwhile; its directory will be looked at again
            except OSError as error:
                result.unreadable.append((path, error.strerror or str(error)))
        if own != seen.sightings or path in result.changed:
            seen.sightings = own
            self._report(path, result)

    def _take_whole(self, claim: Claim, result: Scan) -> None:
        """A directory that is one checkpoint: it is listed with the others of the directory it lies in."""
        home = self._seen.setdefault(str(claim.path.parent), _Seen(path=claim.path.parent, files=[], folders=[], links=[]))
        claim = with_marker(claim, home.files)
        try:
            sighting = sight(claim)
        except FileNotFoundError:
            return  # something in it vanished meanwhile; the next look will tell
        except OSError as error:
            result.unreadable.append((claim.path, error.strerror or str(error)))
            return
        if home.sightings.get(claim.path) != sighting:
            home.sightings[claim.path] = sighting
            self._report(claim.path.parent, result)

    def _displace(self, path: Path) -> bool:
        """The directory is no checkpoint (any more): was it listed as one?"""
        home = self._seen.get(str(path.parent))
        return home is not None and home.sightings.pop(path, None) is not None

    def _report(self, path: Path, result: Scan) -> None:
        result.changed[path] = tuple(self._seen[str(path)].sightings.values())

    def _forget(self, directory: str, result: Scan) -> None:
        """The directory and all below it is gone, or has become part of a checkpoint."""
        inside = f"{directory}{os.sep}"
        for known in [d for d in self._seen if d == directory or d.startswith(inside)]:
            result.gone.add(Path(known))
            result.changed.pop(Path(known), None)
            del self._seen[known]
        if self._displace(Path(directory)):
            self._report(Path(directory).parent, result)

    # ---- exclusion -----------------------------------------------------------------------------------------------

    def _without_excluded(self, folder: Folder) -> Folder:
        return replace(folder, files=frozenset(self._included(folder, folder.files)),
                       folders=frozenset(self._included(folder, folder.folders)))

    def _included(self, folder: Folder, names: Iterable[str]) -> Iterable[str]:
        below = os.path.relpath(folder.path, self.root)
        for name in names:
            relative = name if below == "." else f"{below}/{name}"
            if not any(fnmatchcase(relative, p) or fnmatchcase(relative, f"{p}/*") for p in self._exclude):
                yield name


def _list(directory: str, watched: frozenset[str]) -> tuple[list[str], list[str], list[str], dict[str, os.stat_result]]:
    """Names of files, directories that are not hidden, and links; and the stat of the files that are watched.

    Raises OSError.
    """
    files, folders, links = [], [], []
    infos: dict[str, os.stat_result] = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                name = entry.name
                files.append(name)
                if name in watched:
                    infos[name] = entry.stat(follow_symlinks=False)
            elif entry.is_dir(follow_symlinks=False):
                if entry.name[0] != ".":
                    folders.append(entry.name)
            elif entry.is_symlink():
                links.append(entry.name)
    return files, folders, links, infos


def _stat_all(directory: str, names: Iterable[str]) -> dict[str, os.stat_result]:
    infos = {}
    for name in names:
        try:
            infos[name] = os.lstat(f"{directory}{os.sep}{name}")
        except OSError:
            continue  # vanished between listing and stat
    return infos


def _without_twins(claims: Sequence[Claim], infos: dict[str, os.stat_result]) -> Iterable[Claim]:
    """Claims less those that are another's file under a moving name: timm hard-links `last` and `model_best`."""
    linked = {name: info.st_ino for name, info in infos.items() if info.st_nlink > 1}
    if not linked:
        return claims
    regular = {linked[c.path.name] for c in claims if c.path.name in linked and not _moves(c.path.name)}
    return [c for c in claims if not (linked.get(c.path.name) in regular and _moves(c.path.name))]


def _moves(name: str) -> bool:
    return parse_name(name).role in (Role.LAST, Role.BEST)


def _texts(names: list[str], directory: Path, result: Scan) -> Iterable[str]:
    """Names that can be recorded and shown."""
    if "".join(names).isascii():
        yield from names
        return
    for name in names:
        if name.isascii() or _is_text(name):
            yield name
        else:
            result.unreadable.append((directory / name, "its name is not UTF-8"))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
