"""What a trainer leaves around a checkpoint for whoever evaluates it: `checkpoint_metadata.json` and `lora_weights/`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ckptwatch.core.naming import CONVENTIONAL
from ckptwatch.formats.metadata_directory import LORA, METADATA

_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """None for what is not there."""

    metadata: Path | None = None  # the file
    lora: Path | None = None      # the directory


def around(checkpoint: Path) -> Surroundings:
    """What lies in the checkpoint, if it is a directory, else beside it; else beside the directory it is in, where that is
    called `checkpoints/` or the like."""
    return Surroundings(
        metadata=next((p for d in _directories(checkpoint) if (p := d / METADATA).is_file()), None),
        lora=next((p for d in _directories(checkpoint) if (p := d / LORA).is_dir()), None))


def adapter_doubt(lora: Path) -> str:
    """What an adapter's directory lacks, in words; "" if nothing."""
    missing = [] if (lora / "adapter_config.json").is_file() else ["adapter_config.json"]
    if not any((lora / name).is_file() for name in _ADAPTERS):
        missing.append(_ADAPTERS[0])
    return f"{lora} lacks {' and '.join(missing)}" if missing else ""


def _directories(checkpoint: Path) -> Iterator[Path]:
    if checkpoint.is_dir():
        yield checkpoint
    yield checkpoint.parent
    if checkpoint.parent.name.lower() in CONVENTIONAL:
        yield checkpoint.parent.parent
