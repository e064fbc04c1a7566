"""All dialects of logs, and which one a file is of."""

from functools import lru_cache
from pathlib import Path, PurePath

from ckptwatch.formats.reading import open_regular
from ckptwatch.logs.base import HEAD, Dialect
from ckptwatch.logs.csv_table import CsvTable
from ckptwatch.logs.events import TensorBoardEvents
from ckptwatch.logs.json_lines import JsonLines
from ckptwatch.logs.lightning_csv import LightningCsv
from ckptwatch.logs.lines import whole_lines
from ckptwatch.logs.metadata import CheckpointMetadata
from ckptwatch.logs.mmengine import MMEngineJson
from ckptwatch.logs.mmengine_text import MMEngineText
from ckptwatch.logs.stylegan import StyleGan
from ckptwatch.logs.text_log import TextLog
from ckptwatch.logs.trainer_state import TrainerState
from ckptwatch.logs.ultralytics import Ultralytics
from ckptwatch.model import Logged


@lru_cache(maxsize=1)
def dialects() -> tuple[Dialect, ...]:
    """In the order in which they are asked."""
    every: list[Dialect] = [
        TensorBoardEvents(), TrainerState(), CheckpointMetadata(), MMEngineJson(), StyleGan(), Ultralytics(), LightningCsv(),
        MMEngineText(), JsonLines(), CsvTable(), TextLog()]
    return tuple(sorted(every, key=lambda dialect: dialect.precedence))


def dialect_named(name: str) -> Dialect | None:
    return next((dialect for dialect in dialects() if dialect.name == name), None)


def dialect_of(path: Path, run_dir: Path, logged: Logged | None = None) -> Dialect | None:
    """The dialect a log is written in. None for what is none, cannot be read, or has not its first line yet: ask again when
    it has grown.

    `logged` is what a user said of the run's logs: of a file he named, or whose columns he named, only the kind is asked.
    """
    try:
        with open_regular(path) as file:
            head = file.read(HEAD)
    except OSError:
        return None
    below = PurePath(path.relative_to(run_dir)) if path.is_relative_to(run_dir) else PurePath(path)
    found = next((dialect for dialect in dialects() if dialect.claims(below, head)), None)
    if found is None and logged is not None and (logged.files or logged.step or logged.epoch):
        return _by_kind(path, head)
    return found


def _by_kind(path: Path, head: bytes) -> Dialect | None:
    """By what the first line looks like, as its names may be any."""
    lines = whole_lines(head, 1)
    if not lines or b"\0" in head:
        return None
    if lines[0].startswith("{"):
        return JsonLines()
    return CsvTable() if path.suffix.lower() in (".csv", ".tsv") else TextLog()
