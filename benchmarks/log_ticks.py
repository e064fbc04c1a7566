"""What the logs of 2,000 runs cost when nobody writes into them, and one that is read and recorded as it grows."""

import gc
import os
import tempfile
import time
from pathlib import Path

from benchmarks.log_lines import lines
from benchmarks.tools import median, show
from ckptwatch.settings import RootRule, Settings
from ckptwatch.stages.logs import LogStage
from ckptwatch.store import roots, runs
from ckptwatch.store.database import Database, open_writing

LOGS = 2     # of each run
BATCH = 1000  # lines between two looks


def run(*, quick: bool = False) -> None:
    count, total = (200, 50_000) if quick else (2_000, 1_000_000)
    with tempfile.TemporaryDirectory(prefix="ckptwatch-bench-") as place:
        _idle(Path(place) / "many", count)
    with tempfile.TemporaryDirectory(prefix="ckptwatch-bench-") as place:
        _growing(Path(place) / "one", total)


def _open(base: Path, names: list[str]) -> tuple[Database, LogStage, Path]:
    root = base / "runs"
    for name in names:
        (root / name).mkdir(parents=True)
    db = open_writing(base / "state")
    with db.write() as conn:
        roots.record(conn, root, uuid="u", device=1)
        for name in names:
            runs.run_named(conn, root, name, path=root / name, now=0.0)
    stage = LogStage(db, Settings(state_dir=base / "state", roots=(RootRule(root=root),)))
    return db, stage, root


def _look(stage: LogStage) -> None:
    stage.look(mono=time.monotonic, now=time.time())
    while stage.pending:
        stage.look(mono=time.monotonic, now=time.time())


def _idle(base: Path, count: int) -> None:
    db, stage, root = _open(base, [f"run{i:04d}" for i in range(count)])
    paths = [root / f"run{i:04d}" / f"log{k}.jsonl" for i in range(count) for k in range(LOGS)]
    for path in paths:
        path.write_text(lines(0, 20))
    stage.refresh()
    for _ in range(count):  # each look reads for a while only
        _look(stage)
        if len(_read(db)) == len(paths):
            break
    gc.collect()
    stats, ours = [], []
    for _ in range(15):
        begin = time.process_time()
        for path in paths:
            os.stat(path)  # noqa: PTH116 - the peer
        stats.append(time.process_time() - begin)
        begin = time.process_time()
        _look(stage)
        ours.append(time.process_time() - begin)
    peer, own = median(stats), median(ours)
    show(f"A look at {count:,} runs with {LOGS} logs each, nothing new", ("", "CPU", "ratio"), [
        ("os.stat of every log", f"{peer * 1e3:.1f} ms", "1"), ("look", f"{own * 1e3:.1f} ms", f"{own / peer:.2f}"),
    ], ["aim: below 50 ms for 2,000 runs, 5 % of a core-second; the daemon looks every two seconds"])
    db.close()


def _read(db: Database) -> list[int]:
    from ckptwatch.store import logs

    with db.read() as conn:
        return [log.id for run in runs.all_runs(conn) for log in logs.of_run(conn, run.id) if log.rows]


def _growing(base: Path, total: int) -> None:
    db, stage, root = _open(base, ["a"])
    stage.refresh()
    times = []
    with (root / "a" / "log.jsonl").open("w") as file:
        for begin in range(0, total, BATCH):
            file.write(lines(begin, begin + BATCH))
            file.flush()
            start = time.process_time()
            _look(stage)
            times.append(time.process_time() - start)
    tenth = len(times) // 10
    early, late = median(times[1:tenth + 1]) / BATCH, median(times[-tenth:]) / BATCH
    show(f"A log grown to {total:,} lines, read and recorded every {BATCH} lines", ("", "CPU per line", "ratio"), [
        (f"the first {tenth * BATCH:,} lines", f"{early * 1e6:.1f} µs", "1"),
        (f"the last {tenth * BATCH:,} lines", f"{late * 1e6:.1f} µs", f"{late / early:.2f}"),
    ], ["aim: below 1.2"])
    db.close()
