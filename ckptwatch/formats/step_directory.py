"""Directories that are one step by their name, in a layout that nobody else knows. Asked after all other directories."""

import re
from collections.abc import Iterable
from pathlib import Path

from ckptwatch.core.naming import parse_name
from ckptwatch.formats.base import About, Claim, Family, Folder
from ckptwatch.formats.parts import fingerprint_of, look_json
from ckptwatch.formats.reading import read_text, whole_number
from ckptwatch.formats.step_names import holds_others, is_step, unfinished
from ckptwatch.formats.tree import WEIGHTS, files_below, judge_tree
from ckptwatch.model import Facts

MOST_SIBLINGS = 1000
# Written last by trainers that write one. Whether this one does, its other steps tell.
MARKERS = (
    "STABLE", "COMPLETE", "COMPLETED", ".complete", ".completed", "_SUCCESS", ".success", "DONE", ".done", "_COMMITTED",
)
_TENSORSTORE = frozenset({".zarray", "zarr.json", "manifest.ocdbt"})
_LEVANTER, _SPEECHBRAIN = "metadata.json", "CKPT.yaml"
# Where a step's weights lie if not directly in it.
_PARTS = frozenset({
    "model", "models", "weights", "pretrained_model", "module", "actor", "critic", "policy", "generator", "discriminator",
    "lora", "lora_weights", "adapter", "adapter_model", "ema", "model_ema",
    "ema_model", "state", "train_state", "training_state", "params", "hf", "huggingface", "hf_model", "optimizer", "optim",
    "dist_checkpoint", "distcp", "fsdp", "trainer", "backbone", "encoder", "decoder", "net", "tokenizer", "processor",
    "scheduler", "optimizers", "optimizer_state", "random_states", "rng", "rng_state", "dataloader", "data_state", "config",
    "default", "items", "metrics", "opt_state", "ema_params",
})
_AMBIGUOUS = (".npz", ".pkl", ".h5", ".hdf5", ".tar")  # samples are kept in such, too
_CERTAIN = (*(suffix for suffix in WEIGHTS if suffix not in _AMBIGUOUS), ".pth.tar", ".pt.tar")
_RANKS = re.compile(r"(?:mp_)?(?:rank|shard|worker|process|part|node)s?[-_]?\d{0,9}(?:[-_]\d{1,9}){0,3}", re.IGNORECASE)
_POINTERS = frozenset({"LATEST", "LOWEST_VAL", "latest", "latest.txt", "latest_checkpointed_iteration.txt"})
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4", ".wav", ".html")
_NO_MODELS = re.compile(r"samples?|images?|visuals?|vis|figures?|plots?|eval(?:s|uations?)?|outputs?|results?|predictions?|"
                        r"generated|videos?|logs?|tensorboard|media", re.IGNORECASE)
_LINE = re.compile(r"(?P<key>[A-Za-z][\w.-]{0,60}): (?P<value>-?\d{1,18}(?:\.\d{1,30})?(?:e[-+]?\d{1,3})?)")


class StepDirectory(Family):
    name = "step-directory"
    precedence = 58  # before sets of files and single ones
    about = About(
        title="Step directory",
        recognised="a directory whose name is a step, as `step_100/`, `epoch-3/`, `ep3-ba1200/`, `0002000.pt/`, `CKPT+…/`, "
                   "with files of weights in it or with such a part as `model/`; none that holds further steps, a `best`, a "
                   "`last` or directories that are no such part, and none below `samples/` and the like. `tmp-step_100/`, "
                   "`step_100.tmp/`, `step_100-tmp/`, `step_100.incomplete/` are steps that are being written",
        complete="every file of known structure in it is whole: torch, safetensors, indexes with their shards, "
                 "torch.distributed.checkpoint. A marker is required if another step beside it has one (`STABLE`, "
                 "`COMPLETE`, `.complete`, `_SUCCESS`, `DONE` and the like), and levanter's `metadata.json` beside arrays "
                 "of tensorstore. Otherwise the layout has no marker known to us, and time without changes must do",
        protected="what `LATEST`, `LOWEST_VAL`, `latest` or `latest_checkpointed_iteration.txt` beside it names",
        facts="step and epoch from the name; SpeechBrain: numbers in `CKPT.yaml`",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        if unfinished(folder.name):
            if folder.files or folder.folders:
                yield self.claim_folder(folder)
        elif is_step(folder.name) and _holds_weights(folder) and not holds_others(folder) and (
                all(name in _PARTS or _RANKS.fullmatch(name) for name in folder.folders)):
            yield self.claim_folder(folder)

    def examine(self, claim: Claim) -> Facts:
        top = claim.path
        if base := unfinished(top.name):
            return self.incomplete(f"temporary name of {base}: being written, or removed")
        tree = judge_tree(top)
        if not tree.whole:
            return self.incomplete(tree.evidence)
        if not any(path.name.endswith(WEIGHTS) or path.name in _TENSORSTORE for path in tree.files):
            return self.incomplete("no file of weights in it yet")
        marked, said = _marker(top)
        if not marked:
            return self.incomplete(f"{tree.evidence}, but {said}")
        counts, metrics = _speechbrain(top)
        return Facts(
            format=self.name, complete=True, evidence=f"{tree.evidence}; {said}", step=counts.get("step"),
            epoch=counts.get("epoch"), metrics=metrics, content_digest=True, fingerprint=fingerprint_of(tree.files, top))

    def needed(self, folder: Folder) -> Iterable[tuple[Path, str]]:
        for pointer in sorted(_POINTERS & folder.files):
            text = read_text(folder.path / pointer)
            for name in sorted(folder.folders):
                if is_step(name) and (name == text.rpartition("/")[2] or str(parse_name(name).step) == text):
                    yield folder.path / name, f"`{pointer}` names it: the trainer resumes from it, or takes it for its best"


def _holds_weights(folder: Folder) -> bool:
    if _NO_MODELS.fullmatch(folder.path.parent.name):
        return False
    if any(name.endswith(_CERTAIN) for name in folder.files) or not folder.folders.isdisjoint(_PARTS):
        return True
    if folder.name.startswith("CKPT+"):
        return True
    return any(name.endswith(_AMBIGUOUS) for name in folder.files) and not any(
        name.endswith(_PICTURES) for name in folder.files)


def _marker(top: Path) -> tuple[bool, str]:
    """Does it have the marker its trainer writes last, and which is that?"""
    own = next((name for name in MARKERS if (top / name).exists()), "")
    if own:
        return True, f"{own} is there"
    try:
        levanter = look_json(top / _LEVANTER)
    except OSError:
        levanter = None
    if any(path.name in _TENSORSTORE for path in files_below(top)):
        if levanter is None:
            return False, f"{_LEVANTER}, which is written last, is missing"
        return levanter.whole, f"{_LEVANTER}: {levanter.evidence}"
    for sibling in _siblings(top):
        for name in MARKERS:
            if (sibling / name).exists():
                return False, f"{name}, which {sibling.name} has, is missing"
    return True, "no marker known to us in this layout: nothing says that no file is to follow"


def _siblings(top: Path) -> list[Path]:
    found = []
    for path in top.parent.iterdir():
        if path.name != top.name and is_step(path.name):
            found.append(path)
        if len(found) >= MOST_SIBLINGS:
            break
    return found


def _speechbrain(top: Path) -> tuple[dict[str, int], dict[str, float]]:
    """The numbers that `CKPT.yaml` lists, one on each line."""
    counts: dict[str, int] = {}
    metrics: dict[str, float] = {}
    for line in read_text(top / _SPEECHBRAIN, 65536).splitlines():
        if match := _LINE.fullmatch(line.strip()):
            key, value = match["key"], match["value"]
            if key in ("step", "epoch"):
                number = whole_number(value)
                counts |= {} if number is None else {key: number}
            elif key != "unixtime":
                metrics[key] = float(value)
    return counts, metrics
