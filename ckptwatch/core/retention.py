"""Which checkpoints of a run to keep and which to remove, each with reasons. Any rule that matches keeps.

Whatever is unknown keeps: no rules, no rank where one was wanted, a name that could not be read, a file that is not
whole. Removal needs every rule to have had its say against it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckptwatch.core.amounts import format_duration
from ckptwatch.core.naming import series_of
from ckptwatch.model import (
    Action,
    Checkpoint,
    CheckpointState,
    Decision,
    KeepRules,
    RetentionFacts,
    RetentionPlan,
    Role,
    evolve,
)

_ROLE_REASONS = {
    Role.FINAL: "the final checkpoint of its run",
    # Trainers resume from these and rewrite or remove them by themselves; some crash if they are gone.
    Role.LAST: "the trainer's own rolling last",
    Role.BEST: "the trainer's own best",
}


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What the rules need to know of all checkpoints together."""

    rules: KeepRules
    ranking_wanted: bool
    ranked: int
    ranked_by: Mapping[str, int]  # how many have a rank by each monitor's metric
    last: frozenset[int]    # ids among the last n
    newest: frozenset[int]  # ids of the newest complete ones
    step_milestones: Mapping[int, int]   # id → the multiple of every_steps it stands for
    epoch_milestones: Mapping[int, int]
    now: float


def plan_retention(
    facts: Sequence[RetentionFacts], *, rules: KeepRules | None, ranking_wanted: bool, approve_over: float,
    approved: frozenset[int], now: float,
) -> RetentionPlan:
    """One decision for every checkpoint, in run order.

    `ranking_wanted`: the rules ask for the best k, so a checkpoint without a rank is kept until it has one. The plan is
    `held` if it removes more than the part `approve_over` of the complete checkpoints, unless `approved` names them all.
    """
    ordered = sorted(facts, key=lambda f: _position(f.checkpoint))
    if rules is None or rules == KeepRules():
        reason = "no keep rule for this run" if rules is None else "all keep rules of this run are switched off"
        return RetentionPlan(decisions=tuple(_decide(f, (reason,), ()) for f in ordered))
    run = _survey(ordered, rules, ranking_wanted, now)
    decisions = tuple(_decide(f, _keeping(f, run), _removing(f, run)) for f in ordered)
    plan = RetentionPlan(decisions=decisions)
    return evolve(plan, held=_held(plan, approve_over, approved))


def _survey(ordered: Sequence[RetentionFacts], rules: KeepRules, ranking_wanted: bool, now: float) -> _Run:
    complete = [f.checkpoint for f in ordered if f.checkpoint.state is CheckpointState.COMPLETE]
    # Copies the trainer keeps under fixed names take no place among the last n and do not count as the newest.
    own = [c for c in complete if c.role in (Role.REGULAR, Role.FINAL)] or complete
    last = own[-rules.last :] if rules.last is not None and rules.last > 0 else []
    newest = [c for c in own if c.order == own[-1].order]
    # Several models in one directory, `fold0_epoch_9` and `fold1_epoch_5`: the last of each may be all there is of it.
    newest += {series_of(c.path.name): c for c in own}.values()
    # One file with a lower step is not yet a run that started over: until there are two, what was newest before stays.
    current = [c for c in own if own and c.generation == own[-1].generation]
    before = [c for c in own if c.generation < own[-1].generation] if len(current) < 2 else []
    newest += [c for c in before if c.order == before[-1].order]
    return _Run(
        rules=rules, ranking_wanted=ranking_wanted or rules.best not in (None, 0, -1),
        ranked=sum(f.rank is not None for f in ordered),
        ranked_by={m.rule.by: sum(m.rule.by in f.ranks for f in ordered) for m in rules.monitors},
        last=frozenset(c.id for c in last),
        newest=frozenset(c.id for c in newest), now=now,
        step_milestones=_milestones([(c, c.step) for c in own], rules.every_steps),
        epoch_milestones=_milestones([(c, c.epoch) for c in own], rules.every_epochs),
    )


def _position(c: Checkpoint) -> tuple[object, ...]:
    return (c.order, c.found_at, c.id)


def _decide(fact: RetentionFacts, keep: Sequence[str], remove: Sequence[str]) -> Decision:
    action = Action.KEEP if keep else Action.REMOVE
    return Decision(checkpoint=fact.checkpoint, action=action, reasons=tuple(keep or remove))


def _keeping(fact: RetentionFacts, run: _Run) -> list[str]:
    """Every reason to keep it: first what forbids removal, then the rules."""
    return [*_forbidding(fact, run), *_rules_that_keep(fact, run)]


def _forbidding(fact: RetentionFacts, run: _Run) -> list[str]:
    c, reasons = fact.checkpoint, []
    if c.state is CheckpointState.INCOMPLETE:
        reasons.append(f"incomplete: {c.evidence}")
    elif c.state is not CheckpointState.COMPLETE:
        reasons.append(f"not there to be removed: {c.state}")
    if c.pinned_by is not None:
        reasons.append(f"pinned by {c.pinned_by or 'somebody'}")
    if fact.awaits:
        reasons.append(fact.awaits)
    reasons.extend(fact.protected)
    if c.id in run.newest:
        reasons.append("the newest complete checkpoint")
    if c.role in _ROLE_REASONS:
        reasons.append(_ROLE_REASONS[c.role])
    if c.step is None and c.epoch is None and c.role is Role.REGULAR:
        reasons.append("cannot tell its step or epoch")
    if run.ranking_wanted and fact.rank is None and not fact.deliberately_unranked:
        reasons.append(f"unranked: {fact.unranked or 'no reason known'}")
    for monitor in run.rules.monitors:
        metric = monitor.rule.by
        if monitor.best > 0 and metric not in fact.ranks and not fact.deliberately_unranked:
            reasons.append(f"unranked by {metric}: {fact.unranked_by.get(metric) or 'no reason known'}")
    return reasons


def _rules_that_keep(fact: RetentionFacts, run: _Run) -> list[str]:
    c, rules, reasons = fact.checkpoint, run.rules, []
    if rules.best is not None and rules.best < 0:
        reasons.append("keep best -1 keeps all")
    elif rules.best is not None and fact.rank is not None and fact.rank <= rules.best:
        reasons.append(f"rank {fact.rank} of {run.ranked}, keep best {rules.best}")
    for monitor in rules.monitors:
        metric, rank = monitor.rule.by, fact.ranks.get(monitor.rule.by)
        if monitor.best < 0:
            reasons.append(f"keep best -1 by {metric} keeps all")
        elif rank is not None and rank <= monitor.best:
            reasons.append(f"rank {rank} of {run.ranked_by[metric]} by {metric}, keep best {monitor.best}")
    if c.id in run.last:
        reasons.append(f"among the last {rules.last}")
    if c.id in run.step_milestones:
        reasons.append(_milestone_words(rules.every_steps, "steps", c.step, run.step_milestones[c.id]))
    if c.id in run.epoch_milestones:
        reasons.append(_milestone_words(rules.every_epochs, "epochs", c.epoch, run.epoch_milestones[c.id]))
    if rules.within is not None and _age(c, run.now) <= rules.within:
        reasons.append(f"younger than {format_duration(rules.within)}")
    return reasons


def _removing(fact: RetentionFacts, run: _Run) -> list[str]:
    """What each rule says against it; true only of a checkpoint that nothing keeps."""
    rules, reasons = run.rules, []
    if rules.best is not None:
        why = f" ({fact.unranked})" if fact.unranked else ""
        rank = f"unranked{why}" if fact.rank is None else f"rank {fact.rank} of {run.ranked}"
        reasons.append(f"{rank}, keep best {rules.best}")
    for monitor in rules.monitors:
        metric = monitor.rule.by
        rank = f"rank {fact.ranks[metric]} of {run.ranked_by[metric]}" if metric in fact.ranks else "unranked"
        reasons.append(f"{rank} by {metric}, keep best {monitor.best}")
    if rules.last is not None:
        reasons.append(f"not among the last {rules.last}")
    if rules.every_steps:
        reasons.append(f"no milestone of {rules.every_steps} steps")
    if rules.every_epochs:
        reasons.append(f"no milestone of {rules.every_epochs} epochs")
    if rules.within is not None:
        reasons.append(f"older than {format_duration(rules.within)}")
    return reasons or ["no rule keeps it"]


def _milestones(counted: Sequence[tuple[Checkpoint, int | None]], every: int | None) -> dict[int, int]:
    """The checkpoint closest to each multiple of `every`, id → multiple; of two equally close ones the earlier.

    Trainers that count from 0 save 9,999, and few save intervals divide the grid, so exact multiples alone would keep
    nothing. 0 itself counts only where it was saved. Each generation has a grid of its own.
    """
    if not every:
        return {}
    closest: dict[tuple[int, int], tuple[int, int, int]] = {}
    for checkpoint, count in counted:
        if count is None:
            continue
        multiple = (count + every // 2) // every * every
        if multiple > 0 or count == 0:
            place = (checkpoint.generation, multiple)
            offer = (abs(count - multiple), count, checkpoint.id)
            closest[place] = min(closest.get(place, offer), offer)
    return {checkpoint_id: multiple for (_, multiple), (_, _, checkpoint_id) in closest.items()}


def _milestone_words(every: int | None, unit: str, count: int | None, multiple: int) -> str:
    near = "" if count == multiple else f", closest to {multiple}"
    return f"milestone of {every} {unit}{near}"


def _age(c: Checkpoint, now: float) -> float:
    """Seconds since it was written or first seen, whichever is later: copying tools can set any file time."""
    return now - max(c.found_at, c.identity.mtime_ns / 1e9)


def _held(plan: RetentionPlan, approve_over: float, approved: frozenset[int]) -> str:
    removals = plan.removals
    complete = sum(d.checkpoint.state is CheckpointState.COMPLETE for d in plan.decisions)
    if len(removals) <= approve_over * complete or {d.checkpoint.id for d in removals} <= approved:
        return ""
    part = "half" if approve_over == 0.5 else f"{approve_over:.0%}"
    return f"removes {len(removals)} of {complete} checkpoints (more than {part}): needs `ckptwatch approve RUN`"
