"""`metrics.csv` of Lightning's CSVLogger.

Its steps count optimizer steps from 0, as its epochs do: what is logged after the first step has step 0. The whole file is
written anew, with more columns, when a metric is logged for the first time.
"""

from pathlib import PurePath

from ckptwatch.logs.base import State
from ckptwatch.logs.csv_table import CsvReader, header_in
from ckptwatch.model import Logged


class LightningCsv:
    name = "lightning-csv"
    precedence = 40
    title = "Lightning's CSVLogger"
    files = "`metrics.csv` with a column `step`"

    def claims(self, path: PurePath, head: bytes) -> bool:
        names = header_in(head) if path.name == "metrics.csv" else []
        return "step" in names

    def reader(self, logged: Logged, state: State | None = None) -> CsvReader:
        return CsvReader(logged, state)
