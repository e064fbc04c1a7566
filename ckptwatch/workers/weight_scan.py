"""Looks for NaN and infinity in the weights of new checkpoints, one at a time, in a child process that yields to everybody.

`python -m ckptwatch.workers.weight_scan PATH [--format NAME] [--member NAME]… [--limit SECONDS]` is the child: nice 19, idle
I/O, bounded memory and time, dead when its parent is. It prints one line of JSON, the fields of `model.WeightScan`. It
imports no torch and runs nothing of what it reads.
"""

import argparse
import contextlib
import ctypes
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ckptwatch.model import WeightScan, to_plain
from ckptwatch.workers.supervisor import describe_death

LIMIT = 3600.0       # seconds for one checkpoint
MEMORY = 6 << 30     # bytes of address space; the scan itself needs some hundred MB, whatever it reads
NICE = 19
END_LIMIT = 10.0     # seconds until a killed child is gone, unless its disk hangs in the kernel
LONGEST_ANSWER = 1 << 20  # bytes
STATES = ("finite", "not_finite", "unreadable", "unsupported")
_PR_SET_PDEATHSIG = 1
_PARENT = os.getppid()  # as early as can be, to notice its death before the kernel is asked to tell
_COMMAND = (sys.executable, "-m", "ckptwatch.workers.weight_scan")


class WeightScanner:
    """One scan at a time. Used by one thread, which must live as long as it; nothing here waits but `close` and `cancel`."""

    def __init__(self, *, limit: float = LIMIT, command: tuple[str, ...] = _COMMAND) -> None:
        self._limit = limit
        self._command = command
        self._checkpoint = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._failed: WeightScan | None = None  # it could not even be started

    @property
    def busy(self) -> bool:
        """Is there a scan under way, or one whose result has not been taken?"""
        return self._process is not None or self._failed is not None

    @property
    def checkpoint(self) -> int | None:
        """The id of the checkpoint that is being scanned."""
        return self._checkpoint if self.busy else None

    def start(
        self, checkpoint_id: int, path: Path, members: Sequence[str] = (), format: str = "", trusted: bool = False,
    ) -> None:
        """Begin to scan a checkpoint. `trusted` changes nothing: what is scanned is never run.

        Raises RuntimeError while another is under way.
        """
        if self.busy:
            raise RuntimeError(f"checkpoint {self._checkpoint} is still being scanned")
        argv = [*self._command, "--format", format, "--limit", str(self._limit),
                *(f"--member={name}" for name in members), "--", str(path)]
        # One thread is enough, and each that OpenBLAS would start reserves memory.
        environment = {**{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
                       "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._checkpoint = checkpoint_id
        try:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the scan
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors, cwd="/", env=environment,
                start_new_session=True)
        except OSError as error:
            self._failed = _unreadable(f"the scan could not be started: {error}")

    def poll(self) -> tuple[int, WeightScan] | None:
        """The result of the scan under way, once, with the id of its checkpoint; None while there is none. Never waits."""
        if self._failed is not None:
            result, self._failed = self._failed, None
            self._forget()
            return self._checkpoint, result
        if self._process is None or self._process.poll() is None:
            return None
        assert self._process.stdout is not None
        result = self._result(self._process.stdout.read(LONGEST_ANSWER), self._process.returncode)
        self._forget()
        return self._checkpoint, result

    def cancel(self, checkpoint_id: int) -> None:
        """The checkpoint is going away: end its scan, if it is the one under way, without a result."""
        if self.busy and self._checkpoint == checkpoint_id:
            self.close()

    def close(self) -> None:
        """End the scan under way."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_LIMIT)
        self._failed = None
        self._forget()

    def _result(self, said: bytes, status: int) -> WeightScan:
        if status == 0 and (scan := scan_from(said)) is not None:
            return scan
        if status == -signal.SIGALRM:
            return _unreadable(f"not done after {self._limit:.0f} s")
        return _unreadable(f"the scan {describe_death(status)}{self._last_words()}")

    def _last_words(self) -> str:
        """The end of what the child wrote on standard error: the last line of a traceback."""
        if self._errors is None:
            return ""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 4096))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:300]}" if lines else ""

    def _forget(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        if self._errors is not None:
            self._errors.close()
        self._process = self._errors = None


def scan_from(line: bytes) -> WeightScan | None:
    """The scan in a line of JSON; None for anything else. The child reads hostile files, so nothing of it is believed."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("state") not in STATES:
        return None
    bad = document.get("bad")
    counts = {str(k): v for k, v in bad.items() if _is_count(v)} if isinstance(bad, Mapping) else {}
    numbers = {name: document.get(name) for name in ("tensors", "bytes", "bad_tensors")}
    if not all(_is_count(n) for n in numbers.values()):
        return None
    return WeightScan(state=document["state"], bad=counts, words=str(document.get("words", "")), **numbers)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _unreadable(words: str) -> WeightScan:
    return WeightScan(state="unreadable", words=words)


# ---- the child ------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, whatever the checkpoint is like."""
    parser = argparse.ArgumentParser(prog="python -m ckptwatch.workers.weight_scan", description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--format", default="", help="name of the format; default: the one that claims it")
    parser.add_argument("--member", action="append", default=[], help="name of an entry of a set of files")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds")
    arguments = parser.parse_args(argv)
    _settle_down(arguments.limit)
    from ckptwatch.scan.finite import scan_path

    try:
        scan = scan_path(arguments.path, tuple(arguments.member), arguments.format)
    except MemoryError:
        scan = _unreadable("what it says of its tensors does not fit into memory")
    # Names are bounded, so that the line fits into the pipe: whoever reads it waits for the end of this process first.
    sys.stdout.buffer.write(json.dumps(to_plain(scan), ensure_ascii=False).encode(errors="replace") + b"\n")
    sys.stdout.flush()
    return 0


def _settle_down(limit: float) -> None:
    """Dies with its parent and at the time limit, and comes after everybody else."""
    import psutil

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != _PARENT:
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel ends it, also in the middle of a system call
    signal.alarm(max(1, math.ceil(limit)))
    with contextlib.suppress(OSError):
        os.nice(NICE)
    with contextlib.suppress(psutil.Error, OSError, AttributeError):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    sys.exit(main())
