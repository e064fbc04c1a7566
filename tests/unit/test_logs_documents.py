"""What is read of logs that are one JSON document: what is new in it, each time it is written anew."""

import json
import math
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptwatch.core.series import LogRow
from ckptwatch.logs.metadata import CheckpointMetadata
from ckptwatch.logs.trainer_state import TrainerState
from ckptwatch.model import Logged

TRAIN = [{"loss": 0.5 ** n, "grad_norm": 1.0, "learning_rate": 1e-3, "epoch": n / 4, "step": 5 * n} for n in range(1, 5)]
EVAL = {"eval_loss": 0.75, "eval_accuracy": 0.0, "eval_runtime": 1.5, "eval_samples_per_second": 9.0,
        "eval_steps_per_second": 3.0, "epoch": 1.0, "step": 20}
SUMMARY = {"train_runtime": 60.0, "train_samples_per_second": 4.0, "train_steps_per_second": 2.0, "total_flos": 1e12,
           "train_loss": 0.25, "epoch": 1.0, "step": 20}


def state(history, **more):
    return json.dumps({"global_step": 20, "log_history": history, **more}, indent=2).encode()


def metadata(**content):
    return json.dumps({"experiment_name": "panorama", **content}).encode()


def read(dialect, *documents, logged=None):
    """The rows told of each document, the reader being taken up anew from its state in between."""
    told, kept = [], None
    for data in documents:
        reader = dialect.reader(logged or Logged(), kept)
        fed = reader.feed(data)
        told.append(fed)
        kept = json.loads(json.dumps(reader.state()))
    return told


# ---- trainer_state.json ---------------------------------------------------------------------------------------------


def test_the_history_is_told_with_all_its_terms():
    (fed,) = read(TrainerState(), state([*TRAIN, EVAL]))
    assert fed.rows[0] == LogRow(step=5, epoch=0.25, values={"loss": 0.5, "grad_norm": 1.0, "learning_rate": 1e-3})
    assert fed.rows[4] == LogRow(step=20, epoch=1.0, values={"eval_loss": 0.75, "eval_accuracy": 0.0})
    assert (len(fed.rows), fed.bad, fed.trouble) == (5, 0, "")


def test_of_the_summary_only_the_mean_loss_is_a_metric():
    (fed,) = read(TrainerState(), state([SUMMARY]))
    assert fed.rows == [LogRow(step=20, epoch=1.0, values={"train_loss": 0.25})]


def test_names_are_those_that_the_checkpoints_own_state_yields(tmp_path):
    from ckptwatch.formats.trainer_state import read_state

    (tmp_path / "trainer_state.json").write_bytes(state([*TRAIN, EVAL, SUMMARY]))
    facts = read_state(tmp_path / "trainer_state.json").metrics
    (fed,) = read(TrainerState(), state([*TRAIN, EVAL, SUMMARY]))
    told = {name: v for row in fed.rows if row.step == 20 for name, v in row.values.items()}
    assert told == facts


def test_of_a_longer_history_only_what_is_new_is_told():
    first, same, longer = read(TrainerState(), state(TRAIN[:2]), state(TRAIN[:2], epoch=7), state([*TRAIN, EVAL]))
    assert [len(first.rows), len(same.rows)] == [2, 0]
    assert [row.step for row in longer.rows] == [15, 20, 20]


@pytest.mark.parametrize("other", [
    [{**TRAIN[0], "loss": 9.0}, {**TRAIN[1], "loss": 8.0}, {**TRAIN[2], "loss": 7.0}],
    TRAIN[:1],
    [],
], ids=["as long", "shorter", "empty"])
def test_the_history_of_another_training_is_told_from_its_beginning(other):
    _, anew = read(TrainerState(), state(TRAIN[:3]), state(other))
    assert [row.values["loss"] for row in anew.rows] == [entry["loss"] for entry in other]


def test_losses_that_are_not_finite_are_told():
    (fed,) = read(TrainerState(), state([{"loss": math.nan, "step": 1}, {"loss": math.inf, "step": 2}]))
    assert [math.isnan(fed.rows[0].values["loss"]), fed.rows[1].values["loss"]] == [True, math.inf]


def test_a_user_may_say_which_key_is_the_step():
    (fed,) = read(TrainerState(), state([{"loss": 1.0, "tokens": 4096, "step": 1}]), logged=Logged(step="tokens"))
    assert fed.rows == [LogRow(step=4096, values={"loss": 1.0})]


def test_entries_that_are_none_are_counted_and_left_out():
    (fed,) = read(TrainerState(), state([7, TRAIN[0], None]))
    assert [row.step for row in fed.rows] == [5]
    assert (fed.bad, fed.trouble) == (2, "an entry of log_history is no mapping")


@pytest.mark.parametrize("epoch", [math.nan, math.inf, -1.0, "one", None, True])
def test_an_epoch_that_is_none_is_not_known(epoch):
    (fed,) = read(TrainerState(), state([{"loss": 1.0, "step": 5, "epoch": epoch}]))
    assert fed.rows == [LogRow(step=5, values={"loss": 1.0})]


def test_a_half_written_state_tells_nothing_and_forgets_nothing():
    whole = state([*TRAIN, EVAL])
    _, half, after = read(TrainerState(), state(TRAIN[:2]), whole[:len(whole) // 2], whole)
    assert (half.rows, half.bad, half.consumed) == ((), 0, 0)
    assert half.trouble.startswith("no JSON: JSONDecodeError")
    assert [row.step for row in after.rows] == [15, 20, 20]


# ---- checkpoint_metadata.json ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counts", "step", "epoch"), [
    ({"step": 400}, 400, None),
    ({"global_step": 400, "epoch": 2}, 400, 2.0),
    ({"epoch": 5.0}, None, 5.0),
    ({"source_checkpoint": "siglip_mlp_anyres-e2p_quic360_epoch05_loss0.4201.ckpt"}, None, 5.0),
])
def test_the_metrics_of_the_metadata_are_one_row(counts, step, epoch):
    (fed,) = read(CheckpointMetadata(), metadata(metrics={"val_loss": 0.5, "note": "x", "bleu": 0}, **counts))
    assert fed.rows == [LogRow(step=step, epoch=epoch, values={"val_loss": 0.5, "bleu": 0.0})]
    assert fed.bad == 0


def test_metadata_is_told_again_only_when_it_says_something_else():
    documents = [metadata(metrics={"val_loss": v}, step=s, stage=stage)
                 for v, s, stage in ((0.5, 1, "a"), (0.5, 1, "b"), (0.4, 1, "b"), (0.4, 2, "b"))]
    assert [len(fed.rows) for fed in read(CheckpointMetadata(), *documents)] == [1, 0, 1, 1]


def test_metrics_that_belong_nowhere_are_counted():
    (fed,) = read(CheckpointMetadata(), metadata(metrics={"val_loss": 0.5}))
    assert (fed.rows, fed.bad) == ((), 1)
    assert "belong to no checkpoint" in fed.trouble


@pytest.mark.parametrize("content", [{}, {"metrics": {}, "step": 1}, {"metrics": [1, 2], "step": 1}])
def test_metadata_without_metrics_is_no_fault(content):
    (fed,) = read(CheckpointMetadata(), metadata(**content))
    assert (fed.rows, fed.bad, fed.trouble) == ((), 0, "")


# ---- both -----------------------------------------------------------------------------------------------------------


BOTH = pytest.mark.parametrize("dialect", [TrainerState(), CheckpointMetadata()], ids=lambda d: d.name)


@pytest.mark.parametrize(("dialect", "name"), [
    (TrainerState(), "checkpoint-500/trainer_state.json"), (CheckpointMetadata(), "checkpoint_metadata.json")])
def test_a_document_is_known_by_its_name_and_its_first_bytes(dialect, name):
    assert dialect.claims(PurePath(name), b"{")
    assert dialect.claims(PurePath(name), b"")
    assert not dialect.claims(PurePath(name), b"PK\x03\x04")
    assert not dialect.claims(PurePath(name + ".bak"), b"{")
    assert dialect.reader(Logged()).whole


@BOTH
@pytest.mark.parametrize("data", [
    b"", b"[]", b"null", b"{", b"\xff\xfe{}", b"\0" * 100, b'{"log_history": 3, "metrics": 4}',
    b"[" * 100_000, b'{"log_history": ' + b"[" * 100_000, b'{"metrics": {"x": ' + b"9" * 10_000 + b"}}",
], ids=range(10))
def test_what_is_no_such_document_is_no_row_and_no_exception(dialect, data):
    (fed,) = read(dialect, data)
    assert fed.rows == ()
    assert fed.consumed in (0, len(data))


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: (
    st.lists(inner) | st.dictionaries(st.sampled_from(["metrics", "log_history", "step", "epoch", "loss"]), inner)))


@BOTH
@given(content=JSON, history=JSON)
def test_nothing_that_a_document_says_raises(dialect, content, history):
    document = json.dumps({"log_history": [history], "metrics": content, "step": history, "epoch": content}).encode()
    for fed in read(dialect, document, document):
        assert all(isinstance(v, float) for row in fed.rows for v in row.values.values())
