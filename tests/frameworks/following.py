"""A training that logs, and somebody who reads along."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptwatch.core.series import LogRow
from ckptwatch.logs.finder import find_logs
from ckptwatch.logs.follower import Follower, Place
from ckptwatch.logs.registry import dialect_of
from ckptwatch.model import Logged

HERE = Path(__file__).parent


@dataclass(kw_only=True)
class Followed:
    """One log, as far as it has been read. `rows` begin anew where the file did."""

    dialect: str
    follower: Follower
    rows: list[LogRow] = field(default_factory=list)
    bad: int = 0
    restarts: int = 0

    def read(self, *, final: bool = False) -> None:
        while True:
            polled = self.follower.poll(final=final)
            if polled.restarted:
                self.rows, self.restarts = [], self.restarts + 1
            self.rows += polled.rows
            self.bad += polled.bad
            if not polled.more:
                return

    def values(self, name: str) -> list[tuple[int | None, float | None, float]]:
        return [(row.step, row.epoch, row.values[name]) for row in self.rows if name in row.values]


def train(script: str, out: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, Followed]]:
    """Runs a script to its end, reading its logs all the while. What it said at last, and its logs by name.

    Each log is read once more from its beginning afterwards, which must give the same rows.
    """
    out.mkdir(parents=True, exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {
        "HOME": str(out.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    logs: dict[str, Followed] = {}
    said, errors = out.parent / f"{out.name}.said", out.parent / f"{out.name}.errors"
    with said.open("wb") as up, errors.open("wb") as down:
        process = subprocess.Popen(
            [sys.executable, str(HERE / f"{script}.py"), str(out), *arguments], stdout=up, stderr=down, env=environment,
            cwd=out.parent)
        while process.poll() is None:
            _look(out, logs)
            time.sleep(0.02)  # the training is to have the processor
    assert process.returncode == 0, errors.read_text()[-3000:]
    _look(out, logs, final=True)
    for name, log in logs.items():
        again = Followed(dialect=log.dialect, follower=_follower(out / name, out))
        again.read(final=True)
        assert again.rows == log.rows, name
    return json.loads(said.read_text().splitlines()[-1]), logs


def _look(out: Path, logs: dict[str, Followed], *, final: bool = False) -> None:
    for path in find_logs(out).files:
        name = str(path.relative_to(out))
        if name not in logs and (dialect := dialect_of(path, out)) is not None:
            logs[name] = Followed(dialect=dialect.name, follower=_follower(path, out))
    for log in logs.values():
        log.read(final=final)


def _follower(path: Path, out: Path, place: Place | None = None) -> Follower:
    dialect = dialect_of(path, out)
    assert dialect is not None
    return Follower(path, dialect, Logged(), place)


def only(logs: dict[str, Followed], dialect: str) -> Followed:
    found: Sequence[Followed] = [log for log in logs.values() if log.dialect == dialect]
    assert len(found) == 1, {name: log.dialect for name, log in logs.items()}
    assert found[0].bad == 0
    return found[0]
