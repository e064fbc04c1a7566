"""A directory that holds a run, data or anything else of value is never taken for one checkpoint, whatever its name: a
removal would take all of it along."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from ckptwatch.formats.base import claim_at, claims_below, examine, format_named
from tests.support import save

CONFIG = b"{}"


def plant(root, *names):
    for name in names:
        if name.endswith((".pt", ".pth", ".ckpt")):
            save(root / name, {"step": 1})
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(CONFIG if name.endswith(".json") else b"x")


def taken(root):
    """What would move if each complete checkpoint below were removed: the names of its entries."""
    found = set()
    for claim in claims_below(root):
        if examine(claim, format_named(claim.format)).complete:
            found |= {str(m.relative_to(root)) for m in claim.members}
    return found


@pytest.mark.parametrize("names", [
    ("step_1/model_100.pt", "step_1/model_200.pt", "step_1/log.txt"),       # the stages of a curriculum
    ("step_1/model_1.pt", "step_1/model_2.pt"),
    ("step_5/pretrained.pt", "step_5/exp/epoch=1.ckpt", "step_5/exp/epoch=2.ckpt"),
    ("epoch_5/model.pt", "epoch_5/src/train.py"),
    ("epoch_5/model.pt", "epoch_5/data/train.csv"),
    ("step_1_pretrain/model.pt",),
    ("000001/latents.pt", "000002/latents.pt"),                             # a data set
    ("multirun/0/epoch_1.pth", "multirun/0/epoch_2.pth", "multirun/1/epoch_1.pth"),
    ("seed/100/model.pt", "seed/200/model.pt"),
    ("step_1/model.pt", "step_1/train.log", "step_1/checkpoints/0001000.pt", "step_1/checkpoints/0002000.pt"),
    ("gan/00001/model.pt", "gan/00001/train.log", "gan/00001/src/main.py"),
    ("data/latents/00000/0.pt", "data/latents/00000/1.pt"),
    ("multirun/1/default/0000100.pt", "multirun/1/default/0000200.pt", "multirun/1/code/main.py"),
    ("sweep/ba16/model.pt", "sweep/ba32/model.pt", "sweep/ep100/model.pt"),
])
def test_only_single_files_are_taken_from_it(tmp_path, names):
    plant(tmp_path, *names)
    assert taken(tmp_path) <= {n for n in names if n.endswith((".pt", ".pth", ".ckpt"))}


@pytest.mark.parametrize("job", ["0", "12", "20240101", "epochs=10", "lr=0.1,seed=3", "ba16", "ep100", "exp1"])
def test_of_a_job_that_saved_its_model_only_the_model_is_taken(tmp_path, job):
    """Sweeps number their jobs; logs, code and reports lie beside the model."""
    plant(tmp_path, f"{job}/config.json", f"{job}/train.log", f"{job}/.hydra/config.yaml", f"{job}/wandb/run.json")
    save_file({"w": torch.zeros(3)}, tmp_path / job / "model.safetensors")
    assert taken(tmp_path) == {f"{job}/config.json", f"{job}/model.safetensors"}


def test_a_run_begun_inside_a_checkpoint_keeps_it(tmp_path):
    from tests.formats_page import suites

    path = suites()["hf-trainer"]().write(tmp_path / "whole")
    shutil.copytree(path, path / "dpo" / "checkpoint-10")
    facts = examine(claim_at(path), format_named("hf-trainer"))
    assert not facts.complete and "further checkpoints" in facts.evidence


def test_steps_that_save_pretrained_named_itself_stay_apart(tmp_path):
    plant(tmp_path, "exp/config.json")
    for step in (100, 200):
        save_file({"w": torch.zeros(3)}, tmp_path / f"exp/model.step_{step}.safetensors")
    assert taken(tmp_path) == {"exp/model.step_100.safetensors", "exp/model.step_200.safetensors"}


@pytest.mark.parametrize("name", [
    "checkpoint-100.tmp", "step_100.tmp", "checkpoint-100.incomplete", "tmp_step_100", "_tmp_step_100", "step_100-tmp",
    "checkpoint-100.deleting", "checkpoint-100.old", "step_100.bak",
])
@pytest.mark.parametrize("family", ["hf-model", "dcp", "diffusers-pipeline", "accelerate", "step-directory"])
def test_under_a_temporary_name_nothing_is_taken(tmp_path, name, family):
    from tests.formats_page import suites

    path = suites()[family]().write(tmp_path / "whole")
    shutil.copytree(path if path.is_dir() else path.parent, tmp_path / "run" / name)
    assert taken(tmp_path / "run") == set()


def test_further_checkpoints_deep_inside_are_found_when_it_is_examined(tmp_path):
    """Names alone show only what lies directly in a directory."""
    plant(tmp_path, "checkpoint-100/trainer_state.json", "checkpoint-100/config.json", "checkpoint-100/optimizer.pt")
    from tests.formats_page import suites

    path = suites()["hf-trainer"]().write(tmp_path / "whole")
    claim = claim_at(path)
    assert examine(claim, format_named(claim.format)).complete
    plant(path, "probe/sub/epoch_7.pth", "probe/sub/epoch_8.pth")
    facts = examine(claim_at(path), format_named(claim.format))
    assert not facts.complete and "further checkpoints, such as probe/sub" in facts.evidence


@pytest.mark.parametrize("names", [
    ("step_7/model_0.pt", "step_7/model_1.pt", "step_7/model_2.pt"),        # ranks
    ("step_7/model.pt", "step_7/model_1.pt"),                               # two models
    ("step_7/rank_0/state.pt", "step_7/rank_1/state.pt", "step_7/model/weights.pt"),
    ("epoch_3/model.pt", "epoch_3/optimizer.pt", "epoch_3/notes.txt"),
    ("step_7/model_7.pt", "step_7/optimizer_7.pt"),
])
def test_a_directory_of_one_step_is_one_checkpoint(tmp_path, names):
    plant(tmp_path, *names)
    assert taken(tmp_path) == {names[0].split("/")[0]}
