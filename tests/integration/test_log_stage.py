"""What may lie where logs are looked for must neither end the daemon nor be lost, and nobody's log is another's."""

import json
import os
import time

import pytest

from ckptwatch.errors import StateError
from ckptwatch.settings import RootRule, Settings
from ckptwatch.stages.logs import LogStage
from ckptwatch.store import logs, roots, runs
from ckptwatch.store.database import open_writing

RUN = "a"


class Bench:
    """A stage on a root with runs, without a daemon."""

    def __init__(self, base):
        self.base, self.root = base, base / "runs"
        self.root.mkdir()
        self.db = open_writing(base / "state")
        with self.db.write() as conn:
            roots.record(conn, self.root, uuid="u", device=1)
        self.stage = LogStage(self.db, Settings(state_dir=base / "state", roots=(RootRule(root=self.root),)))
        self.run(RUN)

    def run(self, name):
        (self.root / name).mkdir(parents=True, exist_ok=True)
        with self.db.write() as conn:
            found, _ = runs.run_named(conn, self.root, name, path=self.root / name, now=0.0)
        return found.id

    def write(self, name, steps, mode="w", **more):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode) as file:
            file.writelines(json.dumps({"step": s, "loss": 1.0, **more}) + "\n" for s in steps)
        return path

    def look(self, **more):
        self.stage.refresh()
        self.stage.look(mono=time.monotonic, now=time.time(), **more)
        while self.stage.pending:
            self.stage.look(mono=time.monotonic, now=time.time(), **more)

    def counts(self, run_id=1):
        with self.db.read() as conn:
            return {str(log.path.relative_to(self.root)): log.rows for log in logs.of_run(conn, run_id)}

    def points(self, run_id=1):
        with self.db.read() as conn:
            return sum(s.count + s.not_finite for _, _, s in logs.summaries(conn, run_id))


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.db.close()


def test_a_log_that_comes_and_grows_is_read_once(bench):
    bench.look()
    bench.write("a/log.jsonl", range(10))
    bench.look()
    bench.write("a/log.jsonl", range(10, 15), "a")
    bench.look()
    bench.look()
    assert bench.counts() == {"a/log.jsonl": 15} and bench.points() == 15


def test_a_run_within_another_takes_its_logs_along(bench):
    bench.write("a/log.jsonl", range(5))
    bench.write("a/inner/log.jsonl", range(7))
    bench.look()
    assert bench.counts() == {"a/log.jsonl": 5, "a/inner/log.jsonl": 7}
    inner = bench.run("a/inner")
    bench.look()
    assert bench.counts() == {"a/log.jsonl": 5} and bench.counts(inner) == {"a/inner/log.jsonl": 7}


def test_what_could_not_be_recorded_is_read_again(bench, monkeypatch):
    bench.write("a/log.jsonl", range(10))
    real = logs.append

    def full(*_, **__):
        raise StateError("write the database", "database or disk is full")

    monkeypatch.setattr(logs, "append", full)
    with pytest.raises(StateError):
        bench.look()
    monkeypatch.setattr(logs, "append", real)
    bench.look()
    assert bench.counts() == {"a/log.jsonl": 10} and bench.points() == 10


def test_a_log_whose_reader_fails_costs_only_its_own_run(bench, monkeypatch, caplog):
    other = bench.run("b")
    bench.write("a/log.jsonl", range(10))
    bench.write("b/log.jsonl", range(10))
    real = logs.append

    def broken(conn, log, rows, **more):
        if log.run_id == 1:
            raise OverflowError("no number")
        return real(conn, log, rows, **more)

    monkeypatch.setattr(logs, "append", broken)
    bench.look()
    bench.look()
    assert bench.counts(other) == {"b/log.jsonl": 10}
    assert caplog.text.count("the logs of a could not be read") == 1
    monkeypatch.setattr(logs, "append", real)
    bench.look()
    assert bench.counts() == {"a/log.jsonl": 10} and bench.points() == 10, "nothing of it is lost"


def test_names_that_are_no_text_are_left_alone(bench):
    bad = os.fsencode(bench.root / "a") + b"/log\xff.jsonl"
    with open(bad, "w") as file:  # noqa: PTH123 - no Path can be made of these bytes
        file.write('{"step": 1, "loss": 1.0}\n')
    bench.write("a/log.jsonl", range(3))
    bench.look()
    assert bench.counts() == {"a/log.jsonl": 3}


def test_odd_numbers_in_a_log_end_nothing(bench):
    path = bench.write("a/log.jsonl", range(3))
    with path.open("a") as file:
        file.write('{"step": 1e300, "loss": 1}\n{"step": -5, "loss": 1}\n{"step": NaN, "loss": 2}\n')
        file.write('{"step": 4, "loss": 1e999}\n')
        file.write('{"step": 18446744073709551616, "loss": 1}\n{"step": 5, "loss": ' + "9" * 400 + "}\n")
        file.write('{"step": 6, "loss": 0.5, "a\\ud800b": 1, "x\\ny": 2}\n')
    bench.look()
    with bench.db.read() as conn:
        [(name, _, summary)] = [s for s in logs.summaries(conn, 1) if s[0] == "loss"]
    assert name == "loss" and summary.last.step == 6 and summary.last.value == 0.5


def test_directories_that_lead_in_circles_or_cannot_be_read_end_nothing(bench):
    (bench.root / "a/loop").symlink_to(bench.root / "a")
    os.mkfifo(bench.root / "a/pipe.jsonl")
    (bench.root / "a/dir.jsonl").mkdir()
    bench.write("a/log.jsonl", range(3))
    bench.look(final=True)
    assert bench.counts() == {"a/log.jsonl": 3}


def test_a_directory_that_is_gone_and_comes_back_is_read_on(bench):
    bench.write("a/log.jsonl", range(5))
    bench.look()
    (bench.root / "a").rename(bench.base / "away")
    bench.look()
    (bench.base / "away").rename(bench.root / "a")
    bench.write("a/log.jsonl", range(5, 8), "a")
    bench.look()
    assert bench.counts() == {"a/log.jsonl": 8} and bench.points() == 8


def test_the_trainers_history_in_each_checkpoint_is_one_log(bench):
    def state(step):
        place = bench.root / f"a/checkpoint-{step}"
        place.mkdir()
        (place / "model.safetensors").write_bytes(b"x")
        history = [{"step": s, "loss": 1.0, "epoch": s / 10} for s in range(1, step + 1)]
        (place / "trainer_state.json").write_text(json.dumps({"log_history": history, "global_step": step}))

    for step in (5, 10):
        state(step)
        bench.look()
    assert bench.counts() == {"a/checkpoint-10/trainer_state.json": 10} and bench.points() == 10


def test_a_file_that_got_the_inode_of_a_removed_log_is_another(bench):
    old = bench.write("a/train.log", range(20))
    bench.look()
    inode = old.stat().st_ino
    old.unlink()
    new = bench.root / "a/metrics.csv"
    new.write_text("step,val_loss\n1,0.5\n2,0.4\n")
    bench.look()
    with bench.db.read() as conn:
        found = {log.path.name: (log.dialect, log.rows) for log in logs.of_run(conn, 1)}
    assert found["metrics.csv"] == ("lightning-csv", 2), f"inode {inode} and {new.stat().st_ino}"


def test_a_log_with_names_without_end_is_kept_within_bounds(bench):
    path = bench.root / "a/log.jsonl"
    with path.open("w") as file:
        for step in range(10):
            file.write(json.dumps({"step": step, **{f"n{step}_{i}": 1.0 for i in range(400)}}) + "\n")
    bench.look()
    with bench.db.read() as conn:
        [log] = logs.of_run(conn, 1)
        names = {track.name for track in logs.tracks(conn, 1)}
    assert len(names) == logs.NAMES and log.bad > 0 and "more than 1,000 names" in log.trouble


def test_steps_without_end_spoil_nothing(bench):
    path = bench.write("a/log.jsonl", range(3))
    with path.open("a") as file:
        file.write('{"step": 9223372036854775807, "loss": 2}\n{"step": 3, "loss": 0.5}\n')
    bench.look()
    with bench.db.read() as conn:
        [(_, _, summary)] = logs.summaries(conn, 1)
    assert summary.last.step == 3 and summary.count == 4


def test_a_last_line_without_its_end_is_read_when_nobody_writes_any_more(bench):
    path = bench.write("a/log.jsonl", range(3))
    with path.open("a") as file:
        file.write('{"step": 3, "loss": 0.25}')
    bench.look()
    assert bench.counts() == {"a/log.jsonl": 3}
    bench.look(final=True)
    assert bench.counts() == {"a/log.jsonl": 4}
