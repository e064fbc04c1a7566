"""`results.csv` of ultralytics. Its epochs count from 1, those of its checkpoints from 0."""

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from ckptwatch.logs.base import State
from ckptwatch.logs.csv_table import CsvReader, header_in
from ckptwatch.model import Logged


class Ultralytics:
    name = "ultralytics"
    precedence = 40
    title = "ultralytics"
    files = "`results.csv` with columns such as `metrics/mAP50(B)`; epochs as its checkpoints count them, from 0"

    def claims(self, path: PurePath, head: bytes) -> bool:
        names = header_in(head) if path.name == "results.csv" else []
        return names[:1] == ["epoch"] and any(name.startswith(("train/", "metrics/")) for name in names)

    def reader(self, logged: Logged, state: State | None = None) -> "ResultsReader":
        return ResultsReader(logged, state)


class ResultsReader(CsvReader):
    def named(self, values: list[Any]) -> Iterator[tuple[str, Any]]:
        for name, value in super().named(values):
            yield name, value - 1 if name == "epoch" and type(value) is float else value
