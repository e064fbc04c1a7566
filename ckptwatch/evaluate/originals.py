"""The originals that generated images are compared with one by one (LPIPS, comparison pictures)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import recipe_error
from ckptwatch.evaluate.images import decode, encode, list_images, size_text
from ckptwatch.evaluate.samplers.base import Warn
from ckptwatch.model import Reference


class Originals:
    """A directory of originals, one for each sample.

    Paired by file stem when every generated stem exists among them, else by natural order. Raises EvaluationError
    (RECIPE): no directory, fewer originals than samples, unreadable original.
    """

    def __init__(self, reference: Reference, count: int, warn: Warn) -> None:
        self._directory = reference.paired or reference.images
        self._count = count
        self._warn = warn
        self._resized = False
        self._files = self._find()
        self._pairs = self._files[:count]

    def bind(self, stems: Sequence[str] | None) -> None:
        """Settles the pairs once the names of the generated images are known (None: they have no names)."""
        by_stem: dict[str, Path] = {}
        for file in self._files:
            by_stem.setdefault(file.stem, file)
        if stems is not None and all(stem in by_stem for stem in stems):
            self._pairs = [by_stem[stem] for stem in stems]

    def for_images(self, start: int, images: Tensor) -> Tensor:
        """uint8 (n, 3, H, W): the originals of samples `start`…, resized (bicubic) to the size of `images`."""
        return torch.stack([self._read(file, images) for file in self._pairs[start:start + len(images)]])

    def _find(self) -> list[Path]:
        if self._directory is None:
            raise self._problem("the recipe names none", None)
        try:
            files = list_images(self._directory)
        except OSError as error:
            raise self._problem(error.strerror or str(error), self._directory) from error
        if len(files) < self._count:
            raise self._problem(f"{len(files)} originals for {self._count} samples", self._directory)
        return files

    def _read(self, file: Path, images: Tensor) -> Tensor:
        try:
            original = decode(file)
        except (OSError, ValueError) as error:
            raise self._problem(f"{type(error).__name__}: {error}", file) from error
        if original.shape[1:] == images.shape[2:]:
            return original
        if not self._resized:
            self._resized = True
            self._warn(
                f"originals ({file.name}: {size_text(original.shape)}) are resized to the generated "
                f"{size_text(images.shape)}, bicubic",
            )
        height, width = images.shape[2:]
        resized = encode(original).resize((width, height), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()

    def _problem(self, cause: str, path: Path | None) -> EvaluationError:
        return recipe_error(
            "pair images with originals", cause, path=path,
            hint="reference.paired (or reference.images) must hold one original per sample; or lower `samples`",
        )
