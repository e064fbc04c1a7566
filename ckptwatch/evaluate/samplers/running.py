"""A sampler's command, from its start to its end: nothing of it outlives the worker, the time it has, or its reader."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from types import TracebackType

import psutil

from ckptwatch.evaluate.samplers import guard

POLL = 0.1          # seconds between looks at the process
KILL_WAIT = 5.0     # seconds for killed processes to go
TAIL_LINES = 5
TAIL_BYTES = 16384


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended."""

    status: int       # exit status; 128 + n for signal n
    timed_out: bool
    tail: str         # the last lines it wrote


class Running:
    """argv below a guard process, its output appended to `log`; killed with its whole tree after `timeout` seconds, and when
    the `with` statement is left. To be made in a thread that lives as long: the guard dies with it."""

    def __init__(self, argv: Sequence[str], log: Path, timeout: float) -> None:
        self._log = log
        with log.open("ab") as output:
            self._begin = output.seek(0, os.SEEK_END)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *argv],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0,
            )
        self._deadline = time.monotonic() + timeout
        self._timed_out = False
        self._unwanted, self._ended = Event(), Event()
        # The time must be kept while the reader is busy with images, too.
        self._watch = Thread(target=self._wait, name="sampler's clock", daemon=True)
        self._watch.start()

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._unwanted.set()
        self._watch.join()

    def ended(self, seconds: float) -> bool:
        """Waits at most so long for the end; has it come?"""
        return self._ended.wait(seconds)

    def outcome(self) -> Outcome:
        """Waits for the end."""
        self._ended.wait()
        return Outcome(status=self._process.returncode, timed_out=self._timed_out, tail=self.tail())

    def tail(self) -> str:
        """The last lines it wrote so far."""
        return _tail(self._log, self._begin)

    def _wait(self) -> None:
        try:
            # WNOWAIT leaves the zombie, so that its group's number cannot be taken by another before it is killed.
            while os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    self._timed_out = True
                    break
                if self._unwanted.wait(min(POLL, left)):
                    break
        finally:
            _kill(self._process)
            self._ended.set()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills the command's whole tree: its group, and children that left the group (torchrun, accelerate)."""
    try:
        strays = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        strays = []
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for stray in strays:
        with suppress(psutil.Error):
            stray.kill()
    process.wait()
    deadline = time.monotonic() + KILL_WAIT
    while any(map(_holds_memory, strays)) and time.monotonic() < deadline:
        time.sleep(POLL / 10)  # their GPU memory is free only when they are gone


def _holds_memory(process: psutil.Process) -> bool:
    """A zombie holds none, and where nobody reaps orphans it stays for ever."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _tail(log: Path, begin: int) -> str:
    """The last lines written to the log after `begin`, joined by " | "; a progress bar counts as its last state."""
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(begin, end - TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.rstrip().rsplit("\r", 1)[-1].strip() for line in text.split("\n")]
    return " | ".join([line[:300] for line in lines if line][-TAIL_LINES:])
