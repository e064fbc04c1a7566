"""The other side of a rehearsal: hears what a training says it saved, and looks at what ckptwatch makes of it meanwhile."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ckptwatch.formats.base import Claim, claims_below, examine, format_named
from ckptwatch.model import Checkpoint, CheckpointState, Facts, Identity
from ckptwatch.store import checkpoints, runs
from ckptwatch.watch.scanner import OURS
from ckptwatch.watch.sightings import Sighting, files_of, sight, sight_path
from ckptwatch.watch.writers import has_writer
from tests.support import Project

HERE = Path(__file__).parent
PATIENCE = 30.0  # seconds until something that lies there must have been seen

Content = Mapping[str, str]  # path below the training's directory → digest of the file


@dataclass(frozen=True, kw_only=True)
class Version:
    """What lay at a path when the training said that it was finished."""

    facts: Mapping[str, Any]  # format, step, epoch, metrics, as the training knows them
    digest: str               # of the arrays, as the training's library loads them


@dataclass(kw_only=True)
class Account:
    """What one training told."""

    out: Path
    result: Mapping[str, Any] = field(default_factory=dict)
    versions: dict[str, list[Version]] = field(default_factory=dict)
    states: list[tuple[frozenset[str], Content]] = field(default_factory=list)  # at each pause: checkpoints, all files

    def digests(self) -> dict[str, list[str]]:
        return {path: [v.digest for v in several] for path, several in self.versions.items()}


class Dialogue:
    """One training script, told when to go on."""

    def __init__(self, script: str, outs: list[Path], base: Path, environment: Mapping[str, str]) -> None:
        with (base / "training.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / f"{script}.py"), *map(str, outs)], cwd=base, env=dict(environment), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        self._log = base / "training.log"

    def documents(self) -> Iterator[dict[str, Any]]:
        """What it says, up to its end. Each has to be answered. Fails if the training does."""
        try:
            while document := self._hear():
                yield document
            assert self._process.wait(PATIENCE) == 0, self._log.read_text()[-5000:]
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()

    def answer(self, **document: Any) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has failed, which the next document tells
            self._process.stdin.write(json.dumps(document) + "\n")
            self._process.stdin.flush()

    def load(self, path: Path) -> str:
        """Digest of the arrays of a checkpoint, loaded by the training's library; "failed: …" if it cannot."""
        self.answer(load=str(path))
        document = self._hear()
        return document.get("digest") or f"failed: {document.get('error')}"

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else {}


class Hearing:
    """Takes down what a training says."""

    def __init__(self, out: Path, dialogue: Dialogue) -> None:
        self.account = Account(out=out)
        self._dialogue = dialogue
        self._lying: dict[str, Identity] = {}

    def pause(self, present: Mapping[str, Mapping[str, Any]]) -> None:
        for name, facts in present.items():
            now = sight_path(self.account.out / name).identity
            if self._lying.get(name) != now:
                self._lying[name] = now
                digest = self._dialogue.load(self.account.out / name)
                self.account.versions.setdefault(name, []).append(Version(facts=facts, digest=digest))
        self.account.states.append((frozenset(present), contents(self.account.out)))


def contents(top: Path) -> Content:
    found = {}
    for file in files_of([top]):
        if OURS not in file.parts:
            found[str(file.relative_to(top))] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


# ---- a daemon that watches ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the daemon had recorded of a checkpoint at a pause."""

    path: str
    declared: Mapping[str, Any]
    recorded: Checkpoint


class Watched:
    """A real daemon on the directory, and what it has recorded at each pause."""

    def __init__(self, base: Path, quiet: float) -> None:
        self.project = Project(base, config={
            "watch": [{"root": "runs", "quiet": quiet, "scan_every": 1.0}], "recipes": {}, "runs": [{"match": "*"}]})
        self.records: list[Record] = []

    @contextmanager
    def daemon(self) -> Iterator[None]:
        with self.project.daemon(stub=False) as daemon:
            yield
            assert daemon.stop() == 0, self.project.log

    def pause(self, present: Mapping[str, Mapping[str, Any]]) -> None:
        """Returns when the record says of everything that lies there, and of nothing else, that it lies there as it does."""
        wrong: dict[str, str] = {}
        deadline = time.monotonic() + PATIENCE
        while wrong := self._wrong(present):
            if time.monotonic() > deadline:
                told = "\n".join(f"{name}: {why}" for name, why in wrong.items())
                raise AssertionError(f"the record is wrong after {PATIENCE:.0f} s:\n{told}\n{self.project.log[-2000:]}")
            time.sleep(0.02)
        rows = self._rows()
        self.records += [Record(path=name, declared=facts, recorded=rows[name]) for name, facts in present.items()]

    def hold(self, paths: Iterable[str]) -> None:
        """Returns when all these are recorded as incomplete."""
        deadline = time.monotonic() + PATIENCE
        while missing := [p for p in paths if (row := self._rows().get(p)) is None or row.state is not CheckpointState.INCOMPLETE]:
            if time.monotonic() > deadline:
                raise AssertionError(f"not recorded as incomplete within {PATIENCE:.0f} s: {missing}\n{self.project.log[-2000:]}")
            time.sleep(0.02)

    def _rows(self) -> dict[str, Checkpoint]:
        with self.project.reading() as conn:
            rows = [c for r in runs.all_runs(conn) for c in checkpoints.of_run(conn, r.id)]
        return {str(c.path.relative_to(self.project.root)): c for c in rows if c.state in checkpoints.LIVING}

    def _wrong(self, present: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        rows = self._rows()
        strangers = {name: f"is no checkpoint, but {row.state}: {row.evidence}" for name, row in rows.items() if name not in present}
        return strangers | {name: why for name, facts in present.items() if (why := self._lacking(name, facts, rows))}

    def _lacking(self, name: str, facts: Mapping[str, Any], rows: Mapping[str, Checkpoint]) -> str:
        """What of a checkpoint that lies there is not in the record; "" if nothing."""
        if (row := rows.get(name)) is None:
            return "not recorded"
        if row.state is not CheckpointState.COMPLETE:
            return f"recorded as incomplete: {row.evidence}"
        now = sight_path(row.path, row.members).identity
        if (now.inode, now.size, now.mtime_ns) != (row.identity.inode, row.identity.size, row.identity.mtime_ns):
            return "recorded, but as it was before"
        if facts["format"] != row.format:
            return f"recorded as {row.format}, not {facts['format']}: {row.evidence}"
        return ""


# ---- somebody who looks all the time --------------------------------------------------------------------------------


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
        inside = tuple(f"{m.relative_to(self._account.out)}" for m in verdict.claim.members)
        for present, files in self._account.states:
            if name in present and copy == {
                    path: d for path, d in files.items() if path in inside or path.startswith(tuple(f"{i}/" for i in inside))}:
                return True
        return False

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


def environment(base: Path) -> dict[str, str]:
    """Of a training: nothing of it, not even compiled files, depends on the caller's shell."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "TMPDIR")}
    return {**kept, "PYTHONPATH": str(HERE), "HOME": str(base)}
