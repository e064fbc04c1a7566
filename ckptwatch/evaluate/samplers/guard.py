"""Runs a sampler's command so that nothing of it outlives the worker: a tiny process between the two.

    python guard.py WORKER_PID COMMAND [ARGUMENT …]

It leads its own process group, into which the command is born, and adopts those whose parents end. When the worker dies,
however suddenly, the kernel sends SIGTERM here, and all descendants are killed, also those in sessions of their own: a
death signal on the command itself would leave the children of a shell script running, with the GPU memory they hold. Ends
with the command's exit status, 128 + n for signal n, 127 when the command cannot be started; what the command left behind
is killed before. Imports as little as possible; it must not import torch or ckptwatch.
"""

import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
NOT_STARTED = 127
KILL_WAIT = 5.0  # seconds for killed processes to go: one may hang in a driver
PAUSE = 0.005    # seconds between looks at them


def kill_group(*_: object) -> None:
    """Kills all descendants, then the group, which is the end of this process, too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    kill_descendants()
    os.killpg(0, signal.SIGKILL)


def kill_descendants() -> None:
    """Until none is left: one that was killed may have had children since it was seen, and these are adopted."""
    deadline = time.monotonic() + KILL_WAIT
    while (pids := descendants()) and time.monotonic() < deadline:
        for pid in pids:
            kill(pid)
        time.sleep(PAUSE)
        reap()


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def descendants() -> list[int]:
    """Processes below this one that still run."""
    children: dict[int, list[int]] = {}
    ended = set()
    for name in os.listdir("/proc"):
        if name.isdecimal() and (facts := state_and_parent(name)):
            children.setdefault(facts[1], []).append(int(name))
            if facts[0] in "ZX":
                ended.add(int(name))
    found, queue = [], [os.getpid()]
    while queue:
        below = children.pop(queue.pop(), [])
        found += below
        queue += below
    return [pid for pid in found if pid not in ended]


def state_and_parent(pid: str) -> tuple[str, int] | None:
    """The letter of a process's state, and its parent; None where it has gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 (pathlib takes long to import)
            state, parent = file.read().rpartition(b")")[2].split()[:2]  # behind its name, which may hold anything
    except (OSError, ValueError):
        return None
    return state.decode(), int(parent)


def reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def status_of(command: int) -> int:
    """Waits for the command; adopted processes that end meanwhile are reaped."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == command:
            return status


def main(worker: int, argv: list[str]) -> int:
    signal.signal(signal.SIGTERM, kill_group)
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != worker:  # it died before the line above
        kill_group()
    try:
        child = os.posix_spawnp(
            argv[0], argv, os.environ, setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGPIPE],
        )
    except OSError as error:
        print(f"cannot start {argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return NOT_STARTED
    code = os.waitstatus_to_exitcode(status_of(child))
    kill_descendants()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
