"""An unmounted or exchanged root is an error, never "everything was deleted"."""

import os
import shutil
from pathlib import Path

import pytest

from ckptwatch.apply.places import home, place_marker, read_marker
from ckptwatch.errors import RootError
from ckptwatch.settings import RootRule
from ckptwatch.stages.intake import Intake
from ckptwatch.store import checkpoints, roots, runs
from ckptwatch.store.database import open_writing
from tests.support import save, tree

pytestmark = pytest.mark.usefixtures("stub_workers")


@pytest.fixture
def watched(project):
    """Three checkpoints, all found and scored; nothing to remove."""
    for step, quality in ((100, 1.0), (200, 3.0), (300, 2.0)):
        project.save(f"a/{step:04d}.pt", quality=quality)
    project.run_rule(keep={"best": 3}).once()
    assert set(project.states().values()) == {"complete"}
    return project


def problem(project):
    with project.reading() as conn:
        return roots.get(conn, project.root).problem


def untouched(project, match):
    """A run over the wrong root, with rules that would remove much, changes nothing and says why."""
    evaluated, before = project.evaluations(), project.states()
    there = tree(project.root, ours=True) if project.root.is_dir() else None
    project.run_rule(keep={"best": 1}).once()
    assert match in problem(project)
    assert project.states() == before and project.evaluations() == evaluated
    assert (tree(project.root, ours=True) if project.root.is_dir() else None) == there
    assert project.json("status")["alerts"][0]["level"] == "FAIL"


def test_a_missing_root_is_an_alarm_and_no_loss_until_it_is_back(watched):
    watched.root.rename(watched.base / "away")
    untouched(watched, "missing")
    (watched.base / "away").rename(watched.root)
    watched.run_rule(keep={"best": 3}).once()
    assert problem(watched) == "" and set(watched.states().values()) == {"complete"}


def test_an_empty_mount_point_is_an_alarm_and_no_loss(watched):
    watched.root.rename(watched.base / "away")
    watched.root.mkdir()
    untouched(watched, "marker is gone")
    assert tree(watched.root, ours=True) == {}, "no new marker is made in its place"
    watched.root.rmdir()
    (watched.base / "away").rename(watched.root)
    watched.run_rule(keep={"best": 3}).once()
    assert problem(watched) == ""


def test_an_exchanged_root_is_an_alarm_and_no_loss(watched, tmp_path_factory):
    watched.root.rename(watched.base / "away")
    save(watched.root / "a/0100.pt", {"quality": 9.0})
    place_marker(watched.root)
    untouched(watched, "another root")


@pytest.mark.parametrize("marker", [b"", b"\xff\xfe\x00", b"{}", b"[]", b'{"uuid": 5}', b'{"uuid": "x"}', b"null",
                                    b"[" * 9999])
def test_a_damaged_marker_is_an_alarm_and_no_loss(watched, marker):
    (home(watched.root) / "root.json").write_bytes(marker)
    untouched(watched, "damaged")


def test_a_root_that_is_a_file_is_an_alarm(watched):
    shutil.move(watched.root, watched.base / "away")
    watched.root.write_text("")
    evaluated = watched.evaluations()
    watched.once()
    assert "not a directory" in problem(watched) and watched.evaluations() == evaluated


def test_a_root_missing_from_the_start_is_taken_up_when_it_appears(project):
    project.root.rmdir()
    project.once()
    assert "missing" in problem(project)
    project.save("a/0100.pt", quality=1.0)
    project.once()
    assert problem(project) == "" and project.states() == {"a/0100.pt": "complete"}


def test_the_marker_tells_a_root_apart(tmp_path):
    made = place_marker(tmp_path)
    assert read_marker(tmp_path) == made and place_marker(tmp_path).uuid != made.uuid
    with pytest.raises(RootError, match="missing"):
        read_marker(tmp_path / "gone")


def test_trash_is_neither_emptied_nor_restored_on_a_wrong_root(watched):
    watched.run_rule(keep={"best": 2, "last": 0}, trash={"grace": 0}).once(dry_run=True)
    watched.run_rule(keep={"best": 2}, trash={"grace": 3600}).once()
    assert watched.states()["a/0100.pt"] == "trashed"
    watched.root.rename(watched.base / "away")
    watched.root.mkdir()
    for command in (("restore", "a@100"), ("trash", "--purge", "--yes")):
        done = watched.cli(*command)
        assert done.returncode in (1, 3) and "marker is gone" in done.stderr
    assert next((watched.base / "away/.ckptwatch/trash").glob("*/0100.pt")).exists()


def test_a_root_first_only_observed_can_be_watched_later(tmp_path):
    db = open_writing(tmp_path / "state")
    root = tmp_path / "runs"
    save(root / "a/0100.pt")
    for observe_only in (True, True, False, False):
        intake = Intake(db, RootRule(root=root, quiet=0.0), observe_only=observe_only)
        intake.scan(root, now=4e9)
        assert intake.problem == ""
        assert home(root).exists() is not observe_only
    with db.read() as conn:
        [run] = runs.all_runs(conn)
        assert len(checkpoints.of_run(conn, run.id)) == 1
    db.close()


def test_a_remounted_root_with_its_marker_is_the_same(watched):
    with watched.writing() as conn:
        roots.rebase(conn, watched.root, device=4242)
    watched.once()
    assert problem(watched) == "" and set(watched.states().values()) == {"complete"}
    assert all(len(found) == 1 for found in watched.evaluations().values()), "nothing is evaluated again"
    assert ("root_remounted", ".") in watched.history()


def test_names_that_are_no_text_end_nothing(project, caplog):
    project.save("a/0100.pt", quality=1.0)
    Path(os.fsdecode(os.fsencode(project.root) + b"/a/\xff_0200.pt")).write_bytes(b"x")
    assert project.once() == 0
    assert project.states() == {"a/0100.pt": "complete"}
    assert "its name is not UTF-8" in caplog.text and caplog.text.encode()
