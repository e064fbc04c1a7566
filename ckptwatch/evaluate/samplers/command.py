"""The sampler `command`: any program, in any language and environment, that writes images into a directory."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import sampler_error, says_out_of_memory
from ckptwatch.evaluate.images import is_image, list_images
from ckptwatch.evaluate.samplers import guard
from ckptwatch.evaluate.samplers.base import Request
from ckptwatch.evaluate.samplers.files import FileSource
from ckptwatch.evaluate.samplers.placeholders import fill
from ckptwatch.model import FailureKind

POLL = 0.1          # seconds between looks at the process and its images
KILL_WAIT = 5.0     # seconds for killed processes to go
LONGEST_SHOWN = 400  # characters of the command in an error
TAIL_LINES = 5
TAIL_BYTES = 16384


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended."""

    status: int       # exit status; 128 + n for signal n
    timed_out: bool
    tail: str         # the last lines it wrote


class CommandSampler:
    """Runs argv for one checkpoint and reads the images it wrote into {out_dir}.

    Placeholders: {checkpoint} {variant} {prompts} {seed} {count} {out_dir} {device} {step} {run}. {prompts} is a file with
    exactly {count} lines, the prompt of each image; image i is to be made with seed {seed} + i. The images (png, jpg,
    jpeg, webp) are taken by name in natural order. Output goes to the job's log.
    """

    def __init__(self, command: tuple[str, ...], timeout: float) -> None:
        self._command = command
        self._timeout = timeout

    def sample(self, request: Request) -> FileSource:
        out_dir = request.job.work_dir / "images"
        out_dir.mkdir(exist_ok=True)
        argv = self._argv(request, out_dir)
        outcome = run_command(argv, request, out_dir, self._timeout)
        self._check(outcome, argv, request)
        return FileSource(self._images(out_dir, request, outcome), request.batch_size)

    def _argv(self, request: Request, out_dir: Path) -> list[str]:
        job = request.job
        prompts = job.work_dir / "prompts.txt"
        with prompts.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{prompt}\n" for prompt in request.prompts)
        values = {
            "checkpoint": job.checkpoint, "variant": job.variant, "prompts": prompts, "seed": job.recipe.seed,
            "count": request.count, "out_dir": out_dir, "device": request.device, "step": job.step, "run": job.run,
        }
        argv = [fill(word, values, "the sampler command") for word in self._command]
        if shutil.which(argv[0]) is None:
            raise sampler_error(
                "run sampler", f"command not found: {argv[0]}", path=argv[0], retryable=False,
                hint="give the full path of the program in `sampler.command`, and make it executable",
            )
        return argv

    def _check(self, outcome: Outcome, argv: list[str], request: Request) -> None:
        said = f"; it said: {outcome.tail}" if outcome.tail else ""
        log, shown = request.job.log, shlex.join(argv)
        shown = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}…"
        if outcome.timed_out:
            raise sampler_error(
                "run sampler", f"no end after {self._timeout:g} s, killed{said}", path=shown,
                hint=f"raise `sampler.timeout` or lower `samples`; full output in {log}",
            )
        if outcome.status == 0:
            return
        if says_out_of_memory(outcome.tail):
            raise EvaluationError(
                "run sampler", f"{_status_text(outcome.status)}: out of memory{said}", path=shown,
                kind=FailureKind.OUT_OF_MEMORY, hint="let the command use smaller batches, or give it a freer device",
            )
        raise sampler_error(
            "run sampler", f"{_status_text(outcome.status)}{said}", path=shown,
            hint=_hint(outcome.status, outcome.tail, log),
        )

    def _images(self, out_dir: Path, request: Request, outcome: Outcome) -> list[Path]:
        found = list_images(out_dir)
        if len(found) < request.count:
            said = f"; it said: {outcome.tail}" if outcome.tail else ""
            raise sampler_error(
                "run sampler", f"exit status 0, but it wrote {len(found)} of {request.count} images{said}", path=out_dir,
                hint="it must write {count} png, jpg or webp files directly into {out_dir}",
            )
        if len(found) > request.count:
            request.warn(f"the sampler wrote {len(found)} images, the first {request.count} are scored")
        return found[:request.count]


def run_command(argv: list[str], request: Request, out_dir: Path, timeout: float) -> Outcome:
    """Runs argv below a guard process to its end or `timeout` seconds; reports images as they appear."""
    log = request.job.log
    with log.open("ab") as output:
        begin = output.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *argv],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0,
        )
    deadline = time.monotonic() + timeout
    timed_out = False
    try:
        # WNOWAIT leaves the zombie, so that its group's number cannot be taken by another before it is killed.
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            request.report("sampling", min(_count(out_dir), request.count - 1), request.count)
            left = deadline - time.monotonic()
            if left <= 0:
                timed_out = True
                break
            time.sleep(min(POLL, left))
    finally:
        _kill(process)
    request.report("sampling", min(_count(out_dir), request.count), request.count)
    return Outcome(status=process.returncode, timed_out=timed_out, tail=_tail(log, begin))


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
    psutil.wait_procs(strays, timeout=KILL_WAIT)  # their GPU memory is free only when they are gone


def _count(directory: Path) -> int:
    with os.scandir(directory) as entries:
        return sum(is_image(e.name) for e in entries)


def _tail(log: Path, begin: int) -> str:
    """The last lines written to the log after `begin`, joined by " | "; a progress bar counts as its last state."""
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(begin, end - TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.rstrip().rsplit("\r", 1)[-1].strip() for line in text.split("\n")]
    return " | ".join([line[:300] for line in lines if line][-TAIL_LINES:])


def _status_text(status: int) -> str:
    if status > 128:
        with suppress(ValueError):
            return f"exit status {status} (killed by {signal.Signals(status - 128).name})"
    return f"exit status {status}"


def _hint(status: int, tail: str, log: Path) -> str:
    if status == 128 + signal.SIGKILL:
        return f"the kernel kills a process when the machine is out of memory: see dmesg; output in {log}"
    if "can't open file" in tail or "No such file" in tail:
        return f"relative paths in `sampler.command` start at {Path.cwd()}; use absolute ones; output in {log}"
    return f"run the command above by hand; its whole output is in {log}"


