"""CLIP score: agreement of each image with its prompt (after Hessel et al. 2021, arXiv 2104.08718, without its 2.5)."""

from ckptwatch.evaluate.ledger import Ledger
from ckptwatch.evaluate.metrics.base import Measured, mean_of
from ckptwatch.evaluate.views import CLIP_SCORE


class ClipScore:
    """Mean of max(cos, 0), 0 to 1."""

    def __init__(self, network: str) -> None:
        self._network = network

    def compute(self, ledger: Ledger) -> tuple[Measured, ...]:
        values = ledger.rows(CLIP_SCORE).column().clamp(0, 1)
        definition = f"max(cos, 0), mean over pairs, {self._network}"
        return mean_of("clip_score", values, definition, lowest=0.0, highest=1.0)
