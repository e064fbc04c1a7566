"""Which evaluation runs next, which checkpoints are evaluated at all, and how long a failed one waits."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

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


def due(position: int, *, rule: EvaluateRule, role: Role) -> tuple[bool, str]:
    """Is the checkpoint at this 1-based position of its run to be evaluated, and if not, why.

    Position 0 is that of the trainer's own copies, its best and last: they are evaluated only where every one is.
    """
    if role is Role.FINAL:
        return (True, "") if rule.final else (False, "final checkpoints are not evaluated (final: false)")
    if rule.every < 1:
        return False, f"evaluation is off (every: {rule.every})"
    if rule.every == 1 or (position > 0 and position % rule.every == 0):
        return True, ""
    return False, f"every {_ordinal(rule.every)} checkpoint is evaluated"


def _ordinal(n: int) -> str:
    teen = n % 100 in (11, 12, 13)
    return f"{n}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"
