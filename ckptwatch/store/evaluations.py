"""The durable queue: evaluations, their attempts and their scores."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from ckptwatch.model import (
    EVALUATION_TRANSITIONS,
    CheckpointState,
    Evaluation,
    EvaluationEvent,
    EvaluationState,
    Failure,
    FailureKind,
    Mode,
    Score,
)
from ckptwatch.store.tables import checkpoints, evaluations, roots, runs, scores

NO_RETRY = "no retry: "  # prefix of stored hints of failures that cannot end otherwise


def enqueue(
    conn: Connection, checkpoint_id: int, *, variant: str, recipe: str, digest: str, now: float,
) -> bool:
    """One row per (checkpoint, variant, digest), however often this is called; says whether it now waits anew."""
    result = conn.execute(upsert(evaluations).values(
        checkpoint_id=checkpoint_id, variant=variant, recipe=recipe, digest=digest, state=EvaluationState.PENDING,
        attempts=0, available_at=now, queued_at=now,
    ).on_conflict_do_nothing())
    if result.rowcount == 1:
        return True
    same = select(evaluations.c.id).where(evaluations.c.checkpoint_id == checkpoint_id, evaluations.c.variant == variant,
                                          evaluations.c.digest == digest)
    return _transition(conn, conn.execute(same).scalar_one(), EvaluationEvent.REVIVE, attempts=0, available_at=now)


def _transition(conn: Connection, evaluation_id: int, event: EvaluationEvent, **values: Any) -> bool:
    """Apply one transition; False if the evaluation is in a state that has none for this event."""
    froms = {before: after for (before, e), after in EVALUATION_TRANSITIONS.items() if e is event}
    for before, after in froms.items():
        changed = conn.execute(
            update(evaluations).where(evaluations.c.id == evaluation_id, evaluations.c.state == before)
            .values(state=after, **values))
        if changed.rowcount == 1:
            return True
    return False


def claim(conn: Connection, evaluation_id: int, *, log: Path, now: float) -> bool:
    """Begin an attempt."""
    return _transition(conn, evaluation_id, EvaluationEvent.CLAIM, attempts=evaluations.c.attempts + 1, started_at=now,
                       log=str(log))


def finish(
    conn: Connection, evaluation_id: int, *, results: Iterable[Score], seconds: float, samples: Path | None, now: float,
) -> bool:
    """Record a result. False if the evaluation is not running: the result is of an attempt that no longer counts."""
    if not _transition(conn, evaluation_id, EvaluationEvent.RESULT, finished_at=now, seconds=seconds, failure_kind=None,
                       failure_message=None, failure_hint=None, published=False,
                       samples=None if samples is None else str(samples)):
        return False
    conn.execute(delete(scores).where(scores.c.evaluation_id == evaluation_id))
    for score in {s.metric: s for s in results}.values():  # a worker that names a metric twice is believed once
        conn.execute(insert(scores).values(
            evaluation_id=evaluation_id, metric=score.metric, value=_number(score.value), low=_number(score.low),
            high=_number(score.high), n=score.n, mode=score.mode, definition=score.definition))
    return True


def fail(conn: Connection, evaluation_id: int, failure: Failure, *, attempts: int, retry_at: float, now: float) -> bool:
    """End an attempt badly. Another follows unless it is the last of `attempts` or cannot end otherwise."""
    row = conn.execute(select(evaluations.c.attempts).where(evaluations.c.id == evaluation_id)).one()
    last = not failure.retryable or row.attempts >= attempts
    hint = failure.hint if failure.retryable else NO_RETRY + failure.hint
    return _transition(
        conn, evaluation_id, EvaluationEvent.GIVE_UP if last else EvaluationEvent.FAIL, finished_at=now,
        available_at=retry_at, failure_kind=failure.kind, failure_message=failure.message, failure_hint=hint)


def requeue(conn: Connection, evaluation_id: int, *, now: float) -> bool:
    """The attempt ended through no fault of its own: it does not count."""
    return _transition(conn, evaluation_id, EvaluationEvent.REQUEUE, attempts=evaluations.c.attempts - 1, available_at=now)


def retry(conn: Connection, evaluation_id: int, *, now: float) -> bool:
    """A person wants it (again): attempts start from zero."""
    return _transition(conn, evaluation_id, EvaluationEvent.RETRY, attempts=0, available_at=now, failure_kind=None,
                       failure_message=None, failure_hint=None)


def abandon(conn: Connection, checkpoint_id: int, *, now: float) -> None:
    """The checkpoint went away: what waits for it waits no longer."""
    for row in conn.execute(select(evaluations.c.id).where(evaluations.c.checkpoint_id == checkpoint_id)).all():
        _transition(conn, row.id, EvaluationEvent.ABANDON, finished_at=now)


def abandon_outdated(conn: Connection, recipe: str, digest: str, *, now: float) -> None:
    """The recipe changed: what waits to be scored by its old form waits no longer."""
    query = select(evaluations.c.id).where(evaluations.c.recipe == recipe, evaluations.c.digest != digest,
                                           evaluations.c.state == EvaluationState.PENDING)
    for row in conn.execute(query).all():
        _transition(conn, row.id, EvaluationEvent.ABANDON, finished_at=now)


def revive(conn: Connection, checkpoint_id: int, *, now: float) -> None:
    """The checkpoint came back."""
    for row in conn.execute(select(evaluations.c.id).where(evaluations.c.checkpoint_id == checkpoint_id)).all():
        _transition(conn, row.id, EvaluationEvent.REVIVE, attempts=0, available_at=now)


def mark_published(conn: Connection, evaluation_id: int, *, samples: Path | None) -> None:
    conn.execute(update(evaluations).where(evaluations.c.id == evaluation_id)
                 .values(published=True, samples=None if samples is None else str(samples)))


def in_state(conn: Connection, *states: EvaluationState) -> tuple[Evaluation, ...]:
    query = select(evaluations).where(evaluations.c.state.in_(states)).order_by(evaluations.c.id)
    return _with_scores(conn, conn.execute(query).all())


def of_checkpoints_in(conn: Connection, run_id: int) -> tuple[Evaluation, ...]:
    """All evaluations of a run's checkpoints, whatever their recipe."""
    query = (select(evaluations).join(checkpoints, checkpoints.c.id == evaluations.c.checkpoint_id)
             .where(checkpoints.c.run_id == run_id).order_by(evaluations.c.id))
    return _with_scores(conn, conn.execute(query).all())


def evaluation(conn: Connection, evaluation_id: int) -> Evaluation | None:
    rows = conn.execute(select(evaluations).where(evaluations.c.id == evaluation_id)).all()
    return next(iter(_with_scores(conn, rows)), None)


def of_checkpoint(conn: Connection, checkpoint_id: int) -> tuple[Evaluation, ...]:
    return _with_scores(conn, conn.execute(select(evaluations).where(evaluations.c.checkpoint_id == checkpoint_id)).all())


def of_living_checkpoints(conn: Connection) -> frozenset[int]:
    """Ids of evaluations whose checkpoint is on disk, or can be brought back."""
    states = (CheckpointState.COMPLETE, CheckpointState.INCOMPLETE, CheckpointState.TRASHED)
    query = (select(evaluations.c.id).join(checkpoints, checkpoints.c.id == evaluations.c.checkpoint_id)
             .where(checkpoints.c.state.in_(states)))
    return frozenset(conn.execute(query).scalars())


def waiting(conn: Connection) -> list[Row]:
    """Pending evaluations that can run: the checkpoint is whole, and its root is the right one.

    Rows of id, run_id, generation, step, epoch, available_at, recipe, digest.
    """
    query = (
        select(evaluations.c.id, checkpoints.c.run_id, checkpoints.c.generation, checkpoints.c.step, checkpoints.c.epoch,
               evaluations.c.available_at, evaluations.c.recipe, evaluations.c.digest)
        .join(checkpoints, checkpoints.c.id == evaluations.c.checkpoint_id)
        .join(runs, runs.c.id == checkpoints.c.run_id).join(roots, roots.c.path == runs.c.root)
        .where(evaluations.c.state == EvaluationState.PENDING, checkpoints.c.state == "complete", roots.c.problem == "")
    )
    return list(conn.execute(query))


def running_per_run(conn: Connection) -> dict[int, int]:
    query = (select(checkpoints.c.run_id).join(evaluations, checkpoints.c.id == evaluations.c.checkpoint_id)
             .where(evaluations.c.state == EvaluationState.RUNNING))
    counts: dict[int, int] = {}
    for row in conn.execute(query):
        counts[row.run_id] = counts.get(row.run_id, 0) + 1
    return counts


def unpublished(conn: Connection, run_id: int | None = None) -> tuple[Evaluation, ...]:
    """Evaluations with a result whose samples and scalars are not out yet."""
    query = select(evaluations).where(evaluations.c.state == EvaluationState.DONE, evaluations.c.published.is_(False))
    if run_id is not None:
        query = query.join(checkpoints, checkpoints.c.id == evaluations.c.checkpoint_id)
        query = query.where(checkpoints.c.run_id == run_id)
    return _with_scores(conn, conn.execute(query.order_by(evaluations.c.id)).all())


def _with_scores(conn: Connection, rows: Iterable[Row]) -> tuple[Evaluation, ...]:
    rows = list(rows)
    found: dict[int, dict[str, Score]] = {}
    ids = [row.id for row in rows]
    for start in range(0, len(ids), 500):  # SQLite limits the number of bound values
        for s in conn.execute(select(scores).where(scores.c.evaluation_id.in_(ids[start:start + 500]))):
            found.setdefault(s.evaluation_id, {})[s.metric] = Score(
                metric=s.metric, value=math.nan if s.value is None else s.value, low=s.low, high=s.high, n=s.n,
                mode=None if s.mode is None else Mode(s.mode), definition=s.definition)
    return tuple(_evaluation(row, found.get(row.id, {})) for row in rows)


def _evaluation(row: Row, found: dict[str, Score]) -> Evaluation:
    failure = None
    if row.failure_kind is not None:
        hint = row.failure_hint or ""
        failure = Failure(kind=FailureKind(row.failure_kind), message=row.failure_message or "",
                          hint=hint.removeprefix(NO_RETRY), retryable=not hint.startswith(NO_RETRY))
    return Evaluation(
        id=row.id, checkpoint_id=row.checkpoint_id, variant=row.variant, recipe=row.recipe, digest=row.digest,
        state=EvaluationState(row.state), attempts=row.attempts, available_at=row.available_at, queued_at=row.queued_at,
        started_at=row.started_at, finished_at=row.finished_at, seconds=row.seconds, failure=failure,
        log=None if row.log is None else Path(row.log), samples=None if row.samples is None else Path(row.samples),
        scores=found, published=bool(row.published),
    )


def _number(value: float | None) -> float | None:
    """NaN and infinities become NULL: not measured, never a number to rank by."""
    return value if value is not None and math.isfinite(value) else None
