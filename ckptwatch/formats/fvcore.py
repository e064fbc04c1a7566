"""Checkpoints of fvcore's Checkpointer: detectron2 and its relatives."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ckptwatch.formats.base import About, Dialect, Folder, Reading
from ckptwatch.formats.mmengine import TRACKER
from ckptwatch.formats.reading import read_text
from ckptwatch.formats.torch_content import first_count, holds_tensors, variants


class Fvcore(Dialect):
    name = "fvcore"
    precedence = 40
    about = About(
        title="fvcore, detectron2",
        recognised="a torch.save file with `model`, `iteration` and one of `scheduler`, `trainer`, `__author__`, usually "
                   "called `model_0004999.pth`",
        complete="as a torch.save file, written in place",
        protected="the file that `last_checkpoint` names: it is what training resumes from",
        facts="`iteration`",
    )

    def speaks(self, content: Mapping[object, object]) -> bool:
        model = content.get("model")
        return (isinstance(model, dict) and holds_tensors(model) and isinstance(content.get("iteration"), int)
                and not {"scheduler", "trainer", "__author__"}.isdisjoint(content))

    def read(self, content: Mapping[object, object], path: Path) -> Reading:
        return Reading(step=first_count(content, ("iteration",)), variants=variants(content))

    def needed(self, folder: Folder) -> Iterable[tuple[Path, str]]:
        if TRACKER in folder.files:
            name = read_text(folder.path / TRACKER)
            if name in folder.files:
                yield folder.path / name, f"{TRACKER} names it: training resumes from it"
