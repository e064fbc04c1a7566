"""Files with mean and covariance of a reference set, as other programs write them: read without trusting them, and checked.

What of a file is read, and how much memory that takes, is decided from the headers of its arrays.
"""

import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import recipe_error
from ckptwatch.evaluate.stats_pickle import Stored, read_pickle
from ckptwatch.formats.reading import open_regular
from ckptwatch.formats.zip_directory import read_directory

LARGEST = 8192      # features; a covariance of more takes more than 512 MiB
ASYMMETRY = 1e-5    # of sigma, relative to its largest entry: what float32 storage leaves
NEGATIVE = 1e-5     # smallest eigenvalue over largest: float32 storage leaves 3e-6 at d = 2048; more is no covariance
BELOW_ZERO = 1e-6   # of mu, relative to its largest entry: below minus this it is no mean of numbers from 0 up
LONGEST_NAME = 4096  # bytes of an array that may name a network
NAMING = ("network", "extractor", "feature_extractor", "model")  # entries by which files say what network they are of
# Layers whose values are never negative: ReLU outputs, and averages of them.
NON_NEGATIVE = frozenset({
    *(("inception-v3-compat", layer) for layer in ("64", "192", "768", "2048")), ("vgg16", "fc2_relu"),
})
EDM2 = {"inception": "fid", "dinov2": "fd_dinov2"}  # network → key of its statistics in a file of EDM2


def read_stats(path: Path, *, network: str, layer: str, dimension: int | None) -> tuple[Tensor, Tensor]:
    """mu (d,) and sigma (d, d), float64, of a file of statistics, for a layer of a network.

    Accepted, told by content: npz files with `mu` and `sigma` (pytorch-fid, clean-fid, JiT, EDM, guided-diffusion; other
    entries, such as `arr_0` or `mu_s`, are not read), and pickles of numpy arrays, which are read without running anything
    in them: `{"mu": …, "sigma": …}`, or EDM2's `{"fid": {"mu": …, "sigma": …}, "fd_dinov2": {…}}`, of which the entry of the
    network is taken. Numbers may be float32 or float64.

    `dimension` is the d of the layer, None where it is not known before images are. Where a file names its network, in a
    text `network`, `extractor`, `feature_extractor` or `model`, or by EDM2's keys, it must be this one; and the mean of a
    layer that is never negative must not be.

    Raises EvaluationError (RECIPE) that names what was found and what is needed; not retryable, unless the file is missing
    or cannot be read.
    """
    d = dimension or "d"

    def problem(cause: str) -> EvaluationError:
        return recipe_error(
            "read reference statistics", cause, path=path, retryable=False,
            hint=f"needed is an npz or an EDM2 pkl with mu ({d},) and sigma ({d}, {d}) of {network}/{layer} features",
        )

    try:
        with np.errstate(all="ignore"):
            mu, sigma = _read(path, network, dimension, f"{network}/{layer}")
            if cause := _flaw(mu, sigma, (network, layer)):
                raise ValueError(cause)
            return torch.from_numpy(mu), torch.from_numpy(sigma)
    except OSError as error:
        if path.exists() and not path.is_file():
            raise problem("it is a directory" if path.is_dir() else "it is no plain file") from error
        missing = isinstance(error, FileNotFoundError)
        raise recipe_error(
            "read reference statistics", "no such file" if missing else error.strerror or str(error), path=path,
            hint="set reference.stats to a file with mu and sigma; is its disk mounted?",
        ) from error
    except ValueError as error:
        raise problem(str(error)) from error


# ---- what is in a file ----------------------------------------------------------------------------------------------


def _read(path: Path, network: str, dimension: int | None, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """float64. Raises OSError; ValueError, in words."""
    with open_regular(path) as file:
        begin = file.read(6)
        if begin.startswith(b"PK"):
            records = {r.filename.removesuffix(".npy"): r for r in read_directory(file)}
            try:
                with zipfile.ZipFile(file) as archive:
                    return _chosen(_Npz(archive, records), network, dimension, layer)
            except (ValueError, OSError, MemoryError):
                raise
            except Exception as error:  # zipfile, zlib and numpy fail in many ways on bytes that are no npz
                raise ValueError(f"not an npz file of plain arrays ({_words(error)})") from error
    if not begin.startswith(b"\x80"):
        kind = "an empty file" if not begin else "a single array" if begin == b"\x93NUMPY" else "some other file"
        raise ValueError(f"neither an npz file nor a pickle, but {kind}")
    tree = read_pickle(path)
    if not isinstance(tree, dict):
        raise ValueError("a pickle of something else than a dict")
    return _chosen(_of_network(tree, network), network, dimension, layer)


class _Npz(Mapping[str, Any]):
    """The arrays of an npz file, whose headers are read when they are asked for."""

    def __init__(self, archive: zipfile.ZipFile, records: Mapping[str, zipfile.ZipInfo]) -> None:
        self._archive, self._records = archive, records

    def __getitem__(self, name: str) -> Stored:
        record = self._records[name]
        with self._archive.open(record) as member:
            shape, fortran, dtype = _header(member, name)
            begin = member.tell()
        return Stored(shape, dtype, lambda: self._numbers(record, begin, shape, dtype, fortran))

    def __contains__(self, name: object) -> bool:
        return name in self._records

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def _numbers(
        self, record: zipfile.ZipInfo, begin: int, shape: tuple[int, ...], dtype: np.dtype, fortran: bool,
    ) -> np.ndarray:
        size = dtype.itemsize * math.prod(shape)
        with self._archive.open(record) as member:
            member.read(begin)
            data = member.read(size)
            more = member.read(1)  # at its end zipfile compares the CRC
        if len(data) != size or more:
            raise ValueError(f"{record.filename[:40]} does not hold the {size:,} bytes of data that its header says")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _header(member: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Only the first version: its length has two bytes, and so cannot ask for much. numpy writes others for what is no
    array of numbers."""
    try:
        if np.lib.format.read_magic(member) == (1, 0):
            return np.lib.format.read_array_header_1_0(member)
    except Exception as error:  # numpy, and what it parses the header with, fail in many ways on bytes that are none
        raise ValueError(f"{name} has a broken header ({_words(error)})") from error
    raise ValueError(f"{name} is no plain array")


def _of_network(tree: Mapping[str, Any], network: str) -> Mapping[str, Any]:
    """The entry of EDM2's file that is the network's; any other dict as it is."""
    entries = {key: tree[key] for key in EDM2.values() if isinstance(tree.get(key), Mapping)}
    if not entries:
        return tree
    wanted = EDM2.get(_family(network), "")
    if wanted not in entries:
        raise ValueError(f"it has statistics for {' and '.join(entries)}, none of {network}")
    return entries[wanted]


def _chosen(
    entries: Mapping[str, Any], network: str, dimension: int | None, layer: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Raises ValueError before anything large is read, where names, shapes or types tell that it will not do."""
    if lacking := [key for key in ("mu", "sigma") if key not in entries]:
        names = [str(name)[:40] for name in list(entries)[:8]]
        raise ValueError(f"no {' and no '.join(lacking)} in it; found: {', '.join(names) or 'nothing'}")
    for key in NAMING:
        said = _text(entries[key]) if key in entries else ""
        if said and _family(said) != _family(network):
            raise ValueError(f"its {key!r} says that it is of {said[:80]!r}, wanted is {network}")
    mu, sigma = entries["mu"], entries["sigma"]
    if not (isinstance(mu, Stored) and isinstance(sigma, Stored)):
        raise ValueError("its mu and sigma are no arrays")
    if any(a.dtype.kind != "f" or a.dtype.itemsize not in (4, 8) for a in (mu, sigma)):
        raise ValueError(f"mu is {mu.dtype}, sigma is {sigma.dtype}, wanted real numbers, float32 or float64")
    if len(mu.shape) != 1 or sigma.shape != (*mu.shape, *mu.shape) or mu.shape[0] < 1:
        raise ValueError(f"mu has shape {mu.shape}, sigma {sigma.shape}")
    if dimension is not None and mu.shape[0] != dimension:
        raise ValueError(f"mu has {mu.shape[0]} values, the network gives {dimension} ({layer})")
    if mu.shape[0] > LARGEST:
        raise ValueError(f"mu has {mu.shape[0]:,} values, more than any network gives")
    return mu.read().astype(np.float64), sigma.read().astype(np.float64)


def _text(value: Any) -> str:
    """A short text, plain or as an array of one; "" for anything else."""
    if isinstance(value, str):
        return value[:LONGEST_NAME].strip()
    if not isinstance(value, Stored) or value.dtype.kind not in "US" or value.shape not in ((), (1,)):
        return ""
    if value.dtype.itemsize > LONGEST_NAME:
        return ""
    found = value.read().reshape(-1)[0]
    return (found.decode(errors="replace") if isinstance(found, bytes) else str(found)).strip()


def _family(network: str) -> str:
    """One word for all names of a network: torch-fidelity says inception-v3-compat, others inception, InceptionV3,
    inception_v3_compat. Sizes of DINOv2 differ in their number of features."""
    plain = re.sub(r"[^a-z0-9]", "", network.lower())
    if re.fullmatch(r"(?:pt|fid|tf)?inception(?:v3)?(?:compat|20151205|pool3|fid|tf|w)*", plain):
        return "inception"
    return "dinov2" if "dinov2" in plain else plain


# ---- is it a mean and a covariance ----------------------------------------------------------------------------------


def _flaw(mu: np.ndarray, sigma: np.ndarray, place: tuple[str, str]) -> str:
    """What is wrong with statistics, or ""."""
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        return "it holds NaN or Inf"
    largest = float(np.abs(sigma).max())
    if float(np.abs(sigma - sigma.T).max()) > ASYMMETRY * largest:
        return "sigma is not symmetric"
    lowest = float(mu.min())
    if place in NON_NEGATIVE and lowest < -BELOW_ZERO * float(np.abs(mu).max()):
        return f"its mean goes down to {lowest:.3g}, while {'/'.join(place)} is never negative: it is of another network"
    eigenvalues = torch.linalg.eigvalsh(torch.from_numpy(sigma))
    smallest, greatest = float(eigenvalues[0]), float(eigenvalues[-1])
    return f"sigma has the negative eigenvalue {smallest:.3g}" if smallest < -NEGATIVE * greatest else ""


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
