"""Alarms: one open row for each thing that is wrong with a run, closed ones as history."""

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, Row, insert, select, update

from ckptwatch.model import Alarm, AlarmKind, Symptom
from ckptwatch.store.tables import alarms, runs


def raise_(conn: Connection, run_id: int, symptom: Symptom, *, go_back_to: Path | None, now: float) -> Alarm:
    """A new open alarm. There must be none of the same kind and subject."""
    result = conn.execute(insert(alarms).values(
        run_id=run_id, opened_at=now, updated_at=now, go_back_to=None if go_back_to is None else str(go_back_to),
        **_values(symptom)))
    return _alarm(conn.execute(select(alarms).where(alarms.c.id == result.inserted_primary_key[0])).one())


def update_(conn: Connection, alarm_id: int, symptom: Symptom, *, now: float) -> Alarm:
    """It grew worse. Since when, and where to go back to, stand."""
    values = {k: v for k, v in _values(symptom).items() if k not in ("step", "epoch")}
    conn.execute(update(alarms).where(alarms.c.id == alarm_id).values(updated_at=now, **values))
    return _alarm(conn.execute(select(alarms).where(alarms.c.id == alarm_id)).one())


def close(conn: Connection, alarm_id: int, *, now: float) -> None:
    conn.execute(update(alarms).where(alarms.c.id == alarm_id, alarms.c.closed_at.is_(None)).values(closed_at=now))


def told(conn: Connection, alarm_ids: Sequence[int], *, now: float) -> None:
    """A notification about them went out."""
    conn.execute(update(alarms).where(alarms.c.id.in_(list(alarm_ids))).values(told_at=now))


def to_tell(conn: Connection, *, since: float) -> list[tuple[str, Alarm, float | None]]:
    """(run name, alarm, when it was last told of) of all that is open, and of closed ones whose end was not told or that
    were told of after `since`."""
    a = alarms.c
    query = (select(runs.c.name, alarms).join(runs, runs.c.id == a.run_id)
             .where(a.closed_at.is_(None) | (a.told_at < a.closed_at) | (a.told_at >= since)))
    return [(row.name, _alarm(row), row.told_at) for row in conn.execute(query)]


def of_run(conn: Connection, run_id: int, open_only: bool = False) -> tuple[Alarm, ...]:
    """Newest first."""
    query = select(alarms).where(alarms.c.run_id == run_id)
    if open_only:
        query = query.where(alarms.c.closed_at.is_(None))
    return tuple(_alarm(row) for row in conn.execute(query.order_by(alarms.c.opened_at.desc(), alarms.c.id.desc())))


def _values(symptom: Symptom) -> dict[str, object]:
    numbers = {k: v if abs(v) < float("inf") else None for k, v in symptom.numbers.items()}  # JSON has no NaN
    return {"kind": symptom.kind, "subject": symptom.subject, "message": symptom.message, "numbers": numbers,
            "causes": list(symptom.causes), "step": symptom.step, "epoch": symptom.epoch}


def _alarm(row: Row) -> Alarm:
    symptom = Symptom(kind=AlarmKind(row.kind), subject=row.subject, message=row.message,
                      numbers={k: float("nan") if v is None else v for k, v in row.numbers.items()},
                      causes=tuple(row.causes), step=row.step, epoch=row.epoch)
    return Alarm(id=row.id, run_id=row.run_id, symptom=symptom, go_back_to=None if row.go_back_to is None else
                 Path(row.go_back_to), opened_at=row.opened_at, updated_at=row.updated_at, closed_at=row.closed_at)
