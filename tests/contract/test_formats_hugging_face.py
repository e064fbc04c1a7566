"""Trainer, save_pretrained, PEFT and shards, written by the real libraries."""

import atexit
import itertools
import json
import os
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptwatch.formats.base import Folder, claim_at, claims_below, claims_in, examine, format_named, list_folder
from ckptwatch.formats.hf_model import HfModel
from ckptwatch.formats.hf_trainer import HfTrainer
from ckptwatch.formats.sharded_safetensors import ShardedSafetensors
from ckptwatch.testing import FormatConformance, damaged

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")

pytestmark = pytest.mark.xdist_group("hugging_face")

TOKENIZER = ["tokenizer_config.json", "tokenizer.json"]
RESUME = ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@cache
def written():
    """Everything the libraries write, once: runs `full`, `sharded`, `lora`, directories `shards`, `saved`, `adapter`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

    class Sharded(LlamaForCausalLM):
        def save_pretrained(self, *args, **kwargs):
            super().save_pretrained(*args, **{**kwargs, "max_shard_size": "1KB"})

    out = Path(tempfile.mkdtemp(prefix="written-"))
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    torch.manual_seed(0)
    data = [{"input_ids": [i, 2, 3, 4], "labels": [i, 2, 3, 4]} for i in range(8)]
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(16)}, "w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0")

    def train(name, model, **more):
        arguments = TrainingArguments(
            output_dir=str(out / name), max_steps=4, save_steps=2, logging_steps=1, eval_strategy="steps", eval_steps=2,
            per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True, seed=1, learning_rate=1e-2, **more)
        trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data[:2], processing_class=tokenizer)
        trainer.train()
        return trainer

    train("full", LlamaForCausalLM(config), load_best_model_at_end=True, metric_for_best_model="loss",
          greater_is_better=True)
    train("sharded", Sharded(config))
    lora = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=2, target_modules=["q_proj"]))
    train("lora", lora)
    lora.save_pretrained(out / "adapter")
    LlamaForCausalLM(config).save_pretrained(out / "saved")
    Sharded(config).save_pretrained(out / "shards")
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


def shards_of(top, stem="model"):
    return sorted(p.name for p in top.glob(f"{stem}-0*-of-*.safetensors"))


class TestTrainer(Written):
    def make_format(self):
        return HfTrainer()

    def write(self, directory):
        return self.copy("full/checkpoint-4", directory / "run" / "checkpoint-4")

    def names(self, top):
        return ["config.json", "generation_config.json", "model.safetensors", *TOKENIZER, *RESUME]

    def test_the_order_is_the_librarys(self, tmp_path):
        path = self.write(tmp_path)
        times = [(path / name).stat().st_mtime_ns for name in self.names(path)]
        assert times == sorted(times)

    def test_what_was_logged_at_its_step_is_told(self, tmp_path):
        path = self.write(tmp_path)
        state = json.loads((path / "trainer_state.json").read_text())
        facts = self.facts_below(tmp_path)[path]
        logged = {k: v for e in state["log_history"] if e["step"] == 4 for k, v in e.items()}
        assert (facts.step, facts.epoch) == (4, 1)
        assert facts.metrics["eval_loss"] == logged["eval_loss"] and facts.metrics["loss"] == logged["loss"]
        assert not {"step", "epoch", "eval_runtime", "eval_steps_per_second"} & set(facts.metrics)

    def test_the_loss_logged_before_counts_where_none_was_logged_then(self, tmp_path):
        path = self.write(tmp_path)
        state = json.loads((path / "trainer_state.json").read_text())
        state["log_history"] = [{"step": 1, "loss": 9.0}, {"step": 3, "loss": 7.0}, {"step": 4, "eval_loss": 1.0},
                                {"step": 5, "loss": 2.0}]
        (path / "trainer_state.json").write_text(json.dumps(state))
        assert self.facts_below(tmp_path)[path].metrics == {"loss": 7.0, "eval_loss": 1.0}

    def test_a_renamed_directory_counts_by_its_name_and_the_evidence_says_so(self, tmp_path):
        path = self.write(tmp_path).rename(tmp_path / "run" / "checkpoint-300")
        facts = examine(self.claim(path), HfTrainer())
        assert facts.complete and facts.step == 300
        assert "says step 4, the name 300" in facts.evidence

    def test_a_half_removed_directory_is_never_complete(self, tmp_path):
        """Rotation removes in directory order, so the trainer's state may outlive the weights."""
        vital = {"model.safetensors", "trainer_state.json"}
        for number in range(6):
            path = self.copy("full/checkpoint-4", tmp_path / str(number) / "checkpoint-4")
            names = sorted(p.name for p in path.iterdir())
            random.Random(number).shuffle(names)
            for n, name in enumerate(names):
                (path / name).unlink()
                if vital & set(names[:n + 1]):
                    assert not any(f.complete for f in self.facts_below(tmp_path / str(number)).values()), names[:n + 1]

    @pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "config.json",
                                      "tokenizer.json", "model.safetensors"])
    def test_every_other_file_must_be_whole_too(self, tmp_path, name):
        path = self.write(tmp_path)
        (path / name).write_bytes((path / name).read_bytes()[:-9])
        facts = self.facts_below(tmp_path)[path]
        assert not facts.complete and name in facts.evidence

    def test_the_random_states_of_all_ranks_are_waited_for(self, tmp_path):
        path = self.write(tmp_path)
        state = (path / "rng_state.pth").rename(path / "rng_state_0.pth")
        shutil.copy(state, path / "rng_state_2.pth")
        assert self.facts_below(tmp_path)[path].evidence.startswith("rng_state_1.pth is missing")
        shutil.copy(state, path / "rng_state_1.pth")
        assert self.facts_below(tmp_path)[path].complete

    def test_a_report_dropped_into_it_keeps_the_fingerprint(self, tmp_path):
        path = self.write(tmp_path)
        before = self.facts_below(tmp_path)[path]
        (path / "eval_report.jsonl").write_text("{}\n{}\n")
        (path / "notes").mkdir()
        after = self.facts_below(tmp_path)[path]
        assert before.content_digest and after == before
        shutil.copy(written() / "full" / "checkpoint-2" / "model.safetensors", path)
        assert self.facts_below(tmp_path)[path].fingerprint != before.fingerprint

    def test_its_temporary_name_is_incomplete(self, tmp_path):
        self.write(tmp_path).rename(tmp_path / "run" / "tmp-checkpoint-4")
        (path, facts), = self.facts_below(tmp_path).items()
        assert path.name == "tmp-checkpoint-4" and not facts.complete
        assert facts.step is None

    def test_weights_alone_do_not_say_whose_they_are(self, tmp_path):
        path = self.write(tmp_path)
        for name in {p.name for p in path.iterdir()} - {"model.safetensors", "config.json"}:
            (path / name).unlink()
        facts = self.facts_below(tmp_path)[path]
        assert not facts.complete
        assert "neither trainer_state.json (Trainer) nor random_states_0.pkl (Accelerate)" in facts.evidence

    def test_the_first_file_of_another_rank_is_no_checkpoint(self, tmp_path):
        path = tmp_path / "run" / "checkpoint-4"
        path.mkdir(parents=True)
        shutil.copy(written() / "full" / "checkpoint-4" / "rng_state.pth", path / "rng_state_1.pth")
        assert not self.facts_below(tmp_path)[path].complete

    def test_a_directory_without_any_of_its_files_is_left_alone(self, tmp_path):
        for name in ("checkpoint-1", "checkpoint-2"):
            (tmp_path / name).mkdir()
        (tmp_path / "checkpoint-2" / "sample.png").write_bytes(b"\x89PNG")
        (tmp_path / "checkpoint-2" / "notes.txt").write_text("nothing")
        assert not list(claims_below(tmp_path))

    def test_a_run_in_a_directory_called_like_a_checkpoint_is_not_swallowed(self, tmp_path):
        inner = self.copy("full/checkpoint-4", tmp_path / "checkpoint-2" / "checkpoint-4")
        shutil.copy(inner / "config.json", tmp_path / "checkpoint-2")
        assert [p for p, f in self.facts_below(tmp_path).items() if f.complete] == [inner]

    def test_a_hostile_state_of_the_trainer_is_no_evidence(self, tmp_path):
        path = self.write(tmp_path)
        for text in ("{}", "[]", "3", '{"global_step": ' + "[" * 100_000,
                     '{"global_step": NaN, "log_history": 3, "epoch": "x"}',
                     '{"global_step": 1e400, "epoch": Infinity, "log_history": [1, null, {"step": "4", "a\\u0000": 1}]}'):
            (path / "trainer_state.json").write_text(text)
            facts = self.facts_below(tmp_path)[path]
            assert facts.epoch is None and not facts.metrics


    def test_a_name_that_is_no_text_can_be_shown(self, tmp_path):
        path = self.write(tmp_path)
        Path(os.fsdecode(os.fsencode(path) + b"/\xff.pt")).write_bytes(b"")
        facts = self.facts_below(tmp_path)[path]
        assert not facts.complete and facts.evidence.encode()


class TestTrainerWithShards(Written):
    def make_format(self):
        return HfTrainer()

    def write(self, directory):
        return self.copy("sharded/checkpoint-4", directory / "run" / "checkpoint-4")

    def names(self, top):
        shards = [*shards_of(top), "model.safetensors.index.json"]
        return ["config.json", "generation_config.json", *shards, *TOKENIZER, *RESUME]

    def test_a_missing_shard_is_named(self, tmp_path):
        path = self.write(tmp_path)
        gone = shards_of(path)[1]
        (path / gone).unlink()
        count = len(shards_of(path)) + 1
        facts = self.facts_below(tmp_path)[path]
        assert facts.evidence == f"index lists {count} shards, {count - 1} present; missing {gone}"

    def test_an_index_without_any_shard_is_incomplete(self, tmp_path):
        path = self.write(tmp_path)
        for name in shards_of(path):
            (path / name).unlink()
        facts = self.facts_below(tmp_path)[path]
        assert not facts.complete and "0 present" in facts.evidence


class TestTrainerWithAdapter(Written):
    def make_format(self):
        return HfTrainer()

    def write(self, directory):
        return self.copy("lora/checkpoint-4", directory / "run" / "checkpoint-4")

    def names(self, top):
        return ["README.md", "adapter_model.safetensors", "adapter_config.json", *TOKENIZER, *RESUME]

    def test_a_second_adapter_in_a_subdirectory_must_be_whole(self, tmp_path):
        path = self.write(tmp_path)
        (path / "second").mkdir()
        shutil.copy(path / "adapter_model.safetensors", path / "second")
        facts = self.facts_below(tmp_path)[path]
        assert not facts.complete and facts.evidence.startswith("second/adapter_config.json")
        shutil.copy(path / "adapter_config.json", path / "second")
        assert self.facts_below(tmp_path)[path].complete


class TestTrainerWithDeepSpeed(Written):
    """The layout of two ranks at stage 3; DeepSpeed itself needs a compiler and a group of processes."""

    def make_format(self):
        return HfTrainer()

    def write(self, directory):
        import torch

        path = self.copy("full/checkpoint-4", directory / "run" / "checkpoint-4")
        (path / "model.safetensors").unlink()
        (path / "optimizer.pt").unlink()
        (path / "rng_state.pth").rename(path / "rng_state_0.pth")
        shutil.copy(path / "rng_state_0.pth", path / "rng_state_1.pth")
        (path / "global_step4").mkdir()
        for rank in (0, 1):
            torch.save({"module": None, "dp_world_size": 2, "mp_world_size": 1, "global_steps": 4},
                       path / "global_step4" / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
            torch.save({"optimizer_state_dict": {"fp32_flat_groups": [torch.zeros(8)]}},
                       path / "global_step4" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        (path / "latest").write_text("global_step4")
        (path / "zero_to_fp32.py").write_text("pass\n")
        return path

    def names(self, top):
        states = sorted(f"global_step4/{p.name}" for p in (top / "global_step4").iterdir())
        return ["rng_state_1.pth", "config.json", "generation_config.json", *TOKENIZER, "training_args.bin", *states,
                "zero_to_fp32.py", "latest", "scheduler.pt", "rng_state_0.pth", "trainer_state.json"]

    def test_latest_must_name_the_states(self, tmp_path):
        path = self.write(tmp_path)
        (path / "latest").write_text("global_step3")
        assert not self.facts_below(tmp_path)[path].complete

    def test_a_missing_rank_is_noticed(self, tmp_path):
        path = self.write(tmp_path)
        (path / "global_step4" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
        facts = self.facts_below(tmp_path)[path]
        assert not facts.complete and "rank 0" in facts.evidence


class TestTrainerWithFsdp(Written):
    def make_format(self):
        return HfTrainer()

    def write(self, directory):
        import torch
        from torch.distributed import checkpoint as dcp

        path = self.copy("full/checkpoint-4", directory / "run" / "checkpoint-4")
        (path / "model.safetensors").unlink()
        (path / "optimizer.pt").unlink()
        for name in ("pytorch_model_fsdp_0", "optimizer_0"):
            dcp.save({"w": torch.arange(8.0)}, storage_writer=dcp.FileSystemWriter(path / name), no_dist=True)
        return path

    def names(self, top):
        sharded = [f"{d}/{p}" for d in ("pytorch_model_fsdp_0", "optimizer_0") for p in ("__0_0.distcp", ".metadata")]
        return ["config.json", "generation_config.json", *TOKENIZER, "training_args.bin", *sharded, "scheduler.pt",
                "rng_state.pth", "trainer_state.json"]


class TestShards(Written):
    """Without a configuration, as `save_torch_state_dict` and Accelerate's `save_model` write them."""

    cuts = 12

    def make_format(self):
        return ShardedSafetensors()

    def write(self, directory):
        directory = self.copy("shards", directory / "run")
        for name in ("config.json", "generation_config.json"):
            (directory / name).unlink()
        return directory / shards_of(directory)[0]

    def names(self, top):
        return [*shards_of(top), "model.safetensors.index.json"]

    def test_its_path_stays_while_the_index_comes_and_goes(self, tmp_path):
        path = self.write(tmp_path)
        index = path.with_name("model.safetensors.index.json")
        assert index in self.claim(path).members
        index.unlink()
        count = len(shards_of(path.parent))
        assert self.claim(path).path == path
        assert self.facts_below(tmp_path)[path].evidence == f"{count} of {count} shards, index missing"

    def test_shards_may_come_in_any_order(self, tmp_path):
        path = self.write(tmp_path / "whole")
        (tmp_path / "run").mkdir()
        for name in [*reversed(shards_of(path.parent)), "model.safetensors.index.json"]:
            assert not any(f.complete for f in self.facts_below(tmp_path / "run").values())
            shutil.copy(path.with_name(name), tmp_path / "run")
        assert [f.complete for f in self.facts_below(tmp_path / "run").values()] == [True]

    @pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "", "a\\b", "sub/model.safetensors", 3, None])
    def test_an_index_that_leads_elsewhere_is_refused(self, tmp_path, name):
        path = self.write(tmp_path)
        index = path.with_name("model.safetensors.index.json")
        listed = json.loads(index.read_text())
        listed["weight_map"]["evil"] = name
        index.write_text(json.dumps(listed))
        facts = self.facts_below(tmp_path)[path]
        assert not facts.complete and "is no name of a file in its directory" in facts.evidence

    def test_shards_of_another_save_are_noticed(self, tmp_path):
        path = self.write(tmp_path)
        shutil.copy(path, path.with_name("model-00001-of-00099.safetensors"))
        facts, = self.facts_below(tmp_path).values()
        assert not facts.complete and "left over" in facts.evidence

    def test_variants_and_pickled_shards_have_an_index_too(self, tmp_path):
        import torch

        (tmp_path / "run").mkdir()
        for number in (1, 2):
            torch.save({"w": torch.zeros(2)}, tmp_path / "run" / f"pytorch_model.fp16-0000{number}-of-00002.bin")
        shards = [f"pytorch_model.fp16-0000{n}-of-00002.bin" for n in (1, 2)]
        index = json.dumps({"weight_map": dict(enumerate(shards))})
        (tmp_path / "run" / "pytorch_model.bin.index.fp16.json").write_text(index)
        facts = self.facts_below(tmp_path)
        assert [(p.name, f.complete) for p, f in facts.items()] == [(shards[0], True)]


class TestModelDirectory(Written):
    def make_format(self):
        return HfModel()

    def write(self, directory):
        return self.copy("shards", directory / "run" / "step_500")

    def names(self, top):
        return ["config.json", "generation_config.json", *shards_of(top), "model.safetensors.index.json"]

    def test_step_and_role_come_from_the_name(self, tmp_path):
        path = self.write(tmp_path)
        assert examine(self.claim(path), HfModel()).step == 500
        final = path.rename(tmp_path / "run" / "final_model")
        assert self.claim(final).whole and self.facts_below(tmp_path)[final].complete


class TestModelInARun(Written):
    def make_format(self):
        return HfModel()

    def write(self, directory):
        return self.copy("saved", directory / "my-llama") / "model.safetensors"

    def names(self, top):
        return ["config.json", "generation_config.json", "model.safetensors"]

    def test_the_checkpoints_beside_it_remain_checkpoints(self, tmp_path):
        run = self.copy("full", tmp_path / "final_model")  # the name alone would make it one checkpoint
        shutil.copytree(written() / "saved", run, dirs_exist_ok=True)
        (run / "README.md").write_text("how it was trained")
        found = self.facts_below(tmp_path)
        assert {str(p.relative_to(run)): (f.format, f.complete) for p, f in found.items()} == {
            "checkpoint-2": ("hf-trainer", True), "checkpoint-4": ("hf-trainer", True),
            "model.safetensors": ("hf-model", True)}
        members = {m.name for m in self.claim(run / "model.safetensors").members}
        assert members == {"config.json", "generation_config.json", "model.safetensors"}

    def test_numbered_models_are_not_taken_for_one(self, tmp_path):
        path = self.write(tmp_path)
        for number in (1, 2):
            shutil.copy(path, path.with_name(f"model_{number}.safetensors"))
        assert len(self.facts_below(tmp_path)) == 3


class TestAdapter(Written):
    def make_format(self):
        return HfModel()

    def write(self, directory):
        return self.copy("adapter", directory / "run" / "epoch_3")

    def names(self, top):
        return ["adapter_model.safetensors", "README.md", "adapter_config.json"]

    def test_outside_a_directory_of_its_own_it_waits_for_its_configuration_too(self, tmp_path):
        path = self.copy("adapter", tmp_path / "my-lora") / "adapter_model.safetensors"
        assert self.facts_below(tmp_path)[path].complete
        path.with_name("adapter_config.json").unlink()
        assert not self.facts_below(tmp_path)[path].complete


class TestNeeded:
    """What the trainer still needs, as told by its state."""

    @pytest.fixture
    def run(self, tmp_path):
        return Path(shutil.copytree(written() / "full", tmp_path / "moved"))

    def needed(self, run):
        """What it calls its best. What it resumes from is told apart."""
        return {path: why for path, why in HfTrainer().needed(list_folder(run)) if "best" in why}

    def test_what_training_resumes_from_is_the_highest_step(self, run):
        shutil.copytree(run / "checkpoint-4", run / "checkpoint-10")
        assert (run / "checkpoint-10", "the highest step: Trainer resumes from it") in HfTrainer().needed(list_folder(run))

    def test_the_best_is_found_where_the_run_was_moved_to(self, run):
        assert "names it as the best" in self.needed(run)[run / "checkpoint-2"]

    @pytest.mark.parametrize("text", ["runs/x/checkpoint-2", "./checkpoint-2", "/gone/checkpoint-2"])
    def test_a_path_that_does_not_resolve_is_matched_by_its_name(self, run, text):
        self.rewrite(run / "checkpoint-4", best_model_checkpoint=text)
        assert set(self.needed(run)) == {run / "checkpoint-2"}

    def test_an_absolute_path_that_resolves_is_meant(self, run, tmp_path):
        elsewhere = tmp_path / "other" / "checkpoint-70"
        elsewhere.mkdir(parents=True)
        self.rewrite(run / "checkpoint-4", best_model_checkpoint=str(elsewhere))
        assert set(self.needed(run)) == {elsewhere}

    @pytest.mark.parametrize("text", [None, "", "/etc/passwd", "../..", 5, "x" * 9999, "checkpoint-\0"],
                             ids=lambda t: repr(t)[:20])
    def test_nonsense_names_no_best_and_raises_nothing(self, run, text):
        self.rewrite(run / "checkpoint-4", best_model_checkpoint=text)
        assert self.needed(run) == {}

    @pytest.mark.parametrize("epoch", [10**400, -1, "x", None, [], True, 1e308, float("inf")],
                             ids=lambda e: str(e)[:10])
    def test_an_epoch_that_is_none_is_unknown(self, run, epoch):
        self.rewrite(run / "checkpoint-4", epoch=epoch)
        claim = claim_at(run / "checkpoint-4")
        facts = examine(claim, HfTrainer())
        assert facts.complete and (facts.epoch is None or facts.epoch < 2**63)

    def test_while_the_newest_state_is_being_written_the_one_before_counts(self, run):
        self.rewrite(run / "checkpoint-2", best_model_checkpoint="checkpoint-2")
        (run / "checkpoint-4" / "trainer_state.json").write_text('{"global_step": 4, "best_mod')
        assert set(self.needed(run)) == {run / "checkpoint-2"}

    def test_a_run_that_started_over_needs_what_its_last_written_state_names(self, run):
        os.utime(run / "checkpoint-4" / "trainer_state.json", (1, 1))
        self.rewrite(run / "checkpoint-4", keep_times=True, best_model_checkpoint="checkpoint-4")
        self.rewrite(run / "checkpoint-2", best_model_checkpoint="checkpoint-2")
        assert set(self.needed(run)) == {run / "checkpoint-2", run / "checkpoint-4"}

    @staticmethod
    def rewrite(directory, *, keep_times=False, **changes):
        path = directory / "trainer_state.json"
        times = path.stat()
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        if keep_times:
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_claims_need_names_only():
    names = frozenset({"config.json", "model.safetensors", "trainer_state.json", "optimizer.pt"})
    folder = Folder(path=Path("/nowhere/run/checkpoint-7"), files=names)
    claim, = claims_in(folder)
    assert (claim.format, claim.whole, claim.path) == ("hf-trainer", True, folder.path)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.just("checkpoint-4")),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(
        st.sampled_from(["step", "loss", "eval_loss", "epoch", "a", "\ud800"]), inner, max_size=4)), max_leaves=12)


@pytest.mark.parametrize(("source", "document"), [
    ("full/checkpoint-4", "trainer_state.json"), ("shards", "model.safetensors.index.json"),
    ("adapter", "adapter_config.json")])
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_strange_values_in_a_document_crash_nothing(tmp_path_factory, source, document, data):
    top = tmp_path_factory.getbasetemp() / f"strange-{document}"
    path = top / Path(source).name
    if not path.exists():
        shutil.copytree(written() / source, path)
    content = json.loads((written() / source / document).read_text())
    for key in data.draw(st.lists(st.sampled_from(sorted(content)), min_size=1, max_size=3)):
        content[key] = data.draw(JSON)
    (path / document).write_text(json.dumps(content))
    for claim in claims_below(top):
        facts = examine(claim, format_named(claim.format))
        assert facts.evidence and all(isinstance(v, float) for v in facts.metrics.values())
    list(HfTrainer().needed(list_folder(top)))


def mutate(path, data, others):
    """One file cut, damaged, replaced by noise or by another file, or gone."""
    whole = path.read_bytes()
    kind = data.draw(st.sampled_from(["cut", "damaged", "noise", "swapped", "gone"]))
    if kind == "gone":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(whole[:data.draw(st.integers(0, len(whole)))])
    elif kind == "damaged":
        path.write_bytes(damaged(whole, random.Random(data.draw(st.integers(0, 2**32)))))
    elif kind == "noise":
        path.write_bytes(data.draw(st.binary(max_size=200)))
    else:
        other = data.draw(st.sampled_from(others))
        path.write_bytes(other.read_bytes() if other.exists() else b"")


@pytest.mark.parametrize("source", ["full/checkpoint-4", "sharded/checkpoint-4", "lora/checkpoint-4", "shards", "adapter"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_files_crash_nothing(tmp_path_factory, source, data):
    top = tmp_path_factory.mktemp("mutated")
    path = Path(shutil.copytree(written() / source, top / Path(source).name))
    names = sorted(p.name for p in path.iterdir())
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)):
        mutate(path / name, data, [path / other for other in names])
    for claim in itertools.islice(claims_below(top), 50):
        facts = examine(claim, format_named(claim.format))
        assert facts.evidence
    shutil.rmtree(top)
