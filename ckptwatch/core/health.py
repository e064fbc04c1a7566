"""The health of a run at one moment: what its logs, evaluations and checkpoints say is wrong.

Pure and without memory: called again whenever there is something new. What a check finds holds now, so an alarm is over
when its symptom is no longer found (see `ckptwatch.core.alarms` for how long it must be gone). The checks prefer missing
something to crying wolf: each asks for a difference beyond the curve's own noise, learnt from the curve itself.
"""

from collections.abc import Iterator, Mapping, Sequence

from ckptwatch.core.health_losses import divergence, loss_spike, plateau
from ckptwatch.core.health_names import NameKind, kind_of
from ckptwatch.core.health_traces import Look, look
from ckptwatch.core.health_validations import metric_drop, overfitting, stuck
from ckptwatch.core.health_values import Saved, bad_weights, not_finite, stalled
from ckptwatch.core.series import Curve
from ckptwatch.model import AlarmKind, HealthRule, Mode, Symptom

__all__ = ["NameKind", "Saved", "examine", "kind_of"]

LOSSES = (NameKind.TRAINING_LOSS, NameKind.VALIDATION_LOSS)


def examine(
    curves: Sequence[Curve], *, rule: HealthRule, checkpoints: Sequence[Saved], last_row_at: float | None, now: float,
    ended: bool, modes: Mapping[str, Mode] | None = None,
) -> tuple[Symptom, ...]:
    """All symptoms at this moment, at most one of each kind for each name.

    `curves`: of the newest attempt, logged names and evaluations alike; an evaluation's curve has one point for each
    checkpoint. `checkpoints`: in the order of their steps. `last_row_at`: when a log last grew, None without logs; `now`,
    both in seconds since the epoch. `modes`: which direction of a name is better, where that is known; for others their
    words tell. Costs milliseconds, whatever the length of the run: the points of a curve are bounded.
    """
    if not rule.enabled:
        return ()
    seen = look(curves, rule=rule, modes=modes or {})
    found = [*_of_curves(seen), bad_weights(checkpoints, rule),
             stalled(checkpoints, rule, last_row_at=last_row_at, now=now, ended=ended, schedule_over=seen.rate_gone())]
    return tuple(_without_echoes([s for s in found if s is not None]))


def _of_curves(seen: Look) -> Iterator[Symptom | None]:
    for trace in seen.traces:
        yield not_finite(trace, seen)
    for trace in seen.of(NameKind.TRAINING_LOSS):
        yield plateau(trace, seen)
    for trace in seen.of(*LOSSES):
        if trace.kind is NameKind.TRAINING_LOSS or not seen.of(NameKind.TRAINING_LOSS):
            yield loss_spike(trace, seen)
            yield divergence(trace, seen)
        yield overfitting(trace, seen)
    for trace in seen.of(NameKind.METRIC):
        yield metric_drop(trace, seen)
        yield stuck(trace, seen)


def _without_echoes(symptoms: Sequence[Symptom]) -> Iterator[Symptom]:
    """A loss that rises for good is no plateau, whatever its last points look like."""
    diverged = {s.subject for s in symptoms if s.kind is AlarmKind.DIVERGENCE}
    return (s for s in symptoms if not (s.kind is AlarmKind.PLATEAU and s.subject in diverged))
