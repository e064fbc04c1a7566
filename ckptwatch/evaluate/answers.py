"""What an evaluation command answers: lines of its output that are JSON, and the scores in them."""

import difflib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ckptwatch.core.logged import direction
from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import metric_error
from ckptwatch.formats.reading import is_name, whole_number
from ckptwatch.model import MetricSpec, Score

LONGEST_LINE = 1024 * 1024  # bytes; what is longer is no answer
DEEPEST = 8                 # objects within objects
MOST = 1000                 # metrics of one answer
PARTS = 1000                # into how many steps a progress in fractions is divided
_DEFINITION = "as the evaluation command answers"
_COUNTS = ("n", "num_samples")
_SCORE = frozenset({"value", "low", "high", *_COUNTS})
NEAREST = 5                 # names shown where one is missing

Progress = tuple[str, int, int]  # stage ("" where it says none), done, total


class Output:
    """Standard output as it comes. Each line that is a JSON object is progress, a pair of prediction and target, or an
    answer, of which the last counts. Everything else is passed over, whatever its size."""

    def __init__(self, pair: Callable[[Mapping[str, Any]], None]) -> None:
        self.progress: Progress | None = None  # the newest
        self._pair = pair
        self._answer = b""
        self._line = bytearray()
        self._too_long = False

    def hear(self, data: bytes) -> None:
        """The next bytes of it. Raises nothing but what `pair` raises."""
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._more(piece)
            self._end_line()
        self._more(rest)

    def answer(self) -> Mapping[str, Any] | None:
        """After the end: the last object that was neither progress nor a pair."""
        self._end_line()
        return json_object(self._answer)

    def _more(self, piece: bytes) -> None:
        if self._too_long or len(self._line) + len(piece) > LONGEST_LINE:
            self._too_long = True
            self._line.clear()
        else:
            self._line += piece

    def _end_line(self) -> None:
        line, self._too_long = bytes(self._line), False
        self._line.clear()
        # A progress bar that returns to the beginning of its line leaves what is behind the last return.
        line = line.strip().rpartition(b"\r")[2].strip()
        if (said := json_object(line)) is None:
            return
        if isinstance(sample := said.get("sample"), dict):
            self._pair(sample)
        elif "progress" in said and "total" in said:
            self.progress = progress_of(said) or self.progress
        else:
            self._answer = line


def json_object(line: bytes) -> Mapping[str, Any] | None:
    """The object that a line is; None for anything else."""
    if not (line.startswith(b"{") and line.endswith(b"}")):
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def progress_of(said: Mapping[str, Any]) -> Progress | None:
    """None where the numbers are none, or make no sense."""
    done, total = _number(said["progress"]), _number(said["total"])
    if done is None or total is None or not (0 <= done < math.inf and 0 < total < math.inf):
        return None
    stage = said["stage"] if is_name(said.get("stage"), 40) else ""
    if done != int(done) or total != int(total) or total > 2**53:
        done, total = PARTS * (done / total), PARTS
    return stage, int(min(done, total)), int(total)


def scores_of(answer: Mapping[str, Any], wanted: Sequence[MetricSpec]) -> tuple[Score, ...]:
    """Every number of an answer as a score, those of the recipe first. Null is NaN.

    A score is a number or {"value", "low", "high", "n"}; objects within objects give names such as "val/bleu"; "n" or
    "num_samples" beside scores is how many samples they rest on. Raises EvaluationError (METRIC) where one of the recipe's
    is missing or is no number, or there is none at all.
    """
    found: dict[str, Score] = {}
    odd: dict[str, Any] = {}
    for name, value in _leaves(answer, "", None, 0):
        if isinstance(value, Score):
            found[name] = value
        else:
            odd[name] = value
        if len(found) > MOST:
            raise _error(f"more than {MOST:,} numbers", "let it answer the metrics alone, and write the rest to a file")
    missing = [spec.name for spec in wanted if spec.name not in found]
    if missing:
        raise _missing(missing, found, odd)
    if not found:
        raise _error("no numbers in it", 'it should look like {"accuracy": 0.93, "n": 500}')
    modes = {spec.name: spec.mode for spec in wanted}
    names = [*modes, *(name for name in found if name not in modes)]
    return tuple(_with_mode(found[name], modes.get(name)) for name in names)


def _leaves(part: Mapping[str, Any], prefix: str, n: int | None, depth: int) -> Iterator[tuple[str, Any]]:
    """(name, Score), or (name, whatever stands there) for what is no score."""
    own = next((count for key in _COUNTS if (count := whole_number(part.get(key))) is not None), n)
    for key, value in part.items():
        name = f"{prefix}{key}"
        if not is_name(name) or key in _COUNTS:
            continue
        if isinstance(value, dict) and not _is_score(value):
            if depth < DEEPEST:
                yield from _leaves(value, f"{name}/", own, depth + 1)
            continue
        yield name, _score(name, value if isinstance(value, dict) else {"value": value}, own)


def _is_score(value: Mapping[str, Any]) -> bool:
    return "value" in value and value.keys() <= _SCORE


def _score(name: str, given: Mapping[str, Any], n: int | None) -> Any:
    value = math.nan if given["value"] is None else _number(given["value"])
    if value is None:
        return given["value"]
    low, high = (b if b is not None and math.isfinite(b) else None for b in (_number(given.get(k)) for k in ("low", "high")))
    if low is None or high is None or low > high:
        low = high = None
    counts = (whole_number(given.get(key)) for key in _COUNTS)
    return Score(metric=name, value=value, low=low, high=high, n=next((c for c in counts if c is not None), n),
                 definition=_DEFINITION)


def _with_mode(score: Score, mode: Any) -> Score:
    return Score(metric=score.metric, value=score.value, low=score.low, high=score.high, n=score.n,
                 mode=mode or direction(score.metric), definition=score.definition)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # JSON's integers have no end
        return math.inf if value > 0 else -math.inf


def _missing(missing: Sequence[str], found: Mapping[str, Score], odd: Mapping[str, Any]) -> EvaluationError:
    said = []
    for name in missing:
        if name in odd:
            said.append(f"`{name}` is no number but {str(odd[name])[:60]!r}")
            continue
        last = name.rpartition("/")[2]
        near = [other for other in found if last == other.rpartition("/")[2]]
        near = near or difflib.get_close_matches(name, found, n=2, cutoff=0.5)
        said.append(f"no `{name}`" + (f" (nearest: {', '.join(near[:NEAREST])})" if near else ""))
    came = ", ".join(list(found)[:20]) or "no numbers"
    return _error(f"{'; '.join(said)}; it has {came}",
                  "name the metrics of the recipe as the program does, or the other way round")


def _error(cause: str, hint: str) -> EvaluationError:
    return metric_error("use the answer of the evaluation command", cause, hint=hint, retryable=False)
