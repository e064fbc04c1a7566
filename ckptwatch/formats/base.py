"""The seam for checkpoint layouts: what a directory looks like to them, what they answer, and the registry.

A format looks at the names in one directory and claims those that are a checkpoint of its family: the directory itself, one
file, or a set of entries that belong together. Claims come from names alone, because a scan makes them by the thousand; only
what has settled is examined, and even then no tensor is read and nothing in a file is run.
"""

import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

from ckptwatch.core.naming import NameFacts, parse_name, whole_name
from ckptwatch.errors import CkptwatchError
from ckptwatch.model import Facts

GROUP = "ckptwatch.formats"
LONGEST_EVIDENCE = 1000  # characters
UNFINISHED = "-unfinished"  # NeMo puts `<name>-unfinished` beside a checkpoint while it saves or deletes it


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The names in one directory. Links are listed apart and never claimed or followed."""

    path: Path
    files: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()  # hidden ones left out
    links: frozenset[str] = frozenset()
    is_root: bool = False                  # a watched root is never a checkpoint itself

    name: str = field(init=False)          # of the directory itself

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.path.name)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a format takes for one checkpoint: a directory, a file, or several entries of one directory."""

    format: str
    path: Path                  # what the checkpoint is called by: the directory, or its leading file
    members: tuple[Path, ...]   # all entries that belong to it, siblings, sorted; a lone file or directory: (path,)
    whole: bool = False         # `path` is the directory the format was shown, not an entry in it
    witnesses: tuple[Path, ...] = ()  # files outside it that decide about completeness, such as `latest` beside it
    aside: bool = False         # no checkpoint: entries that belong to those beside them, and that nobody may take for one


@dataclass(frozen=True, kw_only=True)
class About:
    """What people and the linker need to know of a family. The texts make docs/formats.md."""

    title: str        # "Hugging Face Trainer"
    recognised: str   # by which names
    complete: str     # what proves that it is whole
    protected: str = "nothing beyond the general rules"  # what of it is never removed, and why
    facts: str = "step and epoch from the name"          # where step, epoch, metrics and variants come from
    # A full match on names that may not be placed in the directory that holds such checkpoints, and what happens else.
    forbidden_names: str = ""
    forbidden_because: str = ""
    # Why nothing of it may be removed while its run goes on; "" where its trainer does not mind.
    needed_while_training: str = ""


@runtime_checkable
class Format(Protocol):
    """One family of layouts. The answers come without reading tensors and without running code from a file."""

    name: str
    about: About
    precedence: int  # formats with a lower one are asked first; ours lie between 10 and 90

    def claims(self, folder: Folder) -> Iterable[Claim]:
        """The checkpoints of this family among the entries of the directory, or the directory itself; by names alone."""

    def examine(self, claim: Claim) -> Facts:
        """What the claimed entries hold. Never raises for their content: whatever is wrong is `complete=False` with
        evidence. Raises OSError where they cannot be read at all."""

    def needed(self, folder: Folder) -> Iterable[tuple[Path, str]]:
        """Paths a trainer still needs, each with the reason, as told by the tracker files in this directory."""

    def checksums(self, claim: Claim) -> Mapping[Path, str]:
        """SHA-256 by file, where the trainer wrote such down beside the checkpoint. Raises OSError, ValueError."""

    def variant_path(self, path: Path, members: Sequence[str], variant: str) -> Path:
        """The file or directory that holds a variant, for samplers: `path`, unless each variant is a file of its own.
        `members` are the names of a set of files, () for a lone entry."""


class Family:
    """What most formats answer alike; a plugin may start from it. Set `name` and `about`, give `claims` and `examine`."""

    name: str
    about: About
    precedence: int = 5

    def claims(self, folder: Folder) -> Iterable[Claim]:
        raise NotImplementedError

    def examine(self, claim: Claim) -> Facts:
        raise NotImplementedError

    def needed(self, folder: Folder) -> Iterable[tuple[Path, str]]:
        return ()

    def checksums(self, claim: Claim) -> Mapping[Path, str]:
        return {}

    def variant_path(self, path: Path, members: Sequence[str], variant: str) -> Path:
        return path

    # ---- building answers ----------------------------------------------------------------------------------------

    def claim_folder(self, folder: Folder, *witnesses: Path) -> Claim:
        """The directory itself."""
        return Claim(format=self.name, path=folder.path, members=(folder.path,), whole=True, witnesses=witnesses)

    def claim_files(self, folder: Folder, leading: str, *others: str, witnesses: Iterable[Path] = ()) -> Claim:
        """Entries of the directory; `leading` is what the checkpoint is called by."""
        path = folder.path / leading
        members = (path,) if not others else tuple(folder.path / name for name in sorted({leading, *others}))
        return Claim(format=self.name, path=path, members=members, witnesses=tuple(witnesses))

    def incomplete(self, evidence: str) -> Facts:
        return Facts(format=self.name, complete=False, evidence=evidence)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the pickle of a torch file says, as its family understands it."""

    step: int | None = None
    epoch: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    variants: tuple[str, ...] = ()


class Dialect(Family):
    """A family whose checkpoints are torch files and are known by their content, not by their names."""

    def claims(self, folder: Folder) -> Iterable[Claim]:
        return ()

    def examine(self, claim: Claim) -> Facts:
        raise NotImplementedError(f"{self.name} claims nothing by itself")

    def speaks(self, content: Mapping[object, object]) -> bool:
        """Is this pickle's tree, with stand-ins for tensors and objects, of this family? Never raises."""
        raise NotImplementedError

    def read(self, content: Mapping[object, object], path: Path) -> Reading:
        """Never raises, whatever the tree is. The path is only for its name: a tree may list several checkpoints."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class NamePatterns:
    """A root's own patterns for names, tried before ours: full matches whose groups are step, epoch or metrics."""

    patterns: tuple[re.Pattern[str], ...] = field(default=())

    def parse(self, name: str) -> NameFacts:
        return parse_name(name, self.patterns)

    def know(self, name: str) -> bool:
        """Do the root's own patterns read this name?"""
        return any(pattern.fullmatch(name) for pattern in self.patterns)


@cache
def formats() -> tuple[Format, ...]:
    """All installed formats in the order in which they are asked. Raises CkptwatchError for a name given twice."""
    found: dict[str, Format] = {}
    for point in entry_points(group=GROUP):
        if point.name in found:
            raise CkptwatchError("load formats", f"the format `{point.name}` is registered twice",
                                 hint="uninstall one of the packages that provide it")
        try:
            found[point.name] = point.load()()
        except Exception as error:  # whatever a plugin raises; to go on without it would take its checkpoints for others'
            raise CkptwatchError("load formats", f"the format `{point.name}` ({point.value}) fails: {error!r}",
                                 hint="mend or uninstall the package that provides it") from error
    return tuple(sorted(found.values(), key=lambda f: (f.precedence, f.name)))


def format_named(name: str) -> Format | None:
    return next((f for f in formats() if f.name == name), None)


def claims_in(folder: Folder, among: Sequence[Format] | None = None) -> list[Claim]:
    """What the formats claim, each name at most once: an earlier format's claim hides it from the later ones.

    If the directory itself is claimed, that is the only claim.
    """
    if (being_written := _on_its_way(folder, among)) is not None:
        return [being_written]
    left, found = folder, []
    for format_ in formats() if among is None else among:
        if isinstance(format_, Dialect):
            continue  # known by content alone
        taken: set[str] = set()
        for claim in format_.claims(left):
            if claim.whole:
                if not folder.is_root:
                    return [claim]
                continue
            names = {claim.path.name} if len(claim.members) == 1 else {member.name for member in claim.members}
            if taken.isdisjoint(names):  # else a plugin claims one name twice
                taken |= names
                found.append(claim)
        if taken:
            left = replace(left, files=left.files - taken, folders=left.folders - taken)
    return [with_marker(claim, folder.files) for claim in found] if _marked(folder) else found


def with_marker(claim: Claim, beside: Container[str]) -> Claim:
    """The claim with the marker that says that it is being written among its witnesses, if the marker is there."""
    marker = f"{claim.path.name}{UNFINISHED}"
    if marker not in beside:
        return claim
    return replace(claim, witnesses=(*claim.witnesses, claim.path.with_name(marker)))


def _on_its_way(folder: Folder, among: Sequence[Format] | None) -> Claim | None:
    """A step's directory under a temporary name: nothing in it is a checkpoint yet, whatever it looks like."""
    from ckptwatch.formats.step_names import unfinished

    if folder.is_root or not unfinished(folder.name) or not (folder.files or folder.folders):
        return None
    format_ = next((f for f in formats() if f.name == "step-directory"), None)
    if format_ is None or (among is not None and format_ not in among):
        return None
    return Claim(format=format_.name, path=folder.path, members=(folder.path,), whole=True)


def _marked(folder: Folder) -> bool:
    return any(name.endswith(UNFINISHED) for name in folder.files)


def list_folder(path: Path, *, is_root: bool = False) -> Folder:
    """The names in a directory. Raises OSError."""
    files, folders, links = set(), set(), set()
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_symlink():
                links.add(entry.name)
            elif entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith("."):
                    folders.add(entry.name)
            elif entry.is_file(follow_symlinks=False):
                files.add(entry.name)
    return Folder(path=path, files=frozenset(files), folders=frozenset(folders), links=frozenset(links), is_root=is_root)


def claim_at(path: Path, among: Sequence[Format] | None = None) -> Claim | None:
    """The checkpoint that a path is, or is a member of. A file inside a directory that is one checkpoint is taken for
    itself. Raises OSError."""
    if path.is_dir():
        own = next((c for c in claims_in(list_folder(path), among) if c.whole), None)
        if own is not None:
            return own
    around = list_folder(path.parent, is_root=True)
    for folder in (around, replace(around, files=around.files & {path.name}, folders=frozenset())):
        if claim := next((c for c in claims_in(folder, among) if path in c.members and not c.aside), None):
            return claim
    return None


def claims_below(top: Path, among: Sequence[Format] | None = None) -> Iterator[Claim]:
    """Every checkpoint below a directory, which itself is none. Raises OSError."""
    pending = [list_folder(top, is_root=True)]
    while pending:
        folder = pending.pop()
        taken: set[str] = set()
        for claim in claims_in(folder, among):
            taken |= {member.name for member in claim.members}
            if not claim.aside:
                yield claim
            if claim.whole:
                break
        else:
            pending += [list_folder(folder.path / name) for name in sorted(folder.folders - taken)]


def examine(claim: Claim, format_: Format, names: NamePatterns | None = None) -> Facts:
    """The format's facts, completed by what the name says. The name wins: people rename files on purpose.

    Raises OSError where the path cannot be read.
    """
    if marker := _being_written(claim.path):
        return Facts(format=format_.name, complete=False, evidence=f"{marker.name} beside it says that it is being written")
    facts = format_.examine(claim)
    if claim.whole and facts.complete and (stranger := _stranger(claim, facts)):
        evidence = f"it holds further checkpoints, such as {stranger}: taken for a run's directory, and left alone"
        return Facts(format=facts.format, complete=False, evidence=evidence)
    patterns = names or NamePatterns()
    name = patterns.parse(whole_name(claim.path))
    counts = facts.name_counts_saves and not patterns.know(whole_name(claim.path))
    return replace(
        facts,
        evidence=_shown(facts.evidence),
        step=facts.step if name.step is None or counts else name.step,
        epoch=facts.epoch if name.epoch is None else name.epoch,
        metrics={**facts.metrics, **name.metrics},
    )


def _stranger(claim: Claim, facts: Facts) -> str:
    from ckptwatch.formats.step_names import stranger_in

    name = parse_name(claim.path.name)
    found = stranger_in(claim.path, {n for n in (name.step, name.epoch, facts.step, facts.epoch) if n is not None})
    return "" if found is None else _shown(str(found.relative_to(claim.path)))


def _shown(evidence: str) -> str:
    """As it can be recorded and printed: names in a file may be no text, or very long."""
    return evidence.encode(errors="backslashreplace").decode()[:LONGEST_EVIDENCE]


def _being_written(path: Path) -> Path | None:
    marker = path.with_name(f"{path.name}{UNFINISHED}")
    return marker if os.path.lexists(marker) else None  # also False where the name is longer than names may be
