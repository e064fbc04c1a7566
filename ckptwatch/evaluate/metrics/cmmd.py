"""CMMD (Jayasumana et al. 2024, arXiv 2401.09603): squared MMD of CLIP embeddings with a Gaussian kernel."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ckptwatch.evaluate.ledger import BLOCK, Ledger
from ckptwatch.evaluate.metrics.base import FEWEST_FOR_INTERVAL, Measured, built_in, interval
from ckptwatch.evaluate.metrics.mmd import gaussian, spread

SIGMA = 10.0
SCALE = 1000.0  # the paper's, for readable numbers
_kernel = gaussian(SIGMA)

Blocks = Callable[[], Iterable[Tensor]]


class Cmmd:
    """1000 · (E k(x, x') + E k(y, y') − 2 E k(x, y)) of unit-length embeddings, the diagonal included.

    The paper writes the estimator without the diagonal; its published code, and so the numbers people compare with,
    leave it in. The difference is below 1000 · (1 − E k) / n.
    """

    def __init__(self, key: str, reference: Tensor, network: str) -> None:
        self._key = key
        self._reference = reference
        self._network = network

    def compute(self, ledger: Ledger) -> tuple[Measured, ...]:
        rows, other = ledger.rows(self._key), self._reference

        def split() -> Iterable[Tensor]:
            return other.split(BLOCK)

        own, cross = _mean_kernel(rows.blocks, rows.blocks), _mean_kernel(rows.blocks, split)
        value = SCALE * (own + _mean_kernel(split, split) - 2 * cross)
        bounds, influence = (None, None), None
        if len(rows) >= FEWEST_FOR_INTERVAL:
            known = spread(rows, other, _kernel)
            bounds, influence = interval(value, SCALE * known.error, lowest=0.0), SCALE * known.influence
        definition = f"1000 × squared MMD, Gaussian kernel of σ {SIGMA:g}, {self._network}"
        return built_in("cmmd", value, bounds, len(rows), definition, influence)


def _mean_kernel(left: Blocks, right: Blocks) -> float:
    """Mean over all pairs of a row of the one and a row of the other; each is gone through again and again."""
    total, pairs = torch.zeros((), dtype=torch.float64), 0
    for a in left():
        for b in right():
            total += _kernel.matrix(a.double(), b.double()).sum()
            pairs += len(a) * len(b)
    return float(total) / pairs
