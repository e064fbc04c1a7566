"""Images in `.npy` files: uint8 (n, H, W, 3) or (n, 3, H, W), read row by row, so that a file may be larger than memory."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
_LONGEST = 10_000  # bytes of a header, as numpy has it
_KIND = re.compile(r"""['"]descr['"]\s*:\s*(['"][^'"]*['"]|\[.*?\])""", re.DOTALL)
_FORTRAN = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(([0-9,\s]*)\)""")


class UnfitArrayError(ValueError):
    """The array is no batch of images, and more bytes will not make it one."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the first bytes of a whole file say."""

    shape: tuple[int, int, int, int]
    channels_last: bool
    offset: int  # bytes before the first image

    @property
    def count(self) -> int:
        return self.shape[0]


def read_header(path: Path) -> Header:
    """Raises OSError; UnfitArrayError for another type or shape; ValueError while the file is not as long as it says."""
    with path.open("rb") as file:
        return _header(file)


def read_rows(path: Path, rows: range) -> Tensor:
    """Images `rows` as uint8 (n, 3, H, W). Raises as `read_header` does, and ValueError for rows that do not exist."""
    with path.open("rb") as file:
        header = _header(file)
        if rows.stop > header.count:
            raise ValueError(f"it holds {header.count} images, not {rows.stop}")
        one = header.shape[1] * header.shape[2] * header.shape[3]
        file.seek(header.offset + rows.start * one)
        # Not numpy.load: that reads all of a file of 10 GB for a batch, or maps it, and a shrinking file then kills us.
        pixels = np.fromfile(file, dtype=np.uint8, count=len(rows) * one)
    if pixels.size != len(rows) * one:
        raise ValueError("it became shorter")
    images = torch.from_numpy(pixels.reshape(len(rows), *header.shape[1:]))
    return images.permute(0, 3, 1, 2).contiguous() if header.channels_last else images


def _header(file: BinaryIO) -> Header:
    kind, fortran, shape = _facts(file)
    if kind != "uint8":
        raise UnfitArrayError(f"it holds {kind}, wanted uint8: levels 0 to 255, not floating point")
    last, first = (len(shape) == 4 and shape[axis] == 3 for axis in (3, 1))
    if last == first or 0 in shape[1:]:
        both = ", which can be read as either" if last and first else ""
        raise UnfitArrayError(f"its shape is {shape}{both}, wanted (n, H, W, 3) or (n, 3, H, W)")
    if fortran:
        raise UnfitArrayError("it is in Fortran order, save numpy.ascontiguousarray(…)")
    offset, length = file.tell(), os.fstat(file.fileno()).st_size
    expected = offset + math.prod(shape)
    if length != expected:
        raise ValueError(f"it has {length} bytes, its header says {expected}")
    n, second, third, fourth = shape
    return Header(shape=(n, second, third, fourth), channels_last=last, offset=offset)


def _facts(file: BinaryIO) -> tuple[str, bool, tuple[int, ...]]:
    """Type of the elements, whether in Fortran order, shape; the file then stands before the first element.

    Not with numpy's own reader: it parses with `ast`, which in Python 3.11 fails now and then when several threads do.
    """
    start = file.read(12)
    if start[:6] != _MAGIC or len(start) < 12:
        raise ValueError("it does not begin like a .npy file")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(start[8:8 + width], "little")
    file.seek(8 + width)
    text = file.read(min(length, _LONGEST)).decode("latin-1")
    kind, fortran, shape = (pattern.search(text) for pattern in (_KIND, _FORTRAN, _SHAPE))
    if len(text) < length or kind is None or fortran is None or shape is None:
        raise ValueError("its header cannot be read")
    return _name(kind[1]), fortran[1] == "True", tuple(int(n) for n in shape[1].split(",") if n.strip())


def _name(code: str) -> str:
    """The word for a type: "float32" of "'<f4'"; a type of several fields as it is written."""
    plain = re.fullmatch(r"""['"]([|<>=]?[a-zA-Z][0-9]*)['"]""", code)
    try:
        return str(np.dtype(plain[1])) if plain else code
    except TypeError:
        return code
