"""Renames that never overwrite, relative to directories that were opened without following links."""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_RENAME_NOREPLACE = 1
_libc = ctypes.CDLL(None, use_errno=True)


def rename_noreplace(source: str, target: str, *, source_dir: int, target_dir: int) -> None:
    """renameat2(RENAME_NOREPLACE). Raises FileExistsError if the target exists, OSError otherwise.

    Where the filesystem lacks the flag (EINVAL), a check comes first; then only a race in between could overwrite, and
    our targets are either fresh directories of our own or names that were just seen free.
    """
    result = _libc.renameat2(source_dir, os.fsencode(source), target_dir, os.fsencode(target), _RENAME_NOREPLACE)
    if result == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), source)
    try:
        os.stat(target, dir_fd=target_dir, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(source, target, src_dir_fd=source_dir, dst_dir_fd=target_dir)
        return
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)


@contextmanager
def directory_below(root: Path, directory: Path, *, create: bool = False) -> Iterator[int]:
    """A descriptor of `directory`, reached from `root` one component at a time without following a symbolic link.

    Raises ValueError if it does not lie below the root, OSError (ELOOP, ENOTDIR, ENOENT) if a component is a link, no
    directory or missing (and not `create`).
    """
    relative = directory.relative_to(root)
    if ".." in relative.parts:
        raise ValueError(f"{directory} is not below {root}")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    descriptor = os.open(root, flags)
    try:
        for part in relative.parts:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=descriptor)
            deeper = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = deeper
        yield descriptor
    finally:
        os.close(descriptor)
