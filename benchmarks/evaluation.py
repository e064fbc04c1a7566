"""Five scores of each checkpoint: a warm worker, against the script one would write with the libraries as they come.

    python -m benchmarks evaluation [--quick] [--device cuda:0]

The script is a process of its own for each checkpoint: torch-fidelity (FID, KID, Inception Score), lpips, then open_clip.
Both sides get the same images and the same random weights in files, and run at the worker's niceness.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.scene import METRICS, SIDE, Scene, difference, make_scene, warm_worker
from benchmarks.tools import median, show

AIM = 0.35
BOUND = 240.0  # seconds after which no further round begins

Scores = dict[str, float]


def run(*, quick: bool = False, device: str = "cpu") -> None:
    images, rounds = (40, 1) if quick else (128, 3) if device == "cpu" else (1024, 3)
    with tempfile.TemporaryDirectory(prefix="ckptwatch-bench-") as place:
        scene = make_scene(Path(place), images=images, checkpoints=rounds + 1)
        (scene.place / "kept").mkdir()
        ours: list[float] = []
        stock: list[float] = []
        kept: list[float] = []
        apart: dict[str, float] = dict.fromkeys(METRICS, 0.0)
        begin = time.monotonic()
        with warm_worker(scene, device) as evaluate:
            first, _ = evaluate(0)
            if not quick:
                _stock(scene, 0, device, cache=True)  # so that what it keeps is there
            for number in range(1, rounds + 1):
                seconds, found = evaluate(number)
                ours.append(seconds)
                seconds, expected = _stock(scene, number, device)
                stock.append(seconds)
                if not quick:
                    kept.append(_stock(scene, number, device, cache=True)[0])
                apart = {name: max(apart[name], difference(found[name], expected[name])) for name in METRICS}
                if time.monotonic() - begin > BOUND:
                    break
        peers = {"script, stock libraries": stock, "script, reference features kept": kept}
        _show(images, device, first, ours, peers, apart)


def _show(
    images: int, device: str, first: float, ours: list[float], peers: dict[str, list[float]], apart: Scores,
) -> None:
    def line(what: str, seconds: list[float], ratio: str) -> tuple[str, ...]:
        return what, f"{median(seconds):.1f} s", f"{images / median(seconds):.1f}", ratio

    rows = [line(f"ckptwatch, each after the first ({len(ours)})", ours, "1")]
    rows.append(line("ckptwatch, first: start, weights, reference", [first], "–"))
    for name, seconds in peers.items():
        if seconds:
            ratio = median([a / b for a, b in zip(ours, seconds, strict=True)])
            rows.append(line(name, seconds, f"{ratio:.2f}"))
    show(
        f"{', '.join(METRICS)} of {images} PNG images of {SIDE} px, {images} reference images, {device}",
        ("", "per checkpoint", "images/s", "ckptwatch / it"), rows,
        (f"aim: at most {AIM} against stock libraries",
         "largest relative difference of scores: " + ", ".join(f"{k} {v:.0e}" for k, v in apart.items())),
    )


def _stock(scene: Scene, number: int, device: str, *, cache: bool = False) -> tuple[float, Scores]:
    """Seconds of the whole process, and its scores. Raises RuntimeError if it fails."""
    argv = ["nice", "-n", "10", sys.executable, "-m", "benchmarks.stock", str(scene.generated(number)),
            str(scene.reference), str(scene.inception), str(scene.clip), str(scene.prompts), device]
    argv += [str(scene.place / "kept")] if cache else []
    begin = time.perf_counter()
    ended = subprocess.run(argv, env=scene.environment(), capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if ended.returncode:
        raise RuntimeError(f"the script failed:\n{ended.stderr[-2000:]}")
    return seconds, json.loads(ended.stdout.splitlines()[-1])


if __name__ == "__main__":
    run(quick="--quick" in sys.argv[1:])
