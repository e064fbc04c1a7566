"""What `status` needs of many runs at once, in a handful of queries that stay quick with 100,000 checkpoints."""

from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, func, select

from ckptwatch.store.tables import checkpoints, evaluations, removals, runs


@dataclass(frozen=True, kw_only=True)
class Named:
    """A checkpoint as status names it."""

    path: Path
    step: int | None
    epoch: int | None
    found_at: float


@dataclass(kw_only=True)
class RunOverview:
    id: int
    root: Path
    name: str
    path: Path
    newest_at: float
    ended_at: float | None
    best: Named | None
    best_metric: str | None
    best_value: float | None
    best_variant: str | None
    last: Named | None
    reclaimable_bytes: int
    planned_removals: int
    held: str
    counts: dict[str, int] = field(default_factory=dict)  # checkpoints by state
    bytes: int = 0        # of complete and incomplete ones
    trash_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class FailedEvaluation:
    run_id: int
    path: Path
    step: int | None
    variant: str
    state: str       # "failed": given up; "pending": another attempt follows
    attempts: int
    kind: str
    message: str
    hint: str
    at: float | None
    log: str | None


def run_overviews(conn: Connection, run_id: int | None = None) -> list[RunOverview]:
    """All runs, or one, by root and name."""
    best, last = checkpoints.alias("best"), checkpoints.alias("last")
    query = (
        select(runs, *(best.c[n].label(f"b_{n}") for n in _NAMED), *(last.c[n].label(f"l_{n}") for n in _NAMED))
        .join(best, best.c.id == runs.c.best_checkpoint_id, isouter=True)
        .join(last, last.c.id == runs.c.last_checkpoint_id, isouter=True)
        .order_by(runs.c.root, runs.c.name)
    )
    sums = select(checkpoints.c.run_id, checkpoints.c.state, func.count(), func.sum(checkpoints.c.size)).group_by(
        checkpoints.c.run_id, checkpoints.c.state)
    if run_id is not None:
        query, sums = query.where(runs.c.id == run_id), sums.where(checkpoints.c.run_id == run_id)
    found = {row.id: _overview(row) for row in conn.execute(query)}
    for owner, state, count, size in conn.execute(sums):
        overview = found[owner]
        overview.counts[state] = count
        if state in ("complete", "incomplete"):
            overview.bytes += size
        elif state == "trashed":
            overview.trash_bytes += size
    return list(found.values())


def queue_counts(conn: Connection) -> dict[str, int]:
    """Evaluations by state."""
    return dict(conn.execute(select(evaluations.c.state, func.count()).group_by(evaluations.c.state)).tuples().all())


def failures(conn: Connection, limit: int = 200) -> list[FailedEvaluation]:
    """Evaluations whose last attempt failed, of checkpoints still on disk; given-up ones first."""
    e, c = evaluations.c, checkpoints.c
    query = (
        select(c.run_id, c.path, c.step, e.variant, e.state, e.attempts, e.failure_kind, e.failure_message, e.failure_hint,
               e.finished_at, e.log)
        .join(checkpoints, c.id == e.checkpoint_id)
        .where(e.state.in_(("failed", "pending")), e.failure_kind.is_not(None), c.state == "complete")
        .order_by(e.state, e.finished_at.desc()).limit(limit)
    )
    return [
        FailedEvaluation(
            run_id=r.run_id, path=Path(r.path), step=r.step, variant=r.variant, state=r.state, attempts=r.attempts,
            kind=r.failure_kind, message=r.failure_message or "", hint=(r.failure_hint or "").removeprefix("no retry: "),
            at=r.finished_at, log=r.log)
        for r in conn.execute(query)
    ]


def incomplete(conn: Connection, limit: int = 200) -> list[tuple[int, Path, str, float]]:
    """(run id, path, evidence, found at) of settled files that are not whole."""
    c = checkpoints.c
    query = select(c.run_id, c.path, c.evidence, c.found_at).where(c.state == "incomplete").limit(limit)
    return [(r.run_id, Path(r.path), r.evidence, r.found_at) for r in conn.execute(query)]


def next_purge(conn: Connection) -> dict[int, float]:
    """Run id → when the first entry of its trash is purged."""
    query = (select(checkpoints.c.run_id, func.min(removals.c.purge_at))
             .join(checkpoints, checkpoints.c.id == removals.c.checkpoint_id)
             .where(removals.c.state == "trashed").group_by(checkpoints.c.run_id))
    return dict(conn.execute(query).tuples().all())


_NAMED = ("path", "step", "epoch", "found_at")


def _overview(row: object) -> RunOverview:
    get = row._mapping  # type: ignore[attr-defined]

    def named(prefix: str) -> Named | None:
        if get[f"{prefix}_path"] is None:
            return None
        return Named(path=Path(get[f"{prefix}_path"]), step=get[f"{prefix}_step"], epoch=get[f"{prefix}_epoch"],
                     found_at=get[f"{prefix}_found_at"])

    best = named("b")
    return RunOverview(
        id=get["id"], root=Path(get["root"]), name=get["name"], path=Path(get["path"]), newest_at=get["newest_at"],
        ended_at=get["ended_at"], best=best, best_metric=get["best_metric"] if best else None,
        best_value=get["best_value"] if best else None, best_variant=get["best_variant"] if best else None,
        last=named("l"), reclaimable_bytes=get["reclaimable_bytes"], planned_removals=get["planned_removals"],
        held=get["held"])
