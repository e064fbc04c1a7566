"""What the benchmarks share: processes timed as a whole, percentiles, tables."""

import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table

CKPTWATCH = str(Path(sys.executable).with_name("ckptwatch"))


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One process from its start to its end, in seconds."""

    wall: float
    cpu: float  # user and system


def environment() -> dict[str, str]:
    """Ours, with compiled bytecode: without it every process compiles all it imports, and nothing else is measured."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def time_process(
    argv: Sequence[str], cwd: Path, *, env: Mapping[str, str] | None = None, output: IO[str] | None = None,
) -> Timing:
    """Runs a process to its end; its output goes into a file, or away. Raises RuntimeError if it fails."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        argv, cwd=cwd, env=environment() if env is None else env, stdout=output or subprocess.DEVNULL,
        stderr=output or subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(argv)} ended with status {process.returncode}")
    return Timing(wall=wall, cpu=usage.ru_utime + usage.ru_stime)


def interleaved(commands: Mapping[str, Sequence[str]], *, rounds: int, cwd: Path) -> dict[str, list[Timing]]:
    """Each command once per round, in turn, so that whatever else the machine does hits all alike. One round warms up."""
    timings: dict[str, list[Timing]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, argv in commands.items():
            timing = time_process(argv, cwd)
            if number:
                timings[name].append(timing)
    return timings


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """A table on standard output; the first column to the left, figures to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    console.print(table)
    for note in notes:
        console.print(f"  {note}")
    console.print()
