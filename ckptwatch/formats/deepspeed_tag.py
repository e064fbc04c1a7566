"""The directory that DeepSpeed writes for one tag: files of ranks, in any order. Which ranks there must be is in them."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptwatch.formats.torch_content import count, first_count, top_level, variants
from ckptwatch.formats.torch_zip import look_torch
from ckptwatch.formats.tree import judge_tree

_STATES = ("model_states.pt", "optim_states.pt")
_MODEL = re.compile(r"(?:zero_pp_rank_(?P<data>\d{1,9}+)_)?mp_rank_(?P<model>\d{1,9}+)_model_states\.pt")
_OPTIMIZER = re.compile(
    r"(?:bf16_|fp16_)?zero_pp_rank_(?P<data>\d{1,9}+)_mp_rank_(?P<model>\d{1,9}+)_optim_states\.pt")


@dataclass(frozen=True, kw_only=True)
class TagVerdict:
    whole: bool
    evidence: str
    files: tuple[Path, ...] = ()
    step: int | None = None
    epoch: int | None = None
    variants: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()  # of the model states


def is_tag(names: Collection[str]) -> bool:
    """Do such files lie in a directory? Mostly not, which one search in all the names tells."""
    return "_states.pt" in "/".join(names) and any(name.endswith(_STATES) for name in names)


def judge_tag(directory: Path) -> TagVerdict:
    """Whole if every file is, and no rank is missing as far as the names and the model states tell. Raises OSError."""
    names = sorted(path.name for path in directory.iterdir())
    models = [m for m in map(_MODEL.fullmatch, names) if m]
    if not models:
        return _no("no model states")
    said = _said(directory / models[0].string)
    if isinstance(said, str):
        return _no(said)
    if evidence := _gaps(names, said):
        return _no(evidence)
    tree = judge_tree(directory)
    if not tree.whole:
        return _no(tree.evidence)
    states = tuple(directory / name for name in names if name.endswith(_STATES))
    weights = tuple(path for path in states if path.name.endswith("model_states.pt"))
    # From the third stage of ZeRO on, the weights are in the files of the optimizer.
    zero3 = any(m["data"] for m in models)
    return TagVerdict(
        whole=True, evidence=f"{len(states)} files of {_ranks(names)}, all whole", files=states if zero3 else weights,
        step=count(said.get("global_steps")), epoch=first_count(said, ("epoch", "current_epoch")), variants=variants(said),
        keys=top_level(said))


def steps_in(directory: Path) -> int | None:
    """How many steps its model states count; None if there are none that can be read."""
    try:
        names = sorted(path.name for path in directory.iterdir())
        first = next((name for name in names if _MODEL.fullmatch(name)), None)
        said = _said(directory / first) if first else ""
    except OSError:
        return None
    return None if isinstance(said, str) else count(said.get("global_steps"))


def _said(path: Path) -> Mapping[Any, Any] | str:
    """What model states say, or in words why they are not whole."""
    part = look_torch(path)
    if not part.whole:
        return f"{path.name}: {part.evidence}"
    return part.content if isinstance(part.content, dict) else {}


def _gaps(names: Iterable[str], said: Mapping[Any, Any]) -> str:
    """Which rank is missing; "" if none is."""
    models = [m for m in map(_MODEL.fullmatch, names) if m]
    model_ranks = {int(m["model"]) for m in models}
    wanted = range(max(len(model_ranks), _world(said, "mp_world_size")))
    if missing := sorted({*wanted} - model_ranks):
        return f"{len(model_ranks)} of {len(wanted)} model-parallel ranks; no model states of rank {missing[0]}"
    optimizers = [m for m in map(_OPTIMIZER.fullmatch, names) if m]
    if not optimizers and any(m["data"] for m in models):
        return "no optimizer states, which hold the weights from the third stage of ZeRO on"
    for kind, found in (("model states", models), ("optimizer states", optimizers)):
        by_model: defaultdict[int, set[int]] = defaultdict(set)
        for match in found:
            if match["data"]:
                by_model[int(match["model"])].add(int(match["data"]))
        if not by_model:
            continue
        size = max(_world(said, "dp_world_size"), *map(len, by_model.values()))
        for rank in sorted(model_ranks):
            if missing := sorted({*range(size)} - by_model[rank]):
                return f"{kind} of {len(by_model[rank])} of {size} data-parallel ranks; none of rank {missing[0]} " \
                       f"(model-parallel rank {rank})"
    return ""


def _world(said: Mapping[Any, Any], key: str) -> int:
    number = count(said.get(key))
    return number if number is not None and number <= 1_000_000 else 1


def _ranks(names: Iterable[str]) -> str:
    matches = (m for n in names for m in (_MODEL.fullmatch(n), _OPTIMIZER.fullmatch(n)) if m)
    number = len({(m["data"] or "0", m["model"]) for m in matches})
    return "1 rank" if number == 1 else f"{number} ranks"


def _no(evidence: str) -> TagVerdict:
    return TagVerdict(whole=False, evidence=evidence)
