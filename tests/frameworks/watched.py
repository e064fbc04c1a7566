"""A real daemon on the directory of a training, and what it has recorded whenever the training says that it is at rest."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptwatch.model import Checkpoint, CheckpointState
from ckptwatch.store import checkpoints, runs
from ckptwatch.watch.sightings import sight_path
from tests.frameworks.dialogue import PATIENCE
from tests.support import Project

STALL = 0.02  # seconds; much less than any quiet time, and more than the daemon needs to notice a change

@dataclass(frozen=True, kw_only=True)
class Record:
    """What the daemon had recorded of a checkpoint at a pause."""

    path: str
    declared: Mapping[str, Any]
    recorded: Checkpoint


class Watched:
    """A real daemon on the directory, and what it has recorded at each pause."""

    def __init__(self, base: Path, quiet: float) -> None:
        self.project = Project(base, config={
            "watch": [{"root": "runs", "quiet": quiet, "scan_every": 1.0}], "recipes": {}, "runs": [{"match": "*"}]})
        self.records: list[Record] = []

    @contextmanager
    def daemon(self) -> Iterator[None]:
        with self.project.daemon(stub=False) as daemon:
            yield
            assert daemon.stop() == 0, self.project.log

    def pause(self, present: Mapping[str, Mapping[str, Any]]) -> None:
        """Returns when the record says of everything that lies there, and of nothing else, that it lies there as it does."""
        self._until(lambda: self._wrong(present))
        rows = self._rows()
        self.records += [Record(path=name, declared=facts, recorded=rows[name]) for name, facts in present.items()]

    def look(self) -> None:
        """Something is about to be written: give the daemon time to take what lies there for finished."""
        time.sleep(STALL)

    def hold(self, paths: Iterable[str]) -> None:
        """Returns when all these are recorded as incomplete."""
        self._until(lambda: {p: "not recorded as incomplete" for p in paths if not self._is_incomplete(p)})

    def _until(self, wrong: Callable[[], Mapping[str, str]]) -> None:
        deadline = time.monotonic() + PATIENCE
        while found := wrong():
            if time.monotonic() > deadline:
                told = "\n".join(f"{name}: {why}" for name, why in found.items())
                raise AssertionError(f"the record is wrong after {PATIENCE:.0f} s:\n{told}\n{self.project.log[-2000:]}")
            time.sleep(0.02)

    def _is_incomplete(self, name: str) -> bool:
        row = self._rows().get(name)
        return row is not None and row.state is CheckpointState.INCOMPLETE

    def _rows(self) -> dict[str, Checkpoint]:
        with self.project.reading() as conn:
            rows = [c for r in runs.all_runs(conn) for c in checkpoints.of_run(conn, r.id)]
        return {str(c.path.relative_to(self.project.root)): c for c in rows if c.state in checkpoints.LIVING}

    def _wrong(self, present: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        rows = self._rows()
        strangers = {name: f"is no checkpoint, but recorded as {row.state}: {row.evidence}"
                     for name, row in rows.items() if name not in present}
        return strangers | {name: why for name, facts in present.items() if (why := self._lacking(name, facts, rows))}

    def _lacking(self, name: str, facts: Mapping[str, Any], rows: Mapping[str, Checkpoint]) -> str:
        """What of a checkpoint that lies there is not in the record; "" if nothing."""
        if (row := rows.get(name)) is None:
            return "not recorded"
        if row.state is not CheckpointState.COMPLETE:
            return f"recorded as incomplete: {row.evidence}"
        now = sight_path(row.path, row.members).identity
        if (now.inode, now.size, now.mtime_ns) != (row.identity.inode, row.identity.size, row.identity.mtime_ns):
            return "recorded, but as it was before"
        if facts["format"] != row.format:
            return f"recorded as {row.format}, not {facts['format']}: {row.evidence}"
        return ""
