"""The whole command line, with only the worker program exchanged for stub_worker.py, and deleters held on a leash."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.leash import leash


def main():
    if "run" in sys.argv or {"restore", "trash", "pin", "unpin", "approve", "retry"} & set(sys.argv):
        from ckptwatch.workers import supervisor

        supervisor.Pool.__init__.__kwdefaults__["command"] = (sys.executable, str(Path(__file__).parent / "stub_worker.py"))
        leash()
    from ckptwatch.cli.app import main as ckptwatch

    ckptwatch()


if __name__ == "__main__":
    main()
