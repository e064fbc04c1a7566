"""The scan sees what is there, follows nothing out of the root, and never takes unreadable for gone."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from ckptwatch.formats.base import Family, formats
from ckptwatch.watch import scanner
from ckptwatch.watch.scanner import Scanner
from tests.support import save


@pytest.fixture
def root(tmp_path):
    for name in ("a/0100.pt", "a/checkpoints/0200.pt", "b/c/d/model.safetensors", "top.ckpt"):
        save(tmp_path / name)
    (tmp_path / "a/notes.txt").write_text("x")
    return tmp_path


def shown(root, scan):
    return sorted(str(s.path.relative_to(root)) for sightings in scan.changed.values() for s in sightings)


def look(root, top=None, **more):
    """What a first scan reports, and nothing else then; or a look at one directory by a scanner that knows nothing."""
    scanner = Scanner(root, formats(), **more)
    return shown(root, scanner.scan() if top is None else scanner.look(top))


EVERYTHING = ["a/0100.pt", "a/checkpoints/0200.pt", "b/c/d/model.safetensors", "top.ckpt"]


def test_everything_below_the_root_is_seen(root):
    assert look(root) == EVERYTHING


def test_what_has_not_changed_is_not_reported_again(root):
    scanner = Scanner(root, formats())
    scanner.scan()
    again = scanner.scan()
    assert again.changed == {} and again.gone == set()
    assert again.visited == {str(root / d) for d in ("", "a", "a/checkpoints", "b", "b/c", "b/c/d")}


def test_a_directory_can_be_looked_at_alone(root):
    scanner = Scanner(root, formats())
    scanner.scan()
    save(root / "a/0300.pt")
    save(root / "b/c/d/0400.pt")
    save(root / "a/new/deeper/0500.pt")
    assert shown(root, scanner.look(root / "a")) == ["a/0100.pt", "a/0300.pt", "a/new/deeper/0500.pt"]
    assert scanner.look(root / "gone").changed == {}
    assert shown(root, scanner.scan()) == ["b/c/d/0400.pt", "b/c/d/model.safetensors"]


@pytest.mark.parametrize("how", ["rewritten", "replaced", "touched"])
def test_a_file_that_changed_is_reported(root, how):
    scanner = Scanner(root, formats())
    scanner.scan()
    path = root / "a/checkpoints/0200.pt"
    if how == "rewritten":
        path.write_bytes(b"x")
    elif how == "replaced":
        save(path)
    else:
        os.utime(path)
    assert shown(root, scanner.scan()) == ["a/checkpoints/0200.pt"]


def test_what_is_gone_is_reported(root):
    scanner = Scanner(root, formats())
    scanner.scan()
    (root / "a/0100.pt").unlink()
    shutil.rmtree(root / "b/c")
    found = scanner.scan()
    assert found.changed == {root / "a": ()} and found.gone == {root / "b/c", root / "b/c/d"}


def test_a_look_at_what_lies_outside_is_a_look_at_nothing(root):
    assert look(root, root.parent) == []


class Marked(Family):
    """A directory with a `marker` is one checkpoint."""

    name, precedence = "marked", 1

    def claims(self, folder):
        return [self.claim_folder(folder)] if "marker" in folder.files else []


MARKED = [Marked(), *formats()]


def marked(directory):
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("part", "marker"):
        (directory / name).write_bytes(b"x" * 10)


def test_a_directory_that_is_one_checkpoint_is_listed_where_it_lies(root):
    scanner = Scanner(root, MARKED)
    scanner.scan()
    marked(root / "a/step-5")
    found = scanner.look(root / "a/step-5")
    assert {s.path.name for s in found.changed[root / "a"]} == {"0100.pt", "step-5"}
    [sighting] = [s for s in found.changed[root / "a"] if s.claim.whole]
    assert (sighting.files, sighting.size) == (2, 20)
    assert scanner.scan().changed == {}
    (root / "a/step-5/part").write_bytes(b"y" * 11)
    [sighting] = [s for s in scanner.scan().changed[root / "a"] if s.claim.whole]
    assert sighting.size == 21


def test_a_hint_from_deep_inside_a_checkpoint_looks_at_the_whole_of_it(root):
    scanner = Scanner(root, MARKED)
    marked(root / "a/step-5")
    (root / "a/step-5/deep/er").mkdir(parents=True)
    scanner.scan()
    (root / "a/step-5/deep/er/0001.pt").write_bytes(b"12345")
    found = scanner.look(root / "a/step-5/deep/er")
    [sighting] = [s for s in found.changed[root / "a"] if s.claim.whole]
    assert sighting.size == 25 and list(found.changed) == [root / "a"]


def test_a_directory_that_becomes_a_checkpoint_takes_its_files_along(root):
    """And gives them back when it is none any more."""
    scanner = Scanner(root, MARKED)
    save(root / "a/x/0001.pt")
    scanner.scan()
    marked(root / "a/x")
    found = scanner.scan()
    assert found.gone == {root / "a/x"}
    assert {s.path.name for s in found.changed[root / "a"]} == {"0100.pt", "x"}
    (root / "a/x/marker").unlink()
    found = scanner.scan()
    assert {s.path.name for s in found.changed[root / "a"]} == {"0100.pt"}
    assert {s.path.name for s in found.changed[root / "a/x"]} == {"0001.pt"}


def test_a_hard_link_under_a_moving_name_is_no_checkpoint_of_its_own(root):
    """timm links `last` and `model_best` to one of the numbered files."""
    save(root / "t/checkpoint-3.pth.tar")
    for name in ("last.pth.tar", "model_best.pth.tar"):
        os.link(root / "t/checkpoint-3.pth.tar", root / "t" / name)
    save(root / "u/best.pt")
    assert [n for n in look(root) if n.startswith(("t/", "u/"))] == ["t/checkpoint-3.pth.tar", "u/best.pt"]


@pytest.mark.parametrize("hidden", [".ckptwatch/trash/00000001", ".ckptwatch", ".tmp-save", "a/.cache/deep"])
def test_hidden_directories_are_never_scanned(root, hidden):
    save(root / hidden / "0300.pt")
    assert look(root) == EVERYTHING
    assert look(root, root / hidden) == EVERYTHING, "a hint from in there looks where it lies"


def test_links_are_not_followed(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save(elsewhere / "0900.pt")
    (root / "a/best.pt").symlink_to("0100.pt")
    (root / "a/dangling.pt").symlink_to("nowhere")
    (root / "linked").symlink_to(elsewhere)
    (root / "loop").symlink_to(root)
    assert look(root) == EVERYTHING


def test_only_plain_files_are_checkpoints(root):
    os.mkfifo(root / "pipe.pt")
    directory = os.open(root, os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(f"/proc/self/fd/{directory}/socket.pt")
    os.close(directory)
    (root / "directory.pt").mkdir()
    assert look(root) == EVERYTHING


def test_excluded_paths_are_left_out(root):
    assert look(root, exclude=["a"]) == ["b/c/d/model.safetensors", "top.ckpt"]
    assert look(root, exclude=["*.ckpt", "b/c"]) == ["a/0100.pt", "a/checkpoints/0200.pt"]


def test_an_unreadable_directory_is_reported_not_taken_for_empty(root, monkeypatch):
    real = os.scandir

    def scandir(path):  # root's permissions know no limit, so the refusal is made here
        if str(path) == str(root / "b/c"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(scanner.os, "scandir", scandir)
    found = Scanner(root, formats()).scan()
    assert found.unreadable == [(root / "b/c", "Permission denied")]


def test_a_name_that_is_no_text_is_reported_and_left_out(root):
    Path(os.fsdecode(os.fsencode(root) + b"/a/model_\xff_1.pt")).write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(root) + b"/r\xe9sum\xe9")).mkdir()
    save(root / "größe/模型_0100.pt")
    found = Scanner(root, formats()).scan()
    assert shown(root, found) == [*EVERYTHING[:3], "größe/模型_0100.pt", "top.ckpt"]
    assert {cause for _, cause in found.unreadable} == {"its name is not UTF-8"}


@pytest.mark.parametrize("look", ["scan", "look"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_marker_beside_it_that_comes_or_goes_is_news(root, kind, look):
    """NeMo's `<name>-unfinished`. The checkpoint itself does not change when it goes."""
    path = root / ("a/0100.pt" if kind == "file" else "a/step-5")
    if kind == "directory":
        marked(path)
    scanner = Scanner(root, MARKED)
    scanner.scan()

    def sighting():
        found = scanner.scan() if look == "scan" else scanner.look(root / "a")
        return next((s for s in found.changed.get(root / "a", ()) if s.path == path), None)

    before = sighting()
    marker = path.with_name(f"{path.name}-unfinished")
    marker.touch()
    during = sighting()
    assert during != before and during.claim.witnesses == (marker,)
    assert scanner.sight(during.claim) == during, "or it would never settle"
    marker.unlink()
    assert sighting().claim.witnesses == ()
