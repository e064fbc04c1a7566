"""Is everything in a directory whole that has a structure we know? For layouts that say no more than that themselves."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from ckptwatch.formats.dcp_shards import holds_shards, is_shard, judge_dcp
from ckptwatch.formats.parts import Part, look
from ckptwatch.formats.pretrained import is_structured, judge_weights, weights_among
from ckptwatch.formats.reading import open_regular
from ckptwatch.formats.sharded_safetensors import Verdict, find_shards
from ckptwatch.formats.zip_directory import ZipError, read_directory

MOST_FILES = 200_000  # zarr keeps each chunk of a tensor in a file of its own
WEIGHTS = (
    ".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".distcp", ".npz", ".msgpack", ".pkl", ".h5", ".hdf5", ".keras", ".tar",
    ".weights", ".pdparams",
)
_UNFINISHED = re.compile(
    r"\.?tmp(?:[-_.].*+|\w{6,10})|.+?\.(?:tmp|temp|part|partial|incomplete)(?:[-._]\w{1,40}+)?", re.IGNORECASE)
_KNOWN_STEMS = ("model", "pytorch_model", "adapter_model", "diffusion_pytorch_model")  # their index is written last


def files_below(top: Path) -> list[Path]:
    """All regular files of a directory and below, sorted; links are left out and never followed.

    Raises OSError; ValueError for more than any checkpoint has.
    """
    found: list[Path] = []
    pending = [str(top)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    found.append(Path(entry.path))
        if len(found) + len(pending) > MOST_FILES:
            raise ValueError(f"more than {MOST_FILES:,} files, more than any real checkpoint has")
    return sorted(found)


def judge_tree(top: Path, besides: Iterable[Path] = ()) -> Verdict:
    """Every file below `top` but those judged already. The verdict's files are those that hold weights, as far as their
    names tell. Raises OSError where something cannot be read."""
    try:
        files = files_below(top)
    except ValueError as error:
        return Verdict(whole=False, evidence=str(error))
    judged = set(besides)
    names: defaultdict[Path, set[str]] = defaultdict(set)
    for path in files:
        names[path.parent].add(path.name)
    for directory, here in names.items():
        verdict = _judge_sets(directory, here, judged)
        if not verdict.whole:
            return Verdict(whole=False, evidence=_placed(directory, top, verdict.evidence))
        judged.update(verdict.files)
    for path in files:
        if path not in judged and (evidence := _broken(path)):
            return Verdict(whole=False, evidence=_placed(path, top, evidence))
    weights = tuple(p for p in files if p.name.endswith(WEIGHTS) or p.name == ".metadata")
    count = "1 file" if len(files) == 1 else f"{len(files):,} files"
    return Verdict(whole=True, evidence=f"{count}, all of known structure whole", files=weights or tuple(files))


def _judge_sets(directory: Path, names: set[str], judged: set[Path]) -> Verdict:
    """The files of one directory that belong together. The verdict's files need no further look."""
    files: set[Path] = set()
    if holds_shards(names) and directory / ".metadata" not in judged:
        dcp = judge_dcp(directory)
        if not dcp.whole:
            return Verdict(whole=False, evidence=dcp.evidence)
        files.update(dcp.files, (directory / name for name in names if is_shard(name)))  # some ranks write an empty one
    if weights_among(names) or any(name.endswith(".index.json") for name in names):
        verdict = judge_weights(directory, names)
        if not verdict.whole and verdict.evidence != "no weights":
            return verdict
        files.update(verdict.files)
    for shards in find_shards(names):
        if not shards.index and shards.stem not in _KNOWN_STEMS and len(shards.names) != shards.total:
            count = f"{len(shards.names)} of {shards.total}"
            return Verdict(whole=False, evidence=f"{count} files {shards.stem}-*{shards.suffix}")
    return Verdict(whole=True, evidence="", files=tuple(files))


def _broken(path: Path) -> str:
    """Why a file is not whole; "" if it is, or if its kind says nothing."""
    name = path.name
    if _UNFINISHED.fullmatch(name):
        return "its name says that it is being written"
    try:
        part = look_inside(path)
    except FileNotFoundError:
        return "it vanished meanwhile"
    return "" if part.whole else part.evidence


def look_inside(path: Path) -> Part:
    """As `look`, for a file of any kind: one of which nothing can be told is whole, with no evidence. Raises OSError."""
    name = path.name
    if name.endswith((".pt", ".pth", ".ckpt", ".safetensors")) or is_structured(name):
        return look(path)
    if not name.endswith(WEIGHTS):
        return Part(whole=True, evidence="")
    with open_regular(path) as file:
        first = file.read(4)
    if not first:
        return Part(whole=False, evidence="empty file")
    if name.endswith(".npz"):
        return _look_npz(path)
    if name.endswith((".bin", ".tar")) and first[:1] not in (b"P", b"\x80"):
        return Part(whole=True, evidence="")  # raw numbers, or an archive of another kind
    return look(path)


def _look_npz(path: Path) -> Part:
    with open_regular(path) as file:
        try:
            read_directory(file)
        except ZipError as error:
            return Part(whole=False, evidence=str(error))
    return Part(whole=True, evidence="zip directory valid")


def _placed(path: Path, top: Path, evidence: str) -> str:
    return evidence if path == top else f"{path.relative_to(top)}: {evidence}"
