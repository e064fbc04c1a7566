import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptwatch.core.ranking import best_places, best_ranks, rank
from ckptwatch.model import Composite, CompositeTerm, Contender, Mode, RankRule, Score

MIN = RankRule(by="fid", mode=Mode.MIN)
MAX = RankRule(by="fid", mode=Mode.MAX)


def contender(id, *, digest="abc12345ff", step=None, note="", variant="", epoch=None, generation=0, error=None, **metrics):
    found = {
        name: Score(
            metric=name, value=v, low=None if error is None else v - error, high=None if error is None else v + error
        )
        for name, v in metrics.items()
    }
    return Contender(
        checkpoint_id=id, path=Path(f"/runs/a/{id}.pt"), generation=generation, step=id * 100 if step is None else step,
        epoch=epoch, variant=variant, scores=found, digest=digest, note=note,
    )


def ids(ranking):
    return [p.contender.checkpoint_id for p in ranking.places]


def reasons(ranking):
    return {u.contender.checkpoint_id: u.reason for u in ranking.unranked}


def test_golden_ranking():
    field = [
        contender(1, fid=9.0, error=0.14), contender(2, fid=7.44, error=0.14), contender(3, fid=7.41, error=0.14),
        contender(4, note="evaluation pending", digest=None), contender(5, fid=math.nan),
        contender(6, fid=7.0, digest="other67890"), contender(7, kid=0.1, fidelity=3.0), contender(8, digest=None),
    ]
    ranking = rank(field, rule=MIN, digest="abc12345ff")
    assert [(p.rank, p.contender.checkpoint_id, p.reason) for p in ranking.places] == [
        (1, 3, "fid 7.41 (best)"),
        (2, 2, "fid 7.44, 0.03 behind #1, tie within error"),
        (3, 1, "fid 9, 1.6 behind #1"),
    ]
    assert reasons(ranking) == {
        4: "no score for fid: evaluation pending",
        5: "fid is nan, which ranks nowhere",
        6: "scored by another recipe (digest other678), not comparable",
        7: "no score for fid; the nearest of its 2 metrics is kid",
        8: "no score for fid: not evaluated",
    }
    assert ranking.best.contender.checkpoint_id == 3


@pytest.mark.parametrize(("rule", "best"), [(MIN, 1), (MAX, 3)])
def test_direction_is_the_rules(rule, best):
    field = [contender(1, fid=1.0), contender(2, fid=2.0), contender(3, fid=3.0)]
    assert ids(rank(field, rule=rule, digest=None))[0] == best


@pytest.mark.parametrize("rule", [MIN, MAX])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_never_becomes_best(rule, bad):
    ranking = rank([contender(1, fid=bad), contender(2, fid=5.0), contender(3, fid=bad)], rule=rule, digest=None)
    assert ids(ranking) == [2]
    assert len(ranking.unranked) == 2


def test_missing_never_ranks_best_even_if_alone():
    ranking = rank([contender(1, note="weights not finite: 3 tensors")], rule=MIN, digest=None)
    assert ranking.best is None
    assert reasons(ranking) == {1: "no score for fid: weights not finite: 3 tensors"}


@pytest.mark.parametrize("zero", [0.0, -0.0, 0])
def test_zero_is_a_value(zero):
    assert ids(rank([contender(1, fid=zero), contender(2, fid=1.0)], rule=MIN, digest=None)) == [1, 2]


def test_a_metric_that_does_not_exist_is_answered_with_the_nearest():
    ranking = rank([contender(1, abs_rel=0.1, rmse=2.0, loss=1.0)], rule=RankRule(by="abs_rle", mode=Mode.MIN), digest=None)
    assert "abs_rel" in reasons(ranking)[1]


@pytest.mark.parametrize(("ties", "order"), [("newest", [3, 2, 1]), ("oldest", [1, 2, 3])])
def test_ties_are_settled_by_age(ties, order):
    rule = RankRule(by="fid", mode=Mode.MIN, ties=ties)
    ranking = rank([contender(i, fid=7.0) for i in (2, 1, 3)], rule=rule, digest=None)
    assert ids(ranking) == order
    assert ranking.places[1].reason == f"fid 7, equal to #1 (ties: {ties} first)"


def test_age_is_generation_before_step_and_epoch_where_there_is_no_step():
    old = contender(1, step=900, generation=0, fid=7.0)
    new = contender(2, step=100, generation=1, fid=7.0)
    assert ids(rank([old, new], rule=MIN, digest=None)) == [2, 1]
    epochs = [Contender(checkpoint_id=i, path=Path(f"/{i}"), generation=0, step=None, epoch=e, scores=old.scores)
              for i, e in ((5, 1), (4, 2))]
    assert ids(rank(epochs, rule=MIN, digest=None)) == [4, 5]


def test_scores_of_different_recipes_are_never_ranked_together():
    field = [contender(1, fid=1.0, digest="a"), contender(2, fid=2.0, digest="b"), contender(3, fid=3.0, digest="b")]
    assert ids(rank(field, rule=MIN, digest="a")) == [1]
    assert ids(rank(field, rule=MIN, digest="b")) == [2, 3]
    unnamed = rank(field, rule=MIN, digest=None)  # the recipe with most scores
    assert (ids(unnamed), unnamed.digest) == ([2, 3], "b")
    assert "another recipe" in reasons(unnamed)[1]


def test_logged_scores_have_no_recipe_and_rank_among_themselves_and_with_it():
    field = [contender(1, loss=1.0, digest=None), contender(2, loss=0.5, digest="a"), contender(3, loss=2.0, digest=None)]
    rule = RankRule(by="loss", mode=Mode.MIN)
    assert ids(rank(field, rule=rule, digest="a")) == [2, 1, 3]
    assert ids(rank(field, rule=rule, digest=None)) == [2, 1, 3]


COMPOSITE = Composite(
    terms={"fid": CompositeTerm(weight=-0.5, low=0, high=100), "clip": CompositeTerm(weight=0.5, low=0, high=1)},
    missing="renormalise",
)
BY_COMPOSITE = RankRule(by="composite_score", mode=Mode.MAX)


def test_composites_are_compared_only_with_the_same_terms():
    field = [contender(1, fid=50.0), contender(2, fid=10.0), contender(3, fid=90.0, clip=0.1)]
    ranking = rank(field, rule=BY_COMPOSITE, digest=None, composite=COMPOSITE)
    assert ids(ranking) == [3]  # all declared terms, though most have only one
    assert "composite of other terms" in reasons(ranking)[1]
    assert ids(rank(field[:2], rule=BY_COMPOSITE, digest=None, composite=COMPOSITE)) == [2, 1]


def test_without_the_full_set_the_most_common_terms_are_compared():
    field = [contender(1, fid=50.0), contender(2, clip=0.9), contender(3, clip=0.8)]
    assert ids(rank(field, rule=BY_COMPOSITE, digest=None, composite=COMPOSITE)) == [2, 3]
    assert ids(rank(field[:2], rule=BY_COMPOSITE, digest=None, composite=COMPOSITE)) == [2]  # else those of the newest


def test_a_missing_term_unranks_where_it_is_an_error():
    strict = Composite(terms=COMPOSITE.terms)
    ranking = rank(
        [contender(1, fid=50.0), contender(2, fid=10.0, clip=0.5), contender(3, note="evaluation pending")],
        rule=BY_COMPOSITE, digest=None, composite=strict,
    )
    assert ids(ranking) == [2]
    assert reasons(ranking)[1] == "no composite without clip (no score)"
    assert reasons(ranking)[3].endswith("evaluation pending")
    assert ranking.places[0].contender.scores["composite_score"].value == pytest.approx(-0.05 + 0.25)


def test_a_composite_scored_elsewhere_is_ranked_as_it_is():
    field = [contender(1, composite_score=0.5), contender(2, composite_score=0.7)]
    assert ids(rank(field, rule=BY_COMPOSITE, digest=None)) == [2, 1]


def test_best_rank_of_a_checkpoint_is_that_of_its_best_variant():
    field = [contender(1, fid=3.0, variant="model"), contender(1, fid=1.0, variant="ema"), contender(2, fid=2.0)]
    ranking = rank(field, rule=MIN, digest=None)
    assert [p.contender.variant for p in ranking.places] == ["ema", "", "model"]
    assert best_ranks(ranking) == {1: 1, 2: 2}


def test_variants_of_one_checkpoint_take_no_places_from_other_checkpoints():
    field = [contender(1, fid=i / 10, variant=v) for i, v in enumerate(("model", "ema1", "ema2"))]
    ranking = rank([*field, contender(2, fid=2.0), contender(3, fid=3.0)], rule=MIN, digest=None)
    assert [p.rank for p in ranking.places] == [1, 2, 3, 4, 5]
    assert best_ranks(ranking) == {1: 1, 2: 2, 3: 3}
    assert [(p.rank, p.contender.checkpoint_id, p.contender.variant) for p in best_places(ranking)] == [
        (1, 1, "model"), (2, 2, ""), (3, 3, ""),
    ]


def test_a_tie_within_error_needs_both_intervals():
    a, b = contender(1, fid=1.0, error=1.0), contender(2, fid=1.1)
    assert "tie" not in rank([a, b], rule=MIN, digest=None).places[1].reason


VALUES = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 1.0, 7.41]))
FIELD = st.lists(
    st.tuples(VALUES, VALUES, st.sampled_from([None, "a", "b"]), st.integers(0, 2), st.integers(0, 3)), max_size=12
)


@given(
    FIELD, st.sampled_from(list(Mode)), st.sampled_from(["newest", "oldest"]), st.sampled_from([None, "a"]),
    st.sampled_from(["fid", "composite_score"]), st.randoms(),
)
def test_whatever_comes_in_only_finite_comparable_scores_rank_and_in_one_order(field, mode, ties, digest, by, random):
    contenders = [
        contender(i, digest=d, generation=g, step=s, **{k: v for k, v in (("fid", fid), ("clip", clip)) if v is not None})
        for i, (fid, clip, d, g, s) in enumerate(field)
    ]
    rule = RankRule(by=by, mode=mode, ties=ties)
    ranking = rank(contenders, rule=rule, digest=digest, composite=COMPOSITE)
    values = [p.score.value for p in ranking.places]
    assert all(math.isfinite(v) for v in values)
    assert values == sorted(values, reverse=mode is Mode.MAX)
    assert len(ranking.places) + len(ranking.unranked) == len(contenders)
    assert [p.rank for p in ranking.places] == list(range(1, len(values) + 1))
    assert all(entry.reason for entry in (*ranking.places, *ranking.unranked))
    assert len({p.contender.digest for p in ranking.places} - {None}) <= 1
    assert by == "fid" or len({p.score.definition for p in ranking.places}) <= 1
    random.shuffle(contenders)
    # As text: NaN differs from itself.
    assert repr(rank(contenders, rule=rule, digest=digest, composite=COMPOSITE)) == repr(ranking)


# ---- ties, decided sample by sample ----


def evaluated(id, **more):
    from dataclasses import replace

    return replace(contender(id, **more), evaluation_id=id)


def test_tie_is_decided_by_the_paired_difference_not_by_overlapping_intervals():
    field = [evaluated(1, fid=7.41, error=0.3), evaluated(2, fid=7.44, error=0.3), evaluated(3, fid=7.5, error=0.3)]
    errors = {(2, 1): 0.05, (3, 1): 0.01}
    ranking = rank(field, rule=MIN, digest="abc12345ff", difference_error=lambda a, b, weights: errors[a, b])
    assert [p.reason for p in ranking.places] == [
        "fid 7.41 (best)", "fid 7.44, 0.03 ±0.098 behind #1, tie within error", "fid 7.5, 0.09 ±0.02 behind #1"]


def test_without_common_seeds_the_intervals_decide():
    field = [evaluated(1, fid=7.41, error=0.3), evaluated(2, fid=7.44, error=0.3)]
    ranking = rank(field, rule=MIN, digest="abc12345ff", difference_error=lambda *_: None)
    assert ranking.places[1].reason == "fid 7.44, 0.03 behind #1, tie within error"


def test_paired_difference_of_a_composite_weighs_its_terms_where_they_are_not_clipped():
    terms = {"clip": CompositeTerm(weight=0.4, low=0, high=2), "fid": CompositeTerm(weight=-0.1, low=0, high=5)}
    composite = Composite(terms=terms)
    asked = []
    field = [evaluated(1, clip=1.0, fid=3.0), evaluated(2, clip=0.9, fid=9.0)]
    rank(field, rule=RankRule(by="composite_score", mode=Mode.MAX), digest="abc12345ff", composite=composite,
         difference_error=lambda a, b, weights: asked.append((a, b, weights)))
    assert asked == [(2, 1, {"clip": 0.2, "fid": -0.02})]  # clipped for one of them: that side may still move
    field = [evaluated(1, clip=1.0, fid=8.0), evaluated(2, clip=0.9, fid=9.0)]
    rank(field, rule=RankRule(by="composite_score", mode=Mode.MAX), digest="abc12345ff", composite=composite,
         difference_error=lambda a, b, weights: asked.append(weights))
    assert asked[1] == {"clip": 0.2, "fid": 0.0}


# ---- measured by other means ----


def measured(id, definition, **more):
    from dataclasses import replace

    made = contender(id, **more)
    return replace(made, scores={n: replace(s, definition=definition) for n, s in made.scores.items()})


def test_scores_measured_with_other_weights_are_never_ranked_together():
    field = [measured(1, "weights aaaa", fid=1.0), measured(2, "weights bbbb", fid=9.0)]
    field.append(measured(3, "weights bbbb", fid=8.0))
    ranking = rank(field, rule=MIN, digest="abc12345ff")
    assert ids(ranking) == [3, 2]  # as the newest was measured
    assert "weights aaaa" in reasons(ranking)[1] and "weights bbbb" in reasons(ranking)[1] and "retry" in reasons(ranking)[1]


def test_composites_of_terms_measured_with_other_weights_are_never_ranked_together():
    composite = Composite(terms={"fid": CompositeTerm(weight=-1, low=0, high=10)})
    field = [measured(1, "weights aaaa", fid=1.0), measured(2, "weights bbbb", fid=9.0)]
    ranking = rank(field, rule=RankRule(by="composite_score", mode=Mode.MAX), digest="abc12345ff", composite=composite)
    assert ids(ranking) == [2] and "weights aaaa" in reasons(ranking)[1]
