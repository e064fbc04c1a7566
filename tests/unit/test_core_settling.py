import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptwatch.core.settling import settle

NOW = 10_000.0


@pytest.mark.parametrize(
    ("changed", "seen", "quiet", "writer", "settled"),
    [
        (NOW - 31, NOW - 5, 30, False, True),
        (NOW - 30, NOW - 5, 30, False, True),
        (NOW - 29, NOW - 5, 30, False, False),
        (NOW - 999, NOW - 999, 30, True, False),      # open for writing, however long it has been still
        (NOW - 31, NOW - 31, 30, None, False),        # no leases: four times as long
        (NOW - 120, NOW - 5, 30, None, True),
        (NOW, NOW, 0, False, True),
        (NOW, NOW, 0, None, True),
        (NOW + 500, NOW - 31, 30, False, True),       # file time in the future: our own observation counts
        (NOW + 500, NOW - 29, 30, False, False),
        (NOW + 500, NOW + 400, 30, False, False),     # our own clock stepped back: wait
    ],
)
def test_settled_means_no_writer_and_still_for_the_quiet_time(changed, seen, quiet, writer, settled):
    result = settle(changed_at=changed, first_seen_unchanged=seen, now=NOW, quiet=quiet, writer=writer)
    assert result.settled is settled
    assert result.reason
    assert (result.recheck_at is None) is settled


def test_the_reason_is_in_words():
    result = settle(changed_at=NOW - 12, first_seen_unchanged=NOW, now=NOW, quiet=30, writer=None)
    assert result.reason == "file system has no leases, unchanged for 12s; needs 2m"
    assert result.recheck_at == NOW + 108
    assert settle(changed_at=0, first_seen_unchanged=0, now=NOW, quiet=1, writer=True).reason == "open for writing"


TIMES = st.floats(0, 2e9)


@given(TIMES, TIMES, TIMES, st.floats(0, 1e6), st.sampled_from([True, False, None]))
def test_asking_again_is_always_later_and_never_a_busy_loop(changed, seen, now, quiet, writer):
    result = settle(changed_at=changed, first_seen_unchanged=seen, now=now, quiet=quiet, writer=writer)
    assert result.settled or result.recheck_at > now


@given(TIMES, TIMES, st.floats(0, 1e6))
def test_a_checkpoint_that_is_left_alone_settles_at_the_time_promised(changed, later, quiet):
    now = changed + later
    first = settle(changed_at=changed, first_seen_unchanged=changed, now=now, quiet=quiet, writer=False)
    if not first.settled:
        again = settle(
            changed_at=changed, first_seen_unchanged=changed, now=first.recheck_at + 1e-3, quiet=quiet, writer=False
        )
        assert again.settled
