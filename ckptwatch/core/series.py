"""What training logs: rows of named numbers at a step or epoch, and one name's curve over them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class LogRow:
    """One record of a log. What it does not say is None."""

    step: int | None = None
    epoch: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)  # NaN and Inf as they were logged
    at: float | None = None  # seconds since the epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class LogPoint:
    """One value of one name."""

    step: int | None
    epoch: float | None
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Many values in a few numbers. Only finite ones count in mean, m2, low and high."""

    count: int = 0        # finite ones
    not_finite: int = 0
    mean: float = 0.0
    m2: float = 0.0       # sum of squared distances from the mean
    low: float = math.inf
    high: float = -math.inf
    low_at: LogPoint | None = None   # the first point of the lowest and highest value
    high_at: LogPoint | None = None
    last: LogPoint | None = None

    @property
    def std(self) -> float:
        """Of the population; 0.0 for fewer than two values."""
        return math.sqrt(self.m2 / self.count) if self.count > 1 else 0.0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One name of one run as the health checks see it."""

    name: str
    recent: Sequence[LogPoint]   # the newest points, every one, oldest first; at most RECENT
    history: Sequence[LogPoint]  # all of the current stretch, thinned to means of equally many; at most HISTORY
    summary: Summary             # of the current stretch: a run that started over has another


RECENT = 1024
HISTORY = 1024


def summarise(points: Sequence[LogPoint], before: Summary | None = None) -> Summary:
    """Summary of points, or of those it was made of before and these together.

    Welford's update, as in Knuth, TAOCP 2, 4.2.2.
    """
    s = before or Summary()
    count, bad, mean, m2 = s.count, s.not_finite, s.mean, s.m2
    low, high, low_at, high_at, last = s.low, s.high, s.low_at, s.high_at, s.last
    for point in points:
        last = point
        value = point.value
        if not math.isfinite(value):
            bad += 1
            continue
        count += 1
        step = value - mean
        mean += step / count
        m2 += step * (value - mean)
        if value < low:
            low, low_at = value, point
        if value > high:
            high, high_at = value, point
    return Summary(count=count, not_finite=bad, mean=mean, m2=m2, low=low, high=high, low_at=low_at, high_at=high_at,
                   last=last)


def merged(a: Summary, b: Summary) -> Summary:
    """Of the points of both, `b` being the later ones. Chan, Golub, LeVeque 1979."""
    count = a.count + b.count
    apart = b.mean - a.mean
    mean = a.mean + apart * b.count / count if count else 0.0
    m2 = a.m2 + b.m2 + (apart * apart * a.count * b.count / count if count else 0.0)
    low_at, high_at = (a.low_at if a.low <= b.low else b.low_at), (a.high_at if a.high >= b.high else b.high_at)
    return Summary(count=count, not_finite=a.not_finite + b.not_finite, mean=mean, m2=m2, low=min(a.low, b.low),
                   high=max(a.high, b.high), low_at=low_at, high_at=high_at, last=b.last or a.last)


BACK = 0.02  # part of the way so far by which steps must fall back to count as starting over


def starts_over(first: LogPoint, last: LogPoint | None, new: LogPoint) -> bool:
    """Has training begun again at an earlier point? Ranks that log slightly out of order have not, nor has a run that was
    resumed from just before it stopped: its few points come twice."""
    if last is None:
        return False
    if new.step is not None and last.step is not None:
        return _fell_back(first.step, last.step, new.step)
    if new.epoch is not None and last.epoch is not None and (new.step is None) == (last.step is None):
        return _fell_back(first.epoch, last.epoch, new.epoch)
    return False


def _fell_back(first: float | None, last: float, new: float) -> bool:
    return new < last and last - new > BACK * (last - (last if first is None else min(first, last)))


def same_point(a: LogPoint, b: LogPoint) -> bool:
    """Equal, NaN to NaN included."""
    return (a.step, a.epoch) == (b.step, b.epoch) and (a.value == b.value or (a.value != a.value and b.value != b.value))
