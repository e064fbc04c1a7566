"""From features to FID: torch-fidelity's way, against ours with the statistics of the reference known.

    python -m benchmarks fid_maths [--quick]

No images and no networks. A reference is the same for every checkpoint, so its statistics are made once and not counted;
torch-fidelity computes both sides each time.
"""

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from benchmarks.scene import difference
from benchmarks.tools import median, show
from ckptwatch.evaluate.metrics.statistics import frechet, frechet_distance, moments_of, statistics_of

WIDTH = 2048
BOUND = 60.0  # seconds for one number of samples, after which no further round begins
AIMS = {1000: 0.1, 2048: 0.45, 10000: 0.45}


def run(*, quick: bool = False) -> None:
    rounds = 1 if quick else 5
    rows = []
    for count, aim in AIMS.items():
        if quick and count > 2048:
            continue
        rows += _measure(count, aim, rounds)
    show(
        f"FID from {WIDTH} features a picture, {torch.get_num_threads()} threads, median of at most {rounds}",
        ("samples", "way", "time", "ratio", "aim", "difference"), rows,
        ("ratio: to torch-fidelity in the same round",
         "difference: of FID, relative to torch-fidelity's own of float64 features"),
    )


def _measure(count: int, aim: float, rounds: int) -> list[tuple[str, ...]]:
    generated, reference = features(count, 1, 1.1), features(count, 2)
    known = statistics_of(reference)
    moments = moments_of([generated])
    ways: dict[str, Callable[[], float]] = {
        "torch-fidelity": lambda: _stock(generated, reference),
        "value": lambda: frechet_distance(generated, known),
        "value and interval": lambda: frechet(generated, known)[0],
        "the same, mean and covariance known": lambda: frechet(generated, known, moments)[0],
    }
    if count <= WIDTH:
        del ways["the same, mean and covariance known"]  # they are not used
    times: dict[str, list[float]] = {name: [] for name in ways}
    values: dict[str, float] = {}
    started = time.perf_counter()
    for number in range(rounds + 1):
        for name, way in ways.items():
            begin = time.perf_counter()
            values[name] = way()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - begin)
        if number and time.perf_counter() - started > BOUND:
            break
    exact = _stock(generated.double(), reference.double())
    peer = times["torch-fidelity"]
    return [
        (f"{count:,}" if name == "torch-fidelity" else "", name, f"{median(seconds):.2f} s",
         f"{median([a / b for a, b in zip(seconds, peer, strict=True)]):.2f}", f"{aim:g}" if name == "value" else "",
         f"{difference(values[name], exact):.0e}")
        for name, seconds in times.items()
    ]


def features(count: int, seed: int, scale: float = 1.0) -> Tensor:
    """As Inception's are: not negative, correlated, of very different size. float32 (count, WIDTH)."""
    noise = torch.Generator().manual_seed(seed)
    common = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=common)).Q
    sizes = torch.arange(1, WIDTH + 1) ** -0.5
    return ((torch.randn(count, WIDTH, generator=noise) * sizes * scale) @ turn + 0.4 * scale).clamp(min=0)


def _stock(generated: Tensor, reference: Tensor) -> float:
    statistics = [fid_features_to_statistics(x) for x in (generated, reference)]
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


if __name__ == "__main__":
    run(quick="--quick" in sys.argv[1:])
