"""TensorBoard's event files: scalars of torch.utils.tensorboard, tensorboardX, Lightning, Keras and TensorFlow.

Only scalars are kept. Where a record's length cannot be trusted nothing after it can be found: the rest of the file is given
up, as TensorBoard does. Every writer begins a file of its own after a restart, so no more than one attempt is lost by it.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from ckptwatch.core.series import LogRow
from ckptwatch.formats.reading import is_name, whole_number
from ckptwatch.logs.base import Fed, State
from ckptwatch.logs.records import FOOTER, HEADER, is_intact, length_at
from ckptwatch.model import Logged

OURS = ".ckptwatch"   # the end of the names of our own event files
LONGEST = 64 << 20    # bytes of a record; a length beyond is no event's
WHOLE = 1 << 20       # bytes of a record that is looked into; a larger one holds images, and is passed over unread
CHECKED = 64 << 10    # bytes of data whose checksum is verified
MOST_VALUES = 10_000  # scalars of one row
_FIRST = 512          # bytes of a file's first record, which tells its version and who wrote it

# Fields of TensorProto by DataType. Half precision is stored as the bits of 16-bit integers.
_FIELDS = {1: ("float_val", "<f"), 2: ("double_val", "<d"), 3: ("int_val", "<i"), 4: ("int_val", "<B"), 5: ("int_val", "<h"),
           6: ("int_val", "<b"), 9: ("int64_val", "<q"), 17: ("int_val", "<H"), 22: ("uint32_val", "<I"),
           23: ("uint64_val", "<Q"), 19: ("half_val", "<e"), 14: ("half_val", "<f")}
_HALF, _BFLOAT16 = 19, 14


class TensorBoardEvents:
    name = "tensorboard"
    precedence = 10
    title = "TensorBoard event files"
    files = "`*tfevents*`, but not those ckptwatch writes itself"

    def claims(self, path: PurePath, head: bytes) -> bool:
        return "tfevents" in path.name and not path.name.endswith(OURS) and _begins(head)

    def reader(self, logged: Logged, state: State | None = None) -> "EventReader":
        return EventReader(logged, state or {})


class EventReader:
    """Events of one step that follow one another in the file make one row.

    A scalar `epoch`, or `…/epoch`, is the row's epoch and no metric. `Logged.step` and `Logged.epoch` may name another tag;
    `epoch: step` says that the steps of the file count epochs, as in `add_scalar("val/loss", loss, epoch)`.
    """

    whole = False

    def __init__(self, logged: Logged, state: State) -> None:
        self._logged = logged
        self._lost = str(state.get("lost", ""))          # why the rest of the file is given up
        self._pass_over = whole_number(state.get("pass_over")) or 0  # bytes still to come of a record that is not read
        self._epoch_of = (state.get("step"), state.get("epoch"))

    def feed(self, data: bytes) -> Fed:
        rows, at, bad, trouble = _Rows(self._logged, self._epoch_of), 0, 0, ""
        while not self._lost:
            passed = min(self._pass_over, len(data) - at)
            at, self._pass_over = at + passed, self._pass_over - passed
            if self._pass_over or len(data) - at < HEADER:
                break
            length = length_at(data, at)
            if length is None or length > LONGEST:
                bad += 1
                self._lost = trouble = _given_up(length)
            elif length > WHOLE:
                self._pass_over = HEADER + length + FOOTER
            elif len(data) - at < HEADER + length + FOOTER:
                break
            else:
                wrong = _read(data, at + HEADER, length, rows)
                bad, trouble, at = bad + bool(wrong), wrong or trouble, at + HEADER + length + FOOTER
        found = rows.end()
        self._epoch_of = rows.epoch_of
        return Fed(consumed=len(data) if self._lost else at, rows=found, bad=bad, trouble=trouble or self._lost)

    def state(self) -> State:
        step, epoch = self._epoch_of
        return {"lost": self._lost, "pass_over": self._pass_over, "step": step, "epoch": epoch}


def _begins(head: bytes) -> bool:
    """Is this the beginning of an event file, however little of it has been written?"""
    if len(head) < HEADER:
        return True
    length = length_at(head, 0)
    if length is None or length > _FIRST:
        return False
    event = _parsed(head[HEADER:HEADER + length])
    return len(head) < HEADER + length or (event is not None and event.WhichOneof("what") == "file_version")


def _given_up(length: int | None) -> str:
    why = "a length has the wrong checksum" if length is None else f"a record of {length:,} bytes"
    return f"{why}: nothing after it can be found, the rest of the file is not read"


def _parsed(data: bytes) -> Any:
    """An Event; None for what is none."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    try:
        return Event.FromString(data)
    except (DecodeError, ValueError, RecursionError):  # the latter two of protobuf without its C part
        return None


def _read(data: bytes, begin: int, length: int, rows: "_Rows") -> str:
    """Adds the scalars of one record; why that cannot be done, in words."""
    end = begin + length
    record = data[begin:end]
    event = _parsed(record)
    if event is None:
        return "a record that is no event"
    if event.WhichOneof("what") != "summary":
        return ""
    scalars = dict(_scalars(event.summary))
    if not scalars:
        return ""
    if length <= CHECKED and not is_intact(record, data, end):
        return "a record has the wrong checksum"
    return rows.add(event.step, event.wall_time, scalars)


def _scalars(summary: Any) -> Iterator[tuple[str, float]]:
    for value in summary.value:
        kind = value.WhichOneof("value")
        if kind == "simple_value":
            yield value.tag, value.simple_value
        elif kind == "tensor" and value.metadata.plugin_data.plugin_name in ("", "scalars"):
            # Some writers name the plugin only with the first value of a tag.
            number = _number(value.tensor)
            if number is not None:
                yield value.tag, number


def _number(tensor: Any) -> float | None:
    """The value of a tensor without dimensions; an absent one is 0, as TensorFlow has it."""
    field, layout = _FIELDS.get(tensor.dtype, ("", ""))
    if not field or tensor.tensor_shape.dim or tensor.tensor_shape.unknown_rank:
        return None
    try:
        values = getattr(tensor, field)
        if tensor.tensor_content:
            content = tensor.tensor_content
            return float(struct.unpack(layout, b"\0\0" + content if tensor.dtype == _BFLOAT16 else content)[0])
        if not values:
            return 0.0
        if tensor.dtype not in (_HALF, _BFLOAT16):
            return float(values[0])
        bits = struct.pack("<H", values[0])
        return float(struct.unpack(layout, b"\0\0" + bits if tensor.dtype == _BFLOAT16 else bits)[0])
    except struct.error:
        return None


class _Rows:
    """Makes rows of events. A row ends where the step changes, where an epoch is told, or where a tag comes again."""

    def __init__(self, logged: Logged, epoch_of: tuple[Any, Any]) -> None:
        self.epoch_of = epoch_of  # the step whose epoch was told last, and that epoch
        self._logged = logged
        self._rows: list[LogRow] = []
        self._step: int | None = None  # of the row that is being made
        self._at: float | None = None
        self._values: dict[str, float] = {}
        self._told_step: int | None = None

    def add(self, step: int, at: float, scalars: dict[str, float]) -> str:
        """What was left out of an event, in words."""
        if step != self._step or not self._values.keys().isdisjoint(scalars):
            self._close()
        if step != self._step:
            self._step, self._told_step = step, None
        self._at = self._at if self._values else at
        left_out, epoch = "", None
        for tag, value in scalars.items():
            if self._is_epoch(tag):
                epoch = value if math.isfinite(value) and value >= 0 else epoch
            elif tag == self._logged.step:
                self._told_step = whole_number(value)
            elif not is_name(tag):
                left_out = "a scalar whose name cannot be shown"
            elif len(self._values) >= MOST_VALUES:
                left_out = f"more than {MOST_VALUES:,} scalars of one step"
            else:
                self._values[tag] = value
        if epoch is not None:
            # Lightning tells it after the values that it belongs to, and one step may have values of two epochs.
            self.epoch_of = step, epoch
            self._close()
        return left_out

    def end(self) -> list[LogRow]:
        self._close()
        return self._rows

    def _is_epoch(self, tag: str) -> bool:
        return tag == self._logged.epoch if self._logged.epoch else tag == "epoch" or tag.endswith("/epoch")

    def _close(self) -> None:
        if self._values:
            step, epoch = self._counts()
            at = self._at if self._at is not None and math.isfinite(self._at) else None
            self._rows.append(LogRow(step=step, epoch=epoch, values=self._values, at=at))
        self._values = {}

    def _counts(self) -> tuple[int | None, float | None]:
        counted = whole_number(self._step)
        by_epochs = self._logged.epoch == "step"
        epoch = counted if by_epochs else self.epoch_of[1] if self.epoch_of[0] == self._step else None
        if self._logged.step not in ("", "step"):
            return self._told_step, epoch
        return (None if by_epochs and not self._logged.step else counted), epoch
