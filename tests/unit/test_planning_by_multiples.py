"""`every_steps` and `every_epochs` in a whole assessment: what is due, what is told, what may be removed."""

from pathlib import Path

import pytest

from ckptwatch.model import (
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
)
from ckptwatch.planning import assess
from ckptwatch.settings import Settings
from ckptwatch.store import checkpoints, evaluations, heartbeat, roots, runs
from ckptwatch.store.database import open_writing


class Run:
    """A run in a database of its own."""

    def __init__(self, base, evaluate, keep):
        self.directory = base / "runs" / "a"
        self.directory.mkdir(parents=True)
        rule = RunRule(evaluate=evaluate, rank=RankRule(by="fid", mode=Mode.MIN), keep=keep, approve_over=1.0)
        recipe = Recipe(name="r", sampler=Sampler(images="x"), metrics=(MetricSpec(name="fid", mode=Mode.MIN),))
        self.settings = Settings(state_dir=base / "state", roots=(), runs=(rule,), recipes={"r": recipe})
        self.db = open_writing(base / "state")
        with self.db.write() as conn:
            roots.record(conn, base / "runs", uuid="u", device=1)
            self.run, _ = runs.run_named(conn, base / "runs", "a", path=self.directory, now=0.0)
            heartbeat.record_recipe(conn, "r", digest="d", problem="", now=0.0)

    def add(self, name, *, fid=None, role=Role.REGULAR, **counts):
        path = self.directory / name
        path.write_bytes(b"x")
        with self.db.write() as conn:
            made = checkpoints.record(
                conn, run_id=self.run.id, path=path, role=role, generation=0, now=1.0,
                facts=Facts(format="torch-zip", complete=True, evidence="e", **counts),
                identity=Identity(device=1, inode=path.stat().st_ino, size=10, mtime_ns=5))
            if fid is not None:
                evaluations.enqueue(conn, made.id, variant="", recipe="r", digest="d", now=1.0)
                (number,) = (e.id for e in evaluations.of_checkpoint(conn, made.id))
                evaluations.claim(conn, number, log=Path("/l"), now=1.0)
                evaluations.finish(
                    conn, number, results=[Score(metric="fid", value=fid)], seconds=1.0, samples=None, now=1.0)
        return made

    def assess(self):
        with self.db.read() as conn:
            return assess(conn, self.run, self.settings, now=1e9)

    def due(self):
        found = self.assess()
        return {found.checkpoints[d.checkpoint_id].path.name for d in found.due}

    def removals(self):
        return {d.checkpoint.path.name for d in self.assess().plan.removals}


@pytest.fixture
def run(tmp_path):
    made = []

    def make(keep=None, **evaluate):
        made.append(Run(tmp_path, EvaluateRule(recipe="r", **evaluate), keep))
        return made[0]

    yield make
    made[0].db.close()


def test_the_rolling_checkpoint_is_due_when_it_stands_at_a_multiple(run):
    jit = run(every_epochs=40)
    jit.add("checkpoint-100.pth", epoch=100)
    jit.add("checkpoint-120.pth", epoch=120)
    jit.add("checkpoint-last.pth", epoch=160, role=Role.LAST)
    jit.add("checkpoint-best.pth", epoch=160, role=Role.BEST)
    assert jit.due() == {"checkpoint-120.pth", "checkpoint-last.pth"}


def test_what_is_no_multiple_says_so_in_the_ranking(run):
    jit = run(every_epochs=40)
    jit.add("checkpoint-last.pth", epoch=45, role=Role.LAST)
    (unranked,) = jit.assess().ranking.unranked
    assert unranked.reason == "no score for fid: every 40th epoch is evaluated, this is 45"


def test_positions_do_not_matter_where_multiples_decide(run):
    steps = run(every_steps=1000)
    for step in (500, 1000, 1500, 2000):
        steps.add(f"{step:07d}.pt", step=step)
    steps.add("final.pt", step=2100, role=Role.FINAL)
    assert steps.due() == {"0001000.pt", "0002000.pt", "final.pt"}


def test_what_the_rule_leaves_out_gives_way_to_the_other_keep_rules(run):
    steps = run(every_steps=1000, keep=KeepRules(best=1, last=1))
    for step, fid in ((500, None), (1000, 9.0), (1500, None), (2000, 5.0), (2500, None)):
        steps.add(f"{step:07d}.pt", step=step, fid=fid)
    assert steps.removals() == {"0000500.pt", "0001000.pt", "0001500.pt"}


def test_a_checkpoint_without_the_count_that_decides_is_not_removed_for_want_of_a_rank(run):
    """A rule that asks for epochs where the trainer counts steps evaluates nothing; that must not cost checkpoints."""
    steps = run(every_epochs=1, keep=KeepRules(best=1, last=1))
    for step in (500, 1000, 1500):
        steps.add(f"{step:07d}.pt", step=step)
    assert steps.due() == set()
    assert steps.removals() == set()
    (first, *_) = steps.assess().plan.decisions
    assert "the epoch of this one is not known" in first.reasons[0]


def test_a_rolling_copy_takes_no_place_among_the_best(run):
    """It is overwritten with the next save; what had to make room for it would then be gone together with it."""
    jit = run(every_epochs=4, keep=KeepRules(best=1, last=1))
    for epoch, fid in ((8, 5.0), (12, 9.0), (16, 8.0)):
        jit.add(f"checkpoint-{epoch}.pth", epoch=epoch, fid=fid)
    jit.add("checkpoint-last.pth", epoch=20, fid=1.0, role=Role.LAST)
    assert jit.removals() == {"checkpoint-12.pth"}
