from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptwatch.core.dispatch import Waiting, backoff, choose, due
from ckptwatch.model import EvaluateRule, Role


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
