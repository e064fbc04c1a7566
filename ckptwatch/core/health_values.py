"""Checks that need no statistics: values and weights that are not numbers, checkpoints that do not come."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ckptwatch.core.amounts import format_duration
from ckptwatch.core.health_names import NameKind
from ckptwatch.core.health_noise import median
from ckptwatch.core.health_traces import Look, Trace, where
from ckptwatch.core.series import LogPoint
from ckptwatch.model import AlarmKind, HealthRule, Symptom, WeightScan


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint as the checks see it."""

    step: int | None
    epoch: int | None
    at: float                        # seconds since the epoch at which it was written
    weights: WeightScan | None = None  # None: not looked at


# ---- NaN and Inf ----------------------------------------------------------------------------------------------------


def not_finite(trace: Trace, look: Look) -> Symptom | None:
    """NaN or Inf among the last `rule.window` points of a loss or metric; over once as many have been finite.

    A metric counts only if it has ever been a number: the AP of a class without samples never is.
    """
    if not look.rule.not_finite or trace.kind is NameKind.OTHER:
        return None
    recent = trace.curve.recent
    newest = recent[-look.rule.window :]
    if all(math.isfinite(p.value) for p in newest):
        return None
    if trace.kind is NameKind.METRIC and trace.curve.summary.count == 0:
        return None
    bad = [p for p in newest if not math.isfinite(p.value)]
    since, streak = _since(recent)
    numbers = {"bad": float(len(bad)), "of": float(len(newest)), "streak": float(streak)}
    word = _word(bad[-1].value)
    if streak:
        seen = f"{trace.name} is {word} since {where(since)}" + (f": {streak} values in a row" if streak > 1 else "")
    else:
        seen = f"{trace.name} was {word} at {where(bad[-1])}, {len(bad)} of the last {len(newest)} values"
        since = bad[0]
    return Symptom(
        kind=AlarmKind.NOT_FINITE, subject=trace.name, step=since.step, epoch=since.epoch, numbers=numbers, message=seen,
        causes=("learning rate too high", "overflow in half precision", "division by zero, or the logarithm of it",
                "a corrupt sample"))


def _since(points: Sequence[LogPoint]) -> tuple[LogPoint, int]:
    """The first of the values at the end that are all no numbers, and how many they are."""
    at = len(points)
    while at > 0 and not math.isfinite(points[at - 1].value):
        at -= 1
    return points[min(at, len(points) - 1)], len(points) - at


def _word(value: float) -> str:
    return "NaN" if math.isnan(value) else "Inf" if value > 0 else "-Inf"


def bad_weights(checkpoints: Sequence[Saved], rule: HealthRule) -> Symptom | None:
    """NaN or Inf in the newest checkpoint whose weights were read, and since which of those in a row."""
    scanned = [c for c in checkpoints if c.weights is not None and c.weights.state in ("finite", "not_finite")]
    at = len(scanned)
    while at > 0 and scanned[at - 1].weights.state == "not_finite":  # type: ignore[union-attr]
        at -= 1
    if not rule.weights or at == len(scanned):
        return None
    since, newest = scanned[at], scanned[-1]
    scan = newest.weights
    assert scan is not None
    names = ", ".join(f"{name} ({count:,})" for name, count in list(scan.bad.items())[:3])
    more = f" and {scan.bad_tensors - 3} more" if scan.bad_tensors > 3 and len(scan.bad) >= 3 else ""
    tensors = "1 tensor" if scan.bad_tensors == 1 else f"{scan.bad_tensors} tensors"
    return Symptom(
        kind=AlarmKind.WEIGHTS, subject="weights", step=since.step, epoch=since.epoch,
        numbers={"tensors": float(scan.bad_tensors), "checkpoints": float(len(scanned) - at)},
        message=f"NaN or Inf in {tensors} of the checkpoint at {_count(newest)}: {names}{more}",
        causes=("training diverged: look at the loss before", "overflow in half precision", "a damaged file"))


# ---- checkpoints that do not come -----------------------------------------------------------------------------------

CHECKPOINTS = 3     # that there must be, to know their interval
TOGETHER = 0.1      # part of the usual interval within which two were saved at once: a copy called "best" or "last"
LONGEST = 1.5       # times the interval that only a tenth exceed: pauses that were seen before are no news
SHORTEST = 60.0     # seconds: any machine may pause so long


def stalled(
    checkpoints: Sequence[Saved], rule: HealthRule, *, last_row_at: float | None, now: float, ended: bool,
    schedule_over: bool = False,
) -> Symptom | None:
    """No checkpoint for `rule.stalled` times the median interval between those there are, unless the run has ended.

    A run that is silent at the end of its learning rate's schedule is taken for one that has ended.
    """
    late_at = stalled_at(checkpoints, rule)
    if late_at is None or ended or now <= late_at:
        return None
    times = sorted(c.at for c in checkpoints)
    usual, waited = median(_gaps(times)), now - times[-1]
    newest = max(checkpoints, key=lambda c: c.at)
    grows = last_row_at is not None and now - last_row_at <= max(usual, SHORTEST)
    if schedule_over and not grows:
        return None
    return Symptom(
        kind=AlarmKind.STALLED, subject="checkpoints", numbers={"waited": waited, "usual": usual, "times": waited / usual},
        message=f"no checkpoint for {format_duration(waited)}, {waited / usual:.1f} × the usual {format_duration(usual)}; "
                f"the newest is at {_count(newest)}. {_log(last_row_at, grows, now)}",
        causes=("saving fails: disk full, quota, permissions", "saving waits for a metric that no longer improves",
                "steps became slower") if grows else
               ("training hangs: a collective, a data loader, a file system", "the process was killed or ended",
                "the machine or its file system is gone"))


def stalled_at(checkpoints: Sequence[Saved], rule: HealthRule) -> float | None:
    """When the next checkpoint will be late, in seconds since the epoch; None where too few tell what is usual."""
    times = sorted(c.at for c in checkpoints)
    if rule.stalled is None or len(times) < CHECKPOINTS:
        return None
    gaps = _gaps(times)
    if len(gaps) < CHECKPOINTS - 1:
        return None
    rare = sorted(gaps)[math.ceil(0.9 * (len(gaps) - 1))]
    return times[-1] + max(rule.stalled * median(gaps), LONGEST * rare, SHORTEST)


def _gaps(times: Sequence[float]) -> list[float]:
    """Intervals, those saved together counted once. What is usual is judged by the longer ones first."""
    gaps = [b - a for a, b in pairwise(times)]
    least = TOGETHER * sorted(gaps)[math.ceil(0.75 * (len(gaps) - 1))]
    merged = []
    waited = 0.0
    for gap in gaps:
        waited += gap
        if gap > least:
            merged.append(waited)
            waited = 0.0
    return merged


def _log(last_row_at: float | None, grows: bool, now: float) -> str:
    if last_row_at is None:
        return "It writes no log that is read"
    age = format_duration(max(0.0, now - last_row_at))
    return f"Its log still grows: last row {age} ago" if grows else f"Its log stopped as well: last row {age} ago"


def _count(saved: Saved) -> str:
    if saved.step is not None:
        return f"step {saved.step:,}"
    return "an unknown step" if saved.epoch is None else f"epoch {saved.epoch}"
