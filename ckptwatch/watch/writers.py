"""Is somebody writing to, or holding, a file? Asked of the kernel through a lease that is taken and dropped at once.

A held lease would make the trainer's own open() wait, so it never outlives the question (a few microseconds).
"""

import errno
import fcntl
import os
import signal
from pathlib import Path

_NO_LEASES = {errno.EACCES, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS}


def has_writer(path: Path) -> bool | None:
    """True if any process of this machine has the file open for writing (also by another hard link or a shared map).

    None where leases cannot tell: not the owner, or a filesystem without them. Raises OSError if the file is gone.
    """
    return _lease_refused(path, fcntl.F_RDLCK)


def has_holder(path: Path) -> bool | None:
    """True if any process of this machine has the file open at all. None and OSError as for `has_writer`."""
    return _lease_refused(path, fcntl.F_WRLCK)


def _lease_refused(path: Path, kind: int) -> bool | None:
    # O_NONBLOCK: never wait for somebody else's lease. O_NOFOLLOW: a link swapped in is not our file.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # Whoever opens the file in these microseconds makes the kernel signal us; by default with SIGIO, which kills.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # ignored by default
        fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return True
        if error.errno in _NO_LEASES:
            return None
        raise
    finally:
        os.close(fd)
    return False
