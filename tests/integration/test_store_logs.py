"""What training logged is kept point by point, told apart by stretches, and summed up right."""

import math
import statistics

import pytest

from ckptwatch.core.series import LogRow
from ckptwatch.model import Attached
from ckptwatch.store import logs, roots, runs
from ckptwatch.store.database import open_writing
from tests.yard import Yard


@pytest.fixture
def db(tmp_path):
    made = open_writing(tmp_path / "state")
    with made.write() as conn:
        roots.record(conn, tmp_path, uuid="u", device=1)
        runs.run_named(conn, tmp_path, "a", path=tmp_path / "a", now=0.0)
    yield made
    made.close()


@pytest.fixture
def log(db, tmp_path):
    with db.write() as conn:
        return logs.begin(conn, run_id=1, path=tmp_path / "a/metrics.csv", dialect="csv", now=0.0)


def add(db, log, rows, *, restarted=False):
    with db.write() as conn:
        log = logs.note(conn, log.id, place={"offset": 1}, restarted=restarted, rows=len(rows), bad=0, trouble="", now=1.0)
        logs.append(conn, log, rows)
        return logs.of_run(conn, 1)[0]


def rows(*steps, name="loss", value=float):
    return [LogRow(step=s, values={name: value(s)}) for s in steps]


def all_points(db, track, stretch):
    with db.read() as conn:
        return [(p.step, p.value) for p in logs.near(conn, track, stretch, 10**9, epochs=False)]


def track_of(db, name="loss"):
    with db.read() as conn:
        return next(t for t in logs.tracks(conn, 1) if t.name == name)


def test_points_come_back_as_they_were_whatever_the_portions(db, log):
    values = [math.sin(i) for i in range(1000)]
    for begin, end in ((0, 1), (1, 127), (127, 128), (128, 129), (129, 600), (600, 1000)):
        log = add(db, log, [LogRow(step=i, epoch=i / 100, values={"loss": values[i]}) for i in range(begin, end)])
    track = track_of(db)
    with db.read() as conn:
        curve = logs.curve_of(conn, track, logs.Totals())
        found = [p for s in range(1000) for p in logs.near(conn, track, 0, s, epochs=False) if p.step == s]
    assert [p.value for p in found] == values and [p.epoch for p in found] == [i / 100 for i in range(1000)]
    assert [p.value for p in curve.recent] == values[-len(curve.recent):]
    s = curve.summary
    assert s.count == 1000 and s.mean == pytest.approx(statistics.fmean(values)) and s.std == pytest.approx(
        statistics.pstdev(values))
    assert (s.low, s.high, s.last.step) == (min(values), max(values), 999)


def test_what_is_no_number_is_counted_and_spoils_no_mean(db, log):
    add(db, log, rows(1, 2, 3, value=lambda s: math.nan if s == 2 else math.inf if s == 3 else 5.0))
    with db.read() as conn:
        [(_, _, summary)] = logs.summaries(conn, 1)
    assert (summary.count, summary.not_finite, summary.mean) == (1, 2, 5.0)
    assert math.isinf(summary.last.value)


def test_where_steps_start_over_another_stretch_begins_for_all_names(db, log):
    log = add(db, log, [LogRow(step=s, values={"loss": 1.0}) for s in range(0, 801, 100)])
    log = add(db, log, [LogRow(step=800, values={"val": 9.0})])
    log = add(db, log, [LogRow(step=500, values={"loss": 2.0}), LogRow(step=600, values={"loss": 2.0})])
    log = add(db, log, [LogRow(step=900, values={"val": 8.0})])
    assert log.stretch == 1
    assert all_points(db, track_of(db), 0)[-1] == (800, 1.0) and all_points(db, track_of(db), 1) == [(500, 2.0), (600, 2.0)]
    assert all_points(db, track_of(db, "val"), 0) == [(800, 9.0)] and all_points(db, track_of(db, "val"), 1) == [(900, 8.0)]
    with db.read() as conn:
        assert logs.reach(conn, log.id, epochs=False) == {0: (0, 800), 1: (500, 900)}


def test_a_table_written_anew_with_another_column_is_no_other_stretch(db, log):
    log = add(db, log, rows(*range(0, 300, 10)))
    log = add(db, log, rows(*range(0, 310, 10)), restarted=True)
    assert [s for s, _ in all_points(db, track_of(db), 0)] == []
    assert [s for s, _ in all_points(db, track_of(db), log.stretch)] == list(range(0, 310, 10))


def test_a_rotated_log_of_a_run_that_goes_on_is_one_stretch(db, log):
    log = add(db, log, rows(*range(100)))
    log = add(db, log, rows(*range(100, 200)), restarted=True)
    assert log.stretch == 0 and log.restarts == 1
    assert track_of(db).stretch == 0


def test_what_belongs_to_a_checkpoint_takes_the_place_of_what_did(tmp_path):
    yard = Yard(tmp_path)
    checkpoint, _ = yard.make("a/0100.pt")
    values = {"loss": Attached(value=0.5, step=100, epoch=1.0, source="metrics.csv"),
              "bad": Attached(value=math.nan, step=100, epoch=None, source="metrics.csv")}
    with yard.db.write() as conn:
        logs.attach(conn, checkpoint.id, values)
        found = logs.attached_in(conn, checkpoint.run_id)[checkpoint.id]
        assert found["loss"] == values["loss"] and math.isnan(found["bad"].value)
        del values["bad"]
        logs.attach(conn, checkpoint.id, values)
        assert logs.attached_in(conn, checkpoint.run_id)[checkpoint.id] == values
    yard.db.close()
