"""examples/jit, run as its README says: a daemon beside a training. Tests are named after rows E1 – E7."""

import numpy as np
import pytest
import torch

from tests.examples.example import Example, idle

pytestmark = [pytest.mark.xdist_group("example-jit"), pytest.mark.timeout(900)]

RUN, BROKEN = "jit", "jit-broken"
VARIANTS = {"model", "model_ema1", "model_ema2"}


@pytest.fixture(scope="module")
def jit(tmp_path_factory):
    """The example after a whole run, interrupted at the fifth epoch and resumed; the daemon is stopped."""
    example = Example("jit", tmp_path_factory.mktemp("examples"))
    example.python("make_stats.py")
    with example.daemon():
        example.python("main_jit.py", "--epochs", 5)
        example.wait(lambda status: idle(status) and status["queue"]["done"] == 3, "the rolling checkpoint is evaluated")
        example.python("main_jit.py", "--resume", "runs/jit")
        example.wait(lambda status: idle(status) and _at_its_end(example.evaluated()), "the run is evaluated to its end")
    return example


def _at_its_end(evaluated):
    rolling, newest = evaluated.get("checkpoint-last.pth", set()), evaluated.get("checkpoint-24.pth", set())
    return (25, "") in rolling and newest == {(24, variant) for variant in VARIANTS}


@pytest.fixture(scope="module")
def ranking(jit):
    return jit.json("rank", RUN)


@pytest.fixture(scope="module")
def decisions(jit):
    (run,) = jit.json("plan", RUN)["runs"]
    return {d["path"].rsplit("/", 1)[1]: d for d in run["decisions"]}


@pytest.fixture(scope="module")
def points(jit):
    """Tag → epoch → last value, as TensorBoard reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(jit.reports(RUN) / "tensorboard"))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


@pytest.fixture(scope="module")
def shared(jit):
    """One more pass, in which both workers have one evaluation to share; and a run whose checkpoint lacks two entries."""
    state = torch.load(jit.directory / "runs/jit/checkpoint-24.pth", weights_only=False)
    for key in ("optimizer", "model_ema2"):
        del state[key]
    (jit.directory / "runs" / BROKEN).mkdir()
    torch.save(state, jit.directory / "runs" / BROKEN / "checkpoint-9.pth")
    jit.config("shared.yaml", recipes__jit__version=2,
               runs__0__evaluate={"recipe": "jit", "every_epochs": 24, "variants": ["model_ema1"]})
    return jit.ckptwatch("run", "--once", config="shared.yaml")


def places(ranking, epoch):
    """Variant → scores of the milestone of an epoch."""
    return {p["variant"]: {m: s["value"] for m, s in p["scores"].items()} for p in ranking["ranking"]
            if p["path"].endswith(f"/checkpoint-{epoch}.pth")}


def test_e1_weights_and_both_averages_are_evaluated_and_ranked_each_by_itself(ranking):
    last = places(ranking, 24)
    assert set(last) == VARIANTS
    assert len({scores["fid"] for scores in last.values()}) == 3
    best = ranking["ranking"][0]
    assert best["variant"] in ("model_ema1", "model_ema2")
    assert max(last["model_ema1"]["fid"], last["model_ema2"]["fid"]) < last["model"]["fid"]


def test_e1_each_variant_gets_better_while_the_model_learns(points):
    for variant in VARIANTS:
        fid, score = points[f"Evaluation/FID/{variant}"], points[f"Evaluation/Inception_Score/{variant}"]
        assert fid[24] < fid[8] < fid[4]
        assert score[24] > score[4]
    # The longer average lags behind where little has been learnt, and leads where the weights only tremble.
    assert points["Evaluation/FID/model_ema1"][4] > points["Evaluation/FID/model"][4]
    assert points["Evaluation/FID/model_ema1"][24] < points["Evaluation/FID/model"][24]


def test_e2_milestones_stay_and_the_rolling_checkpoint_is_never_removed(jit, ranking, decisions):
    there = {p.name for p in (jit.checkpoints / RUN).iterdir()}
    assert there == set(decisions) == {"checkpoint-16.pth", "checkpoint-24.pth", "checkpoint-last.pth"}
    assert "milestone of 16 epochs" in decisions["checkpoint-16.pth"]["reasons"]
    assert decisions["checkpoint-last.pth"]["reasons"][0] == "the trainer's own rolling last"
    assert any(r.endswith("keep best 1") for r in decisions[ranking["ranking"][0]["path"].rsplit("/", 1)[1]]["reasons"])


def test_e3_the_rolling_checkpoint_is_evaluated_where_its_epoch_is_a_multiple(points, ranking):
    assert all(epoch % 4 == 0 for values in points.values() for epoch in values)
    assert {4, 8, 16, 24} <= set(points["Evaluation/FID/model"])  # of 4 there was never another file than the rolling one
    assert [(u["path"].rsplit("/", 1)[1], u["reason"]) for u in ranking["unranked"]] == [
        ("checkpoint-last.pth", "no score for fid: every 4th epoch is evaluated, this is 25")]


def test_e3_the_samples_are_those_of_the_recipe(ranking):
    assert {s["n"] for p in ranking["ranking"] for s in p["scores"].values()} == {240}


def test_e4_shared_by_two_workers_the_scores_are_those_of_one(jit, ranking, shared):
    assert shared.returncode == 0, shared.stderr
    assert "evaluating checkpoint-24.pth [model_ema1] on cpu, cpu" in shared.stderr
    (place,) = jit.json("rank", RUN, config="shared.yaml")["ranking"]
    assert place["variant"] == "model_ema1"
    for metric, value in places(ranking, 24)["model_ema1"].items():
        assert place["scores"][metric]["value"] == pytest.approx(value, rel=1e-9), metric


def test_e5_statistics_of_another_network_are_refused_in_words(jit):
    np.savez(jit.directory / "other.npz", mu=np.zeros(32), sigma=np.eye(32))
    file = jit.config("other.yaml", recipes__jit__reference={"stats": "other.npz"})
    done = jit.ckptwatch("eval", "runs/jit/checkpoint-24.pth", "--variant", "model", "--max-samples", 40, config=file)
    assert done.returncode == 1
    assert "other.npz" in done.stderr
    assert "32" in done.stderr
    assert "64" in done.stderr


def test_e5_a_missing_file_of_statistics_is_told_before_anything_runs(jit):
    file = jit.config("nowhere.yaml", recipes__jit__reference={"stats": "nowhere.npz"})
    done = jit.ckptwatch("check-config", file, config="")
    assert done.returncode == 2
    assert "nowhere.npz: No such file or directory" in done.stderr + done.stdout


def test_e6_a_checkpoint_that_lacks_keys_is_reported_with_them(jit, shared):
    told = [alert["message"] for run in jit.json("status")["runs"] if run["name"] == BROKEN for alert in run["alerts"]]
    assert any("checkpoint-9.pth" in message and "optimizer, model_ema2" in message for message in told), told
    assert "optimizer, model_ema2" in shared.stderr
    assert jit.json("inspect", f"runs/{BROKEN}/checkpoint-9.pth")["missing_keys"] == ["optimizer", "model_ema2"]
    assert jit.json("inspect", "runs/jit/checkpoint-24.pth")["missing_keys"] == []


def test_e7_an_evaluation_of_our_own_yields_scores_to_rank_by(jit, ranking):
    assert all(0 <= p["scores"]["worst_class"]["value"] <= p["scores"]["class_accuracy"]["value"] <= 1
               for p in ranking["ranking"])
    file = jit.config("by-accuracy.yaml", runs__0__rank={"by": "class_accuracy"})
    values = [p["scores"]["class_accuracy"]["value"] for p in jit.json("rank", RUN, config=file)["ranking"]]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.9
