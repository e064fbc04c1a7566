"""What a trainer needs is never removed, and no alias is put where it would trip a trainer up."""

import os
from pathlib import Path

import pytest

from ckptwatch import protection
from ckptwatch.formats.base import About, Family
from ckptwatch.model import Alias, Checkpoint, CheckpointState, Identity, Role, Run, evolve
from ckptwatch.protection import alias_problem, protected
from tests.support import save


class Careful(Family):
    """A trainer that keeps a file with the names it needs, rotates by itself, and counts what lies beside."""

    name = "careful"
    about = About(
        title="Careful", recognised="-", complete="-", forbidden_names=r"checkpoint.*|last\.pt",
        forbidden_because="it sorts all of them by time", needed_while_training="its rotation fails if one is gone")

    def needed(self, folder):
        if "needs.txt" in folder.files:
            return [(folder.path / name, "named as its best") for name in (folder.path / "needs.txt").read_text().split()]
        return ()


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(protection, "formats", lambda: [Careful()])
    monkeypatch.setattr(protection, "format_named", lambda name: Careful() if name == "careful" else None)
    return Run(id=1, root=tmp_path, name="a", path=tmp_path / "a", created_at=0.0)


def checkpoint(run, name, number=1, format_="plain", members=(), role=Role.REGULAR):
    path = run.path / name
    info = path.lstat() if path.exists() else None
    return Checkpoint(
        id=number, run_id=1, path=path, members=members, format=format_, state=CheckpointState.COMPLETE, evidence="-",
        identity=Identity(device=1, inode=info.st_ino if info else 0, size=1, mtime_ns=1), role=role, generation=0, step=1,
        epoch=None, metrics={}, variants=(), found_at=0.0)


def directory(run, name):
    save(run.path / name / "deep/model.pt")
    return run.path / name


@pytest.mark.parametrize("refer", [
    lambda a: (a / "best").symlink_to("checkpoint-5"),
    lambda a: (a / "best").symlink_to("checkpoint-5/deep/model.pt"),
    lambda a: (a / "latest").write_text("checkpoint-5\n"),
    lambda a: (a / "latest").write_text("/where/it/was/trained/checkpoint-5"),
    lambda a: (a / "needs.txt").write_text("checkpoint-5"),
    lambda a: (a / "needs.txt").write_text("checkpoint-5/deep/model.pt"),
    lambda a: (a.parent / "pointer").symlink_to(a / "checkpoint-5/deep"),
])
def test_a_directory_is_protected_by_what_refers_to_it_or_into_it(run, refer):
    directory(run, "checkpoint-5")
    directory(run, "checkpoint-6")
    living = [checkpoint(run, "checkpoint-5", 5), checkpoint(run, "checkpoint-6", 6)]
    assert protected(run, living) == {}
    refer(run.path)
    found = protected(run, living)
    assert set(found) == {5} and len(found[5]) == 1


def test_a_set_is_protected_by_what_refers_to_any_of_its_files(run):
    for name in ("net-1.pkl", "state-1.pt"):
        save(run.path / name)
    (run.path / "resume").symlink_to("state-1.pt")
    assert protected(run, [checkpoint(run, "net-1.pkl", members=("net-1.pkl", "state-1.pt"))]) == {1: ("resume links here",)}


def test_a_file_that_is_also_the_trainers_best_by_hard_link_is_protected(run):
    save(run.path / "checkpoint-3.pth.tar")
    save(run.path / "checkpoint-4.pth.tar")
    os.link(run.path / "checkpoint-3.pth.tar", run.path / "model_best.pth.tar")
    os.link(run.path / "checkpoint-4.pth.tar", run.path / "unrelated.bin")
    living = [checkpoint(run, f"checkpoint-{n}.pth.tar", n) for n in (3, 4)]
    assert protected(run, living) == {3: ("model_best.pth.tar is the same file",)}


def test_what_a_trainer_fails_without_stays_until_its_run_has_ended(run):
    save(run.path / "1.pt")
    c = checkpoint(run, "1.pt", format_="careful")
    assert protected(run, [c]) == {1: ("its rotation fails if one is gone",)}
    assert protected(evolve(run, ended_at=5.0), [c]) == {}


def test_a_format_that_fails_to_answer_protects_everything_there(run, monkeypatch):
    class Failing(Careful):
        def needed(self, folder):
            raise ZeroDivisionError

    monkeypatch.setattr(protection, "formats", lambda: [Failing()])
    save(run.path / "1.pt")
    assert "could not say" in protected(run, [checkpoint(run, "1.pt")])[1][0]


@pytest.mark.parametrize(("link", "allowed"), [
    ("best.pt", True), ("last.pt", False), ("checkpoint-best", False), ("deeper/last.pt", True),
])
def test_an_alias_beside_checkpoints_is_refused_where_it_trips_up_their_trainer(run, link, allowed):
    c = checkpoint(run, "checkpoint-5", format_="careful")
    problem = alias_problem([Alias(link=run.path / link, target=c.path)], [c])
    assert (problem == "") is allowed
    assert allowed or "sorts all of them" in problem


def test_no_alias_is_ever_put_inside_a_checkpoint(run):
    c = checkpoint(run, "checkpoint-5")
    assert "inside the checkpoint" in alias_problem([Alias(link=c.path / "best", target=Path("x"))], [c])
