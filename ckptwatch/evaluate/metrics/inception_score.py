"""Inception Score (Salimans et al. 2016, arXiv 1606.03498), by torch-fidelity's formula and its shuffling."""

import math

import numpy as np
import torch
from torch import Tensor

from ckptwatch.evaluate.ledger import Ledger, Rows
from ckptwatch.evaluate.metrics.base import Measured, built_in

SPLITS = 10
SEED = 2020            # torch-fidelity's
FEWEST_PER_SPLIT = 10  # a split of k images cannot score above k
# Student's t, two-sided 95 %, by degrees of freedom: for the mean of so few splits 1.96 would be too narrow.
T95 = {4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def splits_for(n: int) -> int:
    """Ten splits, as everybody has them, from 100 images on; below, as many as hold ten images each."""
    return max(1, min(SPLITS, n // FEWEST_PER_SPLIT))


def split_scores(rows: Rows, splits: int) -> tuple[list[float], Tensor]:
    """The score of each split, and each sample's influence on their mean, float64 (n,).

    Samples are shuffled with torch-fidelity's generator and cut as it cuts them; only one split is in memory at a time.
    With p the class probabilities of a sample and m their mean over its split, KL = Σ p (log p − log m) and the score is
    exp(mean KL). Its influence function is score · (KL − mean KL): what m itself contributes cancels, since Σ p = Σ m = 1.
    """
    n = len(rows)
    order = np.random.RandomState(SEED).permutation(n)
    scores, influence = [], torch.empty(n, dtype=torch.float64)
    for i in range(splits):
        chosen = order[i * n // splits:(i + 1) * n // splits]
        logits = rows.take(chosen).double()
        p, log_p = logits.softmax(dim=1), logits.log_softmax(dim=1)
        # As torch-fidelity writes it, operation by operation, so that the same logits give the same bits.
        divergence = (p * (log_p - p.mean(dim=0, keepdim=True).log())).sum(dim=1)
        score = float(divergence.mean().exp())
        scores.append(score)
        influence[torch.from_numpy(chosen)] = score * (divergence - divergence.mean())
    return scores, influence


class InceptionScore:
    """The splits are disjoint, so that their spread gives an honest standard error of "IS at this n"; below five splits
    there is no interval."""

    def __init__(self, key: str, network: str) -> None:
        self._key = key
        self._network = network

    def compute(self, ledger: Ledger) -> tuple[Measured, ...]:
        rows = ledger.rows(self._key)
        splits = splits_for(len(rows))
        scores, influence = split_scores(rows, splits)
        value, deviation = float(np.mean(scores)), float(np.std(scores))
        low = high = None
        if splits - 1 in T95:
            # deviation · √(k/(k−1)) is that of the sample, divided by √k the error of the mean.
            half = T95[splits - 1] * deviation / math.sqrt(splits - 1)
            low, high = max(1.0, value - half), value + half
        definition = f"exp of mean KL of {self._network}, mean of {splits} splits"
        return built_in("inception_score", value, (low, high), len(rows), definition, influence)
