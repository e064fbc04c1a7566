"""Fréchet Inception Distance. The maths is in `statistics`."""

import torch
from torch import Tensor

from ckptwatch.core.metrics import METRICS
from ckptwatch.evaluate.failures import recipe_error
from ckptwatch.evaluate.metrics.base import Observation, interval, standard_error
from ckptwatch.evaluate.metrics.statistics import Statistics, frechet
from ckptwatch.model import Score


class Fid:
    """Keeps features (n, d) as float32. The interval is about "FID at this n" only: the bias at small n is not in it."""

    name = "fid"

    def __init__(self, layer: str, reference: Statistics, extractor: str) -> None:
        self._layer = layer
        self._reference = reference
        self._extractor = extractor
        self._features: list[Tensor] = []

    def update(self, batch: Observation) -> None:
        self._features.append(batch.features[self._layer])

    def compute(self) -> tuple[Score, ...]:
        features = torch.cat(self._features)
        if features.shape[1] != len(self._reference.mu):
            raise recipe_error(
                "compute FID", f"the reference has {len(self._reference.mu)} values, the network gives {features.shape[1]}",
                path=f"{self._extractor}/{self._layer}", hint="reference.stats must come from the same network and layer",
                retryable=False,
            )
        value, influence = frechet(features, self._reference)
        low, high = interval(value, standard_error(influence), lowest=0.0)
        return (Score(
            metric=self.name, value=value, low=low, high=high, n=len(features), mode=METRICS[self.name].mode,
            definition=f"Fréchet distance of {self._extractor}/{self._layer}; interval of FID at this n",
        ),)
