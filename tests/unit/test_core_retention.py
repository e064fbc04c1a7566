"""Golden plans, then the invariants: what may never be removed, whatever the rules."""

import copy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptwatch.core.retention import plan_retention
from ckptwatch.model import (
    Action,
    Checkpoint,
    CheckpointState,
    Identity,
    KeepRules,
    RetentionFacts,
    Role,
    evolve,
)

NOW = 1_000_000.0
COMPLETE = CheckpointState.COMPLETE


def facts(step, rank=None, *, id=None, epoch=None, age=500_000.0, state=COMPLETE, role=Role.REGULAR, pinned=None,
          generation=0, **more):
    checkpoint = Checkpoint(
        id=step if id is None else id, run_id=1, path=Path(f"/runs/a/{step}.pt"), format="torch-zip", state=state,
        evidence="31 entries", identity=Identity(device=1, inode=1, size=10, mtime_ns=int((NOW - age) * 1e9)), role=role,
        generation=generation, step=step, epoch=epoch, metrics={}, variants=(), found_at=NOW - age, pinned_by=pinned,
    )
    return RetentionFacts(checkpoint=checkpoint, rank=rank, **more)


def plan(items, rules, *, approve_over=1.0, approved=frozenset(), ranking_wanted=None):
    wanted = rules is not None and rules.best not in (None, 0, -1) if ranking_wanted is None else ranking_wanted
    return plan_retention(
        items, rules=rules, ranking_wanted=wanted, approve_over=approve_over, approved=approved, now=NOW
    )


def removed(result):
    return [d.checkpoint.step for d in result.removals]


def table(result):
    return [(d.checkpoint.step, str(d.action), "; ".join(d.reasons)) for d in result.decisions]


# ten checkpoints, 1000 … 10000; the fourth is best, then the ninth, then the fifth
RANKS = {1: 10, 2: 9, 3: 8, 4: 1, 5: 3, 6: 6, 7: 7, 8: 4, 9: 2, 10: 5}
TEN = [facts(i * 1000, rank, epoch=i, age=(11 - i) * 3600.0) for i, rank in RANKS.items()]

GOLDEN = {
    "no rules": (None, []),
    "all switched off": (KeepRules(), []),
    "best 3": (KeepRules(best=3), [1000, 2000, 3000, 6000, 7000, 8000]),
    "best 1": (KeepRules(best=1), [1000, 2000, 3000, 5000, 6000, 7000, 8000, 9000]),
    "best -1 keeps all": (KeepRules(best=-1), []),
    "best 0 keeps none but the newest": (KeepRules(best=0), [i * 1000 for i in range(1, 10)]),
    "best more than there are": (KeepRules(best=50), []),
    "last 2": (KeepRules(last=2), [i * 1000 for i in range(1, 9)]),
    "last 0": (KeepRules(last=0), [i * 1000 for i in range(1, 10)]),
    "last 50": (KeepRules(last=50), []),
    "every 5000 steps": (KeepRules(every_steps=5000), [1000, 2000, 3000, 4000, 6000, 7000, 8000, 9000]),
    "every 3 epochs": (KeepRules(every_epochs=3), [1000, 2000, 4000, 5000, 7000, 8000]),
    "within 3h": (KeepRules(within=3 * 3600.0), [i * 1000 for i in range(1, 8)]),
    "rules are added": (KeepRules(best=2, last=2, every_steps=5000, within=3600.0), [1000, 2000, 3000, 6000, 7000, 8000]),
}


@pytest.mark.parametrize(("rules", "expected"), GOLDEN.values(), ids=GOLDEN)
def test_golden_plan(rules, expected):
    assert removed(plan(TEN, rules)) == expected


def test_golden_reasons():
    rules = KeepRules(best=3, last=2, every_steps=5000)
    assert table(plan(TEN, rules)) == [
        (1000, "remove", "rank 10 of 10, keep best 3; not among the last 2; no milestone of 5000 steps"),
        (2000, "remove", "rank 9 of 10, keep best 3; not among the last 2; no milestone of 5000 steps"),
        (3000, "remove", "rank 8 of 10, keep best 3; not among the last 2; no milestone of 5000 steps"),
        (4000, "keep", "rank 1 of 10, keep best 3"),
        (5000, "keep", "rank 3 of 10, keep best 3; milestone of 5000 steps"),
        (6000, "remove", "rank 6 of 10, keep best 3; not among the last 2; no milestone of 5000 steps"),
        (7000, "remove", "rank 7 of 10, keep best 3; not among the last 2; no milestone of 5000 steps"),
        (8000, "remove", "rank 4 of 10, keep best 3; not among the last 2; no milestone of 5000 steps"),
        (9000, "keep", "rank 2 of 10, keep best 3; among the last 2"),
        (10000, "keep", "the newest complete checkpoint; among the last 2; milestone of 5000 steps"),
    ]


FORBIDDEN = {
    "pinned": (facts(1000, 9, pinned="alice: used in the paper"), "pinned by alice: used in the paper"),
    "pinned by nobody knows whom": (facts(1000, 9, pinned=""), "pinned by somebody"),
    "waiting": (facts(1000, 9, awaits="evaluation pending"), "evaluation pending"),
    "protected": (facts(1000, 9, protected=("best.pt points here", "open in pid 4")), "best.pt points here; open in pid 4"),
    "unranked": (facts(1000, None, unranked="fid is nan"), "unranked: fid is nan"),
    "unranked, nobody knows why": (facts(1000, None), "unranked: no reason known"),
    "incomplete": (facts(1000, 9, state=CheckpointState.INCOMPLETE), "incomplete: 31 entries"),
    "gone": (facts(1000, 9, state=CheckpointState.GONE), "not there to be removed: gone"),
    "final": (facts(1000, 9, role=Role.FINAL), "the final checkpoint of its run"),
    "the trainer's last": (facts(1000, 9, role=Role.LAST), "the trainer's own rolling last"),
    "the trainer's best": (facts(1000, 9, role=Role.BEST), "the trainer's own best"),
    "unparsed": (facts(None, 9, id=7), "cannot tell its step or epoch"),
}


@pytest.mark.parametrize(("fact", "reason"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_forbids_removal(fact, reason):
    others = [facts(s, r) for s, r in ((2000, 1), (3000, 2), (4000, 3))]
    decision = next(d for d in plan([fact, *others], KeepRules(best=1)).decisions if d.checkpoint == fact.checkpoint)
    assert (decision.action, "; ".join(decision.reasons)) == (Action.KEEP, reason)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [(None, "no keep rule for this run"), (KeepRules(), "all keep rules of this run are switched off")],
)
def test_without_rules_everything_is_kept_and_says_so(rules, reason):
    assert {d.reasons for d in plan(TEN, rules, approve_over=0.0).decisions} == {(reason,)}


def test_a_missing_metric_never_removes():
    items = [facts(i * 1000, None, unranked="no score for loss") for i in range(1, 6)]
    assert removed(plan(items, KeepRules(best=2))) == []
    assert removed(plan(items, KeepRules(best=2), ranking_wanted=False)) == []
    assert removed(plan(items, KeepRules(last=2))) == [1000, 2000, 3000]  # no metric is wanted here


def test_one_that_the_rules_leave_out_of_evaluation_is_owed_no_rank():
    left_out = facts(1000, None, unranked="every 2nd checkpoint is evaluated", deliberately_unranked=True)
    result = plan([left_out, facts(2000, 1)], KeepRules(best=1, last=1))
    assert table(result)[0] == (
        1000, "remove", "unranked (every 2nd checkpoint is evaluated), keep best 1; not among the last 1",
    )


def test_step_zero_is_a_milestone_and_no_step_is_none():
    items = [facts(0, id=1), facts(500, id=2), facts(None, id=3, epoch=4), facts(1000, id=4), facts(1001, id=5)]
    assert [d.checkpoint.id for d in plan(items, KeepRules(every_steps=1000)).removals] == [3, 2]


@pytest.mark.parametrize(("saved", "kept"), [
    pytest.param(range(999, 6000, 1000), [1999, 3999, 5999], id="counted from 0: 1999, 3999 stand for 2000, 4000"),
    pytest.param(range(300, 5000, 300), [2100, 3900, 4800], id="300 does not divide 2000"),
    pytest.param([2000, 2001, 4000], [2000, 4000], id="the exact one wins over its neighbour"),
    pytest.param([1950, 2050, 9000], [1950, 9000], id="of two equally close ones the earlier; 9000 is the newest"),
])
def test_a_milestone_is_kept_where_no_exact_multiple_was_saved(saved, kept):
    result = plan([facts(s) for s in saved], KeepRules(every_steps=2000))
    assert [d.checkpoint.step for d in result.decisions if d.action is Action.KEEP] == kept


def test_each_generation_has_milestones_of_its_own():
    items = [facts(1000, id=1), facts(1000, id=2, generation=1), facts(1100, id=3, generation=1)]
    assert removed(plan(items, KeepRules(every_steps=1000))) == []


def test_order_is_generation_then_step_never_time():
    items = [facts(9000, id=1, generation=0, age=10), facts(100, id=2, generation=1, age=400_000),
             facts(200, id=3, generation=1, age=500_000)]
    assert removed(plan(items, KeepRules(last=1))) == [9000, 100]


def test_runs_that_count_only_epochs_are_ordered_by_epoch():
    items = [facts(None, id=i, epoch=e) for i, e in ((1, 30), (2, 10), (3, 20))]
    assert [d.checkpoint.epoch for d in plan(items, KeepRules(last=1)).removals] == [10, 20]


def test_a_rolling_last_takes_no_place_among_the_last_n():
    items = [facts(1000), facts(2000), facts(3000), facts(3000, id=99, role=Role.LAST)]
    assert removed(plan(items, KeepRules(last=2))) == [1000]


def test_an_incomplete_newest_does_not_make_the_newest_complete_one_removable():
    items = [facts(1000, 2), facts(2000, 3), facts(3000, None, state=CheckpointState.INCOMPLETE), facts(500, 1)]
    assert removed(plan(items, KeepRules(best=1))) == [1000]


def test_a_copied_file_with_an_old_date_is_as_young_as_when_it_was_found():
    old = facts(1000)
    found_now = evolve(old, checkpoint=evolve(old.checkpoint, found_at=NOW - 60))
    assert removed(plan([old, facts(2000)], KeepRules(within=3600.0))) == [1000]
    assert removed(plan([found_now, facts(2000)], KeepRules(within=3600.0))) == []


@pytest.mark.parametrize(
    ("approve_over", "approved", "held"),
    [
        (0.5, frozenset(), "removes 6 of 10 checkpoints (more than half): needs `ckptwatch approve RUN`"),
        (0.25, frozenset(), "removes 6 of 10 checkpoints (more than 25%): needs `ckptwatch approve RUN`"),
        (0.6, frozenset(), ""),  # as many is not more
        (1.0, frozenset(), ""),
        (0.5, frozenset({1000, 2000, 3000, 6000, 7000}), "more than half"),
        (0.5, frozenset({1000, 2000, 3000, 6000, 7000, 8000}), ""),
        (0.5, frozenset(range(0, 20000, 1000)), ""),
        (0.0, frozenset(), "more than 0%"),
    ],
)
def test_a_plan_that_removes_much_of_a_run_waits_for_a_person(approve_over, approved, held):
    result = plan(TEN, KeepRules(best=3), approve_over=approve_over, approved=approved)
    assert held in result.held
    assert bool(result.held) is bool(held)
    assert len(result.removals) == 6  # what is held is still shown


def test_the_only_checkpoint_of_a_run_stays():
    assert removed(plan([facts(1000, 9)], KeepRules(best=0, last=0))) == []


def test_nothing_in_nothing_out():
    assert plan([], KeepRules(best=3), approve_over=0.0).decisions == ()


def test_bytes_reclaimed_are_those_removed():
    assert plan(TEN, KeepRules(best=3)).reclaimed == 60


COUNT = st.one_of(st.none(), st.integers(0, 12))
FACT = st.builds(
    facts, COUNT, COUNT.map(lambda n: n or None), epoch=COUNT, age=st.floats(-1e5, 1e6), generation=st.integers(0, 1),
    state=st.sampled_from([COMPLETE] * 6 + list(CheckpointState)), role=st.sampled_from([Role.REGULAR] * 6 + list(Role)),
    pinned=st.sampled_from([None] * 4 + ["", "bob"]), awaits=st.sampled_from(["", "", "evaluation running"]),
    protected=st.sampled_from([(), (), ("open",)]), unranked=st.sampled_from(["", "fid is nan"]),
    deliberately_unranked=st.sampled_from([False, False, True]),
)
RULES = st.one_of(
    st.none(),
    st.builds(
        KeepRules, best=st.one_of(st.none(), st.integers(-1, 5)), last=st.one_of(st.none(), st.integers(0, 5)),
        every_steps=st.one_of(st.none(), st.integers(0, 4)), every_epochs=st.one_of(st.none(), st.integers(0, 4)),
        within=st.one_of(st.none(), st.floats(0, 1e6)),
    ),
)


@settings(max_examples=500)
@given(st.lists(FACT, max_size=14), RULES, st.booleans(), st.floats(0, 2), st.sets(st.integers(0, 14)), st.randoms())
def test_invariants_hold_whatever_the_facts_and_rules(items, rules, wanted, approve_over, approved, random):
    items = [evolve(f, checkpoint=evolve(f.checkpoint, id=i)) for i, f in enumerate(items)]
    before = copy.deepcopy(items)

    def decide(given):
        return plan_retention(
            given, rules=rules, ranking_wanted=wanted, approve_over=approve_over, approved=frozenset(approved), now=NOW
        )

    result = decide(items)
    assert items == before
    assert sorted(d.checkpoint.id for d in result.decisions) == list(range(len(items)))
    assert all(d.reasons and all(d.reasons) for d in result.decisions)

    by_id = {f.checkpoint.id: f for f in items}
    gone = [by_id[d.checkpoint.id] for d in result.removals]
    complete = [f for f in items if f.checkpoint.state is COMPLETE]
    for f in gone:
        c = f.checkpoint
        assert c.state is COMPLETE
        assert c.role is Role.REGULAR
        assert c.pinned_by is None
        assert not f.awaits
        assert not f.protected
        assert c.step is not None or c.epoch is not None
        assert f.rank is not None or f.deliberately_unranked or not (wanted or rules.best not in (None, 0, -1))
        assert rules is not None
        assert rules.best is None or rules.best >= 0
        assert rules.best is None or f.rank is None or f.rank > rules.best
        # something newer, and whole, and no mere copy of another stays behind it
        assert any(o.checkpoint.order > c.order and o not in gone for o in complete)
    if complete:
        assert len(gone) < len(complete)
    if len(gone) > approve_over * len(complete) and not {f.checkpoint.id for f in gone} <= approved:
        assert result.held
    else:
        assert not result.held

    shuffled = list(items)
    random.shuffle(shuffled)
    assert decide(shuffled) == result


@settings(max_examples=200)
@given(st.lists(FACT, max_size=10), RULES)
def test_adding_a_rule_never_removes_more(items, rules):
    items = [evolve(f, checkpoint=evolve(f.checkpoint, id=i)) for i, f in enumerate(items)]
    if rules is None or rules == KeepRules():
        return
    fewer = {d.checkpoint.id for d in plan(items, evolve(rules, within=1e9)).removals}
    assert fewer <= {d.checkpoint.id for d in plan(items, rules).removals}
