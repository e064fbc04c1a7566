"""A claim with the stat of all its files together: what changes when any of them does."""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ckptwatch.formats.base import Claim
from ckptwatch.model import Identity


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """Two equal ones: nothing of the checkpoint has changed in between, nor of what decides whether it is complete."""

    claim: Claim
    device: int
    inode: int     # of the path the checkpoint is called by
    size: int      # bytes of all files
    mtime_ns: int  # the latest of all files and directories
    ctime_ns: int
    files: int
    witnesses: tuple[tuple[int, int, int], ...] = ()  # inode, size and time of each; zeros for one that is missing

    @property
    def path(self) -> Path:
        return self.claim.path

    @property
    def identity(self) -> Identity:
        """Without the format's fingerprint, which needs the files to be opened."""
        return Identity(device=self.device, inode=self.inode, size=self.size, mtime_ns=self.mtime_ns)


def sight(claim: Claim) -> Sighting:
    """Stats everything that belongs to the claim, links not followed. Raises OSError."""
    lead = os.lstat(claim.path)
    if stat.S_ISLNK(lead.st_mode):
        raise FileNotFoundError(errno.ENOENT, "a symbolic link has taken its place", str(claim.path))
    infos = [lead] if claim.members == (claim.path,) and not stat.S_ISDIR(lead.st_mode) else list(_stats(claim.members))
    return sighting_of(claim, lead, infos)


def sighting_of(claim: Claim, lead: os.stat_result, infos: Iterable[os.stat_result]) -> Sighting:
    """The same from stats already taken: `lead` of the path it is called by, `infos` of all its files and directories."""
    size = mtime = ctime = files = 0
    for info in infos:
        mtime, ctime = max(mtime, info.st_mtime_ns), max(ctime, info.st_ctime_ns)
        if not stat.S_ISDIR(info.st_mode):
            size += info.st_size
            files += 1
    return Sighting(
        claim=claim, device=signed64(lead.st_dev), inode=signed64(lead.st_ino), size=size, mtime_ns=signed64(mtime),
        ctime_ns=ctime, files=files, witnesses=tuple(_witness(w) for w in claim.witnesses) if claim.witnesses else ())


def sight_path(path: Path, members: tuple[str, ...] = ()) -> Sighting:
    """What lies at a path now, whatever its format; `members` are the names that belong to it, `path` included.

    Raises OSError.
    """
    return sight(Claim(format="", path=path, members=tuple(path.with_name(m) for m in members) or (path,)))


def files_of(members: Iterable[Path]) -> Iterator[Path]:
    """Every regular file of a checkpoint, links not followed. Raises OSError."""
    for member in members:
        for path, info in walk(member):
            if stat.S_ISREG(info.st_mode):
                yield Path(path)


def _stats(members: Iterable[Path]) -> Iterator[os.stat_result]:
    for member in members:
        yield from (info for _, info in walk(member))


def walk(top: Path) -> Iterator[tuple[str, os.stat_result]]:
    """A file or directory and everything below it, with its stat, links not followed. Raises OSError."""
    info = os.lstat(top)
    yield str(top), info
    pending = [str(top)] if stat.S_ISDIR(info.st_mode) else []
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                yield entry.path, info
                if stat.S_ISDIR(info.st_mode):
                    pending.append(entry.path)


def _witness(path: Path) -> tuple[int, int, int]:
    try:
        info = path.lstat()
    except OSError:
        return (0, 0, 0)
    return (info.st_ino, info.st_size, info.st_mtime_ns)


def signed64(number: int) -> int:
    """The number as SQLite holds it. Inodes of overlay and FUSE mounts, and times after 2262, need the 64th bit."""
    return (number + 2**63) % 2**64 - 2**63
