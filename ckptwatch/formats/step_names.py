"""Names by which a directory is unmistakably one step of a run, and names in it that say that it is not."""

import re
from functools import lru_cache

from ckptwatch.core.naming import is_cut, parse_name
from ckptwatch.formats.base import Folder
from ckptwatch.formats.tree import WEIGHTS
from ckptwatch.model import Role

MOST_RANKS = 1024  # a bare number below it, as in `model_3.pt`, may be that of a rank or a model

_COUNTED = r"(?:checkpoint|chkpt|ckpt|global[-_]step|train[-_]step|step|iteration|iter|epoch|ep|ba)[-_=]?\d{1,18}+"
_SUFFIX = r"(?:\.(?:pt|pth|ckpt))?"
_STEP = re.compile(
    rf"{_COUNTED}(?:[-_.].*+)?"                                            # checkpoint-100, epoch_0_train_step_10
    rf"|\d{{4,18}}+\.(?:pt|pth|ckpt)"                                      # 0002000.pt as a directory
    rf"|0\d{{4,17}}+"                                                      # 000100
    rf"|.{{1,200}}?[-_.](?:global_step|step|iteration|iter)[-_=]\d{{1,18}}+{_SUFFIX}"  # my-model_step_100
    rf"|.{{1,200}}?[-_](?:epoch|step)=\d{{1,18}}+(?:[-_].*+)?"             # llama--loss=1.2-epoch=0-step=99
    r"|CKPT\+.+",                                                          # SpeechBrain
    re.IGNORECASE | re.ASCII,
)
_TEMPORARY = re.compile(
    r"(?:tmp|temp)[-_.](?P<before>.+)"
    r"|(?P<after>.+?)[-_.](?:tmp|temp|incomplete|partial|unfinished|saving)(?:[-_.]\w{1,40}+)?",
    re.IGNORECASE | re.ASCII,
)
_PLAIN = frozenset({"checkpoint", "ckpt"})  # flax: checkpoint_tmp


@lru_cache(maxsize=8192)
def is_step(name: str) -> bool:
    if len(name) > 255 or _STEP.fullmatch(name) is None:
        return False
    facts = parse_name(name)
    return facts.role is Role.REGULAR and (facts.step is not None or facts.epoch is not None or name.startswith("CKPT+"))


@lru_cache(maxsize=8192)
def unfinished(name: str) -> str:
    """The step's name of which this is the temporary one; "" if it is none."""
    match = _TEMPORARY.fullmatch(name) if len(name) <= 255 else None
    base = (match["before"] or match["after"]) if match else ""
    return base if base in _PLAIN or is_step(base) else ""


def holds_others(folder: Folder) -> bool:
    """Do the names in it say that it holds further checkpoints: of other steps, or best and last ones?"""
    own = parse_name(folder.name)
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
        if facts.step not in (None, own.step, own.epoch) and facts.step >= MOST_RANKS:
            return True
    return False
