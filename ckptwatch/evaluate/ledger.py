"""What was measured of the images of one evaluation: by key, one row per image, in index order, on disk.

Rows lie in files because there may be 50,000 of 2048 numbers: memory is to grow with the networks, not with the samples.
A part of an evaluation that several workers share writes a ledger of its own; merged, they read like one.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import metric_error
from ckptwatch.evaluate.metrics.statistics import Moments, moments_of
from ckptwatch.model import FailureKind

MANIFEST = "ledger.json"
BLOCK = 2048  # rows at a time, 16 MB of 2048 numbers
_DTYPES = {"float32": np.dtype("<f4"), "float64": np.dtype("<f8")}


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The rows of one key in one file."""

    file: Path
    count: int
    width: int
    dtype: str  # "float32" or "float64"


class Rows:
    """The rows of one key: (n, width), from one file or several, in order."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = tuple(s for s in segments if s.count)
        self.width = segments[0].width

    def __len__(self) -> int:
        return sum(s.count for s in self._segments)

    def blocks(self, size: int = BLOCK) -> Iterator[Tensor]:
        """(≤ size, width) at a time, read, not mapped: mapped pages would count as memory of this process."""
        for segment in self._segments:
            dtype = _DTYPES[segment.dtype]
            with segment.file.open("rb") as file:
                for begin in range(0, segment.count, size):
                    wanted = min(size, segment.count - begin) * segment.width
                    block = np.fromfile(file, dtype=dtype, count=wanted)
                    if len(block) != wanted:
                        raise _torn(segment)
                    yield torch.from_numpy(block.reshape(-1, segment.width))

    def tensor(self) -> Tensor:
        """All of them, (n, width). Mapped where they lie in one file: the kernel may drop the pages again."""
        if len(self._segments) == 1:
            return _mapped(self._segments[0])
        return torch.cat(list(self.blocks()))

    def column(self) -> Tensor:
        """The rows of a key that has one number per image, float64 (n,)."""
        return torch.cat(list(self.blocks()))[:, 0].double()

    def take(self, indices: np.ndarray) -> Tensor:
        """(k, width): the rows of these indices, in their order; no others are held in memory."""
        found = np.empty((len(indices), self.width), dtype=_DTYPES[self._segments[0].dtype])
        begin = 0
        for segment in self._segments:
            here = (indices >= begin) & (indices < begin + segment.count)
            found[here] = _mapped(segment).numpy()[indices[here] - begin]
            begin += segment.count
        return torch.from_numpy(found)


class Ledger:
    """Rows by key. Either open for writing, or, made by `merged`, a view of finished ones.

    The directory must be empty. Raises EvaluationError (METRIC) for rows that are not finite, and OSError.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.pairing = ""        # how images found their originals: "stem", "order", "" without any
        self.warnings: tuple[str, ...] = ()
        self.networks: Mapping[str, str] = {}  # name → digest of what looked, precision included
        self._directory = directory
        self._open: dict[str, _Writer] = {}
        self._segments: dict[str, tuple[Segment, ...]] = {}
        self._moments: dict[str, Moments] = {}

    def append(self, rows: Mapping[str, Tensor]) -> None:
        """By key (n, d), or (n,) for one number per image: float32 or float64, on the CPU."""
        for key, values in rows.items():
            if not bool(torch.isfinite(values).all()):
                raise metric_error(
                    "measure images", f"{key} is not finite for some of them", retryable=False,
                    hint="the network overflows on these images: look at the samples, and at networks.precision",
                )
            self._writer(key, values).write(values)

    def rows(self, key: str) -> Rows:
        if key in self._open:
            return Rows((self._open[key].segment(),))
        return Rows(self._segments[key])

    def moments(self, key: str) -> Moments | None:
        """Merged from the parts, where each had them computed; else None."""
        return self._moments.get(key)

    def save(self, moments_of_keys: Sequence[str]) -> None:
        """Finishes a part: what `merged` needs, the moments of these keys among it."""
        assert self._directory is not None
        kept = {key: moments_of(self.rows(key).blocks()) for key in moments_of_keys}
        for number, found in enumerate(kept.values()):
            np.savez(self._directory / f"moments-{number}.npz", n=found.n, mean=found.mean, scatter=found.scatter)
        segments = {key: writer.segment() for key, writer in self._open.items()}
        document = {
            "keys": {k: [s.file.name, s.count, s.width, s.dtype] for k, s in segments.items()},
            "moments": list(kept), "pairing": self.pairing, "warnings": list(self.warnings),
            "networks": dict(self.networks),
        }
        (self._directory / MANIFEST).write_text(json.dumps(document))
        for writer in self._open.values():
            writer.close()

    @classmethod
    def merged(cls, directories: Sequence[Path]) -> "Ledger":
        """Of finished parts, in the order of their samples. Raises EvaluationError if they do not fit together."""
        whole = cls()
        parts = [_Part.read(directory) for directory in directories]
        # A part that read no originals, for comparison pictures of the first samples only, has no pairing.
        pairings = {part.pairing for part in parts} - {""}
        if len(pairings) > 1:
            raise metric_error(
                "merge parts of an evaluation", "one paired images with originals by name, another by order",
                hint="name every generated image like its original, or none; or set the recipe's `workers` to 1, "
                     "which pairs all by order", retryable=False,
            )
        if any(part.networks != parts[0].networks for part in parts):
            raise metric_error(
                "merge parts of an evaluation",
                "networks ran in other precisions, or had other weights, in one part than in another",
                hint="parts need like devices: look at networks.precision and at the weights of each machine",
            )
        whole.pairing, whole.networks = next(iter(pairings), ""), parts[0].networks
        whole.warnings = tuple(dict.fromkeys(w for part in parts for w in part.warnings))
        for key in parts[0].keys:
            whole._segments[key] = tuple(part.keys[key] for part in parts)
        for key in parts[0].moments:
            total = parts[0].moments[key]
            for part in parts[1:]:
                total = total.merged(part.moments[key])
            whole._moments[key] = total
        return whole

    def _writer(self, key: str, values: Tensor) -> "_Writer":
        if key not in self._open:
            assert self._directory is not None
            file = self._directory / f"rows-{len(self._open)}.bin"
            width = 1 if values.ndim == 1 else values.shape[1]
            self._open[key] = _Writer(file, width, str(values.dtype).removeprefix("torch."))
        return self._open[key]


class _Writer:
    def __init__(self, file: Path, width: int, dtype: str) -> None:
        self._path = file
        self._width = width
        self._dtype = dtype
        self._count = 0
        self._file: BinaryIO = file.open("xb")

    def write(self, values: Tensor) -> None:
        rows = values.reshape(len(values), -1)
        if rows.shape[1] != self._width:
            raise metric_error("measure images", f"{rows.shape[1]} numbers per image, before it were {self._width}")
        self._file.write(np.ascontiguousarray(rows.numpy(), dtype=_DTYPES[self._dtype]).data)
        self._count += len(rows)

    def close(self) -> None:
        self._file.close()

    def segment(self) -> Segment:
        if not self._file.closed:
            self._file.flush()
        return Segment(file=self._path, count=self._count, width=self._width, dtype=self._dtype)


@dataclass(frozen=True, kw_only=True)
class _Part:
    keys: Mapping[str, Segment]
    moments: Mapping[str, Moments] = field(default_factory=dict)
    pairing: str = ""
    warnings: tuple[str, ...] = ()
    networks: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "_Part":
        raw = json.loads((directory / MANIFEST).read_text())
        moments = {}
        for number, key in enumerate(raw["moments"]):
            with np.load(directory / f"moments-{number}.npz", allow_pickle=False) as stored:
                moments[key] = Moments(n=int(stored["n"]), mean=torch.from_numpy(stored["mean"]),
                                       scatter=torch.from_numpy(stored["scatter"]))
        return cls(
            keys={k: Segment(file=directory / file, count=count, width=width, dtype=dtype)
                  for k, (file, count, width, dtype) in raw["keys"].items()},
            moments=moments, pairing=raw["pairing"], warnings=tuple(raw["warnings"]), networks=raw["networks"],
        )


def _mapped(segment: Segment) -> Tensor:
    if segment.file.stat().st_size < segment.count * segment.width * _DTYPES[segment.dtype].itemsize:
        raise _torn(segment)
    mapped = np.memmap(segment.file, dtype=_DTYPES[segment.dtype], mode="c", shape=(segment.count, segment.width))
    return torch.from_numpy(mapped)


def _torn(segment: Segment) -> EvaluationError:
    return EvaluationError(
        "read what was measured", "the file is shorter than what was written to it", path=segment.file,
        kind=FailureKind.INTERNAL, hint="is the disk of the state directory full?",
    )
