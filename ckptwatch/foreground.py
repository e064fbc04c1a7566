"""One evaluation in the foreground: the same worker process the daemon uses, with a progress bar."""

import queue
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ckptwatch.errors import EvaluationError
from ckptwatch.model import FailureKind, Recipe
from ckptwatch.settings import Settings
from ckptwatch.workers.devices import resolve
from ckptwatch.workers.supervisor import Died, Pool, Report
from ckptwatch.workers.wire import Failed, Job, Progress, Result

if TYPE_CHECKING:
    from rich.console import Console


def evaluate_now(
    settings: Settings, checkpoint: Path, recipe: Recipe, *, variant: str, device: str | None, keep: Path | None,
    screen: "Console",
) -> Result:
    """The result of one attempt; with `keep`, generated samples are copied there.

    Raises EvaluationError with the worker's words, and the end of its log, if it fails.
    """
    reports: queue.Queue[Report] = queue.Queue()
    devices = (device,) if device else resolve(settings.workers.devices or ("auto",))[:1]
    with tempfile.TemporaryDirectory(prefix="ckptwatch-eval-") as scratch:
        work = Path(scratch) / "work"
        cache = Path(scratch) / "cache"
        if (settings.state_dir / "cache").is_dir():
            cache = settings.state_dir / "cache"  # reference statistics the daemon has already
        for directory in (work, cache):
            directory.mkdir(exist_ok=True)
        log = Path(scratch) / "eval.log"
        pool = Pool(devices=devices, report=reports.put, log_dir=Path(scratch), directory=settings.directory,
                    threads=settings.workers.threads)
        job = Job(job="0#1", checkpoint=checkpoint, format="", run=checkpoint.parent.name, step=None, epoch=None,
                  variant=variant, recipe=recipe, work_dir=work, cache_dir=cache, log=log,
                  trusted=any(r.trusted and checkpoint.is_relative_to(r.root.resolve()) for r in settings.roots))
        try:
            pool.assign(pool.workers[0], job, time.monotonic())
            result = _wait(pool, reports, settings.workers.timeout, log, screen)
        finally:
            pool.close()
        if keep is not None and result.samples is not None:
            shutil.copytree(result.samples, keep, dirs_exist_ok=True)
        return result


def _wait(pool: Pool, reports: "queue.Queue[Report]", limit: float, log: Path, screen: "Console") -> Result:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
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
            if worker is None:
                continue
            if isinstance(report, Died):
                raise EvaluationError("evaluate", worker.ending or f"the worker {report.words}",
                                      kind=FailureKind.CRASH, hint=f"its last words:\n{_tail(log)}")
            match report.document:
                case Progress(stage=stage, done=done, total=total):
                    bar.update(task, description=stage, completed=done, total=total)
                case Result() as result:
                    return result
                case Failed(failure=failure):
                    raise EvaluationError("evaluate", failure.message, kind=failure.kind, hint=failure.hint)


def _tail(log: Path, lines: int = 15) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
