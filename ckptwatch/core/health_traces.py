"""Curves made ready for the checks: finite values, kinds, and where on them something stands."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from ckptwatch.core.health_names import NameKind, better, is_learning_rate, kind_of
from ckptwatch.core.series import Curve, LogPoint
from ckptwatch.model import HealthRule, Mode

LR_ROSE = 1.5  # times its former value by which a learning rate must grow to explain what follows


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One curve of one name, with what is finite of it."""

    curve: Curve
    kind: NameKind
    mode: Mode | None

    @property
    def name(self) -> str:
        return self.curve.name

    @cached_property
    def points(self) -> Sequence[LogPoint]:
        recent = self.curve.recent
        return recent if all(_finite(p.value) for p in recent) else [p for p in recent if _finite(p.value)]

    @cached_property
    def values(self) -> list[float]:
        return [p.value for p in self.points]

    @cached_property
    def long(self) -> list[float]:
        """Levels over the whole attempt: of history, which is the recent points themselves while they are few."""
        return [p.value for p in self.curve.history if _finite(p.value)]

    @property
    def thinned(self) -> bool:
        """Does history reach further back than the recent points, as means of many?"""
        return self.curve.summary.count > len(self.points)


@dataclass(frozen=True, kw_only=True)
class Look:
    """All there is to see of a run at one moment."""

    rule: HealthRule
    traces: tuple[Trace, ...]

    def of(self, *kinds: NameKind) -> list[Trace]:
        return [t for t in self.traces if t.kind in kinds]

    @cached_property
    def rates(self) -> list[Trace]:
        return [t for t in self.traces if t.kind is NameKind.OTHER and is_learning_rate(t.name)]

    def rate_rose(self, since: LogPoint) -> bool:
        """Has a learning rate grown after a point (warm-up, a restart)? Losses rise and metrics fall then, in health."""
        return any(_rose(trace.points, since) for trace in self.rates)

    def rate_gone(self) -> bool:
        """Is every learning rate down to a hundredth of its highest: the end of a schedule?"""
        ended = [t.values[-1] <= 0.01 * max(t.values) for t in self.rates if t.values and max(t.values) > 0]
        return bool(ended) and all(ended)


def look(curves: Iterable[Curve], *, rule: HealthRule, modes: Mapping[str, Mode]) -> Look:
    """The curves that are looked at: those whose names no pattern of `rule.ignore` matches."""
    traces = []
    for curve in curves:
        if any(fnmatchcase(curve.name, pattern) for pattern in rule.ignore):
            continue
        kind = kind_of(curve.name)
        if curve.name in modes and kind is NameKind.OTHER:
            kind = NameKind.METRIC
        traces.append(Trace(curve=curve, kind=kind, mode=modes.get(curve.name) or better(curve.name)))
    return Look(rule=rule, traces=tuple(traces))


def place(point: LogPoint) -> float | None:
    """Where a point stands among those of other names: its step, or else its epoch."""
    return point.epoch if point.step is None else point.step


def same_unit(a: LogPoint, b: LogPoint) -> bool:
    return (a.step is None) == (b.step is None) and place(a) is not None and place(b) is not None


def where(point: LogPoint) -> str:
    """In words: "step 1,200", "epoch 12", "the newest row"."""
    if point.step is not None:
        return f"step {point.step:,}"
    return "the newest row" if point.epoch is None else f"epoch {point.epoch:g}"


def figure(value: float) -> str:
    """A number as the messages show it: four digits that count."""
    return f"{value:.4g}"


def _rose(points: Sequence[LogPoint], since: LogPoint) -> bool:
    start = place(since)
    if start is None or not points or not same_unit(points[-1], since):
        return False
    before: float | None = None
    highest = 0.0
    for point in points:
        at = place(point)
        if at is None:
            continue
        if at <= start:
            before = point.value
        else:
            highest = max(highest, point.value)
    before = points[0].value if before is None else before
    return highest > LR_ROSE * max(before, 0.0)


def _finite(value: float) -> bool:
    return value - value == 0.0
