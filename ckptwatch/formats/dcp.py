"""torch.distributed.checkpoint: torchtitan, FSDP scripts, torchtnt, Composer's sharded checkpoints, OLMo-core."""

import re
from collections.abc import Iterable
from pathlib import Path

from ckptwatch.formats.base import About, Claim, Family, Folder
from ckptwatch.formats.dcp_shards import DcpVerdict, holds_shards, judge_dcp, shards_among
from ckptwatch.formats.parts import fingerprint_of, look_json
from ckptwatch.formats.step_names import holds_others, is_step
from ckptwatch.formats.tree import judge_tree
from ckptwatch.model import Facts

_OLMO = re.compile(r"step\d{1,18}")
_OLMO_PARTS = frozenset({"model_and_optim", "train"})
_OLMO_MARKER = ".metadata.json"
_RANK = re.compile(r"rank(\d{1,9}+)\.pt")
_NO_MODEL = re.compile(r"optim(?:izer)?s?(?:_\d{1,9}+)?")  # what FSDP and Accelerate save beside the model


class DistributedCheckpoint(Family):
    name = "dcp"
    precedence = 50
    about = About(
        title="torch.distributed.checkpoint",
        recognised="a directory that holds `*.distcp` files (torchtitan `step-N/`, torchtnt `epoch_E_train_step_S/`, "
                   "Composer `epE-baB/`, FSDP scripts under any name), unless it is called `optimizer`; OLMo-core `stepN/` "
                   "with `model_and_optim/` or `train/`",
        complete="`.metadata`, renamed into place after the shards, can be read; every shard it refers to is there, has "
                 "exactly the length it describes and ends with the end of a record; no `.metadata.tmp`; other files in the "
                 "directory whole. A save over an older one shows by these lengths alone until its own `.metadata` is "
                 "there. OLMo-core: moreover `.metadata.json`, written last, and `train/rank0.pt`",
        facts="step and epoch from the name; variants are the outermost keys of the state dict that are no optimizer's",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        if (self._is_olmo(folder) or self._holds_shards(folder)) and not holds_others(folder):
            yield self.claim_folder(folder)

    @staticmethod
    def _is_olmo(folder: Folder) -> bool:
        return not _OLMO_PARTS.isdisjoint(folder.folders) and _OLMO.fullmatch(folder.name) is not None

    @staticmethod
    def _holds_shards(folder: Folder) -> bool:
        if not holds_shards(folder.files) or _NO_MODEL.fullmatch(folder.name):
            return False
        # Other programs have a `.metadata`, too. Without shards it is what a removal has left of a step.
        return is_step(folder.name) or shards_among(folder.files)

    def examine(self, claim: Claim) -> Facts:
        top = claim.path
        if _OLMO.fullmatch(top.name) and any((top / part).is_dir() for part in _OLMO_PARTS):
            return self._olmo(top)
        verdict = judge_dcp(top)
        return self._judged(top, verdict, verdict.evidence)

    def _olmo(self, top: Path) -> Facts:
        try:
            marker = look_json(top / _OLMO_MARKER)
        except FileNotFoundError:
            return self.incomplete(f"{_OLMO_MARKER}, which is written last, is missing")
        if not marker.whole:
            return self.incomplete(f"{_OLMO_MARKER}: {marker.evidence}")
        try:
            verdict = judge_dcp(top / "model_and_optim")
            ranks = {int(m[1]) for p in (top / "train").iterdir() if (m := _RANK.fullmatch(p.name))}
        except FileNotFoundError as error:
            return self.incomplete(f"{Path(error.filename).name} is missing")
        gaps = sorted({*range(len(ranks) or 1)} - ranks)
        if gaps:
            return self.incomplete(f"train/rank{gaps[0]}.pt is missing")
        return self._judged(top, verdict, f"{_OLMO_MARKER} is there; model_and_optim: {verdict.evidence}")

    def _judged(self, top: Path, verdict: DcpVerdict, evidence: str) -> Facts:
        if not verdict.whole:
            return self.incomplete(evidence)
        rest = judge_tree(top, besides=verdict.files)
        if not rest.whole:
            return self.incomplete(rest.evidence)
        return Facts(format=self.name, complete=True, evidence=evidence, variants=verdict.variants, content_digest=True,
                     fingerprint=fingerprint_of(verdict.files, top))
