"""The sampler `python`: an object of the user's own code that stays loaded between checkpoints."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ckptwatch.evaluate.loading import load_function
from ckptwatch.evaluate.samplers.base import Request
from ckptwatch.evaluate.samplers.generating import GeneratedSource, Problem, SampleBatch, run_foreign

__all__ = ["Model", "PythonSampler", "SampleBatch"]


class Model(Protocol):
    """What a factory returns. `ckptwatch.testing.SamplerConformance` tests whether one keeps to this."""

    def load(self, checkpoint: Path, variant: str) -> None:
        """Takes over the weights of a checkpoint. Called once per checkpoint."""
        ...

    def sample(self, batch: SampleBatch) -> Tensor:
        """Images (n, 3, H, W): uint8, or floating point in [0, 1]; on any device. Each depends on the weights and on
        its own seed, prompt and label alone: not on the batch it is in, nor on what was made before."""
        ...


class PythonSampler:
    """`module:factory(**options, device=…)` made once; `load` per checkpoint, `sample` per batch.

    When a batch does not fit into GPU memory it is halved, down to one image: seeds belong to samples, not to batches.
    """

    def __init__(self, factory: str, options: Mapping[str, Any], device: str, timeout: float) -> None:
        self._timeout = timeout
        self._problem = Problem(path=factory, hint="sample(batch) must return (n, 3, H, W), uint8 or float in [0, 1]")
        make = load_function(factory, "sampler factory")
        self._model: Model = run_foreign("the factory", lambda: make(**options, device=device), factory)
        missing = [name for name in ("load", "sample") if not callable(getattr(self._model, name, None))]
        if missing:
            raise self._problem(f"it returned a {type(self._model).__name__} without {' and '.join(missing)}()")

    def sample(self, request: Request) -> GeneratedSource:
        job = request.job
        request.report("loading", 0, 1)
        run_foreign("load()", lambda: self._model.load(job.checkpoint, job.variant), self._problem.path)
        request.report("loading", 1, 1)
        return GeneratedSource(self._generate, request, time.monotonic() + self._timeout, self._problem)

    def _generate(self, batch: SampleBatch) -> Tensor:
        images: Tensor = run_foreign("sample()", lambda: self._model.sample(batch), self._problem.path)
        return images
