"""The whole line on real training runs: what the demo promises, and that killing the daemon changes nothing of it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from ckptwatch.config import load_config
from ckptwatch.core.composite import composite_score
from ckptwatch.demo.show import Player
from ckptwatch.demo.stage import EVERY, MARKER, NAN_AT, STEPS, Stage
from ckptwatch.model import Score, to_plain
from ckptwatch.store import checkpoints, evaluations, events, runs
from ckptwatch.store.database import open_reading
from tests.support import tree, until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo"), pytest.mark.timeout(900)]

RUNS = ("calm", "stormy")
KILLS = 50

EXHAUSTIVE = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from ckptwatch.evaluate.engine import Engine
from ckptwatch.workers.wire import Job, recipe_from_plain
from ckptwatch.model import to_plain
asked = json.load(sys.stdin)
engine = Engine("cpu")
for number, path in enumerate(asked["paths"]):
    work = Path(asked["work"]) / str(number)
    work.mkdir(parents=True)
    job = Job(job=f"{number}#1", checkpoint=Path(path), format="torch-zip", run="r", step=None, epoch=None,
              variant="model_ema", recipe=recipe_from_plain(asked["recipe"]), work_dir=work, cache_dir=Path(asked["cache"]),
              log=work / "log")
    result = engine.evaluate(job, lambda document: None)
    print("SCORES", json.dumps({s.metric: s.value for s in result.scores}), flush=True)
"""


def environment():
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A demo as a user runs it, into a pipe."""
    directory = tmp_path_factory.mktemp("demo") / "d"
    done = subprocess.run([sys.executable, "-m", "ckptwatch", "demo", "--dir", str(directory)], text=True, timeout=800,
                          capture_output=True, env=environment(), stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (directory / "stdout.txt").write_text(done.stdout)
    return Stage(directory=directory)


def cli(stage, *arguments, ok=(0,)):
    done = subprocess.run([sys.executable, "-m", "ckptwatch", *arguments, "-c", str(stage.config)], text=True, timeout=120,
                          capture_output=True, env=environment())
    assert done.returncode in ok, done.stderr
    return done.stdout


def recorded(stage):
    """Run → step → (checkpoint, its evaluations), of everything ever whole, newest row of each step."""
    db = open_reading(stage.directory / "state")
    try:
        with db.read() as conn:
            found = {}
            for run in runs.all_runs(conn):
                done = {}
                for e in evaluations.of_checkpoints_in(conn, run.id):
                    done.setdefault(e.checkpoint_id, []).append(e)
                found[run.name] = {c.step: (c, done.get(c.id, [])) for c in checkpoints.of_run(conn, run.id)
                                   if c.state not in ("replaced", "incomplete", "gone")}
            return found
    finally:
        db.close()


def wherever(stage, checkpoint):
    """The file, on disk or in the trash (a rename keeps the inode)."""
    if checkpoint.path.exists():
        return checkpoint.path
    trash = stage.runs / ".ckptwatch" / "trash"
    return next(p for p in trash.glob("*/*") if p.stat().st_ino == checkpoint.identity.inode)


def end_state(stage):
    """What must not depend on whether the daemon was killed: files, trash, aliases, ranking, scores."""
    state = {}
    for run, by_step in recorded(stage).items():
        reports = stage.reports(run)
        ranking = json.loads(cli(stage, "rank", run, "--json"))
        state[run] = {
            "on disk": [p.name for p in stage.saved(run)],
            "states": {step: str(c.state) for step, (c, _) in by_step.items()},
            "evaluations": {step: sorted((e.variant, str(e.state)) for e in found) for step, (_, found) in by_step.items()},
            "scores": {step: {m: s.value for e in found for m, s in e.scores.items()}
                       for step, (_, found) in by_step.items()},
            "ranking": [(p["step"], p["variant"]) for p in ranking["ranking"]],
            "unranked": [u["step"] for u in ranking["unranked"]],
            "aliases": {p.name: str(p.readlink()) for p in reports.iterdir() if p.is_symlink()},
            "best_checkpoints": [c["step"] for c in
                                 json.loads((reports / "best_checkpoints.json").read_text())["best_checkpoints"]],
            "samples": sorted(p.name for p in (reports / "evaluation_samples").iterdir() if p.is_dir()),
        }
    return state


def scalars(stage, run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(stage.reports(run) / "tensorboard"))
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_the_demo_ends_with_status_ranking_best_and_what_was_removed(demo):
    said = (demo.directory / "stdout.txt").read_text()
    for promised in ("$ ckptwatch status", "$ ckptwatch rank calm", "best.pt of calm", "overview.jpg", "ckptwatch restore",
                     str(demo.config)):
        assert promised in said
    assert "keep best 2" in said.partition("$ ckptwatch trash")[2]


def test_best_is_what_an_exhaustive_evaluation_of_all_checkpoints_finds(demo, tmp_path):
    recipe = load_config(demo.config).recipes["shapes"]
    by_step = recorded(demo)["calm"]
    assert sorted(by_step) == list(range(EVERY, STEPS + 1, EVERY))
    paths = {step: wherever(demo, c) for step, (c, _) in sorted(by_step.items())}
    asked = {"paths": [str(p) for p in paths.values()], "work": str(tmp_path / "work"), "recipe": to_plain(recipe),
             "cache": str(demo.directory / "state" / "cache")}
    done = subprocess.run([sys.executable, "-c", EXHAUSTIVE], input=json.dumps(asked), text=True, capture_output=True,
                          env=environment(), cwd=demo.directory)
    lines = [json.loads(line.removeprefix("SCORES ")) for line in done.stdout.splitlines() if line.startswith("SCORES ")]
    assert len(lines) == len(paths), done.stderr[-2000:]
    composites = {
        step: composite_score({m: Score(metric=m, value=v) for m, v in values.items()}, recipe.composite)[0].value
        for step, values in zip(paths, lines, strict=True)}
    best = max(composites, key=composites.get)
    assert (demo.reports("calm") / "best.pt").resolve() == paths[best].resolve()
    assert EVERY < best < STEPS, "quality should rise and fall again"


def test_the_checkpoint_with_nan_is_unranked_and_kept(demo):
    ranking = json.loads(cli(demo, "rank", "stormy", "--json"))
    unranked = {u["step"]: u["reason"] for u in ranking["unranked"]}
    assert list(unranked) == [NAN_AT]
    assert "not finite" in unranked[NAN_AT]
    assert (demo.runs / "stormy" / "checkpoints" / f"{NAN_AT:07d}.pt").exists()


def test_only_planned_files_are_gone_each_with_its_reason(demo):
    db = open_reading(demo.directory / "state")
    with db.read() as conn:
        trashed = {e.path: e.message for e in events.recent(conn, limit=10_000) if e.kind == "trashed"}
    db.close()
    for run, by_step in recorded(demo).items():
        for step, (checkpoint, _) in by_step.items():
            if not checkpoint.path.exists():
                assert "keep best 2" in trashed[checkpoint.path], (run, step)
    assert trashed


def test_nothing_is_written_where_the_trainer_writes(demo):
    for run in RUNS:
        names = {p.name for p in (demo.runs / run).rglob("*")}
        assert names <= {"checkpoints", "log.jsonl"} | {f"{s:07d}.pt" for s in range(EVERY, STEPS + 1, EVERY)}


def test_scalars_stand_at_their_training_steps_and_tensorboard_reads_them(demo):
    found = scalars(demo, "calm")
    for tag in ("FID", "Inception_Score", "CLIP_Score", "LPIPS", "KID", "Composite_Score"):
        assert {step for step, _ in found[f"Evaluation/{tag}/model_ema"]} >= {EVERY, STEPS}
    best = int((demo.reports("calm") / "best.pt").resolve().stem)
    assert dict(found["Evaluation/IsBest/model_ema"])[best] == 1.0


def test_results_of_the_ended_run_name_the_best(demo):
    results = json.loads((demo.reports("calm") / "best_checkpoint_results.json").read_text())
    best = int((demo.reports("calm") / "best.pt").resolve().stem)
    assert results["best_checkpoints"][0]["step"] == best
    assert results["totals"]["ranked"] >= 2


def test_samples_of_every_evaluated_checkpoint_are_there(demo):
    folder = demo.reports("calm") / "evaluation_samples" / f"{STEPS:07d}-model_ema"
    names = {p.name for p in folder.iterdir()}
    assert {"eval_generated_000.jpg", "eval_comparison_000.jpg", "eval_prompt_000.txt"} <= names


def test_a_directory_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    done = subprocess.run([sys.executable, "-m", "ckptwatch", "demo", "--dir", str(tmp_path)], text=True,
                          capture_output=True, env=environment())
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert tree(tmp_path) == {"thesis.tex": b"precious"}


def test_killing_the_daemon_at_fifty_random_instants_changes_nothing_of_the_end(demo, tmp_path_factory):
    """Same inputs, same trainers, one of them killed too; the daemon is killed KILLS times while they train and after."""
    stage = Stage(directory=tmp_path_factory.mktemp("killed") / "d")
    stage.directory.mkdir()
    for name in ("networks", "reference"):
        shutil.copytree(demo.directory / name, stage.directory / name)
    for name in ("prompts.txt", "config.yaml", MARKER):
        shutil.copy(demo.directory / name, stage.directory / name)
    stage.runs.mkdir()
    rng = random.Random(20261121)
    trainers = [
        _trainer(stage, "calm", "--seed", 0), _trainer(stage, "stormy", "--seed", 1, "--nan-at", NAN_AT)]
    kills = 0
    resumed = False
    try:
        while kills < KILLS:
            daemon = _daemon(stage)
            # Mostly short lives, in which it opens, scans and starts a worker; some long enough for an evaluation.
            deadline = time.monotonic() + rng.choice((rng.uniform(0.2, 1.5), rng.uniform(0.2, 1.5), rng.uniform(1.5, 8.0)))
            until(lambda d=deadline: time.monotonic() > d, what="the instant of the kill")
            assert daemon.process.poll() is None, "\n".join(daemon.log.read_text().splitlines()[-20:])
            daemon.end(signal.SIGKILL)
            kills += 1
            if not resumed and len(stage.saved("calm")) >= 3:
                trainers[0].end(signal.SIGKILL)
                trainers[0] = _trainer(stage, "calm", "--seed", 0, "--resume")
                resumed = True
        for trainer in trainers:
            assert trainer.process.wait(600) == 0
        last = _daemon(stage)
        trainers.append(last)
        until(lambda: last.process.poll() is not None or stage.settled(), what="everything evaluated", patience=400)
        last.check()
        last.end()
    finally:
        for trainer in trainers:
            trainer.end(signal.SIGKILL)
    assert resumed
    assert end_state(stage) == end_state(demo)
    for run in RUNS:
        for tag, points in scalars(stage, run).items():
            if "IsBest" not in tag:
                assert len(points) == len({step for step, _ in points}), f"{tag} recorded twice"


def test_a_removed_checkpoint_is_restored_bit_for_bit(demo):
    checkpoint = next(c for c, _ in recorded(demo)["calm"].values() if c.state == "trashed")
    before = wherever(demo, checkpoint).read_bytes()
    said = cli(demo, "restore", f"calm@{checkpoint.step}")
    assert checkpoint.path.read_bytes() == before
    assert str(checkpoint.path) in said
    assert f"{checkpoint.path.name}" in cli(demo, "plan", "calm").partition("pinned")[0]


def _daemon(stage):
    return Player("the daemon", "ckptwatch", ["run", "-c", stage.config], stage.directory / "daemon.log", stage.directory)


def _trainer(stage, run, *more):
    return Player(run, "ckptwatch.demo.train",
                  ["--out", stage.runs / run, "--steps", STEPS, "--every", EVERY, "--threads", 1, *more],
                  stage.directory / f"{run}.log", stage.directory)


def test_pretrained_weights_that_cannot_be_had_are_named(tmp_path):
    """Where there is a network and the hubs answer, the demo would begin instead; then this says nothing."""
    offline = {**environment(), "HF_HUB_OFFLINE": "1", "TORCH_HOME": str(tmp_path / "torch"),
               "HF_HOME": str(tmp_path / "hf"), "http_proxy": "http://127.0.0.1:9",
               "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    done = subprocess.run([sys.executable, "-m", "ckptwatch", "demo", "--pretrained", "--dir", str(tmp_path / "d")],
                          text=True, capture_output=True, env=offline, timeout=300)
    assert done.returncode == 1
    for named in ("weights-inception-2015-12-05", "ViT-B-32", "alexnet"):
        assert named in done.stderr
    assert "without --pretrained" in done.stderr
