"""Is somebody writing? Asked of real processes, without ever standing in their way."""

import mmap
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from ckptwatch.formats.base import formats
from ckptwatch.watch.catalogue import Catalogue
from ckptwatch.watch.scanner import Scanner
from ckptwatch.watch.writers import has_holder, has_writer
from tests.support import save, until, zip_bytes


@contextmanager
def process(code, *arguments):
    """A Python process that says when it is ready and waits for a word to go on."""
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"ready\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def proceed(child):
    child.stdin.write(b"go\n")
    child.stdin.flush()


OPEN = """
import sys
f = open(sys.argv[1], sys.argv[2])
print('ready', flush=True)
input()
f.close()
print('done', flush=True)
input()
"""


@pytest.fixture
def path(tmp_path):
    save(tmp_path / "0100.pt")
    return tmp_path / "0100.pt"


def test_nobody_has_it_open(path):
    assert has_writer(path) is False and has_holder(path) is False


@pytest.mark.parametrize("mode", ["ab", "r+b"])
def test_a_writer_in_another_process_is_noticed_until_it_closes(path, mode):
    with process(OPEN, path, mode) as child:
        assert has_writer(path) is True and has_holder(path) is True
        proceed(child)
        assert child.stdout.readline() == b"done\n"
        assert has_writer(path) is False and has_holder(path) is False


def test_a_reader_is_a_holder_and_no_writer(path):
    with process(OPEN, path, "rb"):
        assert has_writer(path) is False and has_holder(path) is True


def test_a_writer_through_another_hard_link_is_noticed(path):
    os.link(path, path.with_name("other"))
    with process(OPEN, path.with_name("other"), "ab"):
        assert has_writer(path) is True


def test_a_shared_map_is_a_writer(path):
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    try:
        assert has_writer(path) is True
    finally:
        mapped.close()
    assert has_writer(path) is False


def test_a_missing_file_and_a_link_are_errors(path):
    with pytest.raises(FileNotFoundError):
        has_writer(path.with_name("gone.pt"))
    path.with_name("link.pt").symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        has_writer(path.with_name("link.pt"))


def test_asking_leaves_no_lease_behind(path):
    """/proc/locks lists leases; a held one would make the trainer's open() wait up to 45 s."""
    for _ in range(50):
        has_writer(path), has_holder(path)
    with open("/proc/locks") as locks:  # noqa: PTH123
        assert not [line for line in locks if "LEASE" in line and f":{path.stat().st_ino} " in line]


@pytest.mark.parametrize("ask", ["has_writer", "has_holder"])
def test_a_trainer_that_opens_the_file_at_that_very_moment_does_not_kill_us(path, ask):
    """The kernel tells the holder of a lease by a signal that somebody opens the file; unhandled, SIGIO ends a process."""
    opener = "import os, sys\nprint('ready', flush=True)\nwhile True: os.close(os.open(sys.argv[1], os.O_RDWR))"
    asker = (f"import sys; from pathlib import Path; from ckptwatch.watch.writers import {ask}\n"
             f"answers = [{ask}(Path(sys.argv[1])) for _ in range(20_000)]\nassert set(answers) <= {{True, False}}")
    with process(opener, path):
        done = subprocess.run([sys.executable, "-c", asker, str(path)], capture_output=True)
    assert done.returncode == 0, done


# ---- the three proofs together --------------------------------------------------------------------------------------

SLOW = """
import sys
data, path = sys.stdin.buffer.read(int(sys.argv[2])), sys.argv[1]
print('ready', flush=True)
for i in range(4):
    sys.stdin.buffer.readline()
    with open(path, 'ab' if i else 'wb') as f:
        f.write(data[i * len(data) // 4:(i + 1) * len(data) // 4])
        f.flush()
        print('open', flush=True)
        sys.stdin.buffer.readline()
    print('closed', flush=True)
"""


def test_a_slow_writer_is_never_taken_for_finished(tmp_path):
    """It opens, appends a part and closes four times; only the whole is recorded as complete."""
    path, data = tmp_path / "0100.pt", zip_bytes({"step": 100}, padding=5000)
    child = subprocess.Popen([sys.executable, "-c", SLOW, str(path), str(len(data))], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    child.stdin.write(data)
    child.stdin.flush()
    assert child.stdout.readline() == b"ready\n"
    scanner = Scanner(tmp_path, formats())
    catalogue = Catalogue(formats=formats(), quiet=0.0, again=scanner.sight)
    verdicts = []

    def look():
        findings = catalogue.observe(scanner.scan(), now=time.time())
        verdicts.extend(f.facts.complete for f in findings)
        return findings

    for _ in range(4):
        proceed(child)
        assert child.stdout.readline() == b"open\n"
        assert look() == [] and catalogue.writing == {path: "open for writing"}
        proceed(child)
        assert child.stdout.readline() == b"closed\n"
        catalogue._waiting[path].recheck_at = 0.0  # the event of closing makes the daemon look at once
        until(look, what="settled")
    child.communicate()
    assert verdicts == [False, False, False, True]


def test_between_two_parts_the_quiet_time_protects(tmp_path):
    path, data = tmp_path / "0100.pt", zip_bytes({"step": 100})
    scanner = Scanner(tmp_path, formats())
    catalogue = Catalogue(formats=formats(), quiet=3600.0, again=scanner.sight)
    for part in (data[:100], data):
        path.write_bytes(part)
        assert catalogue.observe(scanner.scan(), now=time.time()) == []
        assert "needs 1h" in catalogue.writing[path]
