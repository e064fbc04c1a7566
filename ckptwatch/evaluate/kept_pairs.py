"""Pairs of prediction and target that an evaluation command shows, thinned out and kept for people."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ckptwatch.evaluate.answers import LONGEST_LINE, json_object
from ckptwatch.formats.reading import open_regular
from ckptwatch.model import EvaluationCommand
from ckptwatch.pairs import FILE

LONGEST_TEXT = 4000     # characters of one field
LONGEST_PAIR = 64 * 1024  # bytes of one pair


class KeptPairs:
    """Every n-th pair from the first, at most so many, written as they come. Nothing where the command keeps none."""

    def __init__(self, directory: Path, command: EvaluationCommand) -> None:
        self.seen = 0
        self.kept = 0
        self.trouble: OSError | None = None
        self._directory = directory
        self._command = command
        self._file: BinaryIO | None = None

    def add(self, pair: Mapping[str, Any]) -> None:
        """Raises nothing: a full disk is remembered as `trouble`."""
        wanted = (self._command.log_samples and self.seen % self._command.log_interval == 0
                  and self.kept < self._command.log_max_samples)
        self.seen += 1
        if not wanted or self.trouble is not None:
            return
        try:
            if self._file is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._file = (self._directory / FILE).open("wb")
            self._file.write(json.dumps(_bounded(pair)).encode() + b"\n")
        except RecursionError:  # nested deeper than can be written down
            return
        except OSError as error:
            self.trouble = error
            return
        self.kept += 1

    def read(self, path: Path) -> None:
        """Those that the command wrote into a file, one JSON object a line. Raises OSError."""
        for pair in lines_of(path):
            inner = pair.get("sample")
            self.add(inner if isinstance(inner, dict) else pair)

    def close(self) -> Path | None:
        """Where they are; None where there are none. Raises OSError where they could not be written."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self.trouble = self.trouble or error
        if self.trouble is not None:
            raise self.trouble
        return self._directory if self.kept else None


def lines_of(path: Path) -> Iterator[Mapping[str, Any]]:
    """The JSON objects of a file, one a line; other lines, and those longer than a line may be, are passed over.
    Raises OSError."""
    with open_regular(path) as file:
        whole = True  # does what comes next begin a line?
        while line := file.readline(LONGEST_LINE):
            ended = line.endswith(b"\n")
            if whole and (found := json_object(line.strip())) is not None:
                yield found
            whole = ended


def _bounded(pair: Mapping[str, Any]) -> Mapping[str, Any]:
    short = {str(key)[:100]: _short(value) for key, value in list(pair.items())[:50]}
    if len(json.dumps(short)) <= LONGEST_PAIR:
        return short
    return {key: value if isinstance(value, int | float | bool | None) else str(value)[:500] for key, value in short.items()}


def _short(value: Any) -> Any:
    return f"{value[:LONGEST_TEXT]}…" if isinstance(value, str) and len(value) > LONGEST_TEXT else value
