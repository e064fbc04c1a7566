"""Logs of lines: cut out of bytes, whole ones only, each within bounds."""

from abc import ABC, abstractmethod
from typing import Any

from ckptwatch.core.series import LogRow
from ckptwatch.logs.base import Fed, State

LONGEST = 1 << 20  # bytes of a line; a longer one is passed over without being kept
_BLANK = " \r"       # around a line; a tab may be the edge of an empty cell
_BEFORE = "\ufeff\0"  # a byte order mark; the hole where a file was truncated under a writer that kept its place


class UnreadableError(ValueError):
    """A line that should have been a record, and why it is none, in words."""


class LineReader(ABC):
    """Reads lines. What a line says is the business of those derived from it."""

    whole = False

    def __init__(self, state: State | None) -> None:
        self._passing = bool((state or {}).get("passing"))  # the rest of a line that is too long
        self._complaint = ""

    @abstractmethod
    def row(self, line: str) -> LogRow | None:
        """What a line says, stripped and not empty. None: nothing of ours. Raises UnreadableError."""

    def state(self) -> State:
        return {**self.own_state(), **({"passing": True} if self._passing else {})}

    def own_state(self) -> dict[str, Any]:
        return {}

    def complain(self, why: str) -> None:
        """The line that is being read counts as bad, for a part of it that is left out."""
        self._complaint = why

    def feed(self, data: bytes) -> Fed:
        begin = 0
        if self._passing:
            begin = data.find(b"\n") + 1
            if not begin:
                return Fed(consumed=len(data))
            self._passing = False
        end = data.rfind(b"\n") + 1
        if end > begin:
            rows, bad, trouble = self._read(data[begin:end].decode("utf-8", "replace"))
        else:
            rows, bad, trouble, end = [], 0, "", begin
        if len(data) - end > LONGEST:
            self._passing = True
            bad, trouble, end = bad + 1, _too_long(), len(data)
        return Fed(consumed=end, rows=rows, bad=bad, trouble=trouble)

    def _read(self, text: str) -> tuple[list[LogRow], int, str]:
        rows: list[LogRow] = []
        bad, trouble = 0, ""
        for found in text.split("\n"):
            line = found.strip(_BLANK)
            if line and line[0] in _BEFORE:
                line = line.lstrip(_BEFORE).strip(_BLANK)
            if not line or line.isspace():
                continue
            if len(line) > LONGEST:
                bad, trouble = bad + 1, _too_long()
                continue
            try:
                row = self.row(line)
            except UnreadableError as error:
                bad, trouble = bad + 1, str(error)
                continue
            if row is not None:
                rows.append(row)
            if self._complaint:
                bad, trouble, self._complaint = bad + 1, self._complaint, ""
        return rows, bad, trouble


def whole_lines(head: bytes, most: int = 50) -> list[str]:
    """The first lines of a file of which the first bytes are given, those that are whole; blank ones left out."""
    text = head[:head.rfind(b"\n") + 1].decode("utf-8", "replace").lstrip(_BEFORE)
    return [line for found in text.split("\n", most)[:most] if (line := found.strip(_BLANK)) and not line.isspace()]


def excerpt(line: str) -> str:
    """The beginning of a line, fit to be shown."""
    return repr(line[:60] + ("…" if len(line) > 60 else ""))


def _too_long() -> str:
    return f"a line of more than {LONGEST:,} bytes"
