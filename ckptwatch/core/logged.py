"""Ranking where nobody said by what: the metric the trainer noted down, and which direction of it is better."""

import re
from collections import Counter
from collections.abc import Iterable

from ckptwatch.core.metrics import METRICS
from ckptwatch.model import Checkpoint, Mode, RankRule

# Words by which people name what they measure. Where a name has none of them, guessing would be worse than no rank.
_LOWER = ("loss", "error", "err", "fid", "kid", "rmse", "mse", "mae", "abs_rel", "wer", "cer", "ppl", "perplexity", "nll")
_HIGHER = ("acc", "accuracy", "ap", "map", "auc", "iou", "miou", "f1", "psnr", "ssim", "bleu", "rouge", "score", "recall",
           "precision", "reward", "fitness", "ar", "pck", "oks", "dice", "top1", "top5", "delta1")
OFTEN = 4  # one in so many of the checkpoints must have a metric of validation for it to be preferred
_VALIDATION = ("val", "valid", "validation", "eval", "test")


def direction(metric: str) -> Mode | None:
    """Which direction of a metric is better, by the words in its name; None where they do not tell."""
    if metric in METRICS:
        return METRICS[metric].mode
    words = set(re.split(r"[^a-z0-9]+", metric.lower()))
    if words & set(_LOWER) or any(w in metric.lower() for w in ("abs_rel", "loss")):
        return Mode.MIN
    return Mode.MAX if words & set(_HIGHER) else None


def choose_metric(checkpoints: Iterable[Checkpoint]) -> RankRule | None:
    """A metric of validation, if enough checkpoints carry one, else the one that most carry; then by name."""
    counts = Counter(name for c in checkpoints for name in {**c.logged, **c.metrics})
    known = {name: mode for name in counts if (mode := direction(name)) is not None}
    often = max((counts[name] for name in known), default=0) / OFTEN

    def merit(name: str) -> tuple[bool, int, str]:
        # Training losses are logged all the time: a validation counts for more although it is rarer, if it is no exception.
        validation = counts[name] >= often and any(w in name.lower() for w in _VALIDATION)
        return (not validation, -counts[name], name)

    best = min(known, key=merit, default=None)
    return None if best is None else RankRule(by=best, mode=known[best])
