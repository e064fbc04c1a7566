"""examples/san-depth, run as its README says. Tests are named after rows B1 – B6."""

import json
import shutil

import pytest
import yaml

from ckptwatch.core.amounts import ordinal
from tests.examples.example import Example, idle

pytestmark = [pytest.mark.xdist_group("example-san-depth"), pytest.mark.timeout(900)]

RUN, EPOCHS = "depth", 6
METRICS = ["abs_rel", "rmse", "sq_rel", "d1", "abs_rel_rgbd"]
LOSSES = {"train_loss", "loss_silog", "loss_silog_rgbd", "loss_smooth"}
SHORT = ("--epochs", EPOCHS, "--scenes", 48, "--validation", 8, "--log-every", 3, "--lr", 0.012)


def name_of(epoch):
    return f"model_epoch_{epoch:02d}.pth"


def logged(example, run=RUN):
    """Epoch → what its validation returned, as the trainer wrote it."""
    lines = (example.checkpoints / run / "metrics.jsonl").read_text().splitlines()
    return {entry.pop("epoch"): entry for entry in map(json.loads, lines)}


def best(example, metric, count, *, reverse=False, period=1):
    """The epochs a person would pick from the trainer's log."""
    values = {epoch: entry[metric] for epoch, entry in logged(example).items() if epoch % period == 0}
    return sorted(values, key=values.__getitem__, reverse=reverse)[:count]


def there(example, run=RUN):
    return {p.name for p in (example.checkpoints / run).glob("*.pth")}


def ranked(example, config):
    """Epochs in the order of their places."""
    return [place["epoch"] for place in example.json("rank", RUN, config=config)["ranking"]]


def planned(example, config):
    """File name → (action, reasons)."""
    (run,) = example.json("plan", RUN, config=config)["runs"]
    return {d["path"].rsplit("/", 1)[1]: (d["decision"], "; ".join(d["reasons"])) for d in run["decisions"]}


def kept(decisions):
    return {name for name, (action, _) in decisions.items() if action == "keep"}


def fork(example, base):
    """The same after training, without anything of ckptwatch's."""
    copy = Example("san-depth", base)
    shutil.copytree(example.checkpoints, copy.checkpoints, ignore=shutil.ignore_patterns(".ckptwatch"))
    return copy


def rewrite(example, run, change):
    """Change what the log of a run says; `change` is given each entry."""
    file = example.checkpoints / run / "metrics.jsonl"
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    for entry in entries:
        change(entry)
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The example after a short training that nobody watched, recorded by one pass that keeps everything."""
    example = Example("san-depth", tmp_path_factory.mktemp("trained"))
    example.python("train.py", *SHORT)
    example.config("all.yaml", runs__0__keep={"save_top_k": -1})
    done = example.ckptwatch("run", "--once", config="all.yaml")
    assert done.returncode == 0, done.stderr
    return example


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The example after a whole run with the daemon beside it; the daemon is stopped."""
    example = Example("san-depth", tmp_path_factory.mktemp("watched"))
    example.checkpoints.mkdir()
    with example.daemon():
        example.python("train.py", *SHORT)
        example.wait(lambda status: idle(status) and there(example) == wanted(example), "the best are kept, others are gone")
    return example


def wanted(example):
    """What config.yaml keeps in the end."""
    epochs = {*best(example, "abs_rel", 3, period=2), *best(example, "rmse", 1, period=2), EPOCHS - 1}
    return {name_of(epoch) for epoch in epochs}


@pytest.fixture(scope="module")
def commanded(trained, tmp_path_factory):
    """Evaluated by the example's own program."""
    example = fork(trained, tmp_path_factory.mktemp("commanded"))
    content = yaml.safe_load((example.directory / "config.command.yaml").read_text())
    content["recipes"]["depth"]["max_samples"] = 8
    content["runs"][0]["evaluate"]["every_epochs"] = 3
    (example.directory / "command.yaml").write_text(yaml.safe_dump(content))
    done = example.ckptwatch("run", "--once", config="command.yaml")
    assert done.returncode == 0, done.stderr
    return example


# ---- B1: save_top_k -------------------------------------------------------------------------------------------------


def test_b1_minus_one_keeps_all_and_needs_no_metric(trained):
    file = trained.config("minus-one.yaml", runs=[{"match": "depth*", "keep": {"save_top_k": -1}}])
    decisions = planned(trained, file)
    assert kept(decisions) == {name_of(epoch) for epoch in range(EPOCHS)}
    assert all("keep best -1 keeps all" in reasons for _, reasons in decisions.values())


def test_b1_zero_keeps_none_but_the_newest(trained):
    """And what an alias points to, where there is one."""
    rank = {"monitor": "abs_rel"}
    file = trained.config("zero.yaml", runs__0__keep={"save_top_k": 0}, runs__0__rank=rank)
    assert kept(planned(trained, file)) == {name_of(epoch) for epoch in {*best(trained, "abs_rel", 1), EPOCHS - 1}}
    file = trained.config("none.yaml", runs__0__keep={"save_top_k": 0}, runs__0__rank=rank, runs__0__aliases={"best": False})
    assert kept(planned(trained, file)) == {name_of(EPOCHS - 1)}


@pytest.mark.parametrize("count", [1, 2])
def test_b1_k_keeps_the_k_best_and_says_which_rank_each_has(trained, count):
    file = trained.config(f"k{count}.yaml", runs__0__keep={"save_top_k": count}, runs__0__rank={"monitor": "abs_rel"})
    decisions = planned(trained, file)
    winners = best(trained, "abs_rel", count)
    assert kept(decisions) == {name_of(epoch) for epoch in {*winners, EPOCHS - 1}}
    for rank, epoch in enumerate(winners, start=1):
        assert f"rank {rank} of {EPOCHS}, keep best {count}" in decisions[name_of(epoch)][1]


# ---- B2: monitor and mode -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("monitor", "mode"), [("abs_rel", "min"), ("rmse", "min"), ("d1", "max")])
def test_b2_the_order_is_that_of_the_monitor_in_the_direction_of_its_mode(trained, monitor, mode):
    file = trained.config(f"{monitor}.yaml", runs__0__rank={"monitor": monitor, "mode": mode})
    assert ranked(trained, file) == best(trained, monitor, EPOCHS, reverse=mode == "max")


def test_b2_a_mode_that_contradicts_the_recipe_is_refused(trained):
    file = trained.config("contradiction.yaml", runs__0__rank={"monitor": "d1", "mode": "min"})
    done = trained.ckptwatch("check-config", file, config="")
    assert done.returncode == 2
    assert "d1" in done.stdout + done.stderr


# ---- B3: period -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [2, 3])
def test_b3_only_every_nth_epoch_takes_a_place(trained, period):
    file = trained.config(f"period{period}.yaml", runs__0__rank={"monitor": "abs_rel", "mode": "min", "period": period})
    ranking = trained.json("rank", RUN, config=file)
    assert [p["epoch"] for p in ranking["ranking"]] == best(trained, "abs_rel", EPOCHS, period=period)
    others = {u["path"].rsplit("/", 1)[1]: u["reason"] for u in ranking["unranked"]}
    assert others == {
        name_of(epoch): f"only every {ordinal(period)} epoch counts (period), this is {epoch}"
        for epoch in range(EPOCHS) if epoch % period}


# ---- B4: a metric that is not there ---------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.yaml", "config.command.yaml"])
def test_b4_the_config_check_says_what_the_recipe_can_yield(trained, file):
    done = trained.ckptwatch("check-config", file, config="")
    assert done.returncode == 0, done.stderr
    assert f"recipe depth can yield: {', '.join(METRICS)}" in done.stdout


@pytest.mark.parametrize("original", ["config.yaml", "config.command.yaml"])
@pytest.mark.parametrize("monitor", ["loss", "abs_rell"])
def test_b4_the_config_check_refuses_to_monitor_what_is_not_among_them(trained, original, monitor):
    content = yaml.safe_load((trained.directory / original).read_text())
    content["runs"][0]["rank"] = {"monitor": monitor, "mode": "min"}
    (trained.directory / "missing.yaml").write_text(yaml.safe_dump(content))
    done = trained.ckptwatch("check-config", "missing.yaml", config="")
    told = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2
    assert monitor in told
    assert all(metric in told for metric in METRICS)
    if monitor == "abs_rell":
        assert "did you mean `abs_rel`?" in told


@pytest.mark.parametrize(("monitor", "nearest"), [("loss", LOSSES), ("abs_rell", {"abs_rel"})])
def test_b4_a_missing_metric_leaves_checkpoints_unranked_kept_and_explained(trained, tmp_path, monitor, nearest):
    """As in the original: nobody could know before that validation returns no `loss`."""
    example = fork(trained, tmp_path)
    file = example.config("missing.yaml", recipes__depth={"logged": {}}, runs__0__rank={"monitor": monitor, "mode": "min"},
                          runs__0__keep={"save_top_k": 1})
    done = example.ckptwatch("run", "--once", config=file)
    assert done.returncode == 0, done.stderr
    assert there(example) == {name_of(epoch) for epoch in range(EPOCHS)}
    ranking = example.json("rank", RUN, config=file)
    assert ranking["ranking"] == []
    reasons = {u["reason"] for u in ranking["unranked"]}
    assert len(ranking["unranked"]) == EPOCHS
    assert all(r.startswith(f"no score for {monitor}; the nearest of its ") for r in reasons)
    assert {r.rsplit(" ", 1)[1] for r in reasons} <= nearest
    assert all(f"no score for {monitor}" in reasons for _, reasons in planned(example, file).values())


def test_b4_a_metric_that_appears_later_ranks_later(trained, tmp_path):
    example = fork(trained, tmp_path)
    file = example.config("late.yaml", recipes__depth={"logged": {}}, runs__0__rank={"monitor": "miou", "mode": "max"},
                          runs__0__keep={"save_top_k": 1})
    assert example.ckptwatch("run", "--once", config=file).returncode == 0
    assert ranked(example, file) == []
    with (example.checkpoints / RUN / "metrics.jsonl").open("a") as log:
        for epoch, miou in ((1, 0.25), (3, 0.75)):
            log.write(json.dumps({"epoch": epoch, "miou": miou}) + "\n")
    assert example.ckptwatch("run", "--once", config=file).returncode == 0
    assert ranked(example, file) == [3]
    assert there(example) == {name_of(epoch) for epoch in range(EPOCHS) if epoch != 1}  # 1 ranks second; the rest, nowhere


# ---- B5: zero is a value --------------------------------------------------------------------------------------------


def test_b5_a_logged_value_of_exactly_zero_is_the_best(trained, tmp_path):
    example = fork(trained, tmp_path)
    rewrite(example, RUN, lambda entry: entry.update(abs_rel=0.0) if entry["epoch"] == 2 else None)
    done = example.ckptwatch("run", "--once")
    assert done.returncode == 0, done.stderr
    first = example.json("rank", RUN)["ranking"][0]
    assert (first["epoch"], first["scores"]["abs_rel"]["value"]) == (2, 0.0)
    assert (example.reports(RUN) / "best_abs_rel.pth").resolve().name == name_of(2)


def test_b5_an_evaluation_that_answers_zero_is_the_best(trained, tmp_path):
    example = fork(trained, tmp_path)
    (example.directory / "zero.py").write_text(
        "import json, sys\nprint(json.dumps({'abs_rel': 0.0 if sys.argv[1].endswith('03.pth') else 0.5, 'rmse': 0.0}))\n")
    recipe = {"command": ["python", "zero.py", "{checkpoint}"], "metrics": ["abs_rel", "rmse"]}
    file = example.config("zero.yaml", recipes__depth=recipe, runs__0__rank={"monitor": "abs_rel"},
                          runs__0__keep={"save_top_k": 1}, runs__0__evaluate={"recipe": "depth", "every_epochs": 3},
                          workers={"devices": ["cpu"], "threads": 1})
    done = example.ckptwatch("run", "--once", config=file)
    assert done.returncode == 0, done.stderr
    first = example.json("rank", RUN, config=file)["ranking"][0]
    assert (first["epoch"], first["scores"]["abs_rel"]["value"], first["scores"]["rmse"]["value"]) == (3, 0.0, 0.0)


# ---- B6: arbitrary metrics, several monitors ------------------------------------------------------------------------


def test_b6_all_that_training_logs_is_there_with_its_source(trained):
    ranking = trained.json("rank", RUN, config="all.yaml")["ranking"]
    for place in ranking:
        values = {name: score["value"] for name, score in place["scores"].items()}
        entry = logged(trained)[place["epoch"]]
        assert {name: values[name] for name in [*METRICS, "rmse_log"]} == {
            name: pytest.approx(entry[name]) for name in [*METRICS, "rmse_log"]}
        assert place["scores"]["abs_rel"]["source"].startswith("metrics.jsonl")
        assert set(values) >= LOSSES
        assert place["scores"]["loss_silog"]["source"].startswith(("train.log", "tb/events"))


def test_b6_metrics_come_from_the_users_own_program(commanded):
    ranking = commanded.json("rank", RUN, config="command.yaml")
    evaluated = {p["epoch"]: p["scores"] for p in ranking["ranking"]}
    assert set(evaluated) == {0, 3}  # what training logged under the same names, of other scenes, is no substitute
    output = commanded.python("evaluate.py", "--ckpt", f"runs/depth/{name_of(3)}", "--scenes", 8)
    answer = json.loads(output.splitlines()[-1])
    for metric in METRICS:
        assert (evaluated[3][metric]["value"], evaluated[3][metric]["n"]) == (pytest.approx(answer[metric]), 8), metric


def test_b6_the_output_of_the_program_is_kept(commanded):
    logs = [p.read_text() for p in (commanded.directory / "state-command").rglob("*.log")]
    assert any('{"progress": 8, "total": 8}' in text and '"abs_rel": ' in text for text in logs)


def test_several_monitors_keep_their_best_beside_a_training(watched):
    assert there(watched) == wanted(watched)
    decisions = planned(watched, "config.yaml")
    first = name_of(best(watched, "rmse", 1, period=2)[0])
    assert "by rmse, keep best 1" in decisions[first][1]
    assert "rank 1 of " in decisions[first][1]
    assert decisions[name_of(EPOCHS - 1)][0] == "keep"


def test_each_monitor_has_its_alias(watched):
    links = {p.name: p.resolve().name for p in watched.reports(RUN).iterdir() if p.is_symlink()}
    assert links["best_abs_rel.pth"] == links["best.pth"] == name_of(best(watched, "abs_rel", 1, period=2)[0])
    assert links["best_rmse.pth"] == name_of(best(watched, "rmse", 1, period=2)[0])
    assert links["last.pth"] == name_of(EPOCHS - 1)


def test_training_is_not_disturbed_and_its_logs_are_as_it_wrote_them(watched, trained):
    assert {p.name for p in (watched.checkpoints / RUN).iterdir()} - there(watched) == {"metrics.jsonl", "tb", "train.log"}
    assert logged(watched) == logged(trained)
