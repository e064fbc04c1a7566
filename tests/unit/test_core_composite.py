import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptwatch.core.composite import composite_score
from ckptwatch.model import Composite, CompositeTerm, Mode, Score

TERMS = {
    "clip_score": CompositeTerm(weight=0.4, low=0, high=1),
    "inception_score": CompositeTerm(weight=0.3, low=1, high=10),
    "lpips": CompositeTerm(weight=-0.2, low=0, high=1),
    "fid": CompositeTerm(weight=-0.1, low=0, high=300),
}


def scores(**values):
    return {m: Score(metric=m, value=v, n=100) for m, v in values.items()}


FULL = scores(clip_score=0.5, inception_score=5.5, lpips=0.25, fid=30.0)


def test_each_term_is_mapped_to_its_range_before_it_is_weighted():
    score, reason = composite_score(FULL, Composite(terms=TERMS))
    assert reason == ""
    assert score.value == pytest.approx(0.4 * 0.5 + 0.3 * 0.5 - 0.2 * 0.25 - 0.1 * 0.1)
    assert (score.metric, score.mode, score.n) == ("composite_score", Mode.MAX, 100)
    for name in TERMS:
        assert name in score.definition


def test_values_outside_the_range_are_clipped():
    score, _ = composite_score(
        scores(clip_score=7, inception_score=-3, lpips=2, fid=1e9), Composite(terms=TERMS)
    )
    assert score.value == pytest.approx(0.4 - 0.2 - 0.1)


def test_a_missing_term_is_never_a_silent_zero():
    partial = {k: v for k, v in FULL.items() if k != "fid"}
    score, reason = composite_score(partial, Composite(terms=TERMS))
    assert score is None
    assert reason == "no composite without fid (no score)"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_term_that_is_not_finite_is_missing(bad):
    score, reason = composite_score(FULL | scores(lpips=bad), Composite(terms=TERMS))
    assert score is None
    assert "lpips" in reason
    assert str(bad) in reason


def test_renormalised_weights_and_a_definition_that_says_so():
    partial = {k: v for k, v in FULL.items() if k in ("clip_score", "lpips")}
    score, reason = composite_score(partial, Composite(terms=TERMS, missing="renormalise"))
    assert reason == ""
    assert score.value == pytest.approx((0.4 * 0.5 - 0.2 * 0.25) * 1.0 / 0.6)
    assert "renormalised without inception_score, fid" in score.definition


def test_composites_of_different_terms_have_different_definitions():
    composite = Composite(terms=TERMS, missing="renormalise")
    definitions = {
        composite_score({k: v for k, v in FULL.items() if k != gone}, composite)[0].definition for gone in (*TERMS, "none")
    }
    assert len(definitions) == 5


@pytest.mark.parametrize("missing", ["error", "renormalise"])
def test_without_any_term_there_is_no_composite(missing):
    for terms in (TERMS, {}):
        score, reason = composite_score({}, Composite(terms=terms, missing=missing))
        assert score is None
        assert reason.startswith("no composite")


def test_zero_is_a_value():
    score, _ = composite_score(scores(clip_score=0.0, inception_score=1, lpips=0.0, fid=0.0), Composite(terms=TERMS))
    assert score.value == 0.0


def test_an_empty_range_gives_a_reason_not_a_division_by_zero():
    terms = {"fid": CompositeTerm(weight=1, low=5, high=5)}
    assert composite_score(scores(fid=1), Composite(terms=terms)) == (
        None, "no composite: the range of fid is empty",
    )


def test_it_rests_on_the_fewest_samples_of_its_terms():
    few = FULL | {"fid": Score(metric="fid", value=1, n=7), "lpips": Score(metric="lpips", value=1)}
    assert composite_score(few, Composite(terms=TERMS))[0].n == 7


@given(st.dictionaries(st.sampled_from([*TERMS, "other"]), st.floats()), st.sampled_from(["error", "renormalise"]))
def test_a_composite_is_finite_and_within_the_sum_of_its_weights(values, missing):
    score, reason = composite_score(scores(**values), Composite(terms=TERMS, missing=missing))
    assert (score is None) == bool(reason)
    assert score is None or abs(score.value) <= 1.0 + 1e-9
