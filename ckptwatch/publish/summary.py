"""The "Best Checkpoint Summary" of a run, as lines for its log."""

import math

from ckptwatch.core.metrics import METRICS
from ckptwatch.model import Mode, Place, Ranking, Score
from ckptwatch.publish.tracker import kept_best


def summary_lines(run: str, ranking: Ranking, keep_best: int | None) -> list[str]:
    """Tracked metric, how many of how many are saved, then each rank with step, epoch, path and every metric."""
    places = kept_best(ranking, keep_best)
    bounded = keep_best is not None and keep_best >= 0
    better = "higher" if ranking.mode is Mode.MAX else "lower"
    lines = [
        f"Best Checkpoint Summary: {run}",
        f"  Tracked metric: {ranking.metric} ({better} is better)",
        f"  Saved checkpoints: {len(places)}/{keep_best}" if bounded else f"  Saved checkpoints: {len(places)}",
    ]
    for place in places:
        lines.extend(_place_lines(place, ranking.metric))
    if ranking.unranked:
        lines.append(f"  Unranked: {len(ranking.unranked)}")
    return lines


def _place_lines(place: Place, tracked: str) -> list[str]:
    c = place.contender
    facts = [f"step {_or_unknown(c.step)}", f"epoch {_or_unknown(c.epoch)}"]
    if c.variant:
        facts.append(f"variant {c.variant}")
    names = sorted(c.scores, key=lambda name: (name != tracked, list(METRICS).index(name) if name in METRICS else 99, name))
    return [
        f"  Rank {place.rank}: {', '.join(facts)}",
        f"    Path: {c.path}",
        *(f"    {name}: {_value(c.scores[name])}" for name in names),
    ]


def _value(score: Score) -> str:
    text = f"{score.value:.4f}"
    bounds = (score.low, score.high)
    if all(b is not None and math.isfinite(b) for b in bounds):
        text += f" ({score.low:.4f} to {score.high:.4f})"
    return text if score.n is None else f"{text}, {score.n} samples"


def _or_unknown(count: int | None) -> str:
    return "unknown" if count is None else str(count)
