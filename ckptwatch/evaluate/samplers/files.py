"""Generated images that lie on disk, all of them."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ckptwatch.evaluate.failures import sampler_error
from ckptwatch.evaluate.images import OneSize, is_image, natural_key, read_ahead, unreadable
from ckptwatch.evaluate.samplers.base import Batch, Request
from ckptwatch.evaluate.samplers.stored import Piece, count_images, is_array


@dataclass(frozen=True)
class Found:
    """Files of a directory, in natural order, with the number of images in each."""

    files: tuple[tuple[Path, int], ...]

    @property
    def total(self) -> int:
        return sum(count for _, count in self.files)

    def pieces(self, start: int, stop: int, batch_size: int) -> Iterator[list[Piece]]:
        """Images `start` up to, not including, `stop`: one list per batch."""
        chunk: list[Piece] = []
        skip, room = start, batch_size
        for path, count in self.files:
            row = min(skip, count)
            skip -= row
            while row < count and start < stop:
                step = min(count - row, room, stop - start)
                chunk.append(Piece(path, range(row, row + step)))
                row, room, start = row + step, room - step, start + step
                if not room or start == stop:
                    yield chunk
                    chunk, room = [], batch_size


def names_of_files(directory: Path) -> list[str]:
    """Image files or arrays directly in a directory, in no order; hidden files and other suffixes are none.

    Raises OSError; EvaluationError (SAMPLER) where it has both kinds.
    """
    with os.scandir(directory) as entries:
        names = [e.name for e in entries if is_stored(e.name) and e.is_file()]
    image = next((name for name in names if is_image(name)), None)
    array = next((name for name in names if not is_image(name)), None)
    if image is not None and array is not None:
        raise sampler_error(
            "read generated images", f"it has image files ({image}) and arrays ({array})", path=directory, retryable=False,
            hint="write either png, jpg or webp files, or .npy files: their order would be a guess",
        )
    return names


def is_stored(name: str) -> bool:
    """Is a file of this name one of generated images?"""
    return is_image(name) or (not name.startswith(".") and is_array(name))


def find_files(directory: Path) -> Found:
    """The generated images of a directory. Raises OSError where there is none; EvaluationError (SAMPLER) for an array that
    is not whole or no batch of images, and where it has both image files and arrays."""
    paths = [directory / name for name in sorted(names_of_files(directory), key=natural_key)]
    return Found(tuple((path, _count(path)) for path in paths))


class FileSource:
    """A Source that reads image files or arrays which nobody writes any more.

    The range's first image is `found`'s image number `first`. `name` gives an image file's stem.
    """

    stage = "scoring"

    def __init__(
        self, found: Found, request: Request, *, first: int = 0, name: Callable[[Path], str] = lambda path: path.stem,
        sizes: OneSize | None = None,
    ) -> None:
        self._found = found
        self._request = request
        self._first = first
        self._name = name
        self._sizes = sizes

    def batches(self, done: int = 0) -> Iterator[Batch]:
        """All but the first `done`, which is a multiple of the batch size."""
        first, request = self._first, self._request
        sizes = self._sizes or OneSize(sampler_error)
        for chunk, images in read_ahead(self._found.pieces(first + done, first + request.count, request.batch_size), _load):
            batch = join(request.start + done, chunk, images, sizes, self._name)
            done += len(batch)
            yield batch


def join(
    start: int, chunk: Sequence[Piece], images: Sequence[Tensor], sizes: OneSize, name: Callable[[Path], str],
) -> Batch:
    """The batch that pieces make. Raises EvaluationError (SAMPLER) for mixed sizes."""
    for piece, part in zip(chunk, images, strict=True):
        sizes.check(piece.path, part)
    stems = None if is_array(chunk[0].path.name) else tuple(name(piece.path) for piece in chunk)
    return Batch(start, torch.cat(list(images)), stems)


def _count(path: Path) -> int:
    try:
        return count_images(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error, sampler_error) from error


def _load(piece: Piece) -> Tensor:
    try:
        return piece.read()
    except (OSError, ValueError) as error:
        raise unreadable(piece.path, error, sampler_error) from error
