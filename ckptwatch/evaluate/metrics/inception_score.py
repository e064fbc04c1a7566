"""Inception Score (Salimans et al. 2016, arXiv 1606.03498), by torch-fidelity's function."""

import math

import torch
from torch import Tensor

from ckptwatch.core.metrics import METRICS
from ckptwatch.evaluate.metrics.base import Observation
from ckptwatch.model import Score

SPLITS = 10
FEWEST_PER_SPLIT = 10  # a split of k images cannot score above k
# Student's t, two-sided 95 %, by degrees of freedom: for the mean of so few splits 1.96 would be too narrow.
T95 = {4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def splits_for(n: int) -> int:
    """Ten splits, as everybody has them, from 100 images on; below, as many as hold ten images each."""
    return max(1, min(SPLITS, n // FEWEST_PER_SPLIT))


class InceptionScore:
    """Keeps logits (n, classes). The splits are disjoint, so that their spread gives an honest standard error of "IS at
    this n"; below five splits there is no interval."""

    name = "inception_score"

    def __init__(self, layer: str, extractor: str) -> None:
        self._layer = layer
        self._extractor = extractor
        self._logits: list[Tensor] = []

    def update(self, batch: Observation) -> None:
        self._logits.append(batch.features[self._layer])

    def compute(self) -> tuple[Score, ...]:
        # Imported late: torch_fidelity brings torchvision, half of a worker's starting time.
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

        logits = torch.cat(self._logits)
        splits = splits_for(len(logits))
        found = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=2020)
        value = found[KEY_METRIC_ISC_MEAN]
        low = high = None
        if splits - 1 in T95:
            # std · √(k/(k−1)) is the sample deviation, divided by √k the error of the mean.
            half = T95[splits - 1] * found[KEY_METRIC_ISC_STD] / math.sqrt(splits - 1)
            low, high = max(1.0, value - half), value + half
        return (Score(
            metric=self.name, value=value, low=low, high=high, n=len(logits), mode=METRICS[self.name].mode,
            definition=f"exp of mean KL of {self._extractor}/{self._layer}, mean of {splits} splits",
        ),)
