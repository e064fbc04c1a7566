"""The deleter's process ends at any step of its journal; the next start finishes: nothing lost, nothing half."""

import os

import pytest

from ckptwatch.apply.pruner import Pruner
from ckptwatch.model import CheckpointState, RemovalState
from ckptwatch.store import checkpoints, removals
from tests.yard import Yard

REMOVE = ("intended", "renamed", "verified", "trashed")
RESTORE = ("restoring", "moved back", "restored")
PURGE = ("purging", "unlinked", "purged")


def crash_at(step):
    def at(name):
        if name == step:
            os._exit(77)
    return at


def in_a_process_that_crashes(base, step, action):
    """Run `action(yard)` in a child that dies at the step; it opens everything itself."""
    child = os.fork()
    if child == 0:
        try:
            yard = Yard(base)
            yard.pruner = Pruner(yard.db, yard.root, at_step=crash_at(step))
            action(yard)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 77, f"never came to {step}"


def remove(yard):
    with yard.db.read() as conn:
        checkpoint = checkpoints.checkpoint(conn, 1)
    yard.remove(checkpoint)


def latest(yard):
    with yard.db.read() as conn:
        return removals.of_checkpoint(conn, 1)


def prepared(base, *, trashed):
    yard = Yard(base)
    checkpoint, data = yard.make()
    if trashed:
        yard.remove(checkpoint)
    yard.db.close()
    return checkpoint, data


def recovered(base):
    yard = Yard(base)
    yard.pruner.recover(now=200.0)
    assert yard.pruner.recover(now=201.0) == 0, "nothing is left to finish"
    return yard


def check(yard, checkpoint, data):
    """Disk and record agree, and the bytes are in exactly one place, or were to be purged."""
    removal, state = latest(yard), yard.state(checkpoint)
    here, there = checkpoint.path.exists(), removal.trash.exists()
    agreed = {
        CheckpointState.COMPLETE: (True, False, (RemovalState.ABANDONED, RemovalState.RESTORED)),
        CheckpointState.TRASHED: (False, True, (RemovalState.TRASHED,)),
        CheckpointState.PURGED: (False, False, (RemovalState.PURGED,)),
    }[state]
    assert (here, there) == agreed[:2] and removal.state in agreed[2]
    if state is not CheckpointState.PURGED:
        assert (checkpoint.path if here else removal.trash).read_bytes() == data
    yard.db.close()
    return state


@pytest.mark.parametrize("step", REMOVE)
def test_a_removal_is_done_or_undone_never_half(tmp_path, step):
    checkpoint, data = prepared(tmp_path, trashed=False)
    in_a_process_that_crashes(tmp_path, step, remove)
    state = check(recovered(tmp_path), checkpoint, data)
    assert state is (CheckpointState.COMPLETE if step == "intended" else CheckpointState.TRASHED)


@pytest.mark.parametrize("step", RESTORE)
def test_a_restore_that_began_is_finished(tmp_path, step):
    checkpoint, data = prepared(tmp_path, trashed=True)
    in_a_process_that_crashes(tmp_path, step, lambda yard: yard.restore(latest(yard)))
    assert check(recovered(tmp_path), checkpoint, data) is CheckpointState.COMPLETE


@pytest.mark.parametrize("step", PURGE)
def test_a_purge_that_began_is_finished(tmp_path, step):
    checkpoint, data = prepared(tmp_path, trashed=True)
    in_a_process_that_crashes(tmp_path, step, lambda yard: yard.purge(latest(yard)))
    assert check(recovered(tmp_path), checkpoint, data) is CheckpointState.PURGED


@pytest.mark.parametrize("step", ["renamed", "moved back", "unlinked"])
@pytest.mark.parametrize("again", ["verified", "trashed", "restored", "purged", "unlinked"])
def test_a_recovery_that_crashes_is_recovered(tmp_path, step, again):
    """Where the second step does not come up during recovery, recovery simply ends."""
    checkpoint, data = prepared(tmp_path, trashed=step != "renamed")
    action = {"renamed": remove, "moved back": lambda y: y.restore(latest(y)), "unlinked": lambda y: y.purge(latest(y))}
    in_a_process_that_crashes(tmp_path, step, action[step])
    reached = {"renamed": ("verified", "trashed"), "moved back": ("restored",), "unlinked": ("purged", "unlinked")}[step]
    if again in reached:
        in_a_process_that_crashes(tmp_path, again, lambda yard: yard.pruner.recover(now=150.0))
    check(recovered(tmp_path), checkpoint, data)


def test_a_file_rewritten_between_crash_and_restart_survives_beside_the_old_one(tmp_path):
    checkpoint, data = prepared(tmp_path, trashed=False)
    in_a_process_that_crashes(tmp_path, "renamed", remove)
    checkpoint.path.write_bytes(b"the trainer went on")
    yard = recovered(tmp_path)
    assert checkpoint.path.read_bytes() == b"the trainer went on" and latest(yard).trash.read_bytes() == data
    yard.db.close()


def test_a_name_taken_while_a_restore_was_interrupted_is_not_overwritten(tmp_path):
    checkpoint, data = prepared(tmp_path, trashed=True)
    in_a_process_that_crashes(tmp_path, "restoring", lambda yard: yard.restore(latest(yard)))
    checkpoint.path.write_bytes(b"new")
    yard = recovered(tmp_path)
    assert checkpoint.path.read_bytes() == b"new" and latest(yard).trash.read_bytes() == data
    assert latest(yard).state is RemovalState.TRASHED
    yard.db.close()


def test_recovery_of_one_root_leaves_another_alone(tmp_path):
    _, data = prepared(tmp_path, trashed=False)
    in_a_process_that_crashes(tmp_path, "renamed", remove)
    yard = Yard(tmp_path, root="other")
    assert yard.pruner.recover(now=1.0) == 0
    assert latest(yard).trash.read_bytes() == data
    yard.db.close()
