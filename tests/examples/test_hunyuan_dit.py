"""examples/hunyuan-dit, run as its README says: a daemon beside a training. Tests are named after rows A1 – A17."""

import json
import shutil

import pytest
from PIL import Image

from ckptwatch.config import load_config
from tests.examples.example import Example, idle

pytestmark = [pytest.mark.xdist_group("example-hunyuan-dit"), pytest.mark.timeout(900)]

RUN = "000-driving"
EVALUATED = {100, 200, 300, 400, 500, 600, 620}
METRICS = ("clip_score", "inception_score", "lpips", "fid", "paint_match")
TAGS = {"CLIP_Score": "clip_score", "LPIPS": "lpips", "Inception_Score": "inception_score", "FID": "fid",
        "Composite_Score": "composite_score"}


@pytest.fixture(scope="module")
def driving(tmp_path_factory):
    """The example after a whole run: training over, everything evaluated, daemon stopped, results written."""
    example = Example("hunyuan-dit", tmp_path_factory.mktemp("examples"))
    example.python("prepare.py")
    with example.daemon():
        example.python("train.py")
        example.wait(lambda status: idle(status) and status["queue"]["done"] >= len(EVALUATED), "all are evaluated")
    # The run is over: one pass writes its results, as the daemon itself does after `ended_after`.
    assert example.ckptwatch("run", "--once").returncode == 0
    return example


@pytest.fixture(scope="module")
def ranking(driving):
    return driving.json("rank", RUN)


@pytest.fixture(scope="module")
def decisions(driving):
    (run,) = driving.json("plan")["runs"]
    return {d["path"].rsplit("/", 1)[1]: d for d in run["decisions"]}


@pytest.fixture(scope="module")
def points(driving):
    """Tag → step → last value, as TensorBoard reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(driving.reports(RUN) / "tensorboard"))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


@pytest.fixture(scope="module")
def tracked(driving):
    return json.loads((driving.reports(RUN) / "best_checkpoints.json").read_text())


def value(place, metric):
    return place["scores"][metric]["value"]


def test_everything_went_well(driving):
    status = driving.json("status")
    assert status["queue"] == {"queued": 0, "running": 0, "failed": 0, "done": len(EVALUATED)}
    assert status["alerts"] == status["runs"][0]["alerts"] == []


@pytest.mark.parametrize(
    ("row", "metric", "sign", "low", "high"),
    [("A1", "CLIP_Score", 1, 0.0, 1.0), ("A2", "LPIPS", -1, 0.0, 2.0), ("A3", "Inception_Score", 1, 1.0, 24.0),
     ("A4", "FID", -1, 0.0, 300.0), ("A5", "Composite_Score", 1, -0.3, 0.8)],
)
def test_a1_to_a5_each_metric_gets_better_while_the_model_learns(points, row, metric, sign, low, high):
    values = points[f"Evaluation/{metric}"]
    assert all(low <= v <= high for v in values.values())
    assert sign * values[600] > sign * values[300] > sign * values[100], row


def test_a5_the_composite_is_the_weighted_sum_of_metrics_mapped_to_their_ranges(driving, ranking):
    terms = load_config(driving.directory / "config.yaml").recipes["driving"].composite.terms
    assert {name: term.weight for name, term in terms.items()} == {
        "clip_score": 0.40, "inception_score": 0.30, "lpips": -0.20, "fid": -0.10, "paint_match": 0.10}
    for place in ranking["ranking"]:
        parts = {name: min(1.0, max(0.0, (value(place, name) - t.low) / (t.high - t.low))) for name, t in terms.items()}
        assert value(place, "composite_score") == pytest.approx(sum(t.weight * parts[n] for n, t in terms.items()))


def test_a5_a_term_that_cannot_be_had_is_an_error_before_anything_runs(driving):
    file = driving.config("without-fid.yaml", recipes__driving__metrics=["clip_score", "inception_score", "lpips"])
    done = driving.ckptwatch("check-config", file, config="")
    assert done.returncode == 2
    assert "recipes.driving.composite.fid" in done.stderr
    assert "the recipe has no metric `fid`" in done.stderr


def test_a6_every_second_checkpoint_and_the_final_one_are_evaluated(points, ranking):
    assert set(points["Evaluation/FID"]) == EVALUATED
    (left_out,) = ranking["unranked"]
    assert left_out["path"].endswith("/latest.pt")
    assert left_out["reason"].endswith("every 2nd checkpoint is evaluated")


def test_a6_evaluation_can_be_switched_off(driving):
    file = driving.config("off.yaml", runs__0__evaluate__enabled=False)
    assert load_config(driving.directory / file).rule_for(RUN).evaluate is None


def test_a7_the_three_best_are_kept(ranking, decisions, tracked):
    best = [place["path"].rsplit("/", 1)[1] for place in ranking["ranking"]][:3]
    assert [value(p, "composite_score") for p in ranking["ranking"]] == sorted(
        (value(p, "composite_score") for p in ranking["ranking"]), reverse=True)
    for rank, name in enumerate(best, start=1):
        assert decisions[name]["decision"] == "keep"
        assert any(r.startswith(f"rank {rank} of ") and r.endswith("keep best 3") for r in decisions[name]["reasons"])
    assert tracked["save_top_k"] == 3


def test_a8_best_is_a_relative_link_to_the_best_and_can_be_sampled_from(driving, ranking):
    link = driving.reports(RUN) / "best.pt"
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert str(link.resolve()) == ranking["ranking"][0]["path"]
    for key in ("ema", "module"):
        driving.python("sample.py", "--dit-weight", link, "--load-key", key, "--prompts", "prompts.txt", "--count", 2,
                       "--out", f"drawn/{key}")
    ema, module = (sorted((driving.directory / "drawn" / key).iterdir()) for key in ("ema", "module"))
    assert [p.name for p in ema] == [p.name for p in module] == ["000000.png", "000001.png"]
    assert ema[0].read_bytes() != module[0].read_bytes()


def test_a9_milestones_stay_and_the_rest_goes_to_the_trash(driving, ranking, decisions):
    best = {place["path"].rsplit("/", 1)[1] for place in ranking["ranking"][:3]}
    kept = {"0000200.pt", "0000400.pt", "0000600.pt", "latest.pt", "final.pt"} | best
    saved = {f"{step:07d}.pt" for step in range(50, 601, 50)} | {"latest.pt", "final.pt"}
    there = {p.name for p in (driving.checkpoints / RUN / "checkpoints").iterdir() if p.is_dir()}
    assert there == set(decisions) == kept
    assert all("milestone of 200 steps" in decisions[f"{step:07d}.pt"]["reasons"] for step in (200, 400, 600))
    removed = {item["path"].rsplit("/", 1)[1] for item in driving.json("trash")["entries"]}
    assert removed == saved - kept


def test_a9_the_training_goes_on_from_what_was_kept(driving):
    shutil.copytree(driving.checkpoints / RUN, driving.directory / "again" / RUN, symlinks=True)
    told = driving.python("train.py", "--resume", f"again/{RUN}", "--max-training-steps", 622)
    assert "from step 620" in told
    assert (driving.directory / "again" / RUN / "checkpoints" / "latest").read_text() == "final.pt"


def test_a10_the_tracking_state_says_what_the_ranking_says(tracked, ranking):
    assert tracked["tracked_metric"] == "composite_score"
    assert tracked["higher_is_better"] is True
    assert [(b["rank"], b["step"], b["absolute_path"]) for b in tracked["best_checkpoints"]] == [
        (p["rank"], p["step"], p["path"]) for p in ranking["ranking"][:3]]
    assert set(tracked["best_checkpoints"][0]["metrics"]) == {*METRICS, "composite_score"}


def test_a11_results_are_written_when_the_run_has_ended(driving, ranking):
    results = json.loads((driving.reports(RUN) / "best_checkpoint_results.json").read_text())
    assert results["best_checkpoints"][0]["step"] == ranking["ranking"][0]["step"]


def test_a12_and_a15_twenty_images_comparisons_and_prompts_are_kept_of_each(driving):
    prompts = (driving.directory / "prompts.txt").read_text().splitlines()
    samples = driving.reports(RUN) / "evaluation_samples"
    assert {p.name for p in samples.iterdir() if p.is_dir()} == {f"{s:07d}" for s in EVALUATED - {620}} | {"final"}
    for directory in (p for p in samples.iterdir() if p.is_dir()):
        numbers = [f"{i:03d}" for i in range(20)]
        kinds = ("eval_generated_{}.jpg", "eval_comparison_{}.jpg", "eval_prompt_{}.txt")
        assert {p.name for p in directory.iterdir()} == {kind.format(n) for kind in kinds for n in numbers} | {"sheet.jpg"}
        assert [(directory / f"eval_prompt_{n}.txt").read_text().strip() for n in numbers] == prompts[:20]
    with Image.open(samples / "final" / "eval_comparison_000.jpg") as pair, \
            Image.open(samples / "final" / "eval_generated_000.jpg") as one:
        assert pair.width >= 2 * one.width  # original beside generated


def test_a13_the_log_holds_the_summary(driving, ranking):
    lines = [line.split(" INFO ", 1)[-1] for line in driving.log.splitlines()]
    summary = lines[max(i for i, line in enumerate(lines) if line.startswith("Best Checkpoint Summary")):]
    assert summary[:3] == [f"Best Checkpoint Summary: {RUN}", "  Tracked metric: composite_score (higher is better)",
                           "  Saved checkpoints: 3/3"]
    best = ranking["ranking"][0]
    assert f"  Rank 1: step {best['step']}, epoch {best['epoch']}" in summary
    assert f"    Path: {best['path']}" in summary
    for metric in (*METRICS, "composite_score"):
        assert any(line.startswith(f"    {metric}: {value(best, metric):.4f}") for line in summary)


@pytest.mark.parametrize(
    ("metric", "mode"),
    [("composite_score", "max"), ("clip_score", "max"), ("inception_score", "max"), ("lpips", "min"), ("fid", "min"),
     ("paint_match", "max")],
)
def test_a14_any_metric_can_be_tracked_without_evaluating_again(driving, ranking, metric, mode):
    file = driving.config(f"by-{metric}.yaml", runs__0__rank={"by": metric})
    by_metric = driving.json("rank", RUN, config=file)
    assert (by_metric["metric"], by_metric["mode"]) == (metric, mode)
    values = [value(place, metric) for place in by_metric["ranking"]]
    assert values == sorted(values, reverse=mode == "max")
    assert len(values) == len(ranking["ranking"])


def test_a16_tensorboard_has_every_metric_at_the_training_step(points, ranking):
    for tag, metric in TAGS.items():
        assert set(points[f"Evaluation/{tag}"]) == EVALUATED
        for place in ranking["ranking"]:
            assert points[f"Evaluation/{tag}"][place["step"]] == pytest.approx(value(place, metric), rel=1e-6)
    best = ranking["ranking"][0]["step"]
    assert {step for step, flag in points["Evaluation/IsBest"].items() if flag} == {best}


def test_a17_a_metric_of_our_own_takes_part(driving, ranking, points):
    assert all(0 <= value(place, "paint_match") <= 1 for place in ranking["ranking"])
    values = next(v for tag, v in points.items() if tag.lower() == "evaluation/paint_match")
    assert values[600] > values[100]
