"""Accelerate, diffusers pipelines and scripts, written by the real libraries; directories with checkpoint_metadata.json."""

import atexit
import json
import os
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ckptwatch.formats.accelerate_state import AccelerateState
from ckptwatch.formats.base import Folder, claim_at, claims_below, claims_in, examine, format_named
from ckptwatch.formats.diffusers_pipeline import DiffusersPipeline
from ckptwatch.formats.metadata_directory import MetadataDirectory
from ckptwatch.testing import FormatConformance, damaged

os.environ.update(HF_HUB_OFFLINE="1", DIFFUSERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")

pytestmark = pytest.mark.xdist_group("pipelines")


@cache
def written():
    """Everything the libraries write, once."""
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    out = Path(tempfile.mkdtemp(prefix="written-"))
    atexit.register(shutil.rmtree, out, ignore_errors=True)

    class Progress:
        def state_dict(self):
            return {"global_step": 700, "epoch": 7}

        def load_state_dict(self, state):
            raise NotImplementedError

    def prepared(accelerator, *models):
        optimizer = torch.optim.AdamW([p for m in models for p in m.parameters()])
        return accelerator.prepare(*models, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer))

    automatic = Accelerator(cpu=True, project_config=ProjectConfiguration(
        project_dir=str(out / "automatic"), automatic_checkpoint_naming=True))
    prepared(automatic, torch.nn.Linear(4, 2), torch.nn.Linear(2, 2))
    automatic.save_state()
    automatic.save_state()
    automatic.project_configuration.automatic_checkpoint_naming = False
    automatic.save_state(out / "pickled", safe_serialization=False)
    automatic.register_for_checkpointing(Progress())
    automatic.save_state(out / "registered")

    unet = UNet2DModel(sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(4, 4),
                       norm_num_groups=2, down_block_types=("DownBlock2D", "DownBlock2D"),
                       up_block_types=("UpBlock2D", "UpBlock2D"))
    average = EMAModel(unet.parameters(), model_cls=UNet2DModel, model_config=unet.config)
    script = Accelerator(cpu=True)

    def save_models(models, weights, directory):
        average.save_pretrained(Path(directory) / "unet_ema")
        for model in models:
            model.save_pretrained(Path(directory) / "unet")
            weights.pop()

    script.register_save_state_pre_hook(save_models)
    prepared(script, unet)
    script.save_state(out / "script")
    pipeline = DDPMPipeline(unet=script.unwrap_model(unet), scheduler=DDPMScheduler(num_train_timesteps=10))
    pipeline.save_pretrained(out / "pipeline")
    pipeline.save_pretrained(out / "sharded", max_shard_size="10KB")
    return out


class Written(FormatConformance):
    cuts = 6
    mutations = 40

    def copy(self, name, to):
        shutil.copytree(written() / name, to)
        return to

    def order(self, directory, path):
        top = path if path.is_dir() else path.parent
        return [str((top / name).relative_to(directory)) for name in self.names(top)]

    def names(self, top):
        raise NotImplementedError


class TestAccelerate(Written):
    def make_format(self):
        return AccelerateState()

    def write(self, directory):
        return self.copy("automatic/checkpoints/checkpoint_1", directory / "run" / "checkpoints" / "checkpoint_1")

    def names(self, top):
        return ["model.safetensors", "model_1.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"]

    def test_the_order_is_the_librarys(self, tmp_path):
        path = self.write(tmp_path)
        times = [(path / name).stat().st_mtime_ns for name in self.names(path)]
        assert times == sorted(times)

    def test_the_number_of_a_save_is_no_step(self, tmp_path):
        path = self.write(tmp_path)
        whole = examine(self.claim(path), AccelerateState())
        assert whole.complete and whole.step is None and "no end marker" in whole.evidence
        (path / "random_states_0.pkl").unlink()
        begun = examine(self.claim(path), AccelerateState())
        assert not begun.complete and begun.step is None

    def test_a_registered_object_tells_the_step(self, tmp_path):
        path = self.copy("registered", tmp_path / "checkpoints" / "checkpoint_0")
        facts = examine(self.claim(path), AccelerateState())
        assert (facts.complete, facts.step, facts.epoch) == (True, 700, 7)
        (path / "custom_checkpoint_0.pkl").write_bytes((path / "custom_checkpoint_0.pkl").read_bytes()[:-1])
        assert not examine(self.claim(path), AccelerateState()).complete

    def test_the_random_states_of_all_ranks_are_waited_for(self, tmp_path):
        path = self.write(tmp_path)
        shutil.copy(path / "random_states_0.pkl", path / "random_states_2.pkl")
        assert self.facts_below(tmp_path)[path].evidence.startswith("random_states_1.pkl is missing")

    def test_a_second_optimizer_without_the_first_is_a_removal_under_way(self, tmp_path):
        path = self.write(tmp_path)
        (path / "optimizer.bin").rename(path / "optimizer_1.bin")
        facts = self.facts_below(tmp_path)[path]
        assert not facts.complete and "optimizer number 0 is missing" in facts.evidence

    @pytest.mark.parametrize("name", ["step_500", "epoch_3", "best_model"])
    def test_a_directory_named_by_its_step_is_one_checkpoint(self, tmp_path, name):
        path = self.copy("automatic/checkpoints/checkpoint_1", tmp_path / "run" / name)
        claim = self.claim(path)
        facts = examine(claim, AccelerateState())
        assert (claim.format, claim.whole, facts.complete) == ("accelerate", True, True)
        assert (facts.step, facts.epoch) == {"step_500": (500, None), "epoch_3": (None, 3)}.get(name, (None, None))

    def test_in_a_directory_of_another_name_only_its_files_are_taken(self, tmp_path):
        run = self.copy("registered", tmp_path / "my-run")
        torch.save({"w": torch.zeros(2)}, run / "epoch_9.pt")
        found = self.facts_below(tmp_path)
        assert {p.name: (f.format, f.complete) for p, f in found.items()} == {
            "model.safetensors": ("accelerate", True), "epoch_9.pt": ("torch-zip", True)}
        assert run / "epoch_9.pt" not in self.claim(run / "model.safetensors").members

    def test_a_directory_of_the_same_name_that_others_write_is_left_to_them(self, tmp_path):
        for name, files in {"checkpoint_1": {"model.pt"}, "checkpoint_2": {"_CHECKPOINT_METADATA"}}.items():
            folder = Folder(path=tmp_path / name, files=frozenset(files))
            assert not list(AccelerateState().claims(folder))


class TestAccelerateWithoutSafetensors(Written):
    def make_format(self):
        return AccelerateState()

    def write(self, directory):
        return self.copy("pickled", directory / "run" / "checkpoint-500")

    def names(self, top):
        return ["pytorch_model.bin", "pytorch_model_1.bin", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"]


class TestDiffusersScript(Written):
    def make_format(self):
        return AccelerateState()

    def write(self, directory):
        return self.copy("script", directory / "run" / "checkpoint-500")

    def names(self, top):
        models = [f"{m}/{n}" for m in ("unet_ema", "unet") for n in ("config.json", "diffusion_pytorch_model.safetensors")]
        return [*models, "optimizer.bin", "scheduler.bin", "random_states_0.pkl"]

    def test_the_average_is_a_variant(self, tmp_path):
        path = self.write(tmp_path)
        facts = examine(self.claim(path), AccelerateState())
        assert (facts.step, facts.variants) == (500, ("unet", "unet_ema"))
        shutil.rmtree(path / "unet_ema")
        assert self.facts_below(tmp_path)[path].variants == ()

    def test_the_adapter_that_the_script_writes_last_must_be_whole(self, tmp_path):
        path = self.write(tmp_path)
        adapter = path / "pytorch_lora_weights.safetensors"
        save_file({"w": torch.zeros(4)}, adapter)
        assert self.facts_below(tmp_path)[path].complete
        adapter.write_bytes(adapter.read_bytes()[:-1])
        assert not self.facts_below(tmp_path)[path].complete

    def test_a_whole_pipeline_under_such_a_name_is_a_pipeline(self, tmp_path):
        path = self.copy("pipeline", tmp_path / "run" / "checkpoint-500")
        assert self.claim(path).format == "diffusers-pipeline"


class TestPipeline(Written):
    def make_format(self):
        return DiffusersPipeline()

    def write(self, directory):
        return self.copy("pipeline", directory / "run" / "my-pipeline")

    def names(self, top):
        return ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json",
                "model_index.json"]

    def test_the_order_is_the_librarys(self, tmp_path):
        path = self.write(tmp_path)
        times = [(path / name).stat().st_mtime_ns for name in self.names(path)]
        assert times == sorted(times)

    def test_without_its_index_the_components_are_told(self, tmp_path):
        path = self.write(tmp_path)
        (path / "model_index.json").unlink()
        facts = self.facts_below(tmp_path)[path]
        assert facts.evidence == "model_index.json, which is written last, is missing; components present: scheduler, unet"

    @pytest.mark.parametrize("gone", ["unet", "scheduler", "unet/config.json", "scheduler/scheduler_config.json",
                                      "unet/diffusion_pytorch_model.safetensors"])
    def test_every_component_it_lists_must_be_there(self, tmp_path, gone):
        path = self.write(tmp_path)
        shutil.rmtree(path / gone) if (path / gone).is_dir() else (path / gone).unlink()
        facts = self.facts_below(tmp_path)[path]
        assert not facts.complete and gone.split("/")[0] in facts.evidence

    @pytest.mark.parametrize("name", ["../../etc", "/etc", "..", "a/b", "a\0b"])
    def test_an_index_that_leads_elsewhere_is_refused(self, tmp_path, name):
        path = self.write(tmp_path)
        listed = json.loads((path / "model_index.json").read_text())
        (path / "model_index.json").write_text(json.dumps({**listed, name: ["diffusers", "UNet2DModel"]}))
        facts = self.facts_below(tmp_path)[path]
        assert not facts.complete and "is no name of a directory" in facts.evidence

    def test_components_that_are_not_used_are_not_missed(self, tmp_path):
        path = self.write(tmp_path)
        listed = json.loads((path / "model_index.json").read_text())
        more = {"safety_checker": [None, None], "requires_safety_checker": False}
        (path / "model_index.json").write_text(json.dumps({**listed, **more}))
        assert self.facts_below(tmp_path)[path].complete

    def test_runs_that_are_called_like_components_are_not_swallowed(self, tmp_path):
        for name in ("unet", "vae", "transformer"):
            run = tmp_path / "segmentation" / name
            run.mkdir(parents=True)
            torch.save({"w": torch.zeros(2)}, run / "step_100.pt")
        complete = [p.parent.name for p, f in self.facts_below(tmp_path).items() if f.complete]
        assert sorted(complete) == ["transformer", "unet", "vae"]


class TestShardedPipeline(Written):
    def make_format(self):
        return DiffusersPipeline()

    def write(self, directory):
        return self.copy("sharded", directory / "run" / "epoch_3")

    def names(self, top):
        shards = sorted(f"unet/{p.name}" for p in (top / "unet").glob("*-of-*.safetensors"))
        return ["unet/config.json", *shards, "unet/diffusion_pytorch_model.safetensors.index.json",
                "scheduler/scheduler_config.json", "model_index.json"]


class TestPipelineBesideItsCheckpoints(Written):
    """The output directory of a training script at its end."""

    def make_format(self):
        return DiffusersPipeline()

    def write(self, directory):
        out = self.copy("pipeline", directory / "run")
        (out / "checkpoint-500").mkdir()
        (out / "checkpoint-500" / "sample.png").write_bytes(b"\x89PNG")
        return out / "model_index.json"

    def names(self, top):
        return ["checkpoint-500/sample.png", *TestPipeline.names(self, top)]

    def test_the_checkpoints_remain_checkpoints(self, tmp_path):
        path = self.write(tmp_path)
        shutil.rmtree(path.parent / "checkpoint-500")
        self.copy("script", path.parent / "checkpoint-500")
        found = {p.name: (f.format, f.complete) for p, f in self.facts_below(tmp_path).items()}
        assert found == {"model_index.json": ("diffusers-pipeline", True), "checkpoint-500": ("accelerate", True)}
        assert {m.name for m in self.claim(path).members} == {"model_index.json", "scheduler", "unet"}


# ---- checkpoint_metadata.json ----------------------------------------------------------------------------------------

METADATA = {"experiment_name": "quic360", "stage": "finetune", "model_config": {"resampler_type": "mlp"},
            "training_config": {"use_lora": True}, "dataset": {"train_csv": "a.csv"}}
CKPT = "siglip_mlp_anyres-e2p_quic360_epoch05_loss0.4201.ckpt"


def write_adapter(directory):
    directory.mkdir(parents=True)
    save_file({"lora_A": torch.zeros(4)}, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))


ADAPTER = ["lora_weights/adapter_model.safetensors", "lora_weights/adapter_config.json"]


class TestRunWithMetadata(FormatConformance):
    cuts = 20
    mutations = 60

    def make_format(self):
        return MetadataDirectory()

    def write(self, directory):
        run = directory / "quic360" / "finetune" / "anyres-e2p_mlp"
        write_adapter(run / "lora_weights")
        (run / "checkpoint_metadata.json").write_text(json.dumps(METADATA))
        torch.save({"epoch": 5, "global_step": 600, "state_dict": {"w": torch.zeros(3)}}, run / CKPT)
        return run / CKPT

    def order(self, directory, path):
        return [str((path.parent / name).relative_to(directory)) for name in ("checkpoint_metadata.json", *ADAPTER, CKPT)]

    def test_links_metadata_and_adapter_are_no_checkpoints(self, tmp_path):
        path = self.write(tmp_path)
        for link in ("best.ckpt", "last.ckpt"):
            path.with_name(link).symlink_to(CKPT)
        assert list(self.facts_below(tmp_path)) == [path]
        path.unlink()
        assert self.facts_below(tmp_path) == {}

    def test_the_adapter_belongs_to_the_run_and_to_no_checkpoint(self, tmp_path):
        path = self.write(tmp_path)
        shutil.copy(path, path.with_name("siglip_epoch04_loss0.5.ckpt"))
        claims = list(claims_below(tmp_path))
        assert sorted(len(c.members) for c in claims) == [1, 1]
        assert claim_at(path.parent / "lora_weights") is None
        folder = Folder(path=path.parent, files=frozenset({"checkpoint_metadata.json"}), folders=frozenset({"lora_weights"}))
        aside, = claims_in(folder)
        assert aside.aside and not examine(aside, MetadataDirectory()).complete

    def test_an_adapter_whose_metadata_is_still_to_come_is_no_checkpoint(self, tmp_path):
        write_adapter(tmp_path / "run" / "lora_weights")
        assert self.facts_below(tmp_path) == {}

    def test_name_file_and_metadata_together_tell_the_facts(self, tmp_path):
        path = self.write(tmp_path)
        facts = examine(self.claim(path), MetadataDirectory())
        assert (facts.epoch, facts.step, facts.metrics) == (5, 600, {"loss": 0.4201})
        assert "stage finetune, experiment quic360" in facts.evidence

    @pytest.mark.parametrize(("said", "heard"), [
        ({"epoch": 5}, True), ({"epoch": 4}, False), ({"step": 600}, True), ({"step": 600, "epoch": 4}, False),
        ({"source_checkpoint": CKPT}, True), ({"source_checkpoint": "other.ckpt"}, False), ({}, False),
    ])
    def test_metadata_of_a_run_counts_for_the_checkpoint_it_speaks_of(self, tmp_path, said, heard):
        path = self.write(tmp_path)
        metadata = {**METADATA, **said, "metrics": {"bleu": 0.5, "note": "x"}}
        path.with_name("checkpoint_metadata.json").write_text(json.dumps(metadata))
        assert ("bleu" in self.facts_below(tmp_path)[path].metrics) is heard

    def test_broken_metadata_does_not_break_the_file_beside_it(self, tmp_path):
        path = self.write(tmp_path)
        for text in ("", "[]", "{", '{"stage": 3, "metrics": 4, "epoch": [], "experiment_name": "\\u0000"}'):
            path.with_name("checkpoint_metadata.json").write_text(text)
            assert self.facts_below(tmp_path)[path].complete


class TestDirectoryWithMetadata(FormatConformance):
    cuts = 20
    mutations = 60

    def make_format(self):
        return MetadataDirectory()

    def write(self, directory):
        path = directory / "run" / "stage1_epoch3"
        write_adapter(path / "lora_weights")
        told = {**METADATA, "epoch": 3, "step": 900, "metrics": {"bleu": 0.25}}
        (path / "checkpoint_metadata.json").write_text(json.dumps(told))
        torch.save({"state_dict": {"w": torch.zeros(3)}}, path / "model.ckpt")
        return path

    def order(self, directory, path):
        return [str((path / name).relative_to(directory)) for name in ("checkpoint_metadata.json", "model.ckpt", *ADAPTER)]

    def test_the_metadata_tells_the_facts(self, tmp_path):
        path = self.write(tmp_path)
        facts = self.facts_below(tmp_path)[path]
        assert (facts.epoch, facts.step, facts.metrics) == (3, 900, {"bleu": 0.25})

    def test_save_pretrained_with_metadata_is_one_as_well(self, tmp_path):
        path = tmp_path / "run" / "checkpoint-70"
        path.mkdir(parents=True)
        (path / "config.json").write_text("{}")
        save_file({"w": torch.zeros(4)}, path / "model.safetensors")
        assert [f.complete for f in self.facts_below(tmp_path).values()] == [False]
        (path / "checkpoint_metadata.json").write_text('{"step": 70, "metrics": {"loss": 1.5}}')
        facts = self.facts_below(tmp_path)[path]
        assert (facts.format, facts.complete, facts.metrics) == ("metadata-directory", True, {"loss": 1.5})


@pytest.mark.parametrize(("make", "document"), [(TestPipeline, "model_index.json"),
                                                (TestDirectoryWithMetadata, "checkpoint_metadata.json")])
def test_strange_values_in_a_document_crash_nothing(tmp_path, make, document):
    path = make().write(tmp_path)
    content = json.loads((path / document).read_text())
    strange = [None, True, -1, 10**30, 1e308, float("nan"), "", "a\ud800", "../x", [], [[]], [1, 2], ["x", "y"], {},
               {"loss": "x"}, {"": 1.0, "a\0": 1.0, "x" * 999: 2.0, "ok": float("inf")}]
    for key in (*content, "new", "step", "epoch", "metrics", "source_checkpoint"):
        for value in strange:
            (path / document).write_text(json.dumps({**content, key: value}))
            for claim in claims_below(tmp_path):
                facts = examine(claim, format_named(claim.format))
                assert facts.evidence and all(isinstance(v, float) for v in facts.metrics.values())


@pytest.mark.parametrize("source", ["automatic/checkpoints/checkpoint_1", "script", "pipeline", "sharded"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_files_crash_nothing(tmp_path_factory, source, data):
    top = tmp_path_factory.mktemp("mutated")
    name = {"script": "checkpoint-500"}.get(source, Path(source).name)
    path = Path(shutil.copytree(written() / source, top / name))
    files = sorted(p for p in path.rglob("*") if p.is_file())
    for file in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=3, unique=True)):
        whole = file.read_bytes()
        file.write_bytes(data.draw(st.one_of(
            st.integers(0, len(whole)).map(lambda n, w=whole: w[:n]),
            st.integers(0, 2**32).map(lambda n, w=whole: damaged(w, random.Random(n))),
            st.binary(max_size=200), st.sampled_from(files).map(lambda other: other.read_bytes()))))
    for claim in list(claims_below(top)):
        assert examine(claim, format_named(claim.format)).evidence
    shutil.rmtree(top)
