"""Products of which one half is known to be zero, or to be the other half's mirror: made in panels, it is not computed.

torch offers neither the symmetric nor the triangular routine of BLAS; large panels are as fast.
"""

import torch
from torch import Tensor

PANEL = 384  # columns; the library's kernels like multiples of 192


def add_gram(total: Tensor, x: Tensor) -> None:
    """Adds XᵀX of (k, d) to the lower triangle of (d, d). Above it stand remainders."""
    for begin, end in _panels(len(total)):
        total[begin:end, :end].addmm_(x[:, begin:end].T, x[:, :end])


def mirror(lower: Tensor) -> Tensor:
    """Makes a square matrix symmetric in place, by its lower triangle; the same."""
    for begin, end in _panels(len(lower)):
        lower[:begin, begin:end] = lower[begin:end, :begin].T
        corner = lower[begin:end, begin:end]
        corner.copy_(corner.tril() + corner.tril(-1).T)
    return lower


def times_lower(x: Tensor, lower: Tensor) -> Tensor:
    """X L for (n, d) and a lower triangular (d, r)."""
    out = x.new_empty(len(x), lower.shape[1])
    for begin, end in _panels(lower.shape[1]):
        torch.mm(x[:, begin:], lower[begin:, begin:end], out=out[:, begin:end])
    return out


def lower_times(lower: Tensor, x: Tensor) -> Tensor:
    """L X for a lower triangular (d, r) and (r, k)."""
    out = x.new_empty(len(lower), x.shape[1])
    for begin, end in _panels(len(lower)):
        torch.mm(lower[begin:end, :end], x[:end], out=out[begin:end])
    return out


def sandwich(lower: Tensor, middle: Tensor) -> Tensor:
    """Lᵀ S L for a lower triangular (d, r) and a symmetric (d, d): its lower triangle. Above it stands nothing of use."""
    right = times_lower(middle, lower)
    out = torch.zeros(lower.shape[1], lower.shape[1], dtype=lower.dtype, device=lower.device)
    for begin, end in _panels(len(out)):
        torch.mm(lower[begin:, begin:end].T, right[begin:, :end], out=out[begin:end, :end])
    return out


def _panels(width: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + PANEL, width)) for begin in range(0, width, PANEL)]
