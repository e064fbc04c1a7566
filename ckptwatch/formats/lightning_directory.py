"""Lightning checkpoints that are directories: `*.ckpt/`, sharded by FSDP or written by DeepSpeed."""

from collections.abc import Iterable
from pathlib import Path

from ckptwatch.formats.base import About, Claim, Family, Folder
from ckptwatch.formats.dcp_shards import holds_shards, judge_dcp
from ckptwatch.formats.deepspeed_tag import judge_tag
from ckptwatch.formats.parts import fingerprint_of
from ckptwatch.formats.reading import read_text
from ckptwatch.formats.torch_zip import look_torch, read_content
from ckptwatch.formats.tree import judge_tree
from ckptwatch.model import Facts

META = "meta.pt"
TAG = "checkpoint"  # Lightning gives DeepSpeed this tag, and DeepSpeed makes it a directory


class LightningDirectory(Family):
    name = "lightning-directory"
    precedence = 14
    about = About(
        title="Lightning sharded checkpoint",
        recognised="a directory `*.ckpt/` with `*.distcp` files or `meta.pt` (FSDP, ModelParallel), or with `checkpoint/` "
                   "(DeepSpeed)",
        complete="FSDP: the shards and `.metadata` as for torch.distributed.checkpoint, and `meta.pt`, written last, whole. "
                 "DeepSpeed: every file in `checkpoint/` whole, ranks without gaps, and `latest`, written last, names it",
        facts="epoch, step and metrics from `meta.pt`, or from DeepSpeed's model states; and the name",
        forbidden_names=r"last\.ckpt",
        forbidden_because="ModelCheckpoint would write `last-v1.ckpt` instead",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        if folder.name.endswith(".ckpt") and (
                META in folder.files or TAG in folder.folders or holds_shards(folder.files)):
            yield self.claim_folder(folder)

    def examine(self, claim: Claim) -> Facts:
        top = claim.path
        return self._deepspeed(top) if (top / TAG).is_dir() else self._sharded(top)

    def _sharded(self, top: Path) -> Facts:
        shards = judge_dcp(top)
        if not shards.whole:
            return self.incomplete(shards.evidence)
        try:
            meta = look_torch(top / META)
        except FileNotFoundError:
            return self.incomplete(f"{META}, which is written last, is missing")
        if not meta.whole:
            return self.incomplete(f"{META}: {meta.evidence}")
        rest = judge_tree(top, besides=(*shards.files, top / META))
        if not rest.whole:
            return self.incomplete(rest.evidence)
        _, said = read_content(meta.content, top / META)
        return Facts(format=self.name, complete=True, evidence=f"{META} is whole; {shards.evidence}", step=said.step,
                     epoch=said.epoch, metrics=said.metrics, variants=shards.variants, content_digest=True,
                     fingerprint=fingerprint_of(shards.files, top))

    def _deepspeed(self, top: Path) -> Facts:
        tag = judge_tag(top / TAG)
        if not tag.whole:
            return self.incomplete(f"{TAG}: {tag.evidence}")
        if read_text(top / "latest") != TAG:
            return self.incomplete(f"`latest`, which is written last, does not name {TAG}")
        return Facts(format=self.name, complete=True, evidence=f"`latest` names {TAG}; {tag.evidence}", step=tag.step,
                     epoch=tag.epoch, variants=tag.variants, content_digest=True, fingerprint=fingerprint_of(tag.files, top))
