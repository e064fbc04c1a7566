"""A directory of the Hugging Face libraries and all below it: its weights may lie in components, adapters and shards."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ckptwatch.core.naming import CONVENTIONAL, parse_name
from ckptwatch.formats.base import Folder
from ckptwatch.formats.dcp_shards import judge_dcp
from ckptwatch.formats.deepspeed_tag import is_tag, judge_tag
from ckptwatch.formats.pretrained import (
    broken_file,
    indexes_among,
    is_structured,
    is_weights,
    judge_adapters,
    judge_weights,
    short_list,
    shown,
)
from ckptwatch.formats.reading import read_text
from ckptwatch.formats.sharded_safetensors import Verdict
from ckptwatch.formats.step_names import holds_others
from ckptwatch.model import Role

_FSDP = re.compile(r"(?:pytorch_model_fsdp|optimizer)_\d{1,4}")


def is_fsdp(name: str) -> bool:
    """A directory of shards that FSDP writes inside a checkpoint."""
    return _FSDP.fullmatch(name) is not None


def is_run(folder: Folder) -> bool:
    """Do the names in it say that it holds further checkpoints: steps, best and last ones, or a directory of such?"""
    return holds_others(folder) or any(
        name.lower() in CONVENTIONAL or parse_name(name).role is not Role.REGULAR for name in folder.folders)


def judge_all_weights(top: Path, files: Iterable[Path]) -> Verdict:
    """The weights among the files, wherever this kind of training puts them. Raises OSError."""
    inside: dict[str, set[str]] = {"": set()}  # names by directory below `top`
    for path in files:
        relative = path.relative_to(top).parts
        if len(relative) <= 2:
            inside.setdefault("".join(relative[:-1]), set()).add(relative[-1])
    found: list[Verdict] = []
    for name, names in sorted(inside.items()):
        verdict = _judge_tag(top, name) if name and is_tag(names) else _judge_one(top / name, names)
        if verdict is None:
            continue
        verdict = _placed(verdict, name)
        if not verdict.whole:
            return verdict
        found.append(verdict)
    weights = {path for verdict in found for path in verdict.files}
    if not weights:
        return Verdict(whole=False, evidence="no weights")
    return Verdict(whole=True, evidence=short_list([v.evidence for v in found]), files=tuple(sorted(weights)))


def _judge_one(directory: Path, names: set[str]) -> Verdict | None:
    """None for a directory without weights."""
    if evidence := judge_adapters(directory, names):
        return Verdict(whole=False, evidence=evidence)
    if is_fsdp(directory.name):
        shards = judge_dcp(directory)
        if shards.whole and not directory.name.startswith("pytorch_model"):
            return None
        return Verdict(whole=shards.whole, evidence=shards.evidence, files=shards.files)
    if any(map(is_weights, names)) or indexes_among(names):
        return judge_weights(directory, names)
    return None


def _placed(verdict: Verdict, name: str) -> Verdict:
    return replace(verdict, evidence=f"{shown(name)}/{verdict.evidence}") if name else verdict


def _judge_tag(top: Path, name: str) -> Verdict | None:
    """A directory of DeepSpeed. None for one that `latest` beside it does not name, because it names another."""
    latest = read_text(top / "latest")
    if latest != name and latest and (top / latest).is_dir() and (top / latest).parent == top:
        return None
    if latest != name:
        return Verdict(whole=False, evidence=" is not named by `latest` beside it, which DeepSpeed writes last")
    tag = judge_tag(top / name)
    return Verdict(whole=tag.whole, evidence=tag.evidence, files=tag.files)


def first_gap(numbers: Iterable[int]) -> str:
    """The first number from 0 that is missing below the highest one; "" if none is."""
    return next((str(n) for n, number in enumerate(sorted(numbers)) if n != number), "")


def first_broken(top: Path, files: Iterable[Path], besides: Iterable[Path] = ()) -> str:
    """The first of the files with a known structure that is not whole, and why; "" if all are. Raises OSError."""
    known = frozenset(besides)
    for path in files:
        if path in known or not is_structured(path.name):
            continue
        if evidence := broken_file(path):
            return f"{shown(path.relative_to(top))}: {evidence}"
    return ""
