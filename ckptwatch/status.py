"""The state of everything at one moment, gathered for `status`: database, running daemon, disk. Changes nothing.

`Status` is plain data; `as_json` is the public form (design.md §5), `cli/status.py` what a person sees.
"""

import os
import shutil
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ckptwatch import __version__, control
from ckptwatch.core.expectation import lacking, lacks
from ckptwatch.errors import CkptwatchError
from ckptwatch.outline import Outline
from ckptwatch.store import heartbeat, overview, roots
from ckptwatch.store.database import Connection, open_reading
from ckptwatch.store.heartbeat import Heartbeat
from ckptwatch.store.overview import FailedEvaluation, OpenAlarm, RunOverview

LOW_DISK_CHECKPOINTS = 2  # room for fewer more of the largest recent checkpoint than this is a warning
REMEMBERED = 3 * 86400.0  # seconds for which the alarms of a run that has ended are still shown
VERSION = 1


class Level(StrEnum):
    OK = "OK"
    BUSY = "BUSY"
    WARN = "WARN"
    FAIL = "FAIL"
    DOWN = "DOWN"


@dataclass(frozen=True, kw_only=True)
class Alert:
    level: Level       # WARN or FAIL
    message: str       # what is wrong, with the numbers
    fix: str = ""      # the command that mends it, or shows more
    run: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)  # "log": path


@dataclass(frozen=True, kw_only=True)
class Disk:
    path: Path
    free: int
    total: int


@dataclass(kw_only=True)
class Status:
    now: float
    host: str
    daemon: str                       # "running", "stopped", "down" (died without saying so), "never"
    beat: Heartbeat | None
    live: Mapping[str, Any]           # what only a running daemon knows; {} without one
    queue: dict[str, int]
    runs: list[RunOverview]
    alerts: list[Alert]
    disks: list[Disk]
    purges: dict[int, float]
    scanned_at: float | None
    roots: list[Path]

    @property
    def level(self) -> Level:
        if self.daemon != "running":
            return Level.DOWN
        if any(a.level is Level.FAIL for a in self.alerts):
            return Level.FAIL
        if self.alerts:
            return Level.WARN
        return Level.BUSY if any(w.get("checkpoint") for w in self.live.get("workers", ())) else Level.OK


def gather(outline: Outline, *, run: str | None = None, now: float) -> Status:
    """Everything, or of one run. Raises StateError if the database cannot be read, UsageError for an unknown run."""
    live = _live(outline.state_dir)
    db = open_reading(outline.state_dir)
    status = Status(
        now=now, host=socket.gethostname(), daemon="running" if live else "never", beat=None, live=live or {}, queue={},
        runs=[], alerts=[], disks=[], purges={}, scanned_at=None, roots=list(outline.roots))
    if db is not None:
        try:
            with db.read() as conn:
                wanted = _id_of(conn, run) if run is not None else None
                status.beat = heartbeat.read(conn)
                status.runs = overview.run_overviews(conn, wanted)
                status.queue = overview.queue_counts(conn)
                status.purges = overview.next_purge(conn)
                failed = overview.failures(conn)
                broken = overview.incomplete(conn, [r.id for r in status.runs if r.counts.get("incomplete")])
                ill = overview.open_alarms(conn, since=now - REMEMBERED)
                lacks_keys = _lacks_keys(conn, outline, status.runs)
                known_roots = roots.all_(conn)
                stands = heartbeat.recipe_stands(conn)
        finally:
            db.close()
        status.scanned_at = min((r.scanned_at for r in known_roots if r.scanned_at), default=None)
        names = {r.id: r.name for r in status.runs}
        configured = set(outline.roots)
        status.alerts += [Alert(level=Level.FAIL, message=r.problem, fix="ckptwatch run -c CONFIG logs the same at start")
                          for r in known_roots if r.problem and r.path in configured]
        status.alerts += [Alert(level=Level.FAIL, message=f"recipe {s.name} cannot be used: {s.problem}",
                                fix="put the files in place, or mend the recipe: ckptwatch check-config CONFIG")
                          for s in stands.values() if s.problem and s.name in outline.recipes]
        status.alerts += [_failed(f, names[f.run_id]) for f in failed if f.run_id in names]
        status.alerts += [
            Alert(level=Level.WARN, run=names[owner], message=f"{path.name} is not whole: {evidence}",
                  fix=f"ckptwatch inspect {path}")
            for owner, path, evidence, _ in broken if owner in names]
        status.alerts += lacks_keys
        status.alerts += [_ill(alarm, names[alarm.run_id]) for alarm in ill if alarm.run_id in names]
    if not live and status.beat is not None:
        status.daemon = "stopped" if status.beat.stopped_at is not None else "down"
    status.alerts += _run_alerts(status)
    status.disks = _disks(outline, status)
    status.alerts.sort(key=lambda a: a.level is not Level.FAIL)
    return status


def _id_of(conn: Connection, run: str) -> int:
    from ckptwatch.commands import find_run  # knows all that changes runs: a list of them does without

    return find_run(conn, run).id


def _live(state_dir: Path) -> Mapping[str, Any] | None:
    try:
        return control.request(state_dir, "live", patience=5.0)
    except CkptwatchError as error:
        return {"trouble": f"the daemon does not answer: {error}", "workers": [], "alias_problems": {}, "writing": {}}


def _failed(f: FailedEvaluation, run: str) -> Alert:
    name = f"{run}@{f.step}" if f.step is not None else str(f.path)
    variant = f" [{f.variant}]" if f.variant else ""
    message = f"evaluation of {name}{variant} failed ({f.kind}): {f.message}"
    details = {"log": f.log} if f.log else {}
    if f.hint:
        details["hint"] = f.hint
    if f.state == "failed":
        return Alert(level=Level.FAIL, run=run, message=f"{message}; tried {f.attempts}×, kept until evaluated",
                     fix=f"ckptwatch retry {name}", details=details)
    return Alert(level=Level.WARN, run=run, message=f"{message}; attempt {f.attempts}, another follows", details=details)


_SPOILT = ("not_finite", "weights_not_finite")  # training is lost from there on


def _ill(alarm: OpenAlarm, run: str) -> Alert:
    """An alarm about training itself: what was seen, what may have caused it, where to go back to."""
    details: dict[str, Any] = {"kind": alarm.kind, "subject": alarm.subject, "numbers": dict(alarm.numbers)}
    if alarm.causes:
        details["causes"] = "; ".join(alarm.causes)
    if alarm.go_back_to:
        details["go_back_to"] = alarm.go_back_to
        if not os.path.lexists(alarm.go_back_to):
            details["restore"] = f"ckptwatch restore {alarm.go_back_to}"  # it had to give way meanwhile
    return Alert(level=Level.FAIL if alarm.kind in _SPOILT else Level.WARN, run=run, message=f"{run}: {alarm.message}",
                 fix=f"ckptwatch stats {run}", details=details)


def _lacks_keys(conn: Connection, outline: Outline, known: Iterable[RunOverview]) -> list[Alert]:
    """One for all checkpoints of a run that lack the same of what is expected: the newest stands for the others."""
    expecting = {r.id: (r.name, expected) for r in known if (expected := outline.expected_of(r.name))}
    found: dict[tuple[int, tuple[str, ...]], tuple[int, int]] = {}  # → how many, the newest
    for run_id, keys, count, newest in overview.key_sets(conn, list(expecting)):
        if missing := lacking(expecting[run_id][1], keys):
            before, newest_before = found.get((run_id, missing), (0, 0))
            found[run_id, missing] = before + count, max(newest, newest_before)
    named = overview.paths(conn, [newest for _, newest in found.values()])
    return [
        Alert(level=Level.WARN, run=expecting[run_id][0], fix=f"ckptwatch inspect {named[newest]}",
              message=f"{named[newest].name} {lacks(missing)}" + f"; {count} checkpoints of its run do" * (count > 1))
        for (run_id, missing), (count, newest) in found.items()
    ]


def _run_alerts(status: Status) -> list[Alert]:
    alerts = [
        Alert(level=Level.WARN, run=r.name, message=r.held, fix=f"ckptwatch plan {r.name}; ckptwatch approve {r.name}")
        for r in status.runs if r.held]
    problems = status.live.get("alias_problems", {})
    alerts += [Alert(level=Level.FAIL, run=r.name, message=problems[str(r.id)], fix="mend it; nothing is removed meanwhile")
               for r in status.runs if str(r.id) in problems]
    if trouble := status.live.get("trouble"):
        alerts.append(Alert(level=Level.FAIL, message=trouble))
    return alerts


def _disks(outline: Outline, status: Status) -> list[Disk]:
    """One per filesystem; room for too few checkpoints is an alert."""
    disks: dict[int, Disk] = {}
    for root in outline.roots:
        try:
            device = root.stat().st_dev
            usage = shutil.disk_usage(root)
        except OSError:
            continue
        disks.setdefault(device, Disk(path=root, free=usage.free, total=usage.total))
    sizes = [r.bytes / max(1, r.counts.get("complete", 0) + r.counts.get("incomplete", 0)) for r in status.runs if r.bytes]
    typical = max(sizes, default=0.0)
    for disk in disks.values():
        if typical and disk.free < LOW_DISK_CHECKPOINTS * typical:
            trashed = sum(r.trash_bytes for r in status.runs)
            status.alerts.append(Alert(
                level=Level.WARN, message=f"{disk.path}: room for {int(disk.free / typical)} more checkpoints",
                fix="ckptwatch trash --purge" if trashed else "see ckptwatch plan"))
    return list(disks.values())


def as_json(status: Status) -> dict[str, Any]:
    """The public form. The same keys whatever is broken; raw bytes, seconds, null."""
    beat = status.beat
    alerts: dict[str | None, list[Alert]] = {}
    for alert in status.alerts:
        alerts.setdefault(alert.run, []).append(alert)
    return {
        "version": VERSION,
        "level": str(status.level),
        "now": status.now,
        "daemon": {
            "state": status.daemon, "pid": beat.pid if beat else None, "since": beat.since if beat else None,
            "version": beat.version if beat else __version__, "stopped_at": beat.stopped_at if beat else None,
            "last_words": beat.last_words if beat else None, "scanned_at": status.scanned_at,
        },
        "workers": [
            {"id": w["id"], "device": w["device"], "state": w["state"], "checkpoint": w["checkpoint"],
             "progress": w["progress"]} for w in status.live.get("workers", ())
        ],
        "queue": {"queued": status.queue.get("pending", 0), "running": status.queue.get("running", 0),
                  "failed": status.queue.get("failed", 0), "done": status.queue.get("done", 0)},
        "writing": dict(status.live.get("writing", {})),
        "runs": [_run_json(r, alerts.get(r.name, ())) for r in status.runs],
        "alerts": [_alert_json(a) for a in alerts.get(None, ())],
        "disks": [{"path": str(d.path), "free": d.free, "total": d.total} for d in status.disks],
    }


def _run_json(r: RunOverview, alerts: Iterable[Alert]) -> dict[str, Any]:
    return {
        "name": r.name, "path": r.path,
        "checkpoints": {"total": r.counts.get("complete", 0) + r.counts.get("incomplete", 0), **r.counts},
        "best": None if r.best is None else {
            "path": r.best.path, "step": r.best.step, "metric": r.best_metric, "value": r.best_value,
            "variant": r.best_variant},
        "last": None if r.last is None else {"path": r.last.path, "step": r.last.step, "epoch": r.last.epoch},
        "bytes": r.bytes, "reclaimable_bytes": r.reclaimable_bytes, "trash_bytes": r.trash_bytes,
        "ended_at": r.ended_at, "alerts": [_alert_json(a) for a in alerts],
    }


def _alert_json(alert: Alert) -> dict[str, Any]:
    return {"level": str(alert.level), "message": alert.message, "fix": alert.fix, **alert.details}
