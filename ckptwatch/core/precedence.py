"""Which of several given values counts, where it came from, and where two sources disagree.

Command line before the checkpoint's metadata before the configuration before defaults.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Source(IntEnum):
    """The first that gives a value wins."""

    COMMAND_LINE = 0
    METADATA = 1
    CONFIGURATION = 2
    DEFAULT = 3


@dataclass(frozen=True, kw_only=True)
class Given:
    """A value that a source gives. None: it gives none."""

    source: Source
    origin: str  # in words: "--csv-input", "checkpoint_metadata.json, dataset.val_csv"
    value: Any
    shown: str = ""  # the value in words; "": as it is


@dataclass(frozen=True, kw_only=True)
class Settled:
    value: Any
    origin: str               # "" where nobody gives a value
    conflict: str = ""        # metadata and configuration disagree: both values, and which counts
    source: Source = Source.DEFAULT


def settle(name: str, given: Sequence[Given]) -> Settled:
    """The value of the source that comes first; of several by one source, the first of these."""
    told = sorted((g for g in given if g.value is not None), key=lambda g: g.source)  # stable
    if not told:
        return Settled(value=None, origin="")
    winner = told[0]
    return Settled(value=winner.value, origin=winner.origin, conflict=_conflict(name, told), source=winner.source)


def _conflict(name: str, told: Sequence[Given]) -> str:
    metadata, configuration = (next((g for g in told if g.source is source), None)
                               for source in (Source.METADATA, Source.CONFIGURATION))
    if metadata is None or configuration is None or metadata.value == configuration.value:
        return ""
    if metadata.shown and metadata.shown == configuration.shown:
        return ""
    winner = told[0]
    return (f"{name}: {metadata.origin} says {_shown(metadata)}, {configuration.origin} says {_shown(configuration)}; "
            f"{_shown(winner)} counts, from {winner.origin}")


def _shown(given: Given) -> str:
    text = given.shown or str(given.value)
    return text if len(text) <= 200 else f"{text[:200]}…"
