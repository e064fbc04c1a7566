"""Which files of a checkpoint hold its weights, where it is a directory."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptwatch.formats.reading import read_json

# As DeepSpeed names the states of each model-parallel rank. From the third stage of ZeRO on there is one file for each
# data-parallel rank as well, and the weights are not in it.
_RANK = re.compile(r"mp_rank_\d{1,9}_model_states\.pt")
_ZERO3 = re.compile(r"zero_pp_rank_\d{1,9}_mp_rank_\d{1,9}_model_states\.pt")
_STEMS = r"(?:pytorch_model|diffusion_pytorch_model|adapter_model)"
_BIN = re.compile(rf"{_STEMS}(?:\.[\w-]{{1,24}})?(?:-\d{{5}}-of-\d{{5}})?\.bin")
_INDEX = re.compile(rf"{_STEMS}\.bin\.index(?:\.[\w-]{{1,24}})?\.json")


@dataclass(frozen=True, kw_only=True)
class Directory:
    """The files with weights in a directory."""

    files: tuple[Path, ...] = ()
    ranks: int = 1       # model-parallel ranks over which every tensor may be split, one file each
    problem: str = ""    # why its weights cannot be read from here


def files_in(directory: Path, prefix: str = "") -> Directory:
    """Those of DeepSpeed, else the safetensors files, else pytorch_model*.bin: where there is an index, those that it names
    for tensors whose name begins with `prefix`. Raises OSError; ValueError, in words, for an index that is broken."""
    names = sorted(path.name for path in directory.iterdir())
    if ranks := [name for name in names if _RANK.fullmatch(name)]:
        return Directory(files=_placed(directory, ranks), ranks=len(ranks))
    if any(_ZERO3.fullmatch(name) for name in names):
        return Directory(problem="its weights are spread over the files of the optimizer (third stage of ZeRO)")
    if tensors := [name for name in names if name.endswith(".safetensors")]:
        return Directory(files=_placed(directory, tensors))
    indexes = [name for name in names if _INDEX.fullmatch(name)]
    if indexes:
        named = _named_by(directory / indexes[0], prefix)
        if missing := [name for name in named if name not in names]:
            raise ValueError(f"{missing[0]}, which {indexes[0]} names, is missing")
        return Directory(files=_placed(directory, named))
    return Directory(files=_placed(directory, [name for name in names if _BIN.fullmatch(name)]))


def _placed(directory: Path, names: Iterable[str]) -> tuple[Path, ...]:
    return tuple(directory / name for name in names)


def _named_by(index: Path, prefix: str) -> list[str]:
    content: Any = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict):
        raise ValueError(f"{index.name} has no weight_map")
    named = {place for name, place in places.items() if name.startswith(prefix)}
    for name in named:
        if not isinstance(name, str) or "/" in name or not name.endswith(".bin"):
            raise ValueError(f"{index.name} names {str(name)[:60]!r}, which is no file of weights beside it")
    return sorted(named)
