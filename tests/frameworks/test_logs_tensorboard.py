"""Lightning's TensorBoardLogger and torch.utils.tensorboard write event files, and every scalar is read from them, once."""

import pytest

from ckptwatch.logs.events import TensorBoardEvents
from tests.frameworks.log_follower import follow

pytestmark = pytest.mark.xdist_group("logs-tensorboard")


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    return follow("log_tensorboard", TensorBoardEvents(), tmp_path_factory.mktemp("tensorboard"))


def test_every_scalar_between_pictures_text_and_histograms_is_read_once(followed):
    found, _, ended = followed
    mine = [f for name, f in found.items() if name.startswith("writer/events")]
    assert len(mine) >= 2  # the training was started twice
    read = sorted((row.step, name, v) for f in mine for row in f.rows for name, v in row.values.items()
                  if name.startswith("loss/"))
    assert read == sorted((step, name, pytest.approx(v, rel=1e-6)) for step, name, v in ended["writer"])
    assert all(f.bad == 0 for f in found.values())
    assert {name for f in mine for row in f.rows for name in row.values} >= {"hparam/rmse"}
    assert not any("depth" in row.values or "note/text_summary" in row.values for f in mine for row in f.rows)


def test_what_is_flushed_is_read_at_once_while_the_writer_goes_on(followed):
    _, news, _ = followed
    first = min(name for name in news if name.startswith("writer/events") and any(
        "loss/total" in row.values for rows in news[name] for row in rows))
    per_pause = [sorted({row.step for row in rows if "loss/total" in row.values}) for rows in news[first][:4]]
    assert per_pause == [[0], [1], [2], [3]]


def test_a_zero_is_read_as_a_value(followed):
    found, _, _ = followed
    zeros = [v for name, f in found.items() if name.startswith("writer/d_d2") for row in f.rows for v in row.values.values()]
    assert zeros
    assert set(zeros) == {0.0}


def test_lightnings_values_come_with_step_and_epoch(followed):
    found, _, ended = followed
    (log,) = [f for name, f in found.items() if name.startswith("lightning/tb/")]
    read = [(row.step, row.epoch, name, v) for row in log.rows for name, v in row.values.items()
            if not name.startswith("hp_metric")]
    train = [(step, epoch, name, pytest.approx(v, rel=1e-6)) for step, epoch, name, v in ended["lightning"]
             if name == "train/loss"]
    val = [(step - 1, epoch, name, pytest.approx(v, rel=1e-6)) for step, epoch, name, v in ended["lightning"]
           if name == "val/abs_rel"]
    assert [r for r in read if r[2] == "train/loss"] == train
    assert [r for r in read if r[2] == "val/abs_rel"] == val  # it calls the step of a validation that of the last batch


def test_lightnings_pauses_show_one_epoch_after_the_other(followed):
    _, news, _ = followed
    (pieces,) = [pieces for name, pieces in news.items() if name.startswith("lightning/tb/")]
    epochs = [sorted({row.epoch for row in rows if "val/abs_rel" in row.values}) for rows in pieces]
    assert [e for e in epochs if e] == [[0.0], [1.0], [2.0]]
