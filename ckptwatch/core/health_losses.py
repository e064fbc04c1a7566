"""Checks of training losses: spikes, divergence, plateaus."""

import math
from collections.abc import Sequence
from itertools import pairwise

from ckptwatch.core.health_names import NameKind, is_adversarial, is_total, may_rise
from ckptwatch.core.health_noise import MAD, blocks, jitter, median, quantile
from ckptwatch.core.health_traces import Look, Trace, figure, where
from ckptwatch.core.series import LogPoint
from ckptwatch.model import AlarmKind, Symptom

# ---- spikes ---------------------------------------------------------------------------------------------------------

BEFORE = 12      # points there must be before one can be a spike
KNOWN = 10       # points before it whose excess is known, to tell what is usual
NEIGHBOURS = 10  # points before one whose median is its own level
RECOVERED = 10   # points at the usual level after which a spike is over
ALONE = 4.0      # times the usual excess (99th percentile) by which a single point stands out
TOGETHER = 2.2   # two among three neighbours
LASTING = 1.4    # and the median of LAST points
LAST = 5
SWINGING = 1.5   # times the ratio that losses need which work against each other: they swing in health
USUAL = 0.1      # least usual excess, as a logarithm: curves without any noise
TAIL = 1.82      # 99th to 90th percentile of a normal distribution; a heavier tail needs more to stand out


def loss_spike(trace: Trace, look: Look) -> Symptom | None:
    """A point more than `rule.loss_spike` times the average of the `rule.window` points before it, and beyond the noise.

    What is usual is learnt from the curve: by how much earlier points exceeded the median of those right before them, in
    logarithms where all are positive. A single point must stand out further than two that come together, and those
    further than a level that lasts. It is over when the loss has been back for RECOVERED points, or when it lies further
    back than the window. While a learning rate grows, twice the ratio is needed.
    """
    values = trace.values
    if look.rule.loss_spike is None or len(values) < BEFORE + KNOWN:
        return None
    factor = look.rule.loss_spike * (SWINGING if is_adversarial(trace.name) else 1)
    averages = _averages(values, look.rule.window)
    first = max(BEFORE + KNOWN, len(values) - look.rule.window)
    high = [i for i in range(first, len(values)) if _exceeds(values[i], averages[i], factor)]
    if not high:
        return None
    outstanding = _outstanding(values, high)
    if outstanding and look.rate_rose(trace.points[max(0, outstanding[0] - look.rule.window)]):
        outstanding = [i for i in outstanding if _exceeds(values[i], averages[i], 2 * factor)]
    if not outstanding or _is_back(values, averages[outstanding[0]], outstanding, factor):
        return None
    worst = max(outstanding, key=lambda i: values[i] - averages[i])
    return _spike(trace, trace.points[outstanding[0]], trace.points[worst], averages[worst])


def _averages(values: Sequence[float], window: int) -> list[float]:
    """The mean of at most `window` values before each; the first has none before it and gets itself."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [values[0]] + [(sums[i] - sums[max(0, i - window)]) / min(i, window) for i in range(1, len(values))]


def _exceeds(value: float, average: float, factor: float) -> bool:
    return value > factor * average if average > 0 else value > average + (factor - 1) * abs(average)


def _outstanding(values: Sequence[float], high: Sequence[int]) -> list[int]:
    """Those of `high` that the noise of the curve does not explain."""
    positive = min(values) > 0
    scale = [math.log(v) for v in values] if positive else values

    def excess(i: int) -> float:
        return scale[i] - median(scale[max(0, i - NEIGHBOURS) : i])

    known = sorted(excess(i) for i in range(BEFORE, high[0]))
    top, upper = quantile(known, 0.99), quantile(known, 0.9)
    least = USUAL if positive else 2 * jitter(values[: high[0]])
    heavy = max(1.0, top / upper / TAIL) if upper > 0 else 1.5
    usual = max(top, least) * heavy * (1 + 2 * KNOWN / len(known))

    def lasts(i: int) -> bool:
        begin = i + 1 - LAST
        return begin in near and (
            median(scale[begin : i + 1]) - median(scale[begin - NEIGHBOURS : begin]) > LASTING * usual)

    near = set(high)
    firm = [i for i in high if excess(i) > TOGETHER * usual]
    return [i for i in high if excess(i) > ALONE * usual or lasts(i)
            or (i in firm and any(0 < abs(i - other) <= 2 for other in firm))]


def _is_back(values: Sequence[float], average: float, outstanding: Sequence[int], factor: float) -> bool:
    after = values[outstanding[-1] + 1 :]
    return len(after) >= RECOVERED and not _exceeds(median(after[-RECOVERED:]), average, 1 + (factor - 1) / 4)


def _spike(trace: Trace, since: LogPoint, worst: LogPoint, average: float) -> Symptom:
    numbers = {"current": worst.value, "average": average}
    if average > 0:
        numbers["ratio"] = worst.value / average
        compared = f"{worst.value / average:.1f} × its recent average {figure(average)}"
    else:
        compared = f"{figure(worst.value - average)} above its recent average {figure(average)}"
    return Symptom(
        kind=AlarmKind.LOSS_SPIKE, subject=trace.name, step=since.step, epoch=since.epoch, numbers=numbers,
        message=f"{trace.name} {figure(worst.value)} at {where(worst)} is {compared}",
        causes=("learning rate too high", "a bad batch or a corrupt sample", "gradients not clipped",
                "overflow in half precision"))


# ---- divergence -----------------------------------------------------------------------------------------------------

GREW = 1.5        # times its lowest level that a loss must reach
REGAINED = 0.05   # and the part of its whole fall that must be lost again; of a loss below 0:
REGAINED_BELOW_ZERO = 0.3
BEYOND = 6.0      # standard deviations of a level


def divergence(trace: Trace, look: Look) -> Symptom | None:
    """A level far above the lowest one that is not coming down again: the last two windows both high, the last no lower.

    A level is the median of a window. Losses that work against each other, terms that grow in health, and terms of a
    total that is itself well, are left out; while a learning rate grows, twice the rise is needed.
    """
    values = trace.values
    width = min(look.rule.window, max(8, len(values) // 6))
    if not look.rule.divergence or len(values) < 4 * width or not _counts(trace, look):
        return None
    levels = blocks(values, width)
    now, before = levels[-1], levels[-2]
    at = min(range(len(levels) - 2), key=lambda i: levels[i])
    whole = trace.long if trace.thinned else []
    lowest, highest = min([levels[at], *whole]), max([*levels[: at + 1], *whole, *trace.long[:1]])
    if lowest > 0:
        needed = max((GREW - 1) * lowest, REGAINED * (highest - lowest))
    else:
        needed = max(0.5 * abs(lowest), REGAINED_BELOW_ZERO * (highest - lowest))
    if now - lowest <= needed:
        return None  # as nearly always: noise need not be known
    needed = max(needed, BEYOND * _level_noise(levels, values, width))
    lowest_at = max(0, len(values) - (len(levels) - at) * width)
    if look.rate_rose(trace.points[lowest_at]):
        needed *= 2
    if now - lowest <= needed or before - lowest <= needed / 2 or now < before - needed / 10:
        return None
    left = _left(trace, lowest + needed / 2, lowest_at, width)
    numbers = {"current": now, "lowest": lowest} | ({"ratio": now / lowest} if lowest > 0 else {})
    compared = f"{now / lowest:.1f} × its lowest, {figure(lowest)}" if lowest > 0 else f"its lowest was {figure(lowest)}"
    return Symptom(
        kind=AlarmKind.DIVERGENCE, subject=trace.name, step=left.step, epoch=left.epoch, numbers=numbers,
        message=f"{trace.name} has risen since {where(left)} to {figure(now)}: {compared}",
        causes=("learning rate too high", "gradients not clipped", "half precision without loss scaling",
                "data that changed"))


def _level_noise(levels: Sequence[float], values: Sequence[float], width: int) -> float:
    """Standard deviation of a level: by the noise of its values, or by what levels did before, whichever is more."""
    moves = [abs(a - b) for a, b in pairwise(levels[:-2])]
    slow = MAD * median(moves) / math.sqrt(2) if moves else 0.0
    return max(slow, 1.2533 * jitter(values) / math.sqrt(width))


def _left(trace: Trace, height: float, first: int, width: int) -> LogPoint:
    """The first point from which on the loss stayed high: all medians of pieces after it lie above `height`."""
    at, short = len(trace.values), max(3, width // 5)
    while at - short >= first and median(trace.values[at - short : at]) > height:
        at -= short
    return trace.points[min(at, len(trace.points) - 1)]


def _counts(trace: Trace, look: Look) -> bool:
    """Is the level of this loss a sign of anything by itself?"""
    if is_adversarial(trace.name) or may_rise(trace.name) or any(is_adversarial(t.name) for t in _totals(trace, look)):
        return False
    return is_total(trace.name) or not _totals(trace, look)


def _totals(trace: Trace, look: Look) -> list[Trace]:
    return [t for t in look.of(trace.kind) if is_total(t.name) and t.name != trace.name and t.values]


# ---- plateaus -------------------------------------------------------------------------------------------------------

MEANS = 30           # of many points each, that a stretch must have where it is longer than what is kept point by point
FLAT = 0.02          # of its level: a loss that surely fell by less over the whole stretch has not fallen
HARDLY_FELL = 0.2    # of its first level, since the beginning: it never learnt much. What fell further counts as converged
ENDED = 0.05         # unless it stopped all at once: see `_stopped_short`


def plateau(trace: Trace, look: Look) -> Symptom | None:
    """A training loss that has not fallen over the last `rule.plateau` points.

    Most losses end flat, so flat alone is no illness. It is one if the loss never fell much, or if it was falling steadily
    and stopped all at once, where what converges slows down first. Nothing is said where the noise is too great to tell,
    at the end of a schedule, while a metric still improves, or of losses as `divergence` leaves out.
    """
    length = look.rule.plateau
    if length is None or trace.kind is not NameKind.TRAINING_LOSS or not _counts(trace, look):
        return None
    values, points, stretch = _stretch(trace, length)
    if stretch is None:
        return None
    level, error = _flat(values[-stretch:])
    if level is None or level <= 0:
        return None
    begin = max(trace.curve.summary.high, *values[:5]) if trace.thinned else median(values[:5])
    stuck = level > (1 - HARDLY_FELL) * begin
    if not (stuck or _stopped_short(values, stretch, level, error)) or look.rate_gone():
        return None
    since = points[-stretch]
    if _improves(look, since):
        return None
    return Symptom(
        kind=AlarmKind.PLATEAU, subject=trace.name, step=since.step, epoch=since.epoch,
        numbers={"current": level, "before": begin, "points": float(length)},
        message=f"{trace.name} has not fallen for {length:,} points, since {where(since)}: {figure(level)}; "
                f"it began at {figure(begin)}",
        causes=("learning rate too low, or too high", "layers that get no gradient", "labels that do not fit the inputs",
                "a model that is too small"))


def _stretch(trace: Trace, length: int) -> tuple[list[float], Sequence[LogPoint], int | None]:
    """Values, their points, and how many of the last of them are `length` logged ones; None if there are too few."""
    if length <= len(trace.values) or not trace.thinned:
        return trace.values, trace.points, length if length <= len(trace.values) else None
    points = [p for p in trace.curve.history if math.isfinite(p.value)]
    count = round(length * len(points) / trace.curve.summary.count)
    return [p.value for p in points], points, count if MEANS <= count <= len(points) else None


def _flat(values: Sequence[float]) -> tuple[float | None, float]:
    """Level of a stretch and the error of a third of it; no level, if the first third may lie above the last."""
    third = len(values) // 3
    first, last = median(values[:third]), median(values[-third:])
    room = FLAT * abs(last) - (first - last)
    if room <= 0:
        return None, 0.0
    pieces = blocks(values, max(2, third // 10))
    middle = median(values)
    wander = MAD * median([abs(p - middle) for p in pieces]) / math.sqrt(10)
    error = 1.2533 * max(jitter(values) / math.sqrt(third), wander)
    return (None, error) if 2 * math.sqrt(2) * error >= room else (middle, error)


def _stopped_short(values: Sequence[float], length: int, level: float, error: float) -> bool:
    """Was it falling steadily right before it went flat, so that it would have gone on had nothing happened?

    An exponential that comes to rest, and even more a power law, falls by `r` times as much in each stretch as in the one
    before; the next fall predicted from the last two is lost in the noise by the time it looks flat. An lr step falls at
    once and has no steady fall before it.
    """
    width = max(20, length // 10)
    error *= math.sqrt(length / width)  # that of a third of the stretch becomes that of `width` points
    edge = len(values) - length
    if abs(median(values[edge : edge + width]) - level) > 3 * error:
        return False  # it was still coming down
    while edge >= width and abs(median(values[edge - width // 2 : edge]) - level) <= 3 * error:
        edge -= width // 2
    if edge < 3 * width:
        return False
    a, b, half, c = (median(values[e - width // 4 : e + width // 4])
                     for e in (edge - 2 * width, edge - width, edge - width // 2, edge))
    earlier, latest = a - b, b - c
    if earlier <= 0 or not 0.5 <= latest / earlier <= 2 or half - c < 0.4 * latest:
        return False
    return latest * min(1.0, latest / earlier) > 8 * error and level > ENDED * values[0]


def _improves(look: Look, since: LogPoint) -> bool:
    """Did any metric, or a validation loss, reach its best after a point?"""
    for trace in look.of(NameKind.METRIC, NameKind.VALIDATION_LOSS):
        summary = trace.curve.summary
        best = summary.high_at if trace.mode == "max" else summary.low_at
        if best is None or summary.count < 3:
            continue
        unit = "step" if best.step is not None and since.step is not None else "epoch"
        then, mark = getattr(best, unit), getattr(since, unit)
        if then is not None and mark is not None and then > mark:
            return True
    return False
