"""Tables with a header: CSV, TSV, semicolons. The header names the columns; a later header names others."""

import csv
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from ckptwatch.core.series import LogRow
from ckptwatch.logs.base import HEAD, State
from ckptwatch.logs.lines import LineReader, UnreadableError, excerpt, whole_lines
from ckptwatch.logs.rows import RowMaker
from ckptwatch.model import Logged

_SUFFIXES = (".csv", ".tsv")
_DELIMITERS = ",\t;"
MOST_COLUMNS = 4096


class CsvTable:
    name = "csv"
    precedence = 75
    title = "CSV with a header"
    files = "`*.csv`, `*.tsv`, if a column of the header is a step or epoch"

    def claims(self, path: PurePath, head: bytes) -> bool:
        return path.name.lower().endswith(_SUFFIXES) and RowMaker(Logged()).names_count(header_in(head))

    def reader(self, logged: Logged, state: State | None = None) -> "CsvReader":
        return CsvReader(logged, state)


class CsvReader(LineReader):
    """A row that has not as many cells as the header has names is bad; empty cells and text are passed over."""

    def __init__(self, logged: Logged, state: State | None = None) -> None:
        super().__init__(state)
        state = state or {}
        self._logged = logged
        self._maker = RowMaker(logged, state, self.complain)
        self._delimiter = str(state.get("delimiter", ","))
        self._names: list[str] = [str(name) for name in state.get("names", ())]

    def own_state(self) -> dict[str, Any]:
        return {**self._maker.state(), "delimiter": self._delimiter, "names": self._names}

    def row(self, line: str) -> LogRow | None:
        if line[0] == "#":
            return None
        if not self._names:
            self._take_header(line)
            return None
        cells = cells_of(line, self._delimiter)
        if len(cells) != len(self._names):
            if self._is_header(line):
                return None
            raise UnreadableError(f"{len(cells)} cells under {len(self._names)} columns: {excerpt(line)}")
        values = [_value(cell) for cell in cells]
        if not any(type(value) is float for value in values) and self._is_header(line):
            return None
        return self._maker.row(self.named(values))

    def named(self, values: list[Any]) -> Iterator[tuple[str, Any]]:
        return zip(self._names, values, strict=True)

    def _is_header(self, line: str) -> bool:
        """Takes a line for the header from here on, if it looks like one: a program begun anew that appends."""
        names = header_of(line)
        if any(type(_value(name)) is float for name in names) or not self._maker.names_count(names):
            return False
        self._take_header(line)
        return True

    def _take_header(self, line: str) -> None:
        names = header_of(line)
        if len(names) > MOST_COLUMNS:
            raise UnreadableError(f"a header of {len(names):,} columns")
        self._names, self._delimiter = names, delimiter_of(line)


def header_in(head: bytes) -> list[str]:
    """The columns named at the beginning of a file; [] where the first line is not whole yet."""
    lines = [line for line in whole_lines(head) if not line.startswith("#")]
    if lines:
        return header_of(lines[0])
    if len(head) >= HEAD and b"\n" not in head:  # hundreds of columns: those that can be seen
        return header_of(head.decode("utf-8", "replace"))[:-1]
    return []


def header_of(line: str) -> list[str]:
    try:
        return [name.strip() for name in cells_of(line, delimiter_of(line))]
    except UnreadableError:
        return []


def delimiter_of(line: str) -> str:
    return max(_DELIMITERS, key=line.count)


def cells_of(line: str, delimiter: str) -> list[str]:
    """Raises UnreadableError."""
    if '"' not in line:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter))
    except (csv.Error, StopIteration) as error:
        raise UnreadableError(f"no CSV ({error}): {excerpt(line)}") from None


def _value(cell: str) -> float | str | None:
    try:
        return float(cell)
    except ValueError:
        return cell.strip() or None
