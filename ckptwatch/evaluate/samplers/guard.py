"""Runs a sampler's command so that nothing of it outlives the worker: a tiny process between the two.

    python guard.py WORKER_PID COMMAND [ARGUMENT …]

It leads its own process group, into which the command is born. When the worker dies, however suddenly, the kernel sends
SIGTERM here, and the whole group is killed: a death signal on the command itself would leave the children of a shell
script running, with the GPU memory they hold. Ends with the command's exit status, 128 + n for signal n, 127 when the
command cannot be started. Imports as little as possible; it must not import torch or ckptwatch.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
NOT_STARTED = 127


def kill_group(*_: object) -> None:
    os.killpg(0, signal.SIGKILL)


def main(worker: int, argv: list[str]) -> int:
    signal.signal(signal.SIGTERM, kill_group)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != worker:  # it died before the line above
        kill_group()
    try:
        child = os.posix_spawnp(
            argv[0], argv, os.environ, setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGPIPE],
        )
    except OSError as error:
        print(f"cannot start {argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return NOT_STARTED
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
