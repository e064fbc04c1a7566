"""Whatever a worker does costs one attempt, never the daemon: small scripts in place of the real worker."""

import os
import queue
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from ckptwatch.model import FailureKind, MetricSpec, Recipe, Sampler
from ckptwatch.workers.supervisor import Died, Pool, Said, WorkerState, describe_death
from ckptwatch.workers.wire import Failed, Job, Progress, Ready, Result
from tests.support import PATIENCE, alive, until

HEAD = """
import argparse, json, os, signal, subprocess, sys, time
p = argparse.ArgumentParser()
p.add_argument("--device"); p.add_argument("--up-fd", type=int); p.add_argument("--threads")
a = p.parse_args()
os.set_inheritable(a.up_fd, False)
def send(**d): os.write(a.up_fd, json.dumps(d).encode() + b"\\n")
def ready(): send(type="ready", device=a.device, pid=os.getpid())
def jobs(): return (json.loads(line)["job"] for line in sys.stdin)
def result(job, **more): send(type="result", job=job, scores=[{"metric": "m", "value": 1.0}], seconds=0.1, **more)
"""


class Bench:
    """A pool with one worker script, and the main loop's part in it."""

    def __init__(self, directory, script, devices=("cpu",), command=None):
        path = directory / "worker.py"
        path.write_text(HEAD + script)
        self.directory = directory
        self.reports = queue.Queue()
        self.pool = Pool(devices=devices, report=self.reports.put, log_dir=directory / "log", directory=directory, threads=2,
                         command=command or (sys.executable, str(path)))
        self.worker = self.pool.workers[0]

    def job(self, name="1#1"):
        recipe = Recipe(name="r", sampler=Sampler(images="x"), metrics=(MetricSpec(name="m"),))
        return Job(job=name, checkpoint=self.directory / "x.pt", format="", run="a", step=1, epoch=None, variant="",
                   recipe=recipe, work_dir=self.directory, cache_dir=self.directory, log=self.directory / "log.txt")

    def assign(self, name="1#1"):
        self.pool.assign(self.worker, self.job(name), time.monotonic())

    def next(self, kind, *, ignore=(Ready, Progress)):
        """The next report of that kind; the ones before it may only be of those to ignore."""
        while True:
            report = self.reports.get(timeout=PATIENCE)
            self.pool.handle(report, time.monotonic())
            heard = report.document if isinstance(report, Said) else report
            if isinstance(heard, kind):
                return heard
            assert isinstance(heard, ignore), heard


@pytest.fixture
def bench(tmp_path):
    made = []

    def make(script, **more):
        made.append(Bench(tmp_path, script, **more))
        return made[-1]

    yield make
    for each in made:
        each.pool.close()


def test_no_process_is_started_before_there_is_a_job(bench):
    b = bench("ready()")
    assert b.worker.state is WorkerState.ABSENT and b.worker.process is None and b.pool.free(0.0) == [b.worker]


def test_a_job_is_answered_and_the_worker_stays_for_the_next(bench):
    b = bench("ready()\nfor j in jobs():\n send(type='progress', job=j, stage='sampling', done=1, total=2)\n result(j)")
    b.assign("1#1")
    assert b.worker.state is WorkerState.STARTING and b.pool.free(time.monotonic()) == []
    b.next(Progress, ignore=Ready)
    assert b.worker.state is WorkerState.BUSY and b.worker.progress.stage == "sampling"
    assert b.next(Result).scores[0].value == 1.0
    pid = b.worker.process.pid
    b.pool.release(b.worker, time.monotonic())
    assert b.worker.state is WorkerState.IDLE and b.worker.progress is None
    b.assign("2#1")
    assert b.next(Result).job == "2#1" and b.worker.process.pid == pid


def test_what_it_prints_goes_to_its_log_not_into_the_protocol(bench, tmp_path):
    b = bench("print('noise', flush=True)\nos.system('echo more noise')\nready()\nfor j in jobs(): result(j)")
    b.assign()
    b.next(Result)
    assert (tmp_path / "log/worker-w0-cpu.log").read_text() == "noise\nmore noise\n"


@pytest.mark.parametrize(("script", "words"), [
    ("ready()\nfor j in jobs(): os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
    ("ready()\nfor j in jobs(): os.abort()", "killed by SIGABRT"),
    ("ready()\nfor j in jobs(): sys.exit(0)", "exited with status 0"),
    ("ready()\nfor j in jobs(): sys.exit(7)", "exited with status 7"),
    ("sys.exit(3)", "exited with status 3"),
    ("ready()\nfor j in jobs(): os.write(a.up_fd, b'{\"type\": \"res'); os.kill(os.getpid(), 9)", "killed by SIGKILL"),
    ("ready()\nfor j in jobs(): os.write(a.up_fd, b'\\xff\\x00 garbage\\n'); time.sleep(600)", "sent garbage"),
    ("ready()\nfor j in jobs(): send(type='result', job=j, scores=[{'metric': 'm', 'value': 'much'}], seconds=1)\n"
     "time.sleep(600)", "sent garbage"),
    ("ready()\nfor j in jobs(): os.write(a.up_fd, b'x' * 5_000_000 + b'\\n'); time.sleep(600)", "sent garbage"),
])
def test_a_death_is_reported_once_in_words(bench, script, words):
    b = bench(script)
    b.assign()
    died = b.next(Died)
    assert words in died.words
    assert b.worker.state is WorkerState.ABSENT and b.worker.process is None
    assert b.worker.job is not None, "the daemon decides what becomes of the job"
    b.pool.release(b.worker, time.monotonic())
    assert b.reports.empty()


def test_after_a_death_the_slot_waits_longer_each_time_and_works_again(bench, tmp_path):
    b = bench("ready()\nfor j in jobs():\n  if os.path.exists('well'): result(j)\n  else: sys.exit(1)")
    pauses = []
    for _ in range(3):
        b.worker.not_before = 0.0
        b.assign()
        b.next(Died)
        pauses.append(b.worker.not_before - b.worker.since)
        b.pool.release(b.worker, time.monotonic())
        assert b.pool.free(b.worker.not_before - 0.001) == [] and b.pool.free(b.worker.not_before) == [b.worker]
    assert pauses == pytest.approx([1, 2, 4])
    (tmp_path / "well").touch()
    b.assign()
    b.next(Result)
    b.pool.release(b.worker, time.monotonic())
    assert b.worker.delay == 1.0, "a result resets the pause"


def test_a_worker_that_cannot_be_started_is_a_death_with_its_cause(bench):
    b = bench("", command=("/nonexistent/python",))
    b.assign()
    died = b.next(Died)
    assert "could not be started" in died.words and "/nonexistent/python" in died.words
    assert b.worker.state is WorkerState.ABSENT


def test_starting_in_vain_leaks_no_descriptors(bench):
    b = bench("", command=("/nonexistent/python",))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        b.assign()
        b.next(Died)
        b.pool.release(b.worker, 0.0)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_a_hanging_job_is_overdue_and_killed_with_everything_it_started(bench, tmp_path):
    script = ("ready()\nfor j in jobs():\n"
              "  child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
              "  open('child.tmp', 'w').write(str(child.pid)); os.rename('child.tmp', 'child')\n  signal.pause()")
    b = bench(script)
    b.assign()
    b.next(Ready)
    child = int(until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text()))
    now = time.monotonic()
    assert b.pool.overdue(3600.0, now) == []
    assert b.pool.overdue(60.0, now + 61) == [b.worker]
    b.pool.kill(b.worker, "no result after 60 s")
    assert b.next(Died).words == "killed by SIGKILL" and b.worker.ending == "no result after 60 s"
    until(lambda: not alive(child), what="grandchild ended")
    b.pool.release(b.worker, time.monotonic())
    assert b.pool.free(time.monotonic()) == [b.worker], "we ended it ourselves: no pause"


def test_a_worker_that_never_says_ready_is_overdue(bench):
    b = bench("signal.pause()")
    b.assign()
    assert b.pool.overdue(0.0, time.monotonic() + 299) == [] and b.pool.overdue(0.0, time.monotonic() + 301) == [b.worker]


def test_a_crashed_worker_takes_its_children_along(bench, tmp_path):
    b = bench("ready()\nfor j in jobs():\n  c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
              "  open('child', 'w').write(str(c.pid)); os.abort()")
    b.assign()
    b.next(Died)
    until(lambda: not alive(int((tmp_path / "child").read_text())), what="grandchild ended")


def test_reports_of_an_earlier_incarnation_mean_nothing(bench):
    b = bench("ready()\nfor j in jobs(): result(j)")
    b.assign()
    b.next(Result)
    stale = Died(worker=b.worker.id, incarnation=b.worker.incarnation - 1, returncode=0)
    assert b.pool.handle(stale, 0.0) is None and b.worker.state is WorkerState.BUSY
    assert b.pool.handle(Died(worker="w9", incarnation=1, returncode=0), 0.0) is None


def test_progress_of_another_job_is_not_shown(bench):
    b = bench("ready()\nfor j in jobs():\n send(type='progress', job='0#0', stage='x', done=1, total=1)\n result(j)")
    b.assign()
    b.next(Result)
    assert b.worker.progress is None


def test_a_failed_job_leaves_the_worker_alive(bench):
    b = bench("ready()\nfor j in jobs(): send(type='failed', job=j, failure={'kind': 'sampler', 'message': 'no'})")
    b.assign()
    assert b.next(Failed).failure.kind is FailureKind.SAMPLER
    b.pool.release(b.worker, time.monotonic())
    assert b.worker.state is WorkerState.IDLE


def test_a_worker_dead_between_two_jobs_is_noticed_at_the_next(bench):
    b = bench("ready()\nfor j in jobs():\n  result(j)\n  sys.exit(0)")
    b.assign()
    b.next(Result)
    b.pool.release(b.worker, time.monotonic())
    until(lambda: not alive(b.worker.process.pid), what="worker gone")
    b.assign("2#1")
    assert b.next(Died).returncode == 0


def test_close_ends_all_workers_and_leaves_no_zombie(bench):
    b = bench("ready()\nfor j in jobs(): signal.pause()", devices=("cpu", "cpu", "cpu"))
    for i, worker in enumerate(b.pool.workers):
        b.pool.assign(worker, b.job(f"{i}#1"), time.monotonic())
    for _ in b.pool.workers:
        b.next(Ready)
    pids = [w.process.pid for w in b.pool.workers]
    b.pool.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_workers_hold_neither_lock_nor_database_open(bench, tmp_path):
    """A worker that outlives the daemon must not keep the next one out."""
    with (tmp_path / "secret").open("w"):
        b = bench("ready()\nfor j in jobs(): result(j)")
        b.assign()
        b.next(Result)
        opened = [os.path.realpath(f) for f in Path(f"/proc/{b.worker.process.pid}/fd").iterdir()]
    assert str(tmp_path / "secret") not in opened


def test_bytecode_is_not_forbidden_to_workers(bench, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    b = bench("open('seen', 'w').write(str(os.environ.get('PYTHONDONTWRITEBYTECODE')))\nready()\nfor j in jobs(): result(j)")
    b.assign()
    b.next(Result)
    assert (tmp_path / "seen").read_text() == "None"


@pytest.mark.parametrize(("code", "words"), [
    (-signal.SIGSEGV, "killed by SIGSEGV"), (-250, "killed by signal 250"), (0, "exited with status 0")])
def test_deaths_have_words(code, words):
    assert describe_death(code) == words


def test_a_worker_that_is_dropped_while_it_starts_takes_no_other_job_before_it_is_dead(bench):
    b = bench("signal.pause()")
    b.assign("1#1")
    assert b.worker.state is WorkerState.STARTING
    b.pool.drop(b.worker, "of no use any more")
    assert b.pool.free(time.monotonic()) == []
    died = b.next(Died)
    assert died.returncode == -signal.SIGKILL and b.worker.job is None
    b.pool.release(b.worker, time.monotonic())
    assert b.pool.free(time.monotonic()) == [b.worker]


def test_a_result_that_comes_after_the_kill_makes_no_dying_worker_free(bench):
    b = bench("ready()\nfor job in jobs(): result(job); signal.pause()")
    b.assign("1#1")
    b.next(Ready, ignore=())
    until(lambda: b.reports.qsize() >= 1, what="the result is said")
    b.pool.kill(b.worker, "too late")
    b.next(Result, ignore=())
    b.pool.release(b.worker, time.monotonic())
    assert b.pool.free(time.monotonic()) == []
    b.next(Died)
    b.pool.release(b.worker, time.monotonic())
    assert b.pool.free(time.monotonic()) == [b.worker]
