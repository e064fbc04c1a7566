"""Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), with torch-fidelity's conventions."""

from torch import Tensor

from ckptwatch.evaluate.ledger import Ledger
from ckptwatch.evaluate.metrics.base import Measured, built_in, mean_of
from ckptwatch.evaluate.metrics.prc import NEIGHBOURS, precision_recall


class Manifolds:
    """Which images of each set lie within the other's; found once for both metrics."""

    def __init__(self, key: str, reference: Tensor, network: str) -> None:
        self.definition = f"{{}} by {NEIGHBOURS} nearest neighbours, {network}"
        self._key = key
        self._reference = reference
        self._hits: tuple[Tensor, Tensor] | None = None

    def hits(self, ledger: Ledger) -> tuple[Tensor, Tensor]:
        """bool (n,) of the generated images, bool (m,) of the reference images."""
        if self._hits is None:
            self._hits = precision_recall(ledger.rows(self._key).tensor(), self._reference)
        return self._hits


class Precision:
    """Share of generated images within the reference's manifold, whose radii do not depend on them: a mean of hits."""

    def __init__(self, manifolds: Manifolds) -> None:
        self._manifolds = manifolds

    def compute(self, ledger: Ledger) -> tuple[Measured, ...]:
        hits, _ = self._manifolds.hits(ledger)
        definition = self._manifolds.definition.format("share of generated images among the reference")
        return mean_of("precision", hits.double(), definition, lowest=0.0, highest=1.0)


class Recall:
    """Share of reference images within the generated manifold. No interval: its radii shrink as images are drawn, so that
    neither resampling nor an influence function is honest."""

    def __init__(self, manifolds: Manifolds) -> None:
        self._manifolds = manifolds

    def compute(self, ledger: Ledger) -> tuple[Measured, ...]:
        found, hits = self._manifolds.hits(ledger)
        definition = self._manifolds.definition.format("share of reference images among the generated")
        return built_in("recall", float(hits.double().mean()), (None, None), len(found), definition)
