"""Reading a pickle of numpy arrays without running anything from it.

Only the names that numpy's own pickles use are known, and they give stand-ins which remember what they were given: shape,
type and bytes of an array. An array is made of them when it is asked for, after its size was looked at. Before anything is
loaded the opcodes are walked through, so that no length, index or frame in them can ask for more memory than the file has.
"""

import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ckptwatch.formats.pickle_walk import PickleError, steps
from ckptwatch.formats.reading import open_regular

LARGEST_FILE = 1 << 30  # bytes; statistics of 2048 and 1024 features take 40 MiB
OPCODES = 5000          # such a pickle has about 60
_DTYPE = re.compile(r"[fiu][1248]|U\d{1,4}|S\d{1,4}")
_NAMES = re.compile(r"numpy\.(?:_core|core)\.(?P<module>multiarray|numeric)")


@dataclass(frozen=True)
class Stored:
    """An array in a file, of which so far only the header is known."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]  # raises ValueError where the bytes are not as many as the header says


def read_pickle(path: Path) -> Any:
    """The tree of a pickle: plain containers, text and numbers, with Stored for arrays.

    Raises OSError; ValueError, in words, for one that is broken, too large, or names anything but parts of numpy arrays.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        if size > LARGEST_FILE:
            raise ValueError(f"a pickle of {size:,} bytes, more than statistics of any network take")
        file.seek(0)
        _walk(file, size)
        file.seek(0)
        try:
            tree = _Unpickler(file, encoding="latin-1").load()
        except (ValueError, OSError, MemoryError):
            raise
        except Exception as error:  # an unpickler meets arbitrary bytes and fails in arbitrary ways
            raise ValueError(f"a broken pickle ({type(error).__name__}: {str(error)[:200]})") from error
    return _plain(tree, 0)


def _walk(file: BinaryIO, size: int) -> None:
    """Raises PickleError unless the file is one pickle whose every length lies within it."""
    for code, argument in steps(file, size, OPCODES):
        if code in (pickle.PUT, pickle.LONG_BINPUT) and not 0 <= argument <= OPCODES:
            raise PickleError("it numbers more values than it can hold")
        if code == pickle.FRAME and argument > size:
            raise PickleError("cut off: a frame reaches past the end")
        if code in (pickle.PERSID, pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4):
            raise PickleError("it refers to things outside of it")
    if file.tell() != size:
        raise PickleError(f"it ends at byte {file.tell():,}, the file has {size:,}")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _NAMES.fullmatch(module)
        known = found["module"] if found else module.replace("__builtin__", "builtins")  # as protocol 2 says
        stand_in = _STAND_INS.get((known, name))
        if stand_in is None:
            raise ValueError(f"it holds {module}.{name}, which is not loaded: only numpy arrays and plain containers are")
        return stand_in


# A pickle may set attributes of whatever it holds. Empty slots leave it nothing to set on what outlives it.


class _Dtype:
    __slots__ = ("code", "order")

    def __init__(self, code: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and state[1:2] in ((">",), ("<",)):
            self.order = state[1]

    def made(self) -> np.dtype:
        known = isinstance(self.code, str) and _DTYPE.fullmatch(self.code)
        return np.dtype(f"{self.order}{self.code}" if known else object)  # of which nothing is ever read


class _Array:
    __slots__ = ("dtype", "fortran", "raw", "shape")

    def __init__(self, shape: Any = None, dtype: Any = None, raw: Any = None, *, fortran: bool = False) -> None:
        self.shape, self.dtype, self.raw, self.fortran = shape, dtype, raw, fortran

    def __setstate__(self, state: Any) -> None:
        match state:
            case (_, tuple() as shape, _Dtype() as dtype, fortran, raw):
                self.shape, self.dtype, self.fortran, self.raw = shape, dtype, bool(fortran), raw

    def made(self) -> Stored:
        if not isinstance(self.dtype, _Dtype) or not isinstance(self.shape, tuple):
            raise ValueError("an array without shape or type")
        if not all(isinstance(n, int) and 0 <= n < 2**40 for n in self.shape):
            raise ValueError(f"an array of the impossible shape {str(self.shape)[:60]}")
        return Stored(self.shape, self.dtype.made(), self._numbers)

    def _numbers(self) -> np.ndarray:
        raw = self.raw.text if isinstance(self.raw, _Encoded) else self.raw
        data = raw.encode("latin-1") if isinstance(raw, str) else raw
        dtype = self.dtype.made()
        if not isinstance(data, bytes | bytearray) or len(data) != dtype.itemsize * math.prod(self.shape):
            raise ValueError(f"an array of shape {self.shape} whose bytes are not as many")
        return np.frombuffer(data, dtype).reshape(self.shape, order="F" if self.fortran else "C")


class _Encoded:
    """How protocol 2 writes bytes: as text. It is encoded when it is needed, not as often as a pickle asks."""

    __slots__ = ("text",)

    def __init__(self, text: Any) -> None:
        self.text = text


class _Reconstruct:
    __slots__ = ()

    def __call__(self, *_arguments: Any) -> _Array:
        return _Array()


class _FromBuffer:
    __slots__ = ()

    def __call__(self, raw: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
        return _Array(shape, dtype, raw, fortran=order == "F")


class _Scalar:
    __slots__ = ()

    def __call__(self, dtype: Any, raw: Any = b"") -> _Array:
        return _Array((), dtype, raw)


class _DtypeOf:
    __slots__ = ()

    def __call__(self, code: Any, *_flags: Any) -> _Dtype:
        return _Dtype(code)


class _Encode:
    __slots__ = ()

    def __call__(self, text: Any, _encoding: Any = None) -> _Encoded:
        return _Encoded(text)


class _OrderedDict:
    __slots__ = ()

    def __call__(self) -> Any:
        return OrderedDict()


class _Set:
    """How protocols 2 and 3 make sets, of which no statistics consist."""

    __slots__ = ()

    def __call__(self, _items: Any = None) -> None: ...


class _NoType:
    """numpy.ndarray itself, which pickles only hand to `_reconstruct`."""

    __slots__ = ()


_STAND_INS: Mapping[tuple[str, str], Any] = {
    ("multiarray", "_reconstruct"): _Reconstruct(), ("numeric", "_frombuffer"): _FromBuffer(),
    ("multiarray", "scalar"): _Scalar(), ("numpy", "dtype"): _DtypeOf(), ("numpy", "ndarray"): _NoType(),
    ("_codecs", "encode"): _Encode(), ("collections", "OrderedDict"): _OrderedDict(),
    ("builtins", "set"): _Set(), ("builtins", "frozenset"): _Set(),
}


def _plain(value: Any, depth: int) -> Any:
    """What statistics can be made of, three levels deep; other things are left out."""
    if isinstance(value, _Array):
        return value.made()
    if isinstance(value, dict) and depth < 3:
        return {key: _plain(item, depth + 1) for key, item in value.items() if isinstance(key, str)}
    return value if isinstance(value, str | int | float) else None
