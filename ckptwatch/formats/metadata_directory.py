"""Directories with `checkpoint_metadata.json`: what was trained, on what and how, beside `.ckpt` files and `lora_weights/`.

Two layouts. A run's directory: each `.ckpt` in it is a checkpoint, the metadata and the adapter belong to all of them. Or
one directory for each checkpoint, named by step or epoch: then the directory is the checkpoint.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckptwatch.core.naming import parse_name
from ckptwatch.formats.base import About, Claim, Family, Folder
from ckptwatch.formats.parts import fingerprint_of, look
from ckptwatch.formats.pretrained import is_weights, judge_adapters, judge_weights, shown
from ckptwatch.formats.pretrained_tree import first_broken, is_run
from ckptwatch.formats.reading import is_name, numbers_in, read_json, whole_number
from ckptwatch.formats.step_names import names_one_state
from ckptwatch.formats.torch_zip import TorchZip
from ckptwatch.formats.tree import files_below
from ckptwatch.model import Facts

METADATA = "checkpoint_metadata.json"
LORA = "lora_weights"
# The metadata in it say what it is, so its name may say more than the step: `stage1_epoch3`.
_NAMED = re.compile(r".{1,100}?[-_.](?:epoch|step|iter)[-_=]?\d{1,18}", re.IGNORECASE)
_SUFFIXES = (".ckpt", ".pt", ".pth")


class MetadataDirectory(Family):
    name = "metadata-directory"
    precedence = 10
    about = About(
        title="Directory with checkpoint_metadata.json",
        recognised="a directory with `checkpoint_metadata.json`. Named by step, epoch or role (`stage1_epoch3/`), it is "
                   "one checkpoint; else it is a run's, and each `.ckpt` file in it is one. `lora_weights/` beside the "
                   "metadata belongs to all of them and is never a checkpoint of its own",
        complete="a `.ckpt` as any file of `torch.save`. A directory: the metadata can be read, there are weights, every "
                 "file with a structure is whole, and `lora_weights/` is there with its `adapter_config.json` if the "
                 "metadata says `use_lora`",
        protected="`checkpoint_metadata.json` and `lora_weights/` of a run: they are no part of any one checkpoint",
        facts="stage and experiment from the metadata are part of the evidence. Step, epoch and metrics from the metadata "
              "where it speaks of this checkpoint: of the directory it lies in, of the file it calls `source_checkpoint`, "
              "or of one with the same step or epoch; else from the file and its name",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        if METADATA not in folder.files:
            return
        if (names_one_state(folder.name) or _NAMED.fullmatch(folder.name)) and not folder.is_root and not is_run(folder):
            yield self.claim_folder(folder)
            return
        for name in sorted(folder.files):
            if name.endswith(".ckpt"):
                yield self.claim_files(folder, name)
        if LORA in folder.folders:
            yield replace(self.claim_files(folder, LORA), aside=True)

    def examine(self, claim: Claim) -> Facts:
        if claim.aside or claim.path.name == LORA:
            return self.incomplete(f"the adapter of the checkpoints beside it, which {METADATA} describes; none itself")
        return self._directory(claim.path) if claim.whole else self._file(claim)

    def _file(self, claim: Claim) -> Facts:
        facts = replace(TorchZip().examine(claim), format=self.name)
        try:
            metadata = _read(claim.path.with_name(METADATA))
        except (OSError, ValueError):
            return facts  # it describes the run; the file is whole without it
        facts = replace(facts, evidence=f"{facts.evidence}{_described(metadata)}")
        return _told(facts, metadata) if facts.complete and _speaks_of(metadata, claim.path.name, facts) else facts

    def _directory(self, top: Path) -> Facts:
        try:
            metadata = _read(top / METADATA)
            files = files_below(top)
            weights = _weights(top, files, bool(_entry(metadata, "training_config").get("use_lora")))
            if evidence := first_broken(top, files):
                raise ValueError(evidence)
        except FileNotFoundError as error:
            return self.incomplete(f"{Path(error.filename or METADATA).name} is missing")
        except ValueError as error:
            return self.incomplete(str(error))
        evidence = f"{METADATA} readable, {len(files)} files whole{_described(metadata)}"
        facts = Facts(format=self.name, complete=True, evidence=evidence, content_digest=True,
                      fingerprint=fingerprint_of(weights, top))
        return _told(facts, metadata)


def _read(path: Path) -> Mapping[str, Any]:
    """Raises OSError; ValueError, in words."""
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: no mapping")
    return content


def _weights(top: Path, files: list[Path], adapted: bool) -> list[Path]:
    """All files that hold weights. Raises ValueError, in words, for the first thing that is missing or broken."""
    names = frozenset(path.name for path in files if path.parent == top)
    inside = frozenset(path.name for path in files if path.parent == top / LORA)
    weights = [top / name for name in sorted(names) if name.endswith(_SUFFIXES)]
    if any(map(is_weights, names)):
        verdict = judge_weights(top, names)
        if not verdict.whole:
            raise ValueError(verdict.evidence)
        weights += verdict.files
    if inside:
        verdict = judge_weights(top / LORA, inside)
        evidence = "" if verdict.whole else verdict.evidence
        if evidence := evidence or judge_adapters(top / LORA, inside):
            raise ValueError(f"{LORA}/{evidence}")
        weights += verdict.files
    elif adapted:
        raise ValueError(f"{LORA}/ is missing, while {METADATA} says use_lora")
    if not weights:
        raise ValueError(f"{METADATA}, and no weights yet")
    for path in weights:
        part = look(path)
        if not part.whole:
            raise ValueError(f"{shown(path.relative_to(top))}: {part.evidence}")
    return weights


def _entry(metadata: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = metadata.get(key)
    return value if isinstance(value, dict) else {}


def _described(metadata: Mapping[str, Any]) -> str:
    """Stage and experiment, as further words of the evidence."""
    said = [f"{word} {metadata[key]}" for key, word in (("stage", "stage"), ("experiment_name", "experiment"))
            if is_name(metadata.get(key))]
    return f"; {', '.join(said)}" if said else ""


def _counts(metadata: Mapping[str, Any]) -> tuple[int | None, int | None]:
    return whole_number(metadata.get("step", metadata.get("global_step"))), whole_number(metadata.get("epoch"))


def _speaks_of(metadata: Mapping[str, Any], name: str, facts: Facts) -> bool:
    """Metadata of a run is about one of its checkpoints only where it says so."""
    if metadata.get("source_checkpoint") == name:
        return True
    step, epoch = _counts(metadata)
    said = parse_name(name)
    own_step = facts.step if said.step is None else said.step
    own_epoch = facts.epoch if said.epoch is None else said.epoch
    pairs = [(own, told) for own, told in ((own_step, step), (own_epoch, epoch)) if own is not None and told is not None]
    return bool(pairs) and all(own == told for own, told in pairs)


def _told(facts: Facts, metadata: Mapping[str, Any]) -> Facts:
    step, epoch = _counts(metadata)
    return replace(
        facts, step=facts.step if step is None else step, epoch=facts.epoch if epoch is None else epoch,
        metrics={**facts.metrics, **numbers_in(_entry(metadata, "metrics"))})
