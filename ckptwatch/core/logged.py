"""Ranking where nobody said by what: the metric the trainer noted down, and which direction of it is better."""

from collections import Counter
from collections.abc import Iterable

from ckptwatch.core.metrics import METRICS
from ckptwatch.model import Checkpoint, Mode, RankRule

# Words by which people name what they measure. Where a name has none of them, guessing would be worse than no rank.
_LOWER = ("loss", "error", "err", "fid", "kid", "rmse", "mse", "mae", "abs_rel", "wer", "cer", "ppl", "perplexity", "nll")
_HIGHER = ("acc", "accuracy", "ap", "map", "auc", "iou", "miou", "f1", "psnr", "ssim", "bleu", "rouge", "score", "recall",
           "precision", "reward", "fitness")
_VALIDATION = ("val", "valid", "validation", "eval", "test")


def direction(metric: str) -> Mode | None:
    """Which direction of a metric is better, by the words in its name; None where they do not tell."""
    if metric in METRICS:
        return METRICS[metric].mode
    words = set(metric.lower().replace("/", "_").replace("-", "_").replace(".", "_").split("_"))
    if words & set(_LOWER) or any(w in metric.lower() for w in ("abs_rel", "loss")):
        return Mode.MIN
    return Mode.MAX if words & set(_HIGHER) else None


def choose_metric(checkpoints: Iterable[Checkpoint]) -> RankRule | None:
    """The metric that most checkpoints carry: one of validation before one of training, then by name. None without any."""
    counts = Counter(name for c in checkpoints for name in c.metrics)
    known = {name: mode for name in counts if (mode := direction(name)) is not None}

    def merit(name: str) -> tuple[int, int, str]:
        return (-counts[name], not any(w in name.lower() for w in _VALIDATION), name)

    best = min(known, key=merit, default=None)
    return None if best is None else RankRule(by=best, mode=known[best])
