"""What a line of a log costs, early and late in a log that grows, and in a back catalogue, against bare `json.loads`."""

import gc
import json
import tempfile
import time
from pathlib import Path

from benchmarks.tools import median, show
from ckptwatch.logs.follower import Follower
from ckptwatch.logs.json_lines import JsonLines
from ckptwatch.model import Logged

BATCH = 100  # lines between two looks: a trainer that logs ten times a second, looked at every ten seconds


def lines(begin: int, end: int) -> str:
    return "".join(f'{{"step": {step}, "epoch": {step // 1000}, "loss": {1 / (step + 1):.6f}, "loss_kpt": {step % 7 / 10}, '
                   f'"lr": 0.0001, "grad_norm": {step % 13 / 3:.6f}}}\n' for step in range(begin, end))


def grow(path: Path, total: int) -> list[float]:
    """Seconds of each look at a log that is BATCH lines longer than at the last."""
    follower = Follower(path, JsonLines(), Logged())
    times, told = [], 0
    with path.open("w") as file:
        for begin in range(0, total, BATCH):
            file.write(lines(begin, begin + BATCH))
            file.flush()
            start = time.perf_counter()
            polled = follower.poll()
            times.append(time.perf_counter() - start)
            told += len(polled.rows)
    assert told == total and follower.place.offset == path.stat().st_size
    return times


def catch_up(path: Path) -> tuple[float, int]:
    follower = Follower(path, JsonLines(), Logged())
    told, more = 0, True
    start = time.perf_counter()
    while more:
        polled = follower.poll()
        told, more = told + len(polled.rows), polled.more
    return time.perf_counter() - start, told


def bare(path: Path) -> float:
    """The peer: every line parsed, and nothing else."""
    start = time.perf_counter()
    with path.open() as file:
        for line in file:
            json.loads(line)
    return time.perf_counter() - start


def run(*, quick: bool = False) -> None:
    total, rounds = (100_000, 3) if quick else (1_000_000, 5)
    with tempfile.TemporaryDirectory(prefix="ckptwatch-bench-") as place:
        path = Path(place) / "metrics.jsonl"
        gc.collect()
        times = grow(path, total)
        tenth = len(times) // 10
        early, late = median(times[:tenth]) / BATCH, median(times[-tenth:]) / BATCH
        show(f"A log grown to {total:,} lines, looked at every {BATCH} lines", ("", "per line", "ratio"), [
            (f"the first {tenth * BATCH:,} lines", _micro(early), "1"),
            (f"the last {tenth * BATCH:,} lines", _micro(late), f"{late / early:.2f}"),
        ], ["aim: below 1.2; medians over the looks, each with its stat, open and read"])
        bares, ours = [], []
        for number in range(rounds + 1):
            peer = bare(path)
            took, told = catch_up(path)
            assert told == total
            if number:  # the first round warms up
                bares.append(peer)
                ours.append(took)
        ratio = median([o / b for o, b in zip(ours, bares, strict=True)])
        size = f"{path.stat().st_size / 1e6:.0f} MB"
        show(f"A back catalogue of {total:,} lines, {size}", ("", "lines/s", "per line", "ratio"), [
            ("for line in file: json.loads(line)", f"{total / median(bares):,.0f}", _micro(median(bares) / total), "1"),
            ("followed, as rows", f"{total / median(ours):,.0f}", _micro(median(ours) / total), f"{ratio:.2f}"),
        ], [f"warm cache, median of {rounds} rounds"])


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} µs"
