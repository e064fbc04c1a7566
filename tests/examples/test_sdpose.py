"""examples/sdpose, run as its README says: a daemon beside a training, and trainings that go wrong. Tests are named after
rows D1 – D10."""

import json
import math
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.examples.example import Example

pytestmark = [pytest.mark.xdist_group("example-sdpose"), pytest.mark.timeout(900)]

RUN = "sdpose"
TERMS = ("loss_kpt", "loss_reg", "loss_bone")
# How each training goes wrong; each ends while what is wrong can be seen.
ILL = {
    "spike": ["--epochs", 37, "--ill-at", 36],
    "stuck": ["--epochs", 20],
    "drop": ["--epochs", 50, "--ill-at", 41],
    "frozen": ["--epochs", 30, "--log-interval", 1],
    "diverge": ["--epochs", 60, "--ill-at", 36],
    "overfit": ["--epochs", 60, "--ill-at", 26, "--interval", 2],
}


@pytest.fixture(scope="module")
def pose(tmp_path_factory):
    """The example after a whole healthy run and one whose weights became NaN; the daemon is stopped."""
    example = Example("sdpose", tmp_path_factory.mktemp("examples"))
    with example.daemon():
        example.python("train.py")
        example.python("train.py", "--work-dir", "runs/nan", "--ill", "nan", "--ill-at", 12, "--epochs", 15)
        example.wait(lambda status: _ranked(example) == 60, "the newest checkpoint has its AP")
        example.wait(lambda status: any(a["kind"] == "weights_not_finite" for a in alerts(status, "nan")),
                     "the weights of nan have been looked at")
    return example


def _ranked(example):
    places = example.ckptwatch("rank", RUN, "--json")
    ranking = json.loads(places.stdout)["ranking"] if places.returncode == 0 and places.stdout else []
    return max((p["epoch"] for p in ranking), default=None)


@pytest.fixture(scope="module")
def ill(pose):
    """Name of a run that went wrong → what `status` says of it, after one pass over all of them."""
    def train(name):
        pose.python("train.py", "--work-dir", f"runs/{name}", "--ill", name, *ILL[name])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, ILL))
    done = pose.ckptwatch("run", "--once")
    assert done.returncode == 0, done.stderr
    status = pose.json("status")
    return {name: {(a["kind"], a["subject"]): a for a in alerts(status, name)} for name in ILL}


@pytest.fixture(scope="module")
def logged(pose):
    """The rows of the healthy run's JSON log."""
    (path,) = (pose.checkpoints / RUN).glob("*.log.json")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def aps(logged):
    """Epoch → AP as it was logged."""
    return {row["epoch"]: row["AP"] for row in logged if row.get("mode") == "val"}


def alerts(status, run):
    return [a for r in status["runs"] if r["name"] == run for a in r["alerts"] if "kind" in a]


def value(place, metric):
    return place["scores"][metric]["value"]


def best_of(aps):
    return max(aps, key=lambda epoch: (aps[epoch], epoch))


def test_a_healthy_training_raises_no_alarm(pose):
    assert alerts(pose.json("status"), RUN) == []
    assert "Alarms: none" in pose.ckptwatch("stats", RUN).stdout


def test_the_checkpoints_are_ranked_by_the_ap_that_was_logged(pose, aps):
    ranking = pose.json("rank", RUN)
    assert (ranking["metric"], ranking["mode"]) == ("AP", "max")
    assert all(value(place, "AP") == aps[place["epoch"]] for place in ranking["ranking"])
    assert ranking["ranking"][0]["epoch"] == best_of(aps)
    assert "20" in ranking["ranking"][0]["scores"]["AP"]["source"]  # the log's name


def test_d1_a_loss_spike_is_told_with_current_average_and_ratio(pose, ill):
    alarm = ill["spike"]["loss_spike", "loss"]
    (path,) = (pose.checkpoints / "spike").glob("*.log.json")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    losses = [(r["epoch"], r["loss"]) for r in rows if r.get("mode") == "train"]
    worst = max((loss for epoch, loss in losses if epoch == 36), key=float)
    before = [loss for epoch, loss in losses if epoch < 36][-20:]
    assert f"loss {worst:.4g} at epoch 36" in alarm["message"]
    assert f"{worst / statistics.mean(before):.1f} × its recent average {statistics.mean(before):.4g}" in alarm["message"]
    assert alarm["go_back_to"].endswith("spike/epoch_35.pth")


def test_d2_a_drop_is_told_with_current_best_and_drop(ill):
    alarm = ill["drop"]["metric_drop", "AP"]
    assert "AP 0 at epoch 50" in alarm["message"]
    assert "below its best" in alarm["message"]
    assert alarm["message"].endswith("at epoch 40")
    assert alarm["go_back_to"].endswith("drop/epoch_40.pth")


def test_d3_nan_is_told_in_logged_losses_and_in_the_weights(pose):
    found = {a["kind"]: a for a in alerts(pose.json("status"), "nan")}
    assert "since epoch 12" in next(a["message"] for a in alerts(pose.json("status"), "nan") if a["subject"] == "loss")
    assert "epoch 15: state_dict.backbone" in found["weights_not_finite"]["message"]
    assert found["not_finite"]["go_back_to"].endswith("nan/epoch_10.pth")
    assert found["weights_not_finite"]["go_back_to"].endswith("nan/epoch_10.pth")


def test_d4_every_loss_term_is_read_kept_and_shown(pose, logged):
    training = [row for row in logged if row.get("mode") == "train"]
    found = pose.json("stats", RUN)
    for term in (*TERMS, "loss"):
        assert found["losses"][term]["count"] == len(training), term
        assert found["losses"][term]["final"] == pytest.approx(training[-1][term])
    best = pose.json("rank", RUN)["ranking"][0]
    last = [row for row in training if row["epoch"] == best["epoch"]][-1]
    assert {t: value(best, t) for t in TERMS} == {t: pytest.approx(last[t]) for t in TERMS}


def test_d5_the_quick_check_of_a_healthy_run(pose):
    document = pose.json("check", f"runs/{RUN}")
    assert document["ok"] is True
    assert document["path"].endswith("/epoch_60.pth")
    assert {c["name"]: c["state"] for c in document["checks"]} == {
        "complete": "ok", "loads": "ok", "weights": "ok", "keys": "ok", "losses": "ok", "pass": "skipped"}


def test_d5_the_quick_check_names_nan_in_weights_and_losses_and_a_loss_that_is_not_logged(pose):
    broken = pose.json("check", "runs/nan/epoch_15.pth")
    words = {c["name"]: c["words"] for c in broken["checks"] if c["state"] == "failed"}
    assert set(words) == {"weights", "losses"}
    assert "state_dict.backbone" in words["weights"]
    assert "first at epoch 12" in words["losses"]
    missing = pose.ckptwatch("check", f"runs/{RUN}", "--expect-loss", "loss_kp")
    assert missing.returncode == 1
    assert "loss_kp (did you mean loss_kpt?)" in missing.stdout


def test_d6_training_stats_are_the_numbers_of_the_log(pose, ill, logged, aps):
    text = (pose.reports(RUN) / "training_stats.txt").read_text()
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith("  loss")}
    for term in (*TERMS, "loss"):
        values = [row[term] for row in logged if row.get("mode") == "train"]
        expected = (statistics.mean(values), statistics.pstdev(values), min(values), max(values), values[-1])
        assert [float(cell) for cell in rows[term][:5]] == pytest.approx(expected, abs=1e-4), term
    assert f"Best AP: {max(aps.values()):.4f} (epoch {best_of(aps)})" in text


def test_d7_the_newest_three_the_best_and_what_latest_points_to_stay(pose, aps):
    kept = {f"epoch_{epoch}.pth" for epoch in (50, 55, 60, best_of(aps))}
    there = {p.name for p in (pose.checkpoints / RUN).glob("*.pth") if not p.is_symlink()}
    assert there == kept
    (run,) = pose.json("plan", RUN)["runs"]
    reasons = {d["path"].rsplit("/", 1)[1]: d["reasons"] for d in run["decisions"]}
    assert "latest.pth links here" in reasons["epoch_60.pth"]
    assert (pose.checkpoints / RUN / "latest.pth").resolve().name == "epoch_60.pth"
    removed = {item["path"].rsplit("/", 1)[1] for item in pose.json("trash")["entries"] if f"/runs/{RUN}/" in item["path"]}
    assert removed == {f"epoch_{epoch}.pth" for epoch in range(5, 65, 5)} - kept


def test_d7_a_trainer_that_removes_its_own_is_not_in_the_way(pose):
    pose.python("train.py", "--work-dir", "runs/own", "--epochs", 10, "--interval", 2, "--max-keep-ckpts", 3)
    assert pose.ckptwatch("run", "--once").returncode == 0
    assert {p["epoch"] for p in pose.json("rank", "own")["ranking"]} == {6, 8, 10}


def test_d8_an_alias_carries_metric_and_epoch(pose, aps):
    links = [p for p in pose.reports(RUN).iterdir() if p.is_symlink() and p.name.startswith("best")]
    assert [p.name for p in links] == [f"best_AP_epoch_{best_of(aps)}.pth"]
    assert not links[0].readlink().is_absolute()
    assert links[0].resolve() == pose.checkpoints / RUN / f"epoch_{best_of(aps)}.pth"


@pytest.mark.parametrize(
    ("run", "kind", "subject", "words", "back"),
    [("frozen", "plateau", "loss", "has not fallen for 150 points", "epoch_5.pth"),
     ("stuck", "stuck_at_zero", "AP", "AP has been 0.0 in all 4 validations", None),
     ("diverge", "divergence", "loss", "loss has risen since epoch", "epoch_"),
     ("overfit", "overfitting", "val/loss", "while loss went on falling", "epoch_24.pth")],
)
def test_d9_what_is_wrong_is_named_with_likely_causes_and_the_checkpoint_to_go_back_to(ill, run, kind, subject, words, back):
    alarm = ill[run][kind, subject]
    assert words in alarm["message"]
    assert alarm["causes"]
    assert (alarm.get("go_back_to") or "").endswith(back or "") if back != "epoch_" else "/epoch_" in alarm["go_back_to"]


def test_d9_the_alarms_stand_in_the_log_and_in_the_statistics(pose, ill):
    text = (pose.reports("diverge") / "training_stats.txt").read_text()
    assert ill["diverge"]["divergence", "loss"]["message"].partition(": ")[2] in text
    assert "nan: weights_not_finite: NaN or Inf in" in pose.log


def test_d10_the_text_log_says_what_the_json_log_says(pose, logged):
    run = pose.checkpoints / "words"
    run.mkdir()
    for path in (pose.checkpoints / RUN).iterdir():
        if path.suffix in (".pth", ".log"):
            shutil.copy2(path, run / path.name, follow_symlinks=False)
    assert pose.ckptwatch("run", "--once").returncode == 0
    exact, rounded = pose.json("stats", RUN)["losses"], pose.json("stats", "words")["losses"]
    assert set(rounded) == set(exact)
    for term in (*TERMS, "loss"):
        for number in ("mean", "std", "min", "max", "final"):
            assert math.isclose(rounded[term][number], exact[term][number], abs_tol=1e-4), (term, number)
    assert pose.json("rank", "words")["ranking"][0]["epoch"] == pose.json("rank", RUN)["ranking"][0]["epoch"]
