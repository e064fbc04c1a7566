"""Megatron-LM: `iter_0000100/` in its torch_dist or its older layout, with `latest_checkpointed_iteration.txt` beside it."""

import re
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path

from ckptwatch.formats.base import About, Claim, Family, Folder
from ckptwatch.formats.dcp_metadata import lies_below
from ckptwatch.formats.dcp_shards import holds_shards, judge_dcp
from ckptwatch.formats.parts import fingerprint_of, look, look_json
from ckptwatch.formats.reading import read_json, read_text
from ckptwatch.formats.sharded_safetensors import Verdict
from ckptwatch.formats.tree import judge_tree
from ckptwatch.model import Facts

TRACKER = "latest_checkpointed_iteration.txt"
MARKER, CHECKSUMS = "metadata.json", "integrity.json"
_ITERATION = re.compile(r"iter_(\d{7,18})")
_RANK = re.compile(r"mp_rank_(\d{2,6}+)(?:_(\d{3,6}+))?(?:_(\d{3,6}+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST_LIST = 64 * 1024 * 1024  # bytes


class Megatron(Family):
    name = "megatron"
    precedence = 10
    about = About(
        title="Megatron-LM",
        recognised="directories `iter_0000100/` and `release/` with `*.distcp` files, `metadata.json` or `common.pt` "
                   "(torch_dist), or with `mp_rank_*/` (the older layout)",
        complete="torch_dist: `metadata.json`, and the shards and `.metadata` as for torch.distributed.checkpoint; if "
                 "`latest_checkpointed_iteration.txt` lies beside the directory, it must have come as far. Other layouts: "
                 "every file whole, ranks without gaps, and the tracker, written last, names this iteration or a later one",
        protected="what the tracker names: the trainer resumes from it",
        facts="step from the name; SHA-256 from `integrity.json`, for `inspect --verify`",
        forbidden_names=r"latest_checkpointed_iteration\.txt|iter_\d+|release",
        forbidden_because="the trainer overwrites the tracker, and takes such a directory for one of its own",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        iteration = _ITERATION.fullmatch(folder.name) is not None
        if not iteration and folder.name != "release":
            return
        if holds_shards(folder.files) or any(name.startswith("mp_rank_") for name in folder.folders) or (
                iteration and not folder.files.isdisjoint((MARKER, "common.pt"))):
            yield self.claim_folder(folder, folder.path.with_name(TRACKER))

    def examine(self, claim: Claim) -> Facts:
        top = claim.path
        reached, tracker = _reached(top)
        if any(_RANK.fullmatch(path.name) for path in top.iterdir()):
            verdict, proven = _ranks(top), False
        else:
            verdict, proven = _torch_dist(top), (top / MARKER).exists()
        if not verdict.whole:
            return self.incomplete(verdict.evidence)
        rest = judge_tree(top, besides=verdict.files)
        if not rest.whole:
            return self.incomplete(rest.evidence)
        if not (reached or (proven and tracker == "")):
            return self.incomplete(tracker or f"{verdict.evidence}, but {TRACKER}, which is written last, is missing")
        return Facts(
            format=self.name, complete=True, evidence="; ".join(filter(None, (tracker, verdict.evidence))),
            content_digest=True, fingerprint=fingerprint_of(verdict.files, top))

    def needed(self, folder: Folder) -> Iterable[tuple[Path, str]]:
        if TRACKER in folder.files and (name := _named(read_text(folder.path / TRACKER), folder.folders)):
            yield folder.path / name, f"{TRACKER} names it: Megatron resumes from it"

    def checksums(self, claim: Claim) -> Mapping[Path, str]:
        """What `integrity.json` lists. Raises OSError, ValueError."""
        try:
            document = read_json(claim.path / CHECKSUMS, _LARGEST_LIST)
        except FileNotFoundError:
            return {}
        listed = document.get("files") if isinstance(document, dict) else None
        if not isinstance(listed, dict) or document.get("algorithm", "sha256") != "sha256":
            raise ValueError(f"{CHECKSUMS} lists no SHA-256 sums")
        for name, digest in listed.items():
            if not lies_below(name) or not isinstance(digest, str) or not _SHA256.fullmatch(digest.lower()):
                raise ValueError(f"{CHECKSUMS}: {name[:200]!r} is no file of the checkpoint, or has no SHA-256 sum")
        return {claim.path / name: digest.lower() for name, digest in listed.items()}


def _torch_dist(top: Path) -> Verdict:
    """Raises OSError."""
    dcp = judge_dcp(top)
    if not dcp.whole:
        return Verdict(whole=False, evidence=dcp.evidence)
    if not (top / "common.pt").exists() and not (top / MARKER).exists():
        return Verdict(whole=True, evidence=dcp.evidence, files=dcp.files)  # the layout torch_dcp has neither
    for name in (MARKER, CHECKSUMS):
        try:
            part = look_json(top / name)
        except FileNotFoundError:
            if name == CHECKSUMS:
                break  # optional
            return Verdict(whole=False, evidence=f"{MARKER}, which is written after the shards, is missing")
        if not part.whole:
            return Verdict(whole=False, evidence=f"{name}: {part.evidence}")
    return Verdict(whole=True, evidence=f"{MARKER} is there; {dcp.evidence}", files=dcp.files)


def _ranks(top: Path) -> Verdict:
    """The older layout: one directory for each tensor-, pipeline- and expert-parallel rank. Raises OSError."""
    found = {path.name: match for path in top.iterdir() if (match := _RANK.fullmatch(path.name))}
    ranks = {tuple(int(n) for n in match.groups() if n is not None) for match in found.values()}
    if len({len(rank) for rank in ranks}) > 1:
        return Verdict(whole=False, evidence="directories of ranks of two layouts")
    sizes = [range(max(numbers) + 1) for numbers in zip(*ranks, strict=True)]
    total = 1
    for size in sizes:
        total *= len(size)
    if total != len(ranks):
        gap = next(rank for rank in product(*sizes) if rank not in ranks)
        return Verdict(whole=False, evidence=f"{len(ranks)} of {total} ranks; none of rank {'_'.join(map(str, gap))}")
    files = []
    for name in sorted(found):
        here = sorted(path for path in (top / name).iterdir() if path.name.endswith(".pt"))
        if not here:
            return Verdict(whole=False, evidence=f"{name} holds no file")
        for path in here:
            part = look(path)
            if not part.whole:
                return Verdict(whole=False, evidence=f"{name}/{path.name}: {part.evidence}")
        files += here
    count = "1 rank" if len(ranks) == 1 else f"{len(ranks)} ranks"
    return Verdict(whole=True, evidence=f"{count}, {len(files)} files, all whole", files=tuple(files))


def _reached(top: Path) -> tuple[bool, str]:
    """Has the tracker come as far as this directory, and what does it say? "" where there is none."""
    text = read_text(top.with_name(TRACKER))
    if not text:
        return False, f"{TRACKER} is empty" if top.with_name(TRACKER).exists() else ""
    own = _ITERATION.fullmatch(top.name)
    if own is None:
        reached = text in ("release", "0") or text.isdecimal()
    else:
        reached = text.isdecimal() and len(text) <= 18 and int(text) >= int(own[1])
    return reached, f"{TRACKER} says {text[:40]}" + ("" if reached else ": it is not yet that far")


def _named(text: str, folders: frozenset[str]) -> str:
    name = f"iter_{int(text):07d}" if text.isdecimal() and len(text) <= 18 else text
    return name if name in folders and (name == "release" or _ITERATION.fullmatch(name)) else ""
