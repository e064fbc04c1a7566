"""Weights split into shards with an index: `model-00001-of-00004.safetensors` … and `model.safetensors.index.json`.

The index is written after the shards and says which of them hold the weights. The shards themselves may come in any order:
transformers writes several at a time.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptwatch.formats.base import About, Claim, Family, Folder
from ckptwatch.formats.parts import fingerprint_of, look
from ckptwatch.formats.reading import read_json
from ckptwatch.model import Facts

MOST_SHARDS = 10_000
_SHARD = re.compile(r"(?P<stem>.{1,200}?)-(?P<number>\d{4,6}+)-of-(?P<total>\d{4,6}+)(?P<suffix>\.safetensors|\.bin)")


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The shards of one model in one directory, as far as they are there. All names."""

    stem: str                # "model", "diffusion_pytorch_model.fp16"
    suffix: str              # ".safetensors" or ".bin"
    names: tuple[str, ...]   # sorted
    total: int               # as the names say
    index: str = ""          # "" while it is missing

    @property
    def entries(self) -> tuple[str, ...]:
        return (*self.names, self.index) if self.index else self.names


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Are the weights whole? The files are those that hold them."""

    whole: bool
    evidence: str
    files: tuple[Path, ...] = ()


class ShardedSafetensors(Family):
    name = "sharded-safetensors"
    precedence = 70
    about = About(
        title="Shards with an index",
        recognised="the files `X-00001-of-0000N.safetensors` with `X.safetensors.index.json`, or `.bin` with "
                   "`.bin.index.json`, in a directory that is not one checkpoint; together they are one, called by the "
                   "first shard",
        complete="the index, written last, can be read; every shard in its `weight_map` lies beside it and is whole; no "
                 "shard is left over",
        facts="step and epoch from the name",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        # Called by a shard, because the index does not exist while the shards are being written.
        return (self.claim_files(folder, shards.names[0], *shards.entries) for shards in find_shards(folder.files))

    def examine(self, claim: Claim) -> Facts:
        folder = claim.path.parent
        shards = next(iter(find_shards(member.name for member in claim.members)), None)
        if shards is None:
            return self.incomplete("no shards")
        verdict = judge_shards(folder, shards)
        if not verdict.whole:
            return self.incomplete(verdict.evidence)
        return Facts(format=self.name, complete=True, evidence=verdict.evidence, content_digest=True,
                     fingerprint=fingerprint_of(verdict.files, folder))


def find_shards(names: Iterable[str]) -> list[Shards]:
    """The groups of shards among the names, without those of which only an index is there."""
    names = frozenset(names)
    groups: defaultdict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for name in names:
        if "-of-" in name and (match := _SHARD.fullmatch(name)):
            groups[match["stem"], match["suffix"]].append((int(match["total"]), name))
    return [
        Shards(stem=stem, suffix=suffix, names=tuple(sorted(name for _, name in found)), total=max(n for n, _ in found),
               index=next((i for i in index_names(stem, suffix) if i in names), ""))
        for (stem, suffix), found in sorted(groups.items())
    ]


def index_names(stem: str, suffix: str) -> tuple[str, ...]:
    """`model.safetensors.index.json`; with a variant `model.safetensors.index.fp16.json`."""
    base, dot, variant = stem.rpartition(".")
    return (f"{stem}{suffix}.index.json", *([f"{base}{suffix}.index.{variant}.json"] if dot else []))


def judge_shards(directory: Path, shards: Shards, names: Iterable[str] = ()) -> Verdict:
    """`names` are further files that the index may list. Raises OSError where a file cannot be read."""
    try:
        listed = _whole_shards(directory, shards, frozenset(names))
    except ValueError as error:
        return Verdict(whole=False, evidence=str(error))
    return Verdict(whole=True, evidence=f"{shards.index} lists {len(listed)} shards, all present and whole",
                   files=tuple(directory / name for name in listed))


def _whole_shards(directory: Path, shards: Shards, names: frozenset[str]) -> list[str]:
    """The names of all shards. Raises ValueError, in words, where one is missing or not whole."""
    if not shards.index:
        raise ValueError(f"{len(shards.names)} of {shards.total} shards, index missing")
    try:
        listed = listed_in(read_json(directory / shards.index))
    except ValueError as error:
        raise ValueError(f"{shards.index}: {error}") from error
    missing = sorted(set(listed) - set(shards.names) - names)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        present = len(listed) - len(missing)
        raise ValueError(f"index lists {len(listed)} shards, {present} present; missing {missing[0]}{more}")
    if left := sorted(set(shards.names) - set(listed)):
        raise ValueError(f"{left[0]} is not in {shards.index}: left over, or another save is under way")
    for name in listed:
        part = look(directory / name)
        if not part.whole:
            raise ValueError(f"{name}: {part.evidence}")
    return listed


def listed_in(index: Any) -> list[str]:
    """The names of the shards in an index, sorted. Raises ValueError for an index that is none, or that leads elsewhere."""
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError("no weight_map")
    names = {value if isinstance(value, str) else "" for value in weight_map.values()}
    if len(names) > MOST_SHARDS:
        raise ValueError(f"lists {len(names):,} shards, more than any real checkpoint has")
    for name in sorted(names):
        if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable() or len(name) > 255:
            raise ValueError(f"lists {name[:100]!r}, which is no name of a file in its directory")
    return sorted(names)

