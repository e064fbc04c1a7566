"""From sightings to findings: which sighted entries have settled, are whole, and are new."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckptwatch.core.settling import settle
from ckptwatch.formats.base import Claim, Format, NamePatterns, examine
from ckptwatch.model import Facts, Identity, evolve
from ckptwatch.watch.scanner import Scan
from ckptwatch.watch.sightings import Sighting, files_of, sight
from ckptwatch.watch.writers import has_writer


@dataclass(frozen=True, kw_only=True)
class Found:
    """A settled entry whose identity is not the recorded one."""

    claim: Claim
    identity: Identity
    changed_at: float  # seconds; the later of mtime and ctime
    facts: Facts

    @property
    def path(self) -> Path:
        return self.claim.path

    @property
    def members(self) -> tuple[str, ...]:
        """Names, in the directory of the path, of a set; () where the path is all there is."""
        return tuple(m.name for m in self.claim.members) if self.claim.members != (self.path,) else ()


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

    def __init__(
        self, *, formats: Iterable[Format], quiet: float, names: NamePatterns | None = None,
        writer: Callable[[Path], bool | None] = has_writer,
        again: Callable[[Claim], Sighting | None] = sight,
    ) -> None:
        self._formats = {f.name: f for f in formats}
        self._quiet = quiet
        self._names = names
        self._writer = writer
        self._again = again  # looks at a claim anew; None if there is no such checkpoint any more
        self._known: dict[Path, dict[Path, _Key]] = {}  # by directory, as the scan reports them
        self._waiting: dict[Path, _Waiting] = {}
        self._incomplete: dict[Path, Sighting] = {}     # looked at and found wanting; looked at again when it changes

    def remember(self, known: Mapping[Path, Identity], incomplete: Iterable[Path] = ()) -> None:
        """Take over what is recorded. What was incomplete is looked at again: what proves it may have come since."""
        for path, identity in known.items():
            self._know(path, _key(identity))
        for path in incomplete:
            self._know(path, _NOTHING)

    def forget(self, path: Path) -> None:
        """The path no longer holds what was recorded: we moved it away, or a look at it has to be repeated."""
        self._known.get(path.parent, {}).pop(path, None)
        self._incomplete.pop(path, None)

    @property
    def writing(self) -> dict[Path, str]:
        """Entries that have not settled, and why not."""
        return {path: w.reason for path, w in self._waiting.items()}

    @property
    def recheck_at(self) -> float | None:
        """When the next unsettled entry is worth another look."""
        return min((w.recheck_at for w in self._waiting.values()), default=None)

    def observe(self, scan: Scan, *, now: float) -> list[Finding]:
        """Take in a scan; returns what vanished and what settled."""
        blind = tuple(directory for directory, _ in scan.unreadable)
        vanished: list[Path] = []
        waiting: dict[Path, list[Path]] = {}
        for path in self._waiting:
            waiting.setdefault(path.parent, []).append(path)
        for directory, sightings in scan.changed.items():
            known = self._known.get(directory, {})
            here = {s.path: s for s in sightings}
            for sighting in sightings:
                self._take(sighting, known.get(sighting.path), now)
            vanished += [p for p in known if p not in here and not _below(p, blind)]
            self._stop_waiting(p for p in waiting.get(directory, ()) if p not in here)
        gone = set(scan.gone)
        if scan.visited is not None:
            gone |= {d for d in [*self._known, *waiting] if str(d) not in scan.visited}
        for directory in gone:
            vanished += [p for p in self._known.get(directory, ()) if not _below(p, blind)]
            self._stop_waiting(p for p in waiting.get(directory, ()) if not _below(p, blind))
        for path in self._incomplete_and_proven_otherwise():
            self._waiting.setdefault(path, _Waiting(sighting=self._incomplete[path], unchanged_since=now))
        for path in vanished:
            self.forget(path)
        return [Vanished(path=p) for p in vanished] + self.settle(now=now)

    def settle(self, *, now: float) -> list[Finding]:
        """Look again at the unsettled entries that are due."""
        findings: list[Finding] = []
        for path, waiting in list(self._waiting.items()):
            if waiting.recheck_at <= now and (finding := self._look(path, waiting, now)) is not None:
                del self._waiting[path]
                self._know(path, _key(finding.identity))
                if finding.facts.complete:
                    self._incomplete.pop(path, None)
                else:
                    self._incomplete[path] = waiting.sighting
                findings.append(finding)
        return findings

    # ---- one entry -----------------------------------------------------------------------------------------------

    def _take(self, sighting: Sighting, known: "_Key | None", now: float) -> None:
        path = sighting.path
        if known == _key(sighting.identity) and self._incomplete.get(path, sighting) == sighting:
            self._waiting.pop(path, None)
            return
        before = self._waiting.get(path)
        if before is None or before.sighting != sighting:
            self._waiting[path] = _Waiting(sighting=sighting, unchanged_since=now)

    def _incomplete_and_proven_otherwise(self) -> Iterator[Path]:
        """Incomplete ones about which a file beside them may say something new: `latest`."""
        for path, sighting in list(self._incomplete.items()):
            if sighting.witnesses and path not in self._waiting:
                try:
                    now = self._again(sighting.claim)
                except OSError:
                    continue
                if now is not None and now != sighting:
                    self._incomplete[path] = now
                    yield path

    def _look(self, path: Path, waiting: _Waiting, now: float) -> Found | None:
        try:
            sighting = self._again(waiting.sighting.claim)
            if sighting is None:
                raise FileNotFoundError
            if sighting != waiting.sighting:
                waiting.sighting, waiting.unchanged_since = sighting, now
            changed_at = max(sighting.mtime_ns, sighting.ctime_ns) / 1e9
            verdict = settle(
                changed_at=changed_at, first_seen_unchanged=waiting.unchanged_since, now=now, quiet=self._quiet,
                writer=self._has_writer(sighting.claim),
            )
            waiting.reason = verdict.reason
            if not verdict.settled:
                waiting.recheck_at = max(now, verdict.recheck_at or now)
                return None
            facts = self._examine(sighting.claim)
            if self._again(sighting.claim) != sighting:  # changed while we read it: what we read may be of two files
                waiting.unchanged_since, waiting.recheck_at = now, now
                return None
        except FileNotFoundError:
            self._waiting.pop(path, None)
            return None
        except OSError as error:
            waiting.reason = f"unreadable: {error.strerror or error}"
            waiting.recheck_at = now + max(self._quiet, 5.0)
            return None
        return Found(claim=sighting.claim, identity=evolve(sighting.identity, fingerprint=facts.fingerprint),
                     changed_at=changed_at, facts=facts)

    def _has_writer(self, claim: Claim) -> bool | None:
        """Of any of its files. None if that cannot be told of one, and of no other is known that it has."""
        answers = set()
        for file in files_of(claim.members):
            answers.add(self._writer(file))
            if True in answers:
                return True
        return None if None in answers else False

    def _examine(self, claim: Claim) -> Facts:
        try:
            return examine(claim, self._formats[claim.format], self._names)
        except OSError:
            raise
        except Exception as error:  # a third party's format must not stop the watcher
            return Facts(format=claim.format, complete=False, evidence=f"format {claim.format} failed: {error!r}")

    # ---- bookkeeping ---------------------------------------------------------------------------------------------

    def _know(self, path: Path, key: "_Key") -> None:
        self._known.setdefault(path.parent, {})[path] = key

    def _stop_waiting(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self._waiting.pop(path, None)


_Key = tuple[int, int, int]
_NOTHING: _Key = (-1, -1, -1)


def _key(identity: Identity) -> _Key:
    """Device left out: it changes when the same filesystem is mounted again."""
    return (identity.inode, identity.size, identity.mtime_ns)


def _below(path: Path, directories: tuple[Path, ...]) -> bool:
    return any(path.is_relative_to(d) for d in directories)
