"""A logged value belongs to the checkpoint whose weights it was measured on, and to no other."""

import pytest

from ckptwatch.core.attaching import choose, spans, stretch_of
from ckptwatch.core.series import LogPoint, LogRow, same_point, starts_over


def at(step=None, epoch=None, value=0.0):
    return LogPoint(step=step, epoch=epoch, value=value)


def steps(*counts, generation=0):
    return spans([(generation, step, None) for step in counts])


def test_of_two_checkpoints_after_one_validation_only_the_first_has_its_result():
    first, second = steps(1000, 2000)
    points = [at(step=950, value=0.3)]
    assert choose(points, first).value == 0.3
    assert choose(points, second) is None


def test_the_nearest_value_not_later_counts():
    _, span, _ = steps(100, 200, 300)
    assert choose([at(step=s, value=s) for s in (90, 150, 199, 201)], span).value == 199


def test_a_value_of_the_very_step_counts_whatever_was_logged_just_before():
    span, = steps(200)
    assert choose([at(step=199, value=1.0), at(step=200, value=0.0)], span).value == 0.0


def test_of_equally_near_values_the_newest_counts():
    span, = steps(200)
    assert choose([at(step=200, value=1.0), at(step=200, value=2.0)], span).value == 2.0


def test_exactly_the_step_where_that_is_asked_for():
    span, = steps(200)
    assert choose([at(step=199)], span, attach="exact") is None
    assert choose([at(step=200, value=5.0)], span, attach="exact").value == 5.0


def test_nearest_takes_a_later_one_up_to_half_way_to_the_next_checkpoint():
    first, second = steps(100, 200)
    assert choose([at(step=140, value=1.0)], first, attach="nearest").value == 1.0
    assert choose([at(step=160, value=1.0)], first, attach="nearest") is None
    assert choose([at(step=160, value=1.0)], second, attach="nearest").value == 1.0


def test_nearest_gives_a_value_to_one_checkpoint_only():
    for step in range(101, 200):
        takers = [span for span in steps(100, 200) if choose([at(step=step)], span, attach="nearest")]
        assert len(takers) == 1, step


def test_carried_values_pass_checkpoints_by():
    _, second = steps(1000, 2000)
    assert choose([at(step=950, value=0.3)], second, attach="carry").value == 0.3


def test_where_a_log_counts_only_epochs_they_decide():
    first, second = spans([(0, 500, 1), (0, 1000, 2)])
    points = [at(epoch=1.0, value=0.1), at(epoch=2.0, value=0.2)]
    assert [choose(points, s).value for s in (first, second)] == [0.1, 0.2]


def test_a_fraction_of_an_epoch_is_before_its_end():
    first, second = spans([(0, None, 1), (0, None, 2)])
    assert choose([at(epoch=1.5, value=7.0)], second).value == 7.0
    assert choose([at(epoch=1.5, value=7.0)], first) is None


def test_a_checkpoint_without_counts_gets_nothing():
    span, = spans([(0, None, None)])
    assert choose([at(step=1), at(epoch=1)], span) is None


def test_a_rolling_copy_of_the_same_step_takes_nothing_from_the_numbered_file():
    numbered, copy = steps(100, 100)
    assert choose([at(step=90, value=1.0)], numbered) == choose([at(step=90, value=1.0)], copy)


def test_stretches_do_not_bound_one_another():
    old, new = spans([(0, 800, None), (1, 900, None)])
    assert (old.step_after, new.step_before) == (None, None)


def test_the_newest_stretch_that_has_come_as_far_wrote_it():
    assert stretch_of({0: (0, 800), 1: (500, 600)}, 700) == 0
    assert stretch_of({0: (0, 800), 1: (500, 700)}, 700) == 1
    assert stretch_of({0: (0, 800), 1: (500, 600)}, 900) == 1
    assert stretch_of({1: (500, 600)}, 100) is None


def test_what_was_saved_after_a_run_started_over_is_of_its_last_stretch():
    reach = {0: (100, 300), 1: (110, 110)}
    assert stretch_of(reach, 120, generation=1, newest=1) == 1
    assert stretch_of(reach, 120, generation=0, newest=1) == 0
    assert stretch_of({0: (100, 300), 1: (100, 300)}, 200, generation=0, newest=1) == 0
    assert stretch_of({0: (100, 300)}, 200, generation=2, newest=2) == 0, "a log that began later has fewer stretches"


@pytest.mark.parametrize(("last", "new", "over"), [
    (800, 500, True), (800, 0, True), (800, 801, False), (800, 800, False), (800, 795, False), (3, 1, True),
])
def test_falling_back_far_is_starting_over(last, new, over):
    assert starts_over(at(step=0), at(step=last), at(step=new)) is over


def test_counts_of_unlike_units_are_not_compared():
    assert not starts_over(at(step=0), at(step=800), at(epoch=1.0))
    assert not starts_over(at(epoch=0), at(epoch=8.0), at(step=1))


def test_not_a_number_equals_itself_among_points():
    assert same_point(at(step=1, value=float("nan")), at(step=1, value=float("nan")))
    assert not same_point(at(step=1, value=1.0), at(step=1, value=2.0))


def test_a_row_says_only_what_it_says():
    assert LogRow().values == {} and LogRow().step is None
