"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), in blocks of distances."""

import torch
from torch import Tensor

from ckptwatch.evaluate.networks.exactness import exact

NEIGHBOURS = 3
BLOCK = 4096  # rows and columns of distances at a time: 64 MiB, and as much again for the features they are made from


def precision_recall(
    generated: Tensor, reference: Tensor, neighbours: int = NEIGHBOURS, block: int = BLOCK,
    reference_radii: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Which of generated (n, d) lie in the manifold of reference (m, d), bool (n,), and the reverse, bool (m,).

    Precision and recall are their means. A manifold is the union of balls, one around each vector, as far as its nearest
    but `neighbours`; what lies on the edge is inside. Distances are float32, as torch-fidelity's, and equal its own where
    both sets fit into one block. `reference_radii`, where known, spare their computation. Raises ValueError unless both
    sets have more than `neighbours` vectors, of one width.
    """
    if generated.ndim != 2 or reference.ndim != 2 or generated.shape[1] != reference.shape[1]:
        raise ValueError(f"features of shapes {tuple(generated.shape)} and {tuple(reference.shape)}")
    own = radii(generated, neighbours, block)
    other = radii(reference, neighbours, block) if reference_radii is None else reference_radii
    if len(other) != len(reference):
        raise ValueError(f"{len(other)} radii for {len(reference)} reference vectors")
    generated, reference = generated.float(), reference.float()
    precision = torch.zeros(len(generated), dtype=torch.bool, device=generated.device)
    recall = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    for row in range(0, len(reference), block):
        rows = slice(row, row + block)
        for column in range(0, len(generated), block):
            columns = slice(column, column + block)
            distances = _distances(reference[rows], generated[columns])
            recall[rows] |= (distances <= own[columns]).any(dim=1)
            precision[columns] |= (distances <= other[rows, None]).any(dim=0)
    return precision, recall


def radii(x: Tensor, neighbours: int = NEIGHBOURS, block: int = BLOCK) -> Tensor:
    """Distance of each of (n, d) to its nearest but `neighbours`, float32 (n,). The nearest of all is usually itself.

    Raises ValueError unless there are more than `neighbours`.
    """
    if len(x) <= neighbours:
        raise ValueError(f"{len(x)} vectors have no {neighbours} neighbours each")
    x = x.float()
    nearest = x.new_full((len(x), neighbours + 1), torch.inf)
    for row in range(0, len(x), block):
        rows = slice(row, row + block)
        for column in range(row, len(x), block):
            columns = slice(column, column + block)
            distances = _distances(x[rows], x[columns])
            nearest[rows] = _smallest(nearest[rows], distances)
            if column > row:  # the mirrored block is the same
                nearest[columns] = _smallest(nearest[columns], distances.T)
    return nearest.amax(dim=1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    with exact(a.device):
        return torch.cdist(a, b)


def _smallest(known: Tensor, distances: Tensor) -> Tensor:
    """The k smallest of each row, of (n, k) known ones and (n, m) new ones."""
    k = known.shape[1]
    new = distances.topk(min(k, distances.shape[1]), dim=1, largest=False, sorted=False).values
    return torch.cat([known, new], dim=1).topk(k, dim=1, largest=False, sorted=False).values
