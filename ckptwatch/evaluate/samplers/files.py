"""Generated images that lie on disk."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from ckptwatch.evaluate.failures import sampler_error
from ckptwatch.evaluate.images import read_batches


class FileSource:
    """A Source that reads image files in the order given."""

    stage = "scoring"

    def __init__(self, paths: list[Path], batch_size: int) -> None:
        self._paths = paths
        self._batch_size = batch_size
        self.stems: tuple[str, ...] | None = tuple(p.stem for p in paths)

    def batches(self) -> Iterator[Tensor]:
        return read_batches(self._paths, self._batch_size, sampler_error)
