"""The sampler `python`: an object of the user's own code that stays loaded between checkpoints."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import describe, is_out_of_memory, not_finite_error, sampler_error
from ckptwatch.evaluate.images import size_text
from ckptwatch.evaluate.loading import load_function
from ckptwatch.evaluate.samplers.base import Request
from ckptwatch.model import FailureKind


@dataclass(frozen=True, kw_only=True)
class SampleBatch:
    """What to generate now. All three have one entry per image."""

    indices: tuple[int, ...]
    seeds: tuple[int, ...]    # recipe.seed + index; each image must depend on its own seed alone
    prompts: tuple[str, ...]  # "" where the recipe has no prompts

    def __len__(self) -> int:
        return len(self.indices)


class Model(Protocol):
    """What a factory returns."""

    def load(self, checkpoint: Path, variant: str) -> None:
        """Takes over the weights of a checkpoint. Called once per checkpoint."""
        ...

    def sample(self, batch: SampleBatch) -> Tensor:
        """Images (n, 3, H, W): uint8, or floating point in [0, 1]; on any device."""
        ...


class PythonSampler:
    """`module:factory(**options, device=…)` made once; `load` per checkpoint, `sample` per batch.

    When a batch does not fit into GPU memory it is halved, down to one image: seeds belong to samples, not to batches.
    """

    def __init__(self, factory: str, options: Mapping[str, Any], device: str, timeout: float) -> None:
        self._factory = factory
        self._timeout = timeout
        make = load_function(factory, "sampler factory")
        self._model: Model = self._call("the factory", lambda: make(**options, device=device))
        missing = [name for name in ("load", "sample") if not callable(getattr(self._model, name, None))]
        if missing:
            raise self.problem(f"it returned a {type(self._model).__name__} without {' and '.join(missing)}()")

    def sample(self, request: Request) -> "ModelSource":
        job = request.job
        request.report("loading", 0, 1)
        self._call("load()", lambda: self._model.load(job.checkpoint, job.variant))
        request.report("loading", 1, 1)
        return ModelSource(self, request, deadline=time.monotonic() + self._timeout)

    def generate(self, batch: SampleBatch) -> Tensor:
        """uint8 (n, 3, H, W) on the CPU. Raises EvaluationError: SAMPLER, NOT_FINITE, OUT_OF_MEMORY."""
        try:
            images = self._call("sample()", lambda: self._model.sample(batch))
        except EvaluationError as error:
            if error.kind != FailureKind.OUT_OF_MEMORY or len(batch) == 1:
                raise
        else:
            return self._checked(images, batch)
        _release()  # outside of the handler: the traceback holds the tensors of the failed attempt
        half = len(batch) // 2
        return torch.cat([
            self.generate(part) for part in (_part(batch, slice(0, half)), _part(batch, slice(half, None)))
        ])

    def _call(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            with torch.no_grad():
                return call()
        except EvaluationError:
            raise
        except (Exception, SystemExit) as error:  # the user's code may do anything
            kind = FailureKind.OUT_OF_MEMORY if is_out_of_memory(error) else FailureKind.SAMPLER
            raise EvaluationError(
                "run sampler", f"{what} raised {describe(error)}", path=self._factory, kind=kind,
                hint="the log of the evaluation has the traceback",
            ) from error

    def problem(self, cause: str) -> EvaluationError:
        return sampler_error(
            "use images of sampler", cause, path=self._factory, retryable=False,
            hint="sample(batch) must return (n, 3, H, W), uint8 or float in [0, 1]",
        )

    def _checked(self, images: Any, batch: SampleBatch) -> Tensor:
        if not isinstance(images, Tensor):
            raise self.problem(f"sample() returned a {type(images).__name__}, not a tensor")
        if images.ndim != 4 or images.shape[:2] != (len(batch), 3) or 0 in images.shape:
            raise self.problem(f"sample() returned shape {tuple(images.shape)}, wanted ({len(batch)}, 3, H, W)")
        if images.dtype == torch.uint8:
            return images.detach().cpu()
        if not images.is_floating_point():
            raise self.problem(f"sample() returned {images.dtype}")
        return self._quantised(images.detach().float(), batch)

    def _quantised(self, images: Tensor, batch: SampleBatch) -> Tensor:
        bad = (~torch.isfinite(images)).flatten(1).any(dim=1)
        if bool(bad.any()):
            first = batch.indices[int(bad.nonzero()[0])]
            raise not_finite_error(
                "use images of sampler", f"{int(bad.sum())} of {len(batch)} images hold NaN or Inf (first: sample {first})",
                path=self._factory, hint="the weights may have diverged, or half precision overflows",
            )
        low, high = (float(v) for v in torch.aminmax(images))
        # A clamp of half-precision results leaves at most this much; more is the [−1, 1] or [0, 255] slip.
        if low < -1e-3 or high > 1 + 1e-3:
            raise self.problem(f"floating-point images must lie in [0, 1], these reach from {low:.4g} to {high:.4g}")
        # Rounds to the nearest level; `.byte()` would cut off and darken by half a level.
        return images.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()


class ModelSource:
    """Images generated batch by batch while they are scored."""

    stage = "sampling"
    stems: tuple[str, ...] | None = None

    def __init__(self, sampler: PythonSampler, request: Request, deadline: float) -> None:
        self._sampler = sampler
        self._request = request
        self._deadline = deadline

    def batches(self) -> Iterator[Tensor]:
        request, seed = self._request, self._request.job.recipe.seed
        shape: torch.Size | None = None
        for start in range(0, request.count, request.batch_size):
            indices = tuple(range(start, min(start + request.batch_size, request.count)))
            self._check_time(start)
            images = self._sampler.generate(SampleBatch(
                indices=indices, seeds=tuple(seed + i for i in indices),
                prompts=tuple(request.prompts[i] for i in indices),
            ))
            shape = shape or images.shape[1:]
            if images.shape[1:] != shape:
                raise self._sampler.problem(f"mixed sizes: {size_text(shape)}, then {size_text(images.shape)}")
            yield images

    def _check_time(self, done: int) -> None:
        if time.monotonic() > self._deadline:
            raise sampler_error(
                "run sampler", f"{done} of {self._request.count} images when its time was up",
                path=self._request.job.recipe.sampler.factory, hint="raise `sampler.timeout` or lower `samples`",
            )


def _part(batch: SampleBatch, part: slice) -> SampleBatch:
    return SampleBatch(indices=batch.indices[part], seeds=batch.seeds[part], prompts=batch.prompts[part])


def _release() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
