"""Healthy runs of many kinds raise next to no alarm: at most one in a hundred runs, whatever kind of alarm it be."""

import random

from ckptwatch.core.health import examine
from ckptwatch.model import HealthRule
from tests.curves import KINDS, Unfolding

STEPS = 1000
EVERY = 20       # steps between two looks
RUNS = 16        # of each kind: 112 in all
SEED = 20_000


def alarms_of(run: Unfolding) -> list[str]:
    """Everything that is ever said about a run while it grows."""
    found: dict[tuple[str, str], str] = {}
    for step in range(EVERY, STEPS + 1, EVERY):
        curves, saved = run.at(step)
        now = float(step)
        for s in examine(curves, rule=HealthRule(), checkpoints=saved, last_row_at=now, now=now, ended=False):
            found.setdefault((s.kind, s.subject), f"{s.kind} at step {step}: {s.message}")
    return list(found.values())


def test_at_most_one_false_alarm_in_a_hundred_healthy_runs_of_a_thousand_points():
    raised = {}
    for i in range(RUNS * len(KINDS)):
        make = KINDS[i % len(KINDS)]
        run = make(random.Random(SEED + i), STEPS)
        assert max(len(p) for p in run.names.values()) == STEPS
        if alarms := alarms_of(run):
            raised[f"{make.__name__} {SEED + i}"] = alarms
    assert sum(map(len, raised.values())) <= 1, raised


def test_a_sick_run_among_them_would_be_noticed():
    """The same looks, the same curves: but its loss does what a learning rate too high makes it do."""
    for make in KINDS:
        run = make(random.Random(SEED), STEPS)
        name = next(n for n in run.names if "loss" in n.lower())
        sick = [p if i < 700 else type(p)(step=p.step, epoch=p.epoch, value=30 * abs(p.value) + 30)
                for i, p in enumerate(run.names[name])]
        assert alarms_of(Unfolding(names={**run.names, name: sick}, saves=run.saves)), make.__name__
