"""From sightings to findings: which sighted entries have settled, are whole, and are new."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckptwatch.core.settling import settle
from ckptwatch.formats.base import Format, examine
from ckptwatch.model import Facts, Identity
from ckptwatch.watch.scanner import Scan, Sighting, entry_of
from ckptwatch.watch.writers import has_writer


@dataclass(frozen=True, kw_only=True)
class Found:
    """A settled entry whose identity is not the recorded one."""

    path: Path
    identity: Identity
    changed_at: float  # seconds; the later of mtime and ctime
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class Vanished:
    path: Path


Finding = Found | Vanished


@dataclass(kw_only=True)
class _Waiting:
    sighting: Sighting
    unchanged_since: float
    reason: str = ""
    recheck_at: float = 0.0


class Catalogue:
    """Knows, for one root, the recorded identity of each path and what still has to settle. Touches no database."""

    def __init__(self, *, root: Path, quiet: float, writer: Callable[[Path], bool | None] = has_writer) -> None:
        self.root = root
        self._quiet = quiet
        self._writer = writer
        self._known: dict[Path, tuple[int, int, int]] = {}
        self._waiting: dict[Path, _Waiting] = {}

    def remember(self, known: Mapping[Path, Identity]) -> None:
        """Take over what is recorded."""
        self._known.update({path: _key(identity) for path, identity in known.items()})

    def forget(self, path: Path) -> None:
        """The path no longer holds what was recorded: we moved it away, or a look at it has to be repeated."""
        self._known.pop(path, None)

    @property
    def writing(self) -> dict[Path, str]:
        """Entries that have not settled, and why not."""
        return {path: w.reason for path, w in self._waiting.items()}

    @property
    def recheck_at(self) -> float | None:
        """When the next unsettled entry is worth another look."""
        return min((w.recheck_at for w in self._waiting.values()), default=None)

    def observe(self, scan: Scan, *, top: Path, now: float) -> list[Finding]:
        """Take in a scan of `top` and below; returns what vanished and what settled."""
        seen: set[Path] = set()
        for sighting in scan.sightings:
            path = sighting.entry.path
            seen.add(path)
            if self._known.get(path) == _key(sighting.entry.identity):
                self._waiting.pop(path, None)
                continue
            before = self._waiting.get(path)
            if before is None or before.sighting.entry != sighting.entry:
                self._waiting[path] = _Waiting(sighting=sighting, unchanged_since=now)
        findings: list[Finding] = [Vanished(path=p) for p in self._missing(scan, top, seen)]
        return findings + self.settle(now=now)

    def settle(self, *, now: float) -> list[Finding]:
        """Look again at the unsettled entries that are due."""
        findings: list[Finding] = []
        for path, waiting in list(self._waiting.items()):
            if waiting.recheck_at <= now and (finding := self._look(path, waiting, now)) is not None:
                del self._waiting[path]
                self._known[path] = _key(finding.identity)
                findings.append(finding)
        return findings

    def _look(self, path: Path, waiting: _Waiting, now: float) -> Found | None:
        try:
            entry = entry_of(path)
            if entry != waiting.sighting.entry:
                waiting.sighting = Sighting(entry=entry, format=waiting.sighting.format)
                waiting.unchanged_since = now
            changed_at = max(entry.mtime_ns, entry.ctime_ns) / 1e9
            verdict = settle(
                changed_at=changed_at, first_seen_unchanged=waiting.unchanged_since, now=now, quiet=self._quiet,
                writer=None if entry.is_dir else self._writer(path),
            )
            waiting.reason = verdict.reason
            if not verdict.settled:
                waiting.recheck_at = max(now, verdict.recheck_at or now)
                return None
            facts = self._examine(path, waiting.sighting.format)
            if entry_of(path) != entry:  # changed while we read it: what we read may be of two files
                waiting.unchanged_since, waiting.recheck_at = now, now
                return None
        except FileNotFoundError:
            self._waiting.pop(path, None)
            return None
        except OSError as error:
            waiting.reason = f"unreadable: {error.strerror or error}"
            waiting.recheck_at = now + max(self._quiet, 5.0)
            return None
        identity = Identity(device=entry.device, inode=entry.inode, size=entry.size, mtime_ns=entry.mtime_ns,
                            fingerprint=facts.fingerprint)
        return Found(path=path, identity=identity, changed_at=changed_at, facts=facts)

    @staticmethod
    def _examine(path: Path, format_: Format) -> Facts:
        try:
            return examine(path, format_)
        except OSError:
            raise
        except Exception as error:  # a third party's format must not stop the watcher
            return Facts(format=format_.name, complete=False, evidence=f"format {format_.name} failed: {error!r}")

    def _missing(self, scan: Scan, top: Path, seen: set[Path]) -> Iterable[Path]:
        blind = [directory for directory, _ in scan.unreadable]
        for path in [*self._known, *self._waiting]:
            if path in seen or not path.is_relative_to(top) or any(path.is_relative_to(b) for b in blind):
                continue
            if path in self._known:
                del self._known[path]
                yield path
            self._waiting.pop(path, None)


def _key(identity: Identity) -> tuple[int, int, int]:
    """Device left out: it changes when the same filesystem is mounted again."""
    return (identity.inode, identity.size, identity.mtime_ns)
