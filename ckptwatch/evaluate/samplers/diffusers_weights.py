"""Where in a checkpoint the weights of one component of a pipeline are, as the training scripts of diffusers leave them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import checkpoint_error
from ckptwatch.evaluate.weights import load_variant
from ckptwatch.formats.reading import read_json
from ckptwatch.formats.sharded_safetensors import find_shards, index_names, listed_in

LORA = "pytorch_lora_weights.safetensors"
INDEX = "model_index.json"
MOST_SHOWN = 8  # names of a directory in an error
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # save_pretrained of diffusers, Accelerate, transformers
_SUFFIXES = (".safetensors", ".bin")


@dataclass(frozen=True, kw_only=True)
class Found:
    """Weights of a component, or of a LoRA."""

    files: tuple[Path, ...]
    variant: str = ""           # entry of the files that holds them
    config: Path | None = None  # of the component they were saved from
    lora: bool = False

    @property
    def directory(self) -> Path:
        return self.files[0].parent

    def tensors(self, *, trusted: bool) -> dict[str, Tensor]:
        """By name without the variant's prefix, mapped where possible. Raises EvaluationError (CHECKPOINT)."""
        return {name: t for file in self.files for name, t in load_variant(file, self.variant, trusted=trusted).items()}


def find_weights(checkpoint: Path, variant: str, component: str) -> Found:
    """Looks, in this order, for: a LoRA, if the variant is "lora"; the directory of the component (`unet/`) or of its
    variant (`unet_ema/` for "unet_ema" and for "ema"); weights directly in the checkpoint, of which the variant is an entry;
    a LoRA. A checkpoint may be a single file, or one of several shards.

    Raises EvaluationError (CHECKPOINT), saying what there is instead.
    """
    try:
        found = _in_file(checkpoint, variant) if checkpoint.is_file() else _in_directory(checkpoint, variant, component)
        if found is not None:
            return found
        there = sorted(path.name + "/" * path.is_dir() for path in checkpoint.iterdir())
    except (OSError, ValueError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise checkpoint_error("find weights in checkpoint", cause, path=checkpoint) from error
    raise _not_found(checkpoint, variant, component, there)


def weights_in(directory: Path) -> tuple[Path, ...]:
    """The files, or all shards, of the weights that lie directly in a directory; none where there are none.
    Raises OSError; ValueError for an index that is none."""
    for stem in _STEMS:
        for suffix in _SUFFIXES:
            if (index := directory / f"{stem}{suffix}.index.json").is_file():
                return tuple(directory / name for name in listed_in(read_json(index)))
            if (single := directory / f"{stem}{suffix}").is_file():
                return (single,)
    return ()


def _in_file(path: Path, variant: str) -> Found | None:
    if path.name == LORA:
        return Found(files=(path,), lora=True)
    shards = next(iter(find_shards([path.name])), None)
    if shards is None:
        return Found(files=(path,), variant=variant, config=_config_beside(path))
    for name in index_names(shards.stem, shards.suffix):
        if (index := path.with_name(name)).is_file():
            files = tuple(path.with_name(shard) for shard in listed_in(read_json(index)))
            return Found(files=files, variant=variant, config=_config_beside(path))
    raise ValueError("it is a shard, and the index that lists the others is missing")


def _in_directory(directory: Path, variant: str, component: str) -> Found | None:
    lora = directory / LORA
    if variant == "lora":
        return Found(files=(lora,), lora=True) if lora.is_file() else None
    for name in _directories(variant, component):
        if files := weights_in(directory / name):
            return Found(files=files, config=_config_beside(files[0]))
    if files := weights_in(directory):
        return Found(files=files, variant=variant, config=_config_beside(files[0]))
    return Found(files=(lora,), lora=True) if not variant and lora.is_file() else None


def _directories(variant: str, component: str) -> Iterator[str]:
    if not variant:
        yield component
    elif variant not in (".", "..") and "/" not in variant:
        yield variant
        yield f"{component}_{variant}"


def _config_beside(file: Path) -> Path | None:
    config = file.with_name("config.json")
    return config if config.is_file() else None


def _not_found(checkpoint: Path, variant: str, component: str, there: list[str]) -> EvaluationError:
    looked = [LORA] if variant == "lora" else [
        *(f"{name}/" for name in _directories(variant, component)), *(f"{stem}{_SUFFIXES[0]}" for stem in _STEMS[:2]),
        *([LORA] if not variant else []),
    ]
    what = f"variant {variant!r} of {component}" if variant else component
    present = ", ".join(there[:MOST_SHOWN]) + (", …" if len(there) > MOST_SHOWN else "")
    return checkpoint_error(
        "find weights in checkpoint",
        f"it holds none for {what}: looked for {', '.join(looked)}; there is {present or 'nothing'}", path=checkpoint,
        hint="set `variants` of the run to what its checkpoints hold, or `diffusers.component` to what is trained",
        retryable=False,
    )
