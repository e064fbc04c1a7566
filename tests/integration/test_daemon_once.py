"""The whole line in one process: found, scored, ranked, linked, removed, reported; only the worker is a stand-in."""

import json
import math
import os

import pytest

from ckptwatch.daemon import run_commands
from ckptwatch.errors import RemovalRefused, UsageError
from ckptwatch.planning import assess
from ckptwatch.stages.intake import Intake
from ckptwatch.stages.keeping import KeepingStage
from ckptwatch.store import runs
from ckptwatch.store.database import open_writing
from tests.support import OURS, save, tree

pytestmark = pytest.mark.usefixtures("stub_workers")
QUALITIES = {100: 1.0, 200: 5.0, 300: 3.0, 400: 2.0, 500: 4.0}


@pytest.fixture
def trained(project):
    for step, quality in QUALITIES.items():
        project.save(f"a/{step:04d}.pt", quality=quality)
    return project


def kept(project):
    return sorted(name for name, state in project.states().items() if state == "complete")


def aliases(project, run="a"):
    return {p.name: p.resolve().name for p in sorted((project.root / OURS / "runs" / run).iterdir()) if p.is_symlink()}


def do(project, command, target, **more):
    return run_commands(project.settings, {"command": command, "target": target, "by": "alice", **more})


def reasons(project, run="a"):
    with project.reading() as conn:
        [found] = [r for r in runs.all_runs(conn) if r.name == run]
        a = assess(conn, found, project.settings, now=4e9)
    unranked = {u.contender.path.name: u.reason for u in a.ranking.unranked} if a.ranking else {}
    return {d.checkpoint.path.name: "; ".join(d.reasons) for d in a.plan.decisions}, unranked


# ---- the main job ---------------------------------------------------------------------------------------------------


def test_the_best_and_the_last_are_kept_and_the_others_wait_in_the_trash(trained):
    assert trained.once() == 0
    assert kept(trained) == ["a/0200.pt", "a/0500.pt"]
    assert aliases(trained) == {"best.pt": "0200.pt", "last.pt": "0500.pt"}
    assert sorted(p.name for p in (trained.root / OURS / "trash").glob("*/*")) == ["0100.pt", "0300.pt", "0400.pt"]
    tracker = json.loads((trained.root / OURS / "runs/a/best_checkpoints.json").read_text())
    assert "0200.pt" in json.dumps(tracker)


def test_a_second_look_changes_nothing(trained):
    trained.once()
    before, history = tree(trained.root, ours=True), trained.history()
    trained.once()
    assert tree(trained.root, ours=True) == before
    assert trained.history() == history


def test_nothing_is_created_that_the_trainer_did_not_write(trained):
    """Invariant 1: outside .ckptwatch nothing appears, and what stays is untouched to the bit and the nanosecond."""
    save(trained.root / "a/checkpoints/0600.pt", {"quality": 0.5})
    (trained.root / "a/notes.txt").write_text("mine")
    before = tree(trained.root)
    times = {p: p.stat().st_mtime_ns for p in trained.root.rglob("*") if p.is_file()}
    trained.once()
    after = tree(trained.root)
    assert after.items() <= before.items()
    assert {p: p.stat().st_mtime_ns for p in times if p.exists()}.items() <= times.items()


def test_without_keep_rules_no_file_is_ever_lost(trained):
    before = tree(trained.root)
    trained.run_rule(keep=None).once()
    assert tree(trained.root) == before and aliases(trained)["best.pt"] == "0200.pt"


def test_a_dry_run_decides_and_changes_nothing(trained):
    before = tree(trained.root, ours=True)
    trained.once(dry_run=True)
    after = tree(trained.root, ours=True)
    after.pop(f"{OURS}/root.json", None), after.pop(OURS, None)
    assert after == before
    decided, _ = reasons(trained)
    assert "keep best 2" in decided["0100.pt"]


def test_runs_are_judged_apart(trained):
    for step in (100, 200):
        trained.save(f"b/checkpoints/{step:04d}.pt", quality=float(step))
    trained.once()
    assert kept(trained) == ["a/0200.pt", "a/0500.pt", "b/checkpoints/0100.pt", "b/checkpoints/0200.pt"]
    assert aliases(trained, "b") == {"best.pt": "0200.pt", "last.pt": "0200.pt"}


def test_what_is_over_half_waits_for_approval_and_then_goes(trained):
    trained.run_rule(approve_over=0.5, keep={"best": 1, "last": 1}).once()
    assert len(kept(trained)) == 5
    plan = trained.json("plan", "a")["runs"][0]
    assert "removes 3 of 5" in plan["held"] and plan["reclaimed_bytes"] > 0
    reply = do(trained, "approve", "a")
    assert reply["removals"] == 3
    assert kept(trained) == ["a/0200.pt", "a/0500.pt"]
    with pytest.raises(UsageError, match="no plan of this run waits"):
        do(trained, "approve", "a")


# ---- bad scores -----------------------------------------------------------------------------------------------------


def test_nan_is_unranked_and_kept_and_zero_is_a_value(project):
    for step, quality in ((100, math.nan), (200, 0.0), (300, -1.0), (400, -2.0), (500, -3.0)):
        project.save(f"a/{step:04d}.pt", quality=quality)
    project.run_rule(keep={"best": 1, "last": 1}).once()
    assert kept(project) == ["a/0100.pt", "a/0200.pt", "a/0500.pt"]
    assert aliases(project)["best.pt"] == "0200.pt"
    assert "0100.pt" in reasons(project)[1]


@pytest.mark.parametrize(("how", "kind", "words"), [
    ("crash", "crash", "SIGSEGV"), ("abort", "crash", "SIGABRT"), ("exit", "crash", "exited with status 0"),
    ("garbage", "crash", "sent garbage"), (None, "metric", "no quality"),
])
def test_a_failing_evaluation_keeps_its_checkpoint_unranked_with_a_message(trained, how, kind, words):
    trained.save("a/0050.pt", **({"misbehave": how} if how else {}))
    trained.write(workers={"devices": ["cpu"], "retry_after": 0, "attempts": 2})
    assert trained.once() == 1
    assert kept(trained) == ["a/0050.pt", "a/0200.pt", "a/0500.pt"]
    [failed] = trained.evaluations()["a/0050.pt"]
    assert failed.state == "failed" and failed.attempts == 2 and failed.failure.kind == kind
    assert words in failed.failure.message and words in reasons(trained)[1]["0050.pt"]
    alerts = trained.json("status")["runs"][0]["alerts"]
    assert any(words in a["message"] and "ckptwatch retry a@50" in a["fix"] for a in alerts)


def test_a_hanging_evaluation_is_ended_and_its_checkpoint_kept(trained):
    trained.save("a/0050.pt", misbehave="hang")
    trained.write(workers={"devices": ["cpu"], "retry_after": 0, "attempts": 1, "timeout": 2.0})
    assert trained.once() == 1
    [failed] = trained.evaluations()["a/0050.pt"]
    assert failed.failure.kind == "timeout" and "no result after" in failed.failure.message
    assert "a/0050.pt" in kept(trained)


def test_retry_gives_a_failed_evaluation_another_chance(trained):
    trained.save("a/0050.pt")
    trained.write(workers={"devices": ["cpu"], "retry_after": 0, "attempts": 1})
    trained.once()
    assert do(trained, "retry", "a@50")["evaluations"] == 1
    [waiting] = trained.evaluations()["a/0050.pt"]
    assert waiting.state == "pending" and waiting.attempts == 0
    assert trained.once() == 1


# ---- a recipe's inputs ----------------------------------------------------------------------------------------------


@pytest.fixture
def referenced(trained):
    trained.config["recipes"]["r"]["reference"] = {"images": "ref"}
    return trained.run_rule(keep={"best": 1, "last": 1})


@pytest.mark.parametrize("away", ["empty", "gone"])
def test_without_its_reference_a_recipe_waits_and_goes_on_when_it_is_back(referenced, away):
    if away == "gone":
        (referenced.base / "ref").rmdir()
    assert referenced.once() == 0, "nothing failed"
    assert len(kept(referenced)) == 5 and all(e.attempts == 0 for [e] in referenced.evaluations().values())
    status = referenced.json("status")
    assert any("recipe r cannot be used" in a["message"] and "ref" in a["message"] for a in status["alerts"])
    (referenced.base / "ref").mkdir(exist_ok=True)
    (referenced.base / "ref/1.png").write_bytes(b"image")
    assert referenced.once() == 0
    assert kept(referenced) == ["a/0200.pt", "a/0500.pt"] and referenced.json("status")["alerts"] == []


def test_a_reference_that_goes_away_later_takes_no_ranking_along(referenced):
    (referenced.base / "ref/1.png").write_bytes(b"image")
    referenced.once()
    (referenced.base / "ref/1.png").rename(referenced.base / "1.png")
    referenced.save("a/0600.pt", quality=9.0)
    referenced.once()
    assert aliases(referenced) == {"best.pt": "0200.pt", "last.pt": "0600.pt"}
    assert "evaluation pending" in reasons(referenced)[1]["0600.pt"]
    (referenced.base / "1.png").rename(referenced.base / "ref/1.png")
    referenced.once()
    assert aliases(referenced)["best.pt"] == "0600.pt"
    assert [len(found) for found in referenced.evaluations().values()] == [1] * 6, "nothing was evaluated twice"


def test_scores_of_another_recipe_are_never_compared(trained):
    trained.run_rule(keep={"best": 2}).once()
    before = kept(trained)
    trained.config["recipes"]["r"]["samples"] = 8
    trained.write(workers={"devices": [], "threads": 1}).once()
    assert kept(trained) == before, "old scores are unranked, and unranked keeps"
    assert set(reasons(trained)[1]) == {"0200.pt", "0500.pt"}
    trained.write(workers={"devices": ["cpu"], "threads": 1}).once()
    assert reasons(trained)[1] == {} and len({e.digest for e in trained.evaluations()["a/0200.pt"]}) == 2


# ---- what else needs a file -----------------------------------------------------------------------------------------


def test_what_a_trainer_points_to_is_not_removed(trained):
    (trained.root / "a/latest.pt").symlink_to("0100.pt")
    (trained.root / "a/last_checkpoint").write_text("0300.pt\n")
    trained.once()
    assert kept(trained) == ["a/0100.pt", "a/0200.pt", "a/0300.pt", "a/0500.pt"]
    decided, _ = reasons(trained)
    assert "latest.pt links here" in decided["0100.pt"] and "named by last_checkpoint" in decided["0300.pt"]


def test_a_link_or_tracker_beside_the_checkpoint_directory_counts(project):
    for step in (100, 200, 300, 400):
        project.save(f"a/checkpoints/{step:04d}.pt", quality=float(step))
    (project.root / "a/latest").symlink_to("checkpoints/0100.pt")
    (project.root / "a/checkpoint").write_text('model_checkpoint_path: "checkpoints/0200.pt"\n')
    project.run_rule(keep={"best": 1}).once()
    assert kept(project) == [f"a/checkpoints/{s:04d}.pt" for s in (100, 200, 400)]


def test_a_checkpoint_open_in_a_process_is_kept_and_the_rest_goes_on(trained):
    with (trained.root / "a/0100.pt").open("rb"):
        trained.once()
        assert kept(trained) == ["a/0100.pt", "a/0200.pt", "a/0500.pt"]
    trained.once()
    assert kept(trained) == ["a/0200.pt", "a/0500.pt"]


def test_an_incomplete_file_is_kept_unevaluated_and_shown(trained):
    whole = (trained.root / "a/0100.pt").read_bytes()
    (trained.root / "a/0600.pt").write_bytes(whole[:-10])
    (trained.root / "a/0700.pt").write_bytes(b"")
    (trained.root / "a/0800.pt").write_text("not a checkpoint at all")
    trained.once()
    states = trained.states()
    assert [states[f"a/0{n}00.pt"] for n in (6, 7, 8)] == ["incomplete"] * 3
    assert aliases(trained)["last.pt"] == "0500.pt" and "a/0600.pt" not in trained.evaluations()
    messages = [a["message"] for a in trained.json("status")["runs"][0]["alerts"]]
    assert any("0700.pt is not whole: empty file" in m for m in messages)
    trained.save("a/0600.pt", quality=9.0)
    trained.once()
    assert aliases(trained) == {"best.pt": "0600.pt", "last.pt": "0600.pt"}


def test_the_last_whole_checkpoint_is_never_removed(project):
    """The plan was made when a newer one was there; the trainer deletes that one at this moment."""
    for step in (100, 200):
        project.save(f"a/{step:04d}.pt", quality=float(step))
    (project.root / "a/0300.pt").write_bytes(b"broken")
    project.run_rule(keep={"last": 9}).once()
    project.run_rule(keep={"last": 1})
    db = open_writing(project.state)
    try:
        intakes = {rule.root: Intake(db, rule) for rule in project.settings.roots}
        keeping = KeepingStage(db, project.settings, intakes)
        for intake in intakes.values():
            intake.check(now=4e9)
        (project.root / "a/0200.pt").unlink()
        keeping.process(1, now=4e9)
        keeping.close()
    finally:
        db.close()
    assert (project.root / "a/0100.pt").exists()


def test_a_taken_alias_name_stops_removals_of_that_run_only(trained):
    trained.save("b/0100.pt", quality=1.0)
    trained.save("b/0200.pt", quality=2.0)
    trained.save("b/0300.pt", quality=3.0)
    (trained.root / "a/best.pt").symlink_to("0100.pt")
    trained.write(runs=[{**trained.config["runs"][0], "match": "a", "aliases": {"dir": "."}},
                        {**trained.config["runs"][0], "keep": {"best": 1}}]).once()
    assert len([n for n in kept(trained) if n.startswith("a/")]) == 5
    assert [n for n in kept(trained) if n.startswith("b/")] == ["b/0300.pt"]
    assert (trained.root / "a/best.pt").readlink().name == "0100.pt"


def test_aliases_beside_the_checkpoints_are_neither_checkpoints_nor_foreign(trained):
    trained.run_rule(aliases={"dir": "."}).once()
    trained.once()
    assert (trained.root / "a/best.pt").readlink().as_posix() == "0200.pt"
    assert kept(trained) == ["a/0200.pt", "a/0500.pt"]
    trained.save("a/0600.pt", quality=9.0)
    trained.once()
    assert (trained.root / "a/best.pt").readlink().as_posix() == "0600.pt"


# ---- rewriting, vanishing, coming back ------------------------------------------------------------------------------


def test_a_rewritten_checkpoint_is_evaluated_anew(trained):
    trained.run_rule(keep=None).once()
    trained.save("a/0100.pt", quality=9.0)
    trained.once()
    assert aliases(trained)["best.pt"] == "0100.pt"
    assert [e.scores["quality"].value for e in trained.evaluations()["a/0100.pt"]] == [1.0, 9.0]


def test_what_somebody_else_removed_is_gone_and_what_comes_back_is_known(trained):
    trained.run_rule(keep=None).once()
    best = trained.root / "a/0200.pt"
    best.rename(trained.base / "away.pt")
    trained.once()
    assert trained.states()["a/0200.pt"] == "gone" and aliases(trained)["best.pt"] == "0500.pt"
    (trained.base / "away.pt").rename(best)
    trained.once()
    assert trained.states()["a/0200.pt"] == "complete" and aliases(trained)["best.pt"] == "0200.pt"
    assert len(trained.evaluations()["a/0200.pt"]) == 1
    assert [k for k, p in trained.history() if p == "a/0200.pt"] == ["found", "evaluated", "gone", "returned"]


def test_a_pin_keeps_and_unpin_lets_go(trained):
    trained.write(workers={"devices": []}).once()
    do(trained, "pin", "a@100", why="for the paper")
    trained.write(workers={"devices": ["cpu"]}).once()
    assert kept(trained) == ["a/0100.pt", "a/0200.pt", "a/0500.pt"]
    assert "pinned by alice: for the paper" in reasons(trained)[0]["0100.pt"]
    do(trained, "unpin", str(trained.root / "a/0100.pt"))
    assert kept(trained) == ["a/0100.pt", "a/0200.pt", "a/0500.pt"], "only the daemon, or an approval, carries out a plan"
    trained.once()
    assert kept(trained) == ["a/0200.pt", "a/0500.pt"]
    with pytest.raises(UsageError, match="not pinned"):
        do(trained, "unpin", "a@200")


def test_restore_brings_back_bit_for_bit_and_for_good(trained):
    data = (trained.root / "a/0100.pt").read_bytes()
    trained.once()
    assert do(trained, "restore", "a@100")["path"].endswith("0100.pt")
    assert (trained.root / "a/0100.pt").read_bytes() == data
    trained.once()
    assert "a/0100.pt" in kept(trained) and len(trained.evaluations()["a/0100.pt"]) == 1


def test_the_trash_is_emptied_when_its_time_is_over(trained):
    trained.run_rule(trash={"grace": 0}).once()
    trained.once()
    assert not list((trained.root / OURS / "trash").iterdir())
    assert sorted(trained.states().values()) == ["complete"] * 2 + ["purged"] * 3
    with pytest.raises(RemovalRefused):
        do(trained, "restore", "a@100")


@pytest.mark.parametrize("target", ["a@999", "nowhere", "a@x", "/elsewhere/0100.pt", ""])
def test_what_cannot_be_found_is_said_so(trained, target):
    trained.once()
    with pytest.raises(UsageError):
        do(trained, "pin", target)


def test_an_alias_means_what_it_points_to(trained):
    trained.once()
    assert do(trained, "pin", str(trained.root / OURS / "runs/a/best.pt"))["path"].endswith("0200.pt")


# ---- which are evaluated --------------------------------------------------------------------------------------------


def test_every_second_checkpoint_is_evaluated_and_the_others_go_by_the_other_rules(trained):
    trained.run_rule(evaluate={"recipe": "r", "every": 2}, keep={"best": 1, "last": 1}).once()
    assert sorted(trained.evaluations()) == ["a/0200.pt", "a/0400.pt"]
    assert kept(trained) == ["a/0200.pt", "a/0500.pt"]
    trained.save("a/0600.pt", quality=0.0)
    trained.once()
    assert "a/0600.pt" in trained.evaluations(), "positions do not shift when files are removed"


def test_final_checkpoints_are_evaluated_whatever_every_says(trained):
    trained.save("a/final.pt", quality=7.0, step=550)
    trained.run_rule(evaluate={"recipe": "r", "every": 100}, keep=None).once()
    assert sorted(trained.evaluations()) == ["a/final.pt"]


def test_long_names_from_everywhere_fit_the_log_directory(project):
    name = "ディープ" * 20 + "-0100.pt"
    project.save(f"実験/{name}", quality=1.0)
    assert project.once() == 0
    assert kept(project) == [f"実験/{name}"] and os.listdir(project.state / "log")
