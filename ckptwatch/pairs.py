"""Kept pairs of prediction and target, as they are read for people."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptwatch.formats.reading import open_regular

FILE = "samples.jsonl"
LONGEST_LINE = 1024 * 1024  # bytes; we write none that long
PREDICTION = ("prediction", "predicted", "pred", "output", "generated")  # what people call the two, in order of preference
TARGET = ("target", "reference", "label", "expected", "ground_truth", "gt", "answer")


def read_pairs(directory: Path, limit: int | None = None) -> tuple[Mapping[str, Any], ...]:
    """The first of them; () where there is no such file. Lines that are no JSON objects are passed over. Raises OSError."""
    try:
        file = open_regular(directory / FILE)
    except FileNotFoundError:
        return ()
    with file:
        found = (pair for line in iter(lambda: file.readline(LONGEST_LINE), b"") if (pair := _pair(line)) is not None)
        return tuple(itertools.islice(found, limit))


def columns_of(pair: Mapping[str, Any]) -> tuple[Any, Any, Mapping[str, Any]]:
    """(prediction, target, whatever else it says), None for what it does not name."""
    first, second = (next((key for key in names if key in pair), None) for names in (PREDICTION, TARGET))
    rest = {key: value for key, value in pair.items() if key not in (first, second)}
    return pair.get(first) if first else None, pair.get(second) if second else None, rest


def _pair(line: bytes) -> Mapping[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
