"""Lines of text for people: `step 100 | loss 0.53 | lr 1e-4`, `epoch: 3, train_loss: 0.4`, `iter 100: loss 3.2, time 10ms`.

Only a line with a step or an epoch and at least one named number beside it counts; all others are passed over, they are not
bad. A number counts as named where `:` or `=` stands between, or where its name is that of a metric (`train loss 1.9`). One
with a unit (`10ms`) or out of others (`9905/10000`) does not. Objects of JSON and of Python among the lines are read too.

Quantifiers are bounded or possessive and names begin where words do: a hostile line costs time in proportion to its length.
"""

import re
from collections.abc import Collection, Iterator
from pathlib import PurePath
from typing import Any

from ckptwatch.core.logged import direction
from ckptwatch.core.series import LogRow
from ckptwatch.logs.base import State
from ckptwatch.logs.json_lines import parsed
from ckptwatch.logs.lines import LineReader, UnreadableError
from ckptwatch.logs.rows import RowMaker, flat, moment
from ckptwatch.model import Logged

LONGEST_TEXT = 16 << 10  # characters of a line that is looked into
_NAMES = re.compile(r".+\.(?:log|txt|out)(?:\.\d{1,4})?|std(?:out|err)", re.IGNORECASE | re.DOTALL)
_WORD = r"[^\W\d][\w./@<>-]{0,63}+"
_NUMBER = (r"[-+]?(?>\d{1,3}+(?:,\d{3})++(?!\d)|\d{1,40}+(?:\.\d{0,40}+)?|\.\d{1,40}+)(?>e[-+]?\d{1,4}+)?"
           r"|[-+]?(?>nan|inf(?:inity)?)")
_NAMED = re.compile(
    rf"""(?<![\w./@<>%-])(?P<name>{_WORD}(?:\ {_WORD}){{0,2}})
    ['"]?[ ]{{0,4}}(?P<sign>[:=])?[ ]{{0,8}}['"]?(?P<open>\[)?[ ]{{0,8}}
    (?P<number>{_NUMBER})(?:\ ?/\ ?(?P<of>\d{{1,18}}+))?(?!\w|[:./,-]\d)""", re.IGNORECASE | re.VERBOSE)
_COUNTING = re.compile(r"step|epoch|iter|update|\bit\b|\bep\b", re.IGNORECASE)
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,16}[A-Za-z]")
_TIME = re.compile(r"\[?(\d{4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d{1,6})?)", re.ASCII)
_STEP_WORDS = frozenset({"step", "steps", "iter", "iters", "iteration", "iterations", "it", "itr", "update", "updates"})
_EPOCH_WORDS = frozenset({"epoch", "epochs", "ep"})
# `train epoch 3` counts, `steps per epoch: 100` and `best epoch: 3` do not.
_OF_A_COUNT = frozenset({
    "train", "training", "global", "current", "the", "at", "end", "of", "finished", "after", "in", "on"})
_VALIDATION = frozenset({"val", "valid", "validation", "test", "eval", "evaluation"})
_LEVELS = frozenset({"info", "debug", "warning", "warn", "error", "critical", "root"})
_WITHOUT_SIGN = frozenset({"lr", "norm", "gnorm", "grad_norm", "kl", "entropy", "elbo", "bpb", "bpc", "bpd", "nll", "temp"})


class TextLog:
    name = "text"
    precedence = 90
    title = "lines of text"
    files = "`*.log`, `train*.txt`, `log*.txt`, `slurm-*.out` and the like: lines with a step or epoch and named numbers"

    def claims(self, path: PurePath, head: bytes) -> bool:
        """By the name, and for being text: what counts may come after pages of other things."""
        return _NAMES.fullmatch(path.name) is not None and b"\n" in head and _is_text(head)

    def reader(self, logged: Logged, state: State | None = None) -> "TextReader":
        return TextReader(logged, state)


class TextReader(LineReader):
    def __init__(self, logged: Logged, state: State | None = None) -> None:
        super().__init__(state)
        self._own = frozenset({logged.step, logged.epoch} - {""})
        self._maker = RowMaker(logged, state, self.complain)

    def own_state(self) -> dict[str, Any]:
        return self._maker.state()

    def row(self, line: str) -> LogRow | None:
        if "\r" in line:  # a progress bar that has drawn over itself: what is seen at last
            line = line.rstrip("\r").rpartition("\r")[2].strip()
        if len(line) > LONGEST_TEXT or not (self._own or _COUNTING.search(line)):
            return None
        if line.startswith("{"):
            try:
                return self._maker.row(flat(parsed(line)))
            except UnreadableError:
                pass  # of Python, perhaps
        if "\x1b" in line:
            line = _COLOUR.sub("", line)
        try:
            row = self._maker.row(named_numbers(line, self._own))
        except UnreadableError:
            return None
        at = time_of(line) if row is not None and row.at is None else None
        return row if row is None or at is None else LogRow(step=row.step, epoch=row.epoch, values=row.values, at=at)


def named_numbers(text: str, own: Collection[str] = ()) -> Iterator[tuple[str, float]]:
    """The numbers in a text that have names, in their order; those that count under `step` and `epoch`. `own` names are a
    user's: they need no sign."""
    prefix = ""
    for found in _NAMED.finditer(text):
        name, of = found["name"], found["of"]
        count = _count_in(name)
        if count:
            prefix = "val/" if _is_of_validation(name) else prefix
            yield count, _number(found["number"])
        elif of is None and found["open"] is None:
            words = name.split(" ")
            while len(words) > 1 and words[0].lower() in _LEVELS:
                del words[0]
            name = "_".join(words)
            if found["sign"] or name in own or _is_metric(name, words[-1]):
                yield prefix + name, _number(found["number"])


def _is_metric(name: str, last: str) -> bool:
    return last.lower() in _WITHOUT_SIGN or direction(name.partition("@")[0]) is not None


def _number(text: str) -> float:
    return float(text.replace(",", ""))  # 1,000


def time_of(line: str) -> float | None:
    """The time at the beginning of a line, local time."""
    found = _TIME.match(line)
    return moment(found[1]) if found else None


def _count_in(name: str) -> str:
    """Which count a name means: "step", "epoch" or ""."""
    *before, last = name.lower().replace("_", " ").split(" ")
    unit = "step" if last in _STEP_WORDS else "epoch" if last in _EPOCH_WORDS else ""
    return unit if unit and all(word in _OF_A_COUNT or word in _LEVELS or word in _VALIDATION for word in before) else ""


def _is_of_validation(name: str) -> bool:
    """`Validation epoch 3: loss 0.3`: the line tells of a validation, and its loss is not that of training."""
    return any(word in _VALIDATION for word in name.lower().replace("_", " ").split(" ")[:-1])


def _is_text(head: bytes) -> bool:
    head = head.lstrip(b"\0")
    return b"\0" not in head and head.decode("utf-8", "replace").count("\ufffd") <= 2 + len(head) // 100


