"""What the samplers that generate images in this process share: batches of seeds in, checked images out."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import describe, is_out_of_memory, not_finite_error, sampler_error
from ckptwatch.evaluate.images import size_text
from ckptwatch.evaluate.samplers.base import Batch, Request
from ckptwatch.model import FailureKind

SLACK = 1e-3  # a clamp of half-precision results leaves at most this much; more is the [−1, 1] or [0, 255] slip


@dataclass(frozen=True, kw_only=True)
class SampleBatch:
    """What to generate now. All sequences have one entry per image."""

    indices: tuple[int, ...]
    seeds: tuple[int, ...]    # recipe.seed + index; each image must depend on its own seed (prompt, label) alone
    prompts: tuple[str, ...]  # "" where the recipe has no prompts
    labels: tuple[int, ...] | None = None  # classes in [0, num_classes); None where the recipe has no `num_classes`
    image_size: int | None = None          # px a side, where the recipe says

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, start: int, stop: int) -> "SampleBatch":
        """The images from position `start` up to, not including, `stop`."""
        cut = slice(start, stop)
        return replace(
            self, indices=self.indices[cut], seeds=self.seeds[cut], prompts=self.prompts[cut],
            labels=None if self.labels is None else self.labels[cut],
        )


Generate = Callable[[SampleBatch], Tensor]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Makes the errors about one sampler's images: called with a cause, it returns an EvaluationError (SAMPLER)."""

    path: str       # what the user calls the sampler by: factory, pipeline, program file
    hint: str = ""

    def __call__(self, cause: str) -> EvaluationError:
        return sampler_error("use images of sampler", cause, path=self.path, retryable=False, hint=self.hint)


def run_foreign(what: str, call: Callable[[], Any], path: str) -> Any:
    """The result of foreign code, called without gradients. `what` names it in an error: "load()".

    Raises EvaluationError: OUT_OF_MEMORY where memory was exhausted, SAMPLER for anything else.
    """
    try:
        with torch.no_grad():
            return call()
    except EvaluationError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may do anything
        kind = FailureKind.OUT_OF_MEMORY if is_out_of_memory(error) else FailureKind.SAMPLER
        raise EvaluationError(
            "run sampler", f"{what} raised {describe(error)}", path=path, kind=kind,
            hint="the log of the evaluation has the traceback",
        ) from error


def halving(generate: Generate, batch: SampleBatch) -> Tensor:
    """`generate(batch)`; where memory is short, the batch in halves, down to one image. Seeds belong to samples, so the
    images stay the same. Raises what `generate` raises."""
    pieces = _pieces(generate, batch)
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def checked_images(images: Any, batch: SampleBatch, problem: Problem) -> Tensor:
    """uint8 (n, 3, H, W) on the CPU, of what foreign code returned for a batch: uint8, or floating point in [0, 1].

    Raises EvaluationError: SAMPLER for another type, shape or range, NOT_FINITE for NaN and Inf.
    """
    if not isinstance(images, Tensor):
        raise problem(f"sample() returned a {type(images).__name__}, not a tensor")
    if images.ndim != 4 or images.shape[:2] != (len(batch), 3) or 0 in images.shape:
        raise problem(f"sample() returned shape {tuple(images.shape)}, wanted ({len(batch)}, 3, H, W)")
    if images.dtype == torch.uint8:
        return images.detach().cpu()
    if not images.is_floating_point():
        raise problem(f"sample() returned {images.dtype}")
    return _quantised(images.detach().float(), batch, problem)


class GeneratedSource:
    """Images generated batch by batch while they are scored: a `base.Source`.

    `generate` gets a SampleBatch and returns uint8 (n, 3, H, W) or floating point in [0, 1], on any device; the source
    checks the images and halves batches that do not fit into memory, from then on at once. `deadline` is a
    `time.monotonic()`; it is looked at between batches. Raises EvaluationError: SAMPLER, NOT_FINITE, OUT_OF_MEMORY.
    """

    stage = "sampling"

    def __init__(self, generate: Generate, request: Request, deadline: float, problem: Problem) -> None:
        self._generate = generate
        self._request = request
        self._deadline = deadline
        self._problem = problem
        self._largest = request.batch_size  # images that are tried at once

    def batches(self) -> Iterator[Batch]:
        request = self._request
        end = request.start + request.count
        shape: torch.Size | None = None
        for start in range(request.start, end, request.batch_size):
            self._check_time(start - request.start)
            images = self._images(sample_batch(request, start, min(start + request.batch_size, end)))
            shape = shape or images.shape[1:]
            if images.shape[1:] != shape:
                raise self._problem(f"mixed sizes: {size_text(shape)}, then {size_text(images.shape)}")
            yield Batch(start, images)

    def _images(self, batch: SampleBatch) -> Tensor:
        at_once = self._largest  # an attempt may lower it
        parts = [batch.part(start, start + at_once) for start in range(0, len(batch), at_once)]
        pieces = [piece for part in parts for piece in _pieces(self._attempt, part)]
        for piece in pieces:
            if piece.shape[1:] != pieces[0].shape[1:]:
                raise self._problem(f"mixed sizes: {size_text(pieces[0].shape)}, then {size_text(piece.shape)}")
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def _attempt(self, batch: SampleBatch) -> Tensor:
        try:
            return checked_images(self._generate(batch), batch, self._problem)
        except Exception as error:
            if _memory_is_short(error):
                self._largest = min(self._largest, (len(batch) + 1) // 2)
            raise

    def _check_time(self, done: int) -> None:
        if time.monotonic() > self._deadline:
            raise sampler_error(
                "run sampler", f"{done} of {self._request.count} images when its time was up", path=self._problem.path,
                hint="raise `sampler.timeout` or lower `samples`",
            )


def sample_batch(request: Request, start: int, stop: int) -> SampleBatch:
    """What is to be generated for samples `start` up to, not including, `stop`."""
    recipe, indices = request.job.recipe, tuple(range(start, stop))
    labels = tuple(label for i in indices if (label := request.label(i)) is not None)
    return SampleBatch(
        indices=indices, seeds=tuple(recipe.seed + i for i in indices), prompts=request.prompts[start:stop],
        labels=labels or None, image_size=recipe.image_size,
    )


def release() -> None:
    """Gives cached blocks back to the GPU, so that a smaller attempt finds them in one piece."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _pieces(generate: Generate, batch: SampleBatch) -> list[Tensor]:
    try:
        return [generate(batch)]
    except Exception as error:
        if not _memory_is_short(error) or len(batch) == 1:
            raise
    release()  # outside of the handler: the traceback holds the tensors of the failed attempt
    middle = len(batch) // 2
    return [*_pieces(generate, batch.part(0, middle)), *_pieces(generate, batch.part(middle, len(batch)))]


def _memory_is_short(error: Exception) -> bool:
    if isinstance(error, EvaluationError):
        return error.kind == FailureKind.OUT_OF_MEMORY
    return is_out_of_memory(error)


def _quantised(images: Tensor, batch: SampleBatch, problem: Problem) -> Tensor:
    bad = (~torch.isfinite(images)).flatten(1).any(dim=1)
    if bool(bad.any()):
        first = batch.indices[int(bad.nonzero()[0])]
        raise not_finite_error(
            "use images of sampler", f"{int(bad.sum())} of {len(batch)} images hold NaN or Inf (first: sample {first})",
            path=problem.path, hint="the weights may have diverged, or half precision overflows",
        )
    low, high = (float(v) for v in torch.aminmax(images))
    if low < -SLACK or high > 1 + SLACK:
        raise problem(f"floating-point images must lie in [0, 1], these reach from {low:.4g} to {high:.4g}")
    # Rounds to the nearest level; `.byte()` would cut off and darken by half a level.
    return images.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
