from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptwatch.core.aliasing import FIELDS, check_template, plan_aliases
from ckptwatch.model import (
    AliasRule,
    Checkpoint,
    CheckpointState,
    Contender,
    Identity,
    Place,
    Role,
    Score,
)

DIRECTORY = Path("/runs/.ckptwatch/demo")


def checkpoint(name, id=1, step=None, epoch=None, state=CheckpointState.COMPLETE):
    return Checkpoint(
        id=id, run_id=1, path=Path("/runs/demo") / name, format="f", state=state, evidence="", role=Role.REGULAR,
        identity=Identity(device=1, inode=1, size=1, mtime_ns=1), generation=0, step=step, epoch=epoch, metrics={},
        variants=(), found_at=0.0,
    )


def place(c, metric="AP", value=0.51234):
    who = Contender(checkpoint_id=c.id, path=c.path, generation=0, step=c.step, epoch=c.epoch)
    return Place(rank=1, contender=who, score=Score(metric=metric, value=value), reason="")


def plan(rule, best=None, last=None, metric="AP"):
    found = plan_aliases(
        directory=DIRECTORY, rule=rule, best=place(best, metric) if best else None, best_checkpoint=best, last=last
    )
    return {a.link.name: a.target.name for a in found}


BEST = checkpoint("epoch_150.pth", 1, step=15000, epoch=150)
LAST = checkpoint("epoch_160.pth", 2, step=16000, epoch=160)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (AliasRule(), {"best.pth": "epoch_150.pth", "last.pth": "epoch_160.pth"}),
        (AliasRule(best="best_{metric}_epoch_{epoch}{suffix}", last=None), {"best_AP_epoch_150.pth": "epoch_150.pth"}),
        (AliasRule(best="{metric}={value}-{step}{suffix}", last=None), {"AP=0.5123-15000.pth": "epoch_150.pth"}),
        (AliasRule(best=None), {"last.pth": "epoch_160.pth"}),
        (AliasRule(best=None, last=None), {}),
        (AliasRule(best="x", last="x"), {"x": "epoch_150.pth"}),
        (AliasRule(best=None, last="last_{metric}"), {"last_unknown": "epoch_160.pth"}),
    ],
)
def test_names_come_from_the_templates(rule, expected):
    assert plan(rule, BEST, LAST) == expected


def test_no_best_and_no_last_give_no_alias():
    assert plan(AliasRule()) == {}
    assert plan(AliasRule(), BEST) == {"best.pth": "epoch_150.pth"}


def test_a_directory_has_no_suffix_made_of_a_number():
    assert plan(AliasRule(), checkpoint("epoch=2-val_loss=0.32")) == {"best": "epoch=2-val_loss=0.32"}
    assert plan(AliasRule(), checkpoint("0002000.pt")) == {"best.pt": "0002000.pt"}


@pytest.mark.parametrize("state", [s for s in CheckpointState if s is not CheckpointState.COMPLETE])
def test_an_alias_never_points_to_what_is_not_there(state):
    assert plan(AliasRule(), checkpoint("a.pt", state=state), checkpoint("b.pt", 2, state=state)) == {}


def test_an_alias_never_takes_the_place_of_its_own_checkpoint():
    own = checkpoint("best.pt")
    found = plan_aliases(directory=own.path.parent, rule=AliasRule(), best=place(own), best_checkpoint=own, last=None)
    assert found == ()


def test_a_metric_with_a_slash_stays_one_name():
    rule = AliasRule(best="best_{metric}{suffix}", last=None)
    assert plan(rule, BEST, metric="val/acc") == {"best_val_acc.pth": "epoch_150.pth"}


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("best{suffix}", ""), ("best_{metric}_epoch_{epoch}{suffix}", ""), ("{step}-best", ""), ("{{best}}", ""),
        ("best{sufix}", "did you mean {suffix}?"), ("best{xyz}", "known are {suffix}, {metric}"),
        ("best{step:07d}", "without a format"), ("best{step!r}", "without a format"), ("best{", "braces"),
        ("best}", "braces"), ("a/best", "plain file name"), ("../best", "plain file name"), ("best\0", "plain file name"),
        ("{suffix}", "some text"), ("", "some text"), ("..", "some text"), ("{}", "there is no {}"), ("{0}", "there is no"),
        ("b" * 300, "too long"), ("{step.real}", "there is no"), ("{step[0]}", "there is no"),
    ],
)
def test_templates_are_checked_before_they_are_used(template, problem):
    found = check_template(template)
    assert problem in found
    assert bool(found) is bool(problem)


@given(st.lists(st.one_of(st.sampled_from([f"{{{f}}}" for f in FIELDS]), st.text(max_size=5)), max_size=6).map("".join))
def test_a_template_that_passed_the_check_always_gives_one_plain_name(template):
    if check_template(template):
        return
    unknown = checkpoint("x")
    for alias in plan_aliases(
        directory=DIRECTORY, rule=AliasRule(best=template, last=template), best=place(unknown), best_checkpoint=unknown,
        last=LAST,
    ):
        assert alias.link.parent == DIRECTORY
        assert alias.link.name not in ("", ".", "..")
