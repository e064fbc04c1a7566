"""What Lightning's CSVLogger writes is read as it trains, across the times it writes the whole table anew."""

import pytest

from ckptwatch.core.attaching import choose, spans
from ckptwatch.core.naming import parse_name
from ckptwatch.core.series import LogPoint
from tests.frameworks.following import only, train

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return train("log_lightning", tmp_path_factory.mktemp("lightning") / "out")


def test_every_loss_is_read_at_its_step(training):
    told, logs = training
    log = only(logs, "lightning-csv")
    assert log.values("train_loss_step") == [(step, epoch, pytest.approx(loss)) for step, epoch, loss in told["losses"]]


def test_means_of_epochs_and_validations_are_rows_of_their_own(training):
    told, logs = training
    log = only(logs, "lightning-csv")
    means = [sum(loss for _, epoch, loss in told["losses"] if epoch == e) / 4 for e in range(3)]
    assert log.values("train_loss_epoch") == [(3, 0, pytest.approx(means[0])), (7, 1, pytest.approx(means[1])),
                                              (11, 2, pytest.approx(means[2]))]
    assert log.values("val/acc") == [(3, 0, 0.25), (7, 1, 0.5), (11, 2, 0.375)]


def test_a_metric_that_comes_late_costs_no_row(training):
    """Its column changes the header, and all rows are written again."""
    _, logs = training
    log = only(logs, "lightning-csv")
    assert [step for step, _, _ in log.values("late")] == list(range(4, 12))
    assert [step for step, _, _ in log.values("train_loss_step")] == list(range(12))


def test_a_validation_belongs_to_the_checkpoint_saved_after_it(training):
    told, logs = training
    names = [parse_name(path.rpartition("/")[2]) for path in told["checkpoints"]]
    places = spans(sorted((0, name.step, name.epoch) for name in names))
    points = [LogPoint(step=step, epoch=epoch, value=value)
              for step, epoch, value in only(logs, "lightning-csv").values("val/acc")]
    assert [choose(points, place).value for place in places] == [0.25, 0.5, 0.375]
