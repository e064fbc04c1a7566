"""The demo's directory: inputs, configuration, and what can be read off it while the show runs."""

import io
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ckptwatch import control
from ckptwatch.errors import CkptwatchError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

MARKER = ".ckptwatch-demo"  # says that what lies in the directory is ours to clear
STEPS = 1600
EVERY = 200
NAN_AT = 800
SAMPLES = 256

CONFIG = """\
# Written by `ckptwatch demo`. Every command takes it:  ckptwatch status -c {config}
state_dir: state
watch:
  - root: runs
    quiet: 1s          # a real trainer stalls longer: 30s is the default
    scan_every: 5s
workers:
  devices: [cpu]
  threads: 1
recipes:
  shapes:
    sampler: {{python: "ckptwatch.demo.sampler:create"}}
    samples: {samples}
    prompts: prompts.txt
    reference: {{images: reference}}
    metrics: [fid, inception_score, kid, clip_score, lpips]
    composite:
      clip_score: {{weight: 0.4, range: [0, 1]}}
      inception_score: {{weight: 0.3, range: [1, {most_classes}]}}
      lpips: {{weight: -0.2, range: [0, 1]}}
      fid: {{weight: -0.1, range: [0, {worst_fid}]}}
    num_evaluation_samples: 8
{networks}runs:
  - match: "*"
    evaluate: {{recipe: shapes, variants: [model_ema]}}
    rank: {{by: composite_score}}
    keep: {{best: 2, last: 1, every_steps: 800}}
    trash: {{grace: 24h}}
    approve_over: 1.0  # these runs are thrown away; nothing waits for a person
"""

NETWORKS = """\
    networks:          # made by the demo itself; leave this out for Inception, ViT-B-32 and AlexNet
      features:
        extractor: ckptwatch-demo-shapes
        module: ckptwatch.demo.networks:register
        layer: "64"
        logits: logits
        weights: networks/features.pt
      clip: {model: "local-dir:networks/clip"}
      lpips: {net: alex, weights: networks/lpips.pt}
"""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A prepared directory."""

    directory: Path
    every: int = EVERY

    @property
    def config(self) -> Path:
        return self.directory / "config.yaml"

    @property
    def runs(self) -> Path:
        return self.directory / "runs"

    def reports(self, run: str) -> Path:
        return self.runs / ".ckptwatch" / "runs" / run

    def saved(self, run: str) -> list[Path]:
        """Checkpoints of a run that are on disk now."""
        return sorted((self.runs / run / "checkpoints").glob("[0-9]*.pt"))

    def settled(self) -> bool:
        """Has the daemon recorded and evaluated all there is?"""
        from ckptwatch.config import load_config
        from ckptwatch.status import gather

        found = gather(load_config(self.config).outline, now=time.time())
        queued = sum(found.queue.get(state, 0) for state in ("pending", "running"))
        recorded = sum(r.counts.get("complete", 0) for r in found.runs)
        on_disk = sum(len(self.saved(run)) for run in ("calm", "stormy"))
        return not queued and not found.live.get("writing") and recorded == on_disk

    def status_lines(self, width: int) -> list[str]:
        """`ckptwatch status` as it would stand on a terminal, or nothing while there is none."""
        from rich.console import Console

        from ckptwatch.cli.status import show
        from ckptwatch.config import load_config
        from ckptwatch.status import gather

        settings = load_config(self.config)
        out = Console(file=io.StringIO(), width=width, highlight=False, markup=False, force_terminal=True)
        try:
            show(gather(settings.outline, now=time.time()), lambda: settings, out)
        except CkptwatchError:
            return []  # the daemon is opening its database at this moment
        return out.file.getvalue().splitlines()  # type: ignore[attr-defined]


def prepare(directory: Path, *, pretrained: bool, screen: "Console") -> Stage:
    """An empty stage in `directory`, with inputs, networks and configuration. What an earlier demo left is cleared.

    Raises UsageError if the directory holds something else, CkptwatchError if weights cannot be had.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()) and not (directory / MARKER).exists():
        raise UsageError("use as demo directory", "it is not empty, and not from an earlier demo", path=directory,
                         hint="name a new directory with --dir")
    if (directory / "state").is_dir() and control.request(directory / "state", "live", patience=5.0):
        raise UsageError("use as demo directory", "a demo is running in it", path=directory,
                         hint="wait for its end, or name another directory with --dir")
    (directory / MARKER).touch()
    for leftover in ("runs", "state"):
        shutil.rmtree(directory / leftover, ignore_errors=True)
    for log in directory.glob("*.log"):
        log.unlink()
    stage = Stage(directory=directory)
    stage.runs.mkdir()
    if pretrained:
        _require_pretrained(screen)
    _make_inputs(directory, screen, networks=not pretrained)
    stage.config.write_text(_config(stage, pretrained))
    return stage


def _config(stage: Stage, pretrained: bool) -> str:
    return CONFIG.format(config=stage.config, samples=SAMPLES, networks="" if pretrained else NETWORKS,
                         most_classes=40 if pretrained else 24, worst_fid=300 if pretrained else 60)


def _make_inputs(directory: Path, screen: "Console", *, networks: bool) -> None:
    """Originals, prompts and the demo's own networks, by a process of its own: torch stays out of this one."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    command = [sys.executable, "-m", "ckptwatch.demo.inputs", str(directory), "--count", str(SAMPLES)]
    command += [] if networks else ["--no-networks"]
    screen.print("making reference images, prompts and small networks (about half a minute, the first time)", soft_wrap=True)
    columns = (TextColumn("  {task.description:<9}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen, disable=not screen.is_terminal, transient=True) as bars, \
            (directory / "inputs.log").open("w+") as errors:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        tasks: dict[str, TaskID] = {}
        for line in process.stdout or ():
            phase, _, percent = line.strip().partition(" ")
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=100)
            bars.update(tasks[phase], completed=float(percent.rstrip("%") or 0))
        if process.wait():
            errors.seek(0)
            last_words = "\n".join(errors.read().strip().splitlines()[-5:])
            raise CkptwatchError("make the demo's inputs", last_words, path=directory)


def _require_pretrained(screen: "Console") -> None:
    screen.print("loading the standard Inception, ViT-B-32 and AlexNet weights", soft_wrap=True)
    done = subprocess.run([sys.executable, "-m", "ckptwatch.demo.pretrained"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CkptwatchError("use the pretrained networks", done.stdout.strip() or done.stderr.strip().splitlines()[-1],
                             hint="without --pretrained the demo makes small networks of its own")

