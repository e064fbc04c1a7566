"""The scan sees what is there, follows nothing out of the root, and never takes unreadable for gone."""

import os
import socket
from pathlib import Path

import pytest

from ckptwatch.formats.base import formats
from ckptwatch.watch import scanner
from ckptwatch.watch.scanner import scan
from tests.support import save


@pytest.fixture
def root(tmp_path):
    for name in ("a/0100.pt", "a/checkpoints/0200.pt", "b/c/d/model.safetensors", "top.ckpt"):
        save(tmp_path / name)
    (tmp_path / "a/notes.txt").write_text("x")
    return tmp_path


def look(root, top=None, **more):
    found = scan(top or root, root=root, formats=formats(), **more)
    return sorted(str(s.entry.path.relative_to(root)) for s in found.sightings)


EVERYTHING = ["a/0100.pt", "a/checkpoints/0200.pt", "b/c/d/model.safetensors", "top.ckpt"]


def test_everything_below_the_root_is_seen(root):
    assert look(root) == EVERYTHING


def test_a_part_can_be_scanned_alone(root):
    assert look(root, root / "a") == ["a/0100.pt", "a/checkpoints/0200.pt"]
    assert look(root, root / "gone") == []


def test_a_hint_about_what_lies_outside_scans_the_root(root):
    assert look(root, root.parent) == EVERYTHING


@pytest.mark.parametrize("hidden", [".ckptwatch/trash/00000001", ".ckptwatch", ".tmp-save", "a/.cache/deep"])
def test_hidden_directories_are_never_scanned(root, hidden):
    save(root / hidden / "0300.pt")
    assert look(root) == EVERYTHING
    assert look(root, root / hidden) == []


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
    assert look(root, root / "a", exclude=["a"]) == []
    assert look(root, exclude=["*.ckpt", "b/c"]) == ["a/0100.pt", "a/checkpoints/0200.pt"]


def test_an_unreadable_directory_is_reported_not_taken_for_empty(root, monkeypatch):
    real = os.scandir

    def scandir(path):  # root's permissions know no limit, so the refusal is made here
        if str(path) == str(root / "b/c"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(scanner.os, "scandir", scandir)
    found = scan(root, root=root, formats=formats())
    assert found.unreadable == [(root / "b/c", "Permission denied")]


def test_a_name_that_is_no_text_is_reported_and_left_out(root):
    Path(os.fsdecode(os.fsencode(root) + b"/a/model_\xff_1.pt")).write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(root) + b"/r\xe9sum\xe9")).mkdir()
    save(root / "größe/模型_0100.pt")
    found = scan(root, root=root, formats=formats())
    assert sorted(str(s.entry.path.relative_to(root)) for s in found.sightings) == [*EVERYTHING[:3], "größe/模型_0100.pt",
                                                                                    "top.ckpt"]
    assert {cause for _, cause in found.unreadable} == {"its name is not UTF-8"}
