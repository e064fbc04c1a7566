"""From the durable queue to recorded scores: recipes, dispatch to workers, and what their reports mean."""

import itertools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from ckptwatch.core.dispatch import Waiting, backoff, choose, shares
from ckptwatch.errors import StateError
from ckptwatch.formats.base import format_named
from ckptwatch.model import EvaluationState, Failure, FailureKind, evolve
from ckptwatch.planning import influences_in
from ckptwatch.recipes import ContentDigests, input_stamp, inspect_recipe
from ckptwatch.settings import Settings
from ckptwatch.store import checkpoints, evaluations, events, heartbeat, runs
from ckptwatch.store.database import Connection, Database
from ckptwatch.workers.devices import resolve
from ckptwatch.workers.parts import merge_of, parts_of
from ckptwatch.workers.supervisor import Died, Pool, Report, Worker
from ckptwatch.workers.wire import Failed, Job, Partial, Result

log = logging.getLogger(__name__)


class EvaluationStage:
    """Owns the worker pool. All methods run in the daemon's main thread."""

    def __init__(self, db: Database, settings: Settings, report: Callable[[Report], None]) -> None:
        self._db = db
        self._settings = settings
        self._contents = ContentDigests(settings.state_dir / "cache" / "contents.json")
        self._stamps: dict[str, object] = {}
        self._served: dict[int, float] = {}
        self._numbers = itertools.count(1)  # of attempts of this process: what an earlier one still says is told apart
        self._missing: dict[int, set[int]] = {}  # evaluation → parts not done yet, where several workers share it
        self._influences = influences_in(settings.state_dir)
        rule = settings.workers
        wanted = any(r.evaluate for r in settings.runs)
        self.pool = Pool(devices=resolve(rule.devices) if wanted else (), report=report, threads=rule.threads,
                         log_dir=settings.state_dir / "log", directory=settings.directory)

    # ---- recipes -------------------------------------------------------------------------------------------------

    def refresh_recipes(self, *, now: float) -> bool:
        """Digest anew the recipes whose inputs may have changed. True if any digest or problem did."""
        changed = False
        for recipe in self._settings.recipes.values():
            stamp = input_stamp(recipe)
            if self._stamps.get(recipe.name) == stamp:
                continue
            digest, problems = inspect_recipe(recipe, self._contents)
            problem = "; ".join(problems)
            with self._db.write() as conn:
                before = heartbeat.recipe_stands(conn).get(recipe.name)
                if problem and before is not None:
                    digest = before.digest  # without its inputs it has no other; what they gave before still stands
                heartbeat.record_recipe(conn, recipe.name, digest=digest, problem=problem, now=now)
                evaluations.abandon_outdated(conn, recipe.name, digest, now=now)
            self._stamps[recipe.name] = stamp
            if before is None or (before.digest, before.problem) != (digest, problem):
                changed = True
                if problem:
                    log.error("recipe %s cannot be used: %s", recipe.name, problem)
                elif before is not None and before.digest != digest:
                    log.warning("recipe %s changed: its earlier scores are no longer compared with new ones", recipe.name)
        return changed

    # ---- the queue -----------------------------------------------------------------------------------------------

    def recover(self, *, now: float) -> None:
        """After a start: what was running is not any more; scratch space of no use is cleared."""
        with self._db.write() as conn:
            for evaluation in evaluations.in_state(conn, EvaluationState.RUNNING):
                evaluations.requeue(conn, evaluation.id, now=now)
                log.info("evaluation %d was interrupted and waits again", evaluation.id)
            keep = {str(e.id) for e in evaluations.unpublished(conn)}
            of_use = evaluations.of_living_checkpoints(conn)
        self._influences.prune(of_use)
        work = self._settings.state_dir / "work"
        for directory in work.iterdir() if work.is_dir() else ():
            if directory.name not in keep:
                shutil.rmtree(directory, ignore_errors=True)

    def dispatch(self, *, now: float, mono: float) -> None:
        """Give waiting evaluations to free workers."""
        self._drop_stale()
        free = self.pool.free(mono)
        if not free:
            return
        self._adopt_orphans(now)
        with self._db.read() as conn:
            rows = evaluations.waiting(conn)
            if not rows:
                return
            running = evaluations.running_per_run(conn)
            usable = {(n, s.digest) for n, s in heartbeat.recipe_stands(conn).items() if not s.problem}
        waiting = [
            Waiting(evaluation_id=r.id, run_id=r.run_id, order=(r.generation, _known(r.step), _known(r.epoch)),
                    available_at=r.available_at, running=running.get(r.run_id, 0), served_at=self._served.get(r.run_id, 0.0))
            for r in rows if (r.recipe, r.digest) in usable and r.recipe in self._settings.recipes
        ]
        run_of = {w.evaluation_id: w.run_id for w in waiting}
        recipe_of = {r.id: self._settings.recipes[r.recipe] for r in rows if r.id in run_of}
        chosen = choose(waiting, free=len(free), now=now)
        for evaluation_id, count in zip(chosen, shares([recipe_of[i].workers for i in chosen], free=len(free)), strict=True):
            self._served[run_of[evaluation_id]] = now
            # Parts on unlike devices would differ by more than the order of summation.
            kinds = [_kind(w) for w in free]
            kind = max(kinds, key=kinds.count) if count > 1 else kinds[0]
            alike = [w for w in free if _kind(w) == kind][:count]
            free = [w for w in free if w not in alike]
            self._begin(alike, evaluation_id, now=now, mono=mono)

    def _drop_stale(self) -> None:
        """End workers on what does not run any more: its checkpoint went away, and may even be back and waiting again."""
        held = {_evaluation_id(w.job) for w in self.pool.workers if w.job}
        if not held:
            return
        with self._db.read() as conn:
            running = {e.id for e in evaluations.in_state(conn, EvaluationState.RUNNING)}
        for evaluation_id in held - running:
            self._drop(evaluation_id, "its checkpoint went away")
            self._clear(evaluation_id)

    def _adopt_orphans(self, now: float) -> None:
        """What is recorded as running, but by no worker of ours, lost its report to a database that could not be written."""
        held = {_evaluation_id(w.job) for w in self.pool.workers if w.job}
        with self._db.read() as conn:
            orphans = [e for e in evaluations.in_state(conn, EvaluationState.RUNNING) if e.id not in held]
        if orphans:
            with self._db.write() as conn:
                for orphan in orphans:
                    evaluations.requeue(conn, orphan.id, now=now)

    def _begin(self, workers: list[Worker], evaluation_id: int, *, now: float, mono: float) -> None:
        with self._db.read() as conn:
            evaluation = evaluations.evaluation(conn, evaluation_id)
            assert evaluation is not None
            checkpoint = checkpoints.checkpoint(conn, evaluation.checkpoint_id)
            run = runs.run(conn, checkpoint.run_id)
        label = "-".join(filter(None, (run.name, checkpoint.path.stem, evaluation.variant, str(evaluation.id))))
        # File names are limited in bytes, not characters.
        name = label.replace("/", "_").encode(errors="replace")[-200:].decode(errors="ignore")
        logfile = self._settings.state_dir / "log" / f"{name}.log"
        number = next(self._numbers)
        # One for each attempt: a process of an earlier one may take a moment to die.
        work_dir = self._work(evaluation.id) / str(number)
        cache = self._settings.state_dir / "cache"
        try:
            self._clear(evaluation.id)
            for directory in (logfile.parent, work_dir, cache):
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError("prepare an evaluation", error.strerror or str(error), path=work_dir) from error
        with self._db.write() as conn:
            if not evaluations.claim(conn, evaluation.id, log=logfile, now=now):
                return
        rule = self._settings.root_rule(run.root)
        format_ = format_named(checkpoint.format)
        path = checkpoint.path if format_ is None else \
            format_.variant_path(checkpoint.path, checkpoint.members, evaluation.variant)
        job = Job(
            job=f"{evaluation.id}#{number}", checkpoint=path, format=checkpoint.format,
            run=run.name, step=checkpoint.step, epoch=checkpoint.epoch, variant=evaluation.variant,
            recipe=self._settings.recipes[evaluation.recipe], work_dir=work_dir, cache_dir=cache, log=logfile,
            trusted=bool(rule and rule.trusted))
        parts = parts_of(job, len(workers))
        self._missing[evaluation.id] = {part.part for part in parts}
        for worker, part in zip(workers, parts, strict=False):
            self.pool.assign(worker, part, mono)
        on = ", ".join(w.device for w in workers[:len(parts)])
        log.info("%s: evaluating %s on %s", run.name, _named(checkpoint.path, evaluation.variant), on)

    # ---- reports -------------------------------------------------------------------------------------------------

    def handle(self, report: Report, *, now: float, mono: float) -> int | None:
        """Take in a worker's report. Returns the id of the run whose scores or queue changed."""
        worker = self.pool.handle(report, mono)
        if worker is None:
            return None
        if isinstance(report, Died):
            return self._died(worker, report, now=now, mono=mono)
        document = report.document
        if not isinstance(document, Partial | Result | Failed) or worker.job is None or document.job != worker.job.job:
            return None
        job = worker.job
        self.pool.release(worker, mono)
        if isinstance(document, Partial):
            self._part_done(worker, job, mono)
            return None
        return self._ended(_evaluation_id(job), document, now)

    def _ended(self, evaluation_id: int, document: Result | Failed, now: float) -> int | None:
        try:
            if isinstance(document, Failed):
                self._drop_parts(evaluation_id)
                return self._failed(evaluation_id, document.failure, now)
            return self._succeeded(evaluation_id, document, now)
        except (ValueError, OverflowError, TypeError) as error:
            # What a worker says is foreign data: it may cost its own attempt, never the daemon.
            log.exception("a worker's report cannot be recorded")
            words = f"its report cannot be recorded: {type(error).__name__}"
            return self._failed(evaluation_id, Failure(kind=FailureKind.INTERNAL, message=words), now)

    def _part_done(self, worker: Worker, job: Job, mono: float) -> None:
        """The worker that ends last puts the parts together."""
        missing = self._missing.get(_evaluation_id(job), set())
        missing.discard(job.part)
        if not missing:
            self.pool.assign(worker, merge_of(job), mono)

    def _drop_parts(self, evaluation_id: int) -> None:
        """One part failed, so the attempt has: the others are worth nothing."""
        self._drop(evaluation_id, "another part of its evaluation failed")

    def _drop(self, evaluation_id: int, why: str) -> None:
        self._missing.pop(evaluation_id, None)
        for worker in self.pool.workers:
            if worker.job is not None and _evaluation_id(worker.job) == evaluation_id:
                self.pool.drop(worker, why)

    def _work(self, evaluation_id: int) -> Path:
        return self._settings.state_dir / "work" / str(evaluation_id)

    def _clear(self, evaluation_id: int) -> None:
        """Scratch space of an attempt: gigabytes of images and rows."""
        shutil.rmtree(self._work(evaluation_id), ignore_errors=True)

    def _succeeded(self, evaluation_id: int, result: Result, now: float) -> int | None:
        self._missing.pop(evaluation_id, None)
        self._influences.keep(evaluation_id, result.influence)
        with self._db.write() as conn:
            if not evaluations.finish(conn, evaluation_id, results=result.scores, seconds=result.seconds,
                                      samples=result.samples, now=now):
                return None
            run_id, run, path = _owner(conn, evaluation_id)
            found = evaluations.evaluation(conn, evaluation_id)
            values = {s.metric: s.value for s in result.scores}
            told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            events.append(conn, now=now, kind="evaluated", run=run, path=path, message=told,
                          data={"seconds": result.seconds, "warnings": list(result.warnings)})
        log.info("%s: evaluated %s in %.1f s: %s", run, _named(path, found.variant if found else ""), result.seconds, told)
        for warning in result.warnings:
            log.warning("%s: %s: %s", run, path.name, warning)
        return run_id

    def _failed(self, evaluation_id: int, failure: Failure, now: float) -> int | None:
        rule = self._settings.workers
        if failure.kind is FailureKind.RECIPE:
            self._stamps.clear()  # an input went away since the last look
            self.refresh_recipes(now=now)
        with self._db.write() as conn:
            evaluation = evaluations.evaluation(conn, evaluation_id)
            assert evaluation is not None
            stand = heartbeat.recipe_stands(conn).get(evaluation.recipe)
            if failure.kind is FailureKind.RECIPE and stand is not None and stand.problem:
                evaluations.requeue(conn, evaluation_id, now=now)  # no fault of the checkpoint: it waits for the input
                return _owner(conn, evaluation_id)[0]
            run_id, run, path = _owner(conn, evaluation_id)
            # The path stands beside the message wherever it is shown.
            failure = evolve(failure, message=failure.message.replace(f" {path}:", ":"))
            delay = backoff(evaluation.attempts, first=rule.retry_after)
            if not evaluations.fail(conn, evaluation_id, failure, attempts=rule.attempts, retry_at=now + delay, now=now):
                return None
            after = evaluations.evaluation(conn, evaluation_id)
            given_up = after is not None and after.state is EvaluationState.FAILED
            events.append(conn, now=now, kind="evaluation_failed" if given_up else "attempt_failed", run=run, path=path,
                          message=failure.message, data={"kind": failure.kind, "attempt": evaluation.attempts})
        if given_up:
            self._clear(evaluation_id)
        outcome = "given up; the checkpoint is kept unranked" if given_up else f"next attempt in {delay:.0f} s"
        log.warning("%s: attempt %d at %s failed (%s): %s; %s", run, evaluation.attempts, path.name, failure.kind,
                    failure.message, outcome)
        return run_id

    def _died(self, worker: Worker, report: Died, *, now: float, mono: float) -> int | None:
        job, why = worker.job, worker.ending
        self.pool.release(worker, mono)
        if job is None:
            log.log(logging.INFO if why else logging.WARNING, "worker %s %s", worker.id, why or report.words)
            return None
        self._drop_parts(_evaluation_id(job))
        if why:
            failure = Failure(kind=FailureKind.TIMEOUT, message=why, hint="raise workers.timeout, or lower samples")
        else:
            failure = Failure(
                kind=FailureKind.CRASH, message=f"the worker {report.words}", hint=f"see {job.log}")
        return self._failed(_evaluation_id(job), failure, now)

    def enforce_limits(self, *, mono: float) -> None:
        """End workers that take longer than they may."""
        limit = self._settings.workers.timeout
        for worker in self.pool.overdue(limit, mono):
            self.pool.kill(worker, f"no result after {mono - worker.since:.0f} s")

    def stop(self, *, now: float) -> None:
        """End all workers; what they worked on waits again."""
        self.pool.close()
        with self._db.write() as conn:
            for worker in self.pool.workers:
                if worker.job is not None:
                    evaluations.requeue(conn, _evaluation_id(worker.job), now=now)


def _named(path: Path, variant: str) -> str:
    return f"{path.name} [{variant}]" if variant else path.name


def _kind(worker: Worker) -> str:
    return worker.device.partition(":")[0]


def _known(count: int | None) -> int:
    """As in Checkpoint.order: unknown comes first."""
    return -1 if count is None else count


def _evaluation_id(job: Job) -> int:
    return int(job.job.partition("#")[0])


def _owner(conn: Connection, evaluation_id: int) -> tuple[int, str, Path]:
    """(run id, run name, checkpoint path)."""
    evaluation = evaluations.evaluation(conn, evaluation_id)
    assert evaluation is not None
    checkpoint = checkpoints.checkpoint(conn, evaluation.checkpoint_id)
    return checkpoint.run_id, runs.run(conn, checkpoint.run_id).name, checkpoint.path

