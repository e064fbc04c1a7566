"""Levels and noise of curves by order statistics, which single wild values do not move."""

import math
from collections.abc import Sequence

MAD = 1.4826            # median absolute deviation to standard deviation of a normal distribution
_SECOND = math.sqrt(6)  # standard deviation of second differences of independent values, in theirs


def median(values: Sequence[float]) -> float:
    """Of at least one value."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


def quantile(ordered: Sequence[float], part: float) -> float:
    """Of at least one value, in ascending order; the next higher one, so it never understates a tail."""
    return ordered[min(len(ordered) - 1, math.ceil(part * (len(ordered) - 1)))]


def jitter(values: Sequence[float]) -> float:
    """Standard deviation of what is not trend: of second differences, which know no straight line.

    The greater of two estimates, from their median and from their 90th percentile: an accuracy that is exactly 1 most of
    the time has noise all the same. One jump among twenty values moves neither. 0.0 for fewer than three values.
    """
    second = sorted(abs(values[i] - 2 * values[i + 1] + values[i + 2]) for i in range(len(values) - 2))
    if not second:
        return 0.0
    return max(MAD * quantile(second, 0.5), second[int(0.9 * (len(second) - 1))] / 1.645) / _SECOND


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Medians of every `width` neighbours; `values` themselves where there are fewer."""
    if width <= 1 or len(values) < width:
        return list(values)
    return [median(values[i : i + width]) for i in range(len(values) - width + 1)]


def blocks(values: Sequence[float], width: int) -> list[float]:
    """Medians of neighbouring pieces of `width`, counted from the end; what is left over at the beginning is one more
    piece if it is half as long."""
    first = len(values) % width
    starts = range(first, len(values), width)
    head = [median(values[:first])] if first * 2 >= width else []
    return head + [median(values[s : s + width]) for s in starts]
