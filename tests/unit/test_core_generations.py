import pytest

from ckptwatch.core.generations import next_generation


@pytest.mark.parametrize(
    ("newest", "newest_mtime", "step", "mtime", "back_catalogue", "generation"),
    [
        (None, None, 100, 1.0, False, 0),
        ((0, 100), 1.0, 200, 2.0, False, 0),
        ((0, 200), 2.0, 100, 3.0, False, 1),       # started over
        ((1, 200), 2.0, 100, 3.0, False, 2),
        ((0, 200), 2.0, 100, 1.0, False, 0),       # an old file found late
        ((0, 200), 2.0, 100, 2.0, False, 0),
        ((0, 200), 2.0, 200, 3.0, False, 0),       # written again, not started over
        ((0, 200), 2.0, 100, 3.0, True, 0),        # a back catalogue is one generation, whatever copying did to times
        ((3, 200), 2.0, 100, 3.0, True, 3),
        ((0, 200), 2.0, None, 3.0, False, 0),
        ((2, None), 2.0, 100, 3.0, False, 2),
        ((0, 200), None, 100, 3.0, False, 0),
        ((0, 200), 2.0, 0, 3.0, False, 1),         # step 0 is a step
    ],
)
def test_a_lower_step_written_later_begins_a_generation(newest, newest_mtime, step, mtime, back_catalogue, generation):
    found = next_generation(
        newest=newest, newest_mtime=newest_mtime, step=step, mtime=mtime, back_catalogue=back_catalogue
    )
    assert found == generation
