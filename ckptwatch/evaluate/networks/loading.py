"""Finding weights, and saying where they belong when they are not there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import is_out_of_memory, recipe_error

T = TypeVar("T")


def torch_home() -> Path:
    """Where torch looks for downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def hub_cache() -> str:
    """Where huggingface_hub looks for downloaded weights."""
    return os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME") or "~/.cache/huggingface"


def loaded(make: Callable[[], T], what: str, where: Path | str, hint: str) -> T:
    """What `make` makes; any failure but exhausted memory becomes an EvaluationError that says how to provide weights."""
    try:
        return make()
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, EvaluationError):
            raise
        cause = f"{type(error).__name__}: {str(error).strip()[:400]} (weights looked for in {where})"
        raise recipe_error(f"load {what}", cause, hint=hint) from error


def must_exist(path: Path | None, operation: str, setting: str) -> None:
    """Raises EvaluationError (RECIPE) where a weights file is named and is not there."""
    if path is not None and not path.is_file():
        raise recipe_error(operation, "no such file", path=path, hint=f"{setting} must name the weights file")


def is_file(name: str | None) -> bool:
    return name is not None and Path(name).is_file()
