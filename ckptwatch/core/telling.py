"""Which messages about alarms go out now: the first at once, then rarely, and never more than so many in an hour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckptwatch.model import Alarm, AlarmKind

HOUR = 3600.0
LINES = 50  # of a digest

WORDS: Mapping[AlarmKind, str] = {
    AlarmKind.LOSS_SPIKE: "loss spike",
    AlarmKind.METRIC_DROP: "metric drop",
    AlarmKind.NOT_FINITE: "NaN or Inf",
    AlarmKind.WEIGHTS: "NaN or Inf in weights",
    AlarmKind.PLATEAU: "plateau",
    AlarmKind.DIVERGENCE: "divergence",
    AlarmKind.OVERFITTING: "overfitting",
    AlarmKind.STUCK: "stuck at zero",
    AlarmKind.STALLED: "no new checkpoints",
}
_SEVERE = frozenset({AlarmKind.NOT_FINITE, AlarmKind.WEIGHTS, AlarmKind.DIVERGENCE})


@dataclass(frozen=True, kw_only=True)
class Told:
    """An alarm and when it was last told of, in seconds since the epoch; None: never."""

    run: str
    alarm: Alarm
    told_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Message:
    title: str
    body: str
    level: str  # "failure", "warning", "success": as Apprise calls them, for colours and icons
    alarms: tuple[int, ...] = ()  # ids of those it tells of


def messages(
    known: Sequence[Told], *, every: float, at_most: int, sent: Sequence[float], now: float,
) -> tuple[Message, ...]:
    """What to send now.

    `known`: all open alarms, and closed ones that were told of. An alarm is told of when it is raised; again when it grew
    worse and `every` seconds have passed; and once when it is over, if its beginning was told. One that was raised anew
    (same run, kind and subject) is told of no sooner than `every` seconds after the last word about it.
    `sent`: when messages went out. In any hour at most `at_most` do: the last of them holds all that is left together, and
    what comes later waits for room, then goes together as well. Nothing is lost by waiting: it follows from `known` again.
    """
    room = at_most - sum(1 for at in sent if now - HOUR < at <= now)
    due = sorted((t for t in known if _is_due(t, known, every, now)), key=_order)
    if not due or room <= 0:
        return ()
    groups = _together(due)
    if len(groups) <= room:
        return tuple(_one(group) for group in groups)
    rest = [told for group in groups[room - 1 :] for told in group]
    return (*(_one(group) for group in groups[: room - 1]), _digest(rest))


def _together(due: Sequence[Told]) -> list[list[Told]]:
    """Those of one run of which the same is to be said: one NaN spoils every term of a loss."""
    groups: dict[tuple[object, ...], list[Told]] = {}
    for told in due:
        key = (told.run, told.alarm.symptom.kind, told.alarm.closed_at is None, told.told_at is None)
        groups.setdefault(key, []).append(told)
    return list(groups.values())


def _is_due(told: Told, known: Sequence[Told], every: float, now: float) -> bool:
    alarm = told.alarm
    if alarm.closed_at is not None:
        return told.told_at is not None and told.told_at < alarm.closed_at
    if told.told_at is not None:
        return alarm.updated_at > told.told_at and now - told.told_at >= every
    earlier = [t.told_at for t in known if t.told_at is not None and _subject(t) == _subject(told)]
    return not earlier or now - max(earlier) >= every


def _subject(told: Told) -> tuple[str, AlarmKind, str]:
    return (told.run, told.alarm.symptom.kind, told.alarm.symptom.subject)


def _order(told: Told) -> tuple[int, float, int]:
    """The gravest first, what is over last."""
    alarm = told.alarm
    rank = 2 if alarm.closed_at is not None else 0 if alarm.symptom.kind in _SEVERE else 1
    return (rank, alarm.opened_at, alarm.id)


def _level(told: Told) -> str:
    if told.alarm.closed_at is not None:
        return "success"
    return "failure" if told.alarm.symptom.kind in _SEVERE else "warning"


def _title(told: Told) -> str:
    alarm = told.alarm
    end = " is over" if alarm.closed_at is not None else " grew worse" if told.told_at is not None else ""
    subject = "" if alarm.symptom.subject in ("weights", "checkpoints") else f" of {alarm.symptom.subject}"
    return f"{told.run}: {WORDS[alarm.symptom.kind]}{subject}{end}"


def _one(group: Sequence[Told]) -> Message:
    first, *others = group
    alarm = first.alarm
    lines = [t.alarm.symptom.message for t in group[:LINES]]
    if alarm.closed_at is None:
        if alarm.symptom.causes:
            lines.append(f"Likely: {'; '.join(alarm.symptom.causes)}")
        if alarm.go_back_to is not None:
            lines.append(f"Go back to: {alarm.go_back_to}")
    more = f" and {len(others)} more" if others else ""
    return Message(title=f"{_title(first)}{more}", body="\n".join(lines), level=_level(first),
                   alarms=tuple(t.alarm.id for t in group))


def _digest(due: Sequence[Told]) -> Message:
    lines = [f"{_title(t)}: {t.alarm.symptom.message}" for t in due[:LINES]]
    if len(due) > LINES:
        lines.append(f"and {len(due) - LINES} more: see `ckptwatch status`")
    grave = {_level(t) for t in due}
    level = next(level for level in ("failure", "warning", "success") if level in grave)
    runs = len({t.run for t in due})
    where = due[0].run if runs == 1 else f"{runs} runs"
    return Message(title=f"{where}: {len(due)} alarms", body="\n".join(lines), level=level,
                   alarms=tuple(t.alarm.id for t in due))
