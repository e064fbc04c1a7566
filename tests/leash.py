"""A correct deleter pointed at the wrong root is the bug to prevent: in tests none may work outside the test's directory."""

import os
from pathlib import Path

BELOW = "CKPTWATCH_TEST_BELOW"


def leash() -> None:
    """From now on, making a Pruner for a root outside $CKPTWATCH_TEST_BELOW fails."""
    from ckptwatch.apply.pruner import Pruner

    original = Pruner.__init__

    def on_leash(self, db, root, **more):
        below = Path(os.environ[BELOW]).resolve()
        if not Path(root).resolve().is_relative_to(below):
            raise AssertionError(f"a test's deleter was given {root}, outside {below}")
        original(self, db, root, **more)

    Pruner.__init__ = on_leash
