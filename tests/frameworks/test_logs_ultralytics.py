"""What ultralytics writes to results.csv is read at the epochs that its checkpoints have."""

import pytest

from ckptwatch.formats.base import claim_at, examine, format_named
from tests.frameworks.following import only, train

pytestmark = pytest.mark.timeout(180)


def test_the_results_of_an_epoch_are_those_noted_in_its_checkpoint(tmp_path):
    _, logs = train("train_ultralytics", tmp_path / "out")
    log = only(logs, "ultralytics")
    read = log.values("val/box_loss")
    assert [(step, epoch) for step, epoch, _ in read] == [(None, 0), (None, 1), (None, 2)]
    compared = 0
    for path in sorted((tmp_path / "out").rglob("epoch*.pt")):
        claim = claim_at(path)
        facts = examine(claim, format_named(claim.format))
        [value] = [value for _, epoch, value in read if epoch == facts.epoch]
        assert value == pytest.approx(facts.metrics["val/box_loss"], rel=1e-4)
        compared += 1
    assert compared >= 2
