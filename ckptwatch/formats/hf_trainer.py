"""Directories `checkpoint-<step>` of the Hugging Face Trainer.

`trainer_state.json` comes last on rank 0, but rotation removes a directory in any order, and other ranks write their random
states when they get there. So the state alone proves nothing: the weights and all other files are looked at as well.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ckptwatch.core.naming import parse_name
from ckptwatch.formats.base import About, Claim, Family, Folder
from ckptwatch.formats.parts import fingerprint_of
from ckptwatch.formats.pretrained import is_pretrained
from ckptwatch.formats.pretrained_tree import first_broken, first_gap, is_fsdp, judge_all_weights
from ckptwatch.formats.trainer_state import STATE, TrainerState, read_state
from ckptwatch.formats.tree import files_below
from ckptwatch.model import Facts

NAME = re.compile(r"(?P<tmp>tmp-)?checkpoint-\d{1,18}+")
# Any of these is written by Trainer and by nobody else into such a directory.
MARKS = frozenset({STATE, "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth"})
_RNG = re.compile(r"rng_state_(\d{1,6}+)\.pth")
_GLOBAL_STEP = re.compile(r"global_step\d{1,18}+")
_UNDECIDED = "neither trainer_state.json (Trainer) nor random_states_0.pkl (Accelerate) is there yet"
_TRIES = 3  # states read to find one that is whole


class HfTrainer(Family):
    name = "hf-trainer"
    precedence = 16
    about = About(
        title="Hugging Face Trainer",
        recognised="a directory `checkpoint-<step>` with files of Trainer: `trainer_state.json`, `config.json`, weights, "
                   "adapters, `optimizer.pt`, `rng_state*.pth`, `global_step*/`, `pytorch_model_fsdp_0/`; also "
                   "`tmp-checkpoint-<step>`",
        complete="`trainer_state.json`, last on rank 0, can be read; the weights are whole: all shards of the index, an "
                 "adapter with its `adapter_config.json`; every other file with a structure is whole; no rank below the "
                 "highest one lacks its `rng_state`. `tmp-checkpoint-<step>` never is complete",
        protected="the directory that `best_model_checkpoint` of the newest `trainer_state.json` names: with "
                  "`load_best_model_at_end` or `save_total_limit=1` Trainer fails at the end without it",
        facts="step from the name, epoch from `trainer_state.json`, metrics from its `log_history`: what was logged at "
              "this step, and the latest training loss before it",
        forbidden_names=r"checkpoint.*",
        forbidden_because="rotation goes by file time over `checkpoint-*`: with a link `checkpoint-best` beside them it "
                          "counted that one and deleted others, the best among them",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        match = NAME.fullmatch(folder.name)
        if match is None or any(map(NAME.fullmatch, folder.folders)):
            return  # a directory with further steps in it is a run, whatever it is called
        temporary = match["tmp"] is not None
        if any(map(_belongs, folder.files)) or any(map(_belongs_as_folder, folder.folders)) or (temporary and folder.files):
            yield self.claim_folder(folder)

    def examine(self, claim: Claim) -> Facts:
        match = NAME.fullmatch(claim.path.name)
        if match is not None and match["tmp"]:
            return self.incomplete("Trainer gives it its name without `tmp-` when it is whole")
        try:
            return self._judged(claim.path)
        except ValueError as error:
            return self.incomplete(str(error))

    def _judged(self, top: Path) -> Facts:
        """Raises ValueError, in words, for the first thing that is missing or broken."""
        files = files_below(top)
        names = frozenset(path.name for path in files if path.parent == top)
        weights = judge_all_weights(top, files)
        if STATE not in names:
            missing = _UNDECIDED if not names & MARKS else f"{STATE}, which is written last, is missing"
            raise ValueError(f"{weights.evidence}; {missing}")
        if not weights.whole:
            raise ValueError(weights.evidence)
        state = read_state(top / STATE)
        if evidence := first_broken(top, files, besides=(*weights.files, top / STATE)) or _missing_rank(names):
            raise ValueError(evidence)
        evidence = f"{STATE} of step {state.step} after {weights.evidence}"
        named = parse_name(top.name).step
        if named is not None and state.step is not None and named != state.step:
            evidence = f"{STATE} says step {state.step}, the name {named}: the name counts; {weights.evidence}"
        return Facts(
            format=self.name, complete=True, evidence=evidence, step=state.step, epoch=state.epoch, metrics=state.metrics,
            fingerprint=fingerprint_of(weights.files, top), content_digest=True)

    def needed(self, folder: Folder) -> Iterable[tuple[Path, str]]:
        there = frozenset(name for name in folder.folders if name.startswith("checkpoint-") and NAME.fullmatch(name))
        if there:
            newest = max(there, key=lambda name: int(name.rpartition("-")[2]))
            yield folder.path / newest, "the highest step: Trainer resumes from it"
        for name, state in _states(folder.path, there).items():
            for best in sorted(_best(state, folder, there)):
                yield best, f"{STATE} of {name} names it as the best; Trainer fails at the end without it"


def _belongs(name: str) -> bool:
    """Other files than these, `model.pt` alone, do not make it one of ours."""
    return name in MARKS or _RNG.fullmatch(name) is not None or is_pretrained(name)


def _belongs_as_folder(name: str) -> bool:
    return is_fsdp(name) or _GLOBAL_STEP.fullmatch(name) is not None


def _missing_rank(names: frozenset[str]) -> str:
    """Other ranks may write their random states later than rank 0 its trainer state."""
    ranks = {int(match[1]) for name in names if (match := _RNG.fullmatch(name))}
    gap = first_gap(ranks)
    return f"rng_state_{gap}.pth is missing, while rank {max(ranks)} has written its own" if gap else ""


def _states(run: Path, names: Iterable[str]) -> dict[str, TrainerState]:
    """Of the highest step, and last written: in a run that started over they differ. Where one cannot be read, because it is
    being written or removed, the one before."""
    written: list[tuple[int, int, str]] = []
    for name in names:
        with suppress(OSError):
            written.append(((run / name / STATE).stat().st_mtime_ns, int(name.rpartition("-")[2]), name))
    found: dict[str, TrainerState] = {}
    for order in (sorted(written, key=lambda w: w[1], reverse=True), sorted(written, reverse=True)):
        for _, _, name in order[:_TRIES]:
            with suppress(OSError, ValueError):
                found[name] = found[name] if name in found else read_state(run / name / STATE)
                break
    return found


def _best(state: TrainerState, folder: Folder, there: frozenset[str]) -> set[Path]:
    """The directory the trainer calls its best: where it says, and under that name in this run, which may have moved."""
    path = Path(state.best)
    best = {folder.path / path.name} if path.name in there else set()
    with suppress(OSError):  # it may lie in a home that we may not look into
        if path.is_absolute() and path.is_dir():
            best.add(path)
    return best

