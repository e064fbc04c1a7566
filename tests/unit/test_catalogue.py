"""From sightings to findings: what is new, rewritten, vanished, back, not settled, and what only looks so."""

import os

import pytest

from ckptwatch.formats.base import Family, formats
from ckptwatch.model import Facts, evolve
from ckptwatch.watch.catalogue import Catalogue, Found
from ckptwatch.watch.scanner import Scan, Scanner
from ckptwatch.watch.sightings import sight_path
from ckptwatch.watch.writers import has_writer
from tests.support import save

LATER = 4_000_000_000.0  # a time at which every file written now has been quiet for long


class Watch:
    """A catalogue, its root and a clock."""

    def __init__(self, root, quiet=10.0, writer=lambda path: False, formats=formats()):
        self.root, self.now = root, LATER
        self.scanner = Scanner(root, formats)
        self.catalogue = Catalogue(formats=formats, quiet=quiet, writer=writer, again=self.scanner.sight)

    def look(self, top=None, after=100.0):
        self.now += after
        seen = self.scanner.scan() if top is None else self.scanner.look(top)
        return self.tell(self.catalogue.observe(seen, now=self.now))

    def settle(self, after=100.0):
        self.now += after
        return self.tell(self.catalogue.settle(now=self.now))

    def tell(self, findings):
        return sorted((type(f).__name__, str(f.path.relative_to(self.root))) for f in findings)


class AnyFile(Family):
    """Takes every file for a checkpoint."""

    def claims(self, folder):
        return [self.claim_files(folder, name) for name in folder.files]


@pytest.fixture
def watch(tmp_path):
    return Watch(tmp_path)


def test_what_is_found_once_is_no_news(watch):
    save(watch.root / "a/1.pt")
    assert watch.look() == [("Found", "a/1.pt")]
    assert watch.look() == []


def test_what_is_recorded_is_no_news_after_a_restart(watch):
    save(watch.root / "a/1.pt")
    watch.catalogue.remember({watch.root / "a/1.pt": sight_path(watch.root / "a/1.pt").identity})
    assert watch.look() == []


def test_a_file_vanished_while_we_were_away_is_noticed(watch):
    save(watch.root / "a/1.pt")
    watch.catalogue.remember({watch.root / "a/1.pt": sight_path(watch.root / "a/1.pt").identity})
    (watch.root / "a/1.pt").unlink()
    assert watch.look() == [("Vanished", "a/1.pt")]
    assert watch.look() == []


@pytest.mark.parametrize("how", ["rename", "in place", "same size"])
def test_a_rewritten_file_is_another_identity(watch, how):
    path = watch.root / "a/1.pt"
    data = save(path)
    watch.look()
    before = watch.catalogue._known[path.parent][path]
    if how == "rename":
        save(path)
    elif how == "in place":
        path.write_bytes(data * 2)
    else:
        path.write_bytes(data)
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert watch.look() == [("Found", "a/1.pt")]
    assert watch.catalogue._known[path.parent][path] != before


def test_a_file_moved_into_place_is_found_and_the_old_name_vanishes(watch):
    save(watch.root / "a/1.pt")
    watch.look()
    (watch.root / "a/1.pt").rename(watch.root / "a/2.pt")
    assert watch.look() == [("Found", "a/2.pt"), ("Vanished", "a/1.pt")]


def test_a_look_at_one_directory_says_nothing_of_others(watch):
    for name in ("a/1.pt", "b/1.pt"):
        save(watch.root / name)
    watch.look()
    for name in ("a/1.pt", "b/1.pt"):
        (watch.root / name).unlink()
    assert watch.look(watch.root / "a") == [("Vanished", "a/1.pt")]
    assert watch.look() == [("Vanished", "b/1.pt")]


def test_an_unreadable_directory_is_no_loss(watch):
    save(watch.root / "a/b/1.pt")
    save(watch.root / "c/1.pt")
    watch.look()
    blind = Scan(visited={str(watch.root)}, unreadable=[(watch.root / "a", "Input/output error")])
    assert watch.tell(watch.catalogue.observe(blind, now=watch.now)) == [("Vanished", "c/1.pt")]
    assert ("Found", "a/b/1.pt") not in watch.look(), "it was never lost"


def test_a_file_with_a_writer_waits_whatever_its_age(tmp_path):
    writers = [True]
    watch = Watch(tmp_path, writer=lambda path: writers[0])
    save(tmp_path / "a/1.pt")
    assert watch.look() == [] and watch.catalogue.writing == {tmp_path / "a/1.pt": "open for writing"}
    assert watch.settle(10_000) == []
    writers[0] = False
    assert watch.settle() == [("Found", "a/1.pt")]
    assert watch.catalogue.writing == {} and watch.catalogue.recheck_at is None


def test_a_fresh_file_waits_for_the_quiet_time(tmp_path):
    watch = Watch(tmp_path, quiet=10.0)
    save(tmp_path / "a/1.pt")
    watch.now = sight_path(tmp_path / "a/1.pt").mtime_ns / 1e9
    assert watch.look(after=1.0) == []
    assert watch.now < watch.catalogue.recheck_at <= watch.now + 10
    assert watch.settle(after=5.0) == []
    assert watch.settle(after=5.0) == [("Found", "a/1.pt")]


def test_a_file_that_changes_starts_its_quiet_time_anew(tmp_path):
    watch = Watch(tmp_path, quiet=10.0)
    path = tmp_path / "a/1.pt"
    save(path)
    watch.now = begin = sight_path(path).mtime_ns / 1e9
    watch.look(after=1.0)
    os.utime(path, (begin + 8, begin + 8))
    assert watch.settle(after=10.0) == []
    assert watch.settle(after=10.0) == [("Found", "a/1.pt")]


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path):
    path = tmp_path / "a/1.pt"
    save(path)

    class Meddling(AnyFile):
        name, calls = "meddling", 0

        def examine(self, claim):
            self.calls += 1
            if self.calls == 1:
                save(path)
            return Facts(format=self.name, complete=True, evidence="ok")

    format_ = Meddling()
    watch = Watch(tmp_path, formats=[format_])
    assert watch.look() == []
    [found] = watch.catalogue.settle(now=LATER + 100)
    assert isinstance(found, Found) and found.identity.inode == path.stat().st_ino and format_.calls == 2


def test_a_broken_third_party_format_does_not_stop_the_watch(tmp_path):
    class Broken(AnyFile):
        name = "broken"

        def examine(self, claim):
            raise ZeroDivisionError

    save(tmp_path / "a/1.pt")
    watch = Watch(tmp_path, formats=[Broken()])
    [found] = watch.catalogue.observe(watch.scanner.scan(), now=LATER)
    assert not found.facts.complete and "broken failed" in found.facts.evidence


def test_a_file_gone_before_it_settled_was_never_there(tmp_path):
    watch = Watch(tmp_path, writer=lambda path: True)
    save(tmp_path / "a/1.pt")
    watch.look()
    (tmp_path / "a/1.pt").unlink()
    assert watch.settle() == [] and watch.look() == [] and watch.catalogue.writing == {}


def test_a_file_that_cannot_be_read_is_tried_again_not_given_up(tmp_path):
    refused = [True]

    def writer(path):
        if refused[0]:
            raise PermissionError(13, "Permission denied")
        return False

    watch = Watch(tmp_path, writer=writer)
    save(tmp_path / "a/1.pt")
    assert watch.look() == []
    assert "Permission denied" in watch.catalogue.writing[tmp_path / "a/1.pt"]
    assert watch.catalogue.recheck_at > watch.now
    refused[0] = False
    assert watch.settle() == [("Found", "a/1.pt")]


def test_a_link_swapped_in_for_a_waiting_file_is_not_read(tmp_path):
    watch = Watch(tmp_path, writer=has_writer)
    save(tmp_path / "a/1.pt")
    save(tmp_path / "elsewhere/2.txt.pt")
    seen = watch.scanner.scan()
    (tmp_path / "a/1.pt").unlink()
    (tmp_path / "a/1.pt").symlink_to(tmp_path / "elsewhere/2.txt.pt")
    findings = watch.catalogue.observe(seen, now=LATER)
    assert [f.path.name for f in findings if isinstance(f, Found)] == ["2.txt.pt"], "found only where it really lies"


def test_what_we_moved_away_is_no_loss(watch):
    save(watch.root / "a/1.pt")
    watch.look()
    (watch.root / "a/1.pt").rename(watch.root / "taken")
    watch.catalogue.forget(watch.root / "a/1.pt")
    assert watch.look() == []


def test_a_remounted_filesystem_changes_no_identity(watch):
    save(watch.root / "a/1.pt")
    seen = sight_path(watch.root / "a/1.pt")
    watch.catalogue.remember({seen.path: evolve(seen.identity, device=seen.device + 7)})
    assert watch.look() == []



def test_a_format_that_fails_loses_nothing_of_what_is_known(tmp_path):
    """Neither at the look at which it fails, nor at the next ones."""
    class Moody(AnyFile):
        name, fails = "moody", False

        def claims(self, folder):
            if self.fails and folder.path.name == "a":
                raise ZeroDivisionError
            return super().claims(folder)

        def examine(self, claim):
            return Facts(format=self.name, complete=True, evidence="ok")

    format_ = Moody()
    watch = Watch(tmp_path, formats=[format_])
    save(tmp_path / "a/1.pt")
    save(tmp_path / "a/deep/2.pt")
    assert watch.look() == [("Found", "a/1.pt"), ("Found", "a/deep/2.pt")]
    format_.fails = True
    save(tmp_path / "a/3.pt")
    assert [watch.look() for _ in range(3)] == [[], [], []]
    assert watch.look(tmp_path / "a") == []
    format_.fails = False
    assert watch.look() == [("Found", "a/3.pt")]
