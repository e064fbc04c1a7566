"""Removing a checkpoint, taking it back, and emptying the trash: journal first, rename second, verify third.

A removal never unlinks in place. The file goes by rename into the trash on the same filesystem and is looked at again
there, because a trainer may have written a new file under the name between the look and the rename; then it goes back.
"""

import contextlib
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ckptwatch.apply.places import trash_dir
from ckptwatch.apply.renaming import directory_below, rename_noreplace
from ckptwatch.errors import RemovalRefused
from ckptwatch.model import Checkpoint, CheckpointEvent, CheckpointState, Identity, Removal, RemovalState
from ckptwatch.store import checkpoints, events, removals
from ckptwatch.store.database import Database
from ckptwatch.watch.sightings import files_of, sight_path, signed64, walk
from ckptwatch.watch.writers import has_holder

log = logging.getLogger(__name__)

Step = Callable[[str], None]  # called with the name of each step of the journal; the fault tests kill there


def _nothing(step: str) -> None:
    """In production no step is watched."""


class Pruner:
    """Carries out decisions for one root. Every public method is safe to repeat after a crash."""

    def __init__(self, db: Database, root: Path, *, at_step: Step = _nothing) -> None:
        self._db = db
        self._root = root
        self._trash = trash_dir(root)
        self._at = at_step

    # ---- into the trash ------------------------------------------------------------------------------------------

    def remove(self, checkpoint: Checkpoint, *, run: str, reason: str, grace: float, now: float) -> Removal:
        """Move a checkpoint into the trash. Raises RemovalRefused, and leaves everything as it was, if it is not the one
        that was judged, is open in a process, has other hard links, or lies on another filesystem than the trash."""
        self._check(checkpoint)
        with self._db.write() as conn:
            removal = removals.intend(
                conn, checkpoint_id=checkpoint.id, original=checkpoint.path, trash_dir=self._trash, reason=reason,
                size=checkpoint.identity.size, now=now, purge_at=now + grace)
        self._at("intended")
        try:
            self._move_all(removal.moves)
        except (OSError, ValueError) as error:
            self._abandon(removal, f"rename failed: {error}", now)
            raise _refused(checkpoint.path, str(error)) from error
        self._at("renamed")
        return self._confirm(removal, checkpoint, run=run, now=now)

    def _confirm(self, removal: Removal, checkpoint: Checkpoint, *, run: str, now: float) -> Removal:
        """After the rename: is what lies in the trash what was judged? If not, it goes back."""
        changed = _difference(checkpoint.identity, removal.trash, removal.members, moved=True)
        if not changed and _held(trash for _, trash in removal.moves):
            changed = "a process opened it meanwhile"
        if changed:
            try:
                self._move_all(_back(removal), create=True)
            except FileExistsError:
                # The trainer has already written the name again. What we hold is kept for the whole grace period.
                log.warning("%s changed while it was moved and its name is taken: kept in trash", removal.original)
            else:
                self._abandon(removal, changed, now)
                raise _refused(removal.original, changed)
        self._at("verified")
        with self._db.write() as conn:
            done = removals.advance(conn, removal.id, RemovalState.TRASHED)
            before = checkpoints.checkpoint(conn, checkpoint.id)
            if before.state is not CheckpointState.TRASHED:
                checkpoints.move(conn, checkpoint.id, CheckpointEvent.TRASH)
            events.append(conn, now=now, kind="trashed", run=run, path=removal.original, message=removal.reason,
                          data={"bytes": removal.bytes, "trash": str(removal.trash), "purge_at": removal.purge_at})
        self._at("trashed")
        return done

    def _check(self, checkpoint: Checkpoint) -> None:
        path = checkpoint.path
        with self._db.read() as conn:
            state = checkpoints.checkpoint(conn, checkpoint.id).state
        if state is not CheckpointState.COMPLETE:
            raise _refused(path, f"it is {state}")
        try:
            self._trash.mkdir(mode=0o700, parents=True, exist_ok=True)
            device = self._trash.stat().st_dev
            with directory_below(self._root, path.parent) as parent:
                for entry in checkpoint.entries:
                    if stat.S_ISLNK(os.stat(entry.name, dir_fd=parent, follow_symlinks=False).st_mode):
                        raise _refused(entry, "it is a symbolic link now")
            obstacle = _obstacle(checkpoint.entries, device)
        except (OSError, ValueError) as error:
            raise _refused(path, str(error)) from error
        if obstacle:
            raise _refused(path, obstacle)
        if changed := _difference(checkpoint.identity, path, checkpoint.members):
            raise _refused(path, changed)
        if _held(checkpoint.entries):
            raise _refused(path, "a process has it open")

    # ---- back out of it ------------------------------------------------------------------------------------------

    def restore(self, removal: Removal, *, run: str, by: str, now: float) -> Checkpoint:
        """Bring a checkpoint back under its own name, bit for bit, and pin it so that no rule takes it again.

        Raises RemovalRefused if its name is taken by another file, or it is no longer in the trash.
        """
        if removal.state is not RemovalState.TRASHED:
            raise RemovalRefused("restore", f"it is not in the trash ({removal.state})", path=removal.original,
                                 hint="`ckptwatch trash` lists what can be restored")
        for original, trash in removal.moves:
            if not os.path.lexists(trash):
                raise RemovalRefused("restore", f"{trash} is missing", path=original, hint="somebody else emptied the trash")
            if os.path.lexists(original):
                raise RemovalRefused("restore", "a file of that name exists", path=original,
                                     hint="move that file away first; nothing is overwritten")
        with self._db.write() as conn:
            removals.advance(conn, removal.id, RemovalState.RESTORING)
            other = checkpoints.living(conn, removal.original)
            if other is not None:  # recorded under that name, but just seen not to be there
                checkpoints.move(conn, other.id, CheckpointEvent.VANISHED)
        self._at("restoring")
        return self._finish_restore(removal, run=run, by=by, now=now)

    def _finish_restore(self, removal: Removal, *, run: str, by: str, now: float) -> Checkpoint:
        if any(os.path.lexists(trash) for _, trash in removal.moves):
            try:
                self._move_all(_back(removal), create=True)
            except (OSError, ValueError) as error:
                with self._db.write() as conn:
                    removals.advance(conn, removal.id, RemovalState.TRASHED)
                raise RemovalRefused("restore", str(error), path=removal.original, hint="it is still in the trash") \
                    from error
        self._at("moved back")
        with self._db.write() as conn:
            removals.advance(conn, removal.id, RemovalState.RESTORED)
            checkpoint = checkpoints.move(conn, removal.checkpoint_id, CheckpointEvent.RESTORE)
            checkpoints.pin(conn, checkpoint.id, f"{by}: restored from trash")
            events.append(conn, now=now, kind="restored", by=by, run=run, path=removal.original,
                          message="restored from trash and pinned")
            checkpoint = checkpoints.checkpoint(conn, checkpoint.id)
        self._at("restored")
        _tidy(removal.trash.parent)
        return checkpoint

    # ---- for good ------------------------------------------------------------------------------------------------

    def purge(self, removal: Removal, *, run: str, by: str, now: float) -> None:
        """Delete a trash entry for good. Raises RemovalRefused if it does not lie in this root's trash, or another
        filesystem is mounted in it."""
        if removal.trash.parent.parent != self._trash or removal.state not in (RemovalState.TRASHED, RemovalState.PURGING):
            raise RemovalRefused("purge", f"not an entry of {self._trash}", path=removal.trash)
        with self._db.write() as conn:
            removals.advance(conn, removal.id, RemovalState.PURGING)
        self._at("purging")
        try:
            for _, entry in removal.moves:
                self._delete(entry)
        except (OSError, ValueError) as error:
            if all(trash.is_file() for _, trash in removal.moves):  # still whole: it can be restored, and is tried again
                with self._db.write() as conn:
                    removals.advance(conn, removal.id, RemovalState.TRASHED)
            cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise RemovalRefused("purge", cause, path=removal.trash) from error
        self._at("unlinked")
        with self._db.write() as conn:
            removals.advance(conn, removal.id, RemovalState.PURGED)
            checkpoints.move(conn, removal.checkpoint_id, CheckpointEvent.PURGE)
            events.append(conn, now=now, kind="purged", by=by, run=run, path=removal.original,
                          message=f"removed for good from trash; {removal.reason}", data={"bytes": removal.bytes})
        self._at("purged")
        _tidy(removal.trash.parent)

    # ---- after a crash -------------------------------------------------------------------------------------------

    def recover(self, *, now: float) -> int:
        """Finish what a crash interrupted. Returns how many journal entries were open."""
        with self._db.read() as conn:
            interrupted = [r for r in removals.in_state(conn, *removals.OPEN) if r.trash.parent.parent == self._trash]
        for removal in interrupted:
            try:
                self._recover(removal, now)
            except RemovalRefused as error:
                log.warning("recovery: %s", error)
        return len(interrupted)

    def _recover(self, removal: Removal, now: float) -> None:
        if removal.state is RemovalState.INTENDED:
            arrived = [os.path.lexists(trash) for _, trash in removal.moves]
            if not any(arrived):
                self._abandon(removal, "interrupted before the rename", now)
                return
            if not all(arrived):  # a set of files, some of them moved: undone
                self._undo(removal, now)
                return
            with self._db.read() as conn:
                checkpoint = checkpoints.checkpoint(conn, removal.checkpoint_id)
            self._confirm(removal, checkpoint, run=removal.run, now=now)
        elif removal.state is RemovalState.RESTORING:
            self._finish_restore(removal, run=removal.run, by="ckptwatch", now=now)
        elif removal.state is RemovalState.PURGING:
            self.purge(removal, run=removal.run, by="ckptwatch", now=now)

    # ---- the steps on disk ---------------------------------------------------------------------------------------

    def _move_all(self, moves: Sequence[tuple[Path, Path]], *, create: bool = False) -> None:
        """Rename every entry, or none: what was moved goes back if a later one cannot be. What has arrived already, in an
        earlier attempt, is left where it is. Raises as `_move`."""
        done: list[tuple[Path, Path]] = []
        try:
            for source, target in moves:
                if os.path.lexists(target) and not os.path.lexists(source):
                    continue
                self._move(source, target, create=create)
                done.append((source, target))
                if len(moves) > 1:
                    self._at("renamed one")
        except (OSError, ValueError):
            for source, target in reversed(done):
                with contextlib.suppress(OSError, ValueError):
                    self._move(target, source, create=True)
            raise

    def _undo(self, removal: Removal, now: float) -> None:
        """Bring back what a crash left in the trash of a set that was not moved as a whole."""
        try:
            self._move_all([move for move in _back(removal) if os.path.lexists(move[0])], create=True)
        except (OSError, ValueError) as error:
            raise RemovalRefused("undo the removal of", str(error), path=removal.original,
                                 hint=f"what is missing lies in {removal.trash.parent}") from error
        self._abandon(removal, "interrupted between its files; all are back", now)

    def _delete(self, entry: Path) -> None:
        """Unlink one entry of the trash. One that is gone is done: a crash came in between, or a person."""
        try:
            if obstacle := _foreign(entry, self._trash.stat().st_dev):
                raise ValueError(obstacle)
            with directory_below(self._root, entry.parent) as place:
                if stat.S_ISDIR(os.stat(entry.name, dir_fd=place, follow_symlinks=False).st_mode):
                    shutil.rmtree(entry.name, dir_fd=place)
                else:
                    os.unlink(entry.name, dir_fd=place)
        except FileNotFoundError:
            pass

    def _move(self, source: Path, target: Path, *, create: bool = False) -> None:
        """Rename within the root, never over anything, and make it durable. `create` makes missing run directories."""
        into_trash = target.is_relative_to(self._trash)
        with directory_below(self._root, source.parent) as source_dir, \
                directory_below(self._root, target.parent, create=create or into_trash) as target_dir:
            rename_noreplace(source.name, target.name, source_dir=source_dir, target_dir=target_dir)
            os.fsync(target_dir)
            os.fsync(source_dir)

    def _abandon(self, removal: Removal, why: str, now: float) -> None:
        with self._db.write() as conn:
            removals.advance(conn, removal.id, RemovalState.ABANDONED)
            events.append(conn, now=now, kind="removal_abandoned", run=removal.run, path=removal.original, message=why)
        _tidy(removal.trash.parent)


def _back(removal: Removal) -> list[tuple[Path, Path]]:
    """Out of the trash; the entry the checkpoint is called by comes last, so that it stands for the whole."""
    return [(trash, original) for original, trash in reversed(removal.moves)]


def _difference(judged: Identity, path: Path, members: tuple[str, ...], *, moved: bool = False) -> str:
    """"" if the path still holds the identity that was judged, else what differs.

    `moved`: some filesystems give a directory a new time when it is renamed into another one; then only the times of what
    is in it count.
    """
    try:
        found = sight_path(path, members)
        if (found.device, found.inode, found.size) == (judged.device, judged.inode, judged.size) and (
                found.mtime_ns == judged.mtime_ns or (moved and path.is_dir() and _latest_in(path) <= judged.mtime_ns)):
            return ""
    except OSError as error:
        return error.strerror or str(error)
    return "it was rewritten since it was judged"


def _latest_in(directory: Path) -> int:
    """The latest modification of anything below a directory, in ns. Raises OSError."""
    return max((signed64(info.st_mtime_ns) for path, info in walk(directory) if path != str(directory)), default=0)


def _obstacle(entries: Sequence[Path], device: int) -> str:
    """What forbids that these are moved to the trash; "" if nothing does. Raises OSError."""
    for entry in entries:
        if foreign := _foreign(entry, device):
            return foreign
        for path, info in walk(entry):
            if stat.S_ISREG(info.st_mode) and info.st_nlink > 1:
                what = "it" if path == str(entry) else Path(path).name
                return f"{what} has {info.st_nlink} hard links"
    return ""


def _foreign(entry: Path, device: int) -> str:
    """Is something below the entry on another filesystem than the trash? A rename would take the mount along, and a purge
    would empty it. Raises OSError."""
    for path, info in walk(entry):
        if info.st_dev != device:
            what = "it" if path == str(entry) else Path(path).name
            return f"{what} lies on another filesystem than the trash of its root"
    return ""


def _held(entries: Iterable[Path]) -> bool:
    """Open in a process of this machine? Where leases cannot tell, the settling rules have to do."""
    try:
        return any(has_holder(file) is True for file in files_of(entries))
    except OSError:
        return True


def _refused(path: Path, cause: str) -> RemovalRefused:
    return RemovalRefused("remove", cause, path=path, hint="it is kept; the next plan looks again")


def _tidy(directory: Path) -> None:
    """Remove an emptied place in the trash."""
    with contextlib.suppress(OSError):
        directory.rmdir()
