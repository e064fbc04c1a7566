"""Files that hold generated images: how many, which, and whether they are still what they were."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ckptwatch.evaluate.images import decode
from ckptwatch.evaluate.samplers import arrays
from ckptwatch.watch.writers import has_writer


@dataclass(frozen=True)
class Mark:
    """What changes when a file is written again or exchanged."""

    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class Piece:
    """Consecutive images of one file."""

    path: Path
    rows: range = range(1)  # of an array; an image file has one

    def __len__(self) -> int:
        return len(self.rows)

    def read(self) -> Tensor:
        """uint8 (n, 3, H, W). Raises OSError or ValueError for a file that is not whole."""
        return arrays.read_rows(self.path, self.rows) if is_array(self.path.name) else decode(self.path)[None]

    def read_unchanged(self, mark: Mark) -> Tensor:
        """As `read`; ValueError also when the file is not the one that `mark` is of, or is written, before or afterwards."""
        if mark_of(self.path) != mark or may_be_written(self.path):
            raise ValueError("it has changed")
        images = self.read()
        if mark_of(self.path) != mark or may_be_written(self.path):
            raise ValueError("it changed while it was read")
        return images


def mark_of(path: Path) -> Mark:
    """Raises OSError."""
    facts = path.stat()
    return Mark(size=facts.st_size, mtime_ns=facts.st_mtime_ns, inode=facts.st_ino)


def may_be_written(path: Path) -> bool:
    """May somebody be writing to the file? Raises OSError.

    An array may have its full length from the start and be filled through a map, which leaves no time behind: where the
    kernel cannot tell who has it open, somebody may. Half an image file does not decode, so there nobody does.
    """
    writer = has_writer(path.resolve())  # which takes no links
    return writer is not False if is_array(path.name) else writer is True


def is_array(name: str) -> bool:
    return name.lower().endswith(arrays.SUFFIX)


def count_images(path: Path) -> int:
    """Images in a file. Raises OSError or ValueError for an array that is not whole, UnfitArrayError for no images."""
    return arrays.read_header(path).count if is_array(path.name) else 1
