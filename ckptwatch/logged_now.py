"""Everything a run has logged until now, in a few numbers for each name, straight from its logs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckptwatch.core.series import LogRow
from ckptwatch.logs.finder import find_logs
from ckptwatch.logs.follower import Follower
from ckptwatch.logs.registry import dialect_of
from ckptwatch.model import Logged

MOST_BYTES = 1 << 30   # of one log that are read
MOST_NAMES = 10_000
_PORTION = 4 << 20


@dataclass(kw_only=True)
class Series:
    """One name."""

    count: int = 0
    last: float = math.nan
    not_finite: int = 0
    first_bad: str = ""  # where the first NaN or Inf stood: "step 30"


@dataclass(frozen=True, kw_only=True)
class LoggedNow:
    logs: tuple[str, ...] = ()  # paths below the run's directory
    series: Mapping[str, Series] = field(default_factory=dict)


def logged_in(run: Path, others: Sequence[Path], logged: Logged) -> LoggedNow:
    """Of the run in this directory. What cannot be read is left out; memory grows with the names alone."""
    found: dict[str, Series] = {}
    names = []
    try:
        files = find_logs(run, list(others), logged).files
    except OSError:
        return LoggedNow()
    for path in files:
        dialect = dialect_of(path, run, logged)
        if dialect is None:
            continue
        names.append(str(path.relative_to(run)) if path.is_relative_to(run) else str(path))
        follower = Follower(path, dialect, logged)
        while (polled := follower.poll(limit=_PORTION, final=True)).rows or polled.more:
            _add(found, polled.rows)
            if not polled.more or follower.place.offset > MOST_BYTES:
                break
    return LoggedNow(logs=tuple(names), series=found)


def _add(found: dict[str, Series], rows: Iterable[LogRow]) -> None:
    for row in rows:
        for name, value in row.values.items():
            if name not in found and len(found) >= MOST_NAMES:
                continue
            series = found.setdefault(name, Series())
            series.count += 1
            series.last = value
            if not math.isfinite(value):
                series.not_finite += 1
                if not series.first_bad:
                    series.first_bad = _place(row)


def _place(row: LogRow) -> str:
    if row.step is not None:
        return f"step {row.step:,}"
    return f"epoch {row.epoch:g}" if row.epoch is not None else ""
