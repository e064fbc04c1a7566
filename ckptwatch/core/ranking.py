"""The order of a run's checkpoints under one metric. Each place has a reason; whatever has no place has one too."""

import difflib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ckptwatch.core.amounts import ordinal
from ckptwatch.core.composite import composite_score, definition, slopes
from ckptwatch.core.metrics import COMPOSITE
from ckptwatch.model import Composite, Contender, Mode, Place, Ranking, RankRule, Score, Unranked, evolve

Scored = tuple[Contender, Score]
# Standard error of the difference of two evaluations in Σ weight · metric, None where it cannot be known.
DifferenceError = Callable[[int, int, Mapping[str, float]], float | None]

Z95 = 1.96
PAIRED_PLACES = 20  # from the top that are compared sample by sample with the best


def _unknown(_a: int, _b: int, _weights: Mapping[str, float]) -> None:
    return None


def rank(
    contenders: Sequence[Contender], *, rule: RankRule, digest: str | None, composite: Composite | None = None,
    difference_error: DifferenceError = _unknown,
) -> Ranking:
    """Places 1 … n for every contender with a finite, comparable score; the others unranked, with reasons.

    `digest` is the recipe whose scores count; scores of another recipe are never compared with them. Scores without a
    digest were logged by the trainer. With `composite` given, the composite is computed here from the stored scores
    and added to those of the contender. Nor are scores compared that were measured by other means under the same recipe:
    a network whose weights its library has replaced, a lower precision. `difference_error` decides about ties where the
    same seeds were used; else the intervals do. The result does not depend on the order of the input.
    """
    scored: list[Scored] = []
    unranked: list[Unranked] = []
    recipe = digest if digest is not None else _prevailing_digest(contenders, rule, composite)
    for contender in contenders:
        subject, score, reason = _judge(contender, rule, recipe, composite)
        if score is None:
            unranked.append(Unranked(contender=subject, reason=reason))
        else:
            scored.append((subject, score))
    if rule.by == COMPOSITE:
        scored, others = _same_terms(scored, composite)
        unranked.extend(others)
    scored, others = _same_origin(scored, rule)
    unranked.extend(others)
    scored, others = _same_means(scored, rule, composite)
    unranked.extend(others)
    scored.sort(key=lambda s: _sort_key(*s, rule))
    unranked.sort(key=lambda u: _age(u.contender))
    return Ranking(
        metric=rule.by, mode=rule.mode, digest=recipe, places=_places(scored, rule, composite, difference_error),
        unranked=tuple(unranked),
    )


def _judge(
    contender: Contender, rule: RankRule, digest: str | None, composite: Composite | None
) -> tuple[Contender, Score | None, str]:
    """The contender, its score, or why it has none that counts."""
    if rule.period > 1 and (left_out := out_of_turn(rule, contender.epoch)):
        return contender, None, left_out
    logged = rule.by in contender.scores and contender.scores[rule.by].source  # comparable whatever was evaluated
    if not logged and None not in (digest, contender.digest) and contender.digest != digest:
        return contender, None, f"scored by another recipe (digest {contender.digest[:8]}), not comparable"
    if rule.by == COMPOSITE and composite is not None and contender.scores:
        score, reason = composite_score(contender.scores, composite)
        if score is None:
            return contender, None, f"{reason}: {contender.note}" if contender.note else reason
        contender = evolve(contender, scores={**contender.scores, COMPOSITE: score})
    score = contender.scores.get(rule.by)
    if score is None:
        return contender, None, _missing(contender, rule.by)
    if not math.isfinite(score.value):
        note = f": {contender.note}" if contender.note else ""
        return contender, None, f"{rule.by} is {score.value}, which ranks nowhere{note}"
    return contender, score, ""


def out_of_turn(rule: RankRule, epoch: int | None) -> str:
    """Why a checkpoint of this epoch takes no place by the rule's period, or ""."""
    if rule.period <= 1:
        return ""
    if epoch is None:
        return f"only every {ordinal(rule.period)} epoch counts (period), and the epoch of this one is not known"
    return "" if epoch % rule.period == 0 else f"only every {ordinal(rule.period)} epoch counts (period), this is {epoch}"


def _missing(contender: Contender, metric: str) -> str:
    if contender.note:
        return f"no score for {metric}: {contender.note}"
    if not contender.scores:
        return f"no score for {metric}: not evaluated"
    names = sorted(contender.scores)
    nearest = difflib.get_close_matches(metric, names, n=1, cutoff=0.0)
    return f"no score for {metric}; the nearest of its {len(names)} metrics is {nearest[0] if nearest else names[0]}"


def _prevailing_digest(
    contenders: Sequence[Contender], rule: RankRule, composite: Composite | None
) -> str | None:
    """Where the caller names no recipe: the one with most scores that count, or the newest of them."""
    counted: list[Contender] = [
        c for c in contenders if c.digest is not None and _judge(c, rule, None, composite)[1] is not None
    ]
    votes = Counter(c.digest for c in counted)
    newest: dict[str, tuple[int, int, int, int]] = {}
    for c in counted:
        newest[c.digest or ""] = max(newest.get(c.digest or "", _age(c)[:4]), _age(c)[:4])
    return max(votes, key=lambda d: (votes[d], newest[d or ""], d or ""), default=None)


def _same_terms(scored: list[Scored], composite: Composite | None) -> tuple[list[Scored], list[Unranked]]:
    """Only composites of the same terms: all the declared ones if any contender has them, else the most common set."""
    if not scored:
        return scored, []
    full = definition(tuple(composite.terms), composite) if composite is not None else None
    votes = Counter(score.definition for _, score in scored)
    if full in votes:
        chosen = full
    else:
        newest = {s.definition: _age(c) for c, s in sorted(scored, key=lambda s: _age(s[0]))}
        chosen = max(votes, key=lambda d: (votes[d], newest[d][:4], d))
    others = [
        Unranked(contender=c, reason=f"composite of other terms ({s.definition}), not comparable with ({chosen})")
        for c, s in scored if s.definition != chosen
    ]
    return [(c, s) for c, s in scored if s.definition == chosen], others


def _same_origin(scored: list[Scored], rule: RankRule) -> tuple[list[Scored], list[Unranked]]:
    """Where a metric was measured for some, what training logged under the same name is something else."""
    if all(s.source for _, s in scored):
        return scored, []
    why = f"{rule.by} was only logged by the trainer, which is not comparable with what was measured"
    others = [Unranked(contender=c, reason=f"{why} ({s.source})")
              for c, s in scored if s.source]
    return [(c, s) for c, s in scored if not s.source], others


def _same_means(scored: list[Scored], rule: RankRule, composite: Composite | None) -> tuple[list[Scored], list[Unranked]]:
    """Only scores measured in one way: that of the newest checkpoint, for it is what will be measured from now on."""
    evaluated = sorted((item for item in scored if item[0].digest is not None), key=lambda item: _age(item[0]))
    chosen = _means(*evaluated[-1], rule, composite) if evaluated else ()
    kept, others = [], []
    for contender, score in scored:
        unlike = () if contender.digest is None else set(_means(contender, score, rule, composite)) - set(chosen)
        if not unlike:
            kept.append((contender, score))
            continue
        others.append(Unranked(contender=contender, reason=(
            f"{rule.by} was measured otherwise ({', '.join(sorted(unlike))}), not comparable with ({', '.join(chosen)}); "
            "`ckptwatch retry` measures it anew")))
    return kept, others


def _means(contender: Contender, score: Score, rule: RankRule, composite: Composite | None) -> tuple[str, ...]:
    """How a score was measured, in words; of a composite, how its terms were."""
    if rule.by == COMPOSITE and composite is not None:
        return tuple(contender.scores[name].definition for name in composite.terms if name in contender.scores)
    return (score.definition,)


def _age(c: Contender) -> tuple[int, int, int, int, str, str]:
    """Position in the run, oldest first; total, so that no order depends on that of the input."""
    step, epoch = (-1 if n is None else n for n in (c.step, c.epoch))
    return (c.generation, step, epoch, c.checkpoint_id, c.variant, str(c.path))


def _sort_key(contender: Contender, score: Score, rule: RankRule) -> tuple[object, ...]:
    value = score.value if rule.mode is Mode.MIN else -score.value
    *position, variant, path = _age(contender)
    if rule.ties != "oldest":
        position = [-n for n in position]
    return (value, *position, variant, path)


def _places(
    scored: Sequence[Scored], rule: RankRule, composite: Composite | None, difference_error: DifferenceError,
) -> tuple[Place, ...]:
    places = []
    for i, (contender, score) in enumerate(scored, start=1):
        best, best_score = scored[0]
        error = None
        if 1 < i <= PAIRED_PLACES and None not in (contender.evaluation_id, best.evaluation_id):
            weights = {rule.by: 1.0}
            if rule.by == COMPOSITE and composite:
                ours, theirs = slopes(contender.scores, composite), slopes(best.scores, composite)
                # A term that is clipped for one of them only moves the difference by at most its slope.
                weights = {name: ours[name] or theirs[name] for name in ours} if ours and theirs else {}
            error = difference_error(contender.evaluation_id, best.evaluation_id, weights)  # type: ignore[arg-type]
        places.append(Place(rank=i, contender=contender, score=score, reason=_reason(i, score, best_score, rule, error)))
    return tuple(places)


def _reason(place: int, score: Score, best: Score, rule: RankRule, error: float | None) -> str:
    """"fid 7.41 (best)", "fid 7.44, 0.03 ±0.05 behind #1, tie within error"."""
    text = f"{rule.by} {score.value:.4g}"
    if place == 1:
        return f"{text} (best)"
    distance = abs(score.value - best.value)
    if not distance:
        text += f", equal to #1 (ties: {rule.ties} first)"
    elif error:
        text += f", {distance:.2g} ±{Z95 * error:.2g} behind #1"
    else:
        text += f", {distance:.2g} behind #1"
    tie = distance <= Z95 * error if error is not None else _overlap(score, best)
    return f"{text}, tie within error" if tie else text


def _overlap(a: Score, b: Score) -> bool:
    bounds = (a.low, a.high, b.low, b.high)
    if not all(n is not None and math.isfinite(n) for n in bounds):
        return False
    return a.low <= b.high and b.low <= a.high  # type: ignore[operator]


def best_ranks(ranking: Ranking) -> Mapping[int, int]:
    """The place of each checkpoint among checkpoints, by its best variant: variants take no places from others."""
    ranks: dict[int, int] = {}
    for place in ranking.places:
        ranks.setdefault(place.contender.checkpoint_id, len(ranks) + 1)
    return ranks


def best_places(ranking: Ranking) -> tuple[Place, ...]:
    """The ranking with each checkpoint once, by its best variant, numbered 1 … n."""
    places: dict[int, Place] = {}
    for place in ranking.places:
        places.setdefault(place.contender.checkpoint_id, evolve(place, rank=len(places) + 1))
    return tuple(places.values())
