"""Five scores of each checkpoint: a warm worker, against the script one would write with the libraries as they come.

    python -m benchmarks evaluation [--quick] [--device cuda:0]

The script is a process of its own for each checkpoint: torch-fidelity (FID, KID, Inception Score), lpips, then open_clip.
Both sides get the same images and the same random weights in files, and run at the worker's niceness.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.scene import FIGURES, METRICS, SIDE, Scene, difference, figures, make_scene, ratios, warm_worker
from benchmarks.tools import Timing, show, time_process

AIM = 0.35
BOUND = 250.0  # seconds after which nothing more begins, once there is one figure of each kind

Scores = dict[str, float]
STOCK, KEPT = "script, stock libraries", "script, reference features kept"


def run(*, quick: bool = False, device: str = "cpu") -> None:
    images, rounds = (40, 1) if quick else (128, 2) if device == "cpu" else (1024, 3)
    with tempfile.TemporaryDirectory(prefix="ckptwatch-bench-") as place:
        scene = make_scene(Path(place), images=images, checkpoints=rounds + 1)
        ours: list[Timing] = []
        peers: dict[str, list[Timing]] = {STOCK: [], KEPT: []}
        apart: Scores = dict.fromkeys(METRICS, 0.0)
        begin = time.monotonic()
        with warm_worker(scene, device) as evaluate:
            first, _ = evaluate(0)
            for number in range(1, rounds + 1):
                timing, found = evaluate(number)
                ours.append(timing)
                timing, expected = _stock(scene, number, device)
                peers[STOCK].append(timing)
                apart = {name: max(apart[name], difference(found[name], expected[name])) for name in METRICS}
                if time.monotonic() - begin > BOUND:
                    break
            if not quick and time.monotonic() - begin < BOUND:
                _stock(scene, 0, device, cache=True)  # so that what it keeps is there
                peers[KEPT].append(_stock(scene, 1, device, cache=True)[0])
        _show(images, device, first, ours, peers, apart)


def _show(
    images: int, device: str, first: Timing, ours: list[Timing], peers: dict[str, list[Timing]], apart: Scores,
) -> None:
    rows = [
        figures("ckptwatch, first: start, weights, reference", [first], images),
        figures(f"ckptwatch, each of {len(ours)} after it", ours, images, ("1", "1")),
    ]
    for name, timings in peers.items():
        if timings:
            rows.append(figures(f"{name} ({len(timings)})", timings, images, ratios(ours, timings)))
    show(
        f"Five scores of {images} PNG images of {SIDE} px, {images} reference images, {device}",
        ("", *FIGURES), rows,
        (f"{', '.join(METRICS)}; ratio: ckptwatch to it; aim: {AIM} to stock libraries",
         "largest relative difference of scores: " + ", ".join(f"{k} {v:.0e}" for k, v in apart.items())),
    )


def _stock(scene: Scene, number: int, device: str, *, cache: bool = False) -> tuple[Timing, Scores]:
    """Of the whole process, and its scores. Raises RuntimeError if it fails."""
    argv = ["nice", "-n", "10", sys.executable, "-m", "benchmarks.stock", str(scene.generated(number)),
            str(scene.reference), str(scene.inception), str(scene.clip), str(scene.prompts), device]
    if cache:
        (scene.place / "kept").mkdir(exist_ok=True)
        argv.append(str(scene.place / "kept"))
    said = scene.place / "stock.log"
    with said.open("w") as output:
        try:
            timing = time_process(argv, Path.cwd(), env=scene.environment(), output=output)
        except RuntimeError as error:
            raise RuntimeError(f"{error}:\n{said.read_text()[-2000:]}") from error
    found = next(line for line in reversed(said.read_text().splitlines()) if line.startswith("{"))
    return timing, json.loads(found)


if __name__ == "__main__":
    run(quick="--quick" in sys.argv[1:])
