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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.scene import METRICS, SIDE, Scene, make_scene, warm_worker
from benchmarks.tools import median, show

AIM = 1.15
BOUND = 200.0  # seconds after which no further round begins
STOCK = ("Inception", "CLIP", "LPIPS")
STRICT = ("Inception, batch norm folded", "CLIP", "LPIPS, originals known")

Answer = dict[str, float]


def run(*, quick: bool = False, device: str = "cpu") -> None:
    images, rounds = (40, 2) if quick else (128, 5) if device == "cpu" else (2048, 5)
    with tempfile.TemporaryDirectory(prefix="ckptwatch-bench-") as place:
        scene = make_scene(Path(place), images=images, checkpoints=rounds + 1)
        ours: list[float] = []
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


def _show(images: int, device: str, ours: list[float], bare: list[Answer], words: dict[str, str]) -> None:
    rows = []
    for name, how in words.items():
        seconds = median([answer[name] for answer in bare])
        rows.append((f"{name} ({how})", f"{seconds:.2f} s", f"{images / seconds:.1f}", ""))
    for title, names in (("forward passes, stock modules", STOCK), ("forward passes, the least there is", STRICT)):
        sums = [sum(answer[name] for name in names) for answer in bare]
        ratio = median([a / b for a, b in zip(ours, sums, strict=True)])
        rows.append((title, f"{median(sums):.2f} s", f"{images / median(sums):.1f}", f"{ratio:.2f}"))
    rows.append(("ckptwatch, a whole evaluation", f"{median(ours):.2f} s", f"{images / median(ours):.1f}", "1"))
    show(
        f"{', '.join(METRICS)} of {images} PNG images of {SIDE} px, {device}, {len(ours)} checkpoints",
        ("", "median", "images/s", "ckptwatch / it"), rows,
        (f"aim: at most {AIM} against stock modules; the least there is: {', '.join(STRICT)} (trunk alone)",),
    )


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
