"""From a root to recorded checkpoints: is it the right root, what settled, which run, step and generation."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ckptwatch.apply.places import Marker, place_marker, read_marker
from ckptwatch.core.expectation import lacking, lacks
from ckptwatch.core.generations import next_generation
from ckptwatch.core.naming import run_directory, run_name, series_of, whole_name
from ckptwatch.errors import RootError
from ckptwatch.formats.base import NamePatterns, formats
from ckptwatch.model import Checkpoint, CheckpointEvent, CheckpointState, Identity, Run
from ckptwatch.settings import RootRule
from ckptwatch.store import checkpoints, evaluations, events, roots, runs
from ckptwatch.store.database import Connection, Database
from ckptwatch.watch.catalogue import Catalogue, Finding, Found, Vanished
from ckptwatch.watch.scanner import Scanner

log = logging.getLogger(__name__)

OBSERVED = "observed"  # in place of the marker of a root that nothing may be written to


class Intake:
    """Keeps the record of one root true. Nothing of a root with a problem is forgotten, removed or judged."""

    def __init__(
        self, db: Database, rule: RootRule, *, observe_only: bool = False,
        expected_of: Callable[[str], Sequence[str]] = lambda _run: (),
    ) -> None:
        """`expected_of` gives the top-level entries that the checkpoints of a run should have, by its name."""
        self.rule = rule
        self._expected_of = expected_of
        self.problem = "not looked at yet"
        self._db = db
        self._observe_only = observe_only
        self._names = NamePatterns(patterns=rule.names)
        self._begin()
        self._unreadable: set[tuple[Path, str]] = set()  # said once

    @property
    def writing(self) -> dict[Path, str]:
        """Entries being written, or not yet settled, and why."""
        return {} if self.problem else self._catalogue.writing

    @property
    def recheck_at(self) -> float | None:
        return None if self.problem else self._catalogue.recheck_at

    def check(self, *, now: float) -> None:
        """Is it the right root? `problem` says if not."""
        self._is_right_root(now)

    def start_over(self) -> None:
        """What was seen could not be recorded: take the record anew and look again."""
        self._begin()

    def _begin(self) -> None:
        self._scanner = Scanner(self.rule.root, formats(), self.rule.exclude)
        self._catalogue = Catalogue(formats=formats(), quiet=self.rule.quiet, names=self._names, again=self._scanner.sight)
        self._remembered = False

    def scan(self, directory: Path, *, now: float) -> set[int]:
        """Look at a directory and at what is new below it; at everything, if it is the root. Returns the ids of the runs
        that changed."""
        if not self._is_right_root(now):
            return set()
        everything = directory == self.rule.root
        seen = self._scanner.scan() if everything else self._scanner.look(directory)
        for place, cause in set(seen.unreadable) - self._unreadable:
            shown = str(place).encode(errors="backslashreplace").decode()  # it may be no text, and a log is
            log.warning("cannot read %s: %s; what is recorded below it stands", shown, cause)
        self._unreadable = set(seen.unreadable) if everything else self._unreadable | set(seen.unreadable)
        changed = self._record(self._catalogue.observe(seen, now=now), now)
        if everything:
            with self._db.write() as conn:
                roots.note(conn, self.rule.root, problem="", scanned_at=now)
        return changed

    def settle(self, *, now: float) -> set[int]:
        """Look again at what had not settled."""
        return set() if self.problem else self._record(self._catalogue.settle(now=now), now)

    def link_targets(self) -> dict[Path, Path]:
        """Real path → a symbolic link somewhere below the root that leads there."""
        return {Path(os.path.realpath(link)): link for link in self._scanner.links()}

    def moved_away(self, path: Path) -> None:
        """We put it into the trash: its absence is no news."""
        self._catalogue.forget(path)

    def came_back(self, path: Path, identity: Identity) -> None:
        """We restored it: its presence is no news."""
        self._catalogue.remember({path: identity})

    # ---- the right root ------------------------------------------------------------------------------------------

    def _is_right_root(self, now: float) -> bool:
        try:
            self._check_root(now)
            self.problem, before = "", self.problem
            if before and self._remembered:
                log.info("%s is back", self.rule.root)
        except RootError as error:
            if self.problem != str(error):
                log.error("%s", error)
            self.problem = str(error)
            with self._db.write() as conn:
                if roots.get(conn, self.rule.root) is None:
                    roots.record(conn, self.rule.root, uuid="", device=0)
                roots.note(conn, self.rule.root, problem=self.problem)
            return False
        if not self._remembered:
            with self._db.read() as conn:
                complete = checkpoints.known_identities(conn, self.rule.root, CheckpointState.COMPLETE)
                self._catalogue.remember(
                    complete, checkpoints.known_identities(conn, self.rule.root, CheckpointState.INCOMPLETE))
            self._remembered = True
        return True

    def _check_root(self, now: float) -> None:
        root = self.rule.root
        marker = read_marker(root)
        with self._db.read() as conn:
            known = roots.get(conn, root)
        if known is None or known.uuid in (("",) if self._observe_only else ("", OBSERVED)):
            uuid = self._identify(marker)
            with self._db.write() as conn:
                if known is not None:
                    roots.adopt(conn, root, uuid=uuid, device=root.stat().st_dev)
                else:
                    roots.record(conn, root, uuid=uuid, device=root.stat().st_dev)
            return
        if self._observe_only and known.uuid == OBSERVED:
            return
        if marker is None:
            raise RootError(
                "watch", "its marker is gone: another directory, or an empty mount point, stands in its place", path=root,
                hint="mount the right one; nothing is removed or forgotten meanwhile. If it was emptied on purpose, "
                     f"put the marker back: echo '{{\"uuid\": \"{known.uuid}\"}}' > {root}/.ckptwatch/root.json")
        if marker.uuid != known.uuid:
            raise RootError("watch", "it is another root than the one recorded under this path", path=root,
                            hint="use another state_dir for it, or mount the recorded one")
        if marker.device != known.device:
            with self._db.write() as conn:
                roots.rebase(conn, root, device=marker.device)
                events.append(conn, now=now, kind="root_remounted", path=root, message="same marker, new device number")

    def _identify(self, marker: Marker | None) -> str:
        if marker is not None:
            return marker.uuid
        return OBSERVED if self._observe_only else place_marker(self.rule.root).uuid

    # ---- what was found ------------------------------------------------------------------------------------------

    def _record(self, findings: list[Finding], now: float) -> set[int]:
        if not findings:
            return set()
        changed: set[int] = set()
        begun: set[int] = set()  # runs seen for the first time in this look: their checkpoints are a back catalogue
        # In step order, so that a back catalogue is one generation whatever order the directory lists it in.
        findings = sorted(findings, key=_in_step_order)
        with self._db.write() as conn:
            for finding in findings:
                run_id = self._record_one(conn, finding, begun, now)
                if run_id is not None:
                    changed.add(run_id)
        return changed

    def _record_one(self, conn: Connection, finding: Finding, begun: set[int], now: float) -> int | None:
        """One that cannot be recorded must not keep the others, or the daemon, from going on."""
        try:
            with conn.begin_nested():
                if isinstance(finding, Vanished):
                    return self._vanished(conn, finding, now)
                return self._found(conn, finding, begun, now)
        except (ValueError, OverflowError) as error:
            log.error("cannot record %r: %s; it is left alone", str(finding.path), error)
            return None

    def _vanished(self, conn: Connection, finding: Vanished, now: float) -> int | None:
        before = checkpoints.living(conn, finding.path)
        if before is None:
            return None
        checkpoints.move(conn, before.id, CheckpointEvent.VANISHED)
        evaluations.abandon(conn, before.id, now=now)
        run = runs.run(conn, before.run_id)
        events.append(conn, now=now, kind="gone", run=run.name, path=finding.path, message="removed by somebody else")
        log.info("%s: %s is gone (removed by somebody else)", run.name, finding.path.name)
        return run.id

    def _found(self, conn: Connection, found: Found, begun: set[int], now: float) -> int | None:
        before = checkpoints.living(conn, found.path)
        if before is not None:
            complete = before.state is CheckpointState.COMPLETE
            if before.identity == found.identity and complete == found.facts.complete:
                return None
            if before.state is CheckpointState.COMPLETE and _same_content(before.identity, found):
                # Touched, or copied over itself: its scores, pin and place in the run stand.
                checkpoints.reidentify(conn, before.id, found.identity, found.facts, found.members)
                run = runs.run(conn, before.run_id)
                self._tell(conn, run, "touched", found, "same weights, other file time or report", now)
                return before.run_id
            checkpoints.move(conn, before.id, CheckpointEvent.REWRITTEN)
            evaluations.abandon(conn, before.id, now=now)
        elif (back := checkpoints.departed(conn, found.path, found.identity)) and found.facts.complete:
            checkpoints.move(conn, back.id, CheckpointEvent.FOUND_COMPLETE)
            evaluations.revive(conn, back.id, now=now)
            self._tell(conn, runs.run(conn, back.run_id), "returned", found, "the same file is back", now)
            return back.run_id
        return self._new(conn, found, begun, before=before, now=now)

    def _new(self, conn: Connection, found: Found, begun: set[int], *, before: Checkpoint | None, now: float) -> int:
        name = run_name(run_directory(found.path, whole=found.claim.whole).relative_to(self.rule.root))
        run, is_new = runs.run_named(conn, self.rule.root, name, path=self.rule.root / name, now=now)
        if is_new:
            begun.add(run.id)
        generation = self._generation(conn, run, found, back_catalogue=run.id in begun)
        checkpoint = checkpoints.record(
            conn, run_id=run.id, path=found.path, members=found.members, identity=found.identity, facts=found.facts,
            role=self._names.parse(whole_name(found.path)).role, generation=generation, now=now)
        if before is not None and before.pinned_by is not None:  # a person meant the name; its content may be new
            checkpoints.pin(conn, checkpoint.id, before.pinned_by)
        if found.facts.complete:
            runs.new_checkpoint(conn, run.id, now=now)
            self._tell(conn, run, "rewritten" if before is not None else "found", found, checkpoint.evidence, now)
            self._tell_lacking(conn, run, found, now)
        else:
            self._tell(conn, run, "incomplete", found, checkpoint.evidence, now)
        return run.id

    def _generation(self, conn: Connection, run: Run, found: Found, *, back_catalogue: bool) -> int:
        newest = checkpoints.newest(conn, run.id)
        if newest is not None and series_of(newest.path.name) != series_of(found.path.name):
            return newest.generation  # another model's counts say nothing about this one's
        step, newest_step = found.facts.step, newest.step if newest else None
        if newest is not None and step is None and newest_step is None:
            step, newest_step = found.facts.epoch, newest.epoch  # a run that counts only epochs starts over just the same
        return next_generation(
            newest=None if newest is None else (newest.generation, newest_step),
            newest_mtime=None if newest is None else newest.identity.mtime_ns / 1e9,
            step=step, mtime=found.identity.mtime_ns / 1e9, back_catalogue=back_catalogue)

    def _tell(self, conn: Connection, run: Run, kind: str, found: Found, message: str, now: float) -> None:
        events.append(conn, now=now, kind=kind, run=run.name, path=found.path, message=message,
                      data={"step": found.facts.step, "bytes": found.identity.size, "format": found.facts.format})
        level = logging.INFO if found.facts.complete else logging.WARNING
        log.log(level, "%s: %s %s (%s)", run.name, kind, found.path.name, message)

    def _tell_lacking(self, conn: Connection, run: Run, found: Found, now: float) -> None:
        missing = lacking(self._expected_of(run.name), found.facts.keys)
        if missing:
            events.append(conn, now=now, kind="lacks_keys", run=run.name, path=found.path, message=lacks(missing),
                          data={"missing": list(missing), "step": found.facts.step})
            log.warning("%s: %s %s; it has %s", run.name, found.path.name, lacks(missing), ", ".join(found.facts.keys))


def _same_content(judged: Identity, found: Found) -> bool:
    return found.facts.complete and found.facts.content_digest and found.identity.fingerprint == judged.fingerprint


def _in_step_order(finding: Finding) -> tuple[int, int, str]:
    """What vanished first, then by step, epoch and name."""
    if isinstance(finding, Vanished):
        return (-2, -2, str(finding.path))
    step, epoch = finding.facts.step, finding.facts.epoch
    return (-1 if step is None else step, -1 if epoch is None else epoch, str(finding.path))
