"""Mean and covariance of features, and the Fréchet distance between two of them, in float64 and bounded memory.

float32 is not enough: it gave a FID of 18.23 where 19.35 is right (n = 1000, d = 2048).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ckptwatch.evaluate.metrics.panels import add_gram, lower_times, mirror, sandwich, times_lower
from ckptwatch.evaluate.networks.exactness import exact

CHUNK = 2048  # rows worked on at a time: 32 MB of float64 at d = 2048
MARGIN = 16   # rounding of eigenvalues is at most so many times their most negative one


class Rows(Protocol):
    """Features of n images, wherever they lie; they can be gone through again and again."""

    def __len__(self) -> int: ...

    @property
    def width(self) -> int: ...

    def blocks(self, size: int) -> Iterator[Tensor]:
        """float32 (at most size, width), in order."""
        ...


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of n feature vectors, float64, CPU: all that FID needs of them, and what parts of a set are merged by."""

    n: int
    mean: Tensor     # (d,)
    scatter: Tensor  # (d, d), Σ (x − mean)(x − mean)ᵀ, symmetric

    @property
    def covariance(self) -> Tensor:
        """(d, d), divisor n − 1. Raises ValueError for a single vector."""
        if self.n < 2:
            raise ValueError("one feature vector has no covariance")
        return self.scatter / (self.n - 1)

    def merged(self, other: "Moments") -> "Moments":
        """Of both sets together (Chan, Golub and LeVeque 1983). Raises ValueError when their widths differ."""
        if len(self.mean) != len(other.mean):
            raise ValueError(f"features of {len(self.mean)} and of {len(other.mean)} values")
        n = self.n + other.n
        apart = other.mean - self.mean
        scatter = (self.scatter + other.scatter).addr_(apart, apart, alpha=self.n * other.n / n)
        return Moments(n=n, mean=self.mean + apart * (other.n / n), scatter=scatter)


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of a reference set. float64, CPU."""

    mu: Tensor     # (d,)
    sigma: Tensor  # (d, d), symmetric, divisor n − 1
    root: Tensor   # (d, d), lower triangular, root @ root.T = sigma; columns beyond sigma's rank are 0


def moments_of(blocks: Iterable[Tensor]) -> Moments:
    """Moments of float32 or float64 blocks (k, d) of any length. Raises ValueError where there are none, NaN or Inf."""
    n, mean, scatter, x = 0, torch.empty(0), torch.empty(0), torch.empty(0)
    for block in _chunks(blocks):
        k, d = block.shape
        if not n:
            mean, scatter = torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
            x = torch.empty(CHUNK + 1, d, dtype=torch.float64)
        own = x[:k].copy_(block).mean(dim=0)
        x[:k] -= own
        # What merging adds, n₁n₂/(n₁+n₂) δδᵀ, is one row more.
        share = k / (n + k)
        torch.mul(own - mean, math.sqrt(n * share), out=x[k])
        add_gram(scatter, x[:k + 1])
        mean, n = mean + (own - mean) * share, n + k
    if not n:
        raise ValueError("no features")
    return _finite(Moments(n=n, mean=mean, scatter=mirror(scatter)))


def statistics_of(blocks: Tensor | Iterable[Tensor]) -> Statistics:
    """Statistics of blocks (k, d), or of one Tensor (n, d), n ≥ 2. Raises ValueError as `moments_of` does."""
    moments = moments_of([blocks] if isinstance(blocks, Tensor) else blocks)
    return with_root(moments.mean, moments.covariance)


def with_root(mu: Tensor, sigma: Tensor) -> Statistics:
    """Adds the root, which costs as much as a FID, hence is kept in the cache. What sigma lacks in rank is left out."""
    values, vectors = torch.linalg.eigh((sigma + sigma.T) / 2)
    values, vectors = _significant(values).flip(0), vectors.flip(1)
    rank = int(values.count_nonzero())
    # Σ = F Fᵀ with F = V √λ, and Fᵀ = Q R makes it Rᵀ R: triangular like Cholesky's, but of any rank.
    factor = vectors[:, :rank] * values[:rank].sqrt()
    root = torch.zeros_like(vectors)
    root[:, :rank] = torch.linalg.qr(factor.T, mode="r").R.T
    return Statistics(mu=mu, sigma=sigma, root=root)


def frechet(rows: Rows | Tensor, reference: Statistics, moments: Moments | None = None) -> tuple[float, Tensor]:
    """FID of n ≥ 2 feature vectors against a reference, 0 and up, and each one's influence on it, float64 (n,), mean 0.

    FID = |μ − μr|² + tr Σ + tr Σr − 2 tr (Σ Σr)^½ (Heusel et al. 2017, arXiv 1706.08500). With Σr = L Lᵀ the last trace is
    that of M^½, M = Lᵀ Σ L. Influence: φ(x) = 2(μ − μr)·(x − μ) + (x − μ)ᵀ (I − L M^(−½) Lᵀ) (x − μ), with the
    pseudo-inverse; its standard deviation over √n is the standard error of the FID at this n.

    `moments` of the rows, where they are known already, spare one pass. Rows are read in blocks; fewer than d of them are
    held together, in place of a d × d matrix. Raises ValueError for fewer than two, for a width that is not the
    reference's, and for NaN or Inf.
    """
    rows = _checked(rows, reference)
    if len(rows) <= rows.width:
        few = _Few(rows, reference)
        values, vectors = torch.linalg.eigh(few.gram())
        return few.distance(values), few.influence(values, vectors)
    many = _Many(rows, reference, moments)
    values, vectors = torch.linalg.eigh(many.product())
    return many.distance(values), many.influence(values, vectors)


def frechet_distance(rows: Rows | Tensor, reference: Statistics, moments: Moments | None = None) -> float:
    """The value of `frechet` alone, in about half of its time: eigenvectors are not needed."""
    rows = _checked(rows, reference)
    if len(rows) <= rows.width:
        few = _Few(rows, reference)
        return few.distance(torch.linalg.eigvalsh(few.gram()))
    many = _Many(rows, reference, moments)
    return many.distance(torch.linalg.eigvalsh(many.product()))


class _Few:
    """For n ≤ d: M^½ has the non-zero eigenvalues of (Z Zᵀ)^½, Z = X L / √(n − 1), and zᵢᵀ M^(−½) zᵢ is on its diagonal."""

    def __init__(self, rows: Rows, reference: Statistics) -> None:
        x = torch.cat([block.double() for block in rows.blocks(CHUNK)])
        self._reference = reference
        self._mean = x.mean(dim=0)
        self._x = x.sub_(self._mean)
        self._squares = _squares(self._x)
        self._free = len(x) - 1
        if not bool(torch.isfinite(self._squares).all()):
            raise ValueError("features are not finite")

    def gram(self) -> Tensor:
        """(n, n), of which the lower triangle is meant."""
        z = times_lower(self._x, _factor(self._reference))
        gram = z.new_zeros(len(z), len(z))
        add_gram(gram, z.T)
        return gram.div_(self._free)

    def distance(self, values: Tensor) -> float:
        return _distance(self._mean, float(self._squares.sum()) / self._free, values, self._reference)

    def influence(self, values: Tensor, vectors: Tensor) -> Tensor:
        leverage = self._free * (vectors.square() @ _significant(values).sqrt())
        return _centred(2 * (self._x @ (self._mean - self._reference.mu)) + self._squares - leverage)


class _Many:
    """For n > d: by the covariance."""

    def __init__(self, rows: Rows, reference: Statistics, moments: Moments | None) -> None:
        self._rows = rows
        self._reference = reference
        self._moments = moments_of(rows.blocks(CHUNK)) if moments is None else _finite(moments)
        if self._moments.n != len(rows):
            raise ValueError(f"moments of {self._moments.n} feature vectors, but there are {len(rows)}")

    def product(self) -> Tensor:
        """M (r, r) for a reference of rank r, of which the lower triangle is meant."""
        return sandwich(_factor(self._reference), self._moments.scatter).div_(self._moments.n - 1)

    def distance(self, values: Tensor) -> float:
        total = float(self._moments.scatter.trace()) / (self._moments.n - 1)
        return _distance(self._moments.mean, total, values, self._reference)

    def influence(self, values: Tensor, vectors: Tensor) -> Tensor:
        mean = self._moments.mean
        singular = _significant(values).sqrt()
        # (x − μ)ᵀ L M^(−½) Lᵀ (x − μ) = |y|² with y = M^(−¼) Lᵀ (x − μ). On average yₖ² is the k-th singular value, so the
        # large ones decide, and float32 does; M^(−½) itself in float32 would be lost.
        present = singular > torch.finfo(torch.float32).eps * singular[-1:]
        scaled = vectors[:, present] * singular[present].rsqrt()
        view = lower_times(_factor(self._reference), scaled).float()
        direction = 2 * (mean - self._reference.mu).float()
        coarse = mean.float()
        fine = (mean - coarse).float()
        # Made once: new ones for each block leave holes between them, and memory grows with the number of images.
        room = torch.empty(CHUNK, len(mean)), torch.empty(CHUNK, view.shape[1])
        parts = []
        for block in self._rows.blocks(CHUNK):
            x, y = (r[:len(block)] for r in room)
            torch.sub(block, coarse, out=x).sub_(fine)
            with exact(x.device):
                torch.mm(x, view, out=y)
                parts.append(x @ direction + _squares(x) - _squares(y))
        return _centred(torch.cat(parts).double())


class _Matrix:
    """Rows that are in memory."""

    def __init__(self, features: Tensor) -> None:
        self._features = features

    def __len__(self) -> int:
        return len(self._features)

    @property
    def width(self) -> int:
        return self._features.shape[1]

    def blocks(self, size: int) -> Iterator[Tensor]:
        return iter(self._features.split(size))


def _checked(rows: Rows | Tensor, reference: Statistics) -> Rows:
    rows = _Matrix(rows) if isinstance(rows, Tensor) else rows
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} feature vectors have no covariance")
    if rows.width != len(reference.mu):
        raise ValueError(f"features have {rows.width} values, those of the reference {len(reference.mu)}")
    return rows


def _finite(moments: Moments) -> Moments:
    if not bool(torch.isfinite(moments.mean).all() and torch.isfinite(moments.scatter.diagonal()).all()):
        raise ValueError("features are not finite")
    return moments


def _factor(reference: Statistics) -> Tensor:
    """L (d, r) of the reference, r its rank."""
    return reference.root[:, : int(reference.root.any(dim=0).count_nonzero())]


def _distance(mean: Tensor, total: float, values: Tensor, reference: Statistics) -> float:
    """By tr Σ and the eigenvalues of M. Rounding could make it negative where both sets are the same."""
    apart = mean - reference.mu
    overlap = float(_significant(values).sqrt().sum())
    return max(0.0, float(apart @ apart) + total + float(reference.sigma.trace()) - 2 * overlap)


def _significant(values: Tensor) -> Tensor:
    """Eigenvalues, in rising order, of a positive semi-definite matrix, with those that are rounding set to 0.

    A negative one tells how large rounding is. Where there is none, the small ones may be true, and roots of many add up.
    """
    return torch.where(values > -MARGIN * values[:1], values, 0.0).clamp(min=0)


def _squares(x: Tensor) -> Tensor:
    """Of each row's length."""
    return torch.linalg.vector_norm(x, dim=1).square_()


def _centred(influence: Tensor) -> Tensor:
    return influence - influence.mean()


def _chunks(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same rows, CHUNK at a time where they are fewer: products with few rows are slow."""
    waiting: list[Tensor] = []
    count = 0
    for block in blocks:
        for part in block.split(CHUNK):
            if waiting and count + len(part) > CHUNK:
                yield _joined(waiting)
                waiting, count = [], 0
            if len(part):
                waiting.append(part)
                count += len(part)
    if waiting:
        yield _joined(waiting)


def _joined(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)
