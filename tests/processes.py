"""Whether processes that tests cannot wait for have ended."""

import os
import select


def gone(pid: int) -> bool:
    """Has the process ended, or does it within a while? Nobody may reap orphans here, so a zombie has ended, too."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 20)[0])
    finally:
        os.close(handle)
