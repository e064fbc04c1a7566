"""Starts, feeds, watches and ends worker processes. Whatever a worker does costs one attempt, never the daemon."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ckptwatch.workers.wire import LONGEST_LINE, Document, Job, Progress, Ready, WireError, decode, encode

log = logging.getLogger(__name__)

START_LIMIT = 300.0    # seconds until Ready: importing torch from a cold network disk is slow
RESPAWN_DELAY = 1.0    # seconds after a death, doubled each time up to RESPAWN_MAX; a result resets it
RESPAWN_MAX = 60.0
END_LIMIT = 10.0       # seconds; a killed process is gone at once unless its device hangs in the kernel
COMMAND = (sys.executable, "-m", "ckptwatch.evaluate.worker")


class WorkerState(StrEnum):
    ABSENT = "absent"      # no process: none needed yet, or it died and waits for its respawn
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"


@dataclass(frozen=True, kw_only=True)
class Said:
    """A worker sent a document."""

    worker: str
    incarnation: int
    document: Document


@dataclass(frozen=True, kw_only=True)
class Died:
    """A worker's process ended."""

    worker: str
    incarnation: int
    returncode: int
    cause: str = ""  # where the return code does not tell

    @property
    def words(self) -> str:
        """`killed by SIGSEGV`, `could not be started: …`."""
        return self.cause or describe_death(self.returncode)


Report = Said | Died


@dataclass(kw_only=True)
class Worker:
    """One slot. Several processes may fill it one after the other; `incarnation` tells their reports apart."""

    id: str
    device: str
    state: WorkerState = WorkerState.ABSENT
    incarnation: int = 0
    process: subprocess.Popen[bytes] | None = None
    job: Job | None = None
    since: float = 0.0           # when the present state began
    progress: Progress | None = None
    not_before: float = 0.0      # respawn not before this time
    delay: float = RESPAWN_DELAY
    ending: str = ""             # why we killed it, if we did
    listener: threading.Thread | None = None


class Pool:
    """A worker per device. Only the daemon's main thread calls it; reports arrive through `report` from reader threads."""

    def __init__(
        self, *, devices: tuple[str, ...], report: Callable[[Report], None], log_dir: Path, directory: Path,
        threads: int | None = None, command: tuple[str, ...] = COMMAND,
    ) -> None:
        self.workers = tuple(Worker(id=f"w{i}-{device}", device=device) for i, device in enumerate(devices))
        self._report = report
        self._log_dir = log_dir
        self._directory = directory
        self._threads = threads
        self._command = command

    def free(self, now: float) -> list[Worker]:
        """Slots that can take a job: idle ones, and empty ones whose time to start again has come. One that was killed
        takes none until its death is reported."""
        return [w for w in self.workers if w.job is None and not (w.ending and w.state is not WorkerState.ABSENT)
                and (w.state in (WorkerState.IDLE, WorkerState.STARTING)
                     or (w.state is WorkerState.ABSENT and w.not_before <= now))]

    def assign(self, worker: Worker, job: Job, now: float) -> None:
        """Hand a job to a free worker, starting its process if need be. A start that fails is reported as a death."""
        worker.job = job
        worker.progress = None
        if worker.state is WorkerState.ABSENT:
            self._start(worker, now)
        elif worker.state is WorkerState.IDLE:
            self._send(worker, now)

    def handle(self, report: Report, now: float) -> Worker | None:
        """Bring the worker's state up to date; None if the report is of an earlier incarnation and means nothing now."""
        worker = next((w for w in self.workers if w.id == report.worker), None)
        if worker is None or worker.incarnation != report.incarnation:
            return None
        if isinstance(report, Died):
            worker.state, worker.process, worker.since = WorkerState.ABSENT, None, now
            worker.not_before = now + (0.0 if worker.ending else worker.delay)
            worker.delay = min(worker.delay * 2, RESPAWN_MAX)
        elif isinstance(report.document, Ready):
            worker.state, worker.since = WorkerState.IDLE, now
            if worker.job is not None:
                self._send(worker, now)
        elif isinstance(report.document, Progress) and worker.job is not None and report.document.job == worker.job.job:
            worker.progress = report.document
        return worker

    def release(self, worker: Worker, now: float) -> None:
        """The job is over, however it ended; a living worker is idle again, unless it was killed meanwhile."""
        worker.job = None
        worker.progress = None
        if worker.ending and worker.state is not WorkerState.ABSENT:
            return
        worker.ending = ""
        if worker.state is WorkerState.BUSY:
            worker.state, worker.since, worker.delay = WorkerState.IDLE, now, RESPAWN_DELAY

    def overdue(self, limit: float, now: float) -> list[Worker]:
        """Workers whose job, or whose start, takes longer than it may."""
        late = []
        for worker in self.workers:
            allowed = limit if worker.state is WorkerState.BUSY else START_LIMIT
            if worker.state in (WorkerState.BUSY, WorkerState.STARTING) and now - worker.since > allowed:
                late.append(worker)
        return late

    def kill(self, worker: Worker, why: str) -> None:
        """End the process and everything it started. Its death is reported like any other, with `ending` set."""
        worker.ending = why
        if worker.process is not None:
            _kill_group(worker.process)

    def drop(self, worker: Worker, why: str) -> None:
        """Its job is of no use any more: end the process; nothing it still says counts."""
        self.kill(worker, why)
        worker.job = None
        worker.progress = None

    def close(self) -> None:
        """End all workers now."""
        for worker in self.workers:
            if worker.process is not None:
                _kill_group(worker.process)
            if worker.listener is not None:
                worker.listener.join(END_LIMIT)  # it alone reaps

    def _start(self, worker: Worker, now: float) -> None:
        worker.incarnation += 1
        worker.state, worker.since, worker.ending = WorkerState.STARTING, now, ""
        up_read, up_write = os.pipe()
        argv = [*self._command, "--device", worker.device, "--up-fd", str(up_write)]
        argv += ["--threads", str(self._threads)] if self._threads else []
        try:
            self._log_dir.mkdir(parents=True, exist_ok=True)
            with (self._log_dir / f"worker-{worker.id}.log").open("ab") as output:
                worker.process = subprocess.Popen(
                    argv, stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=(up_write,), cwd=self._directory,
                    start_new_session=True,
                    # Our own shell may forbid bytecode; a worker that compiles torch anew takes three times as long.
                    env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
                )
        except OSError as error:
            os.close(up_read)
            log.error("cannot start worker %s: %s", worker.id, error)
            self._report(Died(worker=worker.id, incarnation=worker.incarnation, returncode=-1,
                              cause=f"could not be started: {error}"))
            return
        finally:
            os.close(up_write)
        worker.listener = threading.Thread(
            target=self._listen, args=(worker.id, worker.incarnation, worker.process, up_read), daemon=True,
            name=f"listen-{worker.id}")
        worker.listener.start()

    def _send(self, worker: Worker, now: float) -> None:
        assert worker.job is not None and worker.process is not None and worker.process.stdin is not None
        worker.state, worker.since = WorkerState.BUSY, now
        try:
            worker.process.stdin.write(encode(worker.job))
            worker.process.stdin.flush()
        except OSError:
            pass  # it died this moment; the listener reports it

    def _listen(self, worker: str, incarnation: int, process: subprocess.Popen[bytes], descriptor: int) -> None:
        cause = ""
        with os.fdopen(descriptor, "rb") as lines:
            while line := lines.readline(LONGEST_LINE + 1):
                try:
                    self._report(Said(worker=worker, incarnation=incarnation, document=decode(line)))
                except WireError as error:
                    if not line.endswith(b"\n") and len(line) <= LONGEST_LINE:
                        break  # cut off: it died in the middle of it
                    cause = f"sent garbage: {error}"  # whatever it was to say is lost, so it is not worth waiting for
                    _kill_group(process)
                    break
        # Wait without reaping: while the zombie holds the number, the group we end is certainly its own.
        with contextlib.suppress(ChildProcessError):  # `close` has reaped it already, and ended its group
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            _kill_group(process)  # whatever it had started must not outlive it
        self._report(Died(worker=worker, incarnation=incarnation, returncode=process.wait(), cause=cause))


def describe_death(returncode: int) -> str:
    """`killed by SIGSEGV`, `exited with status 3`."""
    if returncode < 0:
        try:
            return f"killed by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"killed by signal {-returncode}"
    return f"exited with status {returncode}"


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
