"""Names by which a directory is unmistakably one step of a run, and names in it that say that it is not."""

import re
from functools import lru_cache
from pathlib import Path

from ckptwatch.core.naming import is_cut, parse_name
from ckptwatch.formats.base import Folder, list_folder
from ckptwatch.formats.tree import WEIGHTS
from ckptwatch.model import Role

DEEPEST = 2000  # directories below one are looked into for further checkpoints

_COUNTED = r"(?:checkpoint|chkpt|ckpt|global[-_]step|train[-_]step|step|iteration|iter|epoch)[-_=]?\d{1,18}+"
_SUFFIX = r"(?:\.(?:pt|pth|ckpt))?"
_STEP = re.compile(
    rf"{_COUNTED}(?:[-_.].*+)?"                                            # checkpoint-100, epoch_0_train_step_10
    r"|ep\d{1,9}+-ba\d{1,12}+(?:[-_.].*+)?"                                # Composer; `ba16` alone is a batch size
    rf"|\d{{4,18}}+\.(?:pt|pth|ckpt)"                                      # 0002000.pt as a directory
    rf"|.{{1,200}}?[-_.](?:global_step|step|iteration|iter)[-_=]\d{{1,18}}+{_SUFFIX}"  # my-model_step_100
    rf"|.{{1,200}}?[-_](?:epoch|step)=\d{{1,18}}+(?:[-_].*+)?"             # llama--loss=1.2-epoch=0-step=99
    r"|CKPT\+.+",                                                          # SpeechBrain
    re.IGNORECASE | re.ASCII,
)
_TEMPORARY = re.compile(
    r"[-_.]?(?:tmp|temp)[-_.](?P<before>.+)"
    r"|(?P<after>.+?)[-_.](?:tmp|temp|incomplete|partial|unfinished|saving|deleting|to[-_]delete|old|bak|backup)"
    r"(?:[-_.]\w{1,40}+)?",
    re.IGNORECASE | re.ASCII,
)
_NO_RUNS = frozenset({"d", "ocdbt.process_0", "_sharding"})  # Orbax; thousands of files
_PLAIN = frozenset({"checkpoint", "ckpt"})  # flax: checkpoint_tmp


@lru_cache(maxsize=8192)
def is_step(name: str) -> bool:
    if len(name) > 255 or _STEP.fullmatch(name) is None:
        return False
    facts = parse_name(name)
    return facts.role is Role.REGULAR and (facts.step is not None or facts.epoch is not None or name.startswith("CKPT+"))


def names_one_state(name: str) -> bool:
    """Is a directory of this name one saved state: `epoch_3`, `final_model`? A bare number, a date or `epochs=10` may as
    well be a job's."""
    return is_step(name) or parse_name(name).role is not Role.REGULAR


@lru_cache(maxsize=8192)
def unfinished(name: str) -> str:
    """The step's name of which this is the temporary one; "" if it is none."""
    match = _TEMPORARY.fullmatch(name) if len(name) <= 255 else None
    base = (match["before"] or match["after"]) if match else ""
    return base if base in _PLAIN or is_step(base) else ""


def holds_others(folder: Folder) -> bool:
    """Do the names in it say that it holds further checkpoints: of other steps, or best and last ones?"""
    own = parse_name(folder.name)
    numbers: set[int] = set()
    plain = False
    for name in folder.folders:
        if is_step(name) or unfinished(name):
            return True
    for name in folder.files:
        if not name.endswith(WEIGHTS):
            continue
        facts = parse_name(name)
        if facts.role is not Role.REGULAR or is_cut(folder.path / name):
            return True
        if facts.epoch not in (None, own.epoch, own.step):
            return True
        if facts.step is None and facts.epoch is None:
            plain = True
        elif facts.step not in (None, own.step, own.epoch):
            numbers.add(facts.step)
    # `model_0.pt`, `model_1.pt`, … may be ranks or models; so may `model_1.pt` beside `model.pt`.
    first = 1 if plain and 0 not in numbers else 0
    return numbers != set(range(first, first + len(numbers)))


def stranger_in(top: Path, own: set[int]) -> Path | None:
    """A checkpoint of another step somewhere below a directory that is taken for one checkpoint of the steps `own`.

    Then it is a run's directory after all, whatever its name. Raises OSError.
    """
    pending = [folder for folder in _folders_in(top) if folder.name not in _NO_RUNS]
    for _ in range(DEEPEST):
        if not pending:
            return None
        folder = pending.pop()
        facts = parse_name(folder.name)
        if is_step(folder.name) and own.isdisjoint({facts.step, facts.epoch}) and not folder.name.startswith("global_step"):
            return folder.path
        if holds_others(folder):
            return folder.path
        pending += _folders_in(folder.path)
    return None


def _folders_in(path: Path) -> list[Folder]:
    return [list_folder(path / name) for name in list_folder(path).folders]
