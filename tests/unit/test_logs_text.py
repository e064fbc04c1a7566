"""Lines of text: what is a record in them, and that no line can hurt."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptwatch.core.series import LogRow
from ckptwatch.logs.mmengine_text import MMEngineText
from ckptwatch.logs.text_log import TextLog
from ckptwatch.model import Logged


def rows(*lines, dialect=None, logged=None):
    fed = (dialect or TextLog()).reader(logged or Logged()).feed("".join(f"{line}\n" for line in lines).encode())
    assert fed.bad == 0
    return list(fed.rows)


@pytest.mark.parametrize(("line", "step", "epoch", "values"), [
    ("step 100 | loss 0.53 | lr 1e-4", 100, None, {"loss": 0.53, "lr": 1e-4}),
    ("[step 100/1000] loss=0.53", 100, None, {"loss": 0.53}),
    ("epoch: 3, train_loss: 0.4", None, 3, {"train_loss": 0.4}),
    ("iter 100: loss 3.2049, time 250.10ms, mfu 10.51%", 100, None, {"loss": 3.2049}),  # nanoGPT
    ("step 250: train loss 1.9000, val loss 2.0000", 250, None, {"train_loss": 1.9, "val_loss": 2.0}),
    ("2024-05-03T12:00:00 INFO step=100 loss=0.53", 100, None, {"loss": 0.53}),
    ("INFO:root:epoch 3/10 train_loss 0.5 val_loss -inf", None, 3, {"train_loss": 0.5, "val_loss": float("-inf")}),
    ("Train Epoch: 3 [640/60000 (1%)]\tLoss: 0.530000", None, 3, {"Loss": 0.53}),
    ("Epoch: [3][ 100/5004]\tTime  0.1 ( 0.2)\tLoss 5.3e-01 (6.0e-01)\tAcc@1  12.5 (11.1)", None, 3,
     {"Loss": 0.53, "Acc@1": 12.5}),
    ("Epoch [3/10], Step [100/600], Loss: 0.53", 100, 3, {"Loss": 0.53}),
    ("[05/03 12:00:00 d2.utils.events]:  eta: 0:10:00  iter: 19  total_loss: 0.5  lr: 1e-4  max_mem: 1000M", 19, None,
     {"total_loss": 0.5, "lr": 1e-4}),  # detectron2
    ("{'loss': 0.5, 'learning_rate': 5e-05, 'epoch': 0.1}", None, 0.1, {"loss": 0.5, "learning_rate": 5e-05}),
    ('{"loss": 0.5, "step": 7}', 7, None, {"loss": 0.5}),
    ("(epoch: 1, iters: 100, time: 0.2) G_GAN: 0.5 D_real: 0.1", 100, 1, {"time": 0.2, "G_GAN": 0.5, "D_real": 0.1}),
    ("step 1,000: loss 0.5, tokens: 1,048,576", 1000, None, {"loss": 0.5, "tokens": 1048576}),
    ("Epoch 003 | δ<1.25: 0.9 | abs_rel 0.1", None, 3, {"δ<1.25": 0.9, "abs_rel": 0.1}),
    ("\x1b[32mstep 5\x1b[0m \x1b[1mloss: 0.5\x1b[0m", 5, None, {"loss": 0.5}),
    ("epoch 2:  10%|x| 1/10 loss=0.9\repoch 2: 100%|x| 10/10 [00:01<00:00, 5.0it/s, loss=0.5]", None, 2, {"loss": 0.5}),
])
def test_a_line_with_a_count_and_named_numbers_is_a_row(line, step, epoch, values):
    [row] = rows(line)
    assert (row.step, row.epoch, dict(row.values)) == (step, epoch, values)


@pytest.mark.parametrize("line", [
    "final AP: 0.7",                                   # of no step
    "step 100: saved /out/step_100.pt",
    "Test set: Average loss: 0.0300, Accuracy: 9905/10000 (99%)",
    "warmup steps: 100, lr: 0.1",
    "best epoch: 5, val_loss: 0.3",
    "steps per epoch: 100, loss: 0.3",
    "Epoch 3 took 12 minutes",
    "step 12:30:05 loss",
    "epoch 2024-05-03 accuracy 0.5",
    "step nan loss 0.5",
    "step -5 loss 0.5",
    "step 0.5 loss 0.5",
])
def test_prose_is_passed_over(line):
    assert rows(line) == []


def test_a_line_longer_than_any_record_is_passed_over():
    assert len(rows("step 1 loss: 0.5 " + "x" * 10_000)) == 1
    assert rows("step 1 loss: 0.5 " + "x" * 20_000) == []


def test_a_time_at_the_beginning_is_the_rows():
    [row] = rows("2024-05-03 12:00:01,500 INFO step=100 loss=0.53")
    assert row.at == time.mktime((2024, 5, 3, 12, 0, 1, 0, 0, -1)) + 0.5


def test_a_step_that_starts_anew_with_each_epoch_gives_way_to_the_epoch():
    lines = [f"Epoch [{e}/2], Step [{s}/600], Loss: 0.5" for e in (1, 2) for s in (100, 200)]
    assert [(r.step, r.epoch) for r in rows(*lines)] == [(100, 1), (200, 1), (None, 2), (None, 2)]


def test_a_name_a_user_gave_counts():
    [row] = rows("batch 7 loss: 0.5 step: 3", logged=Logged(step="batch"))
    assert (row.step, dict(row.values)) == (7, {"loss": 0.5})


@pytest.mark.parametrize("hostile", [
    b"a" * (1 << 20), b"step a " * (150_000), b"step: " + b"1" * (1 << 20), b"step " + b"loss:" * 200_000,
    b"epoch [" * 150_000, b"step 1 " + b"a b " * 3000, b"step 1 " + b"a=" * 7000, b"step 1 '" + b" " * 16000,
    b"step 1 x " + b"1," * 8000, b"Epoch(train) [" + b"[ " * 8000, b"step 1 " + b"-+.e" * 4000,
])
@pytest.mark.parametrize("dialect", [TextLog(), MMEngineText()], ids=lambda d: d.name)
@pytest.mark.timeout(20)
def test_no_line_takes_long(hostile, dialect):
    """A pattern that tried all ways to split one of these would not end before the timeout."""
    fed = dialect.reader(Logged()).feed(hostile + b"\nstep 5 loss: 0.5\n")
    assert fed.consumed == len(hostile) + len(b"\nstep 5 loss: 0.5\n")
    assert dialect.name != "text" or LogRow(step=5, values={"loss": 0.5}) in fed.rows


@given(st.binary(max_size=300))
def test_no_bytes_are_a_fault(data):
    for dialect in (TextLog(), MMEngineText()):
        fed = dialect.reader(Logged()).feed(b"step 1 loss: 0.5 " + data + b"\n")
        assert fed.consumed == len(data) + 18


# ---- MMEngine and MMCV ----------------------------------------------------------------------------------------------

MM = "2024/05/03 12:00:00 - mmengine - INFO - "


@pytest.mark.parametrize(("line", "step", "epoch", "values"), [
    (MM + "Epoch(train)   [3][ 50/100]  lr: 1.0000e-02  eta: 0:00:10  time: 0.0100  data_time: 0.0010  loss: 0.5  "
     "loss_kpt: 0.3", 250, 3, {"lr": 0.01, "time": 0.01, "data_time": 0.001, "loss": 0.5, "loss_kpt": 0.3}),
    (MM + "Epoch(val) [3][10/10]    coco/AP: 0.7100  data_time: 0.0010  time: 0.0100", None, 3,
     {"coco/AP": 0.71, "val/data_time": 0.001, "val/time": 0.01}),
    (MM + "Iter(train) [ 100/1000]  lr: 1.0000e-02  loss: inf", 100, None, {"lr": 0.01, "loss": float("inf")}),
    ("2021-05-03 12:00:00,123 - mmdet - INFO - Epoch [2][50/117]\tlr: 1.000e-02, eta: 1 day, 0:00:10, time: 0.1, loss: 0.5",
     167, 2, {"lr": 0.01, "time": 0.1, "loss": 0.5}),
    ("2021-05-03 12:00:00,123 - mmdet - INFO - Epoch(val) [2][625]\tbbox_mAP: 0.05, bbox_mAP_copypaste: 0.05 0.1", None, 2,
     {"bbox_mAP": 0.05, "bbox_mAP_copypaste": 0.05}),
    ("2021-05-03 12:00:00,123 - mmseg - INFO - Iter [50/160000]\tlr: 1.000e-02, decode.loss_ce: 2.1, loss: 2.1", 50, None,
     {"lr": 0.01, "decode.loss_ce": 2.1, "loss": 2.1}),
])
def test_a_line_of_mmengine_is_a_row(line, step, epoch, values):
    [row] = rows(line, dialect=MMEngineText())
    assert (row.step, row.epoch) == (step, epoch)
    assert row.values == values


def test_a_validation_among_iterations_has_the_step_of_the_training_before():
    found = rows(MM + "Iter(train) [ 100/1000]  loss: 0.5", MM + "Iter(val) [10/10]    mIoU: 0.4", dialect=MMEngineText())
    assert [r.step for r in found] == [100, 100]


def test_progress_tests_and_checkpoints_are_no_rows():
    assert rows(MM + "Epoch(val)   [3][ 5/10]    eta: 0:00:10  time: 0.01  data_time: 0.001",
                MM + "Saving checkpoint at 3 epochs",
                MM + "Epoch(test) [10/10]    coco/AP: 0.7", MM + "Iter(val) [10/10]    mIoU: 0.4",
                dialect=MMEngineText()) == []
