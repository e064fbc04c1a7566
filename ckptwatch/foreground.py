"""One evaluation in the foreground: the same worker process the daemon uses, with a progress bar."""

import queue
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ckptwatch.errors import EvaluationError
from ckptwatch.model import Facts, FailureKind, Recipe
from ckptwatch.settings import Settings
from ckptwatch.workers.devices import resolve
from ckptwatch.workers.parts import merge_of, parts_of
from ckptwatch.workers.supervisor import Died, Pool, Report
from ckptwatch.workers.wire import Failed, Job, Partial, Progress, Result

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

GRACE = 60.0  # seconds for a worker to end a command and to tell


def evaluate_now(
    settings: Settings, checkpoint: Path, recipe: Recipe, *, variant: str, device: str | None, keep: Path | None,
    screen: "Console", run: str = "", facts: Facts | None = None, directory: Path | None = None,
) -> Result:
    """The result of one attempt; with `keep`, generated samples, or pairs that a command showed, are copied there.

    `run` is the name of the checkpoint's run, by default that of its directory; `facts` are what is known of it. Commands
    and modules are looked for in `directory`, by default the configuration's.

    Raises EvaluationError with the worker's words, and the end of its log, if it fails.
    """
    reports: queue.Queue[Report] = queue.Queue()
    devices = (device,) if device else resolve(settings.workers.devices or ("auto",))[:recipe.workers]
    with tempfile.TemporaryDirectory(prefix="ckptwatch-eval-") as scratch:
        work = Path(scratch) / "work"
        cache = Path(scratch) / "cache"
        if (settings.state_dir / "cache").is_dir():
            cache = settings.state_dir / "cache"  # reference statistics the daemon has already
        for made in (work, cache):
            made.mkdir(exist_ok=True)
        log = Path(scratch) / "eval.log"
        pool = Pool(devices=devices, report=reports.put, log_dir=Path(scratch), directory=directory or settings.directory,
                    threads=settings.workers.threads)
        job = Job(job="0#1", checkpoint=checkpoint, format=facts.format if facts else "",
                  run=run or checkpoint.parent.name, step=facts.step if facts else None,
                  epoch=facts.epoch if facts else None, variant=variant, recipe=recipe, work_dir=work, cache_dir=cache,
                  log=log,
                  trusted=any(r.trusted and checkpoint.is_relative_to(r.root.resolve()) for r in settings.roots))
        try:
            for worker, part in zip(pool.workers, parts_of(job, len(pool.workers)), strict=False):
                pool.assign(worker, part, time.monotonic())
            # The command has a limit of its own, and its words about it are better.
            limit = max(settings.workers.timeout, recipe.command.timeout + GRACE if recipe.command is not None else 0.0)
            result = _wait(pool, reports, limit, log, screen)
        finally:
            pool.close()
        if keep is not None and result.samples is not None:
            shutil.copytree(result.samples, keep, dirs_exist_ok=True)
        return result


def _wait(pool: Pool, reports: "queue.Queue[Report]", limit: float, log: Path, screen: "Console") -> Result:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    missing = {w.job.part for w in pool.workers if w.job is not None}
    with Bar(*columns, console=screen, disable=not screen.is_terminal, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        while True:
            for worker in pool.overdue(limit, time.monotonic()):
                pool.kill(worker, f"no result after {limit:.0f} s")
            try:
                report = reports.get(timeout=1.0)
            except queue.Empty:
                continue
            worker = pool.handle(report, time.monotonic())
            if worker is None or worker.job is None:
                continue
            if isinstance(report, Died):
                raise EvaluationError("evaluate", worker.ending or f"the worker {report.words}",
                                      kind=FailureKind.CRASH, hint=f"its last words:\n{_tail(log)}")
            match report.document:
                case Progress():
                    _show(bar, task, pool)
                case Partial(part=part):
                    done = worker.job
                    missing.discard(part)
                    pool.release(worker, time.monotonic())
                    if not missing:
                        pool.assign(worker, merge_of(done), time.monotonic())
                case Result() as result:
                    return result
                case Failed(failure=failure):
                    raise EvaluationError("evaluate", failure.message, kind=failure.kind, hint=failure.hint)


def _show(bar: "Bar", task: "TaskID", pool: Pool) -> None:
    """All workers together: the sum of what they do in the stage of the one that is furthest behind."""
    told = [w.progress for w in pool.workers if w.progress is not None]
    stage = min(told, key=lambda p: p.done / max(1, p.total)).stage
    alike = [p for p in told if p.stage == stage]
    bar.update(task, description=stage, completed=sum(p.done for p in alike), total=sum(p.total for p in alike))


def _tail(log: Path, lines: int = 15) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
