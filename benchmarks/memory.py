"""Most memory a process ever held while it made FID of 5,000 and of 50,000 images' features.

    python -m benchmarks memory [--quick]

Ours goes through the ledger and the metric, as in an evaluation; the peer is torch-fidelity's own function, which wants the
features in memory. Both know the statistics of the reference. Each figure is of a process of its own.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.tools import environment, show

WIDTH = 2048
BATCH = 32  # images between two looks, as in an evaluation
AIM = 1.15
WAYS = ("ckptwatch", "torch-fidelity")


def run(*, quick: bool = False) -> None:
    counts = (3_000, 12_000) if quick else (5_000, 50_000)
    rows = []
    with tempfile.TemporaryDirectory(prefix="ckptwatch-bench-", dir="/var/tmp") as place:  # /tmp may be memory itself
        imports = _peak("imports", 0, Path(place))
        for way in WAYS:
            few, many = (_peak(way, count, Path(place)) for count in counts)
            rows.append((way, f"{few:,.0f} MB", f"{many:,.0f} MB", f"{many / few:.2f}",
                         f"{(many - imports) / (few - imports):.2f}"))
    show(
        f"Peak memory of FID from {WIDTH} features an image",
        ("", *(f"{n:,} images" for n in counts), "growth", "above imports"), rows,
        (f"imports alone: {imports:,.0f} MB; aim: growth of at most {AIM}",
         f"a matrix of {WIDTH} × {WIDTH} is 34 MB, features of {counts[1]:,} images "
         f"{counts[1] * WIDTH * 4 / 1e6:,.0f} MB"),
    )


def _peak(way: str, count: int, place: Path) -> float:
    """In MB."""
    argv = [sys.executable, "-m", "benchmarks.memory", way, str(count), str(place / f"{way}-{count}")]
    ended = subprocess.run(argv, env=environment(), capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{way} with {count} images failed:\n{ended.stderr[-2000:]}")
    return float(ended.stdout.split()[-1])


def work(way: str, count: int, directory: Path) -> None:
    """In the process that is measured; ends with its peak, in MB. (ru_maxrss would remember the parent's.)"""
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    from ckptwatch.evaluate.ledger import Ledger
    from ckptwatch.evaluate.metrics.fid import FrechetDistance
    from ckptwatch.evaluate.metrics.statistics import with_root

    noise = torch.Generator().manual_seed(count)
    mu, sizes = torch.zeros(WIDTH).double(), torch.arange(1, WIDTH + 1).double() ** -0.5

    def batch(size: int) -> torch.Tensor:
        return torch.randn(size, WIDTH, generator=noise) * sizes.float()

    if way == "ckptwatch":
        directory.mkdir()
        ledger = Ledger(directory)
        for begin in range(0, count, BATCH):
            ledger.append({"features/2048": batch(min(BATCH, count - begin))})
        metric = FrechetDistance("fid", "features/2048", with_root(mu, torch.diag(sizes.square())), "random")
        metric.compute(ledger)
    elif way == "torch-fidelity":
        features = torch.empty(count, WIDTH)
        for begin in range(0, count, BATCH):
            features[begin:begin + BATCH] = batch(min(BATCH, count - begin))
        known = {"mu": mu.float().numpy(), "sigma": torch.diag(sizes.square()).numpy()}
        fid_statistics_to_metric(fid_features_to_statistics(features), known, verbose=False)
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    print(int(found[1]) / 1000)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in (*WAYS, "imports"):
        work(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    else:
        run(quick="--quick" in sys.argv[1:])
