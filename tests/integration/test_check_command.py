"""`ckptwatch check`: what it looks at, what it says, and its exit status; on real checkpoints, logs, loaders and workers."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckptwatch.formats.base import claim_at
from ckptwatch.model import (
    Composite,
    CompositeTerm,
    EvaluateRule,
    EvaluationCommand,
    Facts,
    Logged,
    MetricSpec,
    Recipe,
    RunRule,
)
from ckptwatch.quickcheck import (
    State,
    Subject,
    Wishes,
    check_keys,
    check_loads,
    check_losses,
    check_pass,
    check_weights,
    newest_in,
    run_of,
    saved_of,
    shortened,
)

NAN = float("nan")
GENERATOR = '''
import argparse
from pathlib import Path
from PIL import Image
p = argparse.ArgumentParser()
for a in ("ckpt", "seed", "count", "out"): p.add_argument("--" + a)
a = p.parse_args()
for i in range(int(a.count)): Image.new("RGB", (16, 16), (128,) * 3).save(Path(a.out) / f"{i:05d}.png")
'''
METRIC = "def brightness(images):\n    return sum(b.float().mean().item() * len(b) for b in images) / max(1, len(images))\n"


def train(run, *, epoch=1, value=1.0, logs=True, **content):
    """A checkpoint and the log beside it, as a trainer of MMCV's kind leaves them."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / f"epoch_{epoch}.pth"
    torch.save({"meta": {"epoch": epoch}, "state_dict": {"w": torch.full((4,), value)}, "optimizer": {}, **content}, path)
    if logs:
        rows = [{"env_info": "none", "exp_name": "sdpose"}] + [
            {"mode": "train", "epoch": e, "iter": 10, "lr": 0.1, "loss_kpt": 0.5 / e, "loss_reg": 0.25, "loss": 0.75}
            for e in range(1, epoch + 1)]
        (run / "20260101_000000.log.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def states(document):
    return {c["name"]: c["state"] for c in document["checks"]}


def words(document, name):
    return next(c["words"] for c in document["checks"] if c["name"] == name)


def saved(path):
    return saved_of(claim_at(path), None)


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def real(project):
    (project.base / "gen.py").write_text(GENERATOR)
    (project.base / "metric.py").write_text(METRIC)
    return project.write(
        recipes={"r": {"sampler": {"command": [sys.executable, "gen.py", "--ckpt", "{checkpoint}", "--seed", "{seed}",
                                               "--count", "{count}", "--out", "{out_dir}"]},
                       "samples": 600, "metrics": [{"name": "brightness", "function": "metric:brightness", "mode": "max"}]}},
        runs=[{"match": "*", "evaluate": {"recipe": "r"}, "expect": ["state_dict", "optimizer"],
               "expect_logged": ["loss_kpt", "loss_reg"]}])


def test_with_a_configuration_all_six_things_are_looked_at(real):
    path = train(real.root / "pose")
    document = real.json("check", str(path), stub=False)
    assert document == {"version": 1, "path": str(path), "ok": True, "checks": document["checks"]}
    assert states(document) == dict.fromkeys(("complete", "loads", "weights", "keys", "losses", "pass"), "ok"), document
    assert "epoch 1" in words(document, "complete")
    assert "loss_kpt 0.5" in words(document, "losses")
    assert "2 samples" in words(document, "pass")
    assert "brightness 128" in words(document, "pass")
    assert not list(real.state.glob("**/*.db"))  # nothing was recorded
    assert sorted(p.name for p in (real.root / "pose").iterdir()) == ["20260101_000000.log.json", "epoch_1.pth"]


def test_what_is_wrong_is_named_and_the_status_is_one(real):
    train(real.root / "pose", value=NAN)
    document = real.json("check", str(real.root / "pose"), "--expect", "ema", "--expect-loss", "loss_kp", "--no-pass",
                         stub=False)
    assert document["ok"] is False
    assert states(document) == {"complete": "ok", "loads": "ok", "weights": "failed", "keys": "failed", "losses": "failed",
                                "pass": "skipped"}
    assert "state_dict.w (4)" in words(document, "weights")
    assert "lacks ema" in words(document, "keys")
    assert "loss_kp (did you mean loss_kpt?)" in words(document, "losses")
    done = real.cli("check", "runs/pose", "--no-pass", "--ascii", stub=False)
    assert done.returncode == 1
    assert done.stdout.isascii()
    lines = done.stdout.splitlines()
    assert lines[0].endswith("runs/pose/epoch_1.pth")
    assert [line[:9].split() for line in lines[1:]] == [
        ["OK", "comple"], ["OK", "loads"], ["X", "weights"], ["OK", "keys"], ["OK", "losses"], ["-", "pass"]]


def test_without_a_configuration_it_says_how_to_ask_for_the_rest(project):
    path = train(project.root / "pose", logs=False)
    done = project.cli("check", str(path), config=False, stub=False)
    assert done.returncode == 0
    assert "–" in done.stdout
    for hint in ("--expect KEY", "--expect-loss NAME", "-c CONFIG"):
        assert hint in done.stdout


def test_a_bad_configuration_that_was_not_asked_for_keeps_nobody_from_looking(project):
    path = train(project.root / "pose", logs=False)
    (project.base / "ckptwatch.yaml").write_text("watch: []\n")
    done = project.cli("check", str(path), config=False, stub=False)
    assert done.returncode == 0
    assert "check-config" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("nowhere.pth",), "no such file"), (("empty",), "neither a checkpoint nor a log"), (("a.txt",), "no known checkpoint"),
     (("runs",), "no run itself; it holds those of a, b"), (("runs/a/epoch_1.pth", "--recipe", "x"), "no recipe 'x'")],
)
def test_what_cannot_be_checked_is_a_usage_error(project, arguments, said):
    (project.base / "empty").mkdir()
    (project.base / "a.txt").write_text("hello")
    for run in ("a", "b"):
        train(project.root / run, logs=False)
    done = project.cli("check", *arguments, stub=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("→") == 1


def test_before_the_first_checkpoint_the_log_is_looked_at(project):
    train(project.root / "pose").unlink()
    document = project.json("check", str(project.root / "pose"), "--expect-loss", "loss_reg", stub=False)
    assert states(document) == {"complete": "skipped", "loads": "skipped", "weights": "skipped", "keys": "skipped",
                                "losses": "ok", "pass": "skipped"}
    assert document["ok"] is True
    assert "no checkpoint yet" in words(document, "complete")


def test_half_a_checkpoint_fails_and_the_rest_is_left(project):
    path = train(project.root / "pose")
    path.write_bytes(path.read_bytes()[:700])
    document = project.json("check", str(path), stub=False)
    assert document["ok"] is False
    assert states(document) == {"complete": "failed", "loads": "skipped", "weights": "skipped", "keys": "skipped",
                                "losses": "skipped", "pass": "skipped"}


def test_help_and_usage_import_no_torch(project):
    code = "import sys; import ckptwatch.cli.check, ckptwatch.quickcheck; assert 'torch' not in sys.modules"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


# ---- which checkpoint -----------------------------------------------------------------------------------------------


def test_of_a_run_the_newest_complete_checkpoint_is_taken(tmp_path):
    for epoch in (2, 10, 9):
        train(tmp_path / "pose", epoch=epoch)
    half = train(tmp_path / "pose", epoch=11)
    half.write_bytes(half.read_bytes()[:500])
    train(tmp_path / "pose" / "fold0", epoch=50)  # another run
    subject = newest_in(tmp_path / "pose", None)
    assert subject.saved.claim.path.name == "epoch_10.pth"
    assert subject.others == (tmp_path / "pose" / "fold0",)


def test_the_run_of_a_checkpoint_is_above_the_directory_that_groups_them(tmp_path):
    path = train(tmp_path / "pose" / "checkpoints", logs=False)
    assert run_of(claim_at(path)) == tmp_path / "pose"


# ---- one by one -----------------------------------------------------------------------------------------------------


def test_each_variant_that_is_evaluated_is_loaded(tmp_path):
    path = train(tmp_path / "a", model_ema={"w": torch.ones(5)})
    rule = RunRule(evaluate=EvaluateRule(recipe="r", variants=("state_dict", "model_ema")))
    found = check_loads(saved(path), Wishes(rule=rule))
    assert found.state is State.OK
    assert "1 tensor, 4 numbers in state_dict; 1 tensor, 5 numbers in model_ema" in found.words
    missing = check_loads(saved(path), Wishes(rule=RunRule(evaluate=EvaluateRule(recipe="r", variants=("ema2",)))))
    assert missing.state is State.FAILED
    assert "'ema2'" in missing.words and "model_ema" in missing.words


def test_nothing_in_a_checkpoint_is_run_by_loading_it(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/ran",))

    path = train(tmp_path / "a", args=Evil())
    assert check_loads(saved(path), Wishes()).state is State.OK
    assert not (tmp_path / "ran").exists()


def test_a_layout_that_only_its_own_sampler_loads_is_left(tmp_path):
    h5 = tmp_path / "model.weights.h5"
    h5py = pytest.importorskip("h5py")
    with h5py.File(h5, "w") as file:
        file["w"] = [1.0]
    assert check_loads(saved(h5), Wishes()).state is State.SKIPPED
    weights = check_weights(claim_at(h5), _no_progress)
    assert (weights.state, "HDF5" in weights.words or "Keras" in weights.words) == (State.SKIPPED, True)


def _no_progress(total):
    from contextlib import nullcontext

    return nullcontext(lambda count: None)


def test_entries_that_no_format_can_tell_are_not_claimed_to_be_missing():
    facts = Facts(format="orbax", complete=True, evidence="")
    assert check_keys(facts, ("model",)).state is State.SKIPPED


def losses(run, *expected, logged=None):
    rule = RunRule(logged=logged or Logged())
    return check_losses(Subject(saved=None, run_directory=Path(run)), Wishes(rule=rule, expect_losses=expected))


def test_a_loss_that_was_nan_is_named_with_its_place(tmp_path):
    train(tmp_path, epoch=3)
    log = tmp_path / "20260101_000000.log.json"
    log.write_text(log.read_text().replace("0.16666666666666666", "NaN"))
    found = losses(tmp_path, "loss_kpt")
    assert found.state is State.FAILED
    assert "loss_kpt (1 of 3 values, first at epoch 3)" in found.words


def test_without_expectations_the_losses_are_shown(tmp_path):
    train(tmp_path, epoch=3)
    found = losses(tmp_path)
    assert found.state is State.SKIPPED
    assert "loss_kpt 0.1667" in found.words and "--expect-loss" in found.words


def test_a_run_without_a_log_fails_only_where_losses_are_expected(tmp_path):
    assert losses(tmp_path).state is State.SKIPPED
    found = losses(tmp_path, "loss")
    assert found.state is State.FAILED
    assert "no log in" in found.words


def test_logs_under_other_names_are_read_where_the_configuration_names_them(tmp_path):
    (tmp_path / "history.txt").write_text('{"step": 1, "loss_kpt": 0.5}\n{"step": 2, "loss_kpt": 0.25}\n')
    assert losses(tmp_path, "loss_kpt", logged=Logged(files=("history.txt",))).state is State.OK


# ---- the one pass ---------------------------------------------------------------------------------------------------


def recipe(*metrics, **more):
    return Recipe(name="r", metrics=tuple(MetricSpec(name=m) for m in metrics), **more)


def test_the_pass_takes_as_few_samples_as_its_metrics_can_do_with():
    assert shortened(recipe("lpips")).samples == 2
    assert shortened(recipe("fid", "inception_score", samples=50_000, batch_size=256, workers=4)).samples == 10
    small = shortened(recipe("inception_score", samples=50_000, batch_size=256, workers=4))
    assert (small.batch_size, small.workers, small.keep_samples) == (10, 1, 0)
    assert shortened(recipe("clip_score", samples=1)).samples == 1
    composite = Composite(terms={"fid": CompositeTerm(weight=-1, low=0, high=300)})
    assert shortened(recipe("fid", composite=composite)).composite == composite


def test_a_command_gets_few_samples_and_what_is_logged_is_left_out():
    command = EvaluationCommand(argv=("eval.py",), max_samples=2, log_samples=True)
    assert shortened(recipe("ap", command=command)).command.max_samples == 2
    assert shortened(recipe("ap", command=EvaluationCommand(argv=("eval.py",)))).command.max_samples == 4
    assert shortened(recipe(logged=Logged())) is None
    found = check_pass(Facts(format="", complete=True, evidence=""), Wishes(recipe=recipe(logged=Logged())), _never)
    assert (found.state, "only reads what training logs" in found.words) == (State.SKIPPED, True)


def _never(*_arguments):
    raise AssertionError("nothing is to be run")


@pytest.mark.slow
def test_a_pass_that_fails_is_told_with_the_programs_own_words(real):
    (real.base / "gen.py").write_text("raise SystemExit('no CUDA device in this program')")
    path = train(real.root / "pose")
    document = real.json("check", str(path), stub=False)
    assert states(document)["pass"] == "failed"
    assert "no CUDA device in this program" in words(document, "pass")


def test_safetensors_are_checked_too(tmp_path):
    save_file({"w": torch.tensor([NAN, 1.0])}, tmp_path / "model.safetensors")
    one = saved(tmp_path / "model.safetensors")
    assert check_loads(one, Wishes()).state is State.OK
    assert check_weights(one.claim, _no_progress).words == "NaN or Inf in 1 of 1 tensor: w (1)"
