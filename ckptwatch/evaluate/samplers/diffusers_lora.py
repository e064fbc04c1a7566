"""A LoRA put onto a pipeline, and taken off again."""

from pathlib import Path
from typing import Any

from safetensors import safe_open

from ckptwatch.evaluate.failures import checkpoint_error, describe, is_out_of_memory, recipe_error
from ckptwatch.evaluate.samplers.diffusers_pipeline import networks
from ckptwatch.evaluate.weights import scan_finite

_NAME = "checkpoint"  # of the adapter
_MATRICES = ("lora_A", "lora_B", "lora_up", "lora_down", "lora.up", "lora.down")  # two tensors for each layer it changes


def put_lora(pipeline: Any, file: Path) -> None:
    """Loads the LoRA of a safetensors file onto the components it is for.

    Raises EvaluationError: RECIPE where PEFT is missing or the pipeline takes no LoRA; CHECKPOINT where the file cannot be
    read or a part of it finds no place in the pipeline, which the library would leave out; NOT_FINITE.
    """
    if not hasattr(pipeline, "load_lora_weights"):
        raise recipe_error("load LoRA", f"a {type(pipeline).__name__} takes none", path=file, retryable=False,
                           hint="set `diffusers.base` to the pipeline the LoRA was trained on")
    scan_finite(file, "")
    try:
        import peft  # noqa: F401 - diffusers says less clearly that it is missing
    except ImportError as error:
        raise recipe_error("load LoRA", f"PEFT cannot be imported: {error}", path=file, hint="pip install peft",
                           retryable=False) from error
    try:
        pipeline.load_lora_weights(
            file.parent, weight_name=file.name, adapter_name=_NAME, local_files_only=True, use_safetensors=True)
        wanted = _count_in(file)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise checkpoint_error("load LoRA", describe(error), path=file, retryable=False,
                               hint="it may be of another base than `diffusers.base`") from error
    # The library takes fused layers apart, so there may be more than in the file, never fewer.
    if (placed := _count_placed(pipeline)) < wanted:
        raise checkpoint_error(
            "load LoRA", f"{wanted - placed} of its {wanted} matrices have no place in a {type(pipeline).__name__}",
            path=file, hint="it is of another base than `diffusers.base`; the log names its keys", retryable=False)


def take_off_lora(pipeline: Any) -> None:
    """Leaves the pipeline as it was before `put_lora`."""
    pipeline.unload_lora_weights()


def _count_in(file: Path) -> int:
    with safe_open(file, framework="pt") as tensors:
        return sum(any(mark in name for mark in _MATRICES) for name in tensors.keys())  # noqa: SIM118 - no mapping


def _count_placed(pipeline: Any) -> int:
    return sum(f".{_NAME}." in name and any(mark in name for mark in _MATRICES)
               for network in networks(pipeline).values() for name, _ in network.named_parameters())
