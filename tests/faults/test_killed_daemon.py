"""kill -9 of the daemon at random instants: after the last restart everything is as if nothing had happened."""

import random
import signal
import time

import pytest

from ckptwatch.model import RemovalState
from ckptwatch.store import removals
from tests.support import OURS, Project, until

KILLS = 8
QUALITIES = {100: 1.0, 200: 7.0, 300: 3.0, 400: 2.0, 500: 6.0, 600: 5.0, 700: 4.0, 800: 0.5}


def outcome(project):
    """What must be equal: files, aliases, scores, what lies in the trash. Not: row numbers and times."""
    ours = project.root / OURS
    with project.reading() as conn:
        in_trash = sorted((r.original.name, r.trash.read_bytes()) for r in removals.in_state(conn, RemovalState.TRASHED))
        unfinished = removals.in_state(conn, *removals.OPEN)
    scores = {name: [(e.state, e.scores["quality"].value) for e in found] for name, found in project.evaluations().items()}
    return {
        "files": {str(p.relative_to(project.root)): p.read_bytes() for p in project.root.glob("*/*.pt")},
        "aliases": {p.name: p.resolve(strict=True).name for p in (ours / "runs/a").iterdir() if p.is_symlink()},
        "scores": scores, "states": project.states(), "trash": in_trash, "unfinished": unfinished,
        "lost": sorted(p.name for p in (ours / "trash").glob("*/*")),
    }


def train(project):
    """The same bytes each time: what is compared must not differ by chance."""
    for step, quality in QUALITIES.items():
        project.save(f"a/{step:04d}.pt", quality=quality, padding=0)


def finish(project):
    assert project.cli("run", "--once").returncode == 0, project.log
    return outcome(project)


@pytest.mark.slow
def test_a_daemon_killed_at_random_instants_ends_where_an_undisturbed_one_does(tmp_path):
    (tmp_path / "calm").mkdir()
    (tmp_path / "storm").mkdir()
    calm, storm = Project(tmp_path / "calm"), Project(tmp_path / "storm")
    train(calm)
    expected = finish(calm)
    assert sorted(expected["files"]) == ["a/0200.pt", "a/0500.pt", "a/0800.pt"]
    train(storm)
    chance = random.Random(11)
    for _ in range(KILLS):
        with storm.daemon(wait=False) as daemon:
            begin = len(storm.log)
            # The life of a daemon is its start, then its work; a part of the kills falls into each.
            if chance.random() < 0.75:
                until(lambda start=begin: "watching" in storm.log[start:], what="daemon at work")
            time.sleep(chance.random() * 0.6)  # the random instant
            daemon.stop(signal.SIGKILL)
    assert finish(storm) == expected
    kinds = [kind for kind, _ in storm.history()]
    assert kinds.count("evaluated") == len(QUALITIES), "each result is recorded once"
    assert kinds.count("trashed") == len(QUALITIES) - 3


def test_a_result_that_could_not_be_recorded_is_evaluated_again(project, stub_workers, monkeypatch):
    """The database refuses a write at the worst moment; nothing is removed meanwhile, nothing is lost after."""
    from ckptwatch.daemon import Daemon
    from ckptwatch.errors import StateError
    from ckptwatch.store import evaluations

    project.save("a/0100.pt", quality=1.0)
    real, calls = evaluations.finish, []

    def finish_once_in_vain(*args, **more):
        calls.append(1)
        if len(calls) == 1:
            raise StateError("write the database", "disk full")
        return real(*args, **more)

    monkeypatch.setattr(evaluations, "finish", finish_once_in_vain)
    assert Daemon(project.settings).run_once() == 0
    [done] = project.evaluations()["a/0100.pt"]
    assert done.state == "done" and len(calls) == 2
