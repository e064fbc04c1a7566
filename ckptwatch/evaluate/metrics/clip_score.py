"""CLIP score: agreement of each image with its prompt (after Hessel et al. 2021, arXiv 2104.08718, without its 2.5)."""

import torch
from torch import Tensor

from ckptwatch.core.metrics import METRICS
from ckptwatch.evaluate.metrics.base import Observation, mean_interval
from ckptwatch.model import Score


class ClipScore:
    """Mean of max(cos, 0), 0 to 1."""

    name = "clip_score"

    def __init__(self, network: str) -> None:
        self._network = network
        self._values: list[Tensor] = []

    def update(self, batch: Observation) -> None:
        self._values.append(batch.similarities.clamp(0, 1))

    def compute(self) -> tuple[Score, ...]:
        values = torch.cat(self._values)
        value, low, high = mean_interval(values)
        return (Score(
            metric=self.name, value=value, low=low, high=high, n=len(values), mode=METRICS[self.name].mode,
            definition=f"max(cos, 0), mean over pairs, {self._network}",
        ),)
