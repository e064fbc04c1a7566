"""One evaluation, as a straight line: checkpoint → images → one pass through the networks → rows → scores.

Several workers may share it: each does the line up to the rows for a range of the samples, and one of them then puts the
rows of all together and computes. A single worker is the case of one range.
"""

import gc
import json
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.artifacts import Artifacts
from ckptwatch.evaluate.command_evaluation import evaluate_by_command
from ckptwatch.evaluate.failures import checkpoint_error, is_out_of_memory, recipe_error, sampler_error
from ckptwatch.evaluate.ledger import Ledger
from ckptwatch.evaluate.networks import NetworkStore
from ckptwatch.evaluate.pairs import PairCache
from ckptwatch.evaluate.progress import Reporter
from ckptwatch.evaluate.prompts import read_prompts
from ckptwatch.evaluate.samplers import Batch, OrderChangedError, Request, Sampler, Source, create_sampler
from ckptwatch.evaluate.scoring import Glance, Scoring, influences
from ckptwatch.evaluate.weights import scan_finite
from ckptwatch.influences import write_influences
from ckptwatch.model import Sampler as SamplerSpec
from ckptwatch.model import to_plain
from ckptwatch.workers.wire import Job, Partial, Progress, Result

READINGS = 3  # of images that keep changing while they are read


class Engine:
    """Evaluates checkpoints one after the other on one device; networks and the sampler's model stay loaded between."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._store = NetworkStore(device)
        self._pairs = PairCache()
        self._sampler: OrderedDict[str, Sampler] = OrderedDict()

    def evaluate(self, job: Job, send: Callable[[Progress], None]) -> Result | Partial:
        """The scores of one checkpoint, or, of a part, the word that its rows are there. Raises EvaluationError, or
        MemoryError and torch.OutOfMemoryError.

        Whatever happens, memory of this evaluation is released and the page cache it filled is given back; a sampler that
        failed is made anew for the next job, and networks are dropped when memory ran out.
        """
        begin = time.monotonic()
        if job.recipe.kind == "command":
            return self._by_command(job, send)
        line = _Line(job, send)
        try:
            _check(job)
            if not job.merge:
                self._measure(line)
            if job.parts > 1 and not job.merge:
                return Partial(job=job.job, part=job.part)
            return self._score(line, begin)
        except BaseException as error:
            self._sampler.clear()
            if is_out_of_memory(error):
                self._store.clear()
                self._pairs.clear()
            raise
        finally:
            line.close()
            release_memory()
            give_back_page_cache(job.checkpoint)

    def _by_command(self, job: Job, send: Callable[[Progress], None]) -> Result:
        """By a program of the user's own, which gets the room that our networks and models had."""
        self._sampler.clear()
        self._store.clear()
        self._pairs.clear()
        release_memory()
        try:
            return evaluate_by_command(job, send, self._device)
        finally:
            give_back_page_cache(job.checkpoint)

    def _measure(self, line: "_Line") -> None:
        """Images of the job's range, and what the networks see in them, saved as a part."""
        job = line.job
        line.report("loading", 0, 1)
        if job.recipe.sampler.kind not in ("diffusers", "program"):  # these know where the weights are, and look there
            scan_finite(job.checkpoint, job.variant, trusted=job.trusted)
        # One part reads the references, so that what is wrong with them is known before anything is sampled.
        scoring = self._scoring(line, scores=job.part == 0)
        line.report("loading", 1, 1)
        shutil.rmtree(line.part, ignore_errors=True)
        scratch = line.part / "generated"
        scratch.mkdir(parents=True)
        request = Request(
            job=job, prompts=line.prompts, scratch=scratch, device=self._device, report=line.report, warn=line.warn,
        )
        self._pairs.begin()
        source = self._sampler_for(job.recipe.sampler).sample(request)
        ledger = self._read(source, scoring, line, request)
        ledger.warnings, ledger.networks = tuple(line.warnings), scoring.networks
        ledger.save(scoring.distances if job.parts > 1 else ())
        line.scoring = scoring

    def _read(self, source: Source, scoring: Scoring, line: "_Line", request: Request) -> Ledger:
        for _ in range(READINGS):
            rows = line.part / "rows"
            shutil.rmtree(rows, ignore_errors=True)
            rows.mkdir(parents=True)
            ledger = Ledger(rows)
            try:
                self._look(source, scoring, line, request, ledger)
            except OrderChangedError as error:
                line.warn(f"images are read again from the beginning: {error}")
                continue
            return ledger
        raise sampler_error(
            "read images", f"they changed {READINGS} times while they were read", path=request.job.checkpoint,
            hint="the sampler must not rewrite images, and nothing else may write into its directory",
        )

    def _look(self, source: Source, scoring: Scoring, line: "_Line", request: Request, ledger: Ledger) -> None:
        """Each batch is looked at while the next one is made ready."""
        artifacts = Artifacts(line.samples, line.job.recipe.keep_samples)
        stage = source.stage
        line.report(stage, 0, request.count)
        before: Glance | None = None
        batches = source.batches()
        try:
            for batch in batches:
                glance = scoring.prepare(batch)
                if before is not None:
                    self._observe(before, scoring, artifacts, ledger, line, stage)
                before = glance
            if before is not None:
                self._observe(before, scoring, artifacts, ledger, line, stage)
        except OrderChangedError:
            for _ in batches:  # a command that still runs is let finish: what it wrote is read again, not made again
                pass
            raise
        finally:
            close = getattr(batches, "close", None)  # a generator with a process behind it must not wait to be collected
            if close is not None:
                close()

    def _observe(
        self, glance: Glance, scoring: Scoring, artifacts: Artifacts, ledger: Ledger, line: "_Line", stage: str,
    ) -> None:
        scoring.observe(glance, ledger)
        batch: Batch = glance.sight.batch
        if artifacts.wanted(batch.start):
            prompts = line.prompts[batch.start:batch.start + len(batch)]
            artifacts.add(batch.start, batch.images, prompts, glance.sight.originals)
        first, behind = line.job.span
        line.report(stage, batch.start + len(batch) - first, behind - first)

    def _score(self, line: "_Line", begin: float) -> Result:
        """Rows of all parts together, and the scores that follow."""
        job = line.job
        scoring = line.scoring or self._scoring(line)
        ledger = Ledger.merged([_part(job, number) / "rows" for number in range(job.parts)])
        for text in ledger.warnings:
            line.warn(text)
        measured = scoring.compute(ledger)
        artifacts = Artifacts(line.samples, job.recipe.keep_samples)
        artifacts.finish()
        return Result(
            job=job.job, scores=tuple(m.score for m in measured), seconds=time.monotonic() - begin, samples=artifacts.path,
            influence=_keep_influences(influences(measured), job.work_dir / "influences"), warnings=tuple(line.warnings),
        )

    def _scoring(self, line: "_Line", *, scores: bool = True) -> Scoring:
        job = line.job
        return Scoring(
            job.recipe, line.prompts, self._store, self._pairs, spool=job.work_dir / "spool", cache_dir=job.cache_dir,
            report=line.report, warn=line.warn, scores=scores,
        )

    def _sampler_for(self, spec: SamplerSpec) -> Sampler:
        """The sampler of a recipe; the last one is kept, for its model is what fills the device."""
        key = json.dumps(to_plain(spec), sort_keys=True, default=str)
        if key not in self._sampler:
            if self._sampler:
                self._sampler.clear()
                release_memory()  # the old model goes before the new one comes
            self._sampler[key] = create_sampler(spec, self._device)
        return self._sampler[key]


class _Line:
    """What one job carries along: where its files are, who hears of its progress, what was warned of."""

    def __init__(self, job: Job, send: Callable[[Progress], None]) -> None:
        self.job = job
        self.report = Reporter(job.job, send)
        self.prompts = read_prompts(job.recipe.prompts, job.recipe.samples)
        self.samples = job.work_dir / "samples"
        self.part = _part(job, job.part)
        self.warnings: list[str] = []
        self.scoring: Scoring | None = None

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            print(f"warning: {text}", flush=True)

    def close(self) -> None:
        self.scoring = None


def release_memory() -> None:
    """Frees what nobody holds any more, and returns cached blocks to the GPU, which training may share."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def give_back_page_cache(path: Path) -> None:
    """Tells the kernel that the checkpoint's pages will not be read again: the trainer's data should have the room."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else []
    for file in files:
        with suppress(OSError):
            handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def _part(job: Job, number: int) -> Path:
    return job.work_dir / f"part-{number}"


def _keep_influences(found: Mapping[str, Tensor], path: Path) -> Path | None:
    """float32 is plenty for an error bar. None where no metric has any."""
    if not found:
        return None
    write_influences(path, {metric: values.tolist() for metric, values in found.items()})
    return path


def _check(job: Job) -> None:
    recipe = job.recipe

    def problem(cause: str) -> EvaluationError:
        return recipe_error("use recipe", cause, path=recipe.name, hint="see docs/configuration.md", retryable=False)

    if not job.checkpoint.exists():
        raise checkpoint_error(
            "evaluate checkpoint", "it is gone", path=job.checkpoint, hint="it was moved or removed meanwhile",
        )
    if not recipe.metrics:
        raise problem("it names no metrics")
    if recipe.samples < 1 or recipe.batch_size < 1:
        raise problem(f"samples ({recipe.samples}) and batch_size ({recipe.batch_size}) must be at least 1")
