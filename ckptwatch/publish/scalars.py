"""TensorBoard scalars: every metric of every evaluated checkpoint at its training step.

Nothing here remembers what was written: the event files do. So a daemon that was killed carries on without a gap and
without a point drawn twice.
"""

import contextlib
import io
import logging
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ckptwatch.core.metrics import tag_of
from ckptwatch.model import Contender

IS_BEST = "Evaluation/IsBest"
_PREFIX = "events.out.tfevents."
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Point:
    tag: str
    step: int
    value: float
    wall_time: float


def points_of(contender: Contender, *, is_best: bool, wall_time: float) -> list[Point]:
    """The scalars of one contender: its finite scores, and whether it is the best. None without a step or scores.

    Runs that count only epochs are drawn over epochs. A variant has tags of its own, `Evaluation/FID/ema`.
    """
    step = contender.epoch if contender.step is None else contender.step
    if step is None:
        return []
    end = f"/{contender.variant}" if contender.variant else ""
    values = {
        tag_of(name): score.value for name, score in sorted(contender.scores.items())
        if math.isfinite(score.value) and not score.source  # the trainer draws what it logged by itself
    }
    if values:
        values[IS_BEST] = float(is_best)
    return [Point(tag=tag + end, step=step, value=value, wall_time=wall_time) for tag, value in values.items()]


class Scalars:
    """The event files of one directory. Opens a file of its own only once there is something to write.

    TensorBoard's record format without its EventFileWriter: that one writes from a thread, where an error goes unseen,
    and names files by the second, so that a daemon restarted within one sorts before what it wrote earlier.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._written: dict[tuple[str, int], float] | None = None  # the value last written at each tag and step
        self._file: BinaryIO | None = None

    def reconcile(self, points: Iterable[Point]) -> int:
        """Write what the directory does not hold yet; returns how many points that were. Raises OSError.

        A tag has one value at a step: of several given the last counts, and a value is written again only if it differs
        from the one last written there (a checkpoint that is no longer best).
        """
        if self._removed():
            self.close()
        if self._written is None:
            self._written = _read(self._directory)
        wanted = {(p.tag, p.step): p for p in points}
        missing = [p for key, p in wanted.items() if self._written.get(key) != _as_stored(p.value)]
        if not missing:
            return 0
        try:
            file = self._open(missing[0].wall_time)
            file.write(_records(_event(p) for p in missing))
            file.flush()
        except BaseException:
            # Nobody knows what arrived: read the files again, write to a new one.
            with contextlib.suppress(OSError):
                self.close()
            raise
        self._written |= {(p.tag, p.step): _as_stored(p.value) for p in missing}
        return len(missing)

    def close(self) -> None:
        """May be used again: what is there is then read anew."""
        file, self._file, self._written = self._file, None, None
        if file is not None:
            file.close()

    def _removed(self) -> bool:
        """Somebody removed what we wrote; writing on would go nowhere."""
        if self._file is not None and os.fstat(self._file.fileno()).st_nlink == 0:
            return True
        return bool(self._written) and not self._directory.is_dir()

    def _open(self, wall_time: float) -> BinaryIO:
        if self._file is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            # One more than the newest: TensorBoard reads files by name, whatever the clock says.
            number = 1 + max((_number(p) for p in _event_files(self._directory)), default=0)
            self._file = (self._directory / f"{_PREFIX}{number:010d}.ckptwatch").open("xb")
            self._file.write(_records([_header(wall_time)]))
        return self._file


def _event_files(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"{_PREFIX}*"))


def _number(path: Path) -> int:
    digits = path.name.removeprefix(_PREFIX)[:10]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def _records(events: Iterable[Any]) -> bytes:
    """In one piece, so that one write appends them."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()


def _header(wall_time: float) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=wall_time, file_version="brain.Event:2")


def _event(point: Point) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    value = Summary.Value(tag=point.tag, simple_value=point.value)
    return Event(wall_time=point.wall_time, step=point.step, summary=Summary(value=[value]))


def _read(directory: Path) -> dict[tuple[str, int], float]:
    """The last value at each tag and step. A record cut off by a crash ends its file; what is before it counts."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: dict[tuple[str, int], float] = {}
    for path in _event_files(directory):
        try:
            for event in LegacyEventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    if value.HasField("simple_value"):
                        found[value.tag, event.step] = value.simple_value
        except Exception as error:  # a damaged file is any error the parser can raise; the others still count
            _log.warning("cannot read all scalars of %s: %s", path, error)
    return found


def _as_stored(value: float) -> float:
    """Event files hold 32-bit floats."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)
