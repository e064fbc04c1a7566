"""Several workers share one evaluation; what goes wrong in one part costs the attempt, once, and no other evaluation."""

import psutil
import pytest

from tests.support import RECIPE, alive, until


@pytest.fixture
def shared(project):
    recipe = {**RECIPE, "workers": 2, "samples": 64, "batch_size": 8}
    return project.write(recipes={"r": recipe},
                         workers={"devices": ["cpu", "cpu"], "threads": 1, "retry_after": 0.1, "attempts": 2})


def states(project):
    return {name: [str(e.state) for e in several] for name, several in project.evaluations().items()}


def test_parts_of_one_evaluation_run_side_by_side_and_give_one_score(shared):
    shared.save("a/100.pt", quality=0.5)
    with shared.daemon() as daemon:
        until(shared.quiet_state, what="evaluated")
        assert daemon.stop() == 0
    [[evaluation]] = shared.evaluations().values()
    assert evaluation.state == "done" and evaluation.attempts == 1 and evaluation.scores["quality"].value == 0.5
    assert [kind for kind, _ in shared.history()].count("evaluated") == 1
    assert "evaluating 100.pt on cpu, cpu" in shared.log


@pytest.mark.parametrize("part", [0, 1, "merge"])
@pytest.mark.parametrize("how", ["crash", "garbage"])
def test_a_part_that_ends_badly_costs_one_attempt_and_not_two(shared, how, part):
    shared.save("a/100.pt", quality=0.5, misbehave=how, in_part=part)
    shared.save("b/200.pt", quality=0.7)
    with shared.daemon() as daemon:
        until(lambda: shared.quiet_state() and len(shared.evaluations()) == 2, what="both ended")
        assert daemon.stop() == 0
    found = {name: several[0] for name, several in shared.evaluations().items()}
    assert found["a/100.pt"].state == "failed" and found["a/100.pt"].attempts == 2
    assert found["b/200.pt"].state == "done"


def test_a_hanging_part_is_ended_with_its_attempt(shared):
    shared.write(workers={**shared.config["workers"], "timeout": "1s", "attempts": 1})
    shared.save("a/100.pt", quality=0.5, misbehave="hang", in_part=1)
    with shared.daemon() as daemon:
        until(shared.quiet_state, what="given up")
        shared.save("a/200.pt", quality=0.6)
        until(lambda: states(shared).get("a/200.pt") == ["done"], what="the next one is evaluated")
        assert daemon.stop() == 0
    [evaluation] = shared.evaluations()["a/100.pt"]
    assert evaluation.state == "failed" and evaluation.failure.kind == "timeout"


def test_a_stopped_daemon_begins_a_shared_evaluation_anew(shared):
    shared.save("a/100.pt", quality=0.5, misbehave="hang", in_part=1)
    with shared.daemon() as daemon:
        until(lambda: states(shared).get("a/100.pt") == ["running"], what="running")
        assert daemon.stop() == 0
    [evaluation] = shared.evaluations()["a/100.pt"]
    assert evaluation.state == "pending" and evaluation.attempts == 0


def test_two_evaluations_get_a_worker_each_before_one_gets_both(shared):
    for name in ("a/100.pt", "b/100.pt"):
        shared.save(name, quality=0.5)
    with shared.daemon() as daemon:
        until(lambda: shared.quiet_state() and len(shared.evaluations()) == 2, what="both evaluated")
        assert daemon.stop() == 0
    assert all(e.state == "done" and e.attempts == 1 for several in shared.evaluations().values() for e in several)


def test_scratch_space_of_what_is_given_up_is_freed(shared):
    shared.save("a/100.pt", quality=0.5, misbehave="crash", in_part=1)
    with shared.daemon() as daemon:
        until(shared.quiet_state, what="given up")
        until(lambda: not any((shared.state / "work").iterdir()), what="cleared")
        assert daemon.stop() == 0


def test_a_checkpoint_that_goes_and_comes_back_is_evaluated_by_one_attempt_at_a_time(shared):
    path = shared.save("a/100.pt", quality=0.5, misbehave="hang", in_part=1)
    with shared.daemon() as daemon:
        until(lambda: states(shared).get("a/100.pt") == ["running"], what="running")
        before = [p.pid for p in psutil.Process(daemon.process.pid).children()]
        path.rename(shared.base / "away.pt")
        until(lambda: states(shared).get("a/100.pt") == ["abandoned"], what="abandoned")
        # The worker whose part was done is of use to others; the one that hangs is not.
        until(lambda: sum(alive(pid) for pid in before) == 1, what="the worker on it is ended")
        assert len(before) == 2
        (shared.base / "away.pt").rename(path)
        until(lambda: states(shared).get("a/100.pt") == ["running"], what="running again")
        assert daemon.stop() == 0
