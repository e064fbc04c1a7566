"""What the daemon leaves behind for those who ask while it is down, and the recipes it works with."""

from dataclasses import dataclass

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from ckptwatch.store.tables import daemon, recipes


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    pid: int
    version: str
    since: float
    heartbeat: float
    stopped_at: float | None
    last_words: str


@dataclass(frozen=True, kw_only=True)
class RecipeStand:
    name: str
    digest: str
    problem: str


def begin(conn: Connection, *, pid: int, version: str, now: float) -> None:
    values = {"pid": pid, "version": version, "since": now, "heartbeat": now, "stopped_at": None, "last_words": ""}
    conn.execute(upsert(daemon).values(id=1, **values).on_conflict_do_update(index_elements=["id"], set_=values))


def beat(conn: Connection, *, now: float) -> None:
    conn.execute(update(daemon).values(heartbeat=now))


def stop(conn: Connection, *, now: float, last_words: str = "") -> None:
    conn.execute(update(daemon).values(heartbeat=now, stopped_at=now, last_words=last_words))


def read(conn: Connection) -> Heartbeat | None:
    row = conn.execute(select(daemon)).one_or_none()
    return None if row is None else Heartbeat(pid=row.pid, version=row.version, since=row.since, heartbeat=row.heartbeat,
                                              stopped_at=row.stopped_at, last_words=row.last_words)


def record_recipe(conn: Connection, name: str, *, digest: str, problem: str, now: float) -> None:
    values = {"digest": digest, "problem": problem, "at": now}
    conn.execute(upsert(recipes).values(name=name, **values).on_conflict_do_update(index_elements=["name"], set_=values))


def recipe_stands(conn: Connection) -> dict[str, RecipeStand]:
    return {r.name: RecipeStand(name=r.name, digest=r.digest, problem=r.problem) for r in conn.execute(select(recipes))}
