"""What reading all weights of a checkpoint found, once for each."""

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert as upsert

from ckptwatch.model import Checkpoint, CheckpointState, WeightScan
from ckptwatch.store.checkpoints import of_ids
from ckptwatch.store.tables import checkpoints, runs, weight_scans


def record(conn: Connection, checkpoint_id: int, scan: WeightScan, *, now: float) -> None:
    values = {"state": scan.state, "tensors": scan.tensors, "bytes": scan.bytes, "bad": dict(scan.bad),
              "bad_tensors": scan.bad_tensors, "words": scan.words, "at": now}
    conn.execute(upsert(weight_scans).values(checkpoint_id=checkpoint_id, **values)
                 .on_conflict_do_update(index_elements=["checkpoint_id"], set_=values))


def of_run(conn: Connection, run_id: int) -> dict[int, WeightScan]:
    """Checkpoint id → what was found."""
    query = (select(weight_scans).join(checkpoints, checkpoints.c.id == weight_scans.c.checkpoint_id)
             .where(checkpoints.c.run_id == run_id))
    return {row.checkpoint_id: WeightScan(state=row.state, tensors=row.tensors, bytes=row.bytes, bad=row.bad,
                                          bad_tensors=row.bad_tensors, words=row.words) for row in conn.execute(query)}


def unscanned(conn: Connection, limit: int = 1000) -> tuple[Checkpoint, ...]:
    """Complete checkpoints that appeared after their run was first seen and were not looked at, newest first."""
    query = (select(checkpoints.c.id).join(runs, runs.c.id == checkpoints.c.run_id)
             .join(weight_scans, weight_scans.c.checkpoint_id == checkpoints.c.id, isouter=True)
             .where(checkpoints.c.state == CheckpointState.COMPLETE, checkpoints.c.found_at > runs.c.created_at,
                    weight_scans.c.checkpoint_id.is_(None))
             .order_by(checkpoints.c.found_at.desc(), checkpoints.c.id.desc()).limit(limit))
    return of_ids(conn, conn.execute(query).scalars().all())
