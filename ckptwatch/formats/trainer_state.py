"""`trainer_state.json` of the Hugging Face Trainer: where the training stood, and what it had logged."""

import math
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ckptwatch.formats.reading import numbers_in, read_json, whole_number

STATE = "trainer_state.json"
MOST_METRICS = 200
_COUNTS = frozenset({"step", "epoch", "total_flos"})
_SPEEDS = ("_runtime", "_per_second")


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    step: int | None = None
    epoch: int | None = None  # whole epochs
    metrics: dict[str, float] = field(default_factory=dict)  # logged at this step, and the latest training loss
    best: str = ""            # the path of the best checkpoint, as the trainer wrote it


def read_state(path: Path) -> TrainerState:
    """Raises OSError; ValueError, in words, for anything that is no state of a trainer."""
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(content, dict) or "global_step" not in content:
        raise ValueError(f"{path.name}: no global_step")
    step = whole_number(content["global_step"])
    epoch = content.get("epoch")
    best = content.get("best_model_checkpoint")
    return TrainerState(
        step=step,
        epoch=whole_number(math.floor(epoch)) if isinstance(epoch, float) and math.isfinite(epoch) else whole_number(epoch),
        metrics=_logged(content.get("log_history"), step),
        best=best if isinstance(best, str) and len(best) < 4096 and best.isprintable() else "",
    )


def _logged(history: Any, step: int | None) -> dict[str, float]:
    """All numbers logged at the step, speeds left out; and the latest training loss before it, if it has none."""
    if not isinstance(history, list) or step is None:
        return {}
    metrics: dict[str, float] = {}
    before: tuple[int, Any] = (-1, None)
    for entry in history:
        at = whole_number(entry.get("step")) if isinstance(entry, dict) else None
        if at == step:
            metrics |= numbers_in(entry)
        elif at is not None and before[0] <= at < step and "loss" in entry:
            before = at, entry["loss"]
    metrics = {**numbers_in({"loss": before[1]}), **metrics}
    kept = ((k, v) for k, v in metrics.items() if k not in _COUNTS and not k.endswith(_SPEEDS))
    return dict(islice(kept, MOST_METRICS))
