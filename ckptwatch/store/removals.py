"""The removal journal. Every row is written and synced before the step on disk that it announces."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Select, insert, select, update

from ckptwatch.model import Removal, RemovalState
from ckptwatch.store.tables import checkpoints, removals, runs

OPEN = (RemovalState.INTENDED, RemovalState.RESTORING, RemovalState.PURGING)  # a restart has to finish these


def intend(
    conn: Connection, *, checkpoint_id: int, original: Path, trash_dir: Path, reason: str, size: int, now: float,
    purge_at: float,
) -> Removal:
    """A new journal entry; its place in the trash is named after its number, so no two ever share one."""
    result = conn.execute(insert(removals).values(
        checkpoint_id=checkpoint_id, original=str(original), trash="", state=RemovalState.INTENDED, reason=reason,
        bytes=size, at=now, purge_at=purge_at))
    number = result.inserted_primary_key[0]
    place = trash_dir / f"{number:08d}" / original.name
    conn.execute(update(removals).where(removals.c.id == number).values(trash=str(place)))
    return removal(conn, number)


def advance(conn: Connection, removal_id: int, state: RemovalState) -> Removal:
    conn.execute(update(removals).where(removals.c.id == removal_id).values(state=state))
    return removal(conn, removal_id)


def removal(conn: Connection, removal_id: int) -> Removal:
    return _removal(conn.execute(_joined().where(removals.c.id == removal_id)).one())


def in_state(conn: Connection, *states: RemovalState) -> tuple[Removal, ...]:
    return tuple(_removal(r) for r in conn.execute(_joined().where(removals.c.state.in_(states)).order_by(removals.c.id)))


def of_checkpoint(conn: Connection, checkpoint_id: int) -> Removal | None:
    """The latest entry of a checkpoint."""
    query = _joined().where(removals.c.checkpoint_id == checkpoint_id).order_by(removals.c.id.desc()).limit(1)
    row = conn.execute(query).one_or_none()
    return None if row is None else _removal(row)


def _joined() -> Select[Any]:
    return (select(removals, runs.c.name.label("run"), checkpoints.c.step, checkpoints.c.members)
            .join(checkpoints, checkpoints.c.id == removals.c.checkpoint_id).join(runs, runs.c.id == checkpoints.c.run_id))


def _removal(row: Row) -> Removal:
    return Removal(id=row.id, checkpoint_id=row.checkpoint_id, run=row.run, step=row.step, original=Path(row.original),
                   trash=Path(row.trash), state=RemovalState(row.state), reason=row.reason, bytes=row.bytes, at=row.at,
                   purge_at=row.purge_at, members=tuple(row.members))
