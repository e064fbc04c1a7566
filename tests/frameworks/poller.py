"""Somebody who looks at everything all the time and takes what a format says at its word."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ckptwatch.formats.base import Claim, claims_below, examine, format_named
from ckptwatch.model import Facts
from ckptwatch.watch.sightings import Sighting, files_of, sight
from ckptwatch.watch.writers import has_writer
from tests.frameworks.dialogue import PATIENCE, Account


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Somebody looked, and a format said that this is complete."""

    claim: Claim
    facts: Facts
    copy: Mapping[str, bytes]  # of all its files, taken at once, by path below the training's directory
    pauses: int                # how many there had been


class Poller:
    """Examines every claim every few milliseconds, without waiting until anything has settled.

    Only for paths that match `unproven`, whose layout has no marker to tell by, is a verdict waited for as long as `quiet`.
    """

    def __init__(self, account: Account, unproven: tuple[str, ...], quiet: float) -> None:
        self.verdicts: list[Verdict] = []
        self.failures: list[BaseException] = []
        self._account = account
        self._unproven = unproven
        self._quiet = quiet
        self._judged: dict[Path, Sighting] = {}
        self._complete: dict[str, Sighting] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()
        if self.failures:
            raise self.failures[0]

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            try:
                self.look()
            except BaseException as error:
                self.failures.append(error)
                return

    def look(self) -> None:
        with self._lock:
            try:
                for claim in claims_below(self._account.out):
                    with suppress(FileNotFoundError):  # rotated away under our eyes
                        self._judge(claim)
            except FileNotFoundError:
                pass

    def pause(self, present: Mapping[str, Mapping[str, Any]]) -> None:
        """Returns when everything that lies there has been found complete as it lies there now."""
        def lacking() -> list[str]:
            self.look()
            return [name for name in present if name not in self._complete or self._outdated(self._complete[name])]

        deadline = time.monotonic() + PATIENCE
        while missing := lacking():
            if time.monotonic() > deadline:
                raise AssertionError("not found complete:\n" + "\n".join(f"{n}: {self._why(n)}" for n in missing))
            time.sleep(0.02)

    def _judge(self, claim: Claim) -> None:
        sighting = sight(claim)
        if self._judged.get(claim.path) == sighting:
            return
        name = str(claim.path.relative_to(self._account.out))
        if any(fnmatchcase(name, p) for p in self._unproven) and not self._settled(sighting):
            return
        format_ = format_named(claim.format)
        assert format_ is not None
        facts = examine(claim, format_)
        copy = {str(f.relative_to(self._account.out)): f.read_bytes() for f in files_of(claim.members)}
        if sight(claim) != sighting:
            return  # what was examined and what was copied may be two things
        if facts.complete:
            self._judged[claim.path] = sighting
            self._complete[name] = sighting
            self.verdicts.append(Verdict(claim=claim, facts=facts, copy=copy, pauses=len(self._account.states)))

    def _settled(self, sighting: Sighting) -> bool:
        changed = max(sighting.mtime_ns, sighting.ctime_ns) / 1e9
        return time.time() - changed >= self._quiet and not any(has_writer(f) for f in files_of(sighting.claim.members))

    def _outdated(self, sighting: Sighting) -> bool:
        try:
            return sight(sighting.claim) != sighting
        except OSError:
            return True

    def _why(self, name: str) -> str:
        for claim in claims_below(self._account.out):
            if claim.path == self._account.out / name:
                format_ = format_named(claim.format)
                assert format_ is not None
                return f"{claim.format} says: {examine(claim, format_).evidence}"
        return "nothing claims it"

    def half_written(self, load: Callable[[Path], str], scratch: Path, rewritten: tuple[str, ...]) -> list[str]:
        """The verdicts that no state of the training bears out, in words."""
        found = []
        for number, verdict in enumerate(self.verdicts):
            if self._is_a_declared_state(verdict) or self._is_a_second_name(verdict):
                continue
            name = str(verdict.claim.path.relative_to(self._account.out))
            top = scratch / str(number)
            for path, data in verdict.copy.items():
                target = top / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            digest = load(top / name)
            known = digest in self._account.digests().get(name, ())
            if known and (self._is_on_its_way_out(verdict, name) or any(fnmatchcase(name, p) for p in rewritten)):
                continue
            found.append(f"{name} ({verdict.facts.format}: {verdict.facts.evidence}) with {sorted(verdict.copy)}; "
                         f"loaded: {digest}, {'known' if known else 'not known'}")
        return found

    def _is_a_declared_state(self, verdict: Verdict) -> bool:
        name = str(verdict.claim.path.relative_to(self._account.out))
        copy = _digests(verdict.copy)
        members = [str(m.relative_to(self._account.out)) for m in verdict.claim.members]
        inside = tuple(f"{m}/" for m in members)
        return any(
            name in present and copy == {p: d for p, d in files.items() if p in members or p.startswith(inside)}
            for present, files in self._account.states)

    def _is_a_second_name(self, verdict: Verdict) -> bool:
        """A hard link to, or a copy of, a file that the training declared under another name."""
        copy = set(_digests(verdict.copy).values())
        return len(copy) == 1 and any(
            files.get(path) in copy for present, files in self._account.states for path in present)

    def _is_on_its_way_out(self, verdict: Verdict, name: str) -> bool:
        """A part of what lay there at an earlier pause."""
        copy = _digests(verdict.copy)
        return any(name in present and all(files.get(path) == d for path, d in copy.items())
                   for present, files in self._account.states[:verdict.pauses])


def _digests(copy: Mapping[str, bytes]) -> dict[str, str]:
    return {path: hashlib.sha256(data).hexdigest() for path, data in copy.items()}
