"""The {placeholders} that a sampler's command and image directory may hold, and what is wrong with a text of them."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

# Each with a value of the type it will have, so that a format can be tried before there is a checkpoint.
_FILE = Path("/data/runs/run/checkpoints/0000001.pt")
COMMAND: Mapping[str, Any] = MappingProxyType({
    "checkpoint": _FILE, "variant": "model", "prompts": _FILE, "labels": _FILE, "seed": 0, "start": 0, "count": 1,
    "num_classes": 1, "image_size": 1, "batch_size": 1, "out_dir": _FILE.parent, "device": "cpu", "step": 0, "run": "run",
})
IMAGES: Mapping[str, Any] = MappingProxyType({"step": 0, "epoch": 0, "run": "run", "stem": "0000001"})
# Of an evaluation command. All but the first line may have no value: then the words they stand in must be in a list that may
# be left out.
EVALUATION: Mapping[str, Any] = MappingProxyType({
    "checkpoint": _FILE, "run": "run", "out_dir": _FILE.parent, "device": "cpu", "variant": "model",
    "step": 0, "epoch": 0, "metadata": _FILE, "lora": _FILE.parent, "csv_input": _FILE, "max_samples": 1, "batch_size": 1,
    "log_samples": "true", "log_interval": 1, "log_max_samples": 1,
})
# Which have a value only where the recipe sets a key.
NEEDS: Mapping[str, str] = MappingProxyType({
    "labels": "num_classes", "num_classes": "num_classes", "image_size": "image_size",
})


def examine_pattern(pattern: str, values: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """(what is wrong with it or "", the placeholders it asks for, each once). `values` is COMMAND or IMAGES.

    It is filled in exactly as it will be for a checkpoint, so that attributes such as {checkpoint.stem} and formats such as
    {step:07d} are tried, too. `{{` stands for a brace.
    """
    asked = _Asked(values)
    problem = ""
    try:
        pattern.format_map(asked)
    except KeyError as error:
        name = str(error.args[0])
        near = difflib.get_close_matches(name, values, n=1)
        known = f"did you mean {{{near[0]}}}?" if near else f"known are {' '.join(f'{{{n}}}' for n in values)}"
        problem = f"{pattern!r}: there is no placeholder {{{name}}}; {known}"
    except (ValueError, IndexError, AttributeError, TypeError, OverflowError, MemoryError) as error:
        problem = f"{pattern!r}: {error}; placeholders look like {{step}} or {{step:07d}}, write {{{{ and }}}} for braces"
    return problem, tuple(dict.fromkeys(asked.names))


class _Asked(dict[str, Any]):
    """Remembers what it was asked for and has."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.names: list[str] = []

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        self.names.append(name)
        return value
