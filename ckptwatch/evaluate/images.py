"""Image files: finding them in natural order, decoding them to uint8 RGB, reading them batch by batch."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from ckptwatch.errors import EvaluationError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
DECODERS = min(4, os.cpu_count() or 1)  # Pillow decodes outside the interpreter lock; PNG 512² takes 9 ms a core

ErrorMaker = Callable[..., EvaluationError]
T = TypeVar("T")


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts "img_9.png" before "img_10.png"."""
    parts = re.split(r"([0-9]+)", name)
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], name


def list_images(directory: Path) -> list[Path]:
    """Image files directly in a directory, by name in natural order; hidden files are none. Raises OSError."""
    with os.scandir(directory) as entries:
        names = [e.name for e in entries if is_image(e.name) and e.is_file()]
    return [directory / name for name in sorted(names, key=natural_key)]


def is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def decode(path: Path) -> Tensor:
    """One image as uint8 (3, H, W), RGB. Alpha is dropped, as torch-fidelity does. Raises OSError or ValueError, also for
    a file that ends too early."""
    # A module of the user's in this process may have switched it on; half a file would then pass for a grey picture.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(path) as image:
            pixels = np.array(_to_rgb(image))
    except (Image.DecompressionBombError, SyntaxError, EOFError) as error:  # Pillow's other ways to say "broken"
        raise ValueError(str(error)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def encode(image: Tensor) -> Image.Image:
    """A Pillow image of uint8 (3, H, W)."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def read_batches(
    paths: Sequence[Path], batch_size: int, problem: ErrorMaker, *, same_size: bool = True,
) -> Iterator[Tensor]:
    """The images as uint8 (n, 3, H, W) with n ≤ batch_size, in order, never more than two batches in memory.

    With `same_size` all must have one size; without it a batch ends where the size changes. Raises what `problem`
    makes (called as `problem(operation, cause, path=…, hint=…)`) and names the file that cannot be read.
    """
    def load(path: Path) -> Tensor:
        try:
            return decode(path)
        except (OSError, ValueError) as error:
            raise unreadable(path, error, problem) from error

    sizes = OneSize(problem)
    chunks = [paths[i:i + batch_size] for i in range(0, len(paths), batch_size)]
    for chunk, images in read_ahead(chunks, load):
        if same_size:
            for path, image in zip(chunk, images, strict=True):
                sizes.check(path, image)
        for run in _runs_of_one_size(images):
            yield torch.stack(run)


def read_ahead(chunks: Iterable[Sequence[T]], load: Callable[[T], Tensor]) -> Iterator[tuple[Sequence[T], list[Tensor]]]:
    """Each chunk with what `load` made of its elements, in threads; the next chunk is loaded while the caller works on
    this one. Raises what `load` raises."""
    pool = ThreadPoolExecutor(DECODERS)
    waiting: list[tuple[Sequence[T], list[Future[Tensor]]]] = []
    try:
        for chunk in chunks:
            waiting.append((chunk, [pool.submit(load, element) for element in chunk]))
            if len(waiting) == 2:
                yield _finished(*waiting.pop(0))
        for chunk, futures in waiting:
            yield _finished(chunk, futures)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class OneSize:
    """All generated images of one checkpoint must have one size: remembers the first, and raises for another."""

    def __init__(self, problem: ErrorMaker) -> None:
        self._problem = problem
        self._first: tuple[Path, torch.Size] | None = None

    def check(self, path: Path, images: Tensor) -> None:
        """`images` (…, 3, H, W) came from `path`. Raises what `problem` makes, with both names."""
        size = images.shape[-2:]
        self._first = self._first or (path, size)
        first, wanted = self._first
        if size != wanted:
            raise self._problem(
                "score images", f"mixed sizes: {first.name} is {size_text(wanted)}, {path.name} is {size_text(size)}",
                path=path.parent, hint="all generated images of one checkpoint must have the same size",
            )


def unreadable(path: Path, error: Exception, problem: ErrorMaker) -> EvaluationError:
    """The error about a file that cannot be decoded."""
    return problem(
        "read image", f"{type(error).__name__}: {error}", path=path,
        hint="it is truncated, or no image at all; look at the log of the sampler",
    )


def size_text(shape: Sequence[int]) -> str:
    """Width × height of (…, H, W) as people write it."""
    return f"{shape[-1]}×{shape[-2]}"


def _finished(chunk: Sequence[T], futures: list[Future[Tensor]]) -> tuple[Sequence[T], list[Tensor]]:
    return chunk, [future.result() for future in futures]


def _runs_of_one_size(images: list[Tensor]) -> Iterator[list[Tensor]]:
    run: list[Tensor] = []
    for image in images:
        if run and image.shape != run[0].shape:
            yield run
            run = []
        run.append(image)
    if run:
        yield run


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit grey at 255 and would make nearly every such image white.
        wide = np.array(image).astype(np.int64)
        scaled = (wide >> 8) if image.mode != "I" or wide.max(initial=0) > 255 else wide
        return Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point image: its range is unknown, save 8-bit RGB")
    return image.convert("RGB")
