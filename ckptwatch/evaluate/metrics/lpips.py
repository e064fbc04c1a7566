"""LPIPS (Zhang et al. 2018, arXiv 1801.03924) of each image to its paired original."""

import torch
from torch import Tensor

from ckptwatch.core.metrics import METRICS
from ckptwatch.evaluate.metrics.base import Observation, mean_interval
from ckptwatch.model import Score


class Lpips:
    """Mean distance, 0 and up."""

    name = "lpips"

    def __init__(self, network: str) -> None:
        self._network = network
        self._values: list[Tensor] = []

    def update(self, batch: Observation) -> None:
        self._values.append(batch.distances)

    def compute(self) -> tuple[Score, ...]:
        values = torch.cat(self._values)
        value, low, high = mean_interval(values)
        return (Score(
            metric=self.name, value=value, low=None if low is None else max(0.0, low), high=high, n=len(values),
            mode=METRICS[self.name].mode, definition=f"LPIPS v0.1 {self._network}, mean over pairs",
        ),)
