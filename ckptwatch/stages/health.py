"""Is training well? Logged curves, evaluations, weights and the time between checkpoints, looked at as they change."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ckptwatch.core.alarms import Absence, Changes, reconcile, return_point
from ckptwatch.core.health import NameKind, Saved, examine, kind_of
from ckptwatch.core.health_names import is_learning_rate
from ckptwatch.core.health_values import stalled_at
from ckptwatch.core.series import Curve, LogPoint, summarise
from ckptwatch.errors import StateError
from ckptwatch.model import (
    Alarm,
    Checkpoint,
    CheckpointState,
    Evaluation,
    EvaluationState,
    HealthRule,
    Mode,
    Role,
    Run,
    Symptom,
    WeightScan,
)
from ckptwatch.settings import Settings
from ckptwatch.store import alarms, checkpoints, evaluations, events, logs, runs, weight_scans
from ckptwatch.store.database import Connection, Database
from ckptwatch.workers.weight_scan import WeightScanner

log = logging.getLogger(__name__)

LONG_PAST = 86400.0  # seconds after which what is in a run is no news
MOST_CURVES = 200  # of one run, totals first: they have the shortest names
PATIENCE = 0.25  # seconds of looking before the daemon listens again
AGAIN = 60.0  # seconds after which a run is looked at again to see whether what was wrong is over
PAUSE = 10.0  # seconds between two looks at one run that keeps changing


@dataclass(kw_only=True)
class _Patient:
    """What is remembered of a run between looks."""

    looked_at: float = 0.0
    again_at: float | None = None  # when to look again although nothing changed: its next checkpoint would be late
    absent: Mapping[int, Absence] = field(default_factory=dict)  # open alarms whose symptom is gone for the moment


@dataclass(frozen=True, kw_only=True)
class News:
    """What became of alarms of one run in one look."""

    run: Run
    raised: tuple[Alarm, ...] = ()
    updated: tuple[Alarm, ...] = ()
    closed: tuple[Alarm, ...] = ()
    reached: int = 0  # step, or epoch, up to which the run has logged


@dataclass(frozen=True, kw_only=True)
class _Chart:
    """Everything a look at one run rests on."""

    run: Run
    rule: HealthRule
    curves: tuple[Curve, ...]
    modes: Mapping[str, Mode]
    saved: tuple[Saved, ...]
    checkpoints: tuple[Checkpoint, ...]
    scans: Mapping[int, WeightScan] = field(default_factory=dict)
    last_row_at: float | None = None
    alarms: tuple[Alarm, ...] = ()
    witnessed: bool = False  # has a checkpoint appeared since the run was first seen?
    final: bool = False  # has its trainer saved what it calls the final one?


class HealthStage:
    """Looks after runs. Changes nothing below a root."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self._db = db
        self._settings = settings
        self._patients: dict[int, _Patient] = {}
        self._waiting: set[int] = set()
        self._unscanned = True  # may there be checkpoints whose weights were not looked at?
        self._totals = logs.Totals()
        self.scanner = WeightScanner()

    def changed(self, run_ids: Iterable[int]) -> None:
        """Checkpoints or evaluations of these runs changed."""
        ids = set(run_ids)
        self._waiting |= ids
        self._unscanned |= bool(ids)

    def logged(self, run_ids: Iterable[int]) -> None:
        """The logs of these runs have grown."""
        self._waiting.update(run_ids)

    def look(self, *, mono: Callable[[], float], now: float, at_once: bool = False) -> list[News]:
        """Examine the runs that changed, each at most every PAUSE seconds, and those whose checkpoint is late.

        `at_once`: what is there is looked at once, nobody waits for more.
        """
        self._waiting.update(i for i, p in self._patients.items() if p.again_at is not None and p.again_at <= now)
        due = [i for i in self._waiting if at_once or now - self._patient(i).looked_at >= PAUSE]
        news, begin = [], mono()
        for run_id in due:
            if mono() - begin > PATIENCE:
                break  # the others wait for the next look
            self._waiting.discard(run_id)
            try:
                told = self._look_at(run_id, now, over=at_once)
            except StateError:
                self._waiting.add(run_id)
                raise
            except Exception:  # one curve must not end the care for the others
                log.exception("the health of run %d could not be examined", run_id)
                continue
            if told is not None:
                news.append(told)
        return news

    def _patient(self, run_id: int) -> _Patient:
        return self._patients.setdefault(run_id, _Patient())

    # ---- weights -------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Is anything to be looked at still?"""
        return self.scanner.busy or self._unscanned or bool(self._waiting)

    def scan_weights(self, *, now: float) -> None:
        """Take in what the scan that runs has found, and begin the next one: of new checkpoints, the newest first."""
        done = self.scanner.poll()
        if done is not None:
            self._take_scan(*done, now=now)
        if self.scanner.busy or not self._unscanned:
            return
        with self._db.read() as conn:
            for checkpoint in weight_scans.unscanned(conn):
                run = runs.run(conn, checkpoint.run_id)
                rule = self._settings.rule_for(run.name).health
                if rule.enabled and rule.weights:
                    root = self._settings.root_rule(run.root)
                    self.scanner.start(checkpoint.id, checkpoint.path, checkpoint.members, checkpoint.format,
                                       bool(root and root.trusted))
                    return
        self._unscanned = False

    def _take_scan(self, checkpoint_id: int, scan: WeightScan, *, now: float) -> None:
        with self._db.write() as conn:
            checkpoint = checkpoints.checkpoint(conn, checkpoint_id)
            weight_scans.record(conn, checkpoint_id, scan, now=now)
        self._waiting.add(checkpoint.run_id)
        if scan.state == "unreadable" and checkpoint.state is CheckpointState.COMPLETE:
            log.warning("%s: its weights could not be read: %s", checkpoint.path, scan.words)

    # ---- one run -------------------------------------------------------------------------------------------------

    def _look_at(self, run_id: int, now: float, *, over: bool) -> News | None:
        patient = self._patient(run_id)
        patient.looked_at = now
        with self._db.read() as conn:
            chart = self._chart(conn, runs.run(conn, run_id))
        ended = over or chart.run.ended_at is not None or chart.final or not chart.witnessed
        late_at = None if ended or not chart.rule.enabled else stalled_at(chart.saved, chart.rule)
        patient.again_at = late_at + 1 if late_at is not None and late_at >= now else None
        symptoms: Sequence[Symptom] = ()
        if chart.rule.enabled and (chart.alarms or not self._is_long_past(chart, now)):
            symptoms = examine(chart.curves, rule=chart.rule, checkpoints=chart.saved, last_row_at=chart.last_row_at,
                               now=now, ended=ended, modes=chart.modes)
        changes = reconcile(chart.alarms, symptoms, now=now, absent=patient.absent)
        patient.absent = changes.absent
        if changes.absent:
            patient.again_at = min(now + AGAIN, patient.again_at or math.inf)
        if not (changes.raised or changes.updated or changes.closed):
            return None
        return self._record(chart, changes, now)

    def _is_long_past(self, chart: _Chart, now: float) -> bool:
        """Did all of it happen long ago? Nobody wants to be told today of what went wrong in an old run."""
        last = max([c.at for c in chart.saved] + [chart.last_row_at or 0.0], default=0.0)
        return now - last > max(LONG_PAST, self._settings.rule_for(chart.run.name).ended_after)

    def _chart(self, conn: Connection, run: Run) -> _Chart:
        rule = self._settings.rule_for(run.name).health
        known = checkpoints.of_run(conn, run.id)
        scans = weight_scans.of_run(conn, run.id)
        own = [c for c in known if c.state is not CheckpointState.INCOMPLETE]
        measured, modes = evaluated_curves(own, evaluations.of_checkpoints_in(conn, run.id))
        return _Chart(
            run=run, rule=rule, curves=(*self._logged(conn, run, rule), *measured), modes=modes, checkpoints=known,
            saved=tuple(Saved(step=c.step, epoch=c.epoch, at=c.identity.mtime_ns / 1e9, weights=scans.get(c.id))
                        for c in own),
            scans=scans, last_row_at=logs.written_at(conn, run.id), alarms=alarms.of_run(conn, run.id),
            witnessed=any(c.found_at > run.created_at for c in own), final=bool(own) and own[-1].role is Role.FINAL)

    def _logged(self, conn: Connection, run: Run, rule: HealthRule) -> list[Curve]:
        """One curve for each name: that of the log that has come furthest."""
        found: dict[str, Curve] = {}
        for track in sorted(logs.tracks(conn, run.id), key=lambda t: (kind_of(t.name) is NameKind.OTHER, len(t.name))):
            if len(found) >= MOST_CURVES:
                break
            of_use = kind_of(track.name) is not NameKind.OTHER or is_learning_rate(track.name)
            if not of_use or any(fnmatchcase(track.name, p) for p in rule.ignore):
                continue
            curve = logs.curve_of(conn, track, self._totals)
            if track.name not in found or _reach(curve) > _reach(found[track.name]):
                found[track.name] = curve
        return list(found.values())

    def _record(self, chart: _Chart, changes: Changes, now: float) -> News:
        raised, updated = [], []
        with self._db.write() as conn:
            for symptom in changes.raised:
                back = return_point(symptom, chart.checkpoints, scans=chart.scans)
                raised.append(alarms.raise_(conn, chart.run.id, symptom, go_back_to=back.path if back else None, now=now))
            for alarm, symptom in changes.updated:
                updated.append(alarms.update_(conn, alarm.id, symptom, now=now))
            for alarm in changes.closed:
                alarms.close(conn, alarm.id, now=now)
            for kind, several in (("alarm", raised), ("alarm_closed", changes.closed)):
                for alarm in several:
                    events.append(
                        conn, now=now, kind=kind, run=chart.run.name, path=alarm.go_back_to, message=alarm.symptom.message,
                        data={"kind": alarm.symptom.kind, "subject": alarm.symptom.subject})
        for alarm in raised:
            back = f"; go back to {alarm.go_back_to.name}" if alarm.go_back_to else ""
            causes = f"; likely causes: {', '.join(alarm.symptom.causes)}" if alarm.symptom.causes else ""
            log.warning("%s: %s: %s%s%s", chart.run.name, alarm.symptom.kind, alarm.symptom.message, causes, back)
        for alarm in changes.closed:
            log.info("%s: %s of %s is over", chart.run.name, alarm.symptom.kind, alarm.symptom.subject)
        return News(run=chart.run, raised=tuple(raised), updated=tuple(updated), closed=tuple(changes.closed),
                    reached=int(max((_reach(c)[0] for c in chart.curves), default=0)))

    def close(self) -> None:
        self.scanner.close()


def evaluated_curves(
    known: Iterable[Checkpoint], done: Iterable[Evaluation],
) -> tuple[tuple[Curve, ...], dict[str, Mode]]:
    """One curve for each metric and variant that was evaluated, a point for each checkpoint, in the run's order; and which
    direction of it is better. Scores of unlike recipes are never put into one curve: the newest recipe's count."""
    by_id = {c.id: c for c in known if c.role not in (Role.BEST, Role.LAST)}
    finished = [e for e in done if e.state is EvaluationState.DONE and e.checkpoint_id in by_id]
    newest = max(finished, key=lambda e: e.id, default=None)
    found: dict[str, list[tuple[tuple[int, int, int], LogPoint]]] = {}
    modes: dict[str, Mode] = {}
    for e in finished:
        if newest is None or e.digest != newest.digest:
            continue
        c = by_id[e.checkpoint_id]
        for metric, score in e.scores.items():
            name = f"{metric} [{e.variant}]" if e.variant else metric
            if score.mode is not None:
                modes[name] = score.mode
            found.setdefault(name, []).append((c.order, LogPoint(step=c.step, epoch=c.epoch, value=score.value)))
    curves = []
    for name, placed in found.items():
        points = [point for _, point in sorted(placed, key=lambda p: p[0])]
        curves.append(Curve(name=name, recent=points, history=points, summary=summarise(points)))
    return tuple(curves), modes


def _reach(curve: Curve) -> tuple[float, int]:
    last = curve.summary.last
    count = 0.0 if last is None else last.step if last.step is not None else last.epoch or 0.0
    return (count, curve.summary.count)
