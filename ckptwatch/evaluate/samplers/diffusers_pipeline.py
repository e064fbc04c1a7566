"""Opening diffusers pipelines from anywhere without running anything they bring along."""

import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import describe, is_out_of_memory, recipe_error

Problem = Callable[..., EvaluationError]  # called as problem(operation, cause, path=…, hint=…, retryable=…)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_OPEN = "open diffusers pipeline"
# What the libraries say, and go on, when a network keeps random weights because the file has none for it.
_RANDOM = ("were not initialized from the model checkpoint", "| MISSING |")


@cache
def library() -> Any:
    """diffusers, kept from drawing progress bars into logs. Raises EvaluationError (RECIPE) where it is not installed."""
    try:
        import diffusers
    except ImportError as error:
        raise recipe_error(
            "use the sampler diffusers", f"diffusers cannot be imported: {error}", retryable=False,
            hint="pip install 'ckptwatch[diffusers]'",
        ) from error
    diffusers.utils.logging.disable_progress_bar()
    if importlib.util.find_spec("transformers"):
        import transformers

        transformers.utils.logging.disable_progress_bar()
    return diffusers


def dtype_for(name: str, device: str) -> torch.dtype:
    """Raises EvaluationError (RECIPE) for float16 on a CPU, which lacks many of the operations."""
    if name == "float16" and torch.device(device).type == "cpu":
        raise recipe_error(
            "use the sampler diffusers", "float16 does not work on the CPU", retryable=False,
            hint="set `diffusers.dtype` to bfloat16 or float32, or `workers.devices` to GPUs",
        )
    return _DTYPES[name]


def open_pipeline(place: str, dtype: torch.dtype, device: str, problem: Problem) -> Any:
    """The pipeline in a directory, or of a hub name, on `device`; without its safety checker, whose black images would be
    scored.

    Weights come from safetensors, or from torch files read without unpickling objects. A directory is never a reason to use
    the network. Raises what `problem` makes for whatever is wrong with it; torch.OutOfMemoryError.
    """
    local = Path(place).is_dir()
    keywords = {"local_files_only": True} if local else {}

    def load() -> Any:
        index = _load_index(place, keywords, problem)
        safe = None if local and _has_pickled_weights(Path(place), index) else True
        with _noticing_random_weights() as random:
            pipeline = library().DiffusionPipeline.from_pretrained(
                place, dtype=dtype, use_safetensors=safe, **keywords, **_without_checker(index))
        lacking = random or [f"{name}.{weight}" for name, module in networks(pipeline).items()
                             for weight, tensor in module.state_dict().items() if tensor.is_meta]
        if lacking:
            raise problem(_OPEN, f"weights are missing: {lacking[0]}", path=place, retryable=False,
                          hint="it was not saved in full, or by another version of the library")
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)

    return _guarded(load, place, problem)


def networks(pipeline: Any) -> dict[str, nn.Module]:
    """The components that have weights, by name."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def _guarded(load: Callable[[], Any], place: str, problem: Problem) -> Any:
    try:
        return load()
    except EvaluationError:
        raise
    except Exception as error:  # several libraries read a dozen formats
        if is_out_of_memory(error):
            raise
        raise problem(_OPEN, describe(error), path=place, hint="the log of the evaluation has the traceback") from error


def _load_index(place: str, keywords: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    """The content of model_index.json, refused if it names code other than that of diffusers and transformers."""
    index: dict[str, Any] = library().DiffusionPipeline.load_config(place, **keywords)
    strange = [name for name, value in index.items() if isinstance(value, list | tuple) and not _is_known(value)]
    if strange:
        raise problem(
            _OPEN, f"it brings code of its own, for {', '.join(strange)}, which is not run", path=place, retryable=False,
            hint="use the sampler `command` or `python`, which run your code",
        )
    return index


def _is_known(value: list[Any] | tuple[Any, ...]) -> bool:
    """Is this a pair of library and class that comes with the libraries, or nothing for which there would be an import?"""
    name = value[0] if len(value) == 2 else None
    if not isinstance(name, str):
        return True
    if name in ("diffusers", "transformers"):
        return True
    return name.isidentifier() and importlib.util.find_spec(f"diffusers.pipelines.{name}") is not None


def _without_checker(index: Mapping[str, Any]) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    if "safety_checker" in index:
        keywords["safety_checker"] = None
    if "requires_safety_checker" in index:
        keywords["requires_safety_checker"] = False
    return keywords


def _has_pickled_weights(directory: Path, index: Mapping[str, Any]) -> bool:
    """Has a component nothing but torch files? Both libraries read those with weights_only."""
    folders = [directory / name for name, value in index.items() if isinstance(value, list | tuple)]
    return any(any(f.glob("*.bin")) and not any(f.glob("*.safetensors")) for f in folders)


@contextmanager
def _noticing_random_weights() -> Iterator[list[str]]:
    """Collects what is said about weights that are missing."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if any(words in text for words in _RANDOM):
                heard.append(next(line for line in text.splitlines() if any(words in line for words in _RANDOM))[:300])

    ear, loggers = Ear(logging.WARNING), [logging.getLogger(name) for name in ("diffusers", "transformers")]
    before = [(logger.level, logger.disabled) for logger in loggers]
    for logger in loggers:
        logger.addHandler(ear)
        logger.setLevel(logging.WARNING)  # the environment, or the user's own code in this process, may have silenced them
        logger.disabled = False
    try:
        yield heard
    finally:
        for logger, (level, disabled) in zip(loggers, before, strict=True):
            logger.removeHandler(ear)
            logger.setLevel(level)
            logger.disabled = disabled
