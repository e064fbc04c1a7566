"""`ckptwatch status` on a large database, as a ratio to importing the libraries it is made of and doing nothing.

    python -m benchmarks status_time [--quick]
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from benchmarks.tools import CKPTWATCH, interleaved, median, milliseconds, show
from ckptwatch.store import tables
from ckptwatch.store.database import open_writing

PEER = "import sqlalchemy, typer, rich"
# Typer imports pydantic the first time a command runs. The second peer has paid for that, and still does nothing.
PEER_USED = """
import sqlalchemy, rich, typer
app = typer.Typer(rich_markup_mode=None)
@app.command()
def main(name: str | None = None, json: bool = False) -> None: ...
app()
"""
AIM = 1.5
METRICS = ("fid", "kid", "inception_score")
DIGEST = "0123456789abcdef" * 4
SIZE = 6_800_000_000  # bytes of a checkpoint

CONFIG = """
state_dir: state
watch: [{{root: {root}}}]
recipes:
  t2i:
    sampler: {{python: "sampling:make"}}
    metrics: [fid, kid, inception_score]
    reference: {{images: val}}
runs:
  - match: "*"
    evaluate: {{recipe: t2i}}
    rank: {{by: fid}}
    keep: {{best: 3, last: 2, every_steps: 10000}}
"""

Row = dict[str, Any]


def run(*, quick: bool = False) -> None:
    runs, each, rounds = (200, 50, 3) if quick else (2000, 50, 7)
    with tempfile.TemporaryDirectory(prefix="ckptwatch-bench-") as scratch:
        directory = Path(scratch)
        begin = time.perf_counter()
        build(directory, runs=runs, each=each)
        built = time.perf_counter() - begin
        size = (directory / "state" / "ckptwatch.db").stat().st_size / 2**20
        timings = interleaved({
            PEER: [sys.executable, "-c", PEER],
            "the same, and an empty typer command": [sys.executable, "-c", PEER_USED],
            "ckptwatch status": [CKPTWATCH, "status", "-c", "config.yaml"],
            "ckptwatch status --json": [CKPTWATCH, "status", "--json", "-c", "config.yaml"],
        }, rounds=rounds, cwd=directory)
    wall = {name: median([t.wall for t in found]) for name, found in timings.items()}
    cpu = {name: median([t.cpu for t in found]) for name, found in timings.items()}
    show(
        f"status of {runs:,} runs with {runs * each:,} checkpoints (median of {rounds} processes, interleaved)",
        ("process", "wall", "fastest", "CPU", "wall ratio", "CPU ratio"),
        [(name, milliseconds(wall[name]), milliseconds(min(t.wall for t in found)), milliseconds(cpu[name]),
          f"{wall[name] / wall[PEER]:.2f}", f"{cpu[name] / cpu[PEER]:.2f}") for name, found in timings.items()],
        (f"aim: wall ratio below {AIM}; the daemon is down; database of {size:.0f} MiB, built in {built:.0f} s",),
    )


def build(directory: Path, *, runs: int, each: int) -> None:
    """A configuration and a state directory with a database as after months of work. No checkpoint is on disk."""
    root = directory / "runs"
    root.mkdir()
    (directory / "config.yaml").write_text(CONFIG.format(root=root))
    now = time.time()
    db = open_writing(directory / "state")
    try:
        with db.write() as conn:
            conn.execute(insert(tables.roots).values(path=str(root), uuid="0" * 36, device=1, scanned_at=now))
            conn.execute(insert(tables.recipes).values(name="t2i", digest=DIGEST, at=now))
            conn.execute(insert(tables.daemon).values(id=1, pid=1, version="0", since=now - 9e5, heartbeat=now - 60,
                                                      stopped_at=now - 60, last_words="received SIGTERM"))
            for first in range(0, runs, 100):
                numbers = range(first, min(runs, first + 100))
                rows = [row for n in numbers for row in _run(n, root, each, now)]
                for table in (tables.runs, tables.checkpoints, tables.evaluations, tables.scores, tables.removals,
                              tables.events):
                    wanted = [row for where, row in rows if where is table]
                    if wanted:
                        conn.execute(insert(table), wanted)
    finally:
        db.close()


def _run(number: int, root: Path, each: int, now: float) -> Iterator[tuple[Any, Row]]:
    """A run and everything that belongs to it. One in twenty still trains; a few have something wrong."""
    name = f"project{number % 17}/sweep-{number:05d}"
    alive = number % 20 == 0
    born = now - 86400 * 90 + number * 3600
    newest_at = now - number % 600 if alive else born + each * 600
    ids = range(number * each + 1, number * each + each + 1)
    best, last = ids[each * 7 // 10], ids[-1]
    yield tables.runs, {
        "id": number + 1, "root": str(root), "name": name, "path": str(root / name), "created_at": born,
        "newest_at": newest_at, "ended_at": None if alive else newest_at + 3600, "last_checkpoint_id": last,
        "best_checkpoint_id": best, "best_metric": "fid", "best_value": 5 + number % 90 / 10,
        "reclaimable_bytes": 2 * SIZE if alive else 0, "planned_removals": 2 if alive else 0,
        "held": "removes 30 of 50 (more than half): ckptwatch approve RUN" if number % 400 == 0 else "",
    }
    for place, checkpoint in enumerate(ids):
        step = (place + 1) * 1000
        kept = checkpoint in (best, last) or step % 10000 == 0 or place % 12 == 5
        state = "complete" if kept else "trashed" if alive and place % 3 == 0 else "purged"
        if number % 200 == 7 and checkpoint == last:
            state = "incomplete"
        path = root / name / "checkpoints" / f"{step:07d}.pt"
        yield from _checkpoint(checkpoint, number, path, state, step, born)
        if state != "incomplete":
            newest = checkpoint == last
            outcome = "failed" if newest and number % 80 == 5 else "pending" if newest and alive else "done"
            yield from _evaluation(checkpoint, outcome, born + step * 0.6)


def _checkpoint(number: int, run: int, path: Path, state: str, step: int, born: float) -> Iterator[tuple[Any, Row]]:
    at = born + step * 0.6
    yield tables.checkpoints, {
        "id": number, "run_id": run + 1, "path": str(path), "format": "torch-zip", "state": state,
        "evidence": f"zip directory valid, 1,893 records within {SIZE:,} bytes", "device": 66306, "inode": 10**7 + number,
        "size": SIZE, "mtime_ns": int(at * 1e9), "fingerprint": f"{number:016x}", "role": "regular", "generation": 0,
        "step": step, "epoch": step // 5000, "metrics": {"loss": 0.1 + 1 / step, "lr": 1e-4},
        "variants": ["model", "model_ema"], "found_at": at + 30, "pinned_by": "alice: paper" if number % 5000 == 0 else None,
    }
    yield tables.events, {"at": at + 30, "kind": "found", "by": "ckptwatch", "run": str(run), "path": str(path),
                          "message": "zip directory valid", "data": {"step": step, "bytes": SIZE}}
    if state in ("trashed", "purged"):
        yield tables.removals, {
            "id": number, "checkpoint_id": number, "original": str(path), "trash": f"/trash/{number:08d}/{path.name}",
            "state": state, "reason": "rank 9 of 31, keep best 3; not among the last 2", "bytes": SIZE, "at": at + 300,
            "purge_at": at + 86700,
        }


def _evaluation(number: int, state: str, at: float) -> Iterator[tuple[Any, Row]]:
    failed, waiting = state == "failed", state == "pending"
    yield tables.evaluations, {
        "id": number, "checkpoint_id": number, "variant": "", "recipe": "t2i", "digest": DIGEST, "state": state,
        "attempts": 3 if failed else 0 if waiting else 1, "available_at": at + 30, "queued_at": at + 30,
        "started_at": None if waiting else at + 60, "finished_at": None if waiting else at + 160,
        "seconds": 94.2 if state == "done" else None, "failure_kind": "out_of_memory" if failed else None,
        "failure_message": "CUDA out of memory" if failed else None, "failure_hint": "lower batch_size" if failed else None,
        "log": None if waiting else f"log/{number}.log", "published": state == "done",
    }
    for metric in METRICS if state == "done" else ():
        yield tables.scores, {"evaluation_id": number, "metric": metric, "value": 7.41, "low": 7.27, "high": 7.55, "n": 2000,
                              "mode": "min", "definition": "Fréchet distance of inception-v3-compat/2048"}


if __name__ == "__main__":
    run(quick="--quick" in sys.argv[1:])
