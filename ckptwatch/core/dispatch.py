"""Which evaluation runs next, which checkpoints are evaluated at all, and how long a failed one waits."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ckptwatch.core.amounts import ordinal
from ckptwatch.model import EvaluateRule, Role

FIRST_PAUSE = 30.0     # seconds
LONGEST_PAUSE = 3600.0


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A pending evaluation."""

    evaluation_id: int
    run_id: int
    order: tuple[int, ...]    # Checkpoint.order
    available_at: float = 0.0
    running: int = 0          # evaluations of its run that run now
    served_at: float = 0.0    # when its run was last given a slot: with one slot `running` alone would starve runs


def backoff(attempts: int, *, first: float = FIRST_PAUSE) -> float:
    """Seconds to wait after the n-th failed attempt: by default 30 s, 2 min, 8 min, 32 min, then 1 h."""
    if attempts <= 0:
        return 0.0
    return min(first * 4.0 ** min(attempts - 1, 16), max(first, LONGEST_PAUSE))


def choose(waiting: Sequence[Waiting], *, free: int, now: float) -> tuple[int, ...]:
    """Ids of the evaluations to start on `free` slots: runs in turn, the one with the fewest running first, then the
    one served longest ago; within a run the newest checkpoint first."""
    queues: dict[int, list[Waiting]] = defaultdict(list)
    for item in waiting:
        if item.available_at <= now:
            queues[item.run_id].append(item)
    for queue in queues.values():
        # Last is next. Variants of one checkpoint go in the order they were queued.
        queue.sort(key=lambda w: (w.order, -w.evaluation_id))
    load = {run: max(w.running for w in queue) for run, queue in queues.items()}
    served = {run: max(w.served_at for w in queue) for run, queue in queues.items()}
    chosen: list[int] = []
    while queues and len(chosen) < free:
        run = min(queues, key=lambda r: (load[r], served[r], r))
        chosen.append(queues[run].pop().evaluation_id)
        load[run] += 1
        if not queues[run]:
            del queues[run]
    return tuple(chosen)


def shares(limits: Sequence[int], *, free: int) -> tuple[int, ...]:
    """How many of `free` workers each chosen evaluation gets, in their order: one each, then what is left over to those
    that may be shared by more (`limits`), the first ones first."""
    counts = [min(1, free - i) if i < free else 0 for i in range(len(limits))]
    left = free - sum(counts)
    for i, limit in enumerate(limits):
        more = max(0, min(left, limit - counts[i])) if counts[i] else 0
        counts[i] += more
        left -= more
    return tuple(counts)


def due(
    position: int, *, rule: EvaluateRule, role: Role, step: int | None = None, epoch: int | None = None,
) -> tuple[bool, str]:
    """Is a checkpoint to be evaluated, and if not, why.

    By `every_steps` or `every_epochs` its own step or epoch decides, which counts for the trainer's rolling copies too:
    `checkpoint-last.pth` is due when it is seen at a multiple. By `every` its 1-based position in its run does; position 0
    is that of the trainer's own copies, its best and last, which are evaluated only where every one is.
    """
    if role is Role.FINAL:
        return (True, "") if rule.final else (False, "final checkpoints are not evaluated (final: false)")
    if rule.every_steps is not None:
        return _due_at_multiples(step, of=rule.every_steps, unit="step", role=role)
    if rule.every_epochs is not None:
        return _due_at_multiples(epoch, of=rule.every_epochs, unit="epoch", role=role)
    if rule.every < 1:
        return False, f"evaluation is off (every: {rule.every})"
    if rule.every == 1 or (position > 0 and position % rule.every == 0):
        return True, ""
    return False, f"every {ordinal(rule.every)} checkpoint is evaluated"


def knows_its_place(*, rule: EvaluateRule, step: int | None, epoch: int | None) -> bool:
    """Can the rule tell whether a checkpoint with these counts is due? One it cannot tell of is not left out on purpose."""
    if rule.every_steps is not None:
        return step is not None
    return rule.every_epochs is None or epoch is not None


def _due_at_multiples(count: int | None, *, of: int, unit: str, role: Role) -> tuple[bool, str]:
    if of < 1:
        return False, f"evaluation is off (every_{unit}s: {of})"
    which = f"every {unit}" if of == 1 else f"every {ordinal(of)} {unit}"
    if role is Role.BEST:  # a second copy of what was or was not due under its own name
        return False, f"{which} is evaluated, and the trainer's own best is a copy of one"
    if count is None:
        return False, f"{which} is evaluated, and the {unit} of this one is not known"
    if count % of == 0:
        return True, ""
    return False, f"{which} is evaluated, this is {count}"
