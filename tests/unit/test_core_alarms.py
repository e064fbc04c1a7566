"""An alarm is raised once, written anew when it grew worse, closed when it is over, and says where to go back to."""

import random
from pathlib import Path

import pytest

from ckptwatch.core.alarms import LOOKS, MOST_PATIENCE, PATIENCE, Absence, reconcile, return_point
from ckptwatch.model import (
    Alarm,
    AlarmKind,
    Checkpoint,
    CheckpointState,
    Identity,
    Role,
    Symptom,
    WeightScan,
    evolve,
)


def symptom(kind: AlarmKind = AlarmKind.LOSS_SPIKE, subject: str = "loss", *, step: int | None = 500,
            epoch: float | None = None, **numbers: float) -> Symptom:
    return Symptom(kind=kind, subject=subject, message=f"{kind} of {subject}", numbers=numbers, step=step, epoch=epoch)


def alarm(s: Symptom, ident: int = 1, *, opened: float = 0.0, closed: float | None = None) -> Alarm:
    return Alarm(id=ident, run_id=1, symptom=s, go_back_to=None, opened_at=opened, updated_at=opened, closed_at=closed)


def checkpoint(ident: int, step: int | None, *, epoch: int | None = None, generation: int = 0,
               state: CheckpointState = CheckpointState.COMPLETE) -> Checkpoint:
    return Checkpoint(
        id=ident, run_id=1, path=Path(f"/runs/a/{ident}.pt"), format="torch-zip", state=state, evidence="",
        role=Role.REGULAR, identity=Identity(device=1, inode=ident, size=1, mtime_ns=0), generation=generation, step=step,
        epoch=epoch, metrics={}, variants=(), found_at=float(ident))


class Ward:
    """Alarms over many looks, kept as the store keeps them."""

    def __init__(self) -> None:
        self.alarms: list[Alarm] = []
        self.absent: dict[int, Absence] = {}
        self.raised = self.updated = self.closed = 0

    def look(self, *symptoms: Symptom, now: float) -> None:
        changes = reconcile(self.alarms, symptoms, now=now, absent=self.absent)
        self.absent = dict(changes.absent)
        self.raised += len(changes.raised)
        self.updated += len(changes.updated)
        self.closed += len(changes.closed)
        gone = {a.id for a in changes.closed}
        new = {a.id: s for a, s in changes.updated}
        self.alarms = [evolve(a, closed_at=now) if a.id in gone else evolve(a, symptom=new[a.id], updated_at=now)
                       if a.id in new else a for a in self.alarms]
        self.alarms += [alarm(s, len(self.alarms) + 1 + i, opened=now) for i, s in enumerate(changes.raised)]


# ---- raised, updated, closed ----------------------------------------------------------------------------------------


def test_a_symptom_that_stays_is_raised_once_and_not_updated_at_each_look():
    ward = Ward()
    for i in range(50):
        ward.look(symptom(ratio=3.0), now=i * 10.0)
    assert (ward.raised, ward.updated, ward.closed) == (1, 0, 0)


def test_symptoms_of_another_kind_or_name_are_alarms_of_their_own():
    ward = Ward()
    ward.look(symptom(ratio=3.0), symptom(AlarmKind.NOT_FINITE), symptom(subject="loss_kpt"), now=0.0)
    assert ward.raised == 3


@pytest.mark.parametrize(("kind", "before", "same", "worse"), [
    (AlarmKind.LOSS_SPIKE, {"ratio": 3.0, "current": 1.0}, {"ratio": 3.2, "current": 9.0}, {"ratio": 3.5, "current": 1.0}),
    (AlarmKind.METRIC_DROP, {"drop": 0.10}, {"drop": 0.105}, {"drop": 0.12}),
    (AlarmKind.NOT_FINITE, {"streak": 4.0}, {"streak": 8.0}, {"streak": 9.0}),
    (AlarmKind.STALLED, {"waited": 1000.0}, {"waited": 1900.0}, {"waited": 2001.0}),
    (AlarmKind.LOSS_SPIKE, {"current": -1.0}, {"current": -0.95}, {"current": -0.5}),
])
def test_an_alarm_is_updated_when_its_numbers_grew_clearly_worse(kind, before, same, worse):
    opened = alarm(symptom(kind, **before))
    assert not reconcile([opened], [symptom(kind, **same)], now=1.0).updated
    assert reconcile([opened], [symptom(kind, **worse)], now=1.0).updated == ((opened, symptom(kind, **worse)),)


def test_it_is_closed_only_after_it_was_gone_for_two_looks_and_five_minutes():
    ward = Ward()
    ward.look(symptom(), now=0.0)
    ward.look(now=10.0)
    ward.look(now=10.0 + PATIENCE - 1)
    assert ward.closed == 0
    ward.look(now=10.0 + PATIENCE)
    assert ward.closed == 1
    assert LOOKS == 2
    once = Ward()
    once.look(symptom(), now=0.0)
    once.look(now=9e9)
    assert once.closed == 0, "one look after a long pause is not enough"


def test_a_symptom_that_returns_meanwhile_starts_the_wait_again():
    ward = Ward()
    ward.look(symptom(), now=0.0)
    ward.look(now=100.0)
    ward.look(symptom(), now=350.0)
    ward.look(now=360.0)
    ward.look(now=450.0)
    assert (ward.raised, ward.closed) == (1, 0)


def test_what_comes_and_goes_is_raised_a_few_times_not_hundreds():
    chance = random.Random(1)
    ward = Ward()
    for minute in range(7 * 24 * 60):
        there = (minute // 20) % 2 == 0 if chance.random() < 0.95 else chance.random() < 0.5
        ward.look(*([symptom()] if there else []), now=minute * 60.0)
    assert 1 <= ward.raised <= 4
    assert ward.raised - ward.closed in (0, 1)


def test_the_wait_is_bounded_however_often_it_came():
    past = [alarm(symptom(), i, closed=1.0) for i in range(2, 100)]
    opened = alarm(symptom(), 1)
    absent = {1: Absence(since=0.0, looks=1)}
    assert not reconcile([opened, *past], [], now=MOST_PATIENCE - 1, absent=absent).closed
    assert reconcile([opened, *past], [], now=MOST_PATIENCE, absent=absent).closed == (opened,)


def test_a_closed_alarm_neither_hides_a_new_symptom_nor_is_closed_again():
    changes = reconcile([alarm(symptom(), closed=5.0)], [symptom()], now=10.0)
    assert changes.raised == (symptom(),)
    assert not reconcile([alarm(symptom(), closed=5.0)], [], now=10.0).closed


# ---- where to go back to --------------------------------------------------------------------------------------------


def test_the_newest_complete_checkpoint_before_the_symptom_is_the_one_to_go_back_to():
    known = [checkpoint(1, 100), checkpoint(2, 400), checkpoint(3, 450, state=CheckpointState.INCOMPLETE),
             checkpoint(4, 460, state=CheckpointState.TRASHED), checkpoint(5, 500), checkpoint(6, 600)]
    assert return_point(symptom(step=500), known) == known[1]
    assert return_point(symptom(step=100), known) is None


def test_a_checkpoint_with_nan_in_its_weights_is_never_the_one_to_go_back_to():
    known = [checkpoint(1, 100), checkpoint(2, 400)]
    scans = {1: WeightScan(state="finite"), 2: WeightScan(state="not_finite")}
    assert return_point(symptom(step=500), known, scans=scans) == known[0]


def test_epochs_decide_where_there_are_no_steps():
    known = [checkpoint(1, None, epoch=3), checkpoint(2, None, epoch=4), checkpoint(3, None, epoch=5)]
    assert return_point(symptom(step=None, epoch=4.3), known) == known[1]
    assert return_point(symptom(step=700, epoch=5.0), known) == known[1]


def test_another_attempt_comes_first_and_the_one_before_it_where_it_has_none():
    known = [checkpoint(1, 100), checkpoint(2, 400), checkpoint(3, 200, generation=1), checkpoint(4, 300, generation=1)]
    assert return_point(symptom(step=350), known) == known[3]
    assert return_point(symptom(step=150), known) == known[0]


def test_a_stalled_run_goes_on_from_its_newest_and_a_metric_never_above_zero_has_nowhere_to_go_back_to():
    known = [checkpoint(1, 100), checkpoint(2, 400)]
    assert return_point(symptom(AlarmKind.STALLED, "checkpoints", step=None), known) == known[1]
    assert return_point(symptom(AlarmKind.STUCK, "coco/AP", step=None), known) is None
    assert return_point(symptom(AlarmKind.PLATEAU, step=None), known) is None
