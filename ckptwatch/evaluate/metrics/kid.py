"""Kernel Inception Distance (Bińkowski et al. 2018, arXiv 1801.01401), by torch-fidelity's function."""

import math

from torch import Tensor

from ckptwatch.evaluate.ledger import Ledger
from ckptwatch.evaluate.metrics.base import FEWEST_FOR_INTERVAL, Measured, built_in, interval
from ckptwatch.evaluate.metrics.mmd import cubic, spread

SUBSETS = 100
SUBSET_SIZE = 1000


class Kid:
    """Needs the features of the reference images, float32 (m, d), not only their mean and covariance."""

    def __init__(self, key: str, reference: Tensor, network: str) -> None:
        self._key = key
        self._reference = reference
        self._network = network

    def compute(self, ledger: Ledger) -> tuple[Measured, ...]:
        # Imported late: torch_fidelity brings torchvision, half of a worker's starting time.
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

        rows = ledger.rows(self._key)
        size = min(SUBSET_SIZE, len(rows), len(self._reference))
        found = kid_features_to_metric(
            rows.tensor(), self._reference, kid_subsets=SUBSETS, kid_subset_size=size, verbose=False,
        )
        value, bounds, influence = found[KEY_METRIC_KID_MEAN], (None, None), None
        if len(rows) >= FEWEST_FOR_INTERVAL:
            # The subsets overlap, so their deviation is no error of the mean; over √100 it is only the luck of drawing.
            known = spread(rows, self._reference, cubic(rows.width))
            bounds = interval(value, math.hypot(known.error, found[KEY_METRIC_KID_STD] / math.sqrt(SUBSETS)))
            influence = known.influence
        definition = f"squared MMD, cubic kernel, {self._network}, {SUBSETS} subsets of {size}"
        return built_in("kid", value, bounds, len(rows), definition, influence)
