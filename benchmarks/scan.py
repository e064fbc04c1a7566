"""What a look at 2,000 runs with 100,000 files costs, the first and one when nothing changed, against a bare walk."""

import gc
import os
import stat
import tempfile
import time
from pathlib import Path

from benchmarks.tools import median, milliseconds, show
from ckptwatch.formats.base import formats
from ckptwatch.watch.scanner import Scanner

HF = ("config.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json",
      "training_args.bin")
DCP = (".metadata", "__0_0.distcp", "__1_0.distcp")


def names_of_a_run(number: int) -> list[str]:
    """50 files: torch files and logs in every run; directory checkpoints of one kind or another in two of three."""
    names = [f"checkpoints/model_{step:07d}.pth" for step in range(0, 12000, 1000)]
    if number % 3 == 0:
        names += [f"checkpoint-{step}/{name}" for step in (500, 1000) for name in HF]
    elif number % 3 == 1:
        names += [f"step-{step}/{name}" for step in (100, 200, 300) for name in DCP]
    names += ["args.yaml", "train.log", "metrics.csv"]
    return names + [f"images/{n:04d}.png" for n in range(50 - len(names))]


def make_tree(root: Path, runs: int) -> int:
    """Returns the number of files. They are empty: a scan reads names and stats."""
    files = 0
    for number in range(runs):
        for name in names_of_a_run(number):
            path = root / f"group_{number % 20:02d}" / f"run_{number:04d}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            files += 1
    return files


def bare_walk(top: str) -> int:
    """The peer: scandir and stat of everything, and nothing else."""
    seen = 0
    pending = [top]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                seen += 1
                if stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
                    pending.append(entry.path)
    return seen


def run(*, quick: bool = False) -> None:
    runs, rounds = (200, 3) if quick else (2000, 7)
    with tempfile.TemporaryDirectory(prefix="ckptwatch-bench-") as place:
        root = Path(place)
        files = make_tree(root, runs)
        walks, firsts, agains = [], [], []
        found = 0
        for number in range(rounds + 1):
            walk = _timed(lambda: bare_walk(str(root)))
            scanner = scan = None  # a daemon's first scan starts with nothing, and frees nothing
            gc.collect()
            scanner = Scanner(root, formats())
            begin = time.perf_counter()
            scan = scanner.scan()
            first = time.perf_counter() - begin
            found = sum(len(sightings) for sightings in scan.changed.values())
            again = _timed(scanner.scan)
            if number:  # the first round warms up
                walks.append(walk)
                firsts.append(first)
                agains.append(again)
        rows = [
            ("scandir + stat walk", milliseconds(median(walks)), "1"),
            *((name, milliseconds(median(times)), f"{median([t / w for t, w in zip(times, walks, strict=True)]):.2f}")
              for name, times in (("first scan", firsts), ("unchanged", agains))),
        ]
        show(f"Scan of {runs:,} runs, {files:,} files, {found:,} checkpoints ({len(formats())} formats)",
             ("", "median", "ratio"), rows, ["aim: below 3 first, below 1.5 unchanged; warm cache, median of "
                                            f"{rounds} rounds"])


def _timed(work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
