"""Symptoms become alarms: raised once, updated when they grow worse, closed when they have been gone for a while."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ckptwatch.model import Alarm, AlarmKind, Checkpoint, CheckpointState, Symptom, WeightScan

LOOKS = 2            # looks in a row without the symptom before its alarm is closed
PATIENCE = 300.0     # and seconds; twice as many for each time it was raised and closed before,
MOST_PATIENCE = 86400.0  # up to these: what comes and goes is one alarm, not many

# By which number an alarm grows worse, and how many times it must have grown since the alarm was last written.
_WORSE: dict[AlarmKind, tuple[tuple[str, float], ...]] = {
    AlarmKind.LOSS_SPIKE: (("ratio", 1.1), ("current", 1.1)),
    AlarmKind.METRIC_DROP: (("drop", 1.1),),
    AlarmKind.NOT_FINITE: (("streak", 2.0), ("bad", 2.0)),
    AlarmKind.WEIGHTS: (("checkpoints", 2.0), ("tensors", 1.1)),
    AlarmKind.PLATEAU: (),
    AlarmKind.DIVERGENCE: (("ratio", 1.1), ("current", 1.1)),
    AlarmKind.OVERFITTING: (("rise", 1.25),),
    AlarmKind.STUCK: (("validations", 2.0),),
    AlarmKind.STALLED: (("waited", 2.0),),
}


@dataclass(frozen=True, kw_only=True)
class Absence:
    """How long an open alarm has been without its symptom."""

    since: float
    looks: int


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What to write down. `absent` is handed back at the next look; nothing is lost if a restart forgets it."""

    raised: tuple[Symptom, ...] = ()
    updated: tuple[tuple[Alarm, Symptom], ...] = ()
    closed: tuple[Alarm, ...] = ()
    absent: Mapping[int, Absence] = field(default_factory=dict)  # by the alarm's id


def reconcile(
    alarms: Sequence[Alarm], symptoms: Sequence[Symptom], *, now: float, absent: Mapping[int, Absence] | None = None,
) -> Changes:
    """What changes in the alarms of one run, open and closed ones, given its symptoms now.

    An alarm is closed when its symptom was not there in LOOKS looks and for PATIENCE seconds. Each earlier alarm of the
    same kind and subject doubles that, so something that comes and goes soon stays one open alarm.
    """
    before = absent or {}
    current = {(s.kind, s.subject): s for s in symptoms}
    raised, updated, closed, missing = dict(current), [], [], {}
    for alarm in alarms:
        if alarm.closed_at is not None:
            continue
        key = (alarm.symptom.kind, alarm.symptom.subject)
        raised.pop(key, None)
        if (symptom := current.get(key)) is not None:
            if grew_worse(alarm.symptom, symptom):
                updated.append((alarm, symptom))
            continue
        gone = before.get(alarm.id, Absence(since=now, looks=0))
        gone = Absence(since=gone.since, looks=gone.looks + 1)
        if gone.looks >= LOOKS and now - gone.since >= _patience(alarm, alarms):
            closed.append(alarm)
        else:
            missing[alarm.id] = gone
    return Changes(raised=tuple(raised.values()), updated=tuple(updated), closed=tuple(closed), absent=missing)


def grew_worse(old: Symptom, new: Symptom) -> bool:
    """Is it worth another line? Never for what merely goes on."""
    for name, factor in _WORSE[new.kind]:
        was, now = old.numbers.get(name), new.numbers.get(name)
        if was is not None and now is not None:
            return now > was + (factor - 1) * abs(was)
    return False


def _patience(alarm: Alarm, alarms: Sequence[Alarm]) -> float:
    key = (alarm.symptom.kind, alarm.symptom.subject)
    times = sum(1 for a in alarms if a.closed_at is not None and (a.symptom.kind, a.symptom.subject) == key)
    return min(MOST_PATIENCE, PATIENCE * 2.0 ** min(times, 30))


def return_point(
    symptom: Symptom, checkpoints: Sequence[Checkpoint], *, scans: Mapping[int, WeightScan] | None = None,
) -> Checkpoint | None:
    """The checkpoint from which training was still well: the newest complete one from before the symptom began.

    None whose weights hold NaN or Inf. Those of the newest generation come first; older ones only if it has none. What
    stands still (a stalled run) goes on from the newest; where nothing was ever well (a metric stuck at 0) there is none.
    """
    if symptom.kind is AlarmKind.STUCK:
        return None
    known = scans or {}
    well = [c for c in checkpoints if c.state is CheckpointState.COMPLETE
            and not (c.id in known and known[c.id].state in ("not_finite", "unreadable"))]
    before = [c for c in well if _is_before(c, symptom)]
    return max(before, key=lambda c: (*c.order, c.found_at, c.id), default=None)


def _is_before(checkpoint: Checkpoint, symptom: Symptom) -> bool:
    if symptom.step is not None and checkpoint.step is not None:
        return checkpoint.step < symptom.step
    if symptom.epoch is not None and checkpoint.epoch is not None:
        return checkpoint.epoch < symptom.epoch
    return symptom.step is None and symptom.epoch is None and symptom.kind is AlarmKind.STALLED
