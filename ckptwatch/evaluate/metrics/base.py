"""The seam between what was measured of images and a metric."""

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ckptwatch.core.metrics import METRICS
from ckptwatch.evaluate.ledger import Ledger
from ckptwatch.model import Score

Z95 = 1.959963984540054  # normal quantile of a two-sided 95 % interval
FEWEST_FOR_INTERVAL = 10  # below it a variance estimate says nothing


@dataclass(frozen=True)
class Measured:
    """A score, and what each sample contributes to it.

    `influence` is float64 (n,) in index order: the influence function at each sample, up to a constant. Its standard
    deviation over √n is the error of the value; that of the difference of two checkpoints' influences, sample by sample,
    is the error of their difference, which is smaller where both were sampled from the same seeds.
    """

    score: Score
    influence: Tensor | None = None


class Metric(Protocol):
    """Computes from the rows of one checkpoint. Raises EvaluationError (METRIC)."""

    def compute(self, ledger: Ledger) -> tuple[Measured, ...]: ...


def built_in(
    name: str, value: float, bounds: tuple[float | None, float | None], n: int, definition: str,
    influence: Tensor | None = None,
) -> tuple[Measured, ...]:
    """The one score of a built-in metric."""
    low, high = bounds
    score = Score(metric=name, value=value, low=low, high=high, n=n, mode=METRICS[name].mode, definition=definition)
    return (Measured(score, influence),)


def mean_of(
    name: str, values: Tensor, definition: str, *, lowest: float = -math.inf, highest: float = math.inf,
) -> tuple[Measured, ...]:
    """A metric that is a mean over samples, float64 (n,), with its interval mean ± 1.96·sd/√n."""
    value = float(values.mean())
    bounds = interval(value, standard_error(values), lowest=lowest, highest=highest)
    return built_in(name, value, bounds, len(values), definition, values - value)


def standard_error(values: Tensor) -> float | None:
    """sd/√n of float64 (n,), or None below ten values."""
    n = len(values)
    return float(values.std(correction=1)) / math.sqrt(n) if n >= FEWEST_FOR_INTERVAL else None


def interval(
    value: float, error: float | None, *, lowest: float = -math.inf, highest: float = math.inf,
) -> tuple[float | None, float | None]:
    """value ± 1.96·error, kept within the metric's range."""
    if error is None or not math.isfinite(error):
        return None, None
    return max(lowest, value - Z95 * error), min(highest, value + Z95 * error)
