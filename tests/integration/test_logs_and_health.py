"""A daemon beside a training that logs: values find their checkpoints, the best are kept by them, and alarms are told."""

import json
import math
import os
import signal
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from ckptwatch.model import Logged
from ckptwatch.planning import assess
from ckptwatch.stages.belonging import belonging
from ckptwatch.store import alarms, logs, runs
from tests.support import OURS, until

pytestmark = pytest.mark.usefixtures("stub_workers")
LOGGED = {"match": "*", "approve_over": 1.0}


@pytest.fixture
def training(project):
    project.write(recipes={}, runs=[dict(LOGGED)])
    (project.root / "a").mkdir()
    return project


def write(project, name, rows, mode="w"):
    path = project.root / "a" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def assessed(project, run="a"):
    with project.reading() as conn:
        [found] = [r for r in runs.all_runs(conn) if r.name == run]
        return assess(conn, found, project.settings, now=4e9)


def values(project, name):
    """File name → value and source of a logged name."""
    a = assessed(project)
    return {c.path.name: (c.logged[name].value, c.logged[name].source) for c in a.checkpoints.values() if name in c.logged}


def opened(project):
    with project.reading() as conn:
        return {(str(a.symptom.kind), a.symptom.subject): a for run in runs.all_runs(conn)
                for a in alarms.of_run(conn, run.id, open_only=True)}


def checkpoints_at(project, *steps):
    for step in steps:
        project.save(f"a/step_{step:04d}.pt")


# ---- values and checkpoints -----------------------------------------------------------------------------------------


def test_values_belong_to_the_first_checkpoint_at_their_step_or_later(training):
    checkpoints_at(training, 100, 200, 300)
    write(training, "log.jsonl", [{"step": 95, "val_loss": 0.5}, {"step": 300, "val_loss": 0.2}])
    assert training.once() == 0
    assert values(training, "val_loss") == {"step_0100.pt": (0.5, "log.jsonl"), "step_0300.pt": (0.2, "log.jsonl")}


def test_a_value_that_is_logged_later_ranks_its_checkpoint_later(training):
    training.run_rule(rank={"monitor": "val_loss", "mode": "min"}, keep={"best": 2})
    checkpoints_at(training, 100, 200)
    write(training, "log.jsonl", [{"step": 100, "val_loss": 0.5, "loss": 1.0}])
    training.once()
    a = assessed(training)
    assert [p.contender.step for p in a.ranking.places] == [100]
    [unranked] = a.ranking.unranked
    assert unranked.contender.step == 200 and "no score for val_loss" in unranked.reason
    write(training, "log.jsonl", [{"step": 200, "val_loss": 0.4}], "a")
    training.once()
    assert [p.contender.step for p in assessed(training).ranking.places] == [200, 100]


def test_a_missing_metric_is_kept_and_explained_with_the_nearest_name(training):
    training.run_rule(rank={"by": "val_los", "mode": "min"}, keep={"best": 1})
    checkpoints_at(training, 100, 200)
    write(training, "log.jsonl", [{"step": s, "val_loss": 0.5, "rmse": 1.0} for s in (100, 200)])
    training.once()
    a = assessed(training)
    assert {u.reason for u in a.ranking.unranked} == {"no score for val_los; the nearest of its 2 metrics is val_loss"}
    assert sorted(p.name for p in (training.root / "a").glob("*.pt")) == ["step_0100.pt", "step_0200.pt"]


def test_zero_is_a_value(training):
    training.run_rule(rank={"by": "abs_rel"}, keep={"best": 1})
    checkpoints_at(training, 100, 200)
    write(training, "log.jsonl", [{"step": 100, "abs_rel": 0.0}, {"step": 200, "abs_rel": 0.1}])
    training.once()
    assert assessed(training).ranking.best.contender.step == 100


def test_the_best_by_several_metrics_are_kept_each_with_its_alias(training):
    training.run_rule(keep={"best": {"abs_rel": 2, "d1": {"count": 1, "mode": "max"}}},
                      aliases={"monitors": "best_{metric}_step_{step}{suffix}"})
    rows = [(100, 0.3, 0.9), (200, 0.2, 0.5), (300, 0.1, 0.6), (400, 0.4, 0.7), (500, 0.5, 0.4)]
    checkpoints_at(training, *(s for s, _, _ in rows))
    write(training, "log.jsonl", [{"step": s, "abs_rel": r, "d1": d} for s, r, d in rows])
    training.once()
    assert sorted(p.name for p in (training.root / "a").glob("*.pt")) == [
        "step_0100.pt", "step_0200.pt", "step_0300.pt", "step_0500.pt"]
    links = {p.name: p.resolve().name for p in (training.root / OURS / "runs/a").iterdir() if p.is_symlink()}
    assert links == {"best.pt": "step_0300.pt", "last.pt": "step_0500.pt", "best_abs_rel_step_300.pt": "step_0300.pt",
                     "best_d1_step_100.pt": "step_0100.pt"}
    reasons = {d.checkpoint.path.name: d.reasons for d in assessed(training).plan.decisions}
    assert "rank 1 of 4 by d1, keep best 1" in reasons["step_0100.pt"]
    by = {r["metric"]: r["ranking"][0]["step"] for r in training.json("rank", "a")["monitors"]}
    assert by == {"abs_rel": 300, "d1": 100}


def test_epochs_out_of_turn_take_no_place_and_are_left_to_the_other_rules(training):
    training.run_rule(rank={"by": "abs_rel", "period": 2}, keep={"best": 1, "last": 1}, health=False)
    for epoch in range(1, 6):
        training.save(f"a/epoch_{epoch}.pth")
    write(training, "log.jsonl", [{"epoch": e, "abs_rel": e / 10} for e in range(1, 6)])
    training.once()
    a = assessed(training)
    assert [p.contender.epoch for p in a.ranking.places] == [2]
    assert sorted(p.name for p in (training.root / "a").glob("*.pth")) == ["epoch_2.pth", "epoch_5.pth"]


def test_all_losses_are_kept_with_their_source_and_shown(training):
    checkpoints_at(training, 100)
    write(training, "log.jsonl", [{"step": 100, "loss": 0.9, "loss_kpt": 0.5, "loss_cls": 0.4}])
    training.once()
    [place] = training.json("rank", "a")["ranking"]
    assert {n: s["source"] for n, s in place["scores"].items()} == dict.fromkeys(
        ("loss", "loss_kpt", "loss_cls"), "log.jsonl, step 100")
    shown = training.cli("status").stdout
    assert all(word in shown for word in ("loss 0.9", "loss_kpt 0.5", "loss_cls 0.4"))


def test_what_an_evaluation_measures_is_never_ranked_with_what_was_logged(project):
    project.run_rule(rank={"by": "quality"})
    project.save("a/step_0100.pt", quality=1.0)
    (project.root / "a/log.jsonl").write_text('{"step": 100, "quality": 9.0, "loss": 0.1}\n')
    project.once()
    [place] = assessed(project).ranking.places
    assert place.score.value == 1.0 and not place.score.source
    assert place.contender.scores["loss"].value == 0.1, "what else was logged is shown beside it"


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.5])
def test_what_is_recorded_already_is_no_change(training, value):
    checkpoints_at(training, 100)
    write(training, "log.jsonl", [{"step": 100, "val_loss": value}])
    training.once()
    assert set(values(training, "val_loss")) == {"step_0100.pt"}
    with training.reading() as conn:
        assert belonging(conn, runs.run(conn, 1), Logged(), wanted=lambda _: True) == {}


# ---- whose values ---------------------------------------------------------------------------------------------------


def aged(project, seconds):
    """Everything of the run was written so long ago."""
    for path in (project.root / "a").rglob("*"):
        info = path.stat()
        os.utime(path, (info.st_mtime - seconds, info.st_mtime - seconds))


def rows_at(*steps, loss):
    return [{"step": s, "val_loss": loss} for s in steps]


@pytest.mark.parametrize("logs_of", [("log.jsonl", "log.jsonl"), ("version_0/log.jsonl", "version_1/log.jsonl"),
                                     ("version_2/log.jsonl", "version_10/log.jsonl")])
def test_what_a_later_attempt_logs_is_none_of_an_earlier_ones_checkpoints(training, logs_of):
    first, second = logs_of
    checkpoints_at(training, 1000, 2000, 3000)
    write(training, first, rows_at(990, 1990, 2990, loss=0.5))
    aged(training, 5000)
    training.once()
    write(training, second, rows_at(500, 1000, 1500, loss=4.9))
    training.once()
    assert {v for v, _ in values(training, "val_loss").values()} == {0.5}
    training.save("a/step_2000.pt")
    write(training, second, rows_at(2000, loss=4.8), "a")
    training.once()
    assert {name: v for name, (v, _) in values(training, "val_loss").items()} == {
        "step_1000.pt": 0.5, "step_2000.pt": 4.8, "step_3000.pt": 0.5}


def test_of_a_back_catalogue_of_attempts_each_checkpoint_gets_its_own(training):
    for version, steps, age in (("version_0", (100, 200, 300), 9000), ("version_1", (200, 300, 400), 3000)):
        write(training, f"{version}/log.jsonl", rows_at(*steps, loss=float(version[-1])))
        os.utime(training.root / "a" / version / "log.jsonl", (time.time() - age,) * 2)
    for step, age in ((100, 9200), (200, 3200), (300, 3100), (400, 3010)):
        training.save(f"a/step_{step:04d}.pt")
        os.utime(training.root / f"a/step_{step:04d}.pt", (time.time() - age,) * 2)
    training.once()
    assert {name: v for name, (v, _) in values(training, "val_loss").items()} == {
        "step_0100.pt": 0.0, "step_0200.pt": 1.0, "step_0300.pt": 1.0, "step_0400.pt": 1.0}


def test_logs_written_side_by_side_are_never_mixed_in_one_ranking(training):
    checkpoints_at(training, 250, 500, 1000)
    write(training, "train.jsonl", [{"step": s, "loss": 0.1} for s in range(100, 1001, 100)])
    write(training, "val.jsonl", [{"step": s, "loss": 0.9} for s in (250, 1000)])
    training.once()
    assert set(values(training, "loss").values()) == {(0.9, "val.jsonl")}


def test_bare_numbers_in_names_are_epochs_where_the_logs_count_nothing_else(training):
    for epoch in (1, 2):
        training.save(f"a/weights_{epoch:02d}.pt")
    write(training, "history.jsonl", [{"epoch": e, "val_loss": e / 10} for e in (1, 2)])
    training.once()
    assert {name: v for name, (v, _) in values(training, "val_loss").items()} == {"weights_01.pt": 0.1, "weights_02.pt": 0.2}


def test_a_log_that_appears_after_the_first_checkpoint_is_still_its_own(training):
    checkpoints_at(training, 100)
    aged(training, 5000)
    training.once()
    write(training, "log.jsonl", rows_at(50, 100, loss=0.5))
    training.once()
    assert values(training, "val_loss") == {"step_0100.pt": (0.5, "log.jsonl")}


def test_a_run_within_a_run_takes_back_what_its_logs_had_given(training):
    checkpoints_at(training, 100)
    write(training, "b/log.jsonl", rows_at(100, loss=0.5))
    training.once()
    assert values(training, "val_loss") == {"step_0100.pt": (0.5, "b/log.jsonl")}
    training.save("a/b/step_0100.pt")
    training.once()
    assert values(training, "val_loss") == {}


# ---- restarts -------------------------------------------------------------------------------------------------------


def test_after_a_restart_reading_goes_on_where_it_stopped(training):
    checkpoints_at(training, 100)
    path = write(training, "log.jsonl", [{"step": s, "loss": 1.0} for s in range(50)])
    training.once()
    write(training, "log.jsonl", [{"step": s, "loss": 1.0} for s in range(50, 60)], "a")
    training.once()
    with training.reading() as conn:
        [known] = logs.of_run(conn, 1)
        [(_, _, summary)] = logs.summaries(conn, 1)
    assert (known.path, known.rows, summary.count) == (path, 60, 60)


def test_a_rotated_log_is_read_on_and_its_successor_as_well(training):
    checkpoints_at(training, 100)
    path = write(training, "train.log", [{"step": s, "loss": 1.0} for s in range(50)])
    with training.daemon():
        until(lambda: "reading train.log" in training.log, what="the log is followed")
        until(lambda: _rows(training) == 50, what="its rows are read")
        with path.open("a") as file:
            path.rename(path.with_name("train.log.1"))
            file.write(json.dumps({"step": 50, "loss": 1.0}) + "\n")
        write(training, "train.log", [{"step": s, "loss": 1.0} for s in range(51, 70)])
        until(lambda: _rows(training) == 70, what="both are read")
    with training.reading() as conn:
        assert {log.path.name: log.rows for log in logs.of_run(conn, 1)} == {"train.log.1": 51, "train.log": 19}


def _rows(project):
    with project.reading() as conn:
        return sum(log.rows for log in logs.of_run(conn, 1))


def test_a_run_that_starts_over_in_the_same_log_mixes_nothing(training):
    checkpoints_at(training, 100, 200, 300)
    write(training, "log.jsonl", [{"step": s, "val_loss": 1.0} for s in (100, 200, 300)])
    training.once()
    write(training, "log.jsonl", [{"step": 110, "val_loss": 5.0}], "a")
    training.once()
    assert values(training, "val_loss") == {f"step_0{s}00.pt": (1.0, "log.jsonl") for s in (1, 2, 3)}
    training.save("a/step_0120.pt")
    training.once()
    assert values(training, "val_loss")["step_0120.pt"][0] == 5.0


def test_a_killed_daemon_neither_loses_nor_doubles_a_row(training):
    checkpoints_at(training, 100)
    total = 4000
    write(training, "log.jsonl", [{"step": 0, "loss": 1.0}])
    for part in range(4):
        with training.daemon() as daemon:
            write(training, "log.jsonl", [{"step": 1 + part * total // 4 + i, "loss": 1.0} for i in range(total // 4)], "a")
            until(lambda p=part: _rows(training) > p * total // 4 + 1, what="some of it is read")
            daemon.process.send_signal(signal.SIGKILL)
            daemon.process.wait()
    training.once()
    with training.reading() as conn:
        [(_, _, summary)] = logs.summaries(conn, 1)
    assert summary.count == total + 1 and summary.last.step == total


# ---- alarms ---------------------------------------------------------------------------------------------------------


def curve(count, level=1.0):
    return [{"step": s, "loss": level * math.exp(-s / 400) + 0.02 * ((s * 7919) % 13) / 13} for s in range(count)]


def test_a_loss_that_is_no_number_is_an_alarm_with_the_checkpoint_to_go_back_to(training):
    checkpoints_at(training, 100, 200)
    write(training, "log.jsonl", [*curve(150), {"step": 150, "loss": math.nan}])
    training.once()
    alarm = opened(training)["not_finite", "loss"]
    assert alarm.go_back_to.name == "step_0100.pt"
    status = training.json("status")
    [alert] = status["runs"][0]["alerts"]
    assert alert["kind"] == "not_finite" and alert["go_back_to"].endswith("step_0100.pt") and alert["causes"]
    assert status["level"] in ("FAIL", "DOWN")
    assert "nan" in (training.root / OURS / "runs/a/training_stats.txt").read_text().lower()


def test_where_the_checkpoint_to_go_back_to_had_to_give_way_it_is_said_how_to_get_it(training):
    training.run_rule(keep={"last": 1})
    checkpoints_at(training, 100, 200)
    write(training, "log.jsonl", [*curve(150), {"step": 150, "loss": math.nan}])
    training.once()
    [alert] = training.json("status")["runs"][0]["alerts"]
    assert not (training.root / "a/step_0100.pt").exists()
    assert alert["restore"] == f"ckptwatch restore {training.root / 'a/step_0100.pt'}"
    assert training.cli(*alert["restore"].split()[1:]).returncode == 0 and (training.root / "a/step_0100.pt").exists()


def test_an_alarm_is_raised_once_however_often_it_is_looked_at(training):
    checkpoints_at(training, 100)
    write(training, "log.jsonl", [*curve(150), {"step": 150, "loss": math.nan}])
    for _ in range(3):
        training.once()
    with training.reading() as conn:
        assert len(alarms.of_run(conn, 1)) == 1


def test_health_can_be_switched_off_for_a_run(training):
    training.run_rule(health=False)
    checkpoints_at(training, 100)
    write(training, "log.jsonl", [*curve(150), {"step": 150, "loss": math.nan}])
    training.once()
    assert opened(training) == {}


def test_nobody_is_told_today_of_what_went_wrong_in_an_old_run(training):
    checkpoints_at(training, 100, 200, 300)
    log = write(training, "log.jsonl", [*curve(150), {"step": 150, "loss": math.nan}])
    for path in (log, *(training.root / "a").glob("*.pt")):
        os.utime(path, (1e9, 1e9))
    training.once()
    assert opened(training) == {}
    assert "nan" in (training.root / OURS / "runs/a/training_stats.txt").read_text().lower(), "its statistics say it"


def test_weights_that_are_no_numbers_are_an_alarm(training):
    torch = pytest.importorskip("torch")
    checkpoints_at(training, 100)
    with training.daemon():
        until(lambda: training.states().get("a/step_0100.pt") == "complete", what="the run is known")
        bad = torch.full((4,), math.nan)
        torch.save({"model": {"good": torch.ones(3), "bad": bad}, "step": 200}, training.base / "new.pt")
        (training.base / "new.pt").rename(training.root / "a/step_0200.pt")
        until(lambda: opened(training), what="the alarm is raised")
    [((kind, _), alarm)] = opened(training).items()
    assert kind == "weights_not_finite" and alarm.go_back_to.name == "step_0100.pt"
    assert "step_0200" in training.log or "200" in alarm.symptom.message


@pytest.fixture
def listener():
    """An endpoint on loopback: what it was told, in order."""
    told = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"json://127.0.0.1:{server.server_port}/secret-token", told
    server.shutdown()
    server.server_close()


def test_people_are_told_once_and_the_address_is_told_to_nobody(training, listener):
    address, told = listener
    training.write(notify=[address])
    checkpoints_at(training, 100)
    write(training, "log.jsonl", [*curve(150), {"step": 150, "loss": math.nan}])
    with training.daemon():
        until(lambda: told, what="the message arrives")
    training.once()
    assert [m["title"] for m in told] == ["a: NaN or Inf of loss"]
    assert "secret-token" not in training.log


def test_alarms_are_drawn_where_they_began(training):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training.write(publish={"tensorboard": True})
    checkpoints_at(training, 100)
    write(training, "log.jsonl", [*curve(150), {"step": 150, "loss": math.nan}])
    training.once()
    found = EventAccumulator(str(training.root / OURS / "runs/a/tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("Alarms/not_finite/loss")] == [(150, 1.0)]
