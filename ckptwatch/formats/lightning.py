"""PyTorch Lightning's single-file checkpoints."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from ckptwatch.core.naming import whole_name
from ckptwatch.formats.base import About, Dialect, Folder, Reading
from ckptwatch.formats.torch_content import first_count, numbers, variants
from ckptwatch.formats.torch_zip import look_torch


class Lightning(Dialect):
    name = "lightning"
    precedence = 20
    about = About(
        title="Lightning",
        recognised="a torch.save file with `pytorch-lightning_version`",
        complete="as a torch.save file; Lightning writes to a temporary file first, which may be copied onto the final name",
        facts="`global_step` and `epoch`; from the state of `ModelCheckpoint` the value of the monitored metric, if it "
              "lists this very file; variants are entries that hold tensors",
        protected="the best as `ModelCheckpoint` in the newest file names it: `ckpt_path=\"best\"` loads it after training",
        forbidden_names=r"last.*\.ckpt",
        forbidden_because="Lightning takes the name for its own and writes `last-v1.ckpt` instead",
    )

    def speaks(self, content: Mapping[object, object]) -> bool:
        return isinstance(content.get("pytorch-lightning_version"), str)

    def read(self, content: Mapping[object, object], path: Path) -> Reading:
        return Reading(step=first_count(content, ("global_step",)), epoch=first_count(content, ("epoch",)),
                       metrics=numbers(dict(_monitored(content.get("callbacks"), path))), variants=variants(content))


    def needed(self, folder: Folder) -> Iterable[tuple[Path, str]]:
        written: list[tuple[int, int, str]] = []
        for name in folder.files:
            if name.endswith(".ckpt"):
                with suppress(FileNotFoundError):
                    info = (folder.path / name).stat()
                    written.append((info.st_mtime_ns, info.st_size, name))
        if not written:
            return
        time, size, newest = max(written)
        for best in _bests(folder.path / newest, time, size):
            if best in folder.files:
                yield folder.path / best, f"{newest} names it as the best: `ckpt_path=\"best\"` loads it after training"


@lru_cache(maxsize=256)
def _bests(path: Path, mtime_ns: int, size: int) -> frozenset[str]:
    """The names of what the callbacks in a file, as it is since `mtime_ns`, call their best. Raises OSError."""
    content = look_torch(path).content
    callbacks = content.get("callbacks") if isinstance(content, dict) else None
    found = (state.get("best_model_path") for state in callbacks.values() if isinstance(state, dict)) \
        if isinstance(callbacks, dict) else ()
    return frozenset(PurePosixPath(best).name for best in found if isinstance(best, str))


def _monitored(callbacks: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """What each ModelCheckpoint measured when it wrote this file.

    `current_score` is no answer: it is that of the file which the callback wrote last, perhaps another one.
    """
    for state in callbacks.values() if isinstance(callbacks, dict) else ():
        scores = state.get("best_k_models") if isinstance(state, dict) else None
        if not isinstance(scores, dict) or not isinstance(state.get("monitor"), str):
            continue
        for written, score in scores.items():
            ours = isinstance(written, str) and written.endswith(path.name)
            if ours and whole_name(PurePosixPath(written)) == whole_name(path):
                yield state["monitor"], score
