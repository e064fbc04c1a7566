"""Checkpoints of mmengine and of mmcv before it."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ckptwatch.formats.base import About, Dialect, Folder, Reading
from ckptwatch.formats.reading import numbers_in, read_text
from ckptwatch.formats.torch_content import first_count, variants

TRACKER = "last_checkpoint"
_BEST = re.compile(r"best_(?P<metric>.{1,100}?)_(?:epoch|iter)_\d{1,18}\.pth")


class MMEngine(Dialect):
    name = "mmengine"
    precedence = 20
    about = About(
        title="mmengine and mmcv",
        recognised="a torch.save file with `meta`, in which there is `mmengine_version` or `mmcv_version`, and `state_dict`",
        complete="as a torch.save file; `epoch_N.pth` is written a second time, in place, when it becomes the best",
        protected="the file that `last_checkpoint` names: it is what training resumes from",
        facts="`epoch` and `iter` in `meta`; a best file tells its score; variants are `state_dict` and `ema_state_dict`. "
              "With an EMA hook, `state_dict` holds the averaged weights and `ema_state_dict` the raw ones",
    )

    def speaks(self, content: Mapping[object, object]) -> bool:
        meta = content.get("meta")
        known = isinstance(meta, dict) and not {"mmengine_version", "mmcv_version"}.isdisjoint(meta)
        return known and "state_dict" in content

    def read(self, content: Mapping[object, object], path: Path) -> Reading:
        meta = content.get("meta")
        meta = meta if isinstance(meta, dict) else {}
        return Reading(step=first_count(meta, ("iter",)), epoch=first_count(meta, ("epoch",)),
                       metrics=_best_score(content, path), variants=variants(content))

    def needed(self, folder: Folder) -> Iterable[tuple[Path, str]]:
        """mmengine writes a whole path, which may be that of another machine; fvcore, in the same file, a bare name."""
        if TRACKER in folder.files:
            text = read_text(folder.path / TRACKER)
            name = PurePosixPath(text).name
            if "/" in text and name in folder.files:
                yield folder.path / name, f"{TRACKER} names it: training resumes from it"


def _best_score(content: Mapping[Any, Any], path: Path) -> dict[str, float]:
    """Only of the best file itself: every later checkpoint repeats the best score so far."""
    found = _BEST.fullmatch(path.name)
    hub = content.get("message_hub")
    info = hub.get("runtime_info") if isinstance(hub, dict) else None
    if found is None or not isinstance(info, dict):
        return {}
    for suffix in ("", *(k.removeprefix("best_score") for k in info if isinstance(k, str) and k.startswith("best_score_"))):
        written, score = info.get(f"best_ckpt{suffix}"), info.get(f"best_score{suffix}")
        if isinstance(written, str) and PurePosixPath(written).name == path.name:
            return numbers_in({found["metric"]: score})
    return {}
