"""Reading the tensors of a variant, and proving them finite, without trusting the file."""

import argparse
import os
import pickle
from collections import OrderedDict

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


def test_nan_checkpoint_fails_before_its_sampler_starts(tmp_path):
    job = make_job(tmp_path)
    torch.save({"model": state(NAN)}, job.checkpoint)
    error = failure(job)
    assert error.kind == "not_finite" and "first: model.layer0.weight" in str(error)
