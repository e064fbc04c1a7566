"""Runs: one row per training job's directory."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Row, insert, select, update

from ckptwatch.model import Run
from ckptwatch.store.tables import runs


def run_named(conn: Connection, root_path: Path, name: str, *, path: Path, now: float) -> tuple[Run, bool]:
    """The run of that name below a root, made if it is new; and whether it is."""
    row = conn.execute(select(runs).where(runs.c.root == str(root_path), runs.c.name == name)).one_or_none()
    if row is not None:
        return _run(row), False
    conn.execute(insert(runs).values(root=str(root_path), name=name, path=str(path), created_at=now, newest_at=now))
    row = conn.execute(select(runs).where(runs.c.root == str(root_path), runs.c.name == name)).one()
    return _run(row), True


def run(conn: Connection, run_id: int) -> Run:
    return _run(conn.execute(select(runs).where(runs.c.id == run_id)).one())


def all_runs(conn: Connection) -> tuple[Run, ...]:
    return tuple(_run(row) for row in conn.execute(select(runs).order_by(runs.c.root, runs.c.name)))


def find(conn: Connection, name: str) -> tuple[Run, ...]:
    """Runs meant by a name, or by the path of the run's directory."""
    query = select(runs).where((runs.c.name == name) | (runs.c.path == name)).order_by(runs.c.root)
    return tuple(_run(row) for row in conn.execute(query))


def new_checkpoint(conn: Connection, run_id: int, *, now: float) -> None:
    """A checkpoint appeared: the run is alive (again)."""
    conn.execute(update(runs).where(runs.c.id == run_id).values(newest_at=now, ended_at=None))


def end(conn: Connection, run_id: int, *, now: float) -> None:
    conn.execute(update(runs).where(runs.c.id == run_id).values(ended_at=now))


def silent(conn: Connection) -> tuple[tuple[Run, float], ...]:
    """Runs not ended, with the time their newest checkpoint was found."""
    return tuple((_run(row), row.newest_at) for row in conn.execute(select(runs).where(runs.c.ended_at.is_(None))))


def approve(conn: Connection, run_id: int, checkpoint_ids: Iterable[int]) -> None:
    conn.execute(update(runs).where(runs.c.id == run_id).values(approved=sorted(set(checkpoint_ids))))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What status shows of a run without planning anew."""

    best_checkpoint_id: int | None = None
    best_metric: str | None = None
    best_value: float | None = None
    best_variant: str | None = None
    last_checkpoint_id: int | None = None
    reclaimable_bytes: int = 0
    planned_removals: int = 0
    held: str = ""


def record_standing(conn: Connection, run_id: int, standing: Standing) -> None:
    conn.execute(update(runs).where(runs.c.id == run_id).values(**standing.__dict__))


def standing(conn: Connection, run_id: int) -> Standing:
    row = conn.execute(select(runs).where(runs.c.id == run_id)).one()
    return Standing(**{name: getattr(row, name) for name in Standing.__dataclass_fields__})


def _run(row: Row) -> Run:
    return Run(id=row.id, root=Path(row.root), name=row.name, path=Path(row.path), created_at=row.created_at,
               ended_at=row.ended_at, approved=frozenset(row.approved))
