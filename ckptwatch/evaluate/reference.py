"""What generated images are compared with: statistics and features of a reference set, computed once and kept.

The cache is content-addressed: its key is a digest of the images' bytes, the extractor, the layer and the weights, so it
cannot go stale. torch-fidelity's own is keyed by name only, and does.
"""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import recipe_error
from ckptwatch.evaluate.images import list_images, read_batches
from ckptwatch.evaluate.metrics.statistics import Statistics, statistics_of, with_root
from ckptwatch.evaluate.networks import FeatureNetwork
from ckptwatch.evaluate.samplers.base import Report
from ckptwatch.model import Reference

LAYOUT = "1"        # of the cache files and of how images are read; raise it when either changes
ASYMMETRY = 1e-5    # of sigma, relative to its largest entry: what float32 storage leaves
NEGATIVE = 1e-3     # smallest eigenvalue over largest: below this it is no covariance


@dataclass(frozen=True, kw_only=True)
class ReferenceSet:
    """Reference images or statistics of a recipe, seen through one layer of one network."""

    reference: Reference
    network: FeatureNetwork
    layer: str
    cache_dir: Path
    batch_size: int
    report: Report

    def statistics(self) -> Statistics:
        """For FID: of the stats file where there is one, else of the images. Raises EvaluationError (RECIPE)."""
        if self.reference.stats is not None:
            return self._of_stats_file(self.reference.stats)
        stored = self._of_images("compute FID")
        return Statistics(mu=stored["mu"], sigma=stored["sigma"], root=stored["root"])

    def features(self) -> Tensor:
        """For KID: float32 (n, d) of the reference images. Raises EvaluationError (RECIPE)."""
        if self.reference.images is None and self.reference.stats is not None:
            raise recipe_error(
                "compute KID", "it needs reference images; mean and covariance are not enough", path=self.reference.stats,
                hint="set reference.images, or take kid out of the recipe's metrics", retryable=False,
            )
        return self._of_images("compute KID")["features"]

    def _of_stats_file(self, path: Path) -> Statistics:
        mu, sigma = read_stats(path, self.network.dimension(self.layer), f"{self.network.name}/{self.layer}")
        key = _digest([LAYOUT, "root", hashlib.sha256(mu.numpy().tobytes() + sigma.numpy().tobytes()).hexdigest()])
        cache = self.cache_dir / f"statistics-{key[:32]}.npz"
        stored = _load(cache, {"root": (2, np.float64)})
        if stored is not None and stored["root"].shape == sigma.shape:
            return Statistics(mu=mu, sigma=sigma, root=stored["root"])
        made = with_root(mu, sigma)
        _store(cache, {"root": made.root})
        return made

    def _of_images(self, purpose: str) -> dict[str, Tensor]:
        directory = self.reference.images
        if directory is None:
            raise recipe_error(
                purpose, "the recipe has no reference", hint="set reference.images (or, for FID alone, reference.stats)",
                retryable=False,
            )
        files = reference_images(directory)
        key = _digest([LAYOUT, contents_digest(files, self.cache_dir), self.network.name, self.layer, self.network.digest])
        cache = self.cache_dir / f"reference-{key[:32]}.npz"
        stored = _load(cache, {
            "mu": (1, np.float64), "sigma": (2, np.float64), "root": (2, np.float64), "features": (2, np.float32),
        })
        if stored is not None and len(stored["features"]) == len(files):
            return stored
        features = self._extract(files)
        made = statistics_of(features)
        values = {"mu": made.mu, "sigma": made.sigma, "root": made.root, "features": features}
        _store(cache, values)
        return values

    def _extract(self, files: Sequence[Path]) -> Tensor:
        found, done = [], 0
        self.report("loading", 0, len(files))
        for batch in read_batches(files, self.batch_size, _image_error, same_size=False):
            found.append(self.network.extract(batch)[self.layer])
            done += len(batch)
            self.report("loading", done, len(files))
        return torch.cat(found)


def reference_images(directory: Path) -> list[Path]:
    """The images of a reference directory. Raises EvaluationError (RECIPE) unless there are at least two."""
    try:
        files = list_images(directory)
    except OSError as error:
        raise recipe_error(
            "read reference images", error.strerror or str(error), path=directory,
            hint="reference.images must name a directory of png, jpg or webp files; is its disk mounted?",
        ) from error
    if len(files) < 2:
        raise recipe_error(
            "read reference images", f"found {len(files)} images, at least 2 are needed", path=directory,
            hint="png, jpg, jpeg and webp files directly in it count, those in directories below it do not",
        )
    return files


def read_stats(path: Path, dimension: int | None, layer: str) -> tuple[Tensor, Tensor]:
    """mu (d,) and sigma (d, d), float64, of an npz file, checked.

    `dimension` is the d of the network's layer, None where it is not known before images are. Raises EvaluationError
    (RECIPE) that names what was found and what is needed.
    """
    def problem(cause: str) -> EvaluationError:
        return recipe_error(
            "read reference statistics", cause, path=path, retryable=False,
            hint=f"needed is an npz with mu ({dimension or 'd'},) and sigma ({dimension or 'd'}, {dimension or 'd'}) "
                 f"of {layer} features",
        )

    try:
        with np.load(path, allow_pickle=False) as stored:
            lacking = [key for key in ("mu", "sigma") if key not in stored]
            if lacking:
                raise problem(f"no {' and no '.join(lacking)} in it; found: {', '.join(stored.files) or 'nothing'}")
            mu, sigma = stored["mu"], stored["sigma"]
    except EvaluationError:
        raise
    except FileNotFoundError as error:
        raise recipe_error(
            "read reference statistics", "no such file", path=path,
            hint="set reference.stats to an npz with mu and sigma; is its disk mounted?",
        ) from error
    except Exception as error:  # numpy and zipfile fail in many ways on files that are no npz
        raise problem(f"not an npz file of plain arrays ({type(error).__name__}: {str(error)[:200]})") from error
    cause = _flaw(mu, sigma, dimension, layer)
    if cause:
        raise problem(cause)
    return torch.from_numpy(mu.astype(np.float64)), torch.from_numpy(sigma.astype(np.float64))


def contents_digest(files: Sequence[Path], cache_dir: Path) -> str:
    """SHA-256 over names and bytes of files; remembered by their size, time and inode, for 50,000 are slow to read."""
    stats = [file.stat() for file in files]
    key = _digest([
        f"{file.name}\0{s.st_size}\0{s.st_mtime_ns}\0{s.st_ctime_ns}\0{s.st_ino}\0{s.st_dev}"
        for file, s in zip(files, stats, strict=True)
    ])
    memo = cache_dir / f"contents-{key[:32]}.txt"
    try:
        known = memo.read_text().strip()
        if len(known) == 64:
            return known
    except OSError:
        pass
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            total.update(f"{file.name}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\0".encode())
    _write_atomically(memo, lambda out: out.write(total.hexdigest().encode()))
    return total.hexdigest()


def _flaw(mu: np.ndarray, sigma: np.ndarray, dimension: int | None, layer: str) -> str:
    """What is wrong with statistics, or ""."""
    if mu.dtype.kind not in "fiu" or sigma.dtype.kind not in "fiu":
        return f"mu is {mu.dtype}, sigma is {sigma.dtype}, wanted real numbers"
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not len(mu):
        return f"mu has shape {mu.shape}, sigma {sigma.shape}"
    if dimension is not None and len(mu) != dimension:
        return f"mu has {len(mu)} values, the network gives {dimension} ({layer})"
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        return "it holds NaN or Inf"
    largest = float(np.abs(sigma).max())
    if float(np.abs(sigma - sigma.T).max()) > ASYMMETRY * largest:
        return "sigma is not symmetric"
    smallest = float(torch.linalg.eigvalsh(torch.from_numpy(sigma.astype(np.float64)))[0])
    return f"sigma has the negative eigenvalue {smallest:.3g}" if smallest < -NEGATIVE * largest else ""


def _image_error(operation: str, cause: str, **where: Any) -> EvaluationError:
    where["hint"] = "remove or replace the broken reference image"
    return recipe_error(operation, cause, **where)


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def _load(path: Path, wanted: dict[str, tuple[int, Any]]) -> dict[str, Tensor] | None:
    """Arrays of a cache file by name, or None when there is none or it is damaged in any way."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in wanted}  # zipfile checks the CRC on reading
    except Exception:  # whatever is wrong with it, it is only a cache
        return None
    for name, (ndim, dtype) in wanted.items():
        if found[name].ndim != ndim or found[name].dtype != dtype or not np.isfinite(found[name]).all():
            return None
    return {name: torch.from_numpy(value) for name, value in found.items()}


def _store(path: Path, values: dict[str, Tensor]) -> None:
    _write_atomically(path, lambda out: np.savez(out, **{name: value.numpy() for name, value in values.items()}))


def _write_atomically(path: Path, write: Any) -> None:
    """Temporary file, fsync, rename; a full disk is no reason to fail, the value is only not kept."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as out:
            write(out)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    except OSError as error:
        print(f"cache {path} not written: {error}", flush=True)
    finally:
        temporary.unlink(missing_ok=True)
