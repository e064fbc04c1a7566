"""Aliases: relative, swapped in one step, never dangling, and nobody else's name is ever taken."""

import os
import threading

import pytest

from ckptwatch.apply.linker import LIST, AliasError, apply_aliases
from ckptwatch.model import Alias


@pytest.fixture
def place(tmp_path):
    for step in (1, 2, 3):
        (tmp_path / f"run/{step}.pt").parent.mkdir(exist_ok=True)
        (tmp_path / f"run/{step}.pt").write_text(str(step))
    (tmp_path / "ours").mkdir()
    return tmp_path


def point(place, record="ours", **links):
    """best=2 means best.pt → run/2.pt, in `ours`."""
    aliases = tuple(Alias(link=place / f"ours/{n}.pt", target=place / f"run/{t}.pt") for n, t in links.items())
    return apply_aliases(aliases, record_dir=place / record)


def test_links_are_relative_and_resolve(place):
    assert point(place, best=2, last=3) == ["best.pt → 2.pt", "last.pt → 3.pt"]
    assert (place / "ours/best.pt").readlink().as_posix() == "../run/2.pt"
    assert (place / "ours/last.pt").read_text() == "3"
    place.rename(place.with_name("moved"))
    assert (place.with_name("moved") / "ours/best.pt").read_text() == "2"


def test_what_is_right_already_is_not_touched(place):
    point(place, best=2)
    before = (place / "ours/best.pt").lstat()
    assert point(place, best=2) == []
    assert (place / "ours/best.pt").lstat() == before


def test_a_link_no_longer_wanted_goes_and_leaves_its_target(place):
    point(place, best=2, last=3)
    assert point(place, last=3) == ["best.pt removed"]
    assert not os.path.lexists(place / "ours/best.pt") and (place / "run/2.pt").exists()
    point(place)
    assert sorted(p.name for p in (place / "ours").iterdir()) == [LIST]


def test_a_reader_always_finds_the_one_or_the_other(place):
    point(place, best=1)
    stop, seen, problems = threading.Event(), set(), []

    def read():
        while not stop.is_set():
            try:
                seen.add((place / "ours/best.pt").read_text())
            except OSError as error:
                problems.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for i in range(200):
        point(place, best=1 + i % 3)
    stop.set()
    thread.join()
    assert problems == [] and seen <= {"1", "2", "3"}


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link"])
def test_a_name_that_is_taken_by_somebody_else_stays_theirs(place, kind):
    link = place / "ours/best.pt"
    if kind == "file":
        link.write_text("precious")
    elif kind == "directory":
        link.mkdir()
    else:
        link.symlink_to(place / "run/1.pt" if kind == "link" else "nowhere")
    before = link.lstat()
    for _ in range(2):  # being refused once must not make it ours
        with pytest.raises(AliasError, match="has this name"):
            point(place, best=2)
        assert link.lstat() == before
    point(place)
    assert link.lstat() == before


def test_links_of_others_are_never_cleared_away(place):
    (place / "ours/other.pt").symlink_to("../run/1.pt")
    point(place, best=2)
    point(place)
    assert (place / "ours/other.pt").is_symlink()


def test_a_file_put_in_place_of_our_link_stays(place):
    point(place, best=2)
    (place / "ours/best.pt").unlink()
    (place / "ours/best.pt").write_text("precious")
    with pytest.raises(AliasError):
        point(place, best=1)
    point(place)
    assert (place / "ours/best.pt").read_text() == "precious"


def test_a_crash_between_record_and_link_leaves_no_orphan(place, monkeypatch):
    """The list is written first, so the next start knows every link that may be ours."""
    def crash(*args, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.symlink_to", crash)
        with pytest.raises(KeyboardInterrupt):
            point(place, best=2)
    assert point(place, best=1) == ["best.pt → 1.pt"]
    assert sorted(p.name for p in (place / "ours").iterdir()) == [LIST, "best.pt"]


@pytest.mark.parametrize("content", ["", "garbage", "5", "null", '{"a": 1}'])
def test_a_damaged_list_makes_no_foreign_link_ours(place, content):
    (place / "ours/best.pt").symlink_to("../run/1.pt")
    (place / "ours" / LIST).write_text(content)
    with pytest.raises(AliasError):
        point(place, best=2)
    assert (place / "ours/best.pt").read_text() == "1"


def test_a_place_that_cannot_be_written_is_an_error_in_words(place):
    (place / "ours").rmdir()
    (place / "ours").write_text("a file")
    with pytest.raises(AliasError, match=r"Not a directory|File exists"):
        point(place, record="record", best=2)
