"""Sets of files of one step that are one checkpoint: the model and what is needed to train on from it.

The grammar is small on purpose: to take two checkpoints for one would remove both where one is meant.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ckptwatch.formats.base import About, Claim, Family, Folder, Reading, list_folder
from ckptwatch.formats.neighbours import expected_kinds, lacking
from ckptwatch.formats.parts import fingerprint_of, look
from ckptwatch.formats.torch_content import plain_reading
from ckptwatch.model import Facts

_TORCH = r"(?:pt|pth|ckpt|bin)"
_WEIGHTS = r"(?:pt|pth|ckpt|bin|safetensors)"


@dataclass(frozen=True)
class _Grammar:
    """Names of one set: all contain the same `group`, which ends with the step."""

    leading: re.Pattern[str]
    beside: re.Pattern[str]
    weights: re.Pattern[str]  # which of them hold weights


def _grammar(leading: str, beside: str, weights: str) -> _Grammar:
    return _Grammar(re.compile(leading), re.compile(beside), re.compile(weights))


_GRAMMARS = (
    # nanochat, and what many write by hand
    _grammar(
        rf"(?:model|weights|checkpoint|ckpt)(?P<group>[-_]\d{{1,12}}+)\.{_WEIGHTS}",
        rf"(?:(?:optimizer|optim|opt|scheduler|scaler)(?P<group>[-_]\d{{1,12}}+)(?:_rank\d{{1,6}}+)?\.{_TORCH}"
        rf"|(?:meta|metadata|state|trainer_state|training_state)(?P<group2>[-_]\d{{1,12}}+)\.(?:json|{_TORCH})"
        rf"|(?:ema|model_ema)(?P<group3>[-_]\d{{1,12}}+)\.{_WEIGHTS})",
        r"(?:model|weights|checkpoint|ckpt|ema).*",
    ),
    # guided-diffusion
    _grammar(
        r"model(?P<group>\d{6})\.pt",
        r"(?:opt(?P<group>\d{6})|ema_0\.\d{1,9}_(?P<group2>\d{6}))\.pt",
        r"(?:model|ema).*",
    ),
    # VITS: generator and discriminator
    _grammar(r"G(?P<group>_\d{1,12}+)\.pth", r"D(?P<group>_\d{1,12}+)\.pth", r"G.*"),
    # Composer: one file for each rank
    _grammar(
        r"(?P<group>ep\d{1,9}+-ba\d{1,12}+)-rank0\.pt",
        r"(?P<group>ep\d{1,9}+-ba\d{1,12}+)-rank[1-9]\d{0,5}\.pt",
        r".*",
    ),
)
_BEGINNINGS = ("model", "weights", "checkpoint", "ckpt", "opt", "scheduler", "scaler", "meta", "state", "trainer_state",
               "training_state", "ema", "G_", "D_", "ep")
# Of these every set has one; in most directories there is none, and nothing more has to be looked at.
_COMPANIONS = ("model_ema", *(b for b in _BEGINNINGS if b not in ("model", "weights", "checkpoint", "ckpt", "G_")))
_STEP = re.compile(r"\d{1,12}$")
_RANK = re.compile(r"(?P<stem>.*[-_]rank)(?P<rank>\d{1,6})\..*")


@dataclass
class _Set:
    leading: dict[str, str] = field(default_factory=dict)  # kind, such as "optim*_rank0.pt" → name
    beside: dict[str, str] = field(default_factory=dict)

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(self.leading | self.beside)


# The grammar's number and the group's text → the set.
_Sets = dict[tuple[int, str], _Set]


class FileSets(Family):
    name = "file-set"
    precedence = 70
    about = About(
        title="Sets of files of one step",
        recognised="`model_000100.pt` with `meta_000100.json` and `optim_000100_rank0.pt` (nanochat); "
                   "`model-100.safetensors` with `optimizer-100.pt` and `state-100.json`; `model000100.pt` with "
                   "`ema_0.9999_000100.pt` and `opt000100.pt` (guided-diffusion); `G_1000.pth` with `D_1000.pth` (VITS); "
                   "`ep3-ba1200-rank0.pt` with `-rank1.pt` … (Composer). A file that has no companion, nor had one at the "
                   "steps before, is a checkpoint of its own",
        complete="every file is whole, ranks are without gaps, and no kind of file is missing that the two steps before "
                 "have; at the first step, nothing tells how many more files will come",
        facts="the step from the names; epoch, metrics and variants from the model's file; metrics also from floats in "
              "`meta_*.json` and `state-*.json`",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        if not any(name.startswith(_COMPANIONS) for name in folder.files):
            return
        sets = _sets(folder.files)
        if not any(s.beside for s in sets.values()):
            return
        unfinished = _unfinished(sets)
        for key, found in sets.items():
            if len(found.leading) == 1 and (found.beside or key in unfinished):
                yield self.claim_files(folder, *found.leading.values(), *found.beside.values())
            elif not found.leading and any(_RANK.fullmatch(kind) and kind.startswith("*") for kind in found.beside):
                yield self.claim_files(folder, *sorted(found.beside.values()))

    def examine(self, claim: Claim) -> Facts:
        (key, found), = _sets(m.name for m in claim.members).items()
        kinds = _kinds(_sets_in(claim.path.parent, claim.path.parent.stat().st_mtime_ns), key)
        if evidence := _gap(found.kinds) or lacking(kinds, _step(key), found.kinds):
            return self.incomplete(evidence)
        metrics: dict[str, float] = {}
        reading = Reading()
        for member in claim.members:
            part = look(member)
            if not part.whole:
                return self.incomplete(f"{member.name}: {part.evidence}")
            if member == claim.path:
                reading = plain_reading(part.content)
            elif member.suffix == ".json":
                metrics |= plain_reading(part.content).metrics
        weights = [m for m in claim.members if _GRAMMARS[key[0]].weights.fullmatch(m.name)]
        return Facts(
            format=self.name, complete=True, evidence=f"all {len(claim.members)} files of the step are whole",
            step=_step(key), epoch=reading.epoch, metrics={**metrics, **reading.metrics}, variants=reading.variants,
            fingerprint=fingerprint_of(weights, claim.path.parent), content_digest=True,
        )


@lru_cache(maxsize=4)  # a thousand sets in one directory ask one after the other
def _sets_in(directory: Path, mtime_ns: int) -> _Sets:
    """The sets in a directory as it is since `mtime_ns`. Raises OSError."""
    return _sets(list_folder(directory).files)


def _sets(files: Iterable[str]) -> _Sets:
    sets: _Sets = {}
    for name in sorted(n for n in files if n.startswith(_BEGINNINGS)):
        for number, grammar in enumerate(_GRAMMARS):
            if match := grammar.leading.fullmatch(name):
                leads = True
            elif match := grammar.beside.fullmatch(name):
                leads = False
            else:
                continue
            group = next(filter(None, match.groups()))
            begin, end = match.span(match.lastgroup or "group")
            found = sets.setdefault((number, group), _Set())
            (found.leading if leads else found.beside)[f"{name[:begin]}*{name[end:]}"] = name
    return sets


def _step(key: tuple[int, str]) -> int:
    found = _STEP.search(key[1])
    return int(found[0]) if found else 0


def _kinds(sets: _Sets, like: tuple[int, str]) -> Mapping[int, frozenset[str]]:
    """Step → kinds, of the sets that are named alike."""
    return {_step(key): found.kinds for key, found in sets.items() if key[0] == like[0] and key[1][:1] == like[1][:1]}


def _unfinished(sets: _Sets) -> set[tuple[int, str]]:
    """The sets that so far are only a model, while the steps before have more."""
    unfinished = set()
    for like in {(key[0], key[1][:1]): key for key in sets}.values():
        kinds = _kinds(sets, like)
        expected, first = expected_kinds(kinds), min(kinds)
        unfinished |= {key for key in sets if key[0] == like[0] and key[1][:1] == like[1][:1]
                       and _step(key) != first and expected[_step(key)] - sets[key].kinds}
    return unfinished


def _gap(kinds: Iterable[str]) -> str:
    """Evidence of ranks that are missing below those that are there."""
    ranks: dict[str, set[int]] = {}
    for kind in kinds:
        if found := _RANK.fullmatch(kind):
            ranks.setdefault(found["stem"], set()).add(int(found["rank"]))
    for stem, there in ranks.items():
        missing = sorted(set(range(max(there))) - there)
        if missing:
            return f"rank {missing[0]} of {stem.replace('*', '…')} is missing, {len(there)} others are there"
    return ""
