"""What Accelerate's `save_state` writes, alone or in the training scripts of diffusers and transformers.

There is no end marker: model, optimizer, scheduler, sampler, scaler, `random_states_<rank>.pkl`, then registered objects, as
far as the training has them. All that can be asked is that the parts are whole and that the random states are there.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from ckptwatch.formats import hf_trainer
from ckptwatch.formats.base import About, Claim, Family, Folder
from ckptwatch.formats.diffusers_pipeline import COMPONENTS, variants_of
from ckptwatch.formats.parts import fingerprint_of
from ckptwatch.formats.pretrained import is_weights
from ckptwatch.formats.pretrained_tree import first_broken, first_gap, is_fsdp, is_run, judge_all_weights
from ckptwatch.formats.reading import whole_number
from ckptwatch.formats.step_names import names_one_state
from ckptwatch.formats.torch_zip import look_torch
from ckptwatch.formats.tree import files_below
from ckptwatch.model import Facts

_STATES = re.compile(r"random_states_(\d{1,6}+)\.pkl")
_OWN = re.compile(
    r"(?:model|pytorch_model)(?:_\d{1,2})?\.(?:safetensors|bin)|(?:optimizer|scheduler|sampler|dl_state_dict)(?:_\d{1,2})?\.bin"
    r"|(?:random_states|custom_checkpoint)_\d{1,6}\.pkl|scaler\.pt")
_NUMBERED = re.compile(r"(?P<stem>model|pytorch_model|optimizer|scheduler)(?:_(?P<number>\d{1,2}))?\.(?:safetensors|bin)")
_MARKS = frozenset({"random_states_0.pkl", "optimizer.bin", "scheduler.bin", "sampler.bin", "dl_state_dict.bin"})
_SCRIPT = frozenset({"pytorch_lora_weights.safetensors", "model_1.safetensors", "pytorch_model_1.bin"})
_NAME = re.compile(r"checkpoint[-_]\d{1,18}+")
_DEEPSPEED = "pytorch_model"  # the tag that Accelerate gives DeepSpeed
_STEP_KEYS = ("global_step", "step", "completed_steps")
_EPOCH_KEYS = ("epoch", "current_epoch", "starting_epoch")


class AccelerateState(Family):
    name = "accelerate"
    precedence = 14
    about = About(
        title="Accelerate save_state, diffusers scripts",
        recognised="a directory `checkpoint_<n>` or `checkpoint-<step>` with `random_states_*.pkl`, `optimizer.bin`, "
                   "`model.safetensors`, `unet/`, `pytorch_lora_weights.safetensors`, …; one that is named by step, epoch "
                   "or role and holds such; elsewhere these files together, beside `random_states_0.pkl`",
        complete="the weights and every other file are whole, and the random states of no rank below the highest one are "
                 "missing. Nothing marks the end of a save, so objects registered for checkpointing, written last, may "
                 "still be to come: only time without changes speaks against it",
        facts="step from the name `checkpoint-<step>`; `checkpoint_<n>` counts saves, so its step is what a registered "
              "object calls `global_step` or `step`, else unknown; `unet_ema/` beside `unet/` makes two variants",
        forbidden_names=r".*",
        forbidden_because="with automatic naming and a limit, `save_state` raises IndexError in training on any entry of "
                          "`checkpoints/` without a digit; the scripts of diffusers take the number of whatever is called "
                          "`checkpoint*` and raise ValueError where there is none",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        if folder.files & hf_trainer.MARKS:
            return
        marked = bool(folder.files & _MARKS)
        if _NAME.fullmatch(folder.name):
            if _is_save(folder, marked) and not any(map(_NAME.fullmatch, folder.folders)):
                yield self.claim_folder(folder)
        elif marked and names_one_state(folder.name) and not folder.is_root and not is_run(folder):
            yield self.claim_folder(folder)
        elif "random_states_0.pkl" in folder.files:
            own = sorted(name for name in folder.files if _OWN.fullmatch(name))
            yield self.claim_files(folder, next(filter(is_weights, own), "random_states_0.pkl"), *own)

    def examine(self, claim: Claim) -> Facts:
        counts = claim.whole and claim.path.name.startswith("checkpoint_")
        top = claim.path if claim.whole else claim.path.parent
        try:
            return self._judged(top, files_below(top) if claim.whole else list(claim.members), counts)
        except ValueError as error:
            return Facts(format=self.name, complete=False, evidence=str(error), name_counts_saves=counts)

    def _judged(self, top: Path, files: list[Path], counts: bool) -> Facts:
        """Raises ValueError, in words, for the first thing that is missing or broken."""
        names = frozenset(path.name for path in files if path.parent == top)
        weights = judge_all_weights(top, files)
        ranks = {int(match[1]) for name in names if (match := _STATES.fullmatch(name))}
        if not ranks:
            raise ValueError(f"{weights.evidence}; no random_states_0.pkl, which Accelerate writes after the weights")
        if not weights.whole:
            raise ValueError(weights.evidence)
        if gap := first_gap(ranks):
            raise ValueError(f"random_states_{gap}.pkl is missing, while rank {max(ranks)} has written its own")
        if evidence := _missing_number(names) or first_broken(top, files, besides=weights.files):
            raise ValueError(evidence)
        step, epoch = _counted([path for path in files if path.name.startswith("custom_checkpoint_") and path.parent == top])
        processes = f"{len(ranks)} process{'es' if len(ranks) > 1 else ''}"
        evidence = f"{weights.evidence}; random states of {processes}; {len(files)} files; Accelerate writes no end marker"
        emas = {path.parent.name for path in files if path.parent.name.endswith("_ema") and path.parent.parent == top}
        return Facts(
            format=self.name, complete=True, evidence=evidence, step=step, epoch=epoch,
            fingerprint=fingerprint_of(weights.files, top), content_digest=True, name_counts_saves=counts,
            variants=variants_of(ema for ema in emas if (top / ema.removesuffix("_ema")).is_dir()))


def _is_save(folder: Folder, marked: bool) -> bool:
    """Could save_state have begun this directory, and Trainer not?"""
    if marked or folder.files & _SCRIPT or any(map(_STATES.fullmatch, folder.files)):
        return True
    if folder.folders & COMPONENTS or _DEEPSPEED in folder.folders:
        return True
    underscore = folder.name.startswith("checkpoint_")
    return underscore and "config.json" not in folder.files and (
        any(map(is_weights, folder.files)) or any(map(is_fsdp, folder.folders)))


def _missing_number(names: Iterable[str]) -> str:
    """`optimizer_1.bin` without `optimizer.bin`, as while a directory is being removed; "" if there is no such gap."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            numbers.setdefault(match["stem"], set()).add(int(match["number"] or 0))
    return next((f"{stem} number {gap} is missing, while number {max(there)} is there"
                 for stem, there in sorted(numbers.items()) if (gap := first_gap(there))), "")


def _counted(objects: Iterable[Path]) -> tuple[int | None, int | None]:
    """Step and epoch, where a registered object holds them. Raises OSError."""
    step = epoch = None
    for path in objects:
        content = look_torch(path).content
        if isinstance(content, dict):
            step = next((n for k in _STEP_KEYS if (n := whole_number(content.get(k))) is not None), step)
            epoch = next((n for k in _EPOCH_KEYS if (n := whole_number(content.get(k))) is not None), epoch)
    return step, epoch
