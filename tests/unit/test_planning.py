"""What the daemon decides about a run, from rows in the database and what lies in the directory."""

from pathlib import Path

import pytest

from ckptwatch.model import (
    Checkpoint,
    EvaluateRule,
    Facts,
    Identity,
    KeepRules,
    MetricSpec,
    Mode,
    RankRule,
    Recipe,
    Role,
    RunRule,
    Sampler,
    Score,
    evolve,
)
from ckptwatch.planning import assess
from ckptwatch.settings import Settings
from ckptwatch.store import checkpoints, evaluations, heartbeat, roots, runs
from ckptwatch.store.database import open_writing

RULE = RunRule(evaluate=EvaluateRule(recipe="r"), rank=RankRule(by="fid", mode=Mode.MIN), keep=KeepRules(best=1, last=1),
               approve_over=1.0)


class Plan:
    """A run in a database of its own."""

    def __init__(self, base, rule=RULE):
        self.root = base / "runs"
        (self.root / "a").mkdir(parents=True)
        self.db = open_writing(base / "state")
        self.settings = Settings(
            state_dir=base / "state", roots=(), runs=(rule,),
            recipes={"r": Recipe(name="r", sampler=Sampler(images="x"), metrics=(MetricSpec(name="fid", mode=Mode.MIN),))})
        with self.db.write() as conn:
            roots.record(conn, self.root, uuid="u", device=1)
            self.run, _ = runs.run_named(conn, self.root, "a", path=self.root / "a", now=0.0)
        self.recipe("new")

    def recipe(self, digest):
        self.digest = digest
        with self.db.write() as conn:
            heartbeat.record_recipe(conn, "r", digest=digest, problem="", now=0.0)

    def add(self, step, fid=None, *, variants=(), found_at=1.0, complete=True, name=None, digest=None, variant="",
            role=Role.REGULAR, metrics=None) -> Checkpoint:
        path = self.root / "a" / (name or f"{step:04d}.pt")
        path.write_bytes(b"x")
        with self.db.write() as conn:
            made = checkpoints.record(
                conn, run_id=self.run.id, path=path, role=role, generation=0, now=found_at,
                facts=Facts(format="torch-zip", complete=complete, evidence="e", step=step, variants=variants,
                            metrics=metrics or {}),
                identity=Identity(device=1, inode=path.stat().st_ino, size=10, mtime_ns=5))
        if fid is not None:
            self.score(made, fid, variant=variant, digest=digest)
        return made

    def score(self, made, fid, variant="", digest=None):
        with self.db.write() as conn:
            evaluations.enqueue(conn, made.id, variant=variant, recipe="r", digest=digest or self.digest, now=1.0)
            number = max(e.id for e in evaluations.of_checkpoint(conn, made.id))
            evaluations.claim(conn, number, log=Path("/l"), now=1.0)
            evaluations.finish(conn, number, results=[Score(metric="fid", value=fid)], seconds=1.0, samples=None, now=1.0)

    def assess(self, **rule):
        if rule:
            self.settings = evolve(self.settings, runs=(evolve(self.settings.runs[0], **rule),))
        with self.db.read() as conn:
            return assess(conn, self.run, self.settings, now=1e9)

    def removals(self, **rule):
        return [d.checkpoint.step for d in self.assess(**rule).plan.removals]

    def reason(self, step):
        [found] = [d for d in self.assess().plan.decisions if d.checkpoint.step == step]
        return "; ".join(found.reasons)


@pytest.fixture
def plan(tmp_path):
    made = Plan(tmp_path)
    yield made
    made.db.close()


def test_what_ranks_behind_is_removed_and_what_waits_is_not(plan):
    for step, fid in ((1, 9.0), (2, 1.0), (3, 5.0), (4, None), (5, 7.0)):
        plan.add(step, fid)
    assert plan.removals() == [1, 3]
    assert [d.checkpoint_id for d in plan.assess().due] == [4]
    assert plan.reason(4).startswith("evaluation pending")


def test_scores_of_an_old_digest_are_unranked_and_keep(plan):
    for step in (1, 2, 3):
        plan.add(step, float(step))
    plan.recipe("newer")
    a = plan.assess()
    assert a.best is None and a.plan.removals == () and len(a.due) == 3
    assert all(u.reason for u in a.ranking.unranked)
    plan.score(plan.add(4), 2.0)
    assert plan.assess().best.step == 4, "an old score of 1.0 is no better than a new one of 2.0"


def test_every_variant_competes_and_the_best_one_counts(plan):
    rule = EvaluateRule(recipe="r", variants=("all",))
    plan.settings = evolve(plan.settings, runs=(evolve(RULE, evaluate=rule),))
    for step, fids in ((1, (9.0, 1.0)), (2, (3.0, 4.0)), (3, (8.0, 8.0)), (4, (7.0, 7.0))):
        made = plan.add(step, variants=("model", "ema"))
        for variant, fid in zip(("model", "ema"), fids, strict=True):
            plan.score(made, fid, variant=variant)
    a = plan.assess()
    assert (a.best.step, a.ranking.best.contender.variant) == (1, "ema")
    assert plan.removals() == [2, 3]


def test_a_checkpoint_with_one_variant_unmeasured_waits(plan):
    plan.settings = evolve(plan.settings, runs=(evolve(RULE, evaluate=EvaluateRule(recipe="r", variants=("model", "ema"))),))
    for step in (1, 2, 3):
        made = plan.add(step)
        plan.score(made, float(10 - step), variant="model")
        if step > 1:
            plan.score(made, 1.0, variant="ema")
    assert plan.removals() == [2]
    assert [(d.checkpoint_id, d.variant) for d in plan.assess().due] == [(1, "ema")]


def test_every_nth_by_place_in_the_run_not_by_step(plan):
    for step in (10, 20, 30, 40, 50, 60):
        plan.add(step)
    rule = EvaluateRule(recipe="r", every=3)
    assert [d.checkpoint_id for d in plan.assess(evaluate=rule).due] == [3, 6]
    for i, fid in ((3, 1.0), (6, 2.0)):
        with plan.db.read() as conn:
            made = checkpoints.checkpoint(conn, i)
        plan.score(made, fid)
    assert plan.removals() == [10, 20, 40, 50], "those left out on purpose go by the other rules"


def test_a_model_without_a_step_shifts_no_other_and_is_measured(plan):
    """Trainer leaves `model.safetensors` beside its numbered checkpoints when it ends."""
    for step in (10, 20, 30, 40):
        plan.add(step)
    rule = EvaluateRule(recipe="r", every=2)
    assert [d.checkpoint_id for d in plan.assess(evaluate=rule).due] == [2, 4]
    plan.add(None, name="model.safetensors")
    assert sorted(d.checkpoint_id for d in plan.assess(evaluate=rule).due) == [2, 4, 5]


def test_what_was_there_at_first_sight_is_judged_as_a_whole(plan):
    """Else a back catalogue shrinks score by score, and never by a plan that removes more than half."""
    for step in (1, 2, 3, 4, 5):
        plan.add(step, None if step == 1 else float(step), found_at=0.0)
    assert plan.removals(approve_over=0.5) == []
    assert "others found together with it" in plan.reason(4)
    with plan.db.read() as conn:
        first = checkpoints.checkpoint(conn, 1)
    plan.score(first, 9.0)
    a = plan.assess()
    assert len(a.plan.removals) == 3 and "removes 3 of 5" in a.plan.held


@pytest.mark.parametrize("make", [
    lambda a: (a / "best.pt").symlink_to("0001.pt"),
    lambda a: (a / "best.pt").symlink_to(a / "0001.pt"),
    lambda a: (a / "chain.pt").symlink_to("0001.pt"),
    lambda a: (a / "latest").write_text("0001.pt"),
    lambda a: (a / "last_checkpoint").write_text("/old/place/0001.pt\n"),
    lambda a: (a / "checkpoint").write_text('model_checkpoint_path: "0001.pt"\nall: "0001.pt"'),
])
def test_what_a_trainer_refers_to_is_protected(plan, make):
    for step in (1, 2, 3):
        plan.add(step, float(10 - step) if step < 3 else 1.0)
    assert plan.removals() == [1, 2]
    make(plan.root / "a")
    assert plan.removals() == [2]
    assert "links here" in plan.reason(1) or "named by" in plan.reason(1)


@pytest.mark.parametrize("make", [
    lambda a: (a / "dangling").symlink_to("nowhere"),
    lambda a: (a / "loop").symlink_to("loop"),
    lambda a: (a / "latest").write_bytes(b"what \0 ever " * 1000),
    lambda a: (a / "latest").mkdir(),
])
def test_odd_trackers_do_no_harm(plan, make):
    for step in (1, 2, 3):
        plan.add(step, float(10 - step))
    make(plan.root / "a")
    assert plan.removals() == [1, 2]


@pytest.mark.parametrize("content", [b"", b"\0" * 16, b"\xff\xfe" * 100, b"x" * 2_000_000])
def test_a_tracker_that_cannot_be_read_protects_all_beside_it(plan, content):
    """A power cut leaves zeros; what it named is still what the trainer needs."""
    for step in (1, 2, 3):
        plan.add(step, float(10 - step))
    (plan.root / "a/latest").write_bytes(content)
    (plan.root / "a/last_checkpoint").write_text("0002.pt")
    assert plan.removals() == []
    assert "cannot be read" in plan.reason(1) and "named by last_checkpoint" in plan.reason(2)


def test_an_incomplete_checkpoint_is_neither_due_nor_removed_nor_last(plan):
    for step in (1, 2):
        plan.add(step, float(step))
    plan.add(3, complete=False)
    a = plan.assess()
    assert a.last.step == 2 and a.due == () and plan.removals() == []
    assert plan.reason(3).startswith("incomplete")


def test_logged_metrics_rank_without_a_recipe(plan):
    for step, loss in ((1, 0.5), (2, float("nan")), (3, 0.1), (4, 0.4), (5, 0.9)):
        plan.add(step, metrics={"loss": loss})
    a = plan.assess(evaluate=None, rank=RankRule(by="loss", mode=Mode.MIN), keep=KeepRules(best=1, last=1))
    assert a.best.step == 3 and [d.checkpoint.step for d in a.plan.removals] == [1, 4]
    assert [u.contender.step for u in a.ranking.unranked] == [2] and a.due == ()


def test_without_a_known_recipe_nothing_is_removed(plan):
    for step in (1, 2, 3):
        plan.add(step, float(step))
    plan.settings = evolve(plan.settings, recipes={})
    assert plan.removals() == []
