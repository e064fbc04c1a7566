"""Checkpoints of PyTorch-Ignite that hold the state of their trainer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptwatch.formats.base import About, Dialect, Reading
from ckptwatch.formats.torch_content import count, variants


class Ignite(Dialect):
    name = "ignite"
    precedence = 30
    about = About(
        title="PyTorch-Ignite",
        recognised="a torch.save file with the state of an engine, `iteration` and `epoch_length`. One with the model alone "
                   "is a plain torch.save file",
        complete="as a torch.save file; Ignite writes to a temporary file and renames it",
        protected="all of it while its run goes on",
        facts="`iteration` of the engine, and the epochs it has completed; the score from the name",
        forbidden_names=r".*\.pt",
        forbidden_because="`DiskSaver` refuses to start where it finds one (`require_empty`)",
        needed_while_training="Ignite removes its older checkpoints itself and fails if one is gone (`DiskSaver.remove`)",
    )

    def speaks(self, content: Mapping[object, object]) -> bool:
        return _engine(content) is not None

    def read(self, content: Mapping[object, object], path: Path) -> Reading:
        engine = _engine(content) or {}
        iteration, length = count(engine.get("iteration")), count(engine.get("epoch_length"))
        epoch = iteration // length if iteration is not None and length else None
        return Reading(step=iteration, epoch=epoch, variants=variants(content))


def _engine(content: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    """The state of the first engine among its entries. Unknown lengths are None."""
    return next((v for v in content.values()
                 if isinstance(v, dict) and {"iteration", "epoch_length", "max_epochs"} <= v.keys()), None)
