"""Checks of what validations yield: metrics that drop or stay at zero, and losses that part from those of training."""

import math
from collections.abc import Sequence
from itertools import pairwise

from ckptwatch.core.health_names import NameKind, is_total, is_training, is_validation, term_of
from ckptwatch.core.health_noise import blocks, jitter, median, smoothed
from ckptwatch.core.health_traces import Look, Trace, figure, place, same_unit, where
from ckptwatch.core.series import LogPoint
from ckptwatch.model import AlarmKind, Mode, Symptom

# ---- drops ----------------------------------------------------------------------------------------------------------

EARLIER = 3       # values there must be before one can have dropped
AT_ONCE = 10.0    # standard deviations below the best level at which one value is a drop
TWICE = 6.0       # and at which two in a row are
DENSE = 200       # values from which on medians of five are looked at: a metric of every training step
LOOKED_AT = 200   # newest values (or medians) by which noise is judged


def metric_drop(trace: Trace, look: Look) -> Symptom | None:
    """A metric more than `rule.metric_drop` worse than its best, and beyond its own noise.

    `metric_drop` is in the metric's own units while all its values lie between 0 and 1, else a part of the size of its
    best: 0.05 means 0.05 of an AP of 0.72, and 3.6 of one of 72. The best of many noisy values lies above what the model
    can do, so the drop must also be beyond the noise below the best *level*, a median of three. While a learning rate
    grew since the best, twice the drop is needed.
    """
    drop, summary = look.rule.metric_drop, trace.curve.summary
    if drop is None or trace.kind is not NameKind.METRIC or trace.mode is None or len(trace.values) <= EARLIER:
        return None
    best = summary.high_at if trace.mode is Mode.MAX else summary.low_at
    if best is None:
        return None
    scale = _Scale(trace, drop)
    values = [scale.of(v) for v in trace.values]
    if len(values) > DENSE:
        values = blocks(values, 5)
    if scale.of(best.value) - values[-1] <= scale.allowed:
        return None
    level = max(smoothed(values[:-1], 3 if len(values) > EARLIER + 2 else 1))
    more = 2 if look.rate_rose(best) else 1
    noise = _noise(_before_the_fall(values, level - scale.allowed / 2)[-LOOKED_AT:])
    at_once, twice = (more * max(scale.allowed, k * noise) for k in (AT_ONCE, TWICE))
    below = [level - v for v in values[-2:]]
    if not (below[1] > at_once or min(below) > twice):
        return None
    return _drop(trace, best, _fell_since(trace, scale, level - scale.allowed / 2))


class _Scale:
    """More is better, and equal distances count the same: as it is for a metric between 0 and 1 or one with negative
    values, else in logarithms, for a FID of 200 is noisier than one of 8."""

    def __init__(self, trace: Trace, drop: float) -> None:
        summary, self._sign = trace.curve.summary, 1.0 if trace.mode is Mode.MAX else -1.0
        self._logarithms = summary.low > 0 and summary.high > 1
        if self._logarithms:
            self.allowed = math.log1p(drop) if trace.mode is Mode.MIN else -math.log(max(1 - drop, 1e-9))
        elif summary.low >= 0 and summary.high <= 1:
            self.allowed = drop
        else:
            self.allowed = drop * max(abs(summary.low), abs(summary.high))

    def of(self, value: float) -> float:
        return self._sign * (math.log(value) if self._logarithms else value)


ENOUGH = 8  # values that tell noise


def _before_the_fall(values: Sequence[float], height: float) -> Sequence[float]:
    """Without those at the end that are all below `height`: a fall is no noise, however long it lasts. All of them where
    too few would be left."""
    end = len(values)
    while end and values[end - 1] < height:
        end -= 1
    return values[:end] if end >= ENOUGH else values


def _noise(values: Sequence[float]) -> float:
    """Of a metric; few values tell it badly, and then a fifth of what it moves by counts as noise."""
    moves = [abs(b - a) for a, b in pairwise(values)]
    return max(jitter(values[:-1]), 0.2 * median(moves)) * (1 + 2 / len(values))


def _fell_since(trace: Trace, scale: _Scale, height: float) -> LogPoint:
    """The first of the values at the end that are all worse than `height`."""
    at = len(trace.values) - 1
    while at > 0 and scale.of(trace.values[at - 1]) < height:
        at -= 1
    return trace.points[at]


def _drop(trace: Trace, best: LogPoint, since: LogPoint) -> Symptom:
    now = trace.points[-1]
    numbers = {"current": now.value, "best": best.value, "drop": abs(best.value - now.value)}
    if best.step is not None:
        numbers["best_step"] = float(best.step)
    word = "below" if trace.mode is Mode.MAX else "above"
    return Symptom(
        kind=AlarmKind.METRIC_DROP, subject=trace.name, step=since.step, epoch=since.epoch, numbers=numbers,
        message=f"{trace.name} {figure(now.value)} at {where(now)} is {figure(numbers['drop'])} {word} its best, "
                f"{figure(best.value)} at {where(best)}",
        causes=("learning rate too high", "overfitting", "evaluation changed: data, weights (EMA or not), preprocessing",
                "forgetting after a change of data"))


# ---- overfitting ----------------------------------------------------------------------------------------------------

ROSE = 0.02           # of its size that a validation loss must have risen, in a row
ROSE_CLEARLY = 0.05   # or all together
SURELY = 6.0          # standard deviations of its noise by which it must have risen
FELL = 0.01           # of its size by which the training loss must have fallen meanwhile


def overfitting(trace: Trace, look: Look) -> Symptom | None:
    """A validation loss well above its minimum while the training loss has fallen since.

    Either the last `rule.overfitting` validations each worsened, or as many all lie above the minimum, whatever their
    order; both beyond the noise. A term is looked at only where there is no total.
    """
    count = look.rule.overfitting
    values = trace.values
    if count is None or trace.kind is not NameKind.VALIDATION_LOSS or len(values) < count + EARLIER:
        return None
    if not is_total(trace.name) and any(is_total(t.name) for t in look.of(NameKind.VALIDATION_LOSS)):
        return None
    scale = [math.log(v) for v in values] if min(values) > 0 else values
    size = 1.0 if min(values) > 0 else abs(min(values))
    levels = smoothed(scale, 3)
    at = min(range(len(levels)), key=lambda i: levels[i]) + 1  # the middle of three
    lowest, noise = levels[at - 1], jitter(scale) * (1 + 2 / len(values))
    last = scale[-count:]
    in_a_row = all(a < b for a, b in pairwise(scale[-count - 1 :]))
    late = jitter(scale[-2 * count :])  # the bend of the first validations is no noise
    if len(scale) > 4 * count:
        late = max(late, 0.7 * jitter(scale[-4 * count :]))
    risen = (in_a_row and last[-1] - lowest > max(SURELY * late, ROSE * size)) or (
        len(values) - at > count and median(last) - lowest > max(SURELY * noise, ROSE_CLEARLY * size)
        and min(last) - lowest > max(2 * noise, ROSE * size))
    training = _training_of(trace, look)
    if not risen or training is None or not _falls(training, trace.points[at], look.rule.window):
        return None
    return _overfits(trace, at, training)


def _training_of(trace: Trace, look: Look) -> Trace | None:
    """The training loss of the same term, else the total one, else the only one."""
    losses = [t for t in look.of(NameKind.TRAINING_LOSS) if t.values]
    for fits in (lambda t: term_of(t.name) == term_of(trace.name), lambda t: is_total(t.name)):
        found = [t for t in losses if fits(t)]
        if found:
            return max(found, key=lambda t: t.curve.summary.count)
    return losses[0] if len(losses) == 1 else None


def _falls(training: Trace, since: LogPoint, window: int) -> bool:
    """Is the level of the training loss now below what it was at a point?"""
    points = training.points
    start = place(since)
    if start is not None and same_unit(points[0], since) and (place(points[0]) or 0) > start:
        points = [p for p in training.curve.history if math.isfinite(p.value)]  # older than the newest points reach
    if start is None or not points or not same_unit(points[-1], since):
        return False
    upto = sum(1 for p in points if (place(p) or 0) <= start)
    after = len(points) - upto
    width = max(3, min(window, upto, after))
    if upto < 1 or after < 2:
        return False
    then = [p.value for p in points[max(0, upto - width) : upto + 1]]
    now = [p.value for p in points[-min(width, after) :]]
    error = 1.2533 * jitter([p.value for p in points[-4 * width :]]) * math.sqrt(1 / len(then) + 1 / len(now))
    return median(then) - median(now) > max(FELL * abs(median(then)), 2 * error)


def _overfits(trace: Trace, at: int, training: Trace) -> Symptom:
    # The lowest level is a median of three; the lowest value is one of them.
    at = min(range(max(0, at - 1), min(len(trace.values) - 1, at + 2)), key=lambda i: trace.values[i])
    now, low, since = trace.points[-1], trace.points[at], trace.points[at + 1]
    numbers = {"current": now.value, "lowest": low.value, "rise": now.value - low.value,
               "validations": float(len(trace.values) - 1 - at), "training": training.values[-1]}
    return Symptom(
        kind=AlarmKind.OVERFITTING, subject=trace.name, step=since.step, epoch=since.epoch, numbers=numbers,
        message=f"{trace.name} has risen from {figure(low.value)} at {where(low)} to {figure(now.value)} at {where(now)}, "
                f"while {training.name} went on falling to {figure(training.values[-1])}",
        causes=("trained longer than the data bear", "too little regularisation or augmentation",
                "validation data unlike those of training"))


# ---- stuck at zero --------------------------------------------------------------------------------------------------


def stuck(trace: Trace, look: Look) -> Symptom | None:
    """A metric of which more is better that has been exactly 0.0 in `rule.stuck` validations and never anything else."""
    count, summary = look.rule.stuck, trace.curve.summary
    if count is None or trace.kind is not NameKind.METRIC or trace.mode is not Mode.MAX or summary.count < count:
        return None
    if summary.low != 0 or summary.high != 0 or not _of_validations(trace, look, count):
        return None
    return Symptom(
        kind=AlarmKind.STUCK, subject=trace.name,
        numbers={"current": 0.0, "validations": float(summary.count)},
        message=f"{trace.name} has been 0.0 in all {summary.count} validations",
        causes=("predictions and ground truth in different coordinates, scales or formats",
                "wrong classes, keypoints or category ids in the evaluation", "a threshold above every score",
                "a model that does not learn"))


def _of_validations(trace: Trace, look: Look, count: int) -> bool:
    """Is a value of it a validation, not one of many within an epoch of training?"""
    if is_training(trace.name):
        return False
    losses = look.of(NameKind.TRAINING_LOSS)
    often = max((t.curve.summary.count for t in losses), default=0)
    if is_validation(trace.name) or 2 * trace.curve.summary.count <= often or not often:
        return True
    epochs = {math.floor(p.epoch) for p in trace.points if p.epoch is not None}
    return len(epochs) >= count
