"""`training_stats.txt` and `ckptwatch stats` say what a run's losses and metrics came to, as its log has it."""

import json
import math
import statistics
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ckptwatch.cli import app as cli
from ckptwatch.core.series import LogRow, Summary, summarise
from ckptwatch.errors import CkptwatchError
from ckptwatch.model import AlarmKind, Mode, Symptom
from ckptwatch.publish.stats import STATS, as_json, as_text, statistics_of, write_stats
from ckptwatch.store import alarms, logs, roots, runs
from ckptwatch.store.database import open_writing
from tests.curves import points

LOSSES = [0.9 / (1 + i / 40) + 0.01 * (i % 7) for i in range(500)]
APS = [0.0, 0.21, 0.55, 0.7234, 0.7190]


@pytest.fixture
def recorded(tmp_path) -> Path:
    """The configuration of a state directory that knows one run, its log and two alarms."""
    state, root = tmp_path / "state", tmp_path / "runs"
    (root / "pose").mkdir(parents=True)
    config = tmp_path / "ckptwatch.yaml"
    config.write_text(yaml.safe_dump({"state_dir": str(state), "watch": [{"root": str(root)}]}))
    db = open_writing(state)
    with db.write() as conn:
        roots.record(conn, root, uuid="u", device=1)
        run, _ = runs.run_named(conn, root, "pose", path=root / "pose", now=0.0)
        log = logs.begin(conn, run_id=run.id, path=root / "pose/20240101.log.json", dialect="mmengine", now=0.0)
        logs.append(conn, log, [LogRow(step=i, epoch=i / 100, values={"loss": v, "loss_kpt": v / 2, "lr": 1e-3, "time": 0.2})
                                for i, v in enumerate(LOSSES)])
        logs.append(conn, log, [LogRow(step=100 * (i + 1) - 1, epoch=float(i + 1), values={"coco/AP": v, "coco/AP50": v})
                                for i, v in enumerate(APS)])
        spike = Symptom(kind=AlarmKind.LOSS_SPIKE, subject="loss", message="loss 4 is 5.0 × its recent average 0.8",
                        numbers={"current": 4.0, "ratio": math.nan}, causes=("a bad batch",), step=120)
        raised = alarms.raise_(conn, run.id, spike, go_back_to=root / "pose/step_100.pth", now=10.0)
        alarms.close(conn, raised.id, now=20.0)
        alarms.raise_(conn, run.id, Symptom(kind=AlarmKind.STALLED, subject="checkpoints", message="no checkpoint for 3h"),
                      go_back_to=None, now=30.0)
    db.close()
    return config


def stats(*arguments: str | Path) -> tuple[int, str, str]:
    """Status, standard output, error."""
    done = CliRunner().invoke(cli.app, ["stats", *map(str, arguments)])
    if isinstance(done.exception, CkptwatchError):
        return done.exception.exit_status, done.stdout, str(done.exception)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


# ---- `ckptwatch stats` ----------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_log(recorded):
    status, out, _ = stats("pose", "--json", "-c", recorded)
    document = json.loads(out)
    assert status == 0
    assert (document["version"], document["run"]) == (1, "pose")
    loss = document["losses"]["loss"]
    assert loss == pytest.approx({
        "mean": statistics.fmean(LOSSES), "std": statistics.pstdev(LOSSES), "min": min(LOSSES), "max": max(LOSSES),
        "final": LOSSES[-1], "count": 500, "not_finite": 0})
    assert list(document["losses"]) == ["loss", "loss_kpt"], "neither the learning rate nor times"
    assert document["metrics"]["coco/AP"] == {
        "best": 0.7234, "best_step": 399, "best_epoch": 4.0, "final": 0.719, "count": 5, "not_finite": 0}
    assert [(a["kind"], a["closed_at"]) for a in document["alarms"]] == [("loss_spike", 20.0), ("stalled", None)]
    assert document["alarms"][0]["numbers"] == {"current": 4.0, "ratio": None}


def test_a_person_reads_aligned_columns_the_best_ap_and_the_alarms(recorded):
    status, out, _ = stats("pose", "-c", recorded)
    lines = out.splitlines()
    assert status == 0
    head = next(line for line in lines if line.startswith("Losses"))
    row = next(line for line in lines if line.startswith("  loss "))
    assert head.split() == ["Losses", "mean", "std", "min", "max", "final", "points"]
    assert row.split() == ["loss", *(f"{v:.4f}" for v in (statistics.fmean(LOSSES), statistics.pstdev(LOSSES), min(LOSSES),
                                                         max(LOSSES), LOSSES[-1])), "500"]
    for column in ("mean", "std", "min", "max", "final"):
        end = head.index(column) + len(column)
        assert row[end - 1].isdigit() and row[end : end + 2] == "  ", "numbers end where their heads end"
    assert "Best AP: 0.7234 (epoch 4, step 399)" in lines
    assert "  loss spike (over): loss 4 is 5.0 × its recent average 0.8" in lines
    assert "  no new checkpoints (open): no checkpoint for 3h" in lines


def test_ascii_means_ascii(recorded):
    status, out, _ = stats("pose", "--ascii", "-c", recorded)
    assert status == 0 and out.isascii() and "5.0 x its" in out


def test_an_unknown_run_or_nothing_recorded_is_a_clear_error(recorded, tmp_path):
    status, _, error = stats("nobody", "-c", recorded)
    assert status == 2 and "known runs: pose" in error
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"state_dir": str(tmp_path / "empty"), "watch": [{"root": str(tmp_path / "runs")}]}))
    status, _, error = stats("pose", "-c", other)
    assert status == 2 and "nothing is recorded yet" in error


# ---- the file -------------------------------------------------------------------------------------------------------


def test_the_file_holds_what_is_printed_and_is_left_alone_when_nothing_changed(tmp_path):
    found = statistics_of("pose", [("loss", "a.log", summarise(points(LOSSES)))], [])
    assert write_stats(tmp_path / "new", found)
    assert (tmp_path / "new" / STATS).read_text() == as_text(found)
    assert not write_stats(tmp_path / "new", found)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["training_stats.txt"]


def test_nan_is_counted_and_shown_but_spoils_no_mean():
    found = statistics_of("pose", [("loss", "a", summarise(points([1.0, 3.0, math.nan, math.inf]))),
                                   ("loss_kpt", "a", summarise(points([math.nan] * 3)))], [])
    document = as_json(found)
    json.dumps(document, allow_nan=False)
    assert document["losses"]["loss"] == {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0, "final": None, "count": 2,
                                          "not_finite": 2}
    assert document["losses"]["loss_kpt"]["mean"] is None
    row = next(line for line in as_text(found).splitlines() if line.startswith("  loss "))
    assert row.split()[5:] == ["inf", "4,", "2", "not", "finite"]


def test_lower_is_best_where_less_is_better_and_what_is_known_beats_what_words_tell():
    summary = summarise(points([3.0, 1.0, 2.0]))
    found = as_json(statistics_of("r", [("abs_rel", "a", summary), ("delta", "a", summary), ("mystery", "a", summary)], [],
                                  {"delta": Mode.MAX}))
    assert found["metrics"]["abs_rel"]["best"] == 1.0
    assert found["metrics"]["delta"]["best"] == 3.0
    assert "mystery" not in found["metrics"]


def test_a_name_in_several_logs_is_told_once_by_the_fuller_one():
    short, long = summarise(points([1.0])), summarise(points([2.0, 2.0]))
    found = statistics_of("r", [("loss", "short", short), ("loss", "long", long)], [])
    assert found.losses["loss"].mean == 2.0


@pytest.mark.parametrize(("name", "told"), [
    ("AP", True), ("coco/AP", True), ("bbox_mAP", True), ("metrics/mAP50-95(B)", True), ("coco/AP50", False),
    ("coco/AP .75", False), ("mAPE_error", False), ("accuracy", False)])
def test_the_best_ap_is_that_of_the_ap_itself(name, told):
    assert ("Best AP" in as_text(statistics_of("r", [(name, "a", summarise(points([0.1, 0.7])))], []))) is told


def test_a_run_that_logged_nothing_has_statistics_all_the_same():
    text = as_text(statistics_of("r", [("loss", "a", Summary())], []))
    assert "Nothing was logged" in text and "Alarms: none" in text


def test_a_name_with_a_line_break_makes_no_line_of_its_own():
    text = as_text(statistics_of("r", [("loss\nAlarms: none\x1b[31m", "a", summarise(points([1.0])))], []))
    assert "\x1b" not in text and "loss?Alarms" in text
