"""Ranking by what the trainer logged, where nothing is configured."""

from pathlib import Path

import pytest

from ckptwatch.core.logged import choose_metric, direction
from ckptwatch.model import Checkpoint, CheckpointState, Identity, Mode, RankRule, Role


def checkpoint(**metrics):
    return Checkpoint(
        id=1, run_id=1, path=Path("/r/a.pt"), format="torch-zip", state=CheckpointState.COMPLETE, evidence="",
        role=Role.REGULAR, identity=Identity(device=1, inode=1, size=1, mtime_ns=1), generation=0, step=1, epoch=None,
        metrics=metrics, variants=(), found_at=0.0)


@pytest.mark.parametrize(("name", "mode"), [
    ("loss", Mode.MIN), ("val_loss", Mode.MIN), ("val/acc", Mode.MAX), ("AP", Mode.MAX), ("abs_rel", Mode.MIN),
    ("fid", Mode.MIN),
    ("clip_score", Mode.MAX), ("lr", None), ("temperature", None),
])
def test_direction_is_told_by_the_words_of_a_name(name, mode):
    assert direction(name) is mode


def test_validation_goes_before_training_and_the_learning_rate_is_no_metric():
    some = [checkpoint(loss=1.0, val_loss=2.0, lr=0.1), checkpoint(loss=1.0, val_loss=2.0, lr=0.1)]
    assert choose_metric(some) == RankRule(by="val_loss", mode=Mode.MIN)


def test_what_most_checkpoints_carry_goes_first():
    every, once = [checkpoint(loss=1.0)] * 7, checkpoint(loss=1.0, val_loss=2.0)
    assert choose_metric([*every, once]).by == "loss", "a single validation is an exception"
    assert choose_metric([*every[:2], once]).by == "val_loss", "validations are rarer than what training logs"


def test_without_a_metric_there_is_no_ranking():
    assert choose_metric([checkpoint(lr=0.1), checkpoint()]) is None
