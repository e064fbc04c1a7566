"""JSON logs of MMEngine and of MMCV before it.

MMEngine's validation rows have a `step` that is the epoch where training runs by epochs, and the iteration where it does
not; MMCV's training rows have an `iter` that counts within the epoch, or on, and its validation rows one that counts the
validation's own batches. Which it is shows in the rows before. Epochs count from 1, as those of the checkpoints do.
"""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from ckptwatch.core.series import LogRow
from ckptwatch.formats.reading import is_name, whole_number
from ckptwatch.logs.base import State
from ckptwatch.logs.json_lines import parsed
from ckptwatch.logs.lines import LineReader, UnreadableError, excerpt, whole_lines
from ckptwatch.logs.rows import MOST_NAMES, flat, number_of
from ckptwatch.model import Logged

_MMCV = re.compile(rb'\s{0,9}\{"(?:env_info|mode)"|"exp_name"\s{0,4}:|"mode"\s{0,4}:\s{0,4}"(?:train|val)"')
_COUNTS = frozenset({"mode", "epoch", "iter", "step"})
_OF_BOTH = frozenset({"lr", "time", "data_time", "memory", "eta", "momentum", "grad_norm"})  # of training and validation


class MMEngineJson:
    name = "mmengine-json"
    precedence = 30
    title = "MMEngine and MMCV, one JSON object a line"
    files = "`vis_data/scalars.json`, `vis_data/<time>.json`, `*.log.json`"

    def claims(self, path: PurePath, head: bytes) -> bool:
        if not head.lstrip().startswith(b"{"):
            return False
        if path.parent.name == "vis_data" and path.name.endswith(".json"):
            return True
        if path.name == "scalars.json":
            return any('"step"' in line for line in whole_lines(head))
        return path.name.endswith(".log.json") and _MMCV.search(head) is not None

    def reader(self, logged: Logged, state: State | None = None) -> "MMEngineReader":
        return MMEngineReader(state)


class MMEngineReader(LineReader):
    def __init__(self, state: State | None = None) -> None:
        super().__init__(state)
        state = state or {}
        self._by_epoch: bool | None = state.get("by_epoch")  # None: not known yet
        self._epoch: int | None = state.get("epoch")         # of the last training row
        self._iter: int | None = state.get("iter")           # of the last training row

    def own_state(self) -> dict[str, Any]:
        return {"by_epoch": self._by_epoch, "epoch": self._epoch, "iter": self._iter}

    def row(self, line: str) -> LogRow | None:
        content = parsed(line)
        if "mode" in content:
            return self._mmcv(content, line)
        if "iter" in content or "step" in content:
            return self._mmengine(content, line)
        # A run of MMCV begins with its environment and configuration, which may name its runner.
        if "IterBasedRunner" in line or "EpochBasedRunner" in line:
            self._by_epoch = "EpochBasedRunner" in line
        self._epoch = self._iter = None
        return None

    # ---- MMEngine ------------------------------------------------------------------------------------------------

    def _mmengine(self, content: Mapping[str, Any], line: str) -> LogRow | None:
        step, epoch = whole_number(content.get("step")), whole_number(content.get("epoch"))
        if "iter" in content:
            step = whole_number(content["iter"]) if step is None else step
            if step is None:
                raise UnreadableError(f"its iter is no number: {excerpt(line)}")
            self._by_epoch, self._epoch, self._iter = "epoch" in content, epoch, step
            return self._row(content, step=step, epoch=epoch)
        if step is None:
            raise UnreadableError(f"its step is no number: {excerpt(line)}")
        step, epoch = self._of_validation(step)
        return self._row(content, step=step, epoch=epoch, validation=True)

    def _of_validation(self, count: int) -> tuple[int | None, int | None]:
        """(step, epoch) of a row that has only `step`. Where training counts no epochs MMEngine writes 0, or the iteration
        after the validation's training rows. A hook of the user's own may write iterations among epochs."""
        done = self._iter
        if done is None:
            return count, None
        if self._by_epoch and count not in (0, self._epoch):
            return (count, None) if count >= done else (None, count)
        if self._by_epoch and count:
            return None, count
        return max(count, done), None

    # ---- MMCV ----------------------------------------------------------------------------------------------------

    def _mmcv(self, content: Mapping[str, Any], line: str) -> LogRow | None:
        epoch, count = whole_number(content.get("epoch")), whole_number(content.get("iter"))
        if epoch is None or count is None:
            raise UnreadableError(f"its epoch or iter is no number: {excerpt(line)}")
        if content["mode"] != "train":
            first = self._by_epoch is None and epoch == 1
            return self._row(content, step=self._iter if first or self._by_epoch is False else None, epoch=epoch,
                             validation=True)
        if self._by_epoch is None and self._epoch is not None and self._iter is not None and epoch > self._epoch:
            self._by_epoch = count <= self._iter
        self._epoch, self._iter = epoch, count
        counts_on = self._by_epoch is False or (self._by_epoch is None and epoch <= 1)
        return self._row(content, step=count if counts_on else None, epoch=epoch)

    def _row(
        self, content: Mapping[str, Any], *, step: int | None, epoch: int | None, validation: bool = False,
    ) -> LogRow | None:
        values: dict[str, float] = {}
        for name, value in flat(content):
            number = None if name in _COUNTS else number_of(value)
            if number is None:
                continue
            if is_name(name):
                values[of_validation(name) if validation else name] = number
            else:
                self.complain(f"a name that cannot be shown: {name!r:.60}")
        if len(values) > MOST_NAMES:
            self.complain(f"{len(values):,} names in one row; the first {MOST_NAMES} are kept")
            values = dict(list(values.items())[:MOST_NAMES])
        return LogRow(step=step, epoch=epoch, values=values) if values and (step, epoch) != (None, None) else None


def of_validation(name: str) -> str:
    """The name of a value of a validation: those that training has as well must not get into its curves."""
    return f"val/{name}" if name in _OF_BOTH or name.startswith("loss") or name.endswith("_loss") else name
