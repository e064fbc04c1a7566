"""The worker as the daemon sees it: a process that answers on its own descriptor and outlives what goes wrong in it."""

import os
import selectors
import signal
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
import torch

from ckptwatch.model import Sampler
from ckptwatch.workers.wire import Failed, Job, Progress, Ready, Result, decode, encode
from tests.parity.evaluation_kit import ROOT, again, command, make_job, shell, write_images

PATIENCE = 120  # seconds; only ever used up by a worker that hangs


class Worker:
    """A real worker process."""

    def __init__(self, directory, *, device="cpu"):
        up, writer = os.pipe()
        argv = ("-m", "ckptwatch.evaluate.worker", "--device", device, "--up-fd", str(writer), "--threads", "2")
        self._log = (directory / "worker.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, *argv],
            stdin=subprocess.PIPE, stdout=self._log, stderr=self._log, pass_fds=(writer,), cwd=ROOT,
        )
        os.close(writer)
        self._up = os.fdopen(up, "rb", buffering=0)
        self._rest = b""

    def give(self, line: bytes | Job):
        self.process.stdin.write(line if isinstance(line, bytes) else encode(line))
        self.process.stdin.flush()

    def line(self) -> bytes:
        """The next line it sends; b"" at its end."""
        with selectors.DefaultSelector() as ready:
            ready.register(self._up, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                assert ready.select(PATIENCE), "the worker says nothing"
                piece = self._up.read(65536)
                if not piece:
                    assert not self._rest, f"half a line: {self._rest!r}"
                    return b""
                self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line + b"\n"

    def answer(self) -> Ready | Result | Failed | None:
        """The next document that is no Progress, None at the end; every line must be a document."""
        while line := self.line():
            document = decode(line)
            if not isinstance(document, Progress):
                return document
        return None

    def do(self, job: Job) -> Result | Failed | None:
        self.give(job)
        return self.answer()

    def end(self) -> int:
        self.process.stdin.close()
        return self.process.wait(PATIENCE)

    def close(self):
        self.process.kill()
        self.process.wait()
        self._up.close()
        self._log.close()


@pytest.fixture
def worker(tmp_path):
    """A worker to be killed."""
    started = Worker(tmp_path)
    yield started
    started.close()


@pytest.fixture(scope="module")
def survivor(tmp_path_factory):
    """One worker for all the tests that it has to outlive; in the end its input ends, and it exits with 0."""
    directory = tmp_path_factory.mktemp("survivor")
    started = Worker(directory)
    started.ready = started.answer()
    started.log_file = directory / "worker.log"
    yield started
    try:
        assert started.end() == 0
    finally:
        started.close()


def misbehaving(how: str) -> Sampler:
    return Sampler(factory="tests.parity.toy_samplers:Misbehaving", options={"how": how})


def test_worker_lives_through_results_failures_and_garbage(survivor, tmp_path):
    worker, ready = survivor, survivor.ready
    assert isinstance(ready, Ready) and ready.device == "cpu" and ready.pid == worker.process.pid
    process = psutil.Process(ready.pid)
    assert process.nice() >= 10 and process.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE

    first = worker.do(make_job(tmp_path, keep_samples=2))
    assert isinstance(first, Result) and first.job == "1#1" and first.seconds > 0
    assert first.scores[0].metric == "inception_score" and first.samples == tmp_path / "work" / "samples"

    number = 1
    for sampler, kind, words in [
        (misbehaving("raises"), "sampler", "ValueError: bad timestep"),
        (misbehaving("exits"), "sampler", "SystemExit"),
        (misbehaving("nan"), "not_finite", "NaN"),
        (misbehaving("memory"), "out_of_memory", "out of memory"),
        (shell("echo about to fail; exit 7"), "sampler", "exit status 7"),
    ]:
        number += 1
        failed = worker.do(replace(again(make_job(tmp_path, sampler=sampler), number), log=tmp_path / f"{number}.log"))
        assert isinstance(failed, Failed) and failed.job == f"1#{number}"
        assert failed.failure.kind == kind and words in failed.failure.message
    log = (tmp_path / "2.log").read_text()
    assert "sampling [0, 1, 2, 3, 4]" in log and "Traceback" in log and "bad timestep" in log
    assert "about to fail" in (tmp_path / "6.log").read_text()

    ready_line = b'{"type": "ready", "device": "cpu", "pid": 1}\n'
    for garbage in (b"\x00\xff{]\n", b"{}\n", b"\n", ready_line, b"[" * 99999 + b"\n"):
        worker.give(garbage)
    last = worker.do(again(make_job(tmp_path, sampler=command()), 99))
    assert isinstance(last, Result) and last.job == "1#99"
    assert {s.metric: s.value for s in last.scores}.keys() == {"inception_score"}
    assert "ignored" in worker.log_file.read_text()


def test_internal_fault_is_reported_with_its_traceback_in_the_log(survivor, tmp_path):
    worker = survivor
    job = make_job(tmp_path)
    (job.work_dir / "samples").write_text("in the way")
    failed = worker.do(replace(job, recipe=replace(job.recipe, keep_samples=1)))
    assert failed.failure.kind == "internal" and "Traceback" in (tmp_path / "job.log").read_text()
    failed = worker.do(replace(again(job), log=tmp_path / "no" / "such" / "job.log"))
    assert failed.failure.kind == "internal" and "No such file" in failed.failure.message
    assert isinstance(worker.do(again(job, 3)), Result)


def test_abort_in_a_sampler_kills_the_worker_but_leaves_whole_lines_and_a_trace(worker, tmp_path):
    assert worker.answer()
    assert worker.do(make_job(tmp_path, sampler=misbehaving("aborts"))) is None  # every line before the end was whole
    assert worker.process.wait(PATIENCE) == -signal.SIGABRT
    log = (tmp_path / "job.log").read_text()
    assert "Fatal Python error: Aborted" in log and "toy_samplers.py" in log  # faulthandler writes to the job's log
    assert "sampling [0, 1" in log


def test_end_of_input_lets_the_job_finish_first(worker, tmp_path):
    assert worker.answer()
    worker.give(make_job(tmp_path))
    worker.process.stdin.close()
    assert isinstance(worker.answer(), Result)
    assert worker.answer() is None and worker.process.wait(PATIENCE) == 0


def test_nothing_the_sampler_starts_outlives_a_killed_worker(worker, tmp_path):
    assert worker.answer()
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    # The program below the shell is what holds the GPU; it must go too.
    worker.give(make_job(tmp_path, sampler=shell(f"sleep 1000 & echo $! > {fifo}; wait")))
    with fifo.open() as told:
        sleeper = psutil.Process(int(told.read()))
    worker.process.kill()
    worker.process.wait()
    try:
        sleeper.wait(timeout=20)
    except psutil.TimeoutExpired:
        assert sleeper.status() == psutil.STATUS_ZOMBIE  # dead, but nobody reaps orphans in this container
    except psutil.NoSuchProcess:
        pass


def test_sampler_cannot_reach_the_pipes_of_the_worker(survivor, tmp_path):
    worker = survivor
    source = write_images(tmp_path / "images", 12)
    probe = f'ls -l /proc/self/fd; cat; cp {source}/*.png "$1"'
    assert isinstance(worker.do(make_job(tmp_path, sampler=shell(probe))), Result)
    log = (tmp_path / "job.log").read_text()
    assert "/dev/null" in log and "pipe:" not in log


def test_ctrl_c_is_the_daemons_business(survivor, tmp_path):
    worker = survivor
    worker.process.send_signal(signal.SIGINT)
    assert isinstance(worker.do(make_job(tmp_path)), Result)


def test_worker_ends_when_nobody_listens(worker, tmp_path):
    assert worker.answer()
    worker._up.close()
    worker.give(make_job(tmp_path))
    assert worker.process.wait(PATIENCE) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without that device")
def test_device_that_is_not_there_is_an_exit_status_not_a_ready(tmp_path):
    started = Worker(tmp_path, device="cuda:0")
    try:
        assert started.answer() is None
        assert started.process.wait(PATIENCE) == 3
        assert "cannot use device cuda:0" in (tmp_path / "worker.log").read_text()
    finally:
        started.close()
