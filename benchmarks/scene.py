"""What an evaluation needs, made on the spot: network weights in files, images, prompts, checkpoints; and a warm worker.

The weights are random, He-initialised where features would else collapse: the scores mean nothing, but both sides get the
same ones, and times do not depend on them.
"""

import contextlib
import logging
import math
import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.tools import Timing, environment, median
from ckptwatch.model import MetricSpec, Networks, Recipe, Reference, Sampler
from ckptwatch.workers.supervisor import Died, Pool, Report
from ckptwatch.workers.wire import Failed, Job, Result

SIDE = 256            # px
CLIP = "ViT-B-32"
METRICS = ("fid", "inception_score", "kid", "lpips", "clip_score")
PATIENCE = 600.0      # seconds for one evaluation
FIGURES = ("time", "images/s", "ratio", "CPU", "ratio")  # ckptwatch to it


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Files below `place`. Image number i of every set has the same name, the original of each other's."""

    place: Path
    images: int       # in each set
    checkpoints: int

    @property
    def inception(self) -> Path:
        return self.place / "inception.pth"

    @property
    def clip(self) -> Path:
        return self.place / "clip.safetensors"

    @property
    def torch_home(self) -> Path:
        """Where lpips finds its AlexNet."""
        return self.place / "torch"

    @property
    def prompts(self) -> Path:
        return self.place / "prompts.txt"

    @property
    def reference(self) -> Path:
        return self.place / "reference"

    def checkpoint(self, number: int) -> Path:
        return self.place / "run" / f"step_{number:07d}.pt"

    def generated(self, number: int) -> Path:
        return self.place / "run" / "samples" / self.checkpoint(number).stem

    def environment(self) -> dict[str, str]:
        return {**environment(), "TORCH_HOME": str(self.torch_home), "HF_HUB_OFFLINE": "1"}


def make_scene(place: Path, *, images: int, checkpoints: int) -> Scene:
    """Takes half a minute, most of it random numbers."""
    scene = Scene(place=place, images=images, checkpoints=checkpoints)
    _make_images(scene.reference, images, seed=0)
    for number in range(checkpoints):
        _make_images(scene.generated(number), images, seed=1 + number)
    scene.prompts.write_text("".join(f"a photograph of street number {i} in the rain\n" for i in range(images)))
    _make_weights(scene)
    return scene


@contextmanager
def warm_worker(scene: Scene, device: str) -> Iterator[Callable[[int], tuple[Timing, dict[str, float]]]]:
    """A worker process as the daemon has them. Called with the number of a checkpoint it gives the time from the job's
    handing over to its result, and the scores. The first call starts it. Raises RuntimeError where an evaluation fails."""
    reports: queue.Queue[Report] = queue.Queue()
    cache = scene.place / "cache"
    cache.mkdir(exist_ok=True)
    with _changed(os.environ, scene.environment()):
        pool = Pool(devices=(device,), report=reports.put, log_dir=scene.place, directory=Path.cwd())

        def evaluate(number: int) -> tuple[Timing, dict[str, float]]:
            job = _job(scene, number, cache)
            begin, before = time.perf_counter(), _cpu(pool)
            pool.assign(pool.workers[0], job, time.monotonic())
            result = _wait(pool, reports)
            timing = Timing(wall=time.perf_counter() - begin, cpu=_cpu(pool) - before)
            pool.release(pool.workers[0], time.monotonic())
            return timing, {score.metric: score.value for score in result.scores}

        try:
            yield evaluate
        finally:
            pool.close()


def _job(scene: Scene, number: int, cache: Path) -> Job:
    work = scene.place / f"work-{number}-{time.monotonic_ns()}"
    work.mkdir()
    recipe = Recipe(
        name="t2i", sampler=Sampler(images="samples/{stem}"), metrics=tuple(MetricSpec(name=name) for name in METRICS),
        samples=scene.images, prompts=scene.prompts, reference=Reference(images=scene.reference), keep_samples=20,
        networks=Networks(features_weights=scene.inception, clip=CLIP, clip_pretrained=str(scene.clip)),
    )
    return Job(
        job=f"{number}#1", checkpoint=scene.checkpoint(number), format="torch-zip", run="run", step=number, epoch=None,
        variant="", recipe=recipe, work_dir=work, cache_dir=cache, log=scene.place / "evaluation.log",
    )


def _cpu(pool: Pool) -> float:
    """Seconds that the worker has used so far."""
    process = pool.workers[0].process
    return sum(psutil.Process(process.pid).cpu_times()[:4]) if process is not None else 0.0


def _wait(pool: Pool, reports: "queue.Queue[Report]") -> Result:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            report = reports.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise RuntimeError(f"no result after {PATIENCE:.0f} s") from None
        pool.handle(report, time.monotonic())
        if isinstance(report, Died):
            raise RuntimeError(f"the worker {report.words}")
        match report.document:
            case Result() as result:
                return result
            case Failed(failure=failure):
                raise RuntimeError(failure.message)


def _make_images(directory: Path, count: int, *, seed: int) -> None:
    """PNG files that take as long to decode as photographs: large soft shapes, and grain."""
    directory.mkdir(parents=True)
    chance = np.random.default_rng(seed)
    for i in range(count):
        coarse = Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        soft = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.int16)
        grainy = soft + chance.integers(-6, 7, soft.shape, dtype=np.int16)
        Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(directory / f"{i:05d}.png")


def _make_weights(scene: Scene) -> None:
    import torch
    import torchvision

    torch.manual_seed(0)
    for number in range(scene.checkpoints):
        torch.save({"model": {"weight": torch.randn(1 << 18)}, "step": number}, scene.checkpoint(number))
    hub = scene.torch_home / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), hub / "alexnet-owt-7be5be79.pth")
    _make_inception(scene.inception)
    _make_clip(scene.clip)


def _make_inception(path: Path) -> None:
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: Any, **__: Any) -> None:
            return None

    torch.save({}, path)
    network = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    network.fc.weight.data.mul_(10)  # or all classes would be equally likely, and the Inception Score 1
    torch.save(network.state_dict(), path)


def _make_clip(path: Path) -> None:
    import open_clip
    import safetensors.torch
    import torch

    logging.getLogger().setLevel(logging.ERROR)  # that it is made without weights is known
    model = open_clip.create_model(CLIP, pretrained=None).eval()
    with torch.no_grad():
        images, texts = torch.rand(4, 3, 224, 224), open_clip.get_tokenizer(CLIP)(["a photograph of a street"] * 4)
        cosine = (model.encode_image(images, normalize=True) * model.encode_text(texts, normalize=True)).sum(dim=1).mean()
        if cosine < 0:  # the score would be 0
            model.text_projection.neg_()
    safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)


@contextmanager
def _changed(mapping: Any, changes: Mapping[str, str]) -> Iterator[None]:
    before = {key: mapping.get(key) for key in changes}
    mapping.update(changes)
    try:
        yield
    finally:
        for key, value in before.items():
            with contextlib.suppress(KeyError):
                del mapping[key]
            if value is not None:
                mapping[key] = value


def figures(
    what: str, timings: Sequence[Timing], images: int, shares: tuple[str, str] = ("", ""),
) -> tuple[str, ...]:
    """A row of a table with the columns FIGURES: medians by the clock and of all CPUs."""
    wall, cpu = median([t.wall for t in timings]), median([t.cpu for t in timings])
    return what, f"{wall:.2f} s", f"{images / wall:.1f}", shares[0], f"{cpu:.1f} s", shares[1]


def ratios(ours: Sequence[Timing], peer: Sequence[Timing]) -> tuple[str, str]:
    """Of what ran in the same round, medians. That of CPU time says more where the machine is shared."""
    pairs = list(zip(ours, peer, strict=False))
    return f"{median([a.wall / b.wall for a, b in pairs]):.2f}", f"{median([a.cpu / b.cpu for a, b in pairs]):.2f}"


def difference(a: float, b: float) -> float:
    """Relative, of two scores that should be the same."""
    return 0.0 if a == b else abs(a - b) / max(abs(a), abs(b)) if math.isfinite(a) and math.isfinite(b) else math.inf
