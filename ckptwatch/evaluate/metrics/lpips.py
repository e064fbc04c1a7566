"""LPIPS (Zhang et al. 2018, arXiv 1801.03924) of each image to its paired original."""

from ckptwatch.evaluate.ledger import Ledger
from ckptwatch.evaluate.metrics.base import Measured, mean_of
from ckptwatch.evaluate.views import LPIPS


class Lpips:
    """Mean distance, 0 and up."""

    def __init__(self, network: str) -> None:
        self._network = network

    def compute(self, ledger: Ledger) -> tuple[Measured, ...]:
        definition = f"LPIPS v0.1, {self._network}, mean over pairs matched by {_WORDS[ledger.pairing]}"
        return mean_of("lpips", ledger.rows(LPIPS).column(), definition, lowest=0.0)


_WORDS = {"stem": "name", "order": "order", "": "order"}
