"""`trainer_state.json` of the Hugging Face Trainer: the whole history of what was logged, written anew with each checkpoint.

Names are those of the history: `loss`, `grad_norm`, `learning_rate`, `eval_loss`. Of the summary that ends it the mean
`train_loss` is kept; times, speeds and operations are no metrics. `formats/trainer_state.py` takes the same.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from ckptwatch.core.series import LogRow
from ckptwatch.formats.reading import numbers_in, whole_number
from ckptwatch.logs.base import Fed, State
from ckptwatch.logs.documents import digest_of, epoch_in, looks_like_document, read_document
from ckptwatch.model import Logged

STATE = "trainer_state.json"
_COUNTS = frozenset({"step", "epoch", "total_flos"})
_SPEEDS = ("_runtime", "_per_second")


class TrainerState:
    name = "hf-trainer-state"
    precedence = 11
    title = "Hugging Face Trainer, `log_history` of its state"
    files = "`trainer_state.json`"

    def claims(self, path: PurePath, head: bytes) -> bool:
        return path.name == STATE and looks_like_document(head)

    def reader(self, logged: Logged, state: State | None = None) -> "StateReader":
        return StateReader(logged, state or {})


class StateReader:
    """Tells what was appended to the history since. A history that does not continue the one told before is another
    training's, and is told from its beginning."""

    whole = True

    def __init__(self, logged: Logged, state: State) -> None:
        self._step, self._epoch = logged.step or "step", logged.epoch or "epoch"
        self._told = whole_number(state.get("told")) or 0  # entries of the history
        self._last = str(state.get("last", ""))            # digest of the last of them

    def feed(self, data: bytes) -> Fed:
        try:
            history = read_document(data).get("log_history")
            if not isinstance(history, list):
                raise ValueError("no log_history")
        except ValueError as error:
            return Fed(consumed=0, trouble=str(error))  # half written, it comes again
        begin = self._told if self._continues(history) else 0
        entries = history[begin:]
        rows = [row for row in map(self._row, entries) if row is not None]
        bad = sum(not isinstance(entry, dict) for entry in entries)
        self._told, self._last = len(history), _digest(history[-1]) if history else ""
        return Fed(consumed=len(data), rows=[r for r in rows if r.values], bad=bad,
                   trouble="an entry of log_history is no mapping" if bad else "")

    def state(self) -> State:
        return {"told": self._told, "last": self._last}

    def _continues(self, history: list[Any]) -> bool:
        return self._told == 0 or (len(history) >= self._told and _digest(history[self._told - 1]) == self._last)

    def _row(self, entry: Any) -> LogRow | None:
        if not isinstance(entry, dict):
            return None
        epoch = epoch_in(entry.get(self._epoch))
        left_out = _COUNTS | {self._step, self._epoch}
        values: Mapping[str, float] = {
            k: v for k, v in numbers_in(entry).items() if k not in left_out and not k.endswith(_SPEEDS)}
        return LogRow(step=whole_number(entry.get(self._step)), epoch=epoch, values=values)


def _digest(entry: Any) -> str:
    return digest_of(numbers_in(entry))
