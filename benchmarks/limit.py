"""A checkpoint's evaluation against the forward passes it cannot do without, of images that are in memory already.

    python -m benchmarks limit [--quick] [--device cuda:0]

Everything else, decoding, resizing, references, statistics, five scores, is to hide behind them. The peer runs each network
in fp32 at the batch size and memory layout that is fastest, in a process of its own, in turn with the worker.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.scene import FIGURES, METRICS, SIDE, Scene, figures, make_scene, ratios, warm_worker
from benchmarks.tools import Timing, show

AIM = 1.15
BOUND = 120.0  # seconds after which no further round begins
STOCK = ("Inception", "CLIP", "LPIPS")
STRICT = ("Inception, batch norm folded", "CLIP", "LPIPS, originals known")

Answer = dict[str, tuple[float, float]]  # seconds by the clock and of all CPUs, by network


def run(*, quick: bool = False, device: str = "cpu") -> None:
    images, rounds = (40, 2) if quick else (128, 3) if device == "cpu" else (2048, 5)
    with tempfile.TemporaryDirectory(prefix="ckptwatch-bench-") as place:
        scene = make_scene(Path(place), images=images, checkpoints=rounds + 1)
        ours: list[Timing] = []
        bare: list[Answer] = []
        with _peer(scene, device) as (words, forward), warm_worker(scene, device) as evaluate:
            evaluate(0)
            forward()
            begin = time.monotonic()
            for number in range(1, rounds + 1):
                bare.append(forward())
                ours.append(evaluate(number)[0])
                if time.monotonic() - begin > BOUND:
                    break
        _show(images, device, ours, bare, words)


def _show(images: int, device: str, ours: list[Timing], bare: list[Answer], words: dict[str, str]) -> None:
    rows = [figures(f"{name} ({how})", [_total(answer, (name,)) for answer in bare], images) for name, how in words.items()]
    for title, names in (("forward passes, stock modules", STOCK), ("forward passes, the least there is", STRICT)):
        sums = [_total(answer, names) for answer in bare]
        rows.append(figures(title, sums, images, ratios(ours, sums)))
    rows.append(figures("ckptwatch, a whole evaluation", ours, images, ("1", "1")))
    show(
        f"Five scores of {images} PNG images of {SIDE} px, {device}, {len(ours)} checkpoints",
        ("", *FIGURES), rows,
        (f"{', '.join(METRICS)}; ratio: ckptwatch to it; aim: {AIM} to stock modules",
         f"the least there is: {', '.join(STRICT)} (trunk alone)"),
    )


def _total(answer: Answer, names: Sequence[str]) -> Timing:
    return Timing(wall=sum(answer[name][0] for name in names), cpu=sum(answer[name][1] for name in names))


@contextmanager
def _peer(scene: Scene, device: str) -> Iterator[tuple[dict[str, str], Callable[[], Answer]]]:
    """How it runs each network, in words, and what makes it run all of them once. Raises RuntimeError where it ends."""
    argv = ["nice", "-n", "10", sys.executable, "-m", "benchmarks.bare", str(scene.place), str(scene.images), device]
    process = subprocess.Popen(argv, env=scene.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def hear() -> dict:
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended with status {process.wait()}")
        return json.loads(line)

    def forward() -> Answer:
        stdin.write("\n")
        stdin.flush()
        return hear()

    try:
        yield hear(), forward
    finally:
        stdin.close()
        stdout.close()
        process.wait()


if __name__ == "__main__":
    run(quick="--quick" in sys.argv[1:])
