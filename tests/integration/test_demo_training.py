"""The demo's trainer behaves as real trainers do: it saves, diverges, recovers, is killed and goes on."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckptwatch.demo import train
from ckptwatch.demo.recipe import write_demo_inputs
from ckptwatch.demo.sampler import create
from ckptwatch.demo.train import Plan, rate

KEYS = {"model", "model_ema", "optimizer", "step", "epoch", "loss"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def finite(weights):
    return all(bool(value.isfinite().all()) for value in weights.values())


def saved(out):
    return sorted((out / "checkpoints").iterdir())


def logged(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def quiet(_line):
    pass


def test_a_short_training_saves_what_it_promises(tmp_path):
    train.train(Plan(out=tmp_path, steps=90, every=40), quiet)
    assert [path.name for path in saved(tmp_path)] == ["0000040.pt", "0000080.pt", "0000090.pt"]
    for path in saved(tmp_path):
        state = load(path)
        assert state.keys() == KEYS
        assert f"{state['step']:07d}" == path.stem
        assert finite(state["model"])
        assert finite(state["model_ema"])
        assert 1_000_000 < path.stat().st_size < 4_000_000
    assert load(saved(tmp_path)[-1])["epoch"] == 2
    entries = logged(tmp_path)
    assert [entry["step"] for entry in entries] == [20, 40, 60, 80, 90]
    assert entries[1]["loss"] < entries[0]["loss"]
    for variant in ("model", "model_ema"):
        create().load(saved(tmp_path)[-1], variant)


def test_exactly_one_checkpoint_is_nan_and_training_goes_on(tmp_path):
    train.train(Plan(out=tmp_path, steps=50, every=10, nan_at=30), quiet)
    states = [load(path) for path in saved(tmp_path)]
    for weights in ("model", "model_ema"):
        assert [state["step"] for state in states if not finite(state[weights])] == [30]
    assert [state["step"] for state in states if math.isnan(state["loss"])] == [30]
    assert states[-1]["step"] == 50
    assert [entry["step"] for entry in logged(tmp_path) if math.isnan(entry["loss"])] == [30]


class Interrupted(Exception):
    pass


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    plan = {"steps": 60, "every": 20, "seed": 3}
    train.train(Plan(out=tmp_path / "whole", **plan), quiet)

    def interrupt(line):
        if line.startswith("saved") and line.endswith("0000040.pt"):
            raise Interrupted

    with pytest.raises(Interrupted):
        train.train(Plan(out=tmp_path / "cut", **plan), interrupt)
    train.train(Plan(out=tmp_path / "cut", resume=True, **plan), quiet)
    whole, cut = (load(tmp_path / name / "checkpoints/0000060.pt") for name in ("whole", "cut"))
    for weights in ("model", "model_ema"):
        assert all(torch.equal(value, cut[weights][name]) for name, value in whole[weights].items())


def test_resuming_ignores_truncated_and_nan_checkpoints(tmp_path):
    train.train(Plan(out=tmp_path, steps=40, every=10, nan_at=30), quiet)
    last = tmp_path / "checkpoints/0000040.pt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    (tmp_path / "checkpoints/0000050.pt").write_bytes(b"")
    lines = []
    train.train(Plan(out=tmp_path, steps=60, every=20, resume=True), lines.append)
    assert "resumed from step 20" in lines
    assert load(last)["step"] == 40
    assert finite(load(tmp_path / "checkpoints/0000060.pt")["model"])


def test_a_killed_run_is_resumed_with_increasing_steps(tmp_path):
    command = [
        sys.executable, "-m", "ckptwatch.demo.train", "--out", str(tmp_path), "--steps", "120", "--every", "20", "--resume",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as job:
        for line in job.stdout:
            if line.startswith("saved") and "0000040" in line:
                job.send_signal(signal.SIGKILL)
                break
    assert job.returncode == -signal.SIGKILL
    assert not (tmp_path / "checkpoints/0000120.pt").exists()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    resumed = next(line for line in done.stdout.splitlines() if line.startswith("resumed from step "))
    first = int(resumed.rsplit(" ", 1)[1])
    assert first >= 40
    steps = [int(Path(line.split()[1]).stem) for line in done.stdout.splitlines() if line.startswith("saved ")]
    assert steps == list(range(first + 20, 121, 20))
    assert [load(path)["step"] for path in saved(tmp_path)] == [20, 40, 60, 80, 100, 120]


def test_existing_checkpoints_are_not_overwritten_by_a_new_run(tmp_path, capsys):
    train.train(Plan(out=tmp_path, steps=1, every=1), quiet)
    with pytest.raises(SystemExit) as stopped:
        train.parse(["--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "--resume" in capsys.readouterr().err
    assert train.parse(["--out", str(tmp_path), "--resume"])[0].resume


@pytest.mark.parametrize("arguments", [["--nan-at", "150"], ["--nan-at", "1800"], ["--steps", "0"], ["--every", "0"]])
def test_arguments_that_cannot_be_followed_are_refused(tmp_path, arguments):
    with pytest.raises(SystemExit) as stopped:
        train.parse(["--out", str(tmp_path), *arguments])
    assert stopped.value.code == 2


def test_the_schedule_falls_and_then_climbs_above_where_it_was():
    rates = [rate(step, 1600) for step in range(1, 1601)]
    turn = rates.index(min(rates[100:]))
    assert rates[100:turn] == sorted(rates[100:turn], reverse=True)
    assert rates[turn:] == sorted(rates[turn:])
    assert 0.4 * 1600 < turn < 0.6 * 1600
    assert rates[-1] > 10 * max(rates[:turn])


def test_training_imports_nothing_of_ckptwatch_but_the_demo():
    code = (
        "import sys; import ckptwatch.demo.train\n"
        "print([n for n in sys.modules if n.startswith('ckptwatch.') and not n.startswith('ckptwatch.demo')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_inputs_of_the_recipe_lie_where_they_are_said_to(tmp_path, monkeypatch):
    from ckptwatch.demo import clip, features, networks, perceptual
    from ckptwatch.model import Networks

    for module in (features, clip, perceptual):
        monkeypatch.setattr(module, "_STEPS", 2)
    monkeypatch.setattr(networks, "PICTURES", 200)
    inputs = write_demo_inputs(tmp_path, 12)
    assert len(list(inputs.reference.iterdir())) == len(inputs.prompts.read_text().splitlines()) == 12
    settings = inputs.network_settings()
    Networks(**settings)
    for path in (settings["features_weights"], settings["lpips_weights"], settings["clip"].removeprefix("local-dir:")):
        assert Path(path).is_absolute()
        assert Path(path).exists()
