"""What a name says, and that no name can say too much."""

import math
import re
import time
from pathlib import PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckptwatch.core.naming import NameFacts, parse_name, run_directory, run_name, series_of, suffix_of, whole_name
from ckptwatch.model import Role

R, F, L, B = Role.REGULAR, Role.FINAL, Role.LAST, Role.BEST

# name, step, epoch, metrics, role
NAMES = [
    ("0002000.pt", 2000, None, {}, R),
    ("0002000", 2000, None, {}, R),
    ("0002000_ema.pt", 2000, None, {}, R),
    ("step_200.pt", 200, None, {}, R),
    ("step-200", 200, None, {}, R),
    ("step=200", 200, None, {}, R),
    ("step200", 200, None, {}, R),
    ("STEP_200.PT", 200, None, {}, R),
    ("step_0.pt", 0, None, {}, R),
    ("checkpoint-100", 100, None, {}, R),
    ("checkpoint_100", 100, None, {}, R),
    ("ckpt_200.pt", 200, None, {}, R),
    ("ckpt200.pt", 200, None, {}, R),
    ("model_0004999.pth", 4999, None, {}, R),
    ("iter_2000.pth", 2000, None, {}, R),
    ("iter_0002000", 2000, None, {}, R),
    ("epoch_5.pth", None, 5, {}, R),
    ("epoch12.pt", None, 12, {}, R),
    ("epoch=2-step=500.ckpt", 500, 2, {}, R),
    ("epoch=2-step=500-val_loss=0.32.ckpt", 500, 2, {"val_loss": 0.32}, R),
    ("epoch=2-step=500-val_loss=0.32-v1.ckpt", 500, 2, {"val_loss": 0.32}, R),
    ("epoch=2-step=500-val_loss=0.32", 500, 2, {"val_loss": 0.32}, R),  # a directory: .32 is no suffix
    ("epoch=1-val_loss=-1.2e-03.ckpt", None, 1, {"val_loss": -1.2e-3}, R),
    ("val_loss=0.3-epoch=1.ckpt", None, 1, {"val_loss": 0.3}, R),
    ("epoch=1-val_loss=0.3-val_acc=0.9.ckpt", None, 1, {"val_loss": 0.3, "val_acc": 0.9}, R),
    ("siglip_mlp_anyres-e2p_quic360_epoch05_loss0.4201.ckpt", None, 5, {"loss": 0.4201}, R),
    ("best_AP_epoch_150.pth", None, 150, {}, B),
    ("best_coco_AP_epoch_150.pth", None, 150, {}, B),
    ("network-snapshot-002048.pkl", 2048, None, {}, R),
    ("network-snapshot-0002048-0.100.pkl", 2048, None, {}, R),
    ("training-state-0002048.pt", 2048, None, {}, R),
    ("global_step300", 300, None, {}, R),
    ("ep3-ba1200", 1200, 3, {}, R),
    ("ep3-ba1200-rank0.pt", 1200, 3, {}, R),
    ("epoch_2_train_step_10_eval_step_3_val_loss=0.3", 10, 2, {"val_loss": 0.3}, R),
    ("model_epoch_3_step_900.safetensors", 900, 3, {}, R),
    ("mylora-step00000500.safetensors", 500, None, {}, R),
    ("best_model_9_val_acc=0.77.pt", 9, None, {"val_acc": 0.77}, B),
    ("checkpoint-12.pth.tar", None, 12, {}, R),
    ("recovery-3-1200.pth.tar", None, 3, {}, R),
    ("05-0.32.keras", None, 5, {}, R),  # its metric has no name
    ("weights.05-0.32.weights.h5", None, 5, {}, R),
    ("weights-05.weights.h5", None, 5, {}, R),  # Keras counts epochs
    ("w_epoch_05.weights.json", None, 5, {}, R),
    ("model010000.pt", 10000, None, {}, R),
    ("ema_0.9999_010000.pt", 10000, None, {}, R),
    ("training_checkpoint_9.pt", 9, None, {}, R),
    ("epoch=1-val/acc=0.688.ckpt", None, 1, {"val/acc": 0.688}, R),
    ("final.pt", None, None, {}, F),
    ("model_final.pth", None, None, {}, F),
    ("checkpoint-final", None, None, {}, F),
    ("final_model.safetensors", None, None, {}, F),
    ("last.ckpt", None, None, {}, L),
    ("latest.pt", None, None, {}, L),
    ("last-v1.ckpt", None, None, {}, L),
    ("latest-rank0.pt", None, None, {}, L),
    ("last-epoch=2-step=500.ckpt", 500, 2, {}, L),
    ("name--val_loss=0.3-epoch=1-last.ckpt", None, 1, {"val_loss": 0.3}, L),
    ("best.pt", None, None, {}, B),
    ("model_best.pth", None, None, {}, B),
    ("model_best.pth.tar", None, None, {}, B),
    ("best_val_loss.pt", None, None, {}, B),
    ("last_try_step_9.pt", 9, None, {}, R),  # the name of an experiment, not a rolling file
]

UNKNOWN = [
    "model.safetensors", "pytorch_model.bin", "checkpoint.pt", "model-00001-of-00003.safetensors", "resnet-50.pth",
    "gpt-2.bin", "2024-01-15.pt", "mp_rank_00_model_states.pt", "rng_state_0.pth", "step_200_optimizer.pt", "release",
    "tmp-checkpoint-100", "tmp_step_100.pt", "step100-tmp", "100.orbax-checkpoint-tmp", ".step_200.pt", ".tmpAbC123",
    "step_٣.pt", "20240115123059999999.pt", "9" * 19, "9" * 200, "", ".", "..", "step_", "step_200.pt\n", "a/step_200",
]


@pytest.mark.parametrize(("name", "step", "epoch", "metrics", "role"), NAMES, ids=[n[0] for n in NAMES])
def test_the_names_that_trainers_write_are_read(name, step, epoch, metrics, role):
    assert parse_name(name) == NameFacts(step=step, epoch=epoch, metrics=metrics, role=role)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_wholly_understood_is_not_guessed(name):
    assert parse_name(name) == NameFacts()


def test_a_logged_nan_is_read_as_nan_not_as_a_number():
    facts = parse_name("epoch=3-val_loss=nan.ckpt")
    assert facts.epoch == 3
    assert math.isnan(facts.metrics["val_loss"])


def test_a_dash_before_a_value_is_not_taken_for_either_sign():
    assert parse_name("epoch05_loss-0.42.pt") == NameFacts(epoch=5)


@given(st.text(max_size=400))
@example("epoch=" + "9" * 5000)
@example("\ud800step_1.pt")
def test_no_name_raises(name):
    facts = parse_name(name)
    assert facts.step is None or 0 <= facts.step < 2**63
    assert suffix_of(name) == "" or name.endswith(suffix_of(name))


FRAGMENTS = ["step", "epoch", "=", "-", "_", ".", "1", "0.5", "loss", "val_loss", "a", "best", "e", "-v1", ".ckpt", "nan",
             "9" * 18, "model", "checkpoint"]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=60).map("".join))
def test_names_made_of_familiar_pieces_never_raise(name):
    parse_name(name)


@given(st.integers(0, 10**18 - 1), st.integers(0, 10**6))
def test_every_step_and_epoch_comes_back(step, epoch):
    assert parse_name(f"epoch={epoch}-step={step}.ckpt") == NameFacts(step=step, epoch=epoch)
    assert parse_name(f"{step:07d}.pt") == NameFacts(step=step)


@given(st.floats(-1e6, 1e6))
def test_every_metric_value_comes_back(value):
    assert parse_name(f"epoch=1-val_loss={value!r}.ckpt").metrics == {"val_loss": value}


@pytest.mark.parametrize(
    "piece", ["step1-", "a=1-", "-", "_", "=", "loss0.1_", "best_", "1-", "9", "a", ".", ".pt", "epoch=1-a=1", "1e-", "-v1"]
)
@pytest.mark.parametrize("length", [255, 4096])
@pytest.mark.parametrize("end", ["", "!", "\n", ".pt"])
def test_a_hostile_name_takes_no_time(piece, length, end):
    name = (piece * length)[: length - len(end)] + end
    started = time.perf_counter()
    parse_name(name)
    suffix_of(name)
    assert time.perf_counter() - started < 0.1  # a millisecond where nothing else runs


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.pt", ".pt"), ("model_best.pth.tar", ".pth.tar"), ("val_loss=0.32", ""), ("checkpoint-100", ""),
     ("epoch=2-val_loss=0.32.ckpt", ".ckpt"), ("0002000.pt", ".pt"), ("m.weights.h5", ".weights.h5"), ("", "")],
)
def test_the_suffix_is_no_part_of_a_number(name, suffix):
    assert suffix_of(name) == suffix


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("demo/checkpoints", "demo"), ("demo", "demo"), (".", "."), ("", "."), ("checkpoints", "."),
        ("checkpoints/weights", "."), ("a/checkpoints/weights", "a"), ("checkpoints/demo", "checkpoints/demo"),
        ("logs/version_0/checkpoints", "logs/version_0"), ("a/saved_models", "a"), ("a/Checkpoints", "a"),
    ],
)
def test_a_run_is_named_by_its_path_without_conventional_directories(directory, name):
    assert run_name(PurePosixPath(directory)) == name


OWN = tuple(re.compile(p, re.ASCII) for p in (
    r"(?P<step>\d+)k_(?P<fid>[\d.]+)\.pt", r"stage(?P<epoch>\d+)_(?P<role>best|last)\.bin", r"odd_(?P<step>\w+)\.pt"))


@pytest.mark.parametrize(("name", "expected"), [
    ("20k_7.5.pt", NameFacts(step=20, metrics={"fid": 7.5})),
    ("stage3_best.bin", NameFacts(epoch=3, role=Role.BEST)),
    ("odd_one.pt", NameFacts()),  # the group holds no number: nothing is known, and ours are not asked any more
    ("20k_7.5.pt.tmp", NameFacts()),
    ("step_5.pt", NameFacts(step=5)),
])
def test_a_users_patterns_come_first_and_match_whole_names(name, expected):
    assert parse_name(name, OWN) == expected


@pytest.mark.parametrize(("path", "whole", "run"), [
    ("r/epoch=1-val/acc=0.688.ckpt", "epoch=1-val/acc=0.688.ckpt", "r"),
    ("r/checkpoints/epoch=1-step=5-val/acc=0.688.ckpt", "epoch=1-step=5-val/acc=0.688.ckpt", "r"),
    ("r/epoch=1.ckpt", "epoch=1.ckpt", "r"),
    ("lr=0.1-val/acc=0.5.ckpt", "acc=0.5.ckpt", "lr=0.1-val"),  # an experiment's directory, not half a name
])
def test_a_name_cut_in_two_by_a_metric_is_put_together_again(path, whole, run):
    assert whole_name(PurePosixPath(path)) == whole
    assert run_name(run_directory(PurePosixPath(path), whole=False)) == run


@pytest.mark.parametrize(("path", "run"), [
    ("exp/checkpoint-500", "exp"), ("exp/checkpoints/step_5", "exp"), ("exp/final_model", "exp"),
    ("my-pipeline", "my-pipeline"), ("exp/merged", "exp/merged"),
])
def test_a_directory_that_is_a_checkpoint_belongs_to_a_run(path, run):
    assert run_name(run_directory(PurePosixPath(path), whole=True)) == run


@pytest.mark.parametrize(("name", "series"), [
    ("fold0_epoch_5.pth", "fold0"), ("mae_epoch_800.pth", "mae"), ("epoch=2-step=500-val_loss=0.32.ckpt", ""),
    ("val_loss=0.3-epoch=1.ckpt", ""), ("siglip_loss0.42_epoch05.ckpt", "siglip"), ("best_model_9_val_acc=0.77.pt", ""),
    ("model_0004999.pth", ""), ("checkpoint-100", ""), ("best_AP_epoch_150.pth", "ap"), ("notes", ""),
])
def test_several_models_in_one_directory_are_told_apart(name, series):
    assert series_of(name) == series
