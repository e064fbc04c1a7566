"""`metric-*.jsonl` and `stats.jsonl` of StyleGAN2, StyleGAN3, EDM and EDM2.

Steps are thousands of images, as in the names of their snapshots.
"""

import math
import re
from pathlib import PurePath
from typing import Any

from ckptwatch.core.series import LogRow
from ckptwatch.formats.reading import is_name
from ckptwatch.logs.base import State
from ckptwatch.logs.json_lines import parsed
from ckptwatch.logs.lines import LineReader
from ckptwatch.logs.rows import moment, number_of
from ckptwatch.model import Logged

_METRIC = re.compile(r"metric-.{1,200}\.jsonl", re.DOTALL)
_SNAPSHOT = re.compile(r"network-snapshot-(\d{1,12}+)(?!\d)")
_PROGRESS = "Progress/kimg"


class StyleGan:
    name = "stylegan"
    precedence = 30
    title = "StyleGAN and EDM"
    files = "`metric-*.jsonl`, whose step is that of the snapshot it names; `stats.jsonl`, whose step is `Progress/kimg`"

    def claims(self, path: PurePath, head: bytes) -> bool:
        if not head.startswith(b"{"):
            return False
        return (_METRIC.fullmatch(path.name) is not None and b'"results"' in head) or (
            path.name == "stats.jsonl" and b'"mean"' in head)

    def reader(self, logged: Logged, state: State | None = None) -> "StyleGanReader":
        return StyleGanReader(state)


class StyleGanReader(LineReader):
    def row(self, line: str) -> LogRow | None:
        content = parsed(line)
        found = _of_metric(content) if "results" in content else _of_stats(content)
        if found is None or not found[1]:
            return None
        return LogRow(step=found[0], values=found[1], at=moment(content.get("timestamp")))


def _of_metric(content: dict[str, Any]) -> tuple[int, dict[str, float]] | None:
    """None where it was computed for a network that is no snapshot."""
    snapshot, results = content.get("snapshot_pkl"), content["results"]
    match = _SNAPSHOT.search(snapshot[-255:]) if isinstance(snapshot, str) else None
    if match is None or not isinstance(results, dict):
        return None
    return int(match[1]), _numbers(results)


def _of_stats(content: dict[str, Any]) -> tuple[int, dict[str, float]] | None:
    """Means since the line before. Snapshots are named by whole thousands of images, rounded down."""
    means = _numbers({name: entry.get("mean") for name, entry in content.items() if isinstance(entry, dict)})
    kimg = means.pop(_PROGRESS, math.nan)
    return (int(kimg), means) if 0 <= kimg < 2**53 else None


def _numbers(mapping: dict[str, Any]) -> dict[str, float]:
    found = ((name, number_of(value)) for name, value in mapping.items() if is_name(name))
    return {name: number for name, number in found if number is not None}
