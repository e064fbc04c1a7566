"""Which logged value belongs to which checkpoint.

A value was measured on the weights of its step. It belongs to the first checkpoint saved at that step or later, for between
the two nothing else was saved: never to later ones, whose weights are others. So of two checkpoints after one validation
only the first has its result. Where a log counts only epochs, or a checkpoint does, epochs decide.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckptwatch.core.series import LogPoint

HALF = 1e-9
NOT_LATER, EXACT, NEAREST, CARRY = "not_later", "exact", "nearest", "carry"


@dataclass(frozen=True, kw_only=True)
class Span:
    """Where in the counts of a run a checkpoint lies, between its neighbours. None: not known, or there is none."""

    step: int | None
    epoch: int | None
    step_before: int | None = None   # of the checkpoint before it, in the same stretch
    epoch_before: int | None = None
    step_after: int | None = None
    epoch_after: int | None = None


def spans(counts: Sequence[tuple[int, int | None, int | None]]) -> list[Span]:
    """The spans of checkpoints given as (generation, step, epoch), in their order. A generation is a stretch of its own.

    Two of the same count (a rolling copy and the numbered file) are one place.
    """
    steps = _by_generation((g, step) for g, step, _ in counts)
    epochs = _by_generation((g, epoch) for g, _, epoch in counts)
    found = []
    for generation, step, epoch in counts:
        (step_before, step_after), (epoch_before, epoch_after) = (
            _neighbours(steps.get(generation, []), step), _neighbours(epochs.get(generation, []), epoch))
        found.append(Span(step=step, epoch=epoch, step_before=step_before, epoch_before=epoch_before,
                          step_after=step_after, epoch_after=epoch_after))
    return found


def _by_generation(counts: Iterable[tuple[int, int | None]]) -> dict[int, list[int]]:
    found: dict[int, set[int]] = {}
    for generation, count in counts:
        if count is not None:
            found.setdefault(generation, set()).add(count)
    return {generation: sorted(known) for generation, known in found.items()}


def _neighbours(known: Sequence[int], count: int | None) -> tuple[int | None, int | None]:
    if count is None:
        return None, None
    at = bisect_left(known, count)
    return (known[at - 1] if at else None), (known[at + 1] if at + 1 < len(known) else None)


def choose(points: Sequence[LogPoint], span: Span, *, attach: str = NOT_LATER) -> LogPoint | None:
    """The point that belongs to the checkpoint: of several the nearest, of equally near ones the newest.

    `attach`: "not_later", as above; "exact", only of the very step or epoch; "nearest", also a later one, up to half way to
    the next checkpoint; "carry", the newest not later, whichever other checkpoints lie in between.
    """
    best: tuple[float, int] | None = None
    chosen = None
    for turn, point in enumerate(points):
        away = _distance(point, span, attach)
        if away is not None and (best is None or (away, -turn) <= best):
            best, chosen = (away, -turn), point
    return chosen


def _distance(point: LogPoint, span: Span, attach: str) -> float | None:
    """How far a point is from the checkpoint, None where it cannot be its own."""
    if point.step is not None and span.step is not None:
        return _apart(point.step, span.step, span.step_before, span.step_after, attach)
    if point.epoch is not None and span.epoch is not None:
        return _apart(point.epoch, span.epoch, span.epoch_before, span.epoch_after, attach)
    return None


def _apart(at: float, count: int, before: int | None, after: int | None, attach: str) -> float | None:
    away = count - at
    if attach == EXACT:
        return 0.0 if away == 0 else None
    if attach == NEAREST:
        neighbour = before if away > 0 else after
        # Half way between two, a value belongs to the later one: it was measured on the way there.
        nearer = neighbour is None or away == 0 or abs(away) < abs(at - neighbour) + (away > 0) * HALF
        return abs(away) if nearer else None
    return away if away >= 0 and (attach == CARRY or before is None or at > before) else None


def stretch_of(
    reach: Mapping[int, tuple[float, float] | None], count: int | None, *, generation: int = 0, newest: int = 0,
) -> int | None:
    """Which stretch of training wrote a checkpoint of this count, by how far each has come: stretch → (lowest, highest).

    A run that started over logs the same steps again. The newest stretch that has come as far as the checkpoint wrote it;
    else the newest that has begun before it, which is still on its way there. `generation` is the checkpoint's, `newest`
    that of the run's newest: what was saved after a run is known to have started over is of its last stretch, and what was
    saved before is of none of the later ones.
    """
    if count is None:
        return max(reach, default=None)
    last = max(reach, default=0) - (newest - generation)
    begun = {stretch: span for stretch, span in reach.items()
             if span is not None and span[0] <= count and (stretch <= last or last < 0)}
    if 0 < generation == newest:
        return max(begun, default=None)
    return max(((high >= count, stretch) for stretch, (_, high) in begun.items()), default=(False, None))[1]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A stretch of a log that has a name, as one that may have written a checkpoint's value."""

    log: int             # id
    stretch: int
    family: str          # equal ones follow one another, a new file at each start; unlike ones are written side by side
    begun: float         # none of it was written before; 0: not known
    written: float       # when its file was written last
    reach: tuple[float, float] | None = None  # lowest and highest count, where there are several stretches
    validation: bool = False  # does its path say that it is one of validation?


SLACK = 60.0     # seconds for which a file may have been at rest when what it tells of was saved
SKEW = 1.0       # seconds by which clocks may differ


def owner(
    sources: Sequence[Source], count: int | None, saved: float, *, generation: int = 0, newest: int = 0,
) -> Source | None:
    """Which of the logs that have a name speaks of a checkpoint of this count, saved at that time.

    Nothing that began after it was saved, where something of the kind was there before: what was logged later was measured
    on other weights. Of logs written side by side always the same, so that one metric has one origin: of validation before
    others, then by path.
    """
    families: dict[str, list[Source]] = {}
    for source in sources:
        families.setdefault(source.family, []).append(source)
    if not families:
        return None
    logs: dict[int, list[Source]] = {}
    for source in families[min(families, key=lambda f: (not any(s.validation for s in families[f]), f))]:
        logs.setdefault(source.log, []).append(source)
    return _stretch_among(_log_among(list(logs.values()), saved), count, saved, generation, newest)


def _log_among(logs: list[list[Source]], saved: float) -> list[Source]:
    """Of files that follow one another the first that was still written when it was saved, or one after that had begun
    by then."""
    ordered = sorted(logs, key=lambda own: (min(s.begun for s in own), own[0].written, own[0].log))
    at = next((i for i, own in enumerate(ordered) if own[0].written + SLACK >= saved), len(ordered) - 1)
    while at + 1 < len(ordered) and 0 < min(s.begun for s in ordered[at + 1]) <= saved + SKEW:
        at += 1
    while at and min(s.begun for s in ordered[at]) > saved + SKEW:
        at -= 1
    return ordered[at]


def _stretch_among(
    own: Sequence[Source], count: int | None, saved: float, generation: int, newest: int,
) -> Source | None:
    first = min(s.stretch for s in own)
    begun = {s.stretch: s for s in own if s.stretch == first or s.begun <= saved + SKEW}
    if len(begun) == 1 or 0 < begun[max(begun)].begun < saved - SKEW:
        return begun[max(begun)]  # the last that had begun when it was saved
    stretch = stretch_of({k: s.reach for k, s in begun.items()}, count, generation=generation, newest=newest)
    return None if stretch is None else begun[stretch]
