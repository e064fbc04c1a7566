"""A command of the user's, from its start to its end: nothing of it outlives the worker, the time it has, or its reader."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import BinaryIO

import psutil

from ckptwatch.evaluate.samplers import guard

POLL = 0.1          # seconds between looks at the process
KILL_WAIT = 5.0     # seconds for killed processes to go
TAIL_LINES = 5
TAIL_BYTES = 16384
CHUNK = 65536       # bytes of standard output taken at a time
IN_PIPE = 16        # chunks that may still lie in a pipe whose writers have ended


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended."""

    status: int       # exit status; 128 + n for signal n
    timed_out: bool
    tail: str         # the last lines it wrote

    @property
    def said(self) -> str:
        """The last lines as the end of a sentence; "" where it wrote nothing."""
        return f"; it said: {self.tail}" if self.tail else ""

    @property
    def words(self) -> str:
        """`exit status 137 (killed by SIGKILL)`."""
        if self.status > 128:
            with suppress(ValueError):
                return f"exit status {self.status} (killed by {signal.Signals(self.status - 128).name})"
        return f"exit status {self.status}"


class Running:
    """argv below a guard process, its output appended to `log`; killed with its whole tree after `timeout` seconds, and when
    the `with` statement is left. To be made in a thread that lives as long: the guard dies with it.

    With `hear`, standard output comes through a pipe: each chunk is given to `hear`, in a thread of its own, as soon as it
    lies in the log. `env` are variables that the command has beside ours.
    """

    def __init__(
        self, argv: Sequence[str], log: Path, timeout: float, *, hear: Callable[[bytes], None] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._log = log
        self._unwanted, self._ended = Event(), Event()
        self._listener: Thread | None = None
        self._trouble: OSError | None = None
        with log.open("ab") as output:
            self._begin = output.seek(0, os.SEEK_END)
            listened, told = os.pipe() if hear is not None else (-1, -1)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *argv],
                    stdin=subprocess.DEVNULL, stdout=output if hear is None else told, stderr=output, process_group=0,
                    env=None if env is None else {**os.environ, **env},
                )
            except BaseException:
                if hear is not None:
                    os.close(listened)
                raise
            finally:
                if hear is not None:
                    os.close(told)
        self._deadline = time.monotonic() + timeout
        self._timed_out = False
        if hear is not None:
            self._listener = Thread(target=self._listen, args=(listened, hear), name="command's output", daemon=True)
            self._listener.start()
        # The time must be kept while the reader is busy with images, too.
        self._watch = Thread(target=self._wait, name="sampler's clock", daemon=True)
        self._watch.start()

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._unwanted.set()
        self._watch.join()
        if self._listener is not None:
            self._listener.join()

    def ended(self, seconds: float) -> bool:
        """Waits at most so long for the end; has it come?"""
        return self._ended.wait(seconds)

    def outcome(self) -> Outcome:
        """Waits for the end. Raises OSError where standard output could not be put into the log."""
        self._ended.wait()
        if self._listener is not None:
            self._listener.join()
        if self._trouble is not None:
            raise self._trouble
        return Outcome(status=self._process.returncode, timed_out=self._timed_out, tail=self.tail())

    def tail(self) -> str:
        """The last lines it wrote so far."""
        return _tail(self._log, self._begin)

    def _listen(self, descriptor: int, hear: Callable[[bytes], None]) -> None:
        """To the end of the pipe; or, should a process that escaped hold it, to the end of what was in it at the end."""
        left = IN_PIPE
        try:
            with self._log.open("ab", buffering=0) as log:
                while left:
                    if not select.select([descriptor], [], [], POLL)[0]:
                        if self._ended.is_set():
                            break
                        continue
                    if self._ended.is_set():
                        left -= 1
                    data = os.read(descriptor, CHUNK)
                    if not data:
                        break
                    self._write(log, data)
                    hear(data)
        finally:
            os.close(descriptor)

    def _write(self, log: BinaryIO, data: bytes) -> None:
        """A full disk ends the evaluation in words, not the listening: the command would wait for ever."""
        try:
            while data:
                data = data[log.write(data):]
        except OSError as error:
            self._trouble = error

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
