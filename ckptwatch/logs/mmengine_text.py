"""Text logs of MMEngine and of MMCV before it: `Epoch(train) [3][50/100] lr: 1.0000e-02 loss: 0.5`."""

import re
from pathlib import PurePath
from typing import Any

from ckptwatch.core.series import LogRow
from ckptwatch.logs.base import State
from ckptwatch.logs.lines import LineReader
from ckptwatch.logs.mmengine import of_validation
from ckptwatch.logs.text_log import LONGEST_TEXT, named_numbers, time_of
from ckptwatch.model import Logged

_SPEAKS = re.compile(rb"\d - mm[a-z0-9]{1,20} - [A-Z]{4,8} - |\b(?:Epoch|Iter)\((?:train|val)\) {0,9}\[")
# Epoch(train)  [3][ 50/100], Epoch(val) [3][10/10], Iter(train) [ 100/1000]; MMCV: Epoch [3][50/100], Epoch(val) [3][10]
_PLACE = re.compile(
    r"\b(?P<unit>Epoch|Iter) {0,2}(?:\((?P<mode>train|val|test)\))? {0,9}\[ {0,9}(?P<first>\d{1,12}+)(?:/\d{1,12}+)?\]"
    r"(?:\[ {0,9}(?P<inner>\d{1,12}+)(?:/(?P<of>\d{1,12}+))?\])?", re.ASCII)
_DURATIONS = frozenset({"val/time", "val/data_time", "val/memory", "val/eta"})


class MMEngineText:
    name = "mmengine-text"
    precedence = 45
    title = "MMEngine and MMCV, text"
    files = "`*.log` in which MMEngine, MMCV or a library on them speaks"

    def claims(self, path: PurePath, head: bytes) -> bool:
        return not path.name.endswith((".json", ".jsonl", ".csv")) and _SPEAKS.search(head) is not None

    def reader(self, logged: Logged, state: State | None = None) -> "MMEngineTextReader":
        return MMEngineTextReader(state)


class MMEngineTextReader(LineReader):
    """All other lines are passed over; a validation's progress, and tests, as well."""

    def __init__(self, state: State | None = None) -> None:
        super().__init__(state)
        self._iter: int | None = (state or {}).get("iter")  # of the last training line, where training counts no epochs

    def own_state(self) -> dict[str, Any]:
        return {"iter": self._iter}

    def row(self, line: str) -> LogRow | None:
        place = _PLACE.search(line) if len(line) <= LONGEST_TEXT else None
        if place is None or place["mode"] == "test":
            return None
        first, inner, of = (None if place[k] is None else int(place[k]) for k in ("first", "inner", "of"))
        assert first is not None
        values = {name: value for name, value in named_numbers(line[place.end():]) if name != "eta"}  # `1 day, 0:00:10`
        validates = place["mode"] == "val"
        if validates:
            values = {of_validation(name): value for name, value in values.items()}
        if not values.keys() - _DURATIONS:
            return None
        epoch = step = None
        if place["unit"] == "Epoch":
            epoch = first
            if not validates and inner is not None and of and first:
                step = (first - 1) * of + inner
        elif validates:
            step = self._iter
        else:
            step = self._iter = first
        return LogRow(step=step, epoch=epoch, values=values, at=time_of(line)) if (step, epoch) != (None, None) else None
