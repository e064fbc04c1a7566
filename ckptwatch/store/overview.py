"""What `status` needs of many runs at once, in a handful of queries that stay quick with 100,000 checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select, text

from ckptwatch.store.tables import KEPT, alarms, checkpoints, evaluations, removals, runs

# Every model.EvaluationState but done (a test holds them together); importing the model would cost `status` a tenth.
UNDONE = ("pending", "running", "failed", "abandoned")


@dataclass(frozen=True, kw_only=True)
class Named:
    """A checkpoint as status names it."""

    path: str
    step: int | None
    epoch: int | None


@dataclass(kw_only=True)
class RunOverview:
    """Paths are strings: making thousands of Path objects takes longer than reading the rows."""

    id: int
    name: str
    path: str
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


@dataclass(frozen=True, kw_only=True)
class OpenAlarm:
    """Something wrong with a training run, as long as it lasts."""

    run_id: int
    kind: str
    subject: str
    message: str
    numbers: Mapping[str, float | None]
    causes: tuple[str, ...]
    go_back_to: str | None
    opened_at: float


def open_alarms(conn: Connection, *, since: float, limit: int = 200) -> list[OpenAlarm]:
    """Newest first; of runs that go on, or ended after `since`."""
    a = alarms.c
    query = (select(a.run_id, a.kind, a.subject, a.message, a.numbers, a.causes, a.go_back_to, a.opened_at)
             .join(runs, runs.c.id == a.run_id)
             .where(a.closed_at.is_(None), runs.c.ended_at.is_(None) | (runs.c.ended_at >= since))
             .order_by(a.opened_at.desc(), a.id).limit(limit))
    return [OpenAlarm(run_id=r.run_id, kind=r.kind, subject=r.subject, message=r.message, numbers=r.numbers,
                      causes=tuple(r.causes),
                      go_back_to=r.go_back_to, opened_at=r.opened_at) for r in conn.execute(query)]


def run_overviews(conn: Connection, run_id: int | None = None) -> list[RunOverview]:
    """All runs, or one, by root and name."""
    best, last = checkpoints.alias("best"), checkpoints.alias("last")
    query = (
        select(*(runs.c[n] for n in _OF_RUN), best.c.path, best.c.step, best.c.epoch, last.c.path, last.c.step, last.c.epoch)
        .join(best, best.c.id == runs.c.best_checkpoint_id, isouter=True)
        .join(last, last.c.id == runs.c.last_checkpoint_id, isouter=True)
        .order_by(runs.c.root, runs.c.name)
    )
    c = checkpoints.c
    sums = select(c.run_id, c.state, func.count(), func.sum(c.size)).where(text(KEPT)).group_by(c.run_id, c.state)
    if run_id is not None:
        query, sums = query.where(runs.c.id == run_id), sums.where(c.run_id == run_id)
    found = {overview.id: overview for overview in map(_overview, conn.execute(query).tuples())}
    for owner, state, count, size in conn.execute(sums).tuples():
        overview = found[owner]
        overview.counts[state] = count
        if state in ("complete", "incomplete"):
            overview.bytes += size
        elif state == "trashed":
            overview.trash_bytes += size
    return list(found.values())


def queue_counts(conn: Connection) -> dict[str, int]:
    """Evaluations by state. The done ones, nearly all, are what the others leave of the whole, which SQLite counts fast."""
    state = evaluations.c.state
    counts = dict(conn.execute(select(state, func.count()).where(state.in_(UNDONE)).group_by(state)).tuples().all())
    whole = conn.execute(select(func.count()).select_from(evaluations)).scalar_one()
    return {**counts, "done": whole - sum(counts.values())}


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


def incomplete(conn: Connection, run_ids: Sequence[int], limit: int = 200) -> list[tuple[int, Path, str, float]]:
    """(run id, path, evidence, found at) of settled files that are not whole; `run_ids` are the runs that have some."""
    c = checkpoints.c
    query = select(c.run_id, c.path, c.evidence, c.found_at).where(
        c.run_id.in_(run_ids[:limit]), c.state == "incomplete").limit(limit)
    return [(r.run_id, Path(r.path), r.evidence, r.found_at) for r in conn.execute(query)]


def key_sets(conn: Connection, run_ids: Sequence[int]) -> list[tuple[int, tuple[str, ...], int, int]]:
    """(run id, top-level entries, how many complete checkpoints have just these, the newest of them) for these runs."""
    c = checkpoints.c
    query = select(c.run_id, c.content_keys, func.count(), func.max(c.id)).where(c.state == "complete")
    found = []
    for begin in range(0, len(run_ids), _AT_ONCE):
        own = query.where(c.run_id.in_(run_ids[begin:begin + _AT_ONCE])).group_by(c.run_id, c.content_keys)
        found += [(run, tuple(keys), count, newest) for run, keys, count, newest in conn.execute(own).tuples()]
    return found


def paths(conn: Connection, checkpoint_ids: Sequence[int]) -> dict[int, Path]:
    c = checkpoints.c
    found: dict[int, Path] = {}
    for begin in range(0, len(checkpoint_ids), _AT_ONCE):
        query = select(c.id, c.path).where(c.id.in_(checkpoint_ids[begin:begin + _AT_ONCE]))
        found.update((id_, Path(path)) for id_, path in conn.execute(query).tuples())
    return found


def next_purge(conn: Connection) -> dict[int, float]:
    """Run id → when the first entry of its trash is purged."""
    query = (select(checkpoints.c.run_id, func.min(removals.c.purge_at))
             .join(checkpoints, checkpoints.c.id == removals.c.checkpoint_id)
             # The words of the index `one_open_removal`, so that years of purged ones are not gone through.
             .where(text("removals.state IN ('intended', 'trashed', 'restoring', 'purging')"), removals.c.state == "trashed")
             .group_by(checkpoints.c.run_id))
    return dict(conn.execute(query).tuples().all())


_AT_ONCE = 500  # ids in one query
_OF_RUN = ("id", "name", "path", "newest_at", "ended_at", "best_metric", "best_value", "best_variant", "reclaimable_bytes",
           "planned_removals", "held")


def _overview(row: Sequence[Any]) -> RunOverview:
    values = dict(zip(_OF_RUN, row, strict=False))
    best_path, best_step, best_epoch, last_path, last_step, last_epoch = row[len(_OF_RUN):]
    if best_path is None:
        values |= {"best_metric": None, "best_value": None, "best_variant": None}
    return RunOverview(
        **values,
        best=None if best_path is None else Named(path=best_path, step=best_step, epoch=best_epoch),
        last=None if last_path is None else Named(path=last_path, step=last_step, epoch=last_epoch))
