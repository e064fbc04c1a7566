"""What training logs: one row per log, its names, and their points in pieces that are never changed once they are full.

Appending costs the same however long a log is: the open piece of each name is written anew, at most PIECE points.
"""

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from ckptwatch.core.series import (
    HISTORY,
    RECENT,
    Curve,
    LogPoint,
    LogRow,
    Summary,
    merged,
    same_point,
    starts_over,
    summarise,
)
from ckptwatch.model import Attached
from ckptwatch.store.tables import attached, checkpoints, logs, points, runs, series

PIECE = 128    # points
NAMES = 1000   # of one log; a log with more has values for names
MOST = 2**53   # steps are kept as floats, which count no further
AT_ONCE = 500  # names in one query
_ACROSS = 3    # numbers of a point: step, epoch, value
_REACH = ("low_step", "high_step", "low_epoch", "high_epoch")


@dataclass(frozen=True, kw_only=True)
class Log:
    """One log of a run, as far as it has been read."""

    id: int
    run_id: int
    path: Path
    dialect: str
    place: Mapping[str, Any]
    restarts: int
    stretch: int
    begins: Mapping[int, float]  # stretch → seconds since the epoch before which none of it was written; 0: not known
    rows: int
    bad: int
    trouble: str
    read_at: float


# ---- logs -----------------------------------------------------------------------------------------------------------


def of_run(conn: Connection, run_id: int) -> tuple[Log, ...]:
    return tuple(_log(row) for row in conn.execute(select(logs).where(logs.c.run_id == run_id).order_by(logs.c.path)))


def begin(conn: Connection, *, run_id: int, path: Path, dialect: str, now: float, since: float = 0.0) -> Log:
    """A log seen for the first time; `since`: when it was not there yet."""
    conn.execute(insert(logs).values(
        run_id=run_id, path=str(path), dialect=dialect, place={}, begins={"0": since}, read_at=now))
    return _log(conn.execute(select(logs).where(logs.c.run_id == run_id, logs.c.path == str(path))).one())


def note(
    conn: Connection, log_id: int, *, place: Mapping[str, Any], restarted: bool, rows: int, bad: int, trouble: str,
    now: float,
) -> Log:
    """How far it has been read: `rows` and `bad` records more; `restarted`, if it was another file, or written anew."""
    conn.execute(update(logs).where(logs.c.id == log_id).values(
        place=dict(place), restarts=logs.c.restarts + restarted,
        rows=logs.c.rows + rows, bad=logs.c.bad + bad, trouble=trouble, read_at=now))
    return _log(conn.execute(select(logs).where(logs.c.id == log_id)).one())


def left_out(conn: Connection, log_id: int, count: int) -> Log:
    """So many values of it were not kept."""
    if count:
        words = f"values are left out: it has more than {NAMES:,} names, or counts without end"
        conn.execute(update(logs).where(logs.c.id == log_id).values(bad=logs.c.bad + count, trouble=words))
    return _log(conn.execute(select(logs).where(logs.c.id == log_id)).one())


def moved(conn: Connection, log_id: int, path: Path) -> None:
    """It was rotated: the same log under another name."""
    conn.execute(update(logs).where(logs.c.id == log_id).values(path=str(path)))


def drop(conn: Connection, log_id: int) -> None:
    """Forget a log and all that was read of it."""
    own = select(series.c.id).where(series.c.log_id == log_id)
    conn.execute(delete(points).where(points.c.series_id.in_(own)))
    conn.execute(delete(series).where(series.c.log_id == log_id))
    conn.execute(delete(logs).where(logs.c.id == log_id))


# ---- points ---------------------------------------------------------------------------------------------------------


def append(conn: Connection, log: Log, rows: Sequence[LogRow], *, since: float = 0.0) -> int:
    """Add rows to a log. Where the steps of any name start over, another stretch of training begins, for all names.

    `since`: when the file was as it was before these rows; none of them was written earlier. Returns how many values were
    left out because the log has more than NAMES names, or because their step is no number a file could count to.
    """
    known, left_out = _series(conn, log, dict.fromkeys(name for row in rows for name in row.values))
    stretch, begins = log.stretch, {str(k): v for k, v in log.begins.items()}
    for row in rows:
        step = row.step if row.step is None or abs(row.step) < MOST else None
        if step is None and row.epoch is None:
            left_out += len(row.values)
            continue
        new = {name: LogPoint(step=step, epoch=row.epoch, value=value)
               for name, value in row.values.items() if name in known}
        if any(known[name].starts_over(point, stretch) for name, point in new.items()):
            stretch += 1
            begins[str(stretch)] = since
        for name, point in new.items():
            if known[name].take(point, stretch, log.restarts):  # only another edition of the file
                begins[str(stretch)] = begins.get(str(known[name].copies[-1]), 0.0)
    for growing in known.values():
        if growing.fresh:
            _store(conn, growing)
    if (stretch, begins) != (log.stretch, {str(k): v for k, v in log.begins.items()}):
        conn.execute(update(logs).where(logs.c.id == log.id).values(stretch=stretch, begins=begins))
    return left_out


class _Growing:
    """One name of a log while rows are added."""

    def __init__(self, row: Any) -> None:
        self.id, self.stretch, self.restarts = row.id, row.stretch, row.restarts
        self.first, self.last = _point(row.first), _point(row.last)
        self.fresh: dict[int, list[LogPoint]] = {}
        self.copies: list[int] = []  # stretches that were only an earlier edition of a file

    def starts_over(self, point: LogPoint, stretch: int) -> bool:
        return self.first is not None and self.stretch == stretch and starts_over(self.first, self.last, point)

    def take(self, point: LogPoint, stretch: int, restarts: int) -> bool:
        """True if a file is written anew from its beginning, as tables are when they get a column: no other stretch."""
        copy = False
        if self.first is None or self.stretch != stretch:
            copy = self.first is not None and self.restarts != restarts and same_point(self.first, point)
            if copy:
                self.copies.append(self.stretch)
            self.first, self.stretch = point, stretch
        self.last, self.restarts = point, restarts
        self.fresh.setdefault(stretch, []).append(point)
        return copy


def _series(conn: Connection, log: Log, names: Iterable[str]) -> tuple[dict[str, _Growing], int]:
    """The names that rows have, and how many there was no room for."""
    wanted = list(names)
    known = _known_series(conn, log, wanted)
    missing = [name for name in wanted if name not in known]
    room = 0
    if missing:
        count = select(func.count()).select_from(series).where(series.c.log_id == log.id)
        room = max(0, NAMES - conn.execute(count).scalar_one())
    if fresh := missing[:room]:
        conn.execute(insert(series), [{"log_id": log.id, "name": name, "stretch": 0, "restarts": 0, "first": None,
                                       "last": None} for name in fresh])
        known |= _known_series(conn, log, fresh)
    return {name: _Growing(row) for name, row in known.items()}, len(missing) - len(missing[:room])


def _known_series(conn: Connection, log: Log, names: Sequence[str]) -> dict[str, Row]:
    found = {}
    for begin in range(0, len(names), AT_ONCE):
        query = select(series).where(series.c.log_id == log.id, series.c.name.in_(names[begin:begin + AT_ONCE]))
        found |= {row.name: row for row in conn.execute(query)}
    return found


def _store(conn: Connection, growing: _Growing) -> None:
    c = points.c
    for stretch in growing.copies:
        conn.execute(delete(points).where(c.series_id == growing.id, c.stretch == stretch))
    rows = []
    for stretch, new in growing.fresh.items():
        last = conn.execute(select(points).where(c.series_id == growing.id, c.stretch == stretch)
                            .order_by(c.number.desc()).limit(1)).one_or_none()
        piece = _Piece() if last is None else _Piece(last.number, last)
        for begin, end in _portions(len(new), PIECE - piece.count):
            if piece.full:
                rows.append(piece.row(growing.id, stretch))
                piece = _Piece(piece.number + 1)
            piece.add(new[begin:end])
        rows.append(piece.row(growing.id, stretch))
    statement = upsert(points)
    conn.execute(statement.on_conflict_do_update(
        index_elements=["series_id", "stretch", "number"],
        set_={name: statement.excluded[name] for name in ("data", "summary", *_REACH)}), rows)
    conn.execute(update(series).where(series.c.id == growing.id).values(
        stretch=growing.stretch, restarts=growing.restarts, first=_plain_point(growing.first),
        last=_plain_point(growing.last)))


def _portions(count: int, room: int) -> Iterable[tuple[int, int]]:
    """Ranges of so many points: first what there is room for, then a piece at a time."""
    begin = 0
    while begin < count:
        end = min(count, begin + (room if room else PIECE))
        yield begin, end
        begin, room = end, PIECE


class _Piece:
    """At most PIECE points of one stretch."""

    def __init__(self, number: int = 0, row: Any = None) -> None:
        self.number = number
        self._flat = array("d")
        self._summary = Summary()
        self._reach: dict[str, float | None] = dict.fromkeys(_REACH)
        if row is not None:
            self._flat.frombytes(row.data)
            self._summary = _summary(row.summary)
            self._reach = {name: getattr(row, name) for name in _REACH}

    @property
    def count(self) -> int:
        return len(self._flat) // _ACROSS

    @property
    def full(self) -> bool:
        return self.count >= PIECE

    def add(self, new: Sequence[LogPoint]) -> None:
        for point in new:
            self._flat.extend((_or_nan(point.step), _or_nan(point.epoch), point.value))
        self._summary = summarise(new, self._summary)
        self._widen("step", [p.step for p in new if p.step is not None])
        self._widen("epoch", [p.epoch for p in new if p.epoch is not None])

    def _widen(self, unit: str, counts: Sequence[float]) -> None:
        if counts:
            low, high = self._reach[f"low_{unit}"], self._reach[f"high_{unit}"]
            self._reach[f"low_{unit}"] = min(counts) if low is None else min(low, *counts)
            self._reach[f"high_{unit}"] = max(counts) if high is None else max(high, *counts)

    def row(self, series_id: int, stretch: int) -> dict[str, Any]:
        return {"series_id": series_id, "stretch": stretch, "number": self.number, "data": self._flat.tobytes(),
                "summary": _plain(self._summary), **self._reach}


# ---- reading points -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Track:
    """One name of a log."""

    log: Log
    series_id: int
    name: str
    stretch: int  # the newest it was seen in


def tracks(conn: Connection, run_id: int) -> list[Track]:
    """All names that a run's logs hold, by log and name."""
    query = (select(logs, series.c.id.label("series_id"), series.c.name, series.c.stretch.label("newest"))
             .join(series, series.c.log_id == logs.c.id).where(logs.c.run_id == run_id).order_by(logs.c.path, series.c.name))
    known: dict[int, Log] = {}
    found = []
    for row in conn.execute(query):
        if row.id not in known:
            known[row.id] = _log(row)
        found.append(Track(log=known[row.id], series_id=row.series_id, name=row.name, stretch=row.newest))
    return found


def reach(conn: Connection, log_id: int, *, epochs: bool) -> dict[int, tuple[float, float]]:
    """Stretch → its lowest and highest step, or epoch, over all names of a log. Cheap where there was one stretch."""
    low, high = (points.c.low_epoch, points.c.high_epoch) if epochs else (points.c.low_step, points.c.high_step)
    query = (select(points.c.stretch, func.min(low), func.max(high)).join(series, series.c.id == points.c.series_id)
             .where(series.c.log_id == log_id, low.is_not(None)).group_by(points.c.stretch))
    return {stretch: (least, most) for stretch, least, most in conn.execute(query).tuples()}


def count_steps(conn: Connection, run_id: int) -> bool:
    """Does any log of a run count steps? True as well where there is none."""
    query = (select(points.c.low_step).join(series, series.c.id == points.c.series_id)
             .join(logs, logs.c.id == series.c.log_id).where(logs.c.run_id == run_id))
    counted = conn.execute(query.where(points.c.low_step.is_not(None)).limit(1)).first()
    return counted is not None or conn.execute(query.limit(1)).first() is None


def near(
    conn: Connection, track: Track, stretch: int, count: float, *, epochs: bool, beyond: bool = False,
) -> list[LogPoint]:
    """The points around a step, or epoch: the two pieces up to it; `beyond`, also the one after."""
    c = points.c
    low = c.low_epoch if epochs else c.low_step
    own = select(c.number, c.data).where(c.series_id == track.series_id, c.stretch == stretch)
    found = list(conn.execute(own.where(low <= count).order_by(c.number.desc()).limit(2)).tuples())
    if beyond:
        found += conn.execute(own.where(low > count).order_by(c.number).limit(1)).tuples()
    return [point for _, data in sorted(found, key=lambda f: f[0]) for point in _points(data)]


class Totals:
    """Summaries of names, each full piece read once."""

    def __init__(self) -> None:
        self._full: dict[tuple[int, int], tuple[int, Summary]] = {}

    def of(self, conn: Connection, track: Track, stretch: int) -> Summary:
        """Of all points of an stretch."""
        c = points.c
        behind, total = self._full.get((track.series_id, stretch), (0, Summary()))
        query = select(c.number, c.summary).where(c.series_id == track.series_id, c.stretch == stretch, c.number >= behind)
        pieces = list(conn.execute(query.order_by(c.number)).tuples())
        for number, raw in pieces[:-1]:
            behind, total = number + 1, merged(total, _summary(raw))
        self._full[track.series_id, stretch] = (behind, total)
        return merged(total, _summary(pieces[-1][1])) if pieces else total


def curve_of(conn: Connection, track: Track, totals: Totals) -> Curve:
    """The newest stretch as the health checks see it: the newest points whole, the others as means of pieces."""
    c = points.c
    own = select(c.number, c.data).where(c.series_id == track.series_id, c.stretch == track.stretch)
    newest = sorted(conn.execute(own.order_by(c.number.desc()).limit(RECENT // PIECE)).tuples(), key=lambda f: f[0])
    recent = [point for _, data in newest for point in _points(data)]
    history = recent
    if newest and newest[0][0] > 0:
        stride = newest[-1][0] // HISTORY + 1
        query = select(c.summary).where(c.series_id == track.series_id, c.stretch == track.stretch,
                                        c.number % stride == 0).order_by(c.number)
        outlines = (_summary(raw) for raw in conn.execute(query).scalars())
        history = [LogPoint(step=s.last.step, epoch=s.last.epoch, value=s.mean)
                   for s in outlines if s.count and s.last is not None]
    return Curve(name=track.name, recent=recent, history=history, summary=totals.of(conn, track, track.stretch))


def summaries(conn: Connection, run_id: int) -> list[tuple[str, str, Summary]]:
    """(name, log below the run's directory, summary of all stretches) of everything a run logged."""
    path = Path(conn.execute(select(runs.c.path).where(runs.c.id == run_id)).scalar_one())
    totals, found = Totals(), []
    for track in tracks(conn, run_id):
        whole = Summary()
        query = select(points.c.stretch).where(points.c.series_id == track.series_id).distinct()
        for stretch in sorted(conn.execute(query).scalars()):
            whole = merged(whole, totals.of(conn, track, stretch))
        found.append((track.name, shown(track.log.path, path), whole))
    return found


def shown(path: Path, run: Path) -> str:
    """A log's path as a person of that run would say it."""
    return str(path.relative_to(run)) if path.is_relative_to(run) else str(path)


# ---- what belongs to a checkpoint ------------------------------------------------------------------------------------


def attach(conn: Connection, checkpoint_id: int, values: Mapping[str, Attached]) -> None:
    """Record what belongs to a checkpoint, in place of what did."""
    conn.execute(delete(attached).where(attached.c.checkpoint_id == checkpoint_id))
    if values:
        conn.execute(insert(attached), [
            {"checkpoint_id": checkpoint_id, "name": name, "value": v.value if math.isfinite(v.value) else None,
             "step": v.step, "epoch": v.epoch, "source": v.source} for name, v in values.items()])


def attached_in(conn: Connection, run_id: int) -> dict[int, dict[str, Attached]]:
    """Checkpoint id → its logged values, for a whole run."""
    query = (select(attached).join(checkpoints, checkpoints.c.id == attached.c.checkpoint_id)
             .where(checkpoints.c.run_id == run_id))
    found: dict[int, dict[str, Attached]] = {}
    for row in conn.execute(query):
        found.setdefault(row.checkpoint_id, {})[row.name] = _attached(row)
    return found


def written_at(conn: Connection, run_id: int) -> float | None:
    """When a log of a run was last written, by its file's time; None without any."""
    times = [log.place.get("mtime_ns", 0) / 1e9 for log in of_run(conn, run_id) if log.rows]
    return max(times, default=None)


# ---- rows -----------------------------------------------------------------------------------------------------------


def _log(row: Any) -> Log:
    return Log(id=row.id, run_id=row.run_id, path=Path(row.path), dialect=row.dialect, place=row.place,
               restarts=row.restarts, stretch=row.stretch, begins={int(k): v for k, v in row.begins.items()},
               rows=row.rows, bad=row.bad, trouble=row.trouble, read_at=row.read_at)


def _attached(row: Any) -> Attached:
    return Attached(value=math.nan if row.value is None else row.value, step=row.step, epoch=row.epoch, source=row.source)


def _points(data: bytes) -> list[LogPoint]:
    flat = array("d", data)
    return [LogPoint(step=None if math.isnan(s) else int(s), epoch=None if math.isnan(e) else e, value=v)
            for s, e, v in zip(flat[0::3], flat[1::3], flat[2::3], strict=True)]


def _or_nan(count: float | None) -> float:
    return math.nan if count is None else float(count)


def _plain(s: Summary) -> dict[str, Any]:
    """JSON has no Inf; and with the counts that the points of a piece span."""
    return {"n": s.count, "bad": s.not_finite, "mean": s.mean, "m2": s.m2,
            "low": _plain_point(s.low_at), "high": _plain_point(s.high_at), "last": _plain_point(s.last)}


def _plain_point(p: LogPoint | None) -> list[Any] | None:
    return None if p is None else [p.step, p.epoch, repr(p.value)]


def _summary(raw: Mapping[str, Any]) -> Summary:
    low, high, last = (_point(raw[key]) for key in ("low", "high", "last"))
    return Summary(count=raw["n"], not_finite=raw["bad"], mean=raw["mean"], m2=raw["m2"],
                   low=math.inf if low is None else low.value, high=-math.inf if high is None else high.value,
                   low_at=low, high_at=high, last=last)


def _point(raw: list[Any] | None) -> LogPoint | None:
    return None if raw is None else LogPoint(step=raw[0], epoch=raw[1], value=float(raw[2]))
