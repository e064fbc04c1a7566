"""Checkpoints of ultralytics: `weights/last.pt`, `best.pt`, `epochN.pt`."""

from collections.abc import Mapping
from pathlib import Path

from ckptwatch.formats.base import About, Dialect, Reading
from ckptwatch.formats.inert_pickle import Inert
from ckptwatch.formats.torch_content import first_count, numbers


class Ultralytics(Dialect):
    name = "ultralytics"
    precedence = 20
    about = About(
        title="ultralytics",
        recognised="a torch.save file with `train_args` and a whole model under `ema` or `model`",
        complete="as a torch.save file, written in place; `last.pt` and `best.pt` are written again after training, without "
                 "their optimizer",
        facts="`epoch`, which is gone after training; `train_metrics`; the variant is the entry that holds the model, `ema` "
              "while training and `model` afterwards",
    )

    def speaks(self, content: Mapping[object, object]) -> bool:
        return isinstance(content.get("train_args"), dict) and {"ema", "model"} <= content.keys()

    def read(self, content: Mapping[object, object], path: Path) -> Reading:
        return Reading(epoch=first_count(content, ("epoch",)), metrics=numbers(content.get("train_metrics")),
                       variants=tuple(k for k in ("ema", "model") if isinstance(content.get(k), Inert)))
