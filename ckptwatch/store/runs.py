"""Roots and runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Row, insert, select, update

from ckptwatch.model import Run
from ckptwatch.store.tables import checkpoints, roots, runs


@dataclass(frozen=True, kw_only=True)
class Root:
    path: Path
    uuid: str
    device: int
    problem: str
    scanned_at: float | None


def root(conn: Connection, path: Path) -> Root | None:
    row = conn.execute(select(roots).where(roots.c.path == str(path))).one_or_none()
    return None if row is None else Root(path=Path(row.path), uuid=row.uuid, device=row.device, problem=row.problem,
                                         scanned_at=row.scanned_at)


def all_roots(conn: Connection) -> tuple[Root, ...]:
    return tuple(Root(path=Path(r.path), uuid=r.uuid, device=r.device, problem=r.problem, scanned_at=r.scanned_at)
                 for r in conn.execute(select(roots)))


def record_root(conn: Connection, path: Path, *, uuid: str, device: int) -> None:
    conn.execute(insert(roots).values(path=str(path), uuid=uuid, device=device))


def adopt_root(conn: Connection, path: Path, *, uuid: str, device: int) -> None:
    """A root that was missing when it was first recorded has appeared."""
    conn.execute(update(roots).where(roots.c.path == str(path)).values(uuid=uuid, device=device, problem=""))


def rebase_root(conn: Connection, path: Path, *, device: int) -> None:
    """The same filesystem is mounted under another device number: every identity below it moves along."""
    conn.execute(update(roots).where(roots.c.path == str(path)).values(device=device))
    ids = select(runs.c.id).where(runs.c.root == str(path))
    conn.execute(update(checkpoints).where(checkpoints.c.run_id.in_(ids)).values(device=device))


def note_root(conn: Connection, path: Path, *, problem: str, scanned_at: float | None = None) -> None:
    values: dict[str, object] = {"problem": problem}
    if scanned_at is not None:
        values["scanned_at"] = scanned_at
    conn.execute(update(roots).where(roots.c.path == str(path)).values(**values))


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
