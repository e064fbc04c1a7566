"""One run assessed: what is due, how it ranks, what to keep and why, where aliases point.

The daemon and the `plan` and `rank` commands all come through here, so that what is shown is what is done. Reads the
database and looks at the run's directory; changes nothing.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ckptwatch.apply.places import run_dir
from ckptwatch.core.aliasing import plan_aliases
from ckptwatch.core.composite import composite_score
from ckptwatch.core.dispatch import due, knows_its_place
from ckptwatch.core.logged import choose_metric, direction
from ckptwatch.core.metrics import COMPOSITE
from ckptwatch.core.ranking import best_ranks, out_of_turn, rank
from ckptwatch.core.retention import plan_retention
from ckptwatch.influences import Influences
from ckptwatch.model import (
    Alias,
    Checkpoint,
    CheckpointState,
    Contender,
    Evaluation,
    EvaluationState,
    Place,
    Ranking,
    RankRule,
    Recipe,
    RetentionFacts,
    RetentionPlan,
    Role,
    Run,
    RunRule,
    Score,
    evolve,
)
from ckptwatch.protection import alias_problem, protected
from ckptwatch.settings import Settings
from ckptwatch.store import checkpoints, evaluations
from ckptwatch.store.database import Connection
from ckptwatch.store.heartbeat import RecipeStand, recipe_stands
from ckptwatch.store.logs import attached_in

_COPIES = (Role.BEST, Role.LAST)
LOGGED = "logged by the trainer"


@dataclass(frozen=True, kw_only=True)
class Due:
    """An evaluation that should exist."""

    checkpoint_id: int
    variant: str


@dataclass(frozen=True, kw_only=True)
class Assessment:
    run: Run
    rule: RunRule
    recipe: Recipe | None
    stand: RecipeStand | None        # the recipe's current digest, and why it cannot be used
    checkpoints: Mapping[int, Checkpoint]  # those on disk, by id
    contenders: tuple[Contender, ...]
    ranking: Ranking | None
    plan: RetentionPlan
    monitored: tuple[Ranking, ...]   # by each monitor of the keep rules
    aliases: tuple[Alias, ...]
    alias_problem: str               # why they may not be set where the configuration wants them
    due: tuple[Due, ...]
    last: Checkpoint | None
    evaluations: tuple[Evaluation, ...]

    @property
    def best(self) -> Checkpoint | None:
        place = self.ranking.best if self.ranking else None
        return None if place is None else self.checkpoints[place.contender.checkpoint_id]


def assess(conn: Connection, run: Run, settings: Settings, *, now: float) -> Assessment:
    """Everything about one run at this moment."""
    rule = settings.rule_for(run.name)
    recipe = settings.recipes.get(rule.evaluate.recipe) if rule.evaluate else None
    stand = recipe_stands(conn).get(recipe.name) if recipe else None
    logged = attached_in(conn, run.id)
    known = tuple(evolve(c, logged=logged[c.id]) if c.id in logged else c for c in checkpoints.of_run(conn, run.id))
    done = evaluations.of_checkpoints_in(conn, run.id)
    return _assess(run, rule, recipe, stand, known, done, influences_in(settings.state_dir), now)


@cache
def influences_in(state_dir: Path) -> Influences:
    """One for a state directory, since it remembers what it read."""
    return Influences(state_dir)


def _assess(
    run: Run, rule: RunRule, recipe: Recipe | None, stand: RecipeStand | None, known: tuple[Checkpoint, ...],
    done: tuple[Evaluation, ...], influences: Influences, now: float,
) -> Assessment:
    living = tuple(c for c in known if c.state in checkpoints.LIVING)
    if rule.rank is None and rule.evaluate is None and rule.keep is None:
        rule = evolve(rule, rank=choose_metric(living))  # nobody said by what: show what its trainer logged
    whole = tuple(c for c in living if c.state is CheckpointState.COMPLETE)
    digest = stand.digest if stand else None
    wanted, skipped = _wanted(known, rule, recipe)
    contenders = _contenders(living, done, rule, recipe, digest, wanted, skipped)
    ranking = rank(contenders, rule=rule.rank, digest=digest, composite=recipe.composite if recipe else None,
                   difference_error=influences.difference_error) if rule.rank else None
    monitors = rule.keep.monitors if rule.keep else ()
    monitored = tuple(
        rank(contenders, rule=m.rule, digest=digest, composite=recipe.composite if recipe else None,
             difference_error=influences.difference_error) for m in monitors)
    by_id = {c.id: c for c in living}
    last = max((c for c in whole if c.role not in (Role.LAST, Role.BEST)), key=lambda c: (*c.order, c.id), default=None)
    # A link to the trainer's own rolling copy would be gone, or mean something else, when that is overwritten.
    lasting = _lasting(ranking, by_id) if ranking else None
    best_by = [(p, by_id[p.contender.checkpoint_id]) for r in monitored if (p := _lasting(r, by_id)) is not None]
    aliases = plan_aliases(
        directory=_alias_dir(run, rule), rule=rule.aliases, best=lasting,
        best_checkpoint=by_id[lasting.contender.checkpoint_id] if lasting else None, last=last, monitored=best_by)
    left_out = {c.id for c in living if c.id in skipped and rule.evaluate is not None
                and knows_its_place(rule=rule.evaluate, step=c.step, epoch=c.epoch)}
    left_out |= {c.id for c in living if c.epoch is not None and rule.rank is not None and out_of_turn(rule.rank, c.epoch)}
    facts = _facts(run, living, (ranking, monitored), done, digest, wanted, left_out, aliases)
    plan = plan_retention(
        facts, rules=rule.keep, ranking_wanted=bool(rule.keep and rule.keep.best is not None and rule.keep.best > 0),
        approve_over=rule.approve_over, approved=run.approved, now=now)
    existing = {(e.checkpoint_id, e.variant) for e in done
                if e.digest == digest and e.state is not EvaluationState.ABANDONED}
    missing = tuple(d for d in wanted if (d.checkpoint_id, d.variant) not in existing and d.checkpoint_id in
                    {c.id for c in whole})
    return Assessment(
        run=run, rule=rule, recipe=recipe, stand=stand, checkpoints=by_id, contenders=contenders, ranking=ranking,
        monitored=monitored, plan=plan, aliases=aliases, alias_problem=alias_problem(aliases, living), due=missing,
        last=last, evaluations=done)


def _lasting(ranking: Ranking, by_id: Mapping[int, Checkpoint]) -> Place | None:
    """The best that its trainer will not overwrite, if there is one."""
    return next((p for p in ranking.places if by_id[p.contender.checkpoint_id].role not in _COPIES), ranking.best)


def _alias_dir(run: Run, rule: RunRule) -> Path:
    if rule.aliases.directory is None:
        return run_dir(run.root, run.name)
    return Path(os.path.normpath(run.path / rule.aliases.directory))


def _wanted(known: tuple[Checkpoint, ...], rule: RunRule, recipe: Recipe | None) -> tuple[tuple[Due, ...], dict[int, str]]:
    """The evaluations the rule asks for, and for the other checkpoints why it does not."""
    wanted: list[Due] = []
    skipped: dict[int, str] = {}
    if rule.evaluate is None or recipe is None:
        return (), skipped
    counted = [c for c in known if c.state is not CheckpointState.REPLACED]
    # The trainer's own best and last move about and would shift the positions of all the others; so would a model without
    # a step, which Trainer leaves beside its numbered checkpoints at the end.
    own = [c for c in counted if c.role not in _COPIES]
    numbered = [c for c in own if c.step is not None or c.epoch is not None] or own
    positions = {c.id: n for n, c in enumerate(numbered, start=1)}
    for checkpoint in counted:
        copy = checkpoint.role in _COPIES
        position = positions.get(checkpoint.id, 0 if copy and positions else rule.evaluate.every)
        is_due, reason = due(
            position, rule=rule.evaluate, role=checkpoint.role, step=checkpoint.step, epoch=checkpoint.epoch)
        if not is_due:
            skipped[checkpoint.id] = reason
            continue
        variants = rule.evaluate.variants
        if variants == ("all",):
            variants = checkpoint.variants
        wanted += [Due(checkpoint_id=checkpoint.id, variant=v) for v in variants or ("",)]
    return tuple(wanted), skipped


def _contenders(
    living: tuple[Checkpoint, ...], done: tuple[Evaluation, ...], rule: RunRule, recipe: Recipe | None, digest: str | None,
    wanted: tuple[Due, ...], skipped: Mapping[int, str],
) -> tuple[Contender, ...]:
    if rule.evaluate is None or recipe is None:
        return tuple(_logged(c, rule.rank) for c in living)
    found = {(e.checkpoint_id, e.variant): e for e in sorted(done, key=lambda e: (e.digest == digest, e.id))}
    variants: dict[int, list[str]] = {}
    for item in wanted:
        variants.setdefault(item.checkpoint_id, []).append(item.variant)
    # What has been measured keeps its rank, whatever is asked for now: `every` or `variants` may have changed since.
    for e in done:
        if e.state is EvaluationState.DONE and e.digest == digest and e.variant not in variants.get(e.checkpoint_id, ()):
            variants.setdefault(e.checkpoint_id, []).append(e.variant)
    return tuple(
        _contender(c, variant, found.get((c.id, variant)), recipe, digest, skipped.get(c.id, ""))
        for c in living for variant in variants.get(c.id) or [""]
    )


def _contender(
    c: Checkpoint, variant: str, evaluation: Evaluation | None, recipe: Recipe, digest: str | None, skipped: str,
) -> Contender:
    # What the recipe measures is not stood in for by what training logged under the same name, of other samples.
    measured = {COMPOSITE, *(m.name for m in recipe.metrics)}
    base = Contender(checkpoint_id=c.id, path=c.path, generation=c.generation, step=c.step, epoch=c.epoch, variant=variant,
                     scores={name: s for name, s in logged_scores(c).items() if name not in measured})
    if c.state is not CheckpointState.COMPLETE:
        return evolve(base, note=f"incomplete: {c.evidence}")
    if evaluation is None:
        return evolve(base, note=skipped or "evaluation pending")
    if evaluation.state is EvaluationState.DONE:
        return evolve(base, scores={**base.scores, **with_composite(evaluation.scores, recipe)}, digest=evaluation.digest,
                      evaluation_id=evaluation.id)
    if evaluation.digest != digest or evaluation.state is EvaluationState.ABANDONED:
        return evolve(base, note="evaluation pending")
    return evolve(base, note=state_words(evaluation))


def state_words(evaluation: Evaluation) -> str:
    """What an evaluation without a result is at, in words."""
    if evaluation.state is EvaluationState.PENDING and evaluation.failure is not None:
        return f"evaluation pending after {evaluation.attempts} failed: {evaluation.failure.message}"
    if evaluation.state is EvaluationState.FAILED and evaluation.failure is not None:
        return f"evaluation failed: {evaluation.failure.message}"
    return f"evaluation {evaluation.state}"


def with_composite(scores: Mapping[str, Score], recipe: Recipe) -> Mapping[str, Score]:
    """Stored scores and the composite that follows from them; without one where a term is missing."""
    if recipe.composite is None:
        return scores
    composite, _ = composite_score(scores, recipe.composite)
    return scores if composite is None else {**scores, COMPOSITE: composite}


def _logged(c: Checkpoint, rule: RankRule | None) -> Contender:
    """A contender by what the trainer itself noted down."""
    scores = {name: evolve(score, mode=rule.mode) if rule and rule.by == name else score
              for name, score in logged_scores(c).items()}
    note = "" if c.state is CheckpointState.COMPLETE else f"incomplete: {c.evidence}"
    return Contender(checkpoint_id=c.id, path=c.path, generation=c.generation, step=c.step, epoch=c.epoch,
                     scores={} if note else scores, note=note)


def logged_scores(c: Checkpoint) -> dict[str, Score]:
    """What its trainer noted down about a checkpoint: in its name or content, or in the logs of its run."""
    scores = {name: Score(metric=name, value=value, definition=LOGGED, mode=direction(name), source="the checkpoint itself")
              for name, value in c.metrics.items()}
    for name, found in c.logged.items():
        at = f"step {found.step}" if found.step is not None else "" if found.epoch is None else f"epoch {found.epoch:g}"
        scores.setdefault(name, Score(metric=name, value=found.value, definition=LOGGED, mode=direction(name),
                                      source=", ".join(filter(None, (found.source, at)))))
    return scores


def _facts(
    run: Run, living: tuple[Checkpoint, ...], rankings: tuple[Ranking | None, tuple[Ranking, ...]],
    done: tuple[Evaluation, ...], digest: str | None,
    wanted: tuple[Due, ...], left_out: Collection[int], aliases: tuple[Alias, ...],
) -> tuple[RetentionFacts, ...]:
    # The trainer overwrites its copies: one that held a place among the best would take the others' with it when it goes.
    ranking, monitored = rankings
    copies = {c.id for c in living if c.role in _COPIES}
    ranks, unranked = _ranks(ranking, copies) if ranking else ({}, {})
    by_monitor = {r.metric: _ranks(r, copies) for r in monitored}
    finished = {(e.checkpoint_id, e.variant) for e in done
                if e.digest == digest and e.state in (EvaluationState.DONE, EvaluationState.FAILED)}
    running = {e.checkpoint_id for e in done if e.state is EvaluationState.RUNNING}
    pending = {d.checkpoint_id for d in wanted if (d.checkpoint_id, d.variant) not in finished}
    pending |= {e.checkpoint_id for e in done if e.digest == digest and e.state is EvaluationState.PENDING}
    asked = {e.checkpoint_id for e in done if e.digest == digest and e.state is not EvaluationState.ABANDONED}
    pointed: dict[Path, list[str]] = {}
    for alias in aliases:
        pointed.setdefault(alias.target, []).append(f"{alias.link.name} points here")
    needed = protected(run, living)
    # What was there when the run was first seen is judged as a whole: score by score it would shrink to less than half
    # without ever being a plan that removes more than half.
    catalogue = {c.id for c in living if c.found_at <= run.created_at}
    catalogue_pending = bool(catalogue & (pending | running))
    facts = []
    for c in living:
        awaits = "evaluation running" if c.id in running else "evaluation pending" if c.id in pending else \
            "others found together with it are not evaluated yet" if catalogue_pending and c.id in catalogue else ""
        facts.append(RetentionFacts(
            checkpoint=c, rank=ranks.get(c.id), awaits=awaits,
            ranks={metric: own[c.id] for metric, (own, _) in by_monitor.items() if c.id in own},
            unranked_by={metric: why.get(c.id, "") for metric, (own, why) in by_monitor.items() if c.id not in own},
            protected=(*pointed.get(c.path, ()), *needed.get(c.id, ())),
            # One that the rule leaves out on purpose is not kept for want of a rank: the other rules decide.
            unranked="" if c.id in ranks else unranked.get(c.id, ""),
            deliberately_unranked=c.id in copies or (c.id in left_out and c.id not in asked),
        ))
    return tuple(facts)


def _ranks(ranking: Ranking, copies: Collection[int]) -> tuple[dict[int, int], dict[int, str]]:
    """Checkpoint id → its place among those that are no copies; and for the others why they have none."""
    ranks = {i: n for n, i in enumerate((i for i in best_ranks(ranking) if i not in copies), start=1)}
    return ranks, {u.contender.checkpoint_id: u.reason for u in ranking.unranked}
