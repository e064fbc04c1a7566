"""`training_stats.txt`: what a run's losses and metrics came to, in a few numbers, and what was wrong on the way."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptwatch.core.health_names import NameKind, better, kind_of, words_of
from ckptwatch.core.series import LogPoint, Summary
from ckptwatch.core.telling import WORDS
from ckptwatch.model import Alarm, Mode
from ckptwatch.publish.atomic import write_if_changed

STATS = "training_stats.txt"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of one run: losses and metrics by name, in the order of their names, the loss itself and AP first."""

    run: str
    losses: Mapping[str, Summary]
    metrics: Mapping[str, tuple[Summary, Mode]]
    alarms: tuple[Alarm, ...]  # oldest first


def statistics_of(
    run: str, summaries: Sequence[tuple[str, str, Summary]], alarms: Sequence[Alarm],
    modes: Mapping[str, Mode] | None = None,
) -> Statistics:
    """From (name, log, summary) of all a run logged. Of a name in several logs the one with most points counts.

    `modes`: which direction of a name is better, where that is known; for others their words tell, and what has neither
    is left out: learning rates, times, counters.
    """
    known = modes or {}
    whole: dict[str, Summary] = {}
    for name, _, summary in summaries:
        total = summary.count + summary.not_finite
        if total and (name not in whole or total > whole[name].count + whole[name].not_finite):
            whole[name] = summary
    losses, metrics = {}, {}
    for name in sorted(whole, key=lambda n: (not _leads(n), n)):
        kind, mode = kind_of(name), known.get(name) or better(name)
        if kind in (NameKind.TRAINING_LOSS, NameKind.VALIDATION_LOSS):
            losses[name] = whole[name]
        elif mode is not None and (kind is NameKind.METRIC or name in known):
            metrics[name] = (whole[name], mode)
    return Statistics(run=run, losses=losses, metrics=metrics,
                      alarms=tuple(sorted(alarms, key=lambda a: (a.opened_at, a.id))))


def write_stats(directory: Path, statistics: Statistics) -> bool:
    """Write `training_stats.txt` into a directory, atomically; False where it holds just that. Raises OSError."""
    return write_if_changed(directory / STATS, as_text(statistics).encode("utf-8", "replace"))


# ---- for people -----------------------------------------------------------------------------------------------------


def as_text(statistics: Statistics) -> str:
    """Lines with aligned columns, the last one ended."""
    s = statistics
    lines = [f"Training statistics: {s.run}"]
    if s.losses:
        rows = [_loss_row(name, summary) for name, summary in s.losses.items()]
        lines += ["", *_table(["Losses", "mean", "std", "min", "max", "final", "points"], rows)]
    if s.metrics:
        rows = [_metric_row(name, summary, mode) for name, (summary, mode) in s.metrics.items()]
        lines += ["", *_table(["Metrics", "best", "at", "final", "points"], rows)]
    if (best := _best_ap(s)) is not None:
        lines += ["", best]
    if not s.losses and not s.metrics:
        lines += ["", "Nothing was logged that is a loss or a metric."]
    lines += ["", "Alarms" if s.alarms else "Alarms: none", *(f"  {_alarm_line(a)}" for a in s.alarms)]
    return "\n".join(_printable(line) for line in lines) + "\n"


def _loss_row(name: str, s: Summary) -> list[str]:
    numbers = [_figure(v) if s.count else "-" for v in (s.mean, s.std, s.low, s.high)]
    points = f"{s.count + s.not_finite:,}" + (f", {s.not_finite:,} not finite" if s.not_finite else "")
    return [name, *numbers, _figure(s.last.value) if s.last else "-", points]


def _metric_row(name: str, s: Summary, mode: Mode) -> list[str]:
    best = _best(s, mode)
    points = f"{s.count + s.not_finite:,}" + (f", {s.not_finite:,} not finite" if s.not_finite else "")
    return [name, _figure(best.value) if best else "-", _place(best), _figure(s.last.value) if s.last else "-", points]


def _best_ap(s: Statistics) -> str | None:
    """In the words of pose estimation's own monitor."""
    known = {n: best for n, (summary, mode) in s.metrics.items() if _is_ap(n) and (best := _best(summary, mode))}
    if not known:
        return None
    name = next(iter(known))
    return f"Best AP: {_figure(known[name].value)} ({_place(known[name])})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Names to the left, numbers to the right; what stands in the last column may be longer than its head."""
    cells = [list(head), *([f"  {name}", *rest] for name, *rest in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return ["  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(between, widths[1:-1], strict=True)), last])
            for name, *between, last in cells]


def _alarm_line(alarm: Alarm) -> str:
    end = "open" if alarm.closed_at is None else "over"
    back = f"; go back to {alarm.go_back_to}" if alarm.go_back_to is not None and alarm.closed_at is None else ""
    return f"{WORDS[alarm.symptom.kind]} ({end}): {alarm.symptom.message}{back}"


def _figure(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.4g}"


def _place(point: LogPoint | None) -> str:
    if point is None:
        return "-"
    parts = [f"epoch {point.epoch:g}"] if point.epoch is not None else []
    return ", ".join([*parts, *([f"step {point.step:,}"] if point.step is not None else [])]) or "-"


def _printable(line: str) -> str:
    """Names come from logs: a line break in one must not make another line of it."""
    return "".join(c if c.isprintable() else "?" for c in line)


# ---- for programs ---------------------------------------------------------------------------------------------------


def as_json(statistics: Statistics) -> dict[str, Any]:
    """As `ckptwatch stats --json` prints it; what is no number is None."""
    s = statistics
    return {
        "version": VERSION, "run": s.run,
        "losses": {name: {"mean": _number(x.mean, x), "std": _number(x.std, x), "min": _number(x.low, x),
                          "max": _number(x.high, x), "final": _last(x), "count": x.count, "not_finite": x.not_finite}
                   for name, x in s.losses.items()},
        "metrics": {name: _metric_json(x, mode) for name, (x, mode) in s.metrics.items()},
        "alarms": [_alarm_json(a) for a in s.alarms],
    }


def _metric_json(s: Summary, mode: Mode) -> dict[str, Any]:
    best = _best(s, mode)
    return {"best": best.value if best else None, "best_step": best.step if best else None,
            "best_epoch": best.epoch if best else None, "final": _last(s), "count": s.count, "not_finite": s.not_finite}


def _alarm_json(alarm: Alarm) -> dict[str, Any]:
    symptom = alarm.symptom
    return {"kind": str(symptom.kind), "subject": symptom.subject, "message": symptom.message,
            "numbers": {k: v if math.isfinite(v) else None for k, v in symptom.numbers.items()},
            "causes": list(symptom.causes), "step": symptom.step, "epoch": symptom.epoch,
            "go_back_to": None if alarm.go_back_to is None else str(alarm.go_back_to),
            "opened_at": alarm.opened_at, "updated_at": alarm.updated_at, "closed_at": alarm.closed_at}


def _number(value: float, of: Summary) -> float | None:
    return value if of.count and math.isfinite(value) else None


def _last(s: Summary) -> float | None:
    return s.last.value if s.last is not None and math.isfinite(s.last.value) else None


def _best(s: Summary, mode: Mode) -> LogPoint | None:
    return s.high_at if mode is Mode.MAX else s.low_at


def _leads(name: str) -> bool:
    return name == "loss" or _is_ap(name)


def _is_ap(name: str) -> bool:
    """"AP", "coco/AP", "bbox_mAP", "metrics/mAP50-95(B)"; not AP50, AP75 or AP of the small ones."""
    words = words_of(name)
    at = next((i for i, w in enumerate(words) if w in ("ap", "map")), None)
    return at is not None and words[at + 1 :] in ((), ("50", "95"), ("50", "95", "b"))
