"""Checkpoints: one row per identity, one living row per path."""

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, Row, insert, select, update

from ckptwatch.model import (
    CHECKPOINT_TRANSITIONS,
    Checkpoint,
    CheckpointEvent,
    CheckpointState,
    Facts,
    Identity,
    Role,
)
from ckptwatch.store.tables import checkpoints, runs

LIVING = (CheckpointState.INCOMPLETE, CheckpointState.COMPLETE)


def record(
    conn: Connection, *, run_id: int, path: Path, members: tuple[str, ...] = (), identity: Identity, facts: Facts,
    role: Role, generation: int, now: float,
) -> Checkpoint:
    """A new row for a path without a living one. `members` are the names of a set of files, () for a lone entry."""
    state = CheckpointState.COMPLETE if facts.complete else CheckpointState.INCOMPLETE
    result = conn.execute(insert(checkpoints).values(
        run_id=run_id, path=str(path), members=list(members), format=facts.format, state=state, evidence=facts.evidence,
        role=role, generation=generation, step=facts.step, epoch=facts.epoch, metrics=_finite(facts),
        variants=list(facts.variants), content_keys=list(facts.keys), found_at=now, **identity.__dict__,
    ))
    return checkpoint(conn, result.inserted_primary_key[0])


def move(conn: Connection, checkpoint_id: int, event: CheckpointEvent) -> Checkpoint:
    """Apply a transition of model.CHECKPOINT_TRANSITIONS. Raises ValueError for one that does not exist."""
    before = checkpoint(conn, checkpoint_id)
    after = CHECKPOINT_TRANSITIONS.get((before.state, event))
    if after is None:
        raise ValueError(f"checkpoint {before.path} is {before.state}: no transition for {event}")
    conn.execute(update(checkpoints).where(checkpoints.c.id == checkpoint_id, checkpoints.c.state == before.state)
                 .values(state=after))
    return checkpoint(conn, checkpoint_id)


def checkpoint(conn: Connection, checkpoint_id: int) -> Checkpoint:
    return _checkpoint(conn.execute(select(checkpoints).where(checkpoints.c.id == checkpoint_id)).one())


def of_ids(conn: Connection, ids: Sequence[int]) -> tuple[Checkpoint, ...]:
    """In the order of the ids."""
    found = {row.id: _checkpoint(row) for row in conn.execute(select(checkpoints).where(checkpoints.c.id.in_(list(ids))))}
    return tuple(found[i] for i in ids if i in found)


def living(conn: Connection, path: Path) -> Checkpoint | None:
    row = conn.execute(select(checkpoints).where(checkpoints.c.path == str(path), checkpoints.c.state.in_(LIVING)))
    found = row.one_or_none()
    return None if found is None else _checkpoint(found)


def departed(conn: Connection, path: Path, identity: Identity) -> Checkpoint | None:
    """A checkpoint of this very identity that was thought to be gone."""
    query = select(checkpoints).where(
        checkpoints.c.path == str(path), checkpoints.c.state == CheckpointState.GONE,
        checkpoints.c.inode == identity.inode, checkpoints.c.size == identity.size,
        checkpoints.c.mtime_ns == identity.mtime_ns, checkpoints.c.fingerprint == identity.fingerprint,
    ).order_by(checkpoints.c.id.desc()).limit(1)
    row = conn.execute(query).one_or_none()
    return None if row is None else _checkpoint(row)


def known_identities(conn: Connection, root: Path, state: CheckpointState) -> dict[Path, Identity]:
    """Path → identity of everything below a root that is in a state."""
    c = checkpoints.c
    query = (select(c.path, c.device, c.inode, c.size, c.mtime_ns, c.fingerprint)
             .join(runs, runs.c.id == c.run_id).where(runs.c.root == str(root), c.state == state))
    return {
        Path(r.path): Identity(device=r.device, inode=r.inode, size=r.size, mtime_ns=r.mtime_ns, fingerprint=r.fingerprint)
        for r in conn.execute(query)
    }


def of_run(conn: Connection, run_id: int, *states: CheckpointState) -> tuple[Checkpoint, ...]:
    """Checkpoints of a run in its order; all states unless some are named."""
    query = select(checkpoints).where(checkpoints.c.run_id == run_id)
    if states:
        query = query.where(checkpoints.c.state.in_(states))
    query = query.order_by(checkpoints.c.generation, checkpoints.c.step, checkpoints.c.epoch, checkpoints.c.id)
    return tuple(_checkpoint(row) for row in conn.execute(query))


def newest(conn: Connection, run_id: int) -> Checkpoint | None:
    """The last in the run's order that ever was whole."""
    query = (select(checkpoints)
             .where(checkpoints.c.run_id == run_id, checkpoints.c.state != CheckpointState.INCOMPLETE)
             .order_by(checkpoints.c.generation.desc(), checkpoints.c.step.desc().nulls_last(),
                       checkpoints.c.epoch.desc().nulls_last(), checkpoints.c.id.desc()).limit(1))
    row = conn.execute(query).one_or_none()
    return None if row is None else _checkpoint(row)


def by_path(conn: Connection, path: Path, *, in_trash: bool = False) -> Checkpoint | None:
    """What a person means by a path: what is on disk there (or, `in_trash`, in the trash), else the last known."""
    query = select(checkpoints).where(checkpoints.c.path == str(path)).order_by(checkpoints.c.id.desc())
    return _meant([_checkpoint(row) for row in conn.execute(query)], in_trash)


def by_step(conn: Connection, run_id: int, step: int, *, in_trash: bool = False) -> Checkpoint | None:
    """What a person means by RUN@STEP: as by path; of several generations the newest."""
    found = [c for c in of_run(conn, run_id) if c.step == step]
    return _meant(sorted(found, key=lambda c: (-c.generation, -c.id)), in_trash)


def _meant(found: list[Checkpoint], in_trash: bool) -> Checkpoint | None:
    first = (CheckpointState.TRASHED, CheckpointState.COMPLETE) if in_trash else (
        CheckpointState.COMPLETE, CheckpointState.INCOMPLETE, CheckpointState.TRASHED)
    rank = {state: position for position, state in enumerate(first)}
    return min(found, key=lambda c: rank.get(c.state, len(first)), default=None)


def reidentify(conn: Connection, checkpoint_id: int, identity: Identity, facts: Facts, members: tuple[str, ...]) -> None:
    """The same weights under another inode or file time, or with another report beside them."""
    conn.execute(update(checkpoints).where(checkpoints.c.id == checkpoint_id).values(
        members=list(members), evidence=facts.evidence, metrics=_finite(facts), content_keys=list(facts.keys),
        **identity.__dict__))


def pin(conn: Connection, checkpoint_id: int, by: str | None) -> None:
    """`by` says who and why; None takes the pin away."""
    conn.execute(update(checkpoints).where(checkpoints.c.id == checkpoint_id).values(pinned_by=by))


def _finite(facts: Facts) -> dict[str, float | None]:
    """JSON has no NaN; null stands for it."""
    return {k: v if abs(v) < float("inf") else None for k, v in facts.metrics.items()}


def _checkpoint(row: Row) -> Checkpoint:
    return Checkpoint(
        id=row.id, run_id=row.run_id, path=Path(row.path), members=tuple(row.members), format=row.format,
        state=CheckpointState(row.state), evidence=row.evidence, role=Role(row.role), generation=row.generation,
        step=row.step, epoch=row.epoch, metrics={k: float("nan") if v is None else v for k, v in row.metrics.items()},
        variants=tuple(row.variants), keys=tuple(row.content_keys), found_at=row.found_at, pinned_by=row.pinned_by,
        identity=Identity(device=row.device, inode=row.inode, size=row.size, mtime_ns=row.mtime_ns,
                          fingerprint=row.fingerprint),
    )
