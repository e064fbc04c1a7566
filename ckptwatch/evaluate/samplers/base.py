"""The seam between ckptwatch and whatever turns a checkpoint into images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
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
    prompts: tuple[str, ...]  # one for each of the recipe's samples, not only of the range; "" where it has none
    scratch: Path             # exists, empty: for whatever the sampler writes
    device: str               # "cpu", "cuda:0"
    report: Report
    warn: Warn

    @property
    def start(self) -> int:
        """Index of the first sample that is wanted: 0, unless several workers share the evaluation."""
        return self.job.span[0]

    @property
    def count(self) -> int:
        """How many are wanted, from `start` on."""
        return self.job.span[1] - self.job.span[0]

    @property
    def batch_size(self) -> int:
        return self.job.recipe.batch_size

    def label(self, index: int) -> int | None:
        """The class of a sample: in turn, so that all are equally frequent in any range; None where there are none."""
        classes = self.job.recipe.num_classes
        return None if classes is None else index % classes


class Source(Protocol):
    """Generated images, ready to be read once or more."""

    stage: str  # what reading them is to be reported as: "sampling" or "scoring"

    def batches(self) -> Iterator["Batch"]:
        """In index order, `count` images in all, of one size, each batch of `batch_size` but the last.

        Raises EvaluationError; OrderChangedError where images were read while they were still being written, and then one
        came that belongs before them. Reading again from the beginning then gives all.
        """
        ...


class OrderChangedError(Exception):
    """What was read so far does not stand; the batches are to be read again."""


@dataclass(frozen=True)
class Batch:
    """Generated images."""

    start: int        # index of the first one among the recipe's samples
    images: Tensor    # uint8 (n, 3, H, W), CPU
    stems: tuple[str, ...] | None = None  # file names without suffix, one per image, where there are files

    def __len__(self) -> int:
        return len(self.images)


class Sampler(Protocol):
    """Makes the images of one checkpoint. Conformance: tests/contract/test_samplers.py."""

    def sample(self, request: Request) -> Source:
        """Raises EvaluationError: SAMPLER, TIMEOUT, NOT_FINITE, OUT_OF_MEMORY or RECIPE."""
        ...
