"""NaN and infinity among raw numbers, told by their bits: no conversion, no exception, the speed of memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ckptwatch.formats.bulk import CHUNK
from ckptwatch.formats.tensor_places import Kind, View

Bits = NDArray[np.unsignedinteger]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a stretch of numbers holds."""

    bad: NDArray[np.bool_] | None  # which are NaN or infinite; None: none of them
    mask_like: bool                # is there nothing but 0 and −∞, as in an attention mask?


class Looker:
    """Looks at numbers. It keeps its scratch memory, so one serves a whole checkpoint."""

    def __init__(self) -> None:
        self._scratch: dict[int, Bits] = {}  # by the size of a number

    def look(self, data: bytes, kind: Kind, *, big_endian: bool = False) -> Seen:
        """`data` holds whole numbers, at most CHUNK bytes and at least one number."""
        bits: Bits = np.frombuffer(data, np.dtype(f"{'>' if big_endian else '<'}u{kind.size}"))
        if kind.only is not None:
            bad = bits == kind.only
            return Seen(bad=bad if bad.any() else None, mask_like=False)
        if kind.size not in self._scratch:
            self._scratch[kind.size] = np.empty(CHUNK // kind.size, np.dtype(f"u{kind.size}"))
        masked = np.bitwise_and(bits, bits.dtype.type(kind.mask), out=self._scratch[kind.size][: bits.size])
        worst = int(masked.max())
        if worst < kind.least:
            return Seen(bad=None, mask_like=worst == 0)
        bad = masked >= kind.least
        sign = 1 << (8 * kind.size - 1)
        mask_like = kind.infinite and worst == kind.least and bool(((bits == (sign | kind.least)) | (masked == 0)).all())
        return Seen(bad=bad, mask_like=mask_like)


def held(view: View, positions: NDArray[np.int64], begin: int, size: int) -> NDArray[np.bool_]:
    """Which of the numbers at these positions, counted from the byte `begin`, belong to a tensor."""
    first, last = (view.begin - begin) // size, (view.end - begin) // size
    inside = (positions >= first) & (positions < last)
    if not view.lattice:
        return inside
    left = positions - first
    for count, step in view.lattice:  # the numbers of a tensor are sums of multiples of its steps
        left = left - np.minimum(left // step, count - 1) * step
    return inside & (left == 0)
