from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptwatch.core.dispatch import Waiting, backoff, choose, due, knows_its_place, shares
from ckptwatch.model import EvaluateRule, Role, evolve


def waiting(evaluation_id, run_id=1, step=0, **more):
    return Waiting(evaluation_id=evaluation_id, run_id=run_id, order=(0, step), **more)


@pytest.mark.parametrize(
    ("attempts", "seconds"), [(-1, 0), (0, 0), (1, 30), (2, 120), (3, 480), (4, 1920), (5, 3600), (6, 3600), (10**9, 3600)]
)
def test_each_failure_waits_longer_up_to_an_hour(attempts, seconds):
    assert backoff(attempts) == seconds


def test_newest_checkpoint_first():
    assert choose([waiting(1, step=1), waiting(2, step=3), waiting(3, step=2)], free=2, now=0) == (2, 3)


def test_variants_of_a_checkpoint_go_in_the_order_queued():
    assert choose([waiting(2, step=1), waiting(1, step=1)], free=2, now=0) == (1, 2)


def test_what_is_not_available_yet_waits():
    assert choose([waiting(1, available_at=10), waiting(2, available_at=5)], free=2, now=5) == (2,)


def test_no_run_takes_all_slots():
    items = [waiting(i, run_id=1, step=i) for i in range(5)] + [waiting(9, run_id=2)]
    assert choose(items, free=2, now=0) == (4, 9)


def test_run_with_fewest_running_first():
    items = [waiting(1, run_id=1, running=1), waiting(2, run_id=2)]
    assert choose(items, free=1, now=0) == (2,)


def test_with_one_slot_no_run_starves():
    served: dict[int, float] = {1: 0.0, 2: 0.0, 3: 0.0}
    order = []
    for now in range(1, 10):
        items = [waiting(run * 100 + now, run_id=run, served_at=served[run]) for run in served]
        run = choose(items, free=1, now=now)[0] // 100
        served[run] = now
        order.append(run)
    assert order == [1, 2, 3] * 3


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9), st.floats(0, 2)), max_size=20), st.integers(0, 8), st.randoms()
)
def test_slots_are_filled_evenly_and_whatever_the_order_of_the_input(items, free, random):
    queue = [waiting(i, run_id=run, step=step, available_at=at) for i, (run, step, at) in enumerate(items)]
    chosen = choose(queue, free=free, now=1)
    available = {w.evaluation_id: w for w in queue if w.available_at <= 1}
    assert len(chosen) == len(set(chosen)) == min(free, len(available))
    assert set(chosen) <= set(available)
    taken = Counter(available[i].run_id for i in chosen)
    left = Counter(w.run_id for i, w in available.items() if i not in chosen)
    for run in left:  # a run with work left has at most one fewer than any other
        assert taken[run] >= max(taken.values(), default=0) - 1
    random.shuffle(queue)
    assert choose(queue, free=free, now=1) == chosen


@pytest.mark.parametrize(
    ("position", "every", "final", "role", "expected"),
    [
        (1, 1, True, Role.REGULAR, True), (1, 2, True, Role.REGULAR, False), (2, 2, True, Role.REGULAR, True),
        (3, 2, True, Role.REGULAR, False), (3, 2, True, Role.FINAL, True), (2, 2, False, Role.FINAL, False),
        (3, 2, True, Role.LAST, False), (4, 2, True, Role.BEST, True), (1, 0, True, Role.REGULAR, False),
    ],
)
def test_every_nth_is_evaluated_and_final_by_its_own_rule(position, every, final, role, expected):
    is_due, reason = due(position, rule=EvaluateRule(recipe="r", every=every, final=final), role=role)
    assert is_due is expected
    assert bool(reason) is not expected


@pytest.mark.parametrize(("n", "ordinal"), [(2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (21, "21st"), (112, "112th")])
def test_the_reason_says_which(n, ordinal):
    assert due(1, rule=EvaluateRule(recipe="r", every=n), role=Role.REGULAR)[1] == f"every {ordinal} checkpoint is evaluated"


STEPS = EvaluateRule(recipe="r", every_steps=10_000)
EPOCHS = EvaluateRule(recipe="r", every_epochs=40)


@pytest.mark.parametrize(
    ("rule", "counts", "expected"),
    [
        (STEPS, {"step": 20_000}, True), (STEPS, {"step": 25_000}, False), (STEPS, {"step": 0}, True),
        (EPOCHS, {"epoch": 80}, True), (EPOCHS, {"epoch": 45}, False), (EPOCHS, {"epoch": 1}, False),
        # Only the unit that was asked for counts.
        (EPOCHS, {"epoch": 45, "step": 40}, False), (STEPS, {"epoch": 10_000, "step": 1}, False),
        (STEPS, {"epoch": 10_000}, False), (EPOCHS, {"step": 40}, False), (EPOCHS, {}, False),
        (EvaluateRule(recipe="r", every_epochs=1), {"epoch": 7}, True),
    ],
)
@pytest.mark.parametrize("role", [Role.REGULAR, Role.LAST])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_multiples_of_steps_or_epochs_are_evaluated_rolling_copies_included(position, role, rule, counts, expected):
    is_due, reason = due(position, rule=rule, role=role, **counts)
    assert is_due is expected
    assert bool(reason) is not expected


def test_the_trainers_own_best_is_not_evaluated_by_multiples():
    is_due, reason = due(0, rule=EPOCHS, role=Role.BEST, epoch=80)
    assert not is_due
    assert reason == "every 40th epoch is evaluated, and the trainer's own best is a copy of one"


@pytest.mark.parametrize("rule", [STEPS, EPOCHS])
@pytest.mark.parametrize("counts", [{}, {"step": 3, "epoch": 3}, {"step": 10_000, "epoch": 40}])
def test_final_checkpoints_follow_their_own_rule_whatever_the_multiple(rule, counts):
    assert due(3, rule=rule, role=Role.FINAL, **counts) == (True, "")
    assert due(3, rule=evolve(rule, final=False), role=Role.FINAL, **counts) == (
        False, "final checkpoints are not evaluated (final: false)")


@pytest.mark.parametrize(
    ("rule", "counts", "reason"),
    [
        (EPOCHS, {"epoch": 45}, "every 40th epoch is evaluated, this is 45"),
        (STEPS, {"step": 12_500}, "every 10000th step is evaluated, this is 12500"),
        (EPOCHS, {"step": 40}, "every 40th epoch is evaluated, and the epoch of this one is not known"),
        (STEPS, {"epoch": 2}, "every 10000th step is evaluated, and the step of this one is not known"),
        (EvaluateRule(recipe="r", every_steps=1), {}, "every step is evaluated, and the step of this one is not known"),
        (EvaluateRule(recipe="r", every_epochs=0), {"epoch": 0}, "evaluation is off (every_epochs: 0)"),
    ],
)
def test_a_count_that_is_no_multiple_is_told(rule, counts, reason):
    assert due(1, rule=rule, role=Role.REGULAR, **counts) == (False, reason)


@given(st.integers(1, 1000), st.integers(0, 10**6))
def test_by_multiples_exactly_the_multiples_are_due(every, count):
    assert due(1, rule=EvaluateRule(recipe="r", every_steps=every), role=Role.LAST, step=count)[0] is (count % every == 0)


@pytest.mark.parametrize(
    ("rule", "step", "epoch", "expected"),
    [(STEPS, 5, None, True), (STEPS, None, 5, False), (EPOCHS, 5, None, False), (EPOCHS, None, 0, True),
     (EvaluateRule(recipe="r", every=2), None, None, True)],
)
def test_what_has_not_the_count_that_is_asked_for_is_not_left_out_on_purpose(rule, step, epoch, expected):
    assert knows_its_place(rule=rule, step=step, epoch=epoch) is expected


# ---- sharing ----


@pytest.mark.parametrize(("limits", "free", "expected"), [
    ([1, 1], 2, (1, 1)), ([4], 3, (3,)), ([2], 3, (2,)), ([4, 4], 2, (1, 1)), ([4, 4], 5, (4, 1)), ([1, 4], 4, (1, 3)),
    ([], 3, ()), ([4, 4, 4], 2, (1, 1, 0)),
])
def test_every_evaluation_gets_a_worker_before_any_gets_a_second(limits, free, expected):
    assert shares(limits, free=free) == expected
