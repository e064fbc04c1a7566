"""Where the floating-point numbers of tensors lie in a file, so that they can be looked at without loading anything.

A layout says of each tensor where its numbers are; here overlapping ones are brought together, so that every byte is read at
most once, however often tensors share it and whatever a hostile file claims.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_VIEWS = 64    # of overlapping bytes, that are told apart; more are taken for one tensor
LONGEST_NAME = 200  # characters


class NotReadError(Exception):
    """Nothing is wrong, but this kind of file is not looked into; the text says which kind it is."""


class PlacesError(ValueError):
    """The file contradicts itself; the text says how."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A floating-point type. A number is NaN or infinite where `bits & mask >= least`; of types with one NaN and no
    infinity, where `bits == only`. Layouts: IEEE 754; OCP 8-bit floating point 1.0; arXiv 2206.02915 for those in `fnuz`."""

    size: int                   # bytes
    mask: int = 0
    least: int = 0
    only: int | None = None
    infinite: bool = True       # are the bits `least` infinity?


KINDS = {
    "float64": Kind(size=8, mask=0x7FFF_FFFF_FFFF_FFFF, least=0x7FF0_0000_0000_0000),
    "float32": Kind(size=4, mask=0x7FFF_FFFF, least=0x7F80_0000),
    "float16": Kind(size=2, mask=0x7FFF, least=0x7C00),
    "bfloat16": Kind(size=2, mask=0x7FFF, least=0x7F80),
    "float8_e5m2": Kind(size=1, mask=0x7F, least=0x7C),
    "float8_e4m3fn": Kind(size=1, mask=0x7F, least=0x7F, infinite=False),
    "float8_e8m0fnu": Kind(size=1, mask=0xFF, least=0xFF, infinite=False),
    "float8_e5m2fnuz": Kind(size=1, only=0x80, infinite=False),
    "float8_e4m3fnuz": Kind(size=1, only=0x80, infinite=False),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The numbers of one tensor: all between `begin` and `end`, or those of a lattice among them."""

    name: str
    begin: int  # bytes
    end: int
    lattice: tuple[tuple[int, int], ...] = ()  # (count, step) from the longest step to the shortest, in numbers; (): all


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """Bytes to look at, once, and the tensors that share them: more than one only where they overlap."""

    begin: int
    end: int
    kind: Kind
    views: tuple[View, ...]
    big_endian: bool = False


@dataclass(frozen=True, kw_only=True)
class Places:
    """Of one file."""

    extents: Sequence[Extent] = ()
    left_out: str = ""  # what of it is not looked at, in words
    tensors: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", sum(len(extent.views) for extent in self.extents))


def strided(
    name: str, begin: int, kind: Kind, offset: Any, shape: Any, stride: Any, *, parts: int = 1,
) -> View | None:
    """The view of a tensor whose storage begins at the byte `begin`; None for one without numbers.

    `offset` and `stride` count elements, each of `parts` numbers (2 for complex ones). Raises PlacesError for what no tensor
    is described by.
    """
    whole = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride)
    if not whole or not all(_is_count(n) for n in (offset, *shape, *stride)):
        raise PlacesError(f"tensor {name} is described in a way that torch does not use")
    if 0 in shape:
        return None
    steps = sorted(((n, s * parts) for n, s in zip(shape, stride, strict=True) if n > 1 and s > 0), key=lambda d: -d[1])
    steps += [(parts, 1)] if parts > 1 else []
    reach = 1 + sum((n - 1) * s for n, s in steps)
    gaps = math.prod(n for n, _ in steps) < reach
    first = begin + offset * parts * kind.size
    return View(name=name, begin=first, end=first + reach * kind.size, lattice=tuple(steps) if gaps else ())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def brought_together(found: Iterable[tuple[Kind, View]], *, big_endian: bool = False) -> list[Extent]:
    """Extents without overlap, in the order of the file. Raises PlacesError where bytes are of two types at once."""
    extents: list[Extent] = []
    together: list[View] = []
    kind, end = None, 0
    for of, view in sorted(found, key=lambda f: (f[1].begin, -f[1].end)):
        if together and view.begin < end:
            if of != kind:
                raise PlacesError(f"tensors {together[0].name} and {view.name} claim the same bytes as different types")
            if (view.begin, view.end, view.lattice) != (together[-1].begin, together[-1].end, together[-1].lattice):
                together.append(view)
            end = max(end, view.end)
            continue
        if kind is not None and together:
            extents.append(_extent(kind, together, end, big_endian))
        kind, together, end = of, [view], view.end
    if kind is not None and together:
        extents.append(_extent(kind, together, end, big_endian))
    return extents


def _extent(kind: Kind, views: list[View], end: int, big_endian: bool) -> Extent:
    begin = views[0].begin
    if len(views) > MOST_VIEWS:
        views = [View(name=views[0].name, begin=begin, end=end)]
    return Extent(begin=begin, end=end, kind=kind, views=tuple(views), big_endian=big_endian)
