"""The append-only history: what happened, when, by whom and why."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select

from ckptwatch.model import Event
from ckptwatch.store.tables import events


def append(
    conn: Connection, *, now: float, kind: str, message: str, by: str = "ckptwatch", run: str | None = None,
    path: Path | None = None, data: Mapping[str, Any] | None = None,
) -> None:
    conn.execute(insert(events).values(at=now, kind=kind, by=by, run=run, path=None if path is None else str(path),
                                       message=message, data=dict(data or {})))


def recent(conn: Connection, *, run: str | None = None, limit: int = 100) -> tuple[Event, ...]:
    """The newest events, newest first."""
    query = select(events).order_by(events.c.id.desc()).limit(limit)
    if run is not None:
        query = query.where(events.c.run == run)
    return tuple(
        Event(at=row.at, kind=row.kind, message=row.message, by=row.by, run=row.run,
              path=None if row.path is None else Path(row.path), data=row.data)
        for row in conn.execute(query)
    )
