"""`best_checkpoints.json` while a run goes on, `best_checkpoint_results.json` when it has ended."""

import math
import os
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckptwatch.core.ranking import best_places
from ckptwatch.model import Checkpoint, CheckpointState, Mode, Place, Ranking, Score, Unranked
from ckptwatch.publish.atomic import write_document

TRACKER = "best_checkpoints.json"
RESULTS = "best_checkpoint_results.json"
VERSION = 1


def write_tracker(
    directory: Path, *, run: str, ranking: Ranking, keep_best: int | None, checkpoints: Mapping[int, Checkpoint],
    now: float,
) -> bool:
    """Write `best_checkpoints.json`; False, and the file left alone, where nothing but the time would change.

    `checkpoints` by id. Paths are given absolute and relative to `directory`, so that a moved tree still resolves.
    """
    document = {**_tracked(directory, run, ranking, keep_best, checkpoints), "updated": _time(now)}
    return write_document(directory / TRACKER, document)


def write_results(
    directory: Path, *, run: str, ranking: Ranking, keep_best: int | None, checkpoints: Mapping[int, Checkpoint],
    ended: str, now: float,
) -> bool:
    """Write `best_checkpoint_results.json`. `ended` says why the run counts as ended: "no new checkpoint for 1h"."""
    document = {
        **_tracked(directory, run, ranking, keep_best, checkpoints),
        "ended": ended,
        "totals": _totals(ranking, checkpoints),
        "unranked": [_unranked(u) for u in ranking.unranked],
        "updated": _time(now),
    }
    return write_document(directory / RESULTS, document)


def kept_best(ranking: Ranking, keep_best: int | None) -> tuple[Place, ...]:
    """The best k checkpoints, each once by its best variant; all where k is −1 or no such rule is set, none where 0."""
    places = best_places(ranking)
    return places if keep_best is None or keep_best < 0 else places[:keep_best]


def _tracked(
    directory: Path, run: str, ranking: Ranking, keep_best: int | None, checkpoints: Mapping[int, Checkpoint]
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "run": run,
        "tracked_metric": ranking.metric,
        "mode": str(ranking.mode),
        "higher_is_better": ranking.mode is Mode.MAX,
        "save_top_k": keep_best,
        "recipe_digest": ranking.digest,
        "best_checkpoints": [_entry(p, directory, checkpoints) for p in kept_best(ranking, keep_best)],
    }


def _entry(place: Place, directory: Path, checkpoints: Mapping[int, Checkpoint]) -> dict[str, Any]:
    contender = place.contender
    checkpoint = checkpoints.get(contender.checkpoint_id)
    return {
        "rank": place.rank,
        "step": contender.step,
        "epoch": contender.epoch,
        "variant": contender.variant,
        "path": os.path.relpath(contender.path, directory),
        "absolute_path": str(contender.path),
        "bytes": checkpoint.identity.size if checkpoint else None,
        "reason": place.reason,
        "metrics": {name: _finite(score.value) for name, score in sorted(contender.scores.items())},
        "scores": {name: _score(score) for name, score in sorted(contender.scores.items())},
        "logged": {name: _finite(v) for name, v in sorted(checkpoint.metrics.items())} if checkpoint else {},
    }


def _score(score: Score) -> dict[str, Any]:
    return {"value": _finite(score.value), "low": _finite(score.low), "high": _finite(score.high), "n": score.n}


def _unranked(unranked: Unranked) -> dict[str, Any]:
    c = unranked.contender
    return {"step": c.step, "epoch": c.epoch, "variant": c.variant, "path": str(c.path), "reason": unranked.reason}


def _totals(ranking: Ranking, checkpoints: Mapping[int, Checkpoint]) -> dict[str, Any]:
    there = [c for c in checkpoints.values() if c.state in (CheckpointState.COMPLETE, CheckpointState.INCOMPLETE)]
    return {
        "checkpoints": len(checkpoints),
        "by_state": dict(sorted(Counter(str(c.state) for c in checkpoints.values()).items())),
        "ranked": len(ranking.places),
        "unranked": len(ranking.unranked),
        "bytes": sum(c.identity.size for c in there),
    }


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def _time(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
