"""The seam between generated images and a metric."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from ckptwatch.model import Score

Z95 = 1.959963984540054  # normal quantile of a two-sided 95 % interval
FEWEST_FOR_INTERVAL = 10  # below it a variance estimate says nothing


@dataclass(frozen=True)
class Observation:
    """One batch of generated images and what the networks see in it; each network runs at most once per batch."""

    start: int                # index of the first image
    images: Tensor            # uint8 (n, 3, H, W), CPU
    prompts: tuple[str, ...]  # n
    look: Callable[[Tensor], dict[str, Tensor]]        # feature network
    compare: Callable[[int, Tensor], Tensor]           # CLIP cosines with the prompts from `start` on
    find_originals: Callable[[int, Tensor], Tensor]    # paired originals, resized to the images
    distance: Callable[[Tensor, Tensor], Tensor]       # LPIPS

    @cached_property
    def features(self) -> dict[str, Tensor]:
        """float32 (n, d) by layer."""
        return self.look(self.images)

    @cached_property
    def similarities(self) -> Tensor:
        """Cosine of each image with its prompt, float64 (n,), −1 to 1."""
        return self.compare(self.start, self.images)

    @cached_property
    def originals(self) -> Tensor:
        """uint8 (n, 3, H, W)."""
        return self.find_originals(self.start, self.images)

    @cached_property
    def distances(self) -> Tensor:
        """LPIPS to the originals, float64 (n,), 0 and up."""
        return self.distance(self.images, self.originals)


class Metric(Protocol):
    """Accumulates over the batches of one checkpoint; made anew for each. Raises EvaluationError (METRIC)."""

    def update(self, batch: Observation) -> None: ...

    def compute(self) -> tuple[Score, ...]: ...


def mean_interval(values: Tensor) -> tuple[float, float | None, float | None]:
    """Mean of float64 (n,) and its 95 % interval, mean ± 1.96·sd/√n; None where n is too small to know."""
    mean = float(values.mean())
    return (mean, *interval(mean, standard_error(values)))


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
