"""The fallback for directories: a step by its name, in a layout that nobody else knows."""

import json

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as torch_dcp
from safetensors.torch import save_file

from ckptwatch.formats.base import claim_at, claims_below, examine, format_named, list_folder
from ckptwatch.formats.step_directory import StepDirectory
from ckptwatch.formats.step_names import is_step, unfinished
from ckptwatch.testing import FormatConformance

W = {"w": torch.arange(6.0), "b": torch.ones(2)}


def facts_of(path):
    claim = claim_at(path)
    assert claim is not None, f"nothing claims {path.name}"
    assert claim.path == path
    return examine(claim, format_named(claim.format))


def claimed(directory):
    return {str(c.path.relative_to(directory)): c.format for c in claims_below(directory)}


def step(directory, **files):
    """A directory with these files: bytes, text, or a state dict for torch.save or safetensors, by the suffix."""
    for name, content in (files or {"model.pt": W}).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content)
        elif name.endswith(".safetensors"):
            save_file(content, path)
        else:
            torch.save(content, path)
    return directory


class TestStepDirectory(FormatConformance):
    cuts = 12
    mutations = 100

    def make_format(self):
        return StepDirectory()

    def write(self, directory):
        return step(directory / "step_100", **{"config.yaml": "lr: 1", "model.pt": W})

    def order(self, directory, path):
        return ["step_100/config.yaml", "step_100/model.pt"]


class TestStepDirectoryWithParts(FormatConformance):
    """Shards of safetensors in a part; the index is written last."""

    cuts = 8
    mutations = 60

    def make_format(self):
        return StepDirectory()

    def write(self, directory):
        top = directory / "global_step_20"
        step(top, **{"actor/model-00001-of-00002.safetensors": {"w": W["w"]},
                     "actor/model-00002-of-00002.safetensors": {"b": W["b"]}})
        step(top, **{"actor/model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": {
            "w": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})})
        return top


class TestStepDirectoryWithAMarker(FormatConformance):
    """As prime-rl writes: the other steps tell that a marker is to come."""

    cuts = 8
    mutations = 60

    def make_format(self):
        return StepDirectory()

    def write(self, directory):
        (directory / "step_10").mkdir()
        (directory / "step_10" / "STABLE").touch()
        return step(directory / "step_20", **{"weights.safetensors": W, "STABLE": ""})

    def order(self, directory, path):
        return ["step_10/STABLE", "step_20/weights.safetensors", "step_20/STABLE"]


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "checkpoint-100", "checkpoint_5", "ckpt-7", "step-10", "step_10", "step10", "global_step_5", "global_step5", "iter_100",
    "epoch_3", "epoch-3", "epoch5", "ep3-ba1200", "epoch_0_train_step_10", "epoch_0_train_step_10_val_loss=0.3",
    "CKPT+2024-01-01+12-00-00+00", "0002000.pt", "my-model_step_100", "llama--loss=1.2-epoch=0-step=99",
])
def test_names_of_steps(name, tmp_path):
    assert is_step(name)
    step(tmp_path / name)
    assert list(claimed(tmp_path)) == [name]


@pytest.mark.parametrize("name", [
    "100", "20240101", "lr0.1_epochs_50", "bs64-steps1000", "resnet_epoch_50", "epoch=1-val", "checkpoint-best",
    "step_1000_samples", "best_epoch_3", "last_step_5", "run-7", "model_100", "seed_1", "v2", "step_", "x" * 300,
])
def test_names_that_are_no_steps(name):
    assert not is_step(name)


@pytest.mark.parametrize("name", [
    "tmp-checkpoint-100", "step100-tmp", "step_100.tmp", "step_100_tmp", "step_100.incomplete", "checkpoint_tmp",
    "epoch_3.tmp-ab12", "temp_step_7",
])
def test_nothing_below_a_temporary_name_passes_for_a_checkpoint(name, tmp_path):
    step(tmp_path / name, **{"model.pt": W, "part/model.safetensors": W})
    assert unfinished(name)
    claims = list(claims_below(tmp_path))
    assert [c.path.name for c in claims] == [name]
    facts = examine(claims[0], format_named(claims[0].format))
    assert not facts.complete and facts.evidence


@pytest.mark.parametrize("name", ["tmp_experiment", "experiment-tmp", "template", "tmp"])
def test_other_temporary_directories_are_looked_into(name, tmp_path):
    step(tmp_path / name, **{"0100.pt": W})
    assert claimed(tmp_path) == {f"{name}/0100.pt": "torch-zip"}


# ---- what is claimed ------------------------------------------------------------------------------------------------


def test_pictures_of_a_step_are_no_checkpoint(tmp_path):
    step(tmp_path / "step_1000", **{"0001.png": b"x", "0002.png": b"x"})
    step(tmp_path / "samples" / "step_1000", **{"samples.npz": b"x", "grid.pt": W})
    step(tmp_path / "epoch_3", **{"0001.jpg": b"x", "features.npz": b"x"})
    assert "step_1000" not in claimed(tmp_path) and "samples/step_1000" not in claimed(tmp_path)
    assert "epoch_3" not in claimed(tmp_path)


@pytest.mark.parametrize("files", [
    {"model_0004999.pth": W, "model_0009999.pth": W}, {"best.pt": W}, {"last.ckpt": W, "x.pt": W},
    {"epoch=1-step=5.ckpt": W}, {"step_10/model.pt": W, "extra.pt": W},
])
def test_a_run_whose_name_counts_epochs_is_not_swallowed(tmp_path, files):
    step(tmp_path / "epoch_50", **files)
    assert "epoch_50" not in claimed(tmp_path)


def test_numbered_parts_and_files_of_its_own_step_belong_to_it(tmp_path):
    step(tmp_path / "step_100", **{"model_0.pt": W, "model_1.pt": W, "checkpoint_100.pt": W})
    assert claimed(tmp_path) == {"step_100": "step-directory"}


def test_the_root_itself_is_never_a_checkpoint(tmp_path):
    root = step(tmp_path / "epoch_3")
    assert [c.path.name for c in claims_below(root)] == ["model.pt"]


# ---- completeness ---------------------------------------------------------------------------------------------------


def test_evidence_says_that_nothing_marks_the_end(tmp_path):
    facts = facts_of(step(tmp_path / "run" / "step_100"))
    assert facts.complete and facts.step == 100 and "no marker known to us" in facts.evidence


def test_a_marker_that_a_sibling_has_is_required(tmp_path):
    for marker in ("STABLE", ".complete", "_SUCCESS", "COMPLETE", "DONE"):
        run = tmp_path / marker
        step(run / "step_1", **{"model.pt": W, marker: ""})
        young = step(run / "step_2")
        assert facts_of(run / "step_1").complete
        assert facts_of(young).evidence.endswith(f"but {marker}, which step_1 has, is missing")
        (young / marker).touch()
        assert facts_of(young).complete


def test_a_file_that_is_being_written_makes_it_incomplete(tmp_path):
    for name in ("model.pt.tmp", ".tmpAb12Cd", "weights.bin.incomplete", "x.part"):
        path = step(tmp_path / name / "step_1", **{"model.pt": W, name: b"x"})
        facts = facts_of(path)
        assert not facts.complete and name in facts.evidence


def test_shards_without_the_last_of_them_are_incomplete(tmp_path):
    path = step(tmp_path / "step_1", **{f"consolidated-0000{n}-of-00003.safetensors": W for n in (1, 3)})
    assert "2 of 3 files" in facts_of(path).evidence


def test_shards_of_dcp_in_a_part_are_judged(tmp_path):
    torch_dcp.save({"model": W}, checkpoint_id=tmp_path / "epoch_1" / "model", no_dist=True)
    assert facts_of(tmp_path / "epoch_1").complete
    (tmp_path / "epoch_1" / "model" / ".metadata").unlink()
    assert facts_of(tmp_path / "epoch_1").evidence == "model: 1 shard, .metadata, which is written last, is missing"


def test_arrays_in_numpys_archive_are_judged(tmp_path):
    path = tmp_path / "step_1"
    path.mkdir()
    np.savez(path / "params.npz", w=np.arange(9.0))
    assert facts_of(path).complete
    data = (path / "params.npz").read_bytes()
    (path / "params.npz").write_bytes(data[:-1])
    assert not facts_of(path).complete


def test_levanter_commits_with_metadata_json(tmp_path):
    path = step(tmp_path / "step-30", **{"model/w/zarr.json": "{}", "model/w/c/0": b"x", "optimizer/m/zarr.json": "{}"})
    assert facts_of(path).evidence.endswith("metadata.json, which is written last, is missing")
    (path / "metadata.json").write_text('{"step": 30, "is_tempo')
    assert not facts_of(path).complete
    (path / "metadata.json").write_text('{"step": 30, "is_temporary": false}')
    assert facts_of(path).complete


def test_numbers_of_speechbrain_are_read(tmp_path):
    path = step(tmp_path / "CKPT+2024-05-01+12-00-00+00", **{
        "CKPT.yaml": "# yamllint disable\nWER: 12.5\nepoch: 4\nunixtime: 1714564800.5\nend-of-epoch: true\n",
        "model.ckpt": W})
    facts = facts_of(path)
    assert (facts.complete, facts.epoch, dict(facts.metrics)) == (True, 4, {"WER": 12.5})


# ---- what a trainer needs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pointer", "text"), [
    ("LATEST", "step_20"), ("LOWEST_VAL", "./run/step_20"), ("latest_checkpointed_iteration.txt", "20\n"),
    ("latest", "step_20\n")])
def test_what_a_pointer_names_is_needed(tmp_path, pointer, text):
    for number in (10, 20):
        step(tmp_path / f"step_{number}")
    (tmp_path / pointer).write_text(text)
    assert [p.name for p, _ in StepDirectory().needed(list_folder(tmp_path))] == ["step_20"]
