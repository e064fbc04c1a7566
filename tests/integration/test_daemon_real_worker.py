"""The real worker at the end of the line: a command sampler, a custom metric, torch, and what goes wrong with samplers."""

import sys

import pytest
import torch

from tests.support import OURS, until

GENERATOR = '''
import argparse, time
from pathlib import Path
from PIL import Image
p = argparse.ArgumentParser()
for a in ("ckpt", "seed", "count", "out"): p.add_argument("--" + a)
a = p.parse_args()
step = int(Path(a.ckpt).stem)
if step == 10: raise SystemExit("the sampler broke")
if step == 20: time.sleep(600)
for i in range(int(a.count) - (3 if step == 30 else 0)):
    path = Path(a.out) / f"{i:05d}.png"
    if step == 40: path.write_bytes(b"no image")
    else: Image.new("RGB", (16, 16), (step % 256,) * 3).save(path)
'''
METRIC = "def brightness(images):\n    return sum(b.float().mean().item() * len(b) for b in images) / max(1, len(images))\n"


@pytest.fixture
def real(project):
    (project.base / "gen.py").write_text(GENERATOR)
    (project.base / "metric.py").write_text(METRIC)
    recipe = {
        "sampler": {"command": [sys.executable, "gen.py", "--ckpt", "{checkpoint}", "--seed", "{seed}", "--count", "{count}",
                                "--out", "{out_dir}"], "timeout": 6.0},
        "samples": 6, "metrics": [{"name": "brightness", "function": "metric:brightness", "mode": "max"}]}
    return project.write(
        recipes={"r": recipe}, workers={"devices": ["cpu"], "threads": 1, "retry_after": 0, "attempts": 1},
        runs=[{"match": "*", "evaluate": {"recipe": "r"}, "rank": {"by": "brightness"}, "keep": {"best": 1, "last": 1},
               "approve_over": 1.0}])


def train(project, step):
    path = project.root / f"a/{step:04d}.pt"
    path.parent.mkdir(exist_ok=True)
    torch.save({"model": {"w": torch.ones(3)}, "step": step}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


@pytest.mark.slow
def test_images_are_made_measured_ranked_and_shown(real):
    for step in (100, 200, 300):  # whose brightness is 100, 200, 44
        train(real, step)
    with real.daemon(stub=False) as daemon:
        until(lambda: real.quiet_state() and (real.root / OURS / "runs/a/best.pt").exists(), what="all evaluated")
        until(lambda: real.states()["a/0100.pt"] == "trashed", what="pruned")
        assert daemon.stop() == 0
    assert (real.root / OURS / "runs/a/best.pt").resolve().name == "0200.pt"
    assert [p["step"] for p in real.json("rank", "a", stub=False)["ranking"]] == [200, 300]
    assert list((real.root / OURS / "runs/a/evaluation_samples").glob("*/*.jpg"))
    assert sorted(p.name for p in (real.root / "a").iterdir()) == ["0200.pt", "0300.pt"]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_sampler_in_trouble_costs_its_own_checkpoint_a_rank_and_nothing_else(real):
    for step in (10, 20, 30, 40, 50, 60):
        train(real, step)
    with real.daemon(stub=False) as daemon:
        until(real.quiet_state, what="all attempts made", patience=200)
        assert daemon.stop() == 0
    found = {name: e.failure for name, [e] in real.evaluations().items() if e.failure}
    assert {n: f.kind for n, f in found.items()} == {f"a/00{i}0.pt": "sampler" for i in (1, 2, 3, 4)}
    assert "the sampler broke" in found["a/0010.pt"].message + found["a/0010.pt"].hint
    assert "3" in found["a/0030.pt"].message and "6" in found["a/0030.pt"].message
    assert {n for n, s in real.states().items() if s == "complete"} >= {f"a/00{i}0.pt" for i in (1, 2, 3, 4, 6)}
    unranked = {u["step"]: u["reason"] for u in real.json("rank", "a", stub=False)["unranked"]}
    assert set(unranked) == {10, 20, 30, 40} and all("evaluation failed" in why for why in unranked.values())
