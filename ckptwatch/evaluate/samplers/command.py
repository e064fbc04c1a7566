"""The sampler `command`: any program, in any language and environment, that writes images into a directory."""

import shlex
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import sampler_error, says_out_of_memory
from ckptwatch.evaluate.images import OneSize
from ckptwatch.evaluate.samplers.arriving import Arriving
from ckptwatch.evaluate.samplers.base import Batch, OrderChangedError, Request
from ckptwatch.evaluate.samplers.files import FileSource, Found, find_files, join
from ckptwatch.evaluate.samplers.numbering import Stems
from ckptwatch.evaluate.samplers.placeholders import Unset, fill
from ckptwatch.evaluate.samplers.running import POLL, Outcome, Running
from ckptwatch.model import FailureKind

LOOKING = 0.2        # share of the time that may go into listing a large directory
LONGEST_SHOWN = 400  # characters of the command in an error


class CommandSampler:
    """Runs argv for one checkpoint and reads the images it writes into {out_dir}, while it still writes.

    Placeholders: {checkpoint} {variant} {prompts} {labels} {seed} {start} {count} {num_classes} {image_size} {batch_size}
    {out_dir} {device} {step} {run}. {prompts} is a file with exactly {count} lines, the prompt of each image, {labels} one
    with their classes; image i is to be made with seed {seed} + i. Where several workers share an evaluation, {seed},
    {count} and the files are those of one range, which begins at sample {start}. The images (png, jpg, jpeg, webp), or
    arrays of them (npy), are taken by name in natural order. Output goes to the job's log.
    """

    def __init__(self, command: tuple[str, ...], timeout: float) -> None:
        self._command = command
        self._timeout = timeout

    def sample(self, request: Request) -> "CommandSource":
        return CommandSource(command_line(self._command, request), request, self._timeout)


class CommandSource:
    """Starts the command when its images are asked for the first time; afterwards they lie on disk.

    The last batch is given only when the command has ended well, so that nobody has all images of one that failed.
    """

    def __init__(self, argv: list[str], request: Request, timeout: float) -> None:
        self.stage = "sampling"
        self._argv = argv
        self._request = request
        self._timeout = timeout
        self._found: Found | None = None  # what the command wrote, once it has ended
        self._sizes = OneSize(sampler_error)

    def batches(self) -> Iterator[Batch]:
        done = 0
        if not self._request.count:  # more workers than batches: there is nothing to run for
            return
        if self._found is None:
            for batch in self._while_it_writes():
                done += len(batch)
                yield batch
        found, start = self._found, self._request.start
        assert found is not None
        names = Stems(start, found.files[0][0].name)
        yield from FileSource(found, self._request, name=names, sizes=self._sizes).batches(done)

    def _while_it_writes(self) -> Iterator[Batch]:
        """Full batches, short of the last one, as they become whole; then sets `_found`.

        Raises EvaluationError as the command ends; OrderChangedError where what was given does not stand.
        """
        request, start, out_dir = self._request, self._request.start, images_below(self._request.scratch)
        shutil.rmtree(out_dir, ignore_errors=True)  # of a reader who left before the end
        out_dir.mkdir()
        limit = (request.count - 1) // request.batch_size
        arriving = Arriving(
            out_dir, firsts={0, 1, start, start + 1}, batch_size=request.batch_size, limit=limit,
        )
        with Running(self._argv, request.job.log, self._timeout) as running, arriving:
            try:
                yield from self._arriving(running, arriving)
            except EvaluationError as error:
                raise _with_said(error, running.tail()) from error
            outcome = running.outcome()
            self._check(outcome)
            found = self._find(out_dir, outcome)
            self._found, self.stage = found, "scoring"
            request.report("sampling", request.count, request.count)
            if not arriving.stands(found):
                self._sizes = OneSize(sampler_error)
                raise OrderChangedError("the sampler wrote images that belong before others, or wrote some again")

    def _arriving(self, running: Running, arriving: Arriving) -> Iterator[Batch]:
        request, start, pause = self._request, self._request.start, 0.0
        names: Stems | None = None
        while not running.ended(pause):
            ready, pause = arriving.batch(), 0.0
            if ready is None:
                pause = self._look(arriving)
                continue
            pieces, images = ready
            names = names or Stems(request.start, pieces[0].path.name)
            batch = join(start, pieces, images, self._sizes, names)
            start += len(batch)
            yield batch

    def _look(self, arriving: Arriving) -> float:
        """Sees what came; how long to wait for more, in seconds."""
        count, begin = self._request.count, time.monotonic()
        self._request.report("sampling", min(arriving.look(), count - 1), count)
        return max(POLL, (time.monotonic() - begin) / LOOKING)

    def _check(self, outcome: Outcome) -> None:
        said, log, shown = _said(outcome.tail), self._request.job.log, shlex.join(self._argv)
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

    def _find(self, out_dir: Path, outcome: Outcome) -> Found:
        request = self._request
        said = _said(outcome.tail)
        try:
            found = find_files(out_dir)
        except EvaluationError as error:
            raise _with_said(error, outcome.tail) from error
        except OSError as error:
            raise sampler_error(
                "run sampler", f"exit status 0, but its images cannot be read: {error.strerror or error}{said}",
                path=out_dir, hint="the command must leave {out_dir} where it is",
            ) from error
        if found.total < request.count:
            raise sampler_error(
                "run sampler", f"exit status 0, but it wrote {found.total} of {request.count} images{said}",
                path=out_dir, hint="it must write {count} png, jpg, webp or npy images directly into {out_dir}",
            )
        if found.total > request.count:
            request.warn(f"the sampler wrote {found.total} images, the first {request.count} are scored")
        return found


def images_below(scratch: Path) -> Path:
    """The directory into which a command writes."""
    return scratch / "images"


def command_line(command: Iterable[str], request: Request) -> list[str]:
    """argv for one range of one checkpoint's samples; the files it names are written.

    Raises EvaluationError: RECIPE, SAMPLER (a placeholder without value, no such program).
    """
    job, recipe = request.job, request.job.recipe
    span = range(request.start, request.start + request.count)
    labels = [label for i in span if (label := request.label(i)) is not None]
    values: dict[str, Any] = {
        "checkpoint": job.checkpoint, "variant": job.variant,
        "prompts": _lines(request.scratch / "prompts.txt", request.prompts[span.start:span.stop]),
        "labels": _lines(request.scratch / "labels.txt", labels) if labels else Unset("num_classes"),
        "seed": recipe.seed + request.start, "start": request.start, "count": request.count,
        "num_classes": recipe.num_classes or Unset("num_classes"), "image_size": recipe.image_size or Unset("image_size"),
        "batch_size": recipe.batch_size, "out_dir": images_below(request.scratch), "device": request.device,
        "step": job.step, "run": job.run,
    }
    argv = [fill(word, values, "the sampler command") for word in command]
    if shutil.which(argv[0]) is None:
        raise sampler_error(
            "run sampler", f"command not found: {argv[0]}", path=argv[0], retryable=False,
            hint="give the full path of the program in `sampler.command`, and make it executable",
        )
    return argv


def _lines(path: Path, lines: Iterable[Any]) -> Path:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path


def _said(tail: str) -> str:
    return f"; it said: {tail}" if tail else ""


def _with_said(error: EvaluationError, tail: str) -> EvaluationError:
    """An error about a command's files that also has the command's last lines: they may tell why."""
    return EvaluationError(
        error.operation, f"{error.cause}{_said(tail)}", kind=error.kind, path=error.path, hint=error.hint,
        retryable=error.retryable,
    )


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
