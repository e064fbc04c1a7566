"""Who is notified hears the first at once, then rarely, never more than so many in an hour, and of each end once."""

from pathlib import Path

from ckptwatch.core.telling import HOUR, LINES, WORDS, Message, Told, messages
from ckptwatch.model import Alarm, AlarmKind, Symptom, evolve


def told(ident: int = 1, *, kind: AlarmKind = AlarmKind.LOSS_SPIKE, subject: str = "loss", opened: float = 0.0,
         updated: float | None = None, closed: float | None = None, at: float | None = None, run: str = "pose") -> Told:
    s = Symptom(kind=kind, subject=subject, message=f"{subject} 4.81 is 6.2 × its recent average 0.78",
                causes=("learning rate too high", "a bad batch"))
    return Told(run=run, told_at=at, alarm=Alarm(
        id=ident, run_id=1, symptom=s, go_back_to=Path("/runs/pose/step_400.pt"), opened_at=opened,
        updated_at=opened if updated is None else updated, closed_at=closed))


def due(*known: Told, now: float = 0.0, every: float = 3600.0, at_most: int = 20,
        sent: tuple[float, ...] = ()) -> tuple[Message, ...]:
    return messages(known, every=every, at_most=at_most, sent=sent, now=now)


def test_a_new_alarm_goes_out_at_once_with_its_numbers_causes_and_the_checkpoint_to_go_back_to():
    (message,) = due(told())
    assert message.title == "pose: loss spike of loss"
    assert message.body.splitlines() == [
        "loss 4.81 is 6.2 × its recent average 0.78", "Likely: learning rate too high; a bad batch",
        "Go back to: /runs/pose/step_400.pt"]
    assert (message.level, message.alarms) == ("warning", (1,))


def test_what_was_told_is_told_again_only_when_it_grew_worse_and_not_too_soon():
    assert not due(told(at=10.0), now=9e6)
    assert not due(told(at=10.0, updated=100.0), now=10.0 + 3599)
    (message,) = due(told(at=10.0, updated=100.0), now=10.0 + 3600)
    assert message.title.endswith("grew worse")


def test_an_end_is_told_once_if_its_beginning_was():
    (message,) = due(told(at=10.0, closed=20.0), now=21.0)
    assert (message.title, message.level) == ("pose: loss spike of loss is over", "success")
    assert "Go back" not in message.body
    assert not due(told(at=21.0, closed=20.0), now=30.0)
    assert not due(told(closed=20.0), now=30.0)


def test_one_that_was_raised_anew_waits_until_the_last_word_about_it_is_old_enough():
    before = told(1, at=100.0, closed=90.0)
    assert not due(before, told(2, opened=200.0), now=200.0)
    assert [m.alarms for m in due(before, told(2, opened=200.0), now=3700.0)] == [(2,)]
    assert [m.alarms for m in due(before, told(2, opened=200.0, run="other"), now=200.0)] == [(2,)]


def test_no_hour_has_more_messages_than_are_allowed_and_the_last_holds_the_rest():
    known = [told(i, run=f"pose_{i}") for i in range(1, 31)]
    found = due(*known, at_most=20)
    assert len(found) == 20
    assert [len(m.alarms) for m in found] == [1] * 19 + [11]
    assert sorted(i for m in found for i in m.alarms) == list(range(1, 31))
    assert found[-1].title == "11 runs: 11 alarms"
    assert found[-1].body.count("\n") == 10


def test_one_message_tells_what_is_the_same_of_several_names():
    known = [told(i, subject=f"loss_{i}") for i in range(1, 9)]
    [message] = due(*known)
    assert message.title == "pose: loss spike of loss_1 and 7 more" and message.alarms == tuple(range(1, 9))
    assert all(f"loss_{i} 4.81" in message.body for i in range(1, 9))


def test_what_finds_no_room_goes_out_together_later():
    known = [told(i, subject=f"loss_{i}") for i in range(1, 4)]
    sent = tuple(float(i) for i in range(20))
    assert not due(*known, now=100.0, sent=sent)
    assert not due(*known, now=HOUR - 1.0, sent=sent)
    (digest,) = due(*known, now=HOUR, sent=sent)
    assert digest.alarms == (1, 2, 3)


def test_followed_for_days_the_limit_holds_and_nothing_is_lost():
    known = {i: told(i, subject=f"loss_{i}", opened=i * 7.0) for i in range(400)}
    sent: list[float] = []
    now = 0.0
    while any(t.told_at is None for t in known.values()):
        seen = [t for t in known.values() if t.alarm.opened_at <= now]
        for message in due(*seen, now=now, at_most=5, sent=tuple(sent)):
            sent.append(now)
            for ident in message.alarms:
                assert known[ident].told_at is None, "told once"
                known[ident] = evolve(known[ident], told_at=now)
        assert sum(1 for at in sent if now - HOUR < at <= now) <= 5
        now += 60.0
        assert now < 3 * 86400


def test_a_single_allowed_message_is_a_digest_when_there_is_more_to_say():
    (message,) = due(told(1), told(2, subject="b"), at_most=1)
    assert message.alarms == (1, 2)


def test_the_gravest_come_first_and_give_a_digest_its_level():
    known = [told(1, subject="a"), told(2, subject="b", at=1.0, closed=2.0), told(3, kind=AlarmKind.NOT_FINITE, subject="c")]
    assert [m.alarms for m in due(*known, now=5.0)] == [(3,), (1,), (2,)]
    (digest,) = due(*known, now=5.0, at_most=1)
    assert digest.level == "failure"


def test_a_digest_of_very_many_is_bounded_and_says_how_many_more():
    (digest,) = due(*(told(i, subject=f"l{i}", run=f"r{i % 3}") for i in range(500)), at_most=1)
    assert len(digest.body.splitlines()) == LINES + 1
    assert f"and {500 - LINES} more" in digest.body
    assert digest.title == "3 runs: 500 alarms"
    assert len(digest.alarms) == 500


def test_every_kind_of_alarm_has_words():
    assert set(WORDS) == set(AlarmKind)
    (message,) = due(told(kind=AlarmKind.STALLED, subject="checkpoints"))
    assert message.title == "pose: no new checkpoints"
