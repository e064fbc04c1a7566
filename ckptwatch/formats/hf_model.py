"""Models and adapters as `save_pretrained` writes them: `config.json` first, then weights, of shards the index last; an
adapter before its `adapter_config.json`."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from ckptwatch.core.naming import parse_name
from ckptwatch.formats.base import About, Claim, Family, Folder
from ckptwatch.formats.parts import fingerprint_of
from ckptwatch.formats.pretrained import indexes_among, is_saved_model, weights_among
from ckptwatch.formats.pretrained_tree import first_broken, is_run, judge_all_weights
from ckptwatch.formats.step_names import names_one_state
from ckptwatch.formats.trainer_state import STATE, TrainerState, read_state
from ckptwatch.formats.tree import files_below
from ckptwatch.model import Facts

_TELLING = frozenset({"config.json", "adapter_model.safetensors", "adapter_model.bin"})
_CONFIGURATION = frozenset({"config.json", "generation_config.json", "adapter_config.json"})
LORA = "lora_weights"


class HfModel(Family):
    name = "hf-model"
    precedence = 40
    about = About(
        title="save_pretrained: model or adapter",
        recognised="`config.json` with `model.safetensors`, `pytorch_model.bin`, `diffusion_pytorch_model.safetensors` or "
                   "their shards; `adapter_model.safetensors`. The directory, if it is named by step, epoch or role "
                   "(`epoch_3/`, `final_model/`) and no further checkpoints lie in it; else these files together, called "
                   "by their weights, because the directory is a run's",
        complete="the weights are whole, with all shards of the index; `config.json` or `adapter_config.json` can be "
                 "read; in a directory of its own every other file with a structure is whole",
        facts="step and epoch from the name; from `trainer_state.json`, if there is one, also what was logged",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        if not folder.files & _TELLING:
            return
        weights = [name for name in weights_among(folder.files) if _has_company(name, folder) and not _is_of_a_step(name)]
        if not weights:
            return
        if names_one_state(folder.name) and not folder.is_root and not is_run(folder):
            yield self.claim_folder(folder)
            return
        files = self.claim_files(folder, *weights, *indexes_among(folder.files), *(folder.files & _CONFIGURATION))
        # The adapter of the checkpoints beside this directory, whose checkpoint_metadata.json may still be to come.
        yield replace(files, aside=folder.name == LORA)

    def examine(self, claim: Claim) -> Facts:
        try:
            return self._judged(claim)
        except ValueError as error:
            return self.incomplete(str(error))

    def _judged(self, claim: Claim) -> Facts:
        """Raises ValueError, in words, for the first thing that is missing or broken."""
        top = claim.path if claim.whole else claim.path.parent
        files = files_below(top) if claim.whole else list(claim.members)
        names = frozenset(path.name for path in files if path.parent == top)
        weights = judge_all_weights(top, files)
        if not weights.whole:
            raise ValueError(weights.evidence)
        if not names & {"config.json", "adapter_config.json"}:
            raise ValueError("config.json is missing")
        if evidence := first_broken(top, files, besides=weights.files):
            raise ValueError(evidence)
        state = TrainerState()
        if STATE in names:
            with suppress(ValueError):  # a copy of a run's last state says something about the weights, and proves nothing
                state = read_state(top / STATE)
        return Facts(
            format=self.name, complete=True, evidence=f"{weights.evidence}; configuration readable", step=state.step,
            epoch=state.epoch, metrics=state.metrics, fingerprint=fingerprint_of(weights.files, top), content_digest=True)


def _is_of_a_step(name: str) -> bool:
    """`model.step_100.safetensors` is a checkpoint of its own."""
    facts = parse_name(name)
    return facts.step is not None or facts.epoch is not None


def _has_company(name: str, folder: Folder) -> bool:
    """Weights that are a model's with the configuration beside them. `model_1` and FSDP's are no work of save_pretrained."""
    if name.startswith("adapter_model"):
        return True
    return "config.json" in folder.files and is_saved_model(name)
