"""The originals that generated images are compared with one by one (LPIPS, comparison pictures)."""

from collections.abc import Hashable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import recipe_error
from ckptwatch.evaluate.images import decode, encode, list_images, size_text
from ckptwatch.evaluate.reference_cache import contents_digest
from ckptwatch.evaluate.samplers.base import Batch, OrderChangedError, Warn
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
        self._by_stem: dict[str, Path] = {}
        for file in self._files:
            self._by_stem.setdefault(file.stem, file)
        self._first: int | None = None  # where reading begins
        self._foreign = False           # a generated image has a name that no original has
        self._pairing = ""

    @property
    def pairing(self) -> str:
        """"stem" or "order", as the batches so far decided; "" before the first one."""
        return self._pairing

    def for_batch(self, batch: Batch) -> Tensor:
        """uint8 (n, 3, H, W): the originals of a batch's images, resized (bicubic) to their size.

        The first batch decides how they are paired. Raises OrderChangedError when a later one shows that the names do not
        pair all: read again from the beginning, all are paired by order.
        """
        return torch.stack([self._read(file, batch.images) for file in self.files(batch)])

    def files(self, batch: Batch) -> list[Path]:
        """The originals of a batch's images. Raises OrderChangedError as `for_batch` does."""
        known = batch.stems is not None and all(stem in self._by_stem for stem in batch.stems)
        if self._first in (None, batch.start):
            self._first = batch.start
            self._pairing = "stem" if known and not self._foreign else "order"
        if self._pairing == "order":
            return self._files[batch.start:batch.start + len(batch)]
        if not known:
            self._foreign = True
            stems = batch.stems or ("",)
            raise OrderChangedError(
                f"no original is named {next(s for s in stems if s not in self._by_stem)!r}, so images and originals are "
                f"paired by order",
            )
        return [self._by_stem[stem] for stem in batch.stems or ()]

    def stamp(self, batch: Batch) -> Hashable:
        """Changes when the originals of these images are others, or have changed. Raises as `for_batch` does."""
        try:
            facts = [(file, file.stat()) for file in self.files(batch)]
        except OSError as error:
            raise self._problem(error.strerror or str(error), Path(error.filename)) from error
        return tuple((str(file), s.st_size, s.st_mtime_ns, s.st_ino) for file, s in facts)

    def identity(self, cache_dir: Path) -> str:
        """Which originals these are, by content, in words for the definition of a score. Raises as `for_batch` does."""
        try:
            return f"originals {contents_digest(self._files, cache_dir)[:8]}"
        except OSError as error:
            raise self._problem(error.strerror or str(error), self._directory) from error

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
