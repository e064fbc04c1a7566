"""Reading the tensors of a variant, and proving them finite, without trusting the file."""

import argparse
import gc
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate import weights as weights_module
from ckptwatch.evaluate.weights import load_variant, scan_finite
from tests.parity.evaluation_kit import failure, make_job

NAN = float("nan")


def state(*values):
    return OrderedDict((f"layer{i}.weight", torch.tensor([1.0, v])) for i, v in enumerate(values))


@pytest.fixture
def training_checkpoint(tmp_path):
    """As trainers write them: weights, two EMA copies, optimizer, and things that are no tensors."""
    path = tmp_path / "ckpt.pt"
    torch.save({
        "model": state(1, 2), "model_ema1": state(3, 4), "model_ema2": state(5, NAN), "step": 7,
        "optimizer": {"state": {0: {"exp_avg": torch.tensor([NAN])}}}, "args": argparse.Namespace(lr=1e-4),
    }, path)
    return path


def error_of(call, *args, **kwargs) -> EvaluationError:
    with pytest.raises(EvaluationError) as caught:
        call(*args, **kwargs)
    return caught.value


def test_only_the_variant_is_given(training_checkpoint):
    found = load_variant(training_checkpoint, "model_ema1")
    assert list(found) == ["layer0.weight", "layer1.weight"] and found["layer1.weight"].tolist() == [1, 4]


def test_nan_in_another_variant_does_not_matter(training_checkpoint):
    assert scan_finite(training_checkpoint, "model_ema1") == 2


def test_nan_weights_are_named_and_not_tried_again(training_checkpoint):
    error = error_of(scan_finite, training_checkpoint, "model_ema2")
    assert error.kind == "not_finite" and not error.retryable
    assert "weights are not finite: 1 of 2 tensors (first: layer1.weight)" in str(error)


def test_checkpoint_as_a_whole_means_its_weights_not_its_optimizer(training_checkpoint):
    error = error_of(scan_finite, training_checkpoint, "")
    assert "1 of 6 tensors (first: model_ema2.layer1.weight)" in str(error)


def test_missing_variant_names_those_there_are(training_checkpoint):
    for call in (scan_finite, load_variant):
        error = error_of(call, training_checkpoint, "ema")
        assert error.kind == "checkpoint" and "'ema'" in str(error) and not error.retryable
        assert "model, model_ema1, model_ema2" in str(error)


def test_objects_of_unknown_classes_do_not_hide_the_weights(training_checkpoint):
    # argparse.Namespace is refused by weights_only; the file is read all the same, and the object never made.
    with pytest.raises(pickle.UnpicklingError):
        torch.load(training_checkpoint, weights_only=True)
    assert "layer0.weight" in load_variant(training_checkpoint, "model")


class Bomb:
    def __reduce__(self):
        return os.mkdir, (self.place,)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    bomb = Bomb()
    bomb.place = str(tmp_path / "executed")
    torch.save({"model": state(1), "extra": bomb}, tmp_path / "bomb.pt")
    assert scan_finite(tmp_path / "bomb.pt", "") == 1
    assert not (tmp_path / "executed").exists()
    load_variant(tmp_path / "bomb.pt", "model", trusted=True)
    assert (tmp_path / "executed").exists()  # the bomb is a real one


def test_whole_modules_are_read_where_the_root_is_trusted(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "m.pt")
    assert list(load_variant(tmp_path / "m.pt", "model", trusted=True)) == ["weight", "bias"]
    assert error_of(load_variant, tmp_path / "m.pt", "model").kind == "checkpoint"


def test_safetensors_variants_are_prefixes(tmp_path):
    save_file({"ema.a": torch.ones(2), "ema.b": torch.tensor([NAN]), "model.a": torch.zeros(2)}, tmp_path / "m.safetensors")
    assert list(load_variant(tmp_path / "m.safetensors", "model")) == ["a"]
    assert scan_finite(tmp_path / "m.safetensors", "model") == 1
    assert "1 of 2 tensors (first: b)" in str(error_of(scan_finite, tmp_path / "m.safetensors", "ema"))
    assert "ema, model" in str(error_of(load_variant, tmp_path / "m.safetensors", "em"))


def test_sharded_safetensors_directory(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.tensor([float("inf")])}, tmp_path / "model-00002-of-00002.safetensors")
    assert "1 of 2 tensors (first: b)" in str(error_of(scan_finite, tmp_path, ""))


@pytest.mark.parametrize("value", [NAN, float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_every_float_type_is_looked_at(tmp_path, value, dtype):
    torch.save({"w": torch.tensor([1.0, value]).to(dtype)}, tmp_path / "w.pt")
    assert error_of(scan_finite, tmp_path / "w.pt", "").kind == "not_finite"


def test_float8_sparse_and_integer_tensors_are_no_trouble(tmp_path):
    torch.save({
        "f8": torch.ones(3).to(torch.float8_e4m3fn), "ids": torch.arange(3), "sparse": torch.eye(3).to_sparse(),
        "empty": torch.empty(0), "scalar": torch.tensor(2.0), "shared": torch.ones(4, 4).t(),
    }, tmp_path / "w.pt")
    assert scan_finite(tmp_path / "w.pt", "") == 6
    torch.save({"f8": torch.tensor([NAN]).to(torch.float8_e4m3fn)}, tmp_path / "w.pt")
    assert error_of(scan_finite, tmp_path / "w.pt", "").kind == "not_finite"


def test_attention_masks_of_minus_infinity_are_finite(tmp_path):
    mask = torch.full((5, 5), float("-inf")).triu(1)
    torch.save({"attn.mask": mask, "w": torch.ones(2)}, tmp_path / "w.pt")
    assert scan_finite(tmp_path / "w.pt", "") == 2


def test_large_tensors_are_looked_at_to_their_end(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_module, "CHUNK", 100)
    big = torch.zeros(12_345)
    big[-1] = NAN
    torch.save({"w": big}, tmp_path / "w.pt")
    assert error_of(scan_finite, tmp_path / "w.pt", "").kind == "not_finite"


def test_other_formats_are_left_alone(tmp_path):
    (tmp_path / "notes.pt").write_text("no checkpoint at all")
    (tmp_path / "directory").mkdir()
    assert scan_finite(tmp_path / "notes.pt", "") is None
    assert scan_finite(tmp_path / "directory", "") is None


def test_older_files_without_zip_can_be_loaded(tmp_path):
    torch.save({"model": state(1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert "layer0.weight" in load_variant(tmp_path / "old.pt", "model")


def test_containers_that_contain_themselves_are_no_trouble(tmp_path):
    tree = {"w": torch.ones(1)}
    tree["self"] = tree
    deep = [torch.ones(1)]
    for _ in range(200):
        deep = [deep]
    torch.save({"tree": tree, "deep": deep}, tmp_path / "w.pt")
    assert scan_finite(tmp_path / "w.pt", "") == 1


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_files_are_damaged_checkpoints(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    save_file(dict(state(1, 2)), path) if suffix == ".safetensors" else torch.save(state(1, 2), path)
    path.write_bytes(path.read_bytes()[:-20])
    error = error_of(load_variant, path, "")
    assert error.kind == "checkpoint" and error.path == path and error.hint


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_give_errors_not_crashes(tmp_path, suffix, data):
    path = tmp_path / f"w{suffix}"
    tensors = state(1, 2)
    save_file(dict(tensors), path) if suffix == ".safetensors" else torch.save({"model": tensors}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        scan_finite(path, "model" if suffix == ".pt" else "")
    except EvaluationError as error:
        assert error.kind in ("checkpoint", "not_finite")


# ---- directories ----


def model_states(directory, ranks=1, **content):
    directory.mkdir(parents=True)
    for rank in range(ranks):
        saved = {"module": state(1, 2), "ema": state(3, 4), "optimizer": None, "args": argparse.Namespace(lr=1), **content}
        torch.save(saved, directory / f"mp_rank_{rank:02d}_model_states.pt")
    torch.save({"optimizer_state_dict": {"fp32": torch.tensor([NAN])}},
               directory / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    return directory


def test_deepspeed_directories_under_a_tag_like_a_files_name(tmp_path):
    """As HunyuanDiT saves them."""
    top = model_states(tmp_path / "0002000.pt")
    assert load_variant(top, "ema")["layer1.weight"].tolist() == [1, 4]
    assert load_variant(top, "module")["layer1.weight"].tolist() == [1, 2]
    assert scan_finite(top, "ema") == 2 and scan_finite(top, "") == 4  # the optimizer's NaN is none of ours
    assert "there are: module, ema" in str(error_of(load_variant, top, "model_ema1"))


def test_nan_in_a_deepspeed_directory_is_found(tmp_path):
    top = model_states(tmp_path / "global_step5", ema=state(NAN))
    assert "1 of 1 tensors (first: layer0.weight)" in str(error_of(scan_finite, top, "ema"))
    assert scan_finite(top, "module") == 2


def test_weights_split_over_model_parallel_ranks_are_looked_at_but_not_put_together(tmp_path):
    top = model_states(tmp_path / "global_step5", ranks=3)
    error = error_of(load_variant, top, "module")
    assert error.kind == "checkpoint" and not error.retryable and "split over 3 model-parallel ranks" in str(error)
    assert scan_finite(top, "module") == 6


def test_the_third_stage_of_zero_leaves_no_weights_to_read(tmp_path):
    top = model_states(tmp_path / "global_step5")
    (top / "mp_rank_00_model_states.pt").rename(top / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    error = error_of(load_variant, top, "module")
    assert error.kind == "checkpoint" and not error.retryable and "files of the optimizer" in str(error)
    assert scan_finite(top, "module") is None  # and a sampler that knows DeepSpeed may go on


def sharded_bin(directory, **shards):
    for name, tensors in shards.items():
        torch.save(tensors, directory / f"pytorch_model-{name}.bin")
    places = {key: f"pytorch_model-{name}.bin" for name, tensors in shards.items() for key in tensors}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


def test_sharded_bin_directory_is_read_by_its_index(tmp_path):
    first, second = {"unet.a": torch.ones(2), "ema.a": torch.zeros(2)}, {"ema.b": torch.tensor([NAN])}
    sharded_bin(tmp_path, **{"00001-of-00002": first, "00002-of-00002": second})
    torch.save({"x": torch.tensor([NAN])}, tmp_path / "pytorch_model-00003-of-00003.bin")  # of an older save
    torch.save(argparse.Namespace(lr=1), tmp_path / "training_args.bin")
    assert sorted(load_variant(tmp_path, "")) == ["ema.a", "ema.b", "unet.a"]
    assert sorted(load_variant(tmp_path, "ema")) == ["a", "b"]
    assert scan_finite(tmp_path, "unet") == 1
    assert "1 of 3 tensors (first: ema.b)" in str(error_of(scan_finite, tmp_path, ""))
    (tmp_path / "pytorch_model-00002-of-00002.bin").write_bytes(b"")
    assert list(load_variant(tmp_path, "unet")) == ["a"]  # its shard is the only one that is opened


def test_a_shard_that_is_missing_is_named(tmp_path):
    sharded_bin(tmp_path, **{"00001-of-00002": {"a": torch.ones(2)}, "00002-of-00002": {"b": torch.ones(2)}})
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    for call in (load_variant, scan_finite):
        error = error_of(call, tmp_path, "")
        assert error.kind == "checkpoint" and "pytorch_model-00002-of-00002.bin" in str(error)


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "other.txt", 7, None])
def test_an_index_leads_nowhere_else(tmp_path, name):
    top = tmp_path / "model"
    top.mkdir()
    torch.save({"a": torch.ones(1)}, tmp_path / "outside.bin")
    (top / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    error = error_of(load_variant, top, "")
    assert error.kind == "checkpoint" and "no file of weights beside it" in str(error)


def test_single_bin_directory_and_safetensors_before_bin(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "diffusion_pytorch_model.bin")
    torch.save({"step": torch.tensor(NAN)}, tmp_path / "optimizer.bin")
    assert load_variant(tmp_path, "")["a"].tolist() == [1, 1] and scan_finite(tmp_path, "") == 1
    save_file({"a": torch.zeros(2)}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert load_variant(tmp_path, "")["a"].tolist() == [0, 0]


# ---- only the variant is read ----


class Touched:
    """How much of a file this process read: by read(2), and by touching pages of it that it has mapped."""

    def __init__(self, path):
        self.path = path
        self.before = self._called()

    def bytes(self) -> int:
        with open("/proc/self/smaps") as smaps:  # noqa: PTH123 - no real file
            lines = smaps.read().splitlines()
        mapped, ours = 0, False
        for line in lines:
            if not line.split()[0].endswith(":"):
                ours = line.endswith(str(self.path))
            elif ours and line.startswith("Rss:"):
                mapped += int(line.split()[1]) * 1024
        return mapped + self._called() - self.before

    def _called(self) -> int:
        return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


MIB = 1 << 20


@pytest.mark.parametrize("layout", ["zip", "zip with objects", "safetensors", "deepspeed", "bin"])
def test_only_the_tensors_of_the_variant_are_read(tmp_path, layout, monkeypatch):
    big = {name: {"w": torch.randn(8 * MIB // 4)} for name in ("model", "ema1", "ema2", "optimizer")}
    top = file = tmp_path / "step_1.pt"
    if layout == "safetensors":
        top = file = tmp_path / "step_1.safetensors"
        save_file({f"{name}.w": tensors["w"] for name, tensors in big.items()}, file)
    elif layout in ("deepspeed", "bin"):
        file = top / ("mp_rank_00_model_states.pt" if layout == "deepspeed" else "pytorch_model.bin")
        top.mkdir()
        torch.save(big, file)
    else:
        torch.save({**big, **({"args": argparse.Namespace()} if "objects" in layout else {})}, file)
    whole = file.stat().st_size
    gc.collect()
    touched = Touched(file)
    found = load_variant(top, "ema1")
    assert touched.bytes() < 3 * MIB  # what is mapped is not yet read
    assert torch.equal(found["w"], big["ema1"]["w"])
    assert 8 * MIB <= touched.bytes() < 12 * MIB < whole
    del found
    gc.collect()
    touched, read = Touched(file), []
    is_finite = weights_module.is_finite
    monkeypatch.setattr(weights_module, "is_finite", lambda tensor: (is_finite(tensor), read.append(touched.bytes()))[0])
    assert scan_finite(top, "ema2") == 1 and 8 * MIB <= read[0] < 12 * MIB


# ---- pickles of whole networks ----


def network_pickle(path, **more):
    """As EDM and StyleGAN write them."""
    path.write_bytes(pickle.dumps({"ema": torch.nn.Linear(2, 2), "loss_fn": None, **more}))
    return path


def test_network_pickles_are_opened_only_where_the_root_is_trusted(tmp_path):
    bomb = Bomb()
    bomb.place = str(tmp_path / "executed")
    path = network_pickle(tmp_path / "network-snapshot-002048.pkl", extra=bomb)
    error = error_of(load_variant, path, "ema")
    assert error.kind == "checkpoint" and not error.retryable
    assert "only unpickling can read" in str(error) and "trusted: true" in error.hint and "watch" in error.hint
    assert scan_finite(path, "ema") is None and scan_finite(path, "ema", trusted=True) is None
    assert not (tmp_path / "executed").exists()
    assert sorted(load_variant(path, "ema", trusted=True)) == ["bias", "weight"]
    assert (tmp_path / "executed").exists()


def test_each_average_of_edm2_is_the_ema_of_its_own_file(tmp_path):
    path = network_pickle(tmp_path / "network-snapshot-0002048-0.100.pkl")
    assert sorted(load_variant(path, "0.100", trusted=True)) == ["bias", "weight"]
    assert "there are: ema" in str(error_of(load_variant, path, "0.050", trusted=True))


def test_a_network_pickle_whose_code_is_not_here_says_what_it_needs(tmp_path):
    (tmp_path / "n.pkl").write_bytes(b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n.")
    error = error_of(load_variant, tmp_path / "n.pkl", "", trusted=True)
    assert "torch_utils" in str(error) and "PYTHONPATH" in error.hint and not error.retryable


@pytest.mark.parametrize("protocol", [2, 4])
def test_older_files_of_torch_are_no_network_pickles(tmp_path, protocol):
    torch.save({"model": state(1)}, tmp_path / "n.pkl", _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    assert "layer0.weight" in load_variant(tmp_path / "n.pkl", "model", trusted=protocol != 2)


def test_nan_checkpoint_fails_before_its_sampler_starts(tmp_path):
    job = make_job(tmp_path)
    torch.save({"model": state(NAN)}, job.checkpoint)
    error = failure(job)
    assert error.kind == "not_finite" and "first: model.layer0.weight" in str(error)
