"""Making jobs, images and engines for tests of `evaluate/`. Real files, real networks, real processes."""

import atexit
import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.engine import Engine
from ckptwatch.model import MetricSpec, Networks, Recipe, Reference, Sampler
from ckptwatch.workers.wire import Job, Progress, Result
from tests.parity import tiny_networks
from tests.parity.toy_pictures import pixels

gc.freeze()  # as the worker does: torch's own objects make every collection slow
atexit.register(gc.unfreeze)

ROOT = Path(__file__).parents[2]
TOY = Sampler(factory="tests.parity.toy_samplers:Toy")
TINY = Networks(
    features=tiny_networks.NAME, features_layer=tiny_networks.LAYER, logits_layer=tiny_networks.LOGITS,
    features_module="tests.parity.tiny_networks:register",
)
# Writes {count} images as the `toy` sampler would; a program of its own, as a user's would be.
SCRIPT = """
import sys
from pathlib import Path
from PIL import Image
sys.path.insert(0, sys.argv[1])
from tests.parity.toy_pictures import pixels
prompts, seed, count, out = Path(sys.argv[2]).read_text().split("\\n"), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
assert len(prompts) == count + 1 and prompts[-1] == ""
for i in range(count):
    Image.fromarray(pixels(seed + i, prompts[i])).save(f"{out}/sample_{i}.png")
"""


def command(script: str = SCRIPT, timeout: float = 60.0) -> Sampler:
    escaped = script.replace("{", "{{").replace("}", "}}")
    argv = (sys.executable, "-c", escaped, str(ROOT), "{prompts}", "{seed}", "{count}", "{out_dir}")
    return Sampler(command=argv, timeout=timeout)


def shell(script: str, timeout: float = 60.0) -> Sampler:
    """A sampler command for /bin/sh; $1 is {out_dir}."""
    return Sampler(command=("/bin/sh", "-c", script, "sh", "{out_dir}"), timeout=timeout)


def metrics(*names: str) -> tuple[MetricSpec, ...]:
    return tuple(MetricSpec(name=name) for name in names)


def make_job(directory: Path, **changes: Any) -> Job:
    """A job on a small finite checkpoint; `changes` are fields of Job or of its Recipe."""
    checkpoint = directory / "run" / "step_0000300.pt"
    if not checkpoint.exists():
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": {"w": torch.ones(3)}, "step": 300}, checkpoint)
    recipe = {"name": "t2i", "sampler": TOY, "metrics": metrics("inception_score"), "samples": 12, "batch_size": 5,
              "networks": TINY, "keep_samples": 0}
    job = {"job": "1#1", "checkpoint": checkpoint, "format": "torch-zip", "run": "waymo_a", "step": 300, "epoch": 3,
           "variant": "", "work_dir": directory / "work", "cache_dir": directory / "cache", "log": directory / "job.log"}
    for name, value in changes.items():
        (job if name in Job.__dataclass_fields__ else recipe)[name] = value
    for name in ("work_dir", "cache_dir"):
        job[name].mkdir(exist_ok=True)
    return Job(**job, recipe=Recipe(**recipe))


def again(job: Job, number: int = 2) -> Job:
    """The same job in a fresh work directory."""
    work = job.work_dir.with_name(f"work{number}")
    work.mkdir()
    return replace(job, work_dir=work, job=f"1#{number}")


def run(job: Job, engine: Engine | None = None) -> tuple[Result, list[Progress]]:
    seen: list[Progress] = []
    result = (engine or Engine("cpu")).evaluate(job, seen.append)
    return result, seen


def scores(job: Job, engine: Engine | None = None) -> dict[str, float]:
    return {score.metric: score.value for score in run(job, engine)[0].scores}


def failure(job: Job, engine: Engine | None = None) -> EvaluationError:
    """The error an evaluation ends with."""
    try:
        run(job, engine)
    except EvaluationError as error:
        return error
    raise AssertionError("the evaluation did not fail")


def write_images(
    directory: Path, count: int, *, first: int = 1000, side: int = 40, prefix: str = "img", padded: bool = False,
) -> Path:
    """PNG files img_0.png, img_1.png, …, which need natural order from the eleventh on unless `padded`."""
    directory.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(pixels(first + i, "", side)).save(directory / f"{prefix}_{i:0{5 * padded}d}.png")
    return directory


def reference(directory: Path, **parts: Path) -> Reference:
    return Reference(**parts) if parts else Reference(images=write_images(directory / "reference", 30))
