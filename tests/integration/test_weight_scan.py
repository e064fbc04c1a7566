"""The child that scans weights, and its keeper: real processes on real files."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from ckptwatch.model import WeightScan
from ckptwatch.workers.weight_scan import WeightScanner, scan_from
from tests.support import alive, until

NAN = float("nan")
WAITS = "import os, sys, time; open(sys.argv[-1] + '.pid', 'w').write(str(os.getpid())); time.sleep(600)"


@pytest.fixture
def scanner():
    scanner = WeightScanner()
    yield scanner
    scanner.close()


@pytest.fixture
def waiting():
    """A scanner whose child writes its number into PATH.pid and then waits for ever."""
    scanner = WeightScanner(command=(sys.executable, "-c", WAITS))
    yield scanner
    scanner.close()


def checkpoint(path, value=1.0):
    torch.save({"model": {"w": torch.full((100,), value)}}, path)
    return path


def pid_of(path):
    return until(lambda: (p := Path(f"{path}.pid")).exists() and p.read_text(), what="the child runs")


def test_a_scan_in_a_child_gives_its_result_once(scanner, tmp_path):
    assert not scanner.busy
    assert scanner.poll() is None
    scanner.start(7, checkpoint(tmp_path / "a.pt", NAN), (), "torch-zip", False)
    assert scanner.busy
    number, scan = until(scanner.poll)
    assert number == 7
    assert scan == WeightScan(state="not_finite", tensors=1, bytes=400, bad={"model.w": 100}, bad_tensors=1)
    assert not scanner.busy
    assert scanner.poll() is None


def test_one_scan_after_the_other(scanner, tmp_path):
    for number, value in ((1, 1.0), (2, NAN), (3, 0.0)):
        scanner.start(number, checkpoint(tmp_path / f"{number}.pt", value))
        assert until(scanner.poll)[1].state == ("not_finite" if number == 2 else "finite")


def test_the_members_of_a_set_are_scanned_together(scanner, tmp_path):
    checkpoint(tmp_path / "a.pt")
    checkpoint(tmp_path / "b b.pt", NAN)
    scanner.start(1, tmp_path / "a.pt", ("a.pt", "b b.pt"), "file-set")
    assert until(scanner.poll)[1].bad == {"b b.pt: model.w": 100}


def test_a_second_scan_at_a_time_is_refused(waiting, tmp_path):
    waiting.start(1, tmp_path / "a.pt")
    with pytest.raises(RuntimeError, match="checkpoint 1 is still"):
        waiting.start(2, tmp_path / "b.pt")


def test_a_checkpoint_that_is_gone_is_unreadable(scanner, tmp_path):
    scanner.start(1, tmp_path / "nowhere.pt")
    scan = until(scanner.poll)[1]
    assert (scan.state, scan.words) == ("unreadable", "nowhere.pt vanished")


def test_a_name_like_an_option_is_a_name(scanner, tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "--help.pt")
    scanner.start(1, tmp_path / "--help.pt", ("--help.pt",), "file-set")
    assert until(scanner.poll)[1].state == "finite"


def test_cancelling_ends_the_child_without_a_result(waiting, tmp_path):
    waiting.start(4, tmp_path / "a")
    pid = int(pid_of(tmp_path / "a"))
    waiting.cancel(5)  # another checkpoint
    assert waiting.busy
    waiting.cancel(4)
    assert not alive(pid)
    assert not waiting.busy
    assert waiting.poll() is None


@pytest.mark.parametrize(
    ("code", "words"),
    [("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
     ("raise ValueError('of all things')", "ValueError: of all things"), ("print('nonsense')", "exited with status 0"),
     ("print('{\"state\": \"finite\", \"tensors\": -1}')", "exited with status 0")],
)
def test_a_child_that_crashes_or_talks_nonsense_is_one_unreadable_checkpoint(tmp_path, code, words):
    scanner = WeightScanner(command=(sys.executable, "-c", code))
    scanner.start(1, tmp_path / "a.pt")
    scan = until(scanner.poll)[1]
    assert scan.state == "unreadable"
    assert words in scan.words
    assert not scanner.busy


def test_a_child_that_cannot_be_started_is_one_unreadable_checkpoint(tmp_path):
    scanner = WeightScanner(command=(str(tmp_path / "no-such-python"),))
    scanner.start(9, tmp_path / "a.pt")
    number, scan = scanner.poll()
    assert (number, scan.state) == (9, "unreadable")
    assert "could not be started" in scan.words
    assert not scanner.busy


def test_a_scan_that_takes_too_long_ends_and_says_so(tmp_path):
    # The child's own limit is a signal that nothing it does can put off.
    code = ("import sys; from ckptwatch.workers import weight_scan; from ckptwatch.scan import finite\n"
            "def forever(*a):\n    while True: pass\n"
            "finite.scan_path = forever; sys.exit(weight_scan.main(sys.argv[1:]))")
    scanner = WeightScanner(limit=1.0, command=(sys.executable, "-c", code))
    scanner.start(1, tmp_path / "a.pt")
    scan = until(scanner.poll)[1]
    assert (scan.state, scan.words) == ("unreadable", "not done after 1 s")


def test_the_child_comes_after_everybody_and_dies_with_its_parent(tmp_path):
    code = ("import sys, time; from ckptwatch.workers import weight_scan; from ckptwatch.scan import finite\n"
            "def waiting(path, *a):\n    import os; open(f'{path}.pid', 'w').write(str(os.getpid())); time.sleep(600)\n"
            "finite.scan_path = waiting; sys.exit(weight_scan.main(sys.argv[1:]))")
    parent = ("import sys, time; from pathlib import Path; from ckptwatch.workers.weight_scan import WeightScanner\n"
              "WeightScanner(command=(sys.executable, '-c', sys.argv[1])).start(1, Path(sys.argv[2])); time.sleep(600)")
    process = subprocess.Popen([sys.executable, "-c", parent, code, str(tmp_path / "a")])
    try:
        pid = int(pid_of(tmp_path / "a"))
        child = psutil.Process(pid)
        assert child.nice() == 19
        assert child.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: not alive(pid), what="the child is dead")


def test_its_memory_is_bounded(tmp_path):
    code = ("import sys; from ckptwatch.workers import weight_scan; from ckptwatch.scan import finite\n"
            "finite.scan_path = lambda *a: bytearray(1 << 40); sys.exit(weight_scan.main(sys.argv[1:]))")
    scanner = WeightScanner(command=(sys.executable, "-c", code))
    scanner.start(1, tmp_path / "a.pt")
    scan = until(scanner.poll)[1]
    assert (scan.state, scan.words) == ("unreadable", "what it says of its tensors does not fit into memory")


def test_the_program_prints_one_line(tmp_path):
    done = subprocess.run([sys.executable, "-m", "ckptwatch.workers.weight_scan", checkpoint(tmp_path / "a.pt")],
                          capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["state"] == "finite"
    assert done.stdout.count("\n") == 1


def test_the_longest_answer_fits_into_a_pipe(scanner, tmp_path):
    top = tmp_path.joinpath("step_5", *["😀" * 60] * 8)
    top.mkdir(parents=True)
    bad = {f"{'😀' * 190}{i:02d}": torch.tensor([NAN]) for i in range(30)}
    torch.save(bad, top / "a.pt")
    torch.save({"w": torch.ones(1)}, tmp_path / "step_5" / "b.pt")
    scanner.start(1, tmp_path / "step_5", (), "step-directory")
    scan = until(scanner.poll)[1]
    assert (len(scan.bad), scan.bad_tensors) == (20, 30)
    line = json.dumps({"bad": dict(scan.bad), "words": scan.words}, ensure_ascii=False).encode()
    assert len(line) < os.pathconf("/", "PC_PIPE_BUF") * 16


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"{}", b'{"state": "well"}', b'{"state": "finite", "tensors": "1"}', b"[" * 9999, b"\xff"])
def test_no_answer_is_believed_that_is_none(line):
    assert scan_from(line) is None
