"""Formats of many files and ranks: torch.distributed.checkpoint, Lightning directories, DeepSpeed, Megatron, Orbax.

DCP and Orbax write for themselves; DeepSpeed, Megatron, OLMo-core and Lightning's strategies, which want GPUs, are scripted
in the order in which they write.
"""

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from collections import OrderedDict
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as torch_dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from ckptwatch.formats import dcp_metadata
from ckptwatch.formats.base import claim_at, claims_below, examine, format_named, formats, list_folder
from ckptwatch.formats.dcp import DistributedCheckpoint
from ckptwatch.formats.dcp_metadata import read_index
from ckptwatch.formats.deepspeed import DeepSpeed
from ckptwatch.formats.lightning_directory import LightningDirectory
from ckptwatch.formats.megatron import Megatron
from ckptwatch.formats.orbax import Orbax
from ckptwatch.testing import FormatConformance

W = {"w": torch.arange(6.0), "b": torch.ones(2)}


def facts_of(path):
    claim = claim_at(path)
    assert claim is not None, f"nothing claims {path.name}"
    assert claim.path == path
    return examine(claim, format_named(claim.format))


def save_dcp(directory, state=None, threads=2):
    """Two shards, as threads or ranks write them."""
    state = state or {"model": W, "optim": {"state": {"w": torch.zeros(6)}}, "train_state": {"step": 7}}
    writer = torch_dcp.FileSystemWriter(directory, thread_count=threads)
    torch_dcp.save(state, storage_writer=writer, no_dist=True)
    return directory


def names(directory, *last):
    """All files below, those named last at the end."""
    found = sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())
    return [n for n in found if n not in last] + list(last)


def deepspeed_tag(directory, *, step, dp=2, mp=1, zero3=False, **client):
    """The files of one tag, ranks in the order in which they are named. No `latest`."""
    directory.mkdir(parents=True)
    state = {"module": OrderedDict(W), "optimizer": None, "global_steps": step, "dp_world_size": dp, "mp_world_size": mp,
             "ds_version": "0.18.0", **client}
    for m in range(mp):
        for d in range(dp if zero3 else 1):
            rank = f"zero_pp_rank_{d}_" if zero3 else ""
            torch.save(state, directory / f"{rank}mp_rank_{m:02d}_model_states.pt")
        for d in range(dp):
            torch.save({"optimizer_state_dict": {"fp32": torch.zeros(3)}, "ds_version": "0.18.0"},
                       directory / f"bf16_zero_pp_rank_{d}_mp_rank_{m:02d}_optim_states.pt")
    return directory


# ---- the conformance suite ------------------------------------------------------------------------------------------


class Quick(FormatConformance):
    cuts = 8
    mutations = 60


class TestDcp(Quick):
    def make_format(self):
        return DistributedCheckpoint()

    def write(self, directory):
        return save_dcp(directory / "step-100")

    def order(self, directory, path):
        return names(directory, "step-100/.metadata")


class TestOlmoCore(Quick):
    def make_format(self):
        return DistributedCheckpoint()

    def write(self, directory):
        top = directory / "step100"
        (top / "train").mkdir(parents=True)
        for rank in range(2):
            torch.save({"global_step": 100}, top / "train" / f"rank{rank}.pt")
        save_dcp(top / "model_and_optim")
        (top / ".metadata.json").write_text('{"version": "2.0"}')
        return top

    def order(self, directory, path):
        return names(directory, "step100/model_and_optim/.metadata", "step100/.metadata.json")


class TestLightningSharded(Quick):
    def make_format(self):
        return LightningDirectory()

    def write(self, directory):
        top = save_dcp(directory / "epoch=2-step=500.ckpt", {"model": W, "optimizer_0": {"w": torch.zeros(3)}})
        torch.save({"epoch": 2, "global_step": 500, "pytorch-lightning_version": "2.6.0", "loops": {}, "callbacks": {}},
                   top / "meta.pt")
        return top

    def order(self, directory, path):
        return names(directory, f"{path.name}/.metadata", f"{path.name}/meta.pt")


class TestLightningDeepSpeed(Quick):
    def make_format(self):
        return LightningDirectory()

    def write(self, directory):
        top = directory / "epoch=0-step=20.ckpt"
        deepspeed_tag(top / "checkpoint", step=20, epoch=0, global_step=20)
        (top / "zero_to_fp32.py").write_text("# a script")
        (top / "latest").write_text("checkpoint")
        return top

    def order(self, directory, path):
        return names(directory, f"{path.name}/zero_to_fp32.py", f"{path.name}/latest")


class TestDeepSpeed(Quick):
    def make_format(self):
        return DeepSpeed()

    def write(self, directory):
        top = deepspeed_tag(directory / "global_step1000", step=1000, dp=2, mp=2)
        (directory / "zero_to_fp32.py").write_text("# a script")
        (directory / "latest").write_text("global_step1000")
        return top

    def order(self, directory, path):
        return names(directory, "zero_to_fp32.py", "latest")


class TestDeepSpeedWithTagsOfItsOwn(Quick):
    """As HunyuanDiT saves: the tag looks like a file's name."""

    def make_format(self):
        return DeepSpeed()

    def write(self, directory):
        top = deepspeed_tag(directory / "0002000.pt", step=2000, dp=1, zero3=True, ema=OrderedDict(W))
        (directory / "latest").write_text("0002000.pt")
        return top

    def order(self, directory, path):
        return names(directory, "latest")


class TestMegatronTorchDist(Quick):
    def make_format(self):
        return Megatron()

    def write(self, directory):
        top = directory / "iter_0000100"
        top.mkdir()
        torch.save({"iteration": 100, "checkpoint_version": 3.0}, top / "common.pt")
        save_dcp(top, {"model.w": torch.arange(6.0), "optimizer.state.w": torch.zeros(6)})
        (top / "metadata.json").write_text('{"sharded_backend": "torch_dist", "common_backend": "torch"}')
        return top

    def order(self, directory, path):
        top = path.name
        return [f"{top}/common.pt", *(n for n in names(directory, f"{top}/.metadata", f"{top}/metadata.json")
                                      if n != f"{top}/common.pt")]


class TestMegatronOlderLayout(Quick):
    def make_format(self):
        return Megatron()

    def write(self, directory):
        for tensor in range(2):
            for pipe in range(2):
                rank = directory / "iter_0001000" / f"mp_rank_{tensor:02d}_{pipe:03d}"
                rank.mkdir(parents=True)
                torch.save({"iteration": 1000, "model": W, "checkpoint_version": 3.0}, rank / "model_optim_rng.pt")
        (directory / "latest_checkpointed_iteration.txt").write_text("1000")
        return directory / "iter_0001000"

    def order(self, directory, path):
        return names(directory, "latest_checkpointed_iteration.txt")


@cache
def written_by_orbax():
    """Two steps by the real CheckpointManager, with metrics. The directory goes when the process ends."""
    np, ocp = pytest.importorskip("numpy"), pytest.importorskip("orbax.checkpoint")
    kept = tempfile.TemporaryDirectory(prefix="orbax-")
    top = Path(kept.name) / "run"
    options = ocp.CheckpointManagerOptions(max_to_keep=2, best_fn=lambda m: m["loss"], best_mode="min",
                                           step_prefix="ckpt", step_format_fixed_length=6)
    with ocp.CheckpointManager(top, options=options) as manager:
        for step in (100, 200):
            state = {"params": {"w": np.arange(3.0)}, "ema_params": {"w": np.ones(3)}, "opt_state": {"m": np.zeros(3)},
                     "step": step}
            manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), metrics={"loss": 1.0 / step})
        manager.wait_until_finished()
    return kept, top


@pytest.fixture
def orbax_run():
    return written_by_orbax()[1]


class TestOrbax(Quick):
    def make_format(self):
        return Orbax()

    def write(self, directory):
        shutil.copytree(written_by_orbax()[1] / "ckpt_000100", directory / "ckpt_000100")
        return directory / "ckpt_000100"

    def order(self, directory, path):
        """Orbax shows it under the final name when it is whole; a copy may arrive in any order. The file of the commit is a
        line of text whose end proves nothing, so that it cannot be the last one here."""
        top = path.name
        return names(directory, f"{top}/commit_success.txt", f"{top}/_CHECKPOINT_METADATA")


# ---- torch.distributed.checkpoint -----------------------------------------------------------------------------------


def test_facts_of_a_torchtitan_step(tmp_path):
    facts = facts_of(save_dcp(tmp_path / "run" / "checkpoint" / "step-100"))
    assert (facts.format, facts.complete, facts.step, facts.variants) == ("dcp", True, 100, ("model",))
    assert "2 shards" in facts.evidence


def test_a_shard_of_another_save_is_noticed_by_its_length(tmp_path):
    """The older .metadata outlives the first shards of a save in the same place."""
    path = save_dcp(tmp_path / "last")
    other = save_dcp(tmp_path / "other", {"model": {"w": torch.zeros(4000)}, "optim": {"w": torch.zeros(4000)}})
    for name in ("__0_0.distcp", "__0_1.distcp"):
        shutil.copy(other / name, path / name)
        facts = facts_of(path)
        assert not facts.complete and "describes" in facts.evidence


def test_a_preallocated_shard_is_not_whole(tmp_path):
    path = save_dcp(tmp_path / "step-1")
    shard = path / "__0_0.distcp"
    data = shard.read_bytes()
    last = read_index(path / ".metadata").files[shard.name][-1]
    for written in (0, 100, last.offset, last.offset + 100, len(data) - 22):
        shard.write_bytes(data[:written] + bytes(len(data) - written))
        facts = facts_of(path)
        assert not facts.complete and ("not written yet" in facts.evidence or "has no end" in facts.evidence), written


def test_a_missing_shard_is_named(tmp_path):
    path = save_dcp(tmp_path / "step-1")
    (path / "__0_1.distcp").unlink()
    assert facts_of(path).evidence == ".metadata lists 2 shards, 1 present; missing __0_1.distcp"


def test_metadata_that_is_left_of_a_removed_step_is_no_checkpoint(tmp_path):
    path = save_dcp(tmp_path / "step-1")
    for shard in path.glob("*.distcp"):
        shard.unlink()
    assert not facts_of(path).complete


def test_a_save_that_has_not_renamed_its_metadata_is_incomplete(tmp_path):
    path = save_dcp(tmp_path / "step-1")
    shutil.copy(path / ".metadata", path / ".metadata.tmp")
    assert ".metadata.tmp" in facts_of(path).evidence


def test_a_temporary_directory_is_never_a_checkpoint(tmp_path):
    TestOlmoCore().write(tmp_path)
    (tmp_path / "step100").rename(tmp_path / "step100-tmp")
    assert [examine(c, format_named(c.format)).complete for c in claims_below(tmp_path)] == [False]


def test_what_fsdp_saves_beside_the_model_is_no_checkpoint_of_its_own(tmp_path):
    save_dcp(tmp_path / "a" / "optimizer_0")
    save_dcp(tmp_path / "a" / "optimizer")
    assert list(claims_below(tmp_path)) == []


def test_a_run_with_further_steps_is_not_swallowed(tmp_path):
    save_dcp(tmp_path / "run")
    save_dcp(tmp_path / "run" / "step-100")
    assert [c.path.name for c in claims_below(tmp_path)] == ["step-100"]


def test_another_programs_metadata_does_not_make_a_checkpoint(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".metadata").write_bytes(b"something")
    torch.save(W, tmp_path / "run" / "0100.pt")
    assert [c.path.name for c in claims_below(tmp_path)] == ["0100.pt"]


def metadata_with(path, **entry):
    path.mkdir()
    (path / "__0_0.distcp").write_bytes(b"x" * 10)
    info = _StorageInfo(**{"relative_path": "__0_0.distcp", "offset": 0, "length": 10, **entry})
    (path / ".metadata").write_bytes(pickle.dumps(Metadata(state_dict_metadata={}, storage_data={MetadataIndex("w"): info})))
    return path


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "", "x\0y", ".."])
def test_metadata_that_refers_to_a_file_outside_is_refused(tmp_path, path):
    (tmp_path / "secret").write_bytes(b"x" * 10)
    assert facts_of(metadata_with(tmp_path / "step-0")).complete
    facts = facts_of(metadata_with(tmp_path / "step-1", relative_path=path))
    assert not facts.complete and "outside the checkpoint" in facts.evidence


@pytest.mark.parametrize("entry", [{"offset": -1}, {"length": "10"}, {"length": 2**70}, {"offset": None}, {"length": True}])
def test_metadata_with_impossible_numbers_is_refused(tmp_path, entry):
    assert not facts_of(metadata_with(tmp_path / "step-1", **entry)).complete


def test_metadata_runs_nothing(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = save_dcp(tmp_path / "step-1")
    (path / ".metadata").write_bytes(pickle.dumps({"storage_data": Bomb()}))
    assert not facts_of(path).complete
    assert not (tmp_path / "exploded").exists()


def test_a_link_in_place_of_a_shard_is_not_followed(tmp_path):
    path = save_dcp(tmp_path / "step-1")
    (path / "__0_0.distcp").rename(tmp_path / "elsewhere")
    (path / "__0_0.distcp").symlink_to(tmp_path / "elsewhere")
    assert "missing __0_0.distcp" in facts_of(path).evidence


def test_a_pipe_in_place_of_the_metadata_does_not_hold_us_up(tmp_path):
    path = save_dcp(tmp_path / "step-1")
    (path / ".metadata").unlink()
    os.mkfifo(path / ".metadata")
    assert not facts_of(path).complete


def test_metadata_too_large_to_be_read_proves_less_and_says_so(tmp_path, monkeypatch):
    path = save_dcp(tmp_path / "step-1")
    monkeypatch.setattr(dcp_metadata, "OPCODES", 10)
    facts = facts_of(path)
    assert facts.complete and "it was not held against them" in facts.evidence
    (path / "__0_0.distcp").rename(path / "__1_0.distcp")
    (path / "__0_1.distcp").unlink()
    assert facts_of(path).evidence == "no shard of rank 0"


def test_records_are_known_by_name_and_place(tmp_path):
    index = read_index(save_dcp(tmp_path / "step-1") / ".metadata")
    assert set(index.files) == {"__0_0.distcp", "__0_1.distcp"}
    assert {r.name for records in index.files.values() for r in records} == {
        "model.w", "model.b", "optim.state.w", "train_state.step"}
    assert all(records[-1].end == (tmp_path / "step-1" / name).stat().st_size for name, records in index.files.items())


# ---- Lightning ------------------------------------------------------------------------------------------------------


def test_facts_of_a_sharded_lightning_checkpoint_come_from_its_meta(tmp_path):
    path = TestLightningSharded().write(tmp_path)
    path = path.rename(tmp_path / "mine.ckpt")
    facts = facts_of(path)
    assert (facts.format, facts.step, facts.epoch, facts.variants) == ("lightning-directory", 500, 2, ("model",))


def test_a_metric_with_a_slash_makes_a_directory_in_a_directory(tmp_path):
    path = tmp_path / "epoch=1-val" / "acc=0.688.ckpt"
    path.parent.mkdir()
    TestLightningSharded().write(tmp_path).rename(path)
    facts = facts_of(path)
    assert facts.complete and facts.epoch == 1 and facts.metrics["val/acc"] == 0.688


# ---- DeepSpeed ------------------------------------------------------------------------------------------------------


def test_every_step_up_to_the_one_that_latest_names_is_complete(tmp_path):
    for step in (100, 200, 300):
        deepspeed_tag(tmp_path / f"global_step{step}", step=step)
    (tmp_path / "latest").write_text("global_step200")
    assert [facts_of(tmp_path / f"global_step{s}").complete for s in (100, 200, 300)] == [True, True, False]
    assert "still names global_step200" in facts_of(tmp_path / "global_step300").evidence


def test_a_rank_that_is_missing_is_noticed_though_latest_names_the_step(tmp_path):
    path = deepspeed_tag(tmp_path / "global_step5", step=5, dp=4)
    (tmp_path / "latest").write_text("global_step5")
    assert facts_of(path).complete
    (path / "bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt").unlink()  # only the model states tell that there are four
    facts = facts_of(path)
    assert not facts.complete and "3 of 4 data-parallel ranks" in facts.evidence


def test_a_rolling_tag_proves_the_numbered_ones_before_it(tmp_path):
    path = deepspeed_tag(tmp_path / "0002000.pt", step=2000)
    deepspeed_tag(tmp_path / "latest.pt", step=2500)
    (tmp_path / "latest").write_text("latest.pt")
    assert facts_of(path).complete
    shutil.rmtree(tmp_path / "latest.pt")
    assert not facts_of(path).complete


def test_weights_without_their_optimizer_are_complete(tmp_path):
    """HunyuanDiT's script removes the optimizer states of older steps."""
    path = deepspeed_tag(tmp_path / "0002000.pt", step=2000)
    (tmp_path / "latest").write_text("0002000.pt")
    for file in path.glob("*optim_states.pt"):
        file.unlink()
    assert facts_of(path).complete


def test_in_the_third_stage_of_zero_the_optimizer_holds_the_weights(tmp_path):
    path = deepspeed_tag(tmp_path / "global_step5", step=5, zero3=True)
    (tmp_path / "latest").write_text("global_step5")
    assert facts_of(path).complete
    for file in path.glob("*optim_states.pt"):
        file.unlink()
    assert not facts_of(path).complete


def test_facts_of_a_deepspeed_step(tmp_path):
    path = deepspeed_tag(tmp_path / "mine", step=70, epoch=3, ema=OrderedDict(W))
    (tmp_path / "latest").write_text("mine")
    facts = facts_of(path)
    assert (facts.step, facts.epoch, facts.variants) == (70, 3, ("module", "ema"))


def test_what_latest_names_is_needed(tmp_path):
    path = deepspeed_tag(tmp_path / "global_step5", step=5)
    (tmp_path / "latest").write_text("global_step5\n")
    assert [p for p, _ in DeepSpeed().needed(list_folder(tmp_path))] == [path]
    (tmp_path / "latest").write_text("../global_step5")
    assert list(DeepSpeed().needed(list_folder(tmp_path))) == []


def test_latest_beside_the_directory_decides_and_is_watched(tmp_path):
    path = deepspeed_tag(tmp_path / "global_step5", step=5)
    assert claim_at(path).witnesses == (tmp_path / "latest",)


# ---- Megatron -------------------------------------------------------------------------------------------------------


def test_a_tracker_that_is_not_yet_that_far_makes_it_incomplete(tmp_path):
    path = TestMegatronTorchDist().write(tmp_path)
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    for text, complete in (("50", False), ("100", True), ("150", True), ("release", False), ("", False)):
        tracker.write_text(text)
        assert facts_of(path).complete is complete, text
    tracker.unlink()
    assert facts_of(path).complete
    assert claim_at(path).witnesses == (tracker,)


def test_a_gap_in_the_ranks_of_the_older_layout_is_named(tmp_path):
    path = TestMegatronOlderLayout().write(tmp_path)
    shutil.rmtree(path / "mp_rank_00_001")
    assert facts_of(path).evidence == "3 of 4 ranks; none of rank 0_1"


def test_what_the_tracker_names_is_needed(tmp_path):
    path = TestMegatronOlderLayout().write(tmp_path)
    assert [p for p, _ in Megatron().needed(list_folder(tmp_path))] == [path]
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("release")
    (tmp_path / "release").mkdir()
    assert [p.name for p, _ in Megatron().needed(list_folder(tmp_path))] == ["release"]


def test_checksums_are_those_of_integrity_json(tmp_path):
    path = TestMegatronTorchDist().write(tmp_path)
    claim = claim_at(path)
    assert Megatron().checksums(claim) == {}
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.iterdir()}
    (path / "integrity.json").write_text(json.dumps({"algorithm": "sha256", "files": sums}))
    assert Megatron().checksums(claim) == {path / name: digest for name, digest in sums.items()}
    assert facts_of(path).complete
    for wrong in ({"../x": "0" * 64}, {"common.pt": "0"}, {"common.pt": 5}, []):
        (path / "integrity.json").write_text(json.dumps({"algorithm": "sha256", "files": wrong}))
        with pytest.raises(ValueError, match="integrity"):
            Megatron().checksums(claim)


# ---- Orbax ----------------------------------------------------------------------------------------------------------


def test_facts_of_an_orbax_step(orbax_run):
    facts = facts_of(orbax_run / "ckpt_000200")
    assert (facts.format, facts.complete, facts.step) == ("orbax", True, 200)
    assert facts.metrics == {"loss": 0.005}
    assert facts.variants == ("ema_params", "params")


def test_every_orbax_step_is_found(orbax_run):
    assert sorted(c.path.name for c in claims_below(orbax_run)) == ["ckpt_000100", "ckpt_000200"]


@pytest.mark.parametrize("name", ["100.orbax-checkpoint-tmp", "100.orbax-checkpoint-tmp-1700000000"])
def test_a_temporary_orbax_directory_is_never_complete(orbax_run, tmp_path, name):
    shutil.copytree(orbax_run / "ckpt_000100", tmp_path / name)
    assert [examine(c, format_named(c.format)).complete for c in claims_below(tmp_path)] == [False]


@pytest.mark.parametrize("first", [
    "_CHECKPOINT_METADATA", "commit_success.txt", "metrics/metrics", "state/commit_success.txt", "state/_METADATA",
    "state/manifest.ocdbt", "state/d", "state/ocdbt.process_0/d",
])
def test_a_step_that_orbax_is_removing_is_not_complete_and_nothing_in_it_is(orbax_run, tmp_path, first):
    """It is removed under its final name, in the order in which the file system gives the names."""
    path = tmp_path / "ckpt_000100"
    shutil.copytree(orbax_run / "ckpt_000100", path)
    others = [path / name for name in ("_CHECKPOINT_METADATA", "commit_success.txt", "metrics/metrics", "state/_METADATA")]
    for gone in [path / first, *others]:
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
        assert [c.path.name for c in claims_below(tmp_path) if examine(c, format_named(c.format)).complete] == []


def test_a_flipped_byte_in_a_manifest_is_noticed(orbax_run, tmp_path):
    path = tmp_path / "ckpt_000100"
    shutil.copytree(orbax_run / "ckpt_000100", path)
    manifest = path / "state" / "manifest.ocdbt"
    data = bytearray(manifest.read_bytes())
    data[30] ^= 1
    manifest.write_bytes(bytes(data))
    facts = facts_of(path)
    assert not facts.complete and "CRC-32C" in facts.evidence


# ---- all of them ----------------------------------------------------------------------------------------------------


def test_the_formats_are_installed():
    assert {"dcp", "lightning-directory", "deepspeed", "megatron", "orbax", "step-directory"} <= {f.name for f in formats()}


def test_a_stray_report_keeps_the_fingerprint_and_a_changed_weight_does_not(tmp_path):
    path = save_dcp(tmp_path / "step-1")
    before = facts_of(path)
    (path / "report.txt").write_text("fid 7.4")
    after = facts_of(path)
    assert before.content_digest and after.fingerprint == before.fingerprint
    shard = path / "__0_0.distcp"
    os.utime(shard, ns=(1, 1))
    assert facts_of(path).fingerprint != before.fingerprint
