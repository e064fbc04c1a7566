"""Fréchet distance between features of generated and reference images. The maths is in `statistics`."""

from ckptwatch.evaluate.failures import recipe_error
from ckptwatch.evaluate.ledger import Ledger
from ckptwatch.evaluate.metrics.base import Measured, built_in, interval, standard_error
from ckptwatch.evaluate.metrics.statistics import Statistics, frechet


class FrechetDistance:
    """FID in Inception's features, FD-DINOv2 in DINOv2's (Stein et al. 2023, arXiv 2306.04675).

    The interval is about the distance at this n only: the bias at small n is not in it.
    """

    def __init__(self, name: str, key: str, reference: Statistics, network: str) -> None:
        self._name = name
        self._key = key
        self._reference = reference
        self._network = network

    def compute(self, ledger: Ledger) -> tuple[Measured, ...]:
        rows = ledger.rows(self._key)
        if rows.width != len(self._reference.mu):
            raise recipe_error(
                f"compute {self._name}",
                f"the reference has {len(self._reference.mu)} values, the network gives {rows.width}",
                path=self._key, hint="reference.stats must come from the same network and layer", retryable=False,
            )
        value, influence = frechet(rows, self._reference, ledger.moments(self._key))
        bounds = interval(value, standard_error(influence), lowest=0.0)
        definition = f"Fréchet distance of {self._network}; interval of the distance at this n"
        return built_in(self._name, value, bounds, len(rows), definition, influence)
