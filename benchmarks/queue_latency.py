"""From a file's last write to its row in the evaluation queue, beyond the quiet time, in a real daemon process.

    python -m benchmarks queue_latency [--quick]

The peer is a bare watchdog observer of the same directory in the same minutes: how soon anybody can know of the write.
"""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from watchdog.events import FileClosedEvent, FileMovedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from benchmarks.tools import CKPTWATCH, environment, median, milliseconds, percentile, show

QUIET = 0.5      # seconds; short, because every file has to wait for it
PATIENCE = 60.0  # seconds for a row to appear
POLL = 0.001     # seconds between looks at the database
SIZE = 1 << 20   # bytes of weights

CONFIG = f"""
state_dir: state
watch: [{{root: runs, quiet: {QUIET}}}]
workers: {{devices: []}}
recipes:
  r: {{sampler: {{images: "samples/{{step}}"}}, samples: 10, metrics: [inception_score]}}
runs:
  - evaluate: {{recipe: r}}
    rank: {{by: inception_score}}
"""
QUERY = ("SELECT 1 FROM evaluations JOIN checkpoints ON checkpoints.id = evaluations.checkpoint_id "
         "WHERE checkpoints.path = ? AND evaluations.state = 'pending'")


class Ears(FileSystemEventHandler):
    """Remembers when the end of each file's writing was heard of."""

    def __init__(self) -> None:
        self.heard: dict[str, float] = {}

    def on_any_event(self, event: FileSystemEvent) -> None:
        now = time.time()
        self.heard.setdefault(str(event.dest_path or event.src_path), now)


def run(*, quick: bool = False) -> None:
    count = 8 if quick else 60
    content = _checkpoint()
    chance = random.Random(0)
    rows: dict[str, list[float]] = {"write": [], "rename": []}
    events: dict[str, list[float]] = {"write": [], "rename": []}
    with tempfile.TemporaryDirectory(prefix="ckptwatch-bench-") as scratch:
        directory = Path(scratch)
        checkpoints = directory / "runs" / "a" / "checkpoints"
        checkpoints.mkdir(parents=True)
        (directory / "config.yaml").write_text(CONFIG)
        with _listening(checkpoints) as ears, _daemon(directory), _reading(directory / "state" / "ckptwatch.db") as database:
            for number in range(1, count + 1):
                how = "write" if number % 2 else "rename"
                path = checkpoints / f"{number * 100:07d}.pt"
                written = _write(path, content) if how == "write" else _write_and_rename(path, content)
                rows[how].append(_row_appears(database, path) - written - QUIET)
                events[how].append(max(0.0, ears.heard[str(path)] - written))
                time.sleep(chance.random())  # or every file would meet the daemon's clock at the same point
    everything = rows["write"] + rows["rename"]
    peer = events["write"] + events["rename"]
    show(
        f"last write to row in the queue, beyond the quiet time of {QUIET:g} s ({count} files of 1 MiB, one at a time)",
        ("what", "min", "median", "p95", "max", "median ratio"),
        [
            _line("watchdog alone: event of the end of writing", peer, peer),
            _line("row, all files", everything, peer),
            _line("row, file written in place and synced", rows["write"], peer),
            _line("row, temporary file renamed into place", rows["rename"], peer),
        ],
        ("a row counts from the moment another process can read it; the daemon has no workers",),
    )


def _line(what: str, values: list[float], peer: list[float]) -> tuple[str, ...]:
    figures = (min(values), median(values), percentile(values, 0.95), max(values))
    return (what, *(milliseconds(v) for v in figures), f"{median(values) / median(peer):.0f}")


def _checkpoint() -> bytes:
    import io

    import torch

    file = io.BytesIO()
    torch.save({"model": {"weight": torch.randn(SIZE // 4)}, "loss": 0.5}, file)
    return file.getvalue()


def _write(path: Path, content: bytes) -> float:
    """When it was closed."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return time.time()


def _write_and_rename(path: Path, content: bytes) -> float:
    """When it was renamed."""
    temporary = path.with_suffix(".tmp")
    _write(temporary, content)
    temporary.rename(path)
    return time.time()


def _row_appears(database: sqlite3.Connection, path: Path) -> float:
    deadline = time.monotonic() + PATIENCE
    while database.execute(QUERY, (str(path),)).fetchone() is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"no row for {path} after {PATIENCE:.0f} s")
        time.sleep(POLL)
    return time.time()


@contextmanager
def _listening(directory: Path) -> Iterator[Ears]:
    ears = Ears()
    observer = Observer()
    observer.schedule(ears, str(directory), event_filter=[FileClosedEvent, FileMovedEvent])
    observer.start()
    try:
        yield ears
    finally:
        observer.stop()
        observer.join()


@contextmanager
def _daemon(directory: Path) -> Iterator[None]:
    log = directory / "daemon.log"
    with log.open("wb") as output:
        process = subprocess.Popen([CKPTWATCH, "run", "-c", "config.yaml"], cwd=directory, env=environment(), stderr=output)
    try:
        deadline = time.monotonic() + PATIENCE
        while "watching" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the daemon did not start:\n{log.read_text()}")
            time.sleep(0.05)
        time.sleep(2.0)  # its first scan, of nothing
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        yield connection
    finally:
        connection.close()


if __name__ == "__main__":
    run(quick="--quick" in sys.argv[1:])
