"""Tables with a header: of any trainer, of Lightning, of ultralytics."""

import json
import math
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptwatch.logs.csv_table import CsvTable
from ckptwatch.logs.follower import Follower
from ckptwatch.logs.lightning_csv import LightningCsv
from ckptwatch.logs.ultralytics import Ultralytics
from ckptwatch.model import Logged


def feed(text, dialect=None, logged=None):
    return (dialect or CsvTable()).reader(logged or Logged()).feed(text.encode())


def rows(text, **more):
    fed = feed(text, **more)
    assert fed.bad == 0, fed.trouble
    return [(row.step, row.epoch, dict(row.values)) for row in fed.rows]


@pytest.mark.parametrize("text", [
    "step,loss\n1,0.5\n2,0.25\n", "step;loss\n1;0.5\n2;0.25\n", "step\tloss\r\n1\t0.5\r\n2\t0.25\r\n",
    "\ufeffstep , loss\n1 , 0.5\n 2, 0.25\n", '"step","loss"\n"1","0.5"\n2,0.25\n',
    "# a comment\nstep,loss\n1,0.5\n\n2,0.25\n",
    "loss,step\n0.5,1.0\n0.25,2e0\n",
])
def test_a_table_is_read_however_it_is_written(text):
    assert rows(text) == [(1, None, {"loss": 0.5}), (2, None, {"loss": 0.25})]


def test_empty_cells_and_text_are_passed_over():
    text = "epoch,step,train_loss,val_loss,note\n0,49,0.5,,ok\n0,49,,0.75,\n,,0.5,0.5,\n1,50,,,\n"
    assert rows(text) == [(49, 0, {"train_loss": 0.5}), (49, 0, {"val_loss": 0.75})]


def test_tabs_around_empty_cells_count():
    assert rows("step\tloss\tacc\n1\t0.5\t\n2\t\t0.5\n") == [(1, None, {"loss": 0.5}), (2, None, {"acc": 0.5})]


def test_values_that_are_not_finite_are_kept():
    [(_, _, values)] = rows("step,loss,acc\n1,nan,-inf\n")
    assert math.isnan(values["loss"]) and values["acc"] == -math.inf


def test_columns_that_a_user_names_count():
    assert rows("n,round,step,loss\n7,2,5,0.5\n", logged=Logged(step="n", epoch="round")) == [(7, 2, {"loss": 0.5})]


def test_a_header_again_begins_another_table():
    text = "step,loss\n1,0.5\nstep,loss\n2,0.5\nstep,loss,acc\n3,0.5,0.75\n"
    assert rows(text) == [(1, None, {"loss": 0.5}), (2, None, {"loss": 0.5}), (3, None, {"loss": 0.5, "acc": 0.75})]


@pytest.mark.parametrize("line", ["1", "1,2,3", "garbage", "x,y,z", '"1,0.5', "1,0.5\0,", "x,0.5", "-1,0.5", "0.5,0.5"])
def test_a_row_that_does_not_fit_is_counted(line):
    fed = feed(f"step,loss\n{line}\n9,0.5\n")
    assert fed.bad == 1 and fed.trouble and [row.step for row in fed.rows] == [9]


@pytest.mark.parametrize("cut", [11, 17, 18, 23])
def test_it_goes_on_after_a_restart_in_the_middle_of_a_table(cut):
    data = b"step;loss\n1;0.5\n2;0.25\n"
    before = CsvTable().reader(Logged())
    first = before.feed(data[:cut])
    after = CsvTable().reader(Logged(), json.loads(json.dumps(before.state())))
    assert [row.step for row in (*first.rows, *after.feed(data[first.consumed:]).rows)] == [1, 2]


@given(st.binary(max_size=400))
def test_no_bytes_are_a_fault(data):
    for dialect in (CsvTable(), LightningCsv(), Ultralytics()):
        for begin in (b"", b"step,loss\n", b"epoch;a\n"):
            fed = dialect.reader(Logged()).feed(begin + data + b"\n")
            assert fed.consumed == len(begin) + len(data) + 1


@pytest.mark.parametrize(("name", "head", "claimed"), [
    ("metrics.csv", "step,loss\n", True),
    ("metrics.csv", "step,lo", False),         # not yet
    ("metrics.csv", "", False),
    ("predictions.csv", "image,label\na.png,1\n", False),
    ("metrics.csv", "epoch," + "x" * 5000, True),
    ("metrics.txt", "step,loss\n", False),
])
def test_a_table_is_claimed_by_its_columns(name, head, claimed):
    assert CsvTable().claims(PurePath(name), head.encode()[:4096]) is claimed


# ---- Lightning ------------------------------------------------------------------------------------------------------


def test_a_table_written_anew_with_more_columns_is_read_from_its_beginning(tmp_path):
    """As Lightning's CSVLogger does when a metric is logged for the first time."""
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train_loss\n0,0,0.5\n0,1,0.25\n")
    follower = Follower(path, LightningCsv(), Logged())
    assert [row.step for row in follower.poll().rows] == [0, 1]
    path.write_text("epoch,step,train_loss,val_loss\n0,0,0.5,\n0,1,0.25,\n0,1,,0.75\n")
    polled = follower.poll()
    assert polled.restarted and polled.bad == 0
    assert [(row.step, dict(row.values)) for row in polled.rows] == [
        (0, {"train_loss": 0.5}), (1, {"train_loss": 0.25}), (1, {"val_loss": 0.75})]


def test_a_new_column_is_noticed_however_far_to_the_right(tmp_path):
    names = [f"metric_{i:04d}" for i in range(600)]
    path = tmp_path / "metrics.csv"
    path.write_text(",".join(["step", *names]) + "\n" + ",".join(["1"] * 601) + "\n")
    follower = Follower(path, LightningCsv(), Logged())
    assert [row.step for row in follower.poll().rows] == [1]
    path.write_text(",".join(["step", *names, "zz"]) + "\n" + ",".join(["1"] * 601) + ",\n" + ",".join(["2"] * 602) + "\n")
    polled = follower.poll()
    assert polled.restarted and [row.step for row in polled.rows] == [1, 2]


# ---- ultralytics ----------------------------------------------------------------------------------------------------

RESULTS = ("                  epoch,      time,         train/box_loss,   metrics/mAP50(B)\n"
           "                  1,      5.5,         1.5,   0.25\n                  2,      11,         1.25,   0.5\n")


def test_epochs_count_as_those_of_the_checkpoints_from_0():
    assert rows(RESULTS, dialect=Ultralytics()) == [
        (None, 0, {"time": 5.5, "train/box_loss": 1.5, "metrics/mAP50(B)": 0.25}),
        (None, 1, {"time": 11.0, "train/box_loss": 1.25, "metrics/mAP50(B)": 0.5})]


def test_results_are_known_by_name_and_columns():
    assert Ultralytics().claims(PurePath("results.csv"), RESULTS.encode())
    assert not Ultralytics().claims(PurePath("results.csv"), b"step,loss\n1,0.5\n")
    assert not Ultralytics().claims(PurePath("other.csv"), RESULTS.encode())
