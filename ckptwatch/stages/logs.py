"""What training logs: its files found and followed, their values recorded and given to the checkpoints they belong to."""

import logging
import math
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from ckptwatch.core.attaching import NEAREST
from ckptwatch.core.series import LogRow
from ckptwatch.errors import StateError
from ckptwatch.logs.base import Dialect
from ckptwatch.logs.finder import find_logs
from ckptwatch.logs.follower import Follower, Place
from ckptwatch.logs.registry import dialect_named, dialect_of
from ckptwatch.model import Checkpoint, Logged, Run
from ckptwatch.settings import Settings
from ckptwatch.stages.belonging import belonging
from ckptwatch.store import logs, runs
from ckptwatch.store.database import Connection, Database
from ckptwatch.store.logs import Log

log = logging.getLogger(__name__)

PORTION = 1 << 20     # bytes of one log read at a time
PATIENCE = 0.25       # seconds of reading before the daemon listens again
Clock = Callable[[], float]
_Stat = tuple[int, int, int]  # inode, size, mtime_ns


@dataclass(kw_only=True)
class _Followed:
    log: Log
    follower: Follower
    stat: _Stat | None = None
    seen_at: float = 0.0  # when it was last looked at: what it says since was not written before


@dataclass(kw_only=True)
class _News:
    """From where on the logs of a run say what they did not say before."""

    step: float = math.inf
    epoch: float = math.inf

    def add(self, rows: Iterable[LogRow]) -> None:
        for row in rows:
            if row.step is not None:
                self.step = min(self.step, row.step)
            if row.epoch is not None:
                self.epoch = min(self.epoch, row.epoch)

    def may_concern(self, c: Checkpoint) -> bool:
        return ((c.step is not None and c.step >= self.step) or (c.epoch is not None and c.epoch >= self.epoch)
                or (self.step < math.inf and c.step is None) or (self.epoch < math.inf and c.epoch is None))


@dataclass(kw_only=True)
class _Watched:
    """One run as this stage sees it. Paths are strings: they are looked at several times a minute for thousands of runs."""

    run: Run
    logged: Logged
    directories: dict[str, int] = field(default_factory=dict)  # → mtime_ns when they were listed
    files: dict[str, _Followed] = field(default_factory=dict)
    foreign: dict[str, _Stat] = field(default_factory=dict)    # files that no dialect took for a log
    listed: bool = False
    listed_at: float = 0.0
    given: set[int] = field(default_factory=set)  # checkpoints that have what was logged so far
    news: _News = field(default_factory=_News)


class LogStage:
    """Follows the logs of all runs that go on. Never writes below a root, never holds a log open."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self._db = db
        self._settings = settings
        self._runs: dict[int, _Watched] = {}
        self._by_path: dict[Path, _Watched] = {}
        self._places: list[str] | None = None  # directories of all runs, sorted; None: to be made anew
        self._unread: set[int] = set()   # runs with more to read than there was time for
        self._new: set[int] = set()      # runs whose checkpoints changed
        self._troubles: dict[str, str] = {}
        self._failed: set[int] = set()   # runs whose logs raised what they should not; said once
        self._grown: set[int] = set()
        self._unmatched: set[int] = set()  # runs for which the configuration names logs that are not there; said once

    @property
    def pending(self) -> bool:
        """Is there more to read, or to give to checkpoints, at once?"""
        return bool(self._unread or self._new)

    def refresh(self) -> None:
        """Take up runs that are new or go on again; let go of those that have ended."""
        with self._db.read() as conn:
            every = runs.all_runs(conn)
            living = {r.id: r for r in every if r.ended_at is None}
            for run in living.values():
                self._take_up(conn, run)
        for run_id in self._runs.keys() - living.keys() - self._unread:
            del self._by_path[self._runs.pop(run_id).run.path]
            self._places = None

    def take_grown(self) -> set[int]:
        """Runs whose logs have grown since this was asked last."""
        grown, self._grown = self._grown, set()
        return grown

    def changed(self, run_ids: Iterable[int]) -> None:
        """Checkpoints of these runs came or went: what is logged may be theirs."""
        self._new.update(run_ids)

    def look(self, *, mono: Clock, now: float, final: bool = False) -> set[int]:
        """Read what the logs have grown by, for a while. Returns the ids of runs whose checkpoints got other values.

        `final`: also a last line without its end, as nobody will write it. Raises StateError if the database cannot be
        written; then everything is read again from where it was recorded.
        """
        try:
            return self._look(mono=mono, now=now, final=final)
        except StateError:
            # The followers are ahead of the record: what they have read would be lost.
            self._new.update(self._runs)
            self._runs, self._by_path, self._places = {}, {}, None
            self._unread.clear()
            raise

    def _look(self, *, mono: Clock, now: float, final: bool) -> set[int]:
        begin, touched = mono(), set()
        if unknown := self._new - self._runs.keys():
            with self._db.read() as conn:
                for run_id in unknown:
                    self._take_up(conn, runs.run(conn, run_id))
        # Those that were left over last time come first.
        for run_id in sorted(self._runs, key=lambda i: i not in self._unread):
            if mono() - begin > PATIENCE:
                self._unread.add(run_id)  # its turn comes as soon as the daemon has listened
            elif self._visit(run_id, self._runs[run_id], now=now, final=final):
                touched.add(run_id)
        return touched

    def _visit(self, run_id: int, watched: _Watched, *, now: float, final: bool) -> bool:
        """True if a checkpoint of the run got other values."""
        try:
            read = self._look_at(watched, now=now, final=final)
            if run_id in self._unread or not (read or run_id in self._new):
                return False  # the back catalogue of a log is read to its end first
            self._new.discard(run_id)
            return self._give(watched)
        except StateError:
            raise
        except Exception:  # whatever is in a log must not end the care for the others
            if run_id not in self._failed:
                log.exception("the logs of %s could not be read", watched.run.name)
            self._failed.add(run_id)
            # What was read and not recorded is read again from there, when the run is taken up anew.
            self._by_path.pop(self._runs.pop(run_id).run.path, None)
            self._places = None
            self._unread.discard(run_id)
            self._new.discard(run_id)
            return False

    # ---- finding -------------------------------------------------------------------------------------------------

    def _take_up(self, conn: Connection, run: Run) -> None:
        if run.id in self._runs:
            return
        rule = self._settings.rule_for(run.name)
        watched = _Watched(run=run, logged=rule.logged)
        for known in logs.of_run(conn, run.id):
            if (dialect := dialect_named(known.dialect)) is not None:
                follower = Follower(known.path, dialect, watched.logged, Place.from_plain(known.place))
                watched.files[str(known.path)] = _Followed(log=known, follower=follower, seen_at=known.read_at)
        watched.given = set(logs.attached_in(conn, run.id))  # they have what was logged until the daemon ended
        self._runs[run.id] = watched
        self._places = None
        self._by_path[run.path] = watched
        for parent in run.path.parents:  # a run within another takes the logs below its directory along
            if (outer := self._by_path.get(parent)) is not None:
                outer.listed = False

    def _below(self, run: Run) -> list[Path]:
        """Directories of the runs that lie within this one's."""
        if self._places is None:
            self._places = sorted(str(w.run.path) for w in self._runs.values())
        top = f"{run.path}{os.sep}"
        begin = bisect_left(self._places, top)
        return [Path(place) for place in takewhile(lambda p: p.startswith(top), self._places[begin:])]

    def _look_at(self, watched: _Watched, *, now: float, final: bool) -> bool:
        """True if anything was read."""
        if self._listing_is_old(watched):
            self._list(watched, now)
        read = False
        self._unread.discard(watched.run.id)
        for path, followed in list(watched.files.items()):
            stat = _stat(path)
            if stat is None:
                continue
            if stat != followed.stat or final:
                read |= self._read(watched, path, followed, stat, now=now, final=final)
            followed.seen_at = now
        return read

    def _listing_is_old(self, watched: _Watched) -> bool:
        if not watched.listed:
            return True
        for directory, mtime in watched.directories.items():
            try:
                if os.stat(directory).st_mtime_ns != mtime:  # noqa: PTH116 - a Path each time would take longer
                    return True
            except OSError:
                return True
        if not watched.directories:
            return watched.run.path.is_dir()  # it is back
        # A file that was nobody's log when it was empty may have become one.
        return any(_stat(path) != stat for path, stat in watched.foreign.items())

    def _list(self, watched: _Watched, now: float) -> None:
        run = watched.run
        below = self._below(run)
        found = find_logs(run.path, below, watched.logged)
        watched.directories = {str(d): mtime for d in found.directories if (mtime := _mtime(d, now)) is not None}
        before, watched.listed_at, watched.listed = watched.listed_at, now, True
        watched.foreign = {}
        if not watched.logged.files:
            self._let_go(watched, below)
        elif not found.files and run.id not in self._unmatched:
            self._unmatched.add(run.id)
            log.warning("%s: no log matches %s below %s", run.name, ", ".join(watched.logged.files), run.path)
        for path in found.files:
            if str(path) in watched.files or not _can_be_recorded(path) or self._is_rotated(watched, path):
                continue
            dialect = dialect_of(path, run.path, watched.logged)
            if dialect is None:
                if (stat := _stat(str(path))) is not None and stat[1] < LATE:
                    watched.foreign[str(path)] = stat
                continue
            if self._goes_on(watched, path, dialect):
                continue
            # It was not there at the listing before; but one that was copied here may be of any age.
            since = before if (stat := _stat(str(path))) is not None and stat[2] / 1e9 >= before else 0.0
            with self._db.write() as conn:
                begun = logs.begin(conn, run_id=run.id, path=path, dialect=dialect.name, now=now, since=since)
            log.info("%s: reading %s (%s)", run.name, logs.shown(path, run.path), dialect.title)
            watched.files[str(path)] = _Followed(log=begun, follower=Follower(path, dialect, watched.logged, None))

    def _let_go(self, watched: _Watched, below: Sequence[Path]) -> None:
        """Logs below the directory of another run are that run's."""
        for path, followed in list(watched.files.items()):
            if any(Path(path).is_relative_to(place) for place in below):
                self._drop(watched, path, followed)

    def _drop(self, watched: _Watched, path: str, followed: _Followed) -> None:
        """A log is not this run's, or not what it was: what it gave to checkpoints is taken back."""
        del watched.files[path]
        with self._db.write() as conn:
            logs.drop(conn, followed.log.id)
        watched.given, watched.listed = set(), False
        self._new.add(watched.run.id)

    def _is_rotated(self, watched: _Watched, path: Path) -> bool:
        """A log that was renamed when another began under its name: `train.log` that is now `train.log.1`."""
        stat = _stat(str(path))
        for before, followed in watched.files.items():
            if stat is not None and followed.stat is not None and followed.stat[0] == stat[0]:
                there = _stat(before)
                dialect = dialect_named(followed.log.dialect)
                moved = (there is None or there[0] != stat[0]) and followed.follower.goes_on_in(path)
                if dialect is not None and moved:
                    self._move(watched, before, path, dialect)
                    watched.listed = False  # the name may have a new file already: this listing met it, or the next does
                    return True
        return False

    def _goes_on(self, watched: _Watched, path: Path, dialect: Dialect) -> bool:
        """The Trainer writes all of its history into each checkpoint: that of a newer one is the same log, and longer."""
        older = next((p for p, f in watched.files.items() if f.log.dialect == dialect.name and f.follower.whole
                      and Path(p).name == path.name and Path(p).parent.parent == path.parent.parent
                      and Path(p).parent != watched.run.path), None)
        if older is None or path.parent == watched.run.path:
            return False
        self._move(watched, older, path, dialect)
        return True

    def _move(self, watched: _Watched, before: str, path: Path, dialect: Dialect) -> None:
        followed = watched.files.pop(before)
        with self._db.write() as conn:
            logs.moved(conn, followed.log.id, path)
        followed.follower = Follower(path, dialect, watched.logged, followed.follower.place)
        followed.stat = None
        watched.files[str(path)] = followed

    # ---- reading -------------------------------------------------------------------------------------------------

    def _read(
        self, watched: _Watched, path: str, followed: _Followed, stat: _Stat, *, now: float, final: bool,
    ) -> bool:
        polled = followed.follower.poll(limit=PORTION, final=final)
        followed.stat = stat
        if polled.more:
            self._unread.add(watched.run.id)
            followed.stat = None
        if polled.trouble and self._troubles.get(path) != polled.trouble:
            log.warning("%s: %s: %s", watched.run.name, logs.shown(Path(path), watched.run.path), polled.trouble)
        self._troubles[path] = polled.trouble
        if polled.restarted and self._is_of_another_dialect(watched, path, followed):
            self._drop(watched, path, followed)
            return False
        place = followed.follower.place.to_plain()
        if not polled.rows and not polled.bad and not polled.restarted and place == followed.log.place:
            return False
        # A file that was copied here has the time of where it came from.
        since = followed.seen_at if stat[2] / 1e9 >= followed.seen_at else followed.log.place.get("mtime_ns", 0) / 1e9
        with self._db.write() as conn:
            followed.log = logs.note(
                conn, followed.log.id, place=place, restarted=polled.restarted, rows=len(polled.rows), bad=polled.bad,
                trouble=polled.trouble, now=now)
            if polled.rows:
                left_out = logs.append(conn, followed.log, polled.rows, since=since)
                followed.log = logs.left_out(conn, followed.log.id, left_out)
        watched.news.add(polled.rows)
        self._grown.add(watched.run.id)
        return bool(polled.rows)

    def _is_of_another_dialect(self, watched: _Watched, path: str, followed: _Followed) -> bool:
        found = dialect_of(Path(path), watched.run.path, watched.logged)
        return found is not None and found.name != followed.log.dialect

    # ---- giving --------------------------------------------------------------------------------------------------

    def _give(self, watched: _Watched) -> bool:
        """Give logged values to the checkpoints of a run. True if any checkpoint got others than it had."""
        considered: set[int] = set()

        def wanted(c: Checkpoint) -> bool:
            considered.add(c.id)
            return c.id not in watched.given or watched.news.may_concern(c) or watched.logged.attach == NEAREST

        with self._db.read() as conn:
            changes = belonging(conn, watched.run, watched.logged, wanted=wanted)
        watched.given, watched.news = considered, _News()
        if not changes:
            return False
        with self._db.write() as conn:
            for checkpoint_id, values in changes.items():
                logs.attach(conn, checkpoint_id, values)
        return True


TICK = 0.1   # seconds within which a directory may change twice and show one time
LATE = 4096  # bytes below which a file may still become a log: its first line was not whole


def _stat(path: str) -> _Stat | None:
    try:
        info = os.stat(path)  # noqa: PTH116 - a Path each time would take longer
    except OSError:
        return None
    return (info.st_ino, info.st_size, info.st_mtime_ns)


def _mtime(path: Path, now: float) -> int | None:
    """When a directory changed; −1, so that it is looked at again, if that was just now: the clock of files ticks slowly."""
    try:
        mtime = path.stat().st_mtime_ns
    except OSError:
        return None
    return mtime if now - mtime / 1e9 > TICK else -1


def _can_be_recorded(path: Path) -> bool:
    """A name that is no text cannot: the database holds text."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
