"""Image files: finding them in natural order, decoding them to uint8 RGB, reading them batch by batch."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ckptwatch.errors import EvaluationError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
DECODERS = min(4, os.cpu_count() or 1)  # Pillow decodes outside the interpreter lock; PNG 512² takes 9 ms a core

ErrorMaker = Callable[..., EvaluationError]


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
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def decode(path: Path) -> Tensor:
    """One image as uint8 (3, H, W), RGB. Alpha is dropped, as torch-fidelity does. Raises OSError or ValueError."""
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
    first: tuple[Path, torch.Size] | None = None
    for chunk in _decoded(paths, batch_size, problem):
        for path, image in chunk:
            first = first or (path, image.shape)
            if same_size and image.shape != first[1]:
                raise problem(
                    "score images", f"mixed sizes: {first[0].name} is {size_text(first[1])}, "
                    f"{path.name} is {size_text(image.shape)}", path=path.parent,
                    hint="all generated images of one checkpoint must have the same size",
                )
        for run in _runs_of_one_size([image for _, image in chunk]):
            yield torch.stack(run)


def size_text(shape: Sequence[int]) -> str:
    """Width × height of (…, H, W) as people write it."""
    return f"{shape[-1]}×{shape[-2]}"


def _decoded(
    paths: Sequence[Path], batch_size: int, problem: ErrorMaker,
) -> Iterator[list[tuple[Path, Tensor]]]:
    """Chunks of decoded images; the next chunk is decoded while the caller works on this one."""
    def load(path: Path) -> Tensor:
        try:
            return decode(path)
        except (OSError, ValueError) as error:
            raise problem(
                "read image", f"{type(error).__name__}: {error}", path=path,
                hint="it is truncated, or no image at all; look at the log of the sampler",
            ) from error

    chunks = [paths[i:i + batch_size] for i in range(0, len(paths), batch_size)]
    pool = ThreadPoolExecutor(DECODERS)
    try:
        ahead = [pool.submit(load, p) for p in chunks[0]] if chunks else []
        for number, chunk in enumerate(chunks):
            current = ahead
            following = chunks[number + 1] if number + 1 < len(chunks) else []
            ahead = [pool.submit(load, p) for p in following]
            yield [(path, future.result()) for path, future in zip(chunk, current, strict=True)]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
