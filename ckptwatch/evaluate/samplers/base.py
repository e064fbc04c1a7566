"""The seam between ckptwatch and whatever turns a checkpoint into images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ckptwatch.workers.wire import Job

Report = Callable[[str, int, int], None]  # stage, done, total
Warn = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What images are wanted. Sample i has seed `job.recipe.seed + i` and prompt `prompts[i]`, whatever the batch size,
    so that two checkpoints are compared on the same noise and the same text."""

    job: Job
    prompts: tuple[str, ...]  # one per sample; empty strings where the recipe has none
    device: str               # "cpu", "cuda:0"
    report: Report
    warn: Warn

    @property
    def count(self) -> int:
        return self.job.recipe.samples

    @property
    def batch_size(self) -> int:
        return self.job.recipe.batch_size


class Source(Protocol):
    """Generated images, ready to be read once or more."""

    stems: tuple[str, ...] | None  # file names without suffix, one per sample, where there are files
    stage: str                     # what reading them is to be reported as: "sampling" or "scoring"

    def batches(self) -> Iterator[Tensor]:
        """uint8 (n, 3, H, W) on the CPU, in index order, `count` in all, of one size. Raises EvaluationError."""
        ...


class Sampler(Protocol):
    """Makes the images of one checkpoint. Conformance: tests/contract/test_samplers.py."""

    def sample(self, request: Request) -> Source:
        """Raises EvaluationError: SAMPLER, TIMEOUT, NOT_FINITE, OUT_OF_MEMORY or RECIPE."""
        ...
