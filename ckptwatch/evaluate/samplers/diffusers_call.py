"""Calling a diffusers pipeline for a batch of samples, whatever arguments its class takes."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import recipe_error
from ckptwatch.evaluate.samplers.base import Request, Warn
from ckptwatch.evaluate.samplers.generating import Problem, SampleBatch, run_foreign

# Arguments that follow from the recipe, and the key of the recipe by which they are set.
_FROM_RECIPE = {
    "prompt": "prompts", "class_labels": "num_classes", "generator": "seed", "batch_size": "batch_size",
    "num_images_per_prompt": "samples",
}
_OURS = frozenset({"output_type", "return_dict"})
_NOT_OFFERED = re.compile(r"callback.*|.*embeds(_\d)?|.*_mask|latents|.*image.*")  # no configuration can hold these
_TEXT = re.compile(r"(negative_)?prompt(_\d)?")  # arguments of which there must be one per image


class PipelineCall:
    """A pipeline with the options of a recipe. Called with a SampleBatch, it returns images (n, 3, H, W) in [0, 1], on any
    device; image i comes from a generator of its own seed, on the CPU."""

    def __init__(self, pipeline: Any, options: Mapping[str, Any], request: Request, problem: Problem) -> None:
        """Raises EvaluationError (RECIPE) for options that the pipeline does not take, and where it needs more than can be
        given. What it does not use, it says through `request.warn`."""
        self._pipeline = pipeline
        self._options = dict(options)
        self._problem = problem
        self._warn: Warn | None = request.warn
        signature = inspect.signature(pipeline.__call__)
        self._takes = {
            name: parameter for name, parameter in signature.parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }
        self._check_options()
        self._check_inputs(request)

    def __call__(self, batch: SampleBatch) -> Tensor:
        arguments = self._arguments(batch)
        with _OwnRandomState(batch.seeds[0], self._pipeline.device) as random:
            output = run_foreign("the pipeline", lambda: self._pipeline(**arguments), self._problem.path)
            drawn = random.was_used()
        if drawn and self._warn is not None:
            self._warn(f"{type(self._pipeline).__name__} with {type(self._pipeline.scheduler).__name__} draws noise outside "
                       "of the generators given to it, so images depend on the batch size")
            self._warn = None
        return self._images(output)

    def _arguments(self, batch: SampleBatch) -> dict[str, Any]:
        count = len(batch)
        size = {"height": batch.image_size, "width": batch.image_size} if batch.image_size else {}
        possible = {
            **size, "prompt": list(batch.prompts), "class_labels": None if batch.labels is None else list(batch.labels),
            "batch_size": count, "num_images_per_prompt": 1, "output_type": "pt", "return_dict": True,
            "generator": [torch.Generator().manual_seed(seed) for seed in batch.seeds],
        }
        options = {
            name: [value] * count if isinstance(value, str) and _TEXT.fullmatch(name) else value
            for name, value in self._options.items()
        }
        return {name: value for name, value in possible.items() if name in self._takes and value is not None} | options

    def _images(self, output: Any) -> Tensor:
        images = getattr(output, "images", None)
        if images is None:
            raise self._problem(f"a {type(self._pipeline).__name__} returns no images, but {', '.join(output)}")
        if isinstance(images, list) and images and isinstance(images[0], np.ndarray | Tensor):
            images = np.stack(images) if isinstance(images[0], np.ndarray) else torch.stack(images)
        if isinstance(images, np.ndarray):  # where "pt" is not known, whatever is not "pil" gives (n, H, W, channels)
            images = torch.from_numpy(images).movedim(-1, 1)
        if not isinstance(images, Tensor):
            raise self._problem(f"a {type(self._pipeline).__name__} returned a {type(images).__name__}, not an array")
        # Grey images become RGB, as everywhere images are read.
        return images.expand(-1, 3, -1, -1) if images.ndim == 4 and images.shape[1] == 1 else images

    def _check_options(self) -> None:
        for name in self._options:
            if name in _FROM_RECIPE:
                raise self._error(f"the option {name} is not free", f"`{_FROM_RECIPE[name]}` of the recipe decides it")
            if name not in self._takes or name in _OURS:
                free = [n for n in self._takes if n not in _FROM_RECIPE and n not in _OURS and not _NOT_OFFERED.fullmatch(n)]
                raise self._error(f"it takes no option {name}", f"it takes {', '.join(free)}")

    def _check_inputs(self, request: Request) -> None:
        recipe = request.job.recipe
        if "generator" not in self._takes:
            raise self._error("it takes no generator, so that its images could not be repeated", "use the sampler `python`")
        given = {"prompt", "batch_size", *_OURS, *self._options} | ({"class_labels"} if recipe.num_classes else set())
        lacking = [n for n, p in self._takes.items() if p.default is inspect.Parameter.empty and n not in given]
        if lacking:
            raise self._error(
                f"it needs {', '.join(lacking)}", "set `num_classes` of the recipe" if lacking == ["class_labels"] else
                "only pipelines that make images from noise, text and classes can be sampled; others through `python`")
        if recipe.num_classes and "class_labels" not in self._takes:
            request.warn(f"{type(self._pipeline).__name__} takes no class labels: num_classes has no effect on the images")
        if recipe.prompts and "prompt" not in self._takes:
            request.warn(f"{type(self._pipeline).__name__} takes no prompts: they have no effect on the images")
        if not recipe.prompts and "prompt" in self._takes:
            request.warn("the recipe has no prompts: every image is made for an empty one")

    def _error(self, cause: str, hint: str) -> EvaluationError:
        return recipe_error(
            f"call {type(self._pipeline).__name__}", cause, path=self._problem.path, hint=hint, retryable=False)


class _OwnRandomState:
    """Global random numbers start at `seed` inside, and go on as before afterwards."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        self._devices = [device] if device.type == "cuda" else []
        self._fork = torch.random.fork_rng(self._devices)

    def __enter__(self) -> "_OwnRandomState":
        self._fork.__enter__()
        torch.manual_seed(self._seed)
        self._begin = self._states()
        return self

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)

    def was_used(self) -> bool:
        return any(not torch.equal(now, begin) for now, begin in zip(self._states(), self._begin, strict=True))

    def _states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._devices)]
