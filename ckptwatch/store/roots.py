"""Roots: the watched directories, each known by the marker below it."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, insert, select, update

from ckptwatch.store.tables import checkpoints, roots, runs


@dataclass(frozen=True, kw_only=True)
class Root:
    path: Path
    uuid: str
    device: int
    problem: str
    scanned_at: float | None


def get(conn: Connection, path: Path) -> Root | None:
    row = conn.execute(select(roots).where(roots.c.path == str(path))).one_or_none()
    return None if row is None else Root(path=Path(row.path), uuid=row.uuid, device=row.device, problem=row.problem,
                                         scanned_at=row.scanned_at)


def all_(conn: Connection) -> tuple[Root, ...]:
    return tuple(Root(path=Path(r.path), uuid=r.uuid, device=r.device, problem=r.problem, scanned_at=r.scanned_at)
                 for r in conn.execute(select(roots)))


def record(conn: Connection, path: Path, *, uuid: str, device: int) -> None:
    conn.execute(insert(roots).values(path=str(path), uuid=uuid, device=device))


def adopt(conn: Connection, path: Path, *, uuid: str, device: int) -> None:
    """A root that was missing when it was first recorded has appeared."""
    conn.execute(update(roots).where(roots.c.path == str(path)).values(uuid=uuid, device=device, problem=""))


def rebase(conn: Connection, path: Path, *, device: int) -> None:
    """The same filesystem is mounted under another device number: every identity below it moves along."""
    conn.execute(update(roots).where(roots.c.path == str(path)).values(device=device))
    ids = select(runs.c.id).where(runs.c.root == str(path))
    conn.execute(update(checkpoints).where(checkpoints.c.run_id.in_(ids)).values(device=device))


def note(conn: Connection, path: Path, *, problem: str, scanned_at: float | None = None) -> None:
    values: dict[str, object] = {"problem": problem}
    if scanned_at is not None:
        values["scanned_at"] = scanned_at
    conn.execute(update(roots).where(roots.c.path == str(path)).values(**values))
