"""Kernel Inception Distance (Bińkowski et al. 2018, arXiv 1801.01401), by torch-fidelity's function."""

import math

import numpy as np
import torch
from torch import Tensor

from ckptwatch.core.metrics import METRICS
from ckptwatch.evaluate.metrics.base import FEWEST_FOR_INTERVAL, Observation, interval
from ckptwatch.model import Score

SUBSETS = 100
SUBSET_SIZE = 1000
MOST_COLUMNS = 4000  # of the kernel matrices behind the error: their means need no more
ROWS = 2000          # at a time: 64 MB of float64


class Kid:
    """Keeps features (n, d) as float32; needs those of the reference images, not only their mean and covariance."""

    name = "kid"

    def __init__(self, layer: str, reference: Tensor, extractor: str) -> None:
        self._layer = layer
        self._reference = reference
        self._extractor = extractor
        self._features: list[Tensor] = []

    def update(self, batch: Observation) -> None:
        self._features.append(batch.features[self._layer])

    def compute(self) -> tuple[Score, ...]:
        # Imported late: torch_fidelity brings torchvision, half of a worker's starting time.
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

        features = torch.cat(self._features)
        size = min(SUBSET_SIZE, len(features), len(self._reference))
        found = kid_features_to_metric(
            features, self._reference, kid_subsets=SUBSETS, kid_subset_size=size, verbose=False,
        )
        value = found[KEY_METRIC_KID_MEAN]
        error = self._error(features, found[KEY_METRIC_KID_STD])
        low, high = interval(value, error)
        return (Score(
            metric=self.name, value=value, low=low, high=high, n=len(features), mode=METRICS[self.name].mode,
            definition=f"squared MMD, cubic kernel, {self._extractor}/{self._layer}, {SUBSETS} subsets of {size}",
        ),)

    def _error(self, features: Tensor, subset_deviation: float) -> float | None:
        if len(features) < FEWEST_FOR_INTERVAL:
            return None
        # The subsets overlap, so their deviation is no error of the mean; over √100 it is only the luck of drawing them.
        return math.hypot(mmd_error(features, self._reference), subset_deviation / math.sqrt(SUBSETS))


def mmd_error(features: Tensor, reference: Tensor) -> float:
    """Standard error of the squared MMD of (n, d) against a fixed reference (m, d), both terms of its variance:

    4 ζ₁ / n + 2 ζ₂ / (n(n−1)), with ζ₁ the variance of E k(x, X') − E k(x, Y) over x and ζ₂ that of k(x, x')
    (Sutherland 2019, arXiv 1906.02104). The second matters where both distributions are nearly equal.
    """
    n, d = features.shape
    x, y = features.double(), reference.double()
    rng = np.random.RandomState(2020)
    own = torch.from_numpy(rng.permutation(n)[:MOST_COLUMNS])
    other = torch.from_numpy(rng.permutation(len(y))[:MOST_COLUMNS])
    x_columns, y_columns = x[own].T, y[other].T
    in_columns = torch.zeros(n, dtype=torch.bool)
    in_columns[own] = True

    witness, total, squares, pairs = [], 0.0, 0.0, 0
    for begin in range(0, n, ROWS):
        rows, inside = x[begin:begin + ROWS], in_columns[begin:begin + ROWS]
        k_xx = (rows @ x_columns / d + 1) ** 3
        diagonal = torch.where(inside, (rows.square().sum(dim=1) / d + 1) ** 3, 0.0)
        others = len(own) - inside.double()
        k_xy = (rows @ y_columns / d + 1) ** 3
        sums = k_xx.sum(dim=1) - diagonal
        witness.append(sums / others - k_xy.mean(dim=1))
        total += float(sums.sum())
        squares += float(k_xx.square().sum() - diagonal.square().sum())
        pairs += int(others.sum())
    first = float(torch.cat(witness).var(correction=1))
    second = max(0.0, squares / pairs - (total / pairs) ** 2)
    return math.sqrt(4 * first / n + 2 * second / (n * (n - 1)))
