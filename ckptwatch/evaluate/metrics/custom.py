"""A metric of the user's own: a function of the generated images."""

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckptwatch.core.metrics import METRICS
from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import describe, is_out_of_memory, metric_error, recipe_error
from ckptwatch.evaluate.ledger import Ledger
from ckptwatch.evaluate.loading import load_function
from ckptwatch.evaluate.metrics.base import Measured
from ckptwatch.evaluate.samplers.base import Batch
from ckptwatch.model import MetricSpec, Score

GROUP = "ckptwatch.metrics"  # entry points: metric name → function


class GeneratedImages:
    """What the function is given: all generated images, batch by batch, as often as it likes to go through them.

    `prompts` has one text per image, `count` is their number; iterating gives uint8 (n, 3, H, W) tensors in index order.
    """

    def __init__(self, files: list[Path], prompts: tuple[str, ...]) -> None:
        self._files = files
        self.prompts = prompts
        self.count = len(prompts)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        for file in self._files:
            yield torch.load(file, weights_only=True)


class Spool:
    """Keeps the images on disk for custom metrics, shared by all of them: they never fit into memory at once.

    The parts of a shared evaluation write into one directory; files are named after the first image in them.
    """

    def __init__(self, directory: Path, prompts: tuple[str, ...]) -> None:
        self._directory = directory
        self._prompts = prompts

    def add(self, batch: Batch) -> None:
        """Writes a batch. Raises OSError."""
        self._directory.mkdir(exist_ok=True)
        torch.save(batch.images.clone(), self._directory / f"{batch.start:09d}.pt")

    def images(self) -> GeneratedImages:
        return GeneratedImages(sorted(self._directory.glob("*.pt")), self._prompts)


class Custom:
    """Calls `function(images)` once; it returns a number, or numbers by metric name. Raises EvaluationError (METRIC)."""

    def __init__(self, spec: MetricSpec, function: Callable[[GeneratedImages], Any], spool: Spool) -> None:
        self.name = spec.name
        self._spec = spec
        self._function = function
        self._spool = spool

    def compute(self, _ledger: Ledger) -> tuple[Measured, ...]:
        images = self._spool.images()
        try:
            result = self._function(images)
        except EvaluationError:
            raise
        except (Exception, SystemExit) as error:  # the user's code may do anything
            if is_out_of_memory(error):
                raise
            raise metric_error(
                "compute metric", f"its function raised {describe(error)}", path=self.name,
                hint="the log of the evaluation has the traceback",
            ) from error
        named = result if isinstance(result, Mapping) else {self.name: result}
        if not named:
            raise metric_error("compute metric", "its function returned an empty mapping", path=self.name)
        return tuple(Measured(self._score(str(name), value, images.count)) for name, value in named.items())

    def _score(self, name: str, value: Any, count: int) -> Score:
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise metric_error(
                "compute metric", f"its function returned a {type(value).__name__} for {name!r}, wanted a number",
                path=self.name, hint="return a float, or a dict of name to float",
            ) from error
        if not torch.isfinite(torch.tensor(number)):
            raise metric_error(
                "compute metric", f"its function returned {number} for {name!r}", path=self.name, retryable=False,
                hint="a score must be a finite number; raise an error where there is none",
            )
        return Score(metric=name, value=number, n=count, mode=self._spec.mode, definition=f"custom: {self.name}")


def find_function(spec: MetricSpec) -> Callable[[GeneratedImages], Any]:
    """The function of a custom metric: its own, or the entry point of that name. Raises EvaluationError (RECIPE)."""
    if spec.function:
        return load_function(spec.function, f"metric {spec.name}")
    points = list(entry_points(group=GROUP, name=spec.name))
    if len(points) == 1:
        return load_function(points[0].value, f"metric {spec.name}")
    cause = (
        f"two packages offer it: {', '.join(sorted(p.value for p in points))}" if points
        else f"no such metric; built in are {', '.join(METRICS)}"
    )
    raise recipe_error(
        "find metric", cause, path=spec.name, retryable=False,
        hint=f"name its function (`function: module:name`), or offer it as an entry point in {GROUP!r}",
    )
