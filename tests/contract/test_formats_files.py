"""Formats whose checkpoints are single files or sets of files, as the real libraries and scripts write them."""

import json
import os
import pickle
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckptwatch.formats.base import claim_at, claims_below, examine, format_named, list_folder
from ckptwatch.formats.file_sets import FileSets
from ckptwatch.formats.keras import Keras, look_hdf5
from ckptwatch.formats.network_pickle import NetworkPickle
from ckptwatch.formats.parts import look
from ckptwatch.formats.torch_legacy import TorchLegacy
from ckptwatch.testing import FormatConformance

WEIGHTS = {"w": torch.arange(20.0), "b": torch.zeros(3)}


def paths_below(directory):
    return sorted(str(c.path.relative_to(directory)) for c in claims_below(directory))


def facts_at(path):
    claim = claim_at(path)
    return examine(claim, format_named(claim.format))


def members_at(path):
    return [m.name for m in claim_at(path).members]


# ---- torch.save, the older kind --------------------------------------------------------------------------------------


class TestTorchLegacy(FormatConformance):
    cuts = 500

    def make_format(self):
        return TorchLegacy()

    def write(self, directory):
        torch.save({"model": WEIGHTS, "half": {"h": torch.ones(5, dtype=torch.bfloat16)}, "step": 100, "loss": 0.5},
                   directory / "0000100.pt", _use_new_zipfile_serialization=False)
        return directory / "0000100.pt"


class TestTorchLegacyWithoutTensors(TestTorchLegacy):
    def write(self, directory):
        torch.save({"step": 100}, directory / "0000100.pt", _use_new_zipfile_serialization=False)
        return directory / "0000100.pt"


class TestTorchLegacyOfAnotherProtocol(TestTorchLegacy):
    def write(self, directory):
        torch.save({"model": WEIGHTS, "step": 100}, directory / "0000100.pt", pickle_protocol=4,
                   _use_new_zipfile_serialization=False)
        return directory / "0000100.pt"


# ---- network snapshots -----------------------------------------------------------------------------------------------


def snapshot(path, size=4):
    path.write_bytes(pickle.dumps({"ema": torch.nn.Linear(size, size), "dataset_kwargs": {"path": "x"}}))
    return path


class TestStyleGAN(FormatConformance):
    def make_format(self):
        return NetworkPickle()

    def write(self, directory):
        return snapshot(directory / "network-snapshot-002048.pkl")


class TestEDM2(FormatConformance):
    """Several averages of one step. `training_options.json` is written when training starts."""

    def make_format(self):
        return NetworkPickle()

    def write(self, directory):
        (directory / "training_options.json").write_text(json.dumps(
            {"ema_kwargs": {"class_name": "training.phema.PowerFunctionEMA"}}))
        snapshot(directory / "network-snapshot-0002048-0.100.pkl")
        return snapshot(directory / "network-snapshot-0002048-0.050.pkl")

    def order(self, directory, path):
        return ["training_options.json", "network-snapshot-0002048-0.050.pkl", "network-snapshot-0002048-0.100.pkl"]


def test_averages_of_one_step_and_its_training_state_are_one_checkpoint(tmp_path):
    for kimg in (1024, 2048):
        for ema in ("0.050", "0.100"):
            snapshot(tmp_path / f"network-snapshot-{kimg:07d}-{ema}.pkl")
    torch.save({"state": 1}, tmp_path / "training-state-0002048.pt")
    assert paths_below(tmp_path) == ["network-snapshot-0001024-0.050.pkl", "network-snapshot-0002048-0.050.pkl"]
    assert members_at(tmp_path / "training-state-0002048.pt") == [
        "network-snapshot-0002048-0.050.pkl", "network-snapshot-0002048-0.100.pkl", "training-state-0002048.pt"]
    facts = facts_at(tmp_path / "network-snapshot-0002048-0.100.pkl")
    assert facts.complete and facts.step == 2048 and facts.variants == ("0.050", "0.100")


def test_an_average_that_earlier_steps_have_is_waited_for(tmp_path):
    for name in ("1024-0.050", "1024-0.100", "2048-0.050"):
        snapshot(tmp_path / f"network-snapshot-000{name}.pkl")
    facts = facts_at(tmp_path / "network-snapshot-0002048-0.050.pkl")
    assert not facts.complete and facts.evidence == "0.100 is there for other steps, missing here"
    assert facts_at(tmp_path / "network-snapshot-0001024-0.050.pkl").complete


def test_a_training_state_does_not_change_which_weights_these_are(tmp_path):
    path = snapshot(tmp_path / "network-snapshot-002048.pkl")
    before = facts_at(path)
    torch.save({"state": 1}, tmp_path / "training-state-002048.pt")
    assert facts_at(path).fingerprint == before.fingerprint


def test_the_newest_training_state_is_needed_and_no_checkpoint(tmp_path):
    for kimg in (900, 1000):
        torch.save({"state": 1}, tmp_path / f"training-state-{kimg:07d}.pt")
    assert paths_below(tmp_path) == []
    assert [p.name for p, _ in NetworkPickle().needed(list_folder(tmp_path))] == ["training-state-0001000.pt"]


def test_the_snapshot_that_is_overwritten_each_time_is_a_checkpoint_without_step(tmp_path):
    facts = facts_at(snapshot(tmp_path / "network-snapshot-latest.pkl"))
    assert facts.complete and facts.format == "network-pickle" and facts.step is None


# ---- Keras -----------------------------------------------------------------------------------------------------------


WRITTEN = tempfile.TemporaryDirectory()


@cache
def keras_files():
    """Written by Keras: a whole model, its weights, and its weights split into several files."""
    folder = Path(WRITTEN.name)
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(2)])
    model.save(folder / "05-0.32.keras")
    model.save_weights(folder / "one.weights.h5")
    model.save_weights(folder / "many.weights.json", max_shard_size=3e-8)
    return folder


class TestKeras(FormatConformance):
    names, path = "*.keras", "05-0.32.keras"
    mutations = 100

    def make_format(self):
        return Keras()

    def write(self, directory):
        for file in keras_files().glob(self.names):
            shutil.copy2(file, directory)
        return directory / self.path


class TestKerasWeights(TestKeras):
    names, path = "one*", "one.weights.h5"


class TestKerasSplitWeights(TestKeras):
    names, path = "many*", "many.weights.json"

    def order(self, directory, path):
        """The index is there from the first file on, though Keras writes it anew after every further one."""
        first, *further = (p.name for p in sorted(directory.glob("*.h5")))
        return [first, path.name, *further]


def test_the_index_of_split_weights_is_checked_against_what_is_there(tmp_path):
    TestKerasSplitWeights().write(tmp_path)
    index = tmp_path / "many.weights.json"
    assert "does not prove that it was the last" in facts_at(index).evidence
    shutil.copy(tmp_path / "many_00000.weights.h5", tmp_path / "many_00099.weights.h5")
    assert "many_00099.weights.h5 is not in it yet" in facts_at(index).evidence
    (tmp_path / "many_00099.weights.h5").unlink()
    (tmp_path / "many_00001.weights.h5").unlink()
    facts = facts_at(index)
    assert not facts.complete and "missing many_00001.weights.h5" in facts.evidence


def test_numbered_weights_without_an_index_are_checkpoints_of_their_own(tmp_path):
    whole = keras_files() / "one.weights.h5"
    for epoch in (0, 1, 2):
        shutil.copy(whole, tmp_path / f"model_{epoch:05d}.weights.h5")
    assert paths_below(tmp_path) == [f"model_0000{n}.weights.h5" for n in range(3)]
    assert facts_at(tmp_path / "model_00002.weights.h5").complete


@pytest.mark.parametrize("libver", ["earliest", "v108", "v110", "latest"])
def test_every_version_of_the_superblock_is_judged(tmp_path, libver):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "x.weights.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file["w"] = list(range(1000))
    whole = path.read_bytes()
    assert look_hdf5(path).whole, look_hdf5(path).evidence
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert not look_hdf5(path).whole
    path.write_bytes(whole + b"\0")
    assert not look_hdf5(path).whole


def test_a_file_that_a_writer_has_open_is_not_whole(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "x.weights.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["w"] = list(range(1000))
        file.flush()
        assert not look_hdf5(path).whole
    assert look_hdf5(path).whole


# ---- sets of files ---------------------------------------------------------------------------------------------------


class TestNanochat(FormatConformance):
    """With the optimizer first, as a rank without a model to write may be. A model alone is a checkpoint of its own."""

    names = ("optim_000100_rank0.pt", "optim_000100_rank1.pt", "meta_000100.json", "model_000100.pt")

    def make_format(self):
        return FileSets()

    def write(self, directory):
        for name in self.names:
            if name.endswith(".json"):
                (directory / name).write_text(json.dumps({"step": 100, "val_bpb": 0.9}))
            elif name.endswith(".safetensors"):
                save_file(WEIGHTS, directory / name)
            else:
                torch.save({"state": WEIGHTS}, directory / name)
        return directory / self.names[-1]

    def order(self, directory, path):
        return self.names


class TestWrittenByHand(TestNanochat):
    names = ("optimizer-100.pt", "state-100.json", "model-100.safetensors")


class TestComposer(TestNanochat):
    names = ("ep3-ba1200-rank2.pt", "ep3-ba1200-rank1.pt", "ep3-ba1200-rank0.pt")


def touch_all(directory, names):
    for name in names:
        if name.endswith(".json"):
            (directory / name).write_text(json.dumps({"val_bpb": 0.9, "tokens": 5}))
        else:
            torch.save({"model": {"w": torch.zeros(1)}, "loss": 0.5, "epoch": 3}, directory / name)


def test_a_set_is_one_checkpoint_with_the_facts_of_all_its_files(tmp_path):
    touch_all(tmp_path, ["model_000100.pt", "meta_000100.json", "optim_000100_rank0.pt"])
    assert paths_below(tmp_path) == ["model_000100.pt"]
    facts = facts_at(tmp_path / "model_000100.pt")
    assert facts.complete and (facts.step, facts.epoch) == (100, 3)
    assert facts.metrics == {"val_bpb": 0.9, "loss": 0.5} and facts.variants == ("model",)


@pytest.mark.parametrize(("first", "second", "evidence"), [
    (["model_000100.pt", "meta_000100.json", "optim_000100_rank0.pt"], ["model_000200.pt"],
     "meta*.json, optim*_rank0.pt are there for other steps, missing here"),
    (["model_000100.pt", "optim_000100_rank0.pt", "optim_000100_rank1.pt"], ["model_000200.pt", "optim_000200_rank0.pt"],
     "optim*_rank1.pt is there for other steps, missing here"),
    (["ep0-ba10-rank0.pt", "ep0-ba10-rank1.pt"], ["ep0-ba20-rank0.pt"], "*-rank1.pt is there for other steps, missing here"),
    (["G_100.pth", "D_100.pth"], ["G_200.pth"], "D*.pth is there for other steps, missing here"),
    (["model000100.pt", "ema_0.9999_000100.pt", "opt000100.pt"], ["model000200.pt", "ema_0.9999_000200.pt"],
     "opt*.pt is there for other steps, missing here"),
    ([], ["model_000200.pt", "optim_000200_rank1.pt"], "rank 0 of optim…_rank is missing, 1 others are there"),
])
def test_what_the_steps_before_have_is_waited_for(tmp_path, first, second, evidence):
    touch_all(tmp_path, [*first, *second])
    facts = facts_at(tmp_path / second[0])
    assert not facts.complete and facts.format == "file-set" and facts.evidence == evidence
    if first:
        assert facts_at(tmp_path / first[0]).complete


def test_files_that_are_checkpoints_of_their_own_are_never_put_together(tmp_path):
    names = ["model_100.pt", "model_200.pt", "ckpt_300.pt", "model_best.pt", "checkpoint-7.pt", "ep1-ba10-rank0.pt",
             "epoch=1-step=100.ckpt", "epoch=1-step=100-v1.ckpt", "ema_400.pt", "model_100_ema.pt", "G_100.pth",
             "unet_100.pt"]
    touch_all(tmp_path, names)
    assert paths_below(tmp_path) == sorted(names)
    assert all(len(c.members) == 1 for c in claims_below(tmp_path))


def test_two_models_of_one_step_are_not_put_together(tmp_path):
    touch_all(tmp_path, ["model_100.pt", "checkpoint_100.pt", "state_100.json"])
    assert paths_below(tmp_path) == ["checkpoint_100.pt", "model_100.pt"]


def test_a_run_that_no_longer_keeps_old_optimizers_has_checkpoints(tmp_path):
    touch_all(tmp_path, ["model-100.pt", "model-200.pt", "model-300.pt", "optimizer-300.pt"])
    assert [facts_at(tmp_path / f"model-{n}.pt").complete for n in (100, 200, 300)] == [True] * 3


def test_after_two_steps_a_run_resumed_on_fewer_machines_is_complete_again(tmp_path):
    touch_all(tmp_path, ["model_000100.pt", "optim_000100_rank0.pt", "optim_000100_rank1.pt"])
    for step in (200, 300, 400):
        touch_all(tmp_path, [f"model_{step:06d}.pt", f"optim_{step:06d}_rank0.pt"])
    assert [facts_at(tmp_path / f"model_{s:06d}.pt").complete for s in (100, 200, 300, 400)] == [True, False, False, True]


# ---- parts of larger checkpoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random_states_0.pkl", "pytorch_model.bin", "x.pth.tar", "x.pt", "x.ckpt"])
@pytest.mark.parametrize("new", [True, False])
def test_torch_files_are_known_by_content_whatever_they_are_called(tmp_path, name, new):
    torch.save({"w": torch.zeros(3)}, tmp_path / name, _use_new_zipfile_serialization=new)
    assert look(tmp_path / name).whole, look(tmp_path / name).evidence
    data = (tmp_path / name).read_bytes()
    for length in {*range(0, len(data), 13), *range(30), len(data) - 1}:
        (tmp_path / name).write_bytes(data[:length])
        assert not look(tmp_path / name).whole, length
