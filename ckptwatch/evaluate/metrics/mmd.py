"""How sure a squared maximum mean discrepancy is, for any kernel: shared by KID and CMMD."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ckptwatch.evaluate.ledger import Rows

SEED = 2020
MOST_COLUMNS = 4000  # of the kernel matrices: their means need no more
ROWS = 2000          # at a time: 64 MB of float64


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Of float64 rows (a, d) and (b, d)."""

    matrix: Callable[[Tensor, Tensor], Tensor]  # (a, b)
    diagonal: Callable[[Tensor], Tensor]        # (a,): of each row with itself


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of a squared MMD against a fixed reference."""

    error: float        # standard error
    influence: Tensor   # float64 (n,), centred: first order


def spread(rows: Rows, reference: Tensor, kernel: Kernel) -> Spread:
    """Both terms of the variance of the squared MMD of (n, d) against a fixed (m, d):

    4 ζ₁ / n + 2 ζ₂ / (n(n−1)), with ζ₁ the variance of E k(x, X') − E k(x, Y) over x and ζ₂ that of k(x, x')
    (Sutherland 2019, arXiv 1906.02104). The second matters where both distributions are nearly equal.
    """
    n = len(rows)
    rng = np.random.RandomState(SEED)
    own = rng.permutation(n)[:MOST_COLUMNS]
    other = rng.permutation(len(reference))[:MOST_COLUMNS]
    x_columns, y_columns = rows.take(own).double(), reference[torch.from_numpy(other)].double()
    in_columns = torch.zeros(n, dtype=torch.bool)
    in_columns[torch.from_numpy(own)] = True

    witness, total, squares, pairs, begin = [], 0.0, 0.0, 0, 0
    for block in rows.blocks(ROWS):
        x = block.double()
        inside = in_columns[begin:begin + len(x)]
        begin += len(x)
        k_xx = kernel.matrix(x, x_columns)
        diagonal = torch.where(inside, kernel.diagonal(x), 0.0)
        others = len(own) - inside.double()
        sums = k_xx.sum(dim=1) - diagonal
        witness.append(sums / others - kernel.matrix(x, y_columns).mean(dim=1))
        total += float(sums.sum())
        squares += float(k_xx.square().sum() - diagonal.square().sum())
        pairs += int(others.sum())
    influence = 2 * torch.cat(witness)
    influence = influence - influence.mean()
    first = float(influence.var(correction=1)) / 4
    second = max(0.0, squares / pairs - (total / pairs) ** 2)
    return Spread(error=math.sqrt(4 * first / n + 2 * second / (n * (n - 1))), influence=influence)


def cubic(width: int) -> Kernel:
    """(a·b / d + 1)³ (Bińkowski et al. 2018, arXiv 1801.01401)."""
    return Kernel(matrix=lambda a, b: (a @ b.T / width + 1) ** 3,
                  diagonal=lambda a: (a.square().sum(dim=1) / width + 1) ** 3)


def gaussian(sigma: float) -> Kernel:
    """exp(−|a − b|² / 2σ²)."""
    def matrix(a: Tensor, b: Tensor) -> Tensor:
        squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)[None, :] - 2 * a @ b.T
        return (squares.clamp(min=0) / (-2 * sigma**2)).exp()

    return Kernel(matrix=matrix, diagonal=lambda a: torch.ones(len(a), dtype=a.dtype))
