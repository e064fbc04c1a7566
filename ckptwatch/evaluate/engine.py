"""One evaluation, as a straight line: checkpoint → images → one pass through the networks → scores."""

import gc
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.artifacts import Artifacts
from ckptwatch.evaluate.failures import checkpoint_error, is_out_of_memory, recipe_error
from ckptwatch.evaluate.networks import NetworkStore
from ckptwatch.evaluate.progress import Reporter
from ckptwatch.evaluate.prompts import read_prompts
from ckptwatch.evaluate.samplers import Request, Sampler, Source, create_sampler
from ckptwatch.evaluate.scoring import Scoring
from ckptwatch.evaluate.weights import scan_finite
from ckptwatch.model import Sampler as SamplerSpec
from ckptwatch.workers.wire import Job, Progress, Result


class Engine:
    """Evaluates checkpoints one after the other on one device; networks and a python sampler stay loaded between them."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._store = NetworkStore(device)
        self._sampler: OrderedDict[str, Sampler] = OrderedDict()

    def evaluate(self, job: Job, send: Callable[[Progress], None]) -> Result:
        """The scores of one checkpoint. Raises EvaluationError, or MemoryError and torch.OutOfMemoryError.

        Whatever happens, memory of this evaluation is released and the page cache it filled is given back; a python
        sampler that failed is made anew for the next job, and networks are dropped when memory ran out.
        """
        begin = time.monotonic()
        warnings: list[str] = []
        report = Reporter(job.job, send)
        try:
            return self._evaluate(job, report, warnings, begin)
        except BaseException as error:
            self._sampler.clear()
            if is_out_of_memory(error):
                self._store.clear()
            raise
        finally:
            release_memory()
            give_back_page_cache(job.checkpoint)

    def _evaluate(self, job: Job, report: Reporter, warnings: list[str], begin: float) -> Result:
        recipe = job.recipe
        _check(job)
        warn = _warner(warnings)
        report("loading", 0, 1)
        scan_finite(job.checkpoint, job.variant, trusted=job.trusted)
        prompts = read_prompts(recipe.prompts, recipe.samples)
        scoring = Scoring(
            recipe, prompts, self._store, work_dir=job.work_dir, cache_dir=job.cache_dir, report=report, warn=warn,
        )
        report("loading", 1, 1)
        request = Request(job=job, prompts=prompts, device=self._device, report=report, warn=warn)
        source = self._sampler_for(recipe.sampler).sample(request)
        artifacts = Artifacts(job.work_dir / "samples", recipe.keep_samples)
        self._score(source, scoring, artifacts, request)
        scores = scoring.compute()
        artifacts.finish()
        return Result(
            job=job.job, scores=scores, seconds=time.monotonic() - begin, samples=artifacts.path, warnings=tuple(warnings),
        )

    def _score(self, source: Source, scoring: Scoring, artifacts: Artifacts, request: Request) -> None:
        if scoring.originals is not None:
            scoring.originals.bind(source.stems)
        done = 0
        request.report(source.stage, 0, request.count)
        for images in source.batches():
            batch = scoring.observe(done, images)
            if artifacts.wanted(done):
                artifacts.add(done, images, batch.prompts, batch.originals if scoring.originals else None)
            done += len(images)
            request.report(source.stage, done, request.count)

    def _sampler_for(self, spec: SamplerSpec) -> Sampler:
        """The sampler of a recipe; the last one is kept, for its model is what fills the device."""
        key = json.dumps([spec.command, spec.factory, dict(spec.options), spec.images, spec.timeout], default=str)
        if key not in self._sampler:
            if self._sampler:
                self._sampler.clear()
                release_memory()  # the old model goes before the new one comes
            self._sampler[key] = create_sampler(spec, self._device)
        return self._sampler[key]


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


def _warner(warnings: list[str]) -> Callable[[str], None]:
    def warn(text: str) -> None:
        if text not in warnings:
            warnings.append(text)
            print(f"warning: {text}", flush=True)

    return warn
