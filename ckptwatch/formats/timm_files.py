"""Checkpoints of timm's training script."""

from collections.abc import Mapping
from pathlib import Path

from ckptwatch.formats.base import About, Dialect, Reading
from ckptwatch.formats.torch_content import first_count, numbers, variants


class Timm(Dialect):
    name = "timm"
    precedence = 20
    about = About(
        title="timm",
        recognised="a torch.save file with `arch`, `version`, `epoch` and `state_dict`, usually `checkpoint-N.pth.tar`",
        complete="as a torch.save file; `tmp.pth.tar` is renamed to `last.pth.tar`, of which the others are hard links",
        facts="`epoch`; `metric`; variants are `state_dict` and `state_dict_ema`",
    )

    def speaks(self, content: Mapping[object, object]) -> bool:
        return (isinstance(content.get("arch"), str) and isinstance(content.get("version"), int)
                and {"epoch", "state_dict"} <= content.keys())

    def read(self, content: Mapping[object, object], path: Path) -> Reading:
        epoch = first_count(content, ("epoch",))
        if epoch and first_count(content, ("version",)) in (0, 1):  # these counted up before saving
            epoch -= 1
        return Reading(epoch=epoch, metrics=numbers({"metric": content.get("metric")}), variants=variants(content))
