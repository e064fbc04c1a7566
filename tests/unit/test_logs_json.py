"""Logs of JSON objects: of any trainer, of MMEngine and MMCV, of StyleGAN."""

import json
import math
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptwatch.logs.json_lines import JsonLines
from ckptwatch.logs.mmengine import MMEngineJson
from ckptwatch.logs.rows import MOST_NAMES
from ckptwatch.logs.stylegan import StyleGan
from ckptwatch.model import Logged


def feed(*records, dialect=None, logged=None):
    text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records)
    return (dialect or JsonLines()).reader(logged or Logged()).feed(text.encode("utf-8", "surrogatepass"))


def one(record, **more):
    fed = feed(record, **more)
    assert fed.bad == 0, fed.trouble
    [row] = fed.rows
    return row


# ---- any trainer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("record", "step", "epoch", "values"), [
    ({"step": 5, "loss": 0.5}, 5, None, {"loss": 0.5}),
    ({"global_step": 5, "step": 2, "loss": 1}, 5, None, {"loss": 1.0}),
    ({"_step": 99, "trainer/global_step": 5, "_runtime": 3.5, "loss": 1}, 5, None, {"_runtime": 3.5, "loss": 1.0}),  # wandb
    ({"ema/step": 3, "iter": 5, "loss": 1}, 5, None, {"loss": 1.0}),
    ({"_step": 99, "loss": 1}, 99, None, {"loss": 1.0}),
    ({"iteration": 5, "epoch": 0.25, "loss": 0.0}, 5, 0.25, {"loss": 0.0}),  # detectron2; 0.0 is a value
    ({"Epoch": 3, "train_loss": 0.5, "n_parameters": 12}, None, 3, {"train_loss": 0.5, "n_parameters": 12.0}),  # MAE
    ({"train": {"loss": 0.5, "step": 7}, "val": {"coco": {"AP": 0.7}, "step": 3}}, 7, None,
     {"train/loss": 0.5, "val/coco/AP": 0.7, "val/step": 3.0}),
    ({"step": 5.0, "loss": 1}, 5, None, {"loss": 1.0}),
    ({"step": "5", "loss": 1}, 5, None, {"loss": 1.0}),
    ({"step": None, "epoch": 3, "loss": 1}, None, 3, {"loss": 1.0}),
    ({"step": 5, "loss": 0.5, "done": True, "name": "x", "list": [1], "none": None, "a": {"b": {"c": {"d": 1}}}}, 5, None,
     {"loss": 0.5}),
    ({"step": 5, "loss": "-Infinity", "time": 12.5}, 5, None, {"loss": -math.inf, "time": 12.5}),
    ('{"step": 5, "loss": Infinity}', 5, None, {"loss": math.inf}),
    ('\ufeff{"step": 5, "loss": 1}\r', 5, None, {"loss": 1.0}),
    ('{"step": 5, "loss": 1e999, "big": 1' + "0" * 400 + "}", 5, None, {"loss": math.inf}),
])
def test_an_object_with_a_count_is_a_row(record, step, epoch, values):
    row = one(record)
    assert (row.step, row.epoch, dict(row.values)) == (step, epoch, values)


@pytest.mark.parametrize("value", [math.nan, "nan", "NaN"])
def test_not_a_number_is_kept(value):
    assert math.isnan(one({"step": 5, "loss": value}).values["loss"])


@pytest.mark.parametrize(("record", "at"), [
    ({"timestamp": 1700000000.5}, 1700000000.5),
    ({"timestamp": 1700000000500}, 1700000000.5),
    ({"_timestamp": "2024-05-03T12:00:00+00:00"}, 1714737600.0),
    ({"time": 1700000000}, 1700000000.0),
    ({"time": 12.5}, None),
    ({"timestamp": "yesterday"}, None),
])
def test_a_time_is_the_rows(record, at):
    assert one({"step": 5, "loss": 1, **record}).at == at


def test_columns_that_a_user_names_count_and_no_others():
    row = one({"step": 5, "n": 7, "round": 2, "epoch": 9, "loss": 1}, logged=Logged(step="n", epoch="round"))
    assert (row.step, row.epoch, dict(row.values)) == (7, 2, {"loss": 1.0})
    row = one({"step": 5, "loss": 1}, logged=Logged(epoch="step"))
    assert (row.step, row.epoch) == (None, 5)


@pytest.mark.parametrize("record", [
    {"config": {"lr": 0.1}}, {"loss": 0.5}, {"final AP": 0.7}, {"step": 5}, {"step": 5, "text": "x"}, {}, "", "   ",
])
def test_what_counts_or_measures_nothing_is_passed_over(record):
    fed = feed(record)
    assert (list(fed.rows), fed.bad) == ([], 0)


@pytest.mark.parametrize("record", [
    "garbage", "[1, 2]", "5", "\x00\x01\x7f", '{"step": 5, "loss": 0.5', "[" * 100_000, '{"a":' * 5000,
    {"step": "five", "loss": 1}, {"step": -1, "loss": 1}, {"step": 2.5, "loss": 1}, {"epoch": math.nan, "loss": 1},
    {"step": [5], "loss": 1}, {"step": True, "loss": 1}, '{"step": 1' + "0" * 5000 + ', "loss": 1}',
])
def test_what_cannot_be_read_is_counted_and_said(record):
    fed = feed(record, {"step": 6, "loss": 0.5})
    assert [row.step for row in fed.rows] == [6] and fed.bad == 1
    assert fed.trouble and fed.trouble.isprintable() and len(fed.trouble) < 200


def test_names_that_cannot_be_shown_are_left_out_and_counted():
    fed = feed({"step": 5, "loss": 1, "lo\nss": 2, "x" * 200: 3, "": 4, "\ud800": 5})
    assert [dict(row.values) for row in fed.rows] == [{"loss": 1.0}] and fed.bad == 1


def test_a_row_has_not_more_names_than_are_good_for_it():
    fed = feed({"step": 5, **{f"n{i}": i for i in range(3000)}})
    assert [len(row.values) for row in fed.rows] == [MOST_NAMES] and fed.bad == 1


def test_a_step_that_starts_anew_with_each_epoch_gives_way_to_the_epoch_also_after_a_restart():
    reader = JsonLines().reader(Logged())
    records = [{"epoch": e, "step": s, "loss": 1} for e in (0, 1, 2) for s in (10, 20)]
    found = []
    for record in records:
        found += reader.feed((json.dumps(record) + "\n").encode()).rows
        reader = JsonLines().reader(Logged(), json.loads(json.dumps(reader.state())))
    assert [(r.step, r.epoch) for r in found] == [(10, 0), (20, 0), (None, 1), (None, 1), (None, 2), (None, 2)]


def test_a_run_begun_anew_keeps_its_steps():
    fed = feed(*[{"epoch": e, "step": s, "loss": 1} for e, s in ((0, 10), (1, 20), (0, 10), (1, 20))])
    assert [r.step for r in fed.rows] == [10, 20, 10, 20]


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4)))
def test_no_document_is_a_fault(content):
    for dialect in (JsonLines(), MMEngineJson(), StyleGan()):
        for record in (content, {"step": content, "loss": content}, {"mode": content, "iter": 1, "epoch": content, "x": 1},
                       {"results": content, "snapshot_pkl": "network-snapshot-000001.pkl"}, {"iter": content, "x": 0.5}):
            fed = feed(json.dumps(record), dialect=dialect)
            assert len(fed.rows) <= 1 and fed.bad <= 1


@pytest.mark.parametrize(("name", "head", "claimed"), [
    ("metrics.jsonl", '{"step": 1, "loss": 0.5}\n', True),
    ("log.txt", '{"train_loss": 0.5, "epoch": 0}\n', True),
    ("log.txt", "Namespace(lr=0.1)\n", False),
    ("metrics.jsonl", '{"args": 1}\n{"step": 1, "loss": 0.5}\n', True),
    ("metrics.jsonl", '{"step": 1, "lo', False),                   # not yet
    ("metrics.jsonl", '{"step": 1, "loss": 0.5, "x": "' + "x" * 5000, True),
    ("prompts.jsonl", '{"prompt": "a", "seed": 1}\n', False),
    ("prompts.jsonl", '{"prompt": "' + "x" * 5000, False),
    ("model.bin", '{"step": 1, "loss": 0.5}\n', False),
    ("metrics.jsonl", "", False),
])
def test_a_file_is_claimed_by_its_first_objects(name, head, claimed):
    assert JsonLines().claims(PurePath(name), head.encode()[:4096]) is claimed


# ---- MMEngine -------------------------------------------------------------------------------------------------------


def counts(*records, dialect=None):
    fed = feed(*records, dialect=dialect or MMEngineJson())
    assert fed.bad == 0, fed.trouble
    return [(row.step, row.epoch) for row in fed.rows]


def test_validation_rows_of_a_training_by_epochs_have_the_epoch_for_a_step():
    train = [{"lr": 0.1, "loss": 0.5, "epoch": e, "iter": i, "step": i} for e, i in ((1, 50), (1, 100), (2, 150), (2, 200))]
    val = [{"coco/AP": 0.1, "data_time": 0.1, "time": 0.2, "step": 1}, {"coco/AP": 0.2, "step": 2}]
    assert counts(*train[:2], val[0], *train[2:], val[1]) == [
        (50, 1), (100, 1), (None, 1), (150, 2), (200, 2), (None, 2)]


def test_what_a_validation_measures_of_itself_stays_out_of_the_curves_of_training():
    fed = feed({"loss": 0.5, "time": 0.1, "epoch": 1, "iter": 1, "step": 1},
               {"coco/AP": 0.1, "loss": 0.6, "time": 9.9, "step": 1}, dialect=MMEngineJson())
    assert [dict(row.values) for row in fed.rows] == [
        {"loss": 0.5, "time": 0.1}, {"coco/AP": 0.1, "val/loss": 0.6, "val/time": 9.9}]


def test_epochs_of_one_iteration_are_told_apart():
    assert counts({"loss": 0.5, "epoch": 3, "iter": 3, "step": 3}, {"coco/AP": 0.1, "step": 3}) == [(3, 3), (None, 3)]


@pytest.mark.parametrize("step", [0, 100])  # as LoggerHook(log_metric_by_epoch=…) has it
def test_validation_rows_of_a_training_by_iterations_have_its_step(step):
    assert counts({"loss": 0.5, "iter": 100, "step": 100}, {"mIoU": 0.1, "step": step}) == [(100, None), (100, None)]


def test_a_scalar_of_a_users_own_hook_keeps_its_iteration():
    train = {"loss": 0.5, "epoch": 2, "iter": 100, "step": 100}
    assert counts(train, {"mine": 0.1, "step": 120}, {"mine": 0.1, "step": 2}) == [(100, 2), (120, None), (None, 2)]


# ---- MMCV -----------------------------------------------------------------------------------------------------------


def mmcv(mode, epoch, count, **values):
    return {"mode": mode, "epoch": epoch, "iter": count, **(values or {"loss": 0.5})}


def test_iterations_within_the_epoch_give_way_to_the_epoch():
    assert counts({"env_info": "sys", "seed": 0, "exp_name": "x.py"}, mmcv("train", 1, 50), mmcv("train", 1, 100),
                  mmcv("val", 1, 625, AP=0.1), mmcv("train", 2, 50), mmcv("val", 2, 625, AP=0.1)) == [
        (50, 1), (100, 1), (100, 1), (None, 2), (None, 2)]


def test_iterations_that_count_on_are_steps():
    assert counts(mmcv("train", 1, 50), mmcv("train", 2, 100), mmcv("val", 2, 500, mIoU=0.1), mmcv("train", 3, 150)) == [
        (50, 1), (100, 2), (100, 2), (150, 3)]


@pytest.mark.parametrize(("runner", "step"), [("EpochBasedRunner", None), ("IterBasedRunner", 50)])
def test_the_configuration_at_the_beginning_says_which(runner, step):
    config = {"env_info": "sys", "config": f"runner = dict(type='{runner}')"}
    assert counts(config, mmcv("train", 1, 50)) == [(step, 1)]


def test_a_training_resumed_within_a_file_of_its_own_has_no_step_before_it_is_known():
    assert counts(mmcv("train", 6, 50), mmcv("train", 7, 50)) == [(None, 6), (None, 7)]


@pytest.mark.parametrize("record", [{"mode": "train", "loss": 1}, {"mode": "val", "epoch": "x", "iter": 1, "AP": 1},
                                    {"iter": "x", "loss": 1}, {"step": None, "loss": 1}])
def test_a_row_without_its_counts_is_bad(record):
    assert feed(record, dialect=MMEngineJson()).bad == 1


@pytest.mark.parametrize(("path", "head", "claimed"), [
    ("20240503_120000/vis_data/scalars.json", '{"lr": 0.1, "step": 1}\n', True),
    ("20240503_120000/vis_data/20240503_120000.json", '{"lr": 0.1, "st', True),
    ("20210503_120000.log.json", '{"env_info": "' + "x" * 5000, True),
    ("20210503_120000.log.json", '{"mode": "train", "epoch": 1, "iter": 50, "loss": 0.5}\n', True),
    ("train.log.json", '{"step": 1, "loss": 0.5}\n', False),  # another's: its step is a step
    ("scalars.json", "[1, 2]", False),
])
def test_the_logs_of_mmengine_are_known_by_place_and_content(path, head, claimed):
    assert MMEngineJson().claims(PurePath(path), head.encode()[:4096]) is claimed


# ---- StyleGAN -------------------------------------------------------------------------------------------------------


def test_a_metric_of_a_snapshot_has_the_step_in_its_name():
    row = one({"results": {"fid50k_full": 7.1}, "metric": "fid50k_full", "total_time": 12.5, "num_gpus": 1,
               "snapshot_pkl": "network-snapshot-002048.pkl", "timestamp": 1700000000.5}, dialect=StyleGan())
    assert (row.step, row.epoch, dict(row.values), row.at) == (2048, None, {"fid50k_full": 7.1}, 1700000000.5)


def test_a_metric_of_no_snapshot_is_passed_over():
    for snapshot in (None, "ffhq.pkl", 5):
        fed = feed({"results": {"fid50k_full": 7.1}, "snapshot_pkl": snapshot}, dialect=StyleGan())
        assert (list(fed.rows), fed.bad) == ([], 0)


def test_the_statistics_have_thousands_of_images_for_a_step():
    row = one({"Loss/G/loss": {"num": 32, "mean": 0.5, "std": 0.1}, "Progress/kimg": {"num": 1, "mean": 4.096, "std": 0},
               "timestamp": 1700000000}, dialect=StyleGan())
    assert (row.step, dict(row.values)) == (4, {"Loss/G/loss": 0.5})


@pytest.mark.parametrize(("name", "head", "claimed"), [
    ("metric-fid50k_full.jsonl", '{"results": {"fid50k_full": 7.1}', True),
    ("stats.jsonl", '{"Loss/G/loss": {"num": 32, "mean": 0.5', True),
    ("stats.jsonl", '{"step": 1, "loss": 0.5}', False),
    ("metric-x.jsonl", '{"step": 1, "loss": 0.5}', False),
])
def test_the_logs_of_stylegan_are_known_by_name_and_content(name, head, claimed):
    assert StyleGan().claims(PurePath(name), head.encode()) is claimed
