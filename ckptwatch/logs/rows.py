"""From named values to a row: which name counts steps, which epochs, which tells the time, and which are metrics.

A record without a step and an epoch is no row: nothing says where its values belong.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from operator import itemgetter
from typing import Any

from ckptwatch.core.series import LogRow
from ckptwatch.formats.reading import is_name, whole_number
from ckptwatch.logs.base import State
from ckptwatch.logs.lines import UnreadableError
from ckptwatch.model import Logged

MOST_NAMES = 500   # in one row
DEEPEST = 3        # levels of nested objects whose names are joined by "/"
_REMEMBERED = 4096  # names whose meaning is kept at hand

_STEP, _EPOCH, _TIME, _PERHAPS_TIME, _NO_NAME, _NOTHING, _METRIC = range(7)

# The first that is there counts. `_step` of Weights & Biases counts its own rows, so it comes last.
_STEPS = {name: rank for rank, name in enumerate((
    "global_step", "globalstep", "step", "steps", "train_step", "training_step", "current_step", "num_updates", "num_steps",
    "iteration", "iter", "iterations", "iters", "global_iter", "current_iter", "n_iter", "niter", "it", "itr", "update",
    "updates", "kimg", "_step"))}
_EPOCHS = {name: rank for rank, name in enumerate((
    "epoch", "epochs", "current_epoch", "train_epoch", "training_epoch", "ep"))}
_TIMES = frozenset({
    "timestamp", "_timestamp", "@timestamp", "wall_time", "walltime", "datetime", "asctime", "created_at", "ts"})
_PERHAPS_TIMES = frozenset({"time", "date"})  # `time` may as well be a duration, which is a number like others
_ELSEWHERE = frozenset({"val", "valid", "validation", "eval", "evaluation", "test"})  # `val/step` counts something else
_SPECIAL = {"nan": math.nan, "inf": math.inf, "+inf": math.inf, "-inf": -math.inf, "infinity": math.inf,
            "-infinity": -math.inf}
_NO_RANK = 1000  # after all that has one


class RowMaker:
    """Makes rows, and remembers what it takes to tell a step that counts on from one that starts anew with each epoch.

    `Logged.step` and `Logged.epoch` name columns where a user did; of each such count no other column is asked then.
    """

    def __init__(self, logged: Logged, state: State | None = None, complain: Callable[[str], None] | None = None) -> None:
        """`complain` is told what is left out of a row that is good otherwise."""
        self._logged = logged
        self._complain = complain or (lambda why: None)
        self._roles: dict[str, tuple[int, int]] = {}
        state = state or {}
        self._last: tuple[int, float] | None = _pair(state.get("last"))
        self._within = bool(state.get("within"))  # does the step count within its epoch?

    def state(self) -> dict[str, Any]:
        return {"last": self._last, "within": self._within}

    def row(self, pairs: Iterable[tuple[str, Any]]) -> LogRow | None:
        """None for a record that counts nothing or measures nothing. Raises UnreadableError for one whose count is none."""
        roles = self._roles
        values: dict[str, float] = {}
        others: list[tuple[int, int, str, Any]] = []
        for name, value in pairs:
            kind, rank = roles.get(name) or self._learn(name)
            if kind == _METRIC:
                number = value if type(value) is float else number_of(value)
                if number is not None:
                    values[name] = number
            elif value is not None and value != "":
                others.append((kind, rank, name, value))
        if len(others) > 1:
            others.sort(key=_by_kind)
        counts: list[Any] = [None, None, None]  # step, epoch, time
        wrong = ""
        for kind, _, name, value in others:
            if kind <= _TIME:
                if counts[kind] is None:
                    counts[kind] = _READ[kind](value)
                    wrong = f"{name} is {value!r:.40}" if counts[kind] is None and kind != _TIME else wrong
            elif kind == _PERHAPS_TIME:
                self._perhaps_time(name, value, counts, values)
            elif kind == _NO_NAME:
                self._complain(f"a name that cannot be shown: {name!r:.60}")
        return self._made(*counts, values, wrong)

    def _perhaps_time(self, name: str, value: Any, counts: list[Any], values: dict[str, float]) -> None:
        found = moment(value)
        number = number_of(value) if found is None else None
        if number is not None:
            values[name] = number
        elif counts[_TIME] is None:
            counts[_TIME] = found

    def _made(
        self, step: int | None, epoch: float | None, at: float | None, values: dict[str, float], wrong: str,
    ) -> LogRow | None:
        if step is None and epoch is None:
            if wrong and values:
                raise UnreadableError(wrong)
            return None
        if not values:
            return None
        step, epoch = self._placed(step, epoch)
        if len(values) > MOST_NAMES:
            self._complain(f"{len(values):,} names in one row; the first {MOST_NAMES} are kept")
            values = dict(list(values.items())[:MOST_NAMES])
        return LogRow(step=step, epoch=epoch, values=values, at=at)

    def names_count(self, names: Iterable[str]) -> bool:
        """Is there a step or epoch among these columns?"""
        return any((self._roles.get(name) or self._learn(name))[0] in (_STEP, _EPOCH) for name in names)

    def _placed(self, step: int | None, epoch: float | None) -> tuple[int | None, float | None]:
        """A step that falls back as the epoch rises counts within its epoch: from then on only epochs tell."""
        if step is None or epoch is None:
            return step, epoch
        if self._last is not None and epoch > self._last[1] and step < self._last[0]:
            self._within = True
        self._last = (step, epoch)
        return (None if self._within else step), epoch

    def _learn(self, name: str) -> tuple[int, int]:
        role = self._role(name)
        if len(self._roles) >= _REMEMBERED:
            self._roles.clear()
        self._roles[name] = role
        return role

    def _role(self, name: str) -> tuple[int, int]:
        if name == self._logged.epoch:
            return _EPOCH, 0
        if name == self._logged.step:
            return _STEP, 0
        before, _, plain = name.strip().lower().replace(" ", "_").replace("-", "_").rpartition("/")
        later = _NO_RANK if before not in ("", "trainer", "train") else 0
        role = (_METRIC, 0) if is_name(name) else (_NO_NAME, 0)
        if plain in _STEPS and before not in _ELSEWHERE:
            role = (_NOTHING, 0) if self._logged.step else (_STEP, _STEPS[plain] + later)
        elif plain in _EPOCHS and before not in _ELSEWHERE:
            role = (_NOTHING, 0) if self._logged.epoch else (_EPOCH, _EPOCHS[plain] + later)
        elif not before and plain in _TIMES:
            role = _TIME, 0
        elif not before and plain in _PERHAPS_TIMES:
            role = _PERHAPS_TIME, 0
        return role


_by_kind = itemgetter(0, 1)  # and the better rank first


def flat(mapping: Mapping[str, Any], before: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """The entries of an object, those of objects in it under joined names: `{"val": {"loss": 1}}` has `val/loss`."""
    for key, value in mapping.items():
        if type(value) is dict:
            if depth < DEEPEST:
                yield from flat(value, f"{before}{key}/", depth + 1)
        else:
            yield (before + key if before else key), value


def number_of(value: Any) -> float | None:
    """A metric's value: a number, or NaN or Inf spelled out as JSON without them has it. No truth value, no other text."""
    if isinstance(value, float):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return None
    return _SPECIAL.get(value.strip().lower()) if isinstance(value, str) else None


def moment(value: Any) -> float | None:
    """Seconds since 1970 of a time as logs have it: seconds or milliseconds, or as text in the way of ISO 8601, which is
    taken for local time where it names no other. None for anything else, durations included."""
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value.strip()[:40].replace("/", "-").replace(",", ".")).timestamp()
        except (ValueError, OverflowError, OSError):
            value = _as_float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    seconds = value / 1000 if value > 1e11 else value
    return float(seconds) if 1e9 <= seconds < 1e11 else None


def _counted(value: Any) -> int | None:
    if type(value) is int and 0 <= value < 2**63:
        return value
    return whole_number(_as_float(value) if isinstance(value, str) and not value.strip().isdigit() else value)


def _positive(value: Any) -> float | None:
    number = _as_float(value) if isinstance(value, str) else number_of(value)
    return number if number is not None and 0 <= number < 2**53 else None


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _pair(raw: Any) -> tuple[int, float] | None:
    return (raw[0], raw[1]) if isinstance(raw, list | tuple) and len(raw) == 2 else None


_READ: tuple[Callable[[Any], Any], ...] = (_counted, _positive, moment)  # by kind
