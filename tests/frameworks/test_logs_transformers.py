"""transformers.Trainer writes its state, and every value that it logged is read from it, once."""

import math

import pytest

from ckptwatch.logs.trainer_state import TrainerState
from tests.frameworks.log_follower import follow

pytestmark = pytest.mark.xdist_group("logs-transformers")
LEFT_OUT = ("step", "epoch", "total_flos")


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    return follow("log_transformers", TrainerState(), tmp_path_factory.mktemp("transformers"))


def plain(history):
    """What the trainer held in memory, as it should be read."""
    return [(entry["step"], entry["epoch"], {k: v for k, v in entry.items() if k not in LEFT_OUT
                                             and not k.endswith(("_runtime", "_per_second"))}) for entry in history]


def told(rows):
    return [(row.step, row.epoch, dict(row.values)) for row in rows]


def test_each_state_tells_everything_the_trainer_had_logged(followed):
    found, news, ended = followed
    assert len(ended["told"]) == 6
    first = {}
    for said in ended["told"]:
        first.setdefault(said["file"], plain(said["history"]))
    assert {name: told(pieces[0]) for name, pieces in news.items()} == first
    assert [f.bad for f in found.values()] == [0] * len(found)


def test_losses_and_metrics_are_among_them_under_their_own_names(followed):
    _, news, _ = followed
    (rows, *_) = news["checkpoint-2/trainer_state.json"]
    assert [set(row.values) for row in rows] == [{"loss", "grad_norm", "learning_rate"}] * 2 + [{"eval_loss"}]
    assert all(math.isfinite(v) for row in rows for v in row.values.values())


def test_the_summary_at_the_end_is_the_mean_loss_alone(followed):
    _, news, _ = followed
    assert list(news["trainer_state.json"][0][-1].values) == ["train_loss"]


def test_a_state_that_is_written_again_is_told_from_the_beginning_only_where_it_is_another(followed):
    """The resumed training writes checkpoint-6 again, with another loss after step 4."""
    _, news, ended = followed
    first, *later = news["checkpoint-6/trainer_state.json"]
    again = [said["history"] for said in ended["told"] if said["file"] == "checkpoint-6/trainer_state.json"]
    assert len(again) == 2
    new = [row for rows in later for row in rows]
    assert told(new) == ([] if again[0][-1] == again[1][-1] else plain(again[1]))
    assert told(first) == plain(again[0])
    assert not any(rows for name in ("checkpoint-2/trainer_state.json", "checkpoint-4/trainer_state.json")
                   for rows in news[name][1:])
