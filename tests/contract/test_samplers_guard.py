"""What the guard of a sampler's command owes: nothing of the command outlives the worker, wherever its processes went."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from ckptwatch.evaluate.samplers import guard
from tests.processes import gone

# A worker, as the guard knows one: its parent. Its own death is the only thing it does.
HOST = """
import os, subprocess, sys
guard, *command = sys.argv[1:]
subprocess.Popen([sys.executable, "-I", "-S", guard, str(os.getpid()), *command], process_group=0).wait()
"""
# Launchers of distributed jobs start each process in a session of its own, and that one starts others.
COMMAND = """
import os, subprocess, sys, time
child = subprocess.Popen(["/bin/sh", "-c", "sleep 1000 & echo $!; wait"], start_new_session=True)
print(child.pid, flush=True)
if sys.argv[1] == "waits":
    child.wait()
elif sys.argv[1] == "leaves":
    time.sleep(1000)
"""
# The session's leader is orphaned before anything is killed: its parent has ended, the command has not.
DAEMON = """
import subprocess, sys, time
subprocess.run([sys.executable, "-I", "-S", "-c", sys.argv[1], "ends"], check=True)
time.sleep(1000)
"""


def processes_of(command: list[str]) -> tuple[subprocess.Popen, list[int]]:
    """A host whose guard runs a command, and the two processes that left the command's group."""
    host = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", HOST, guard.__file__, *command], stdout=subprocess.PIPE, text=True,
    )
    assert host.stdout is not None
    return host, [int(host.stdout.readline()) for _ in range(2)]


@pytest.mark.parametrize("command", [
    [sys.executable, "-I", "-S", "-c", COMMAND, "waits"],
    [sys.executable, "-I", "-S", "-c", COMMAND, "leaves"],
    [sys.executable, "-I", "-S", "-c", DAEMON, COMMAND],
], ids=["below", "beside", "orphaned"])
def test_processes_in_sessions_of_their_own_die_with_the_worker(command):
    host, pids = processes_of(command)
    try:
        host.send_signal(signal.SIGKILL)
        host.wait()
        assert [gone(pid) for pid in pids] == [True, True]
    finally:
        end(host, pids)


def test_processes_in_sessions_of_their_own_die_with_the_command():
    host, pids = processes_of([sys.executable, "-I", "-S", "-c", COMMAND, "ends"])
    try:
        assert host.wait() == 0
        assert [gone(pid) for pid in pids] == [True, True]
    finally:
        end(host, pids)


@pytest.mark.parametrize(("script", "status"), [
    ("exit 7", 7), ("kill -SEGV $$", 128 + signal.SIGSEGV),
    ("(sh -c 'exit 3' & exec true); exit 7", 7),
    ("setsid sleep 1000 & exit 7", 7),
    # This one waits until an orphan is reaped.
    ("(true & echo $!) | (read p; while kill -0 $p 2>/dev/null; do :; done); exit 7", 7),
])
def test_the_exit_status_is_the_commands_own_whatever_orphans_do(script, status):
    argv = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), "/bin/sh", "-c", script]
    assert subprocess.run(argv, process_group=0, timeout=60).returncode == status


def test_guard_is_small():
    argv = [sys.executable, "-I", "-S", "-c", f"import sys, runpy; runpy.run_path({guard.__file__!r}); print(*sys.modules)"]
    loaded = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "psutil", "ckptwatch", "subprocess", "threading"} & set(loaded)


def end(host: subprocess.Popen, pids: list[int]) -> None:
    host.kill()
    host.wait()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
