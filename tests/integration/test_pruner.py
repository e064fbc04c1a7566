"""The deleter: into the trash, out of it, and never anything but what was judged."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ckptwatch.apply.pruner import Pruner
from ckptwatch.apply.renaming import directory_below, rename_noreplace
from ckptwatch.errors import RemovalRefused
from ckptwatch.model import CheckpointState, RemovalState, evolve
from ckptwatch.watch.sightings import sight_path
from tests.support import save, tree
from tests.yard import Yard


@pytest.fixture
def yard(tmp_path):
    made = Yard(tmp_path)
    yield made
    made.db.close()


def refused(yard, checkpoint, match):
    before = tree(yard.root)
    with pytest.raises(RemovalRefused, match=match):
        yard.remove(checkpoint)
    assert tree(yard.root) == before, "a refusal changes nothing"
    assert yard.state(checkpoint) is CheckpointState.COMPLETE
    assert RemovalState.TRASHED not in yard.journal()


# ---- there and back -------------------------------------------------------------------------------------------------


def test_a_removed_checkpoint_comes_back_bit_for_bit(yard):
    checkpoint, data = yard.make()
    removal = yard.remove(checkpoint)
    assert not checkpoint.path.exists() and removal.trash.read_bytes() == data
    assert yard.state(checkpoint) is CheckpointState.TRASHED
    assert (removal.state, removal.purge_at) == (RemovalState.TRASHED, 160.0)
    back = yard.restore(removal)
    assert checkpoint.path.read_bytes() == data and back.identity == checkpoint.identity
    assert sight_path(checkpoint.path).mtime_ns == checkpoint.identity.mtime_ns
    assert yard.state(checkpoint) is CheckpointState.COMPLETE and "alice" in back.pinned_by
    assert yard.journal() == [RemovalState.RESTORED]
    assert yard.kinds() == ["trashed", "restored"]


def test_nothing_is_left_but_the_empty_trash(yard):
    checkpoint, _ = yard.make()
    yard.restore(yard.remove(checkpoint))
    assert sorted(tree(yard.root, ours=True)) == [".ckptwatch", ".ckptwatch/trash", "a", "a/0100.pt"]


def test_a_checkpoint_can_be_removed_again_after_it_came_back(yard):
    checkpoint, data = yard.make()
    yard.restore(yard.remove(checkpoint))
    removal = yard.remove(checkpoint)
    assert removal.trash.read_bytes() == data


def test_restore_makes_its_directory_again(yard):
    checkpoint, data = yard.make("a/deep/0100.pt")
    removal = yard.remove(checkpoint)
    shutil.rmtree(yard.root / "a")
    yard.restore(removal)
    assert checkpoint.path.read_bytes() == data


def test_restore_never_overwrites(yard):
    checkpoint, data = yard.make()
    removal = yard.remove(checkpoint)
    checkpoint.path.write_bytes(b"new")
    with pytest.raises(RemovalRefused, match="a file of that name exists"):
        yard.restore(removal)
    assert checkpoint.path.read_bytes() == b"new" and removal.trash.read_bytes() == data
    checkpoint.path.unlink()
    checkpoint.path.symlink_to("nowhere")
    with pytest.raises(RemovalRefused, match="a file of that name exists"):
        yard.restore(removal)
    checkpoint.path.unlink()
    yard.restore(removal)
    assert checkpoint.path.read_bytes() == data


def test_restore_never_overwrites_even_what_appears_at_the_last_moment(yard):
    checkpoint, data = yard.make()
    removal = yard.remove(checkpoint)

    def meddle(step):
        if step == "restoring":
            checkpoint.path.write_bytes(b"new")

    with pytest.raises(RemovalRefused, match=r"still in the trash|File exists"):
        Pruner(yard.db, yard.root, at_step=meddle).restore(removal, run="a", by="x", now=1.0)
    assert checkpoint.path.read_bytes() == b"new" and removal.trash.read_bytes() == data
    assert yard.journal() == [RemovalState.TRASHED]


def test_an_entry_missing_from_the_trash_is_said_so(yard):
    checkpoint, _ = yard.make()
    removal = yard.remove(checkpoint)
    removal.trash.unlink()
    with pytest.raises(RemovalRefused, match="is missing"):
        yard.restore(removal)


def test_what_is_not_in_the_trash_is_not_restored(yard):
    checkpoint, _ = yard.make()
    removal = yard.remove(checkpoint)
    yard.restore(removal)
    with pytest.raises(RemovalRefused, match="not in the trash"):
        yard.restore(evolve(removal, state=RemovalState.RESTORED))


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["rename", "in place", "touch"])
def test_a_rewritten_checkpoint_is_not_the_one_that_was_judged(yard, how):
    checkpoint, data = yard.make()
    if how == "rename":
        save(checkpoint.path)
    elif how == "in place":
        checkpoint.path.write_bytes(data + b"x")
    else:
        os.utime(checkpoint.path, ns=(0, checkpoint.identity.mtime_ns + 1))
    refused(yard, checkpoint, "rewritten since it was judged")


def test_a_hard_linked_checkpoint_frees_nothing_and_stays(yard):
    checkpoint, _ = yard.make()
    os.link(checkpoint.path, yard.root / "a/kept.bin")
    refused(yard, checkpoint, "2 hard links")


def test_a_link_in_place_of_the_file_is_not_followed(yard, tmp_path):
    checkpoint, data = yard.make()
    (tmp_path / "precious.pt").write_bytes(data)
    checkpoint.path.unlink()
    checkpoint.path.symlink_to(tmp_path / "precious.pt")
    refused(yard, checkpoint, "symbolic link")
    assert (tmp_path / "precious.pt").exists()


def test_a_link_in_place_of_a_directory_is_not_followed(yard, tmp_path):
    checkpoint, _ = yard.make("a/checkpoints/0100.pt")
    (yard.root / "a/checkpoints").rename(tmp_path / "elsewhere")
    (yard.root / "a/checkpoints").symlink_to(tmp_path / "elsewhere")
    refused(yard, checkpoint, r"Not a directory|symbolic links")
    assert (tmp_path / "elsewhere/0100.pt").exists()


@pytest.mark.parametrize("place", [".ckptwatch", ".ckptwatch/trash"])
def test_a_link_in_place_of_our_own_directories_is_not_followed(yard, tmp_path, place):
    checkpoint, _ = yard.make()
    (tmp_path / "elsewhere").mkdir()
    (yard.root / place).parent.mkdir(exist_ok=True)
    (yard.root / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RemovalRefused):
        yard.remove(checkpoint)
    assert checkpoint.path.exists() and not list((tmp_path / "elsewhere").rglob("*.pt"))


@pytest.mark.parametrize("mode", ["rb", "r+b"])
def test_a_checkpoint_open_in_a_process_stays(yard, mode):
    checkpoint, _ = yard.make()
    code = "import sys\nf = open(sys.argv[1], sys.argv[2])\nprint('ready', flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", code, str(checkpoint.path), mode], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    refused(yard, checkpoint, "a process has it open")
    child.communicate(b"\n")
    yard.remove(checkpoint)
    assert not checkpoint.path.exists()


def test_an_incomplete_checkpoint_is_never_removed(yard):
    save(yard.root / "a/0100.pt")
    whole = yard.record("a/0100.pt")
    with yard.db.write() as conn:
        conn.exec_driver_sql("UPDATE checkpoints SET state = 'incomplete'")
    with pytest.raises(RemovalRefused, match="incomplete"):
        yard.remove(whole)
    assert whole.path.exists() and yard.journal() == []


def test_a_missing_checkpoint_is_refused(yard):
    checkpoint, _ = yard.make()
    checkpoint.path.unlink()
    refused(yard, checkpoint, "No such file")


def test_nothing_outside_the_root_is_ever_touched(yard, tmp_path):
    data = save(tmp_path / "outside/0100.pt")
    save(yard.root / "a/0100.pt")
    checkpoint = yard.record("a/0100.pt")
    for path in (tmp_path / "outside/0100.pt", yard.root / "../outside/0100.pt", yard.root / "a/../../outside/0100.pt"):
        stray = evolve(checkpoint, path=path, identity=sight_path(tmp_path / "outside/0100.pt").identity)
        with pytest.raises(RemovalRefused):
            yard.remove(stray)
    assert (tmp_path / "outside/0100.pt").read_bytes() == data


def test_tests_cannot_aim_a_deleter_outside_their_directory(yard):
    with pytest.raises(AssertionError, match="outside"):
        Pruner(yard.db, Path("/work"))


# ---- changed in the middle of it ------------------------------------------------------------------------------------


def meddling(yard, step, action):
    def at(name):
        if name == step:
            action()
    return Pruner(yard.db, yard.root, at_step=at)


@pytest.mark.parametrize("step", ["intended", "renamed"])
def test_a_file_rewritten_while_it_is_moved_is_put_back(yard, step):
    checkpoint, _ = yard.make()
    place = checkpoint.path

    def rewrite():
        target = place if step == "intended" else next((yard.root / ".ckptwatch/trash").glob("*/0100.pt"))
        target.write_bytes(b"new content")

    with pytest.raises(RemovalRefused, match="rewritten"):
        meddling(yard, step, rewrite).remove(checkpoint, run="a", reason="r", grace=1.0, now=1.0)
    assert place.read_bytes() == b"new content"
    assert yard.journal() == [RemovalState.ABANDONED] and yard.state(checkpoint) is CheckpointState.COMPLETE


def test_a_file_opened_while_it_is_moved_is_put_back(yard):
    checkpoint, data = yard.make()
    opened = []
    with pytest.raises(RemovalRefused, match="opened it meanwhile"):
        meddling(yard, "intended", lambda: opened.append(checkpoint.path.open("r+b"))).remove(
            checkpoint, run="a", reason="r", grace=1.0, now=1.0)
    opened[0].close()
    assert checkpoint.path.read_bytes() == data


def test_a_directory_swapped_for_a_link_while_we_move_harms_nothing(yard, tmp_path):
    checkpoint, data = yard.make("a/c/0100.pt")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/0100.pt").write_bytes(b"precious")

    def swap():
        (yard.root / "a/c").rename(yard.root / "a/moved")
        (yard.root / "a/c").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(RemovalRefused):
        meddling(yard, "intended", swap).remove(checkpoint, run="a", reason="r", grace=1.0, now=1.0)
    assert (tmp_path / "elsewhere/0100.pt").read_bytes() == b"precious"
    assert (yard.root / "a/moved/0100.pt").read_bytes() == data


def test_a_name_taken_again_after_a_clean_move_keeps_both(yard):
    checkpoint, data = yard.make()
    removal = meddling(yard, "renamed", lambda: checkpoint.path.write_bytes(b"next")).remove(
        checkpoint, run="a", reason="r", grace=1.0, now=1.0)
    assert checkpoint.path.read_bytes() == b"next" and removal.trash.read_bytes() == data


# ---- purge ----------------------------------------------------------------------------------------------------------


def test_purge_removes_for_good_and_says_so(yard):
    checkpoint, _ = yard.make()
    removal = yard.remove(checkpoint)
    yard.purge(removal)
    assert not removal.trash.exists() and not removal.trash.parent.exists()
    assert yard.state(checkpoint) is CheckpointState.PURGED and yard.kinds()[-1] == "purged"


@pytest.mark.parametrize("where", ["a/0100.pt", "../outside.pt", ".ckptwatch/trash/0100.pt", ".ckptwatch/trash/1/2/0100.pt"])
def test_purge_touches_nothing_but_entries_of_the_trash(yard, where):
    checkpoint, _ = yard.make()
    removal = yard.remove(checkpoint)
    victim = yard.root / where
    victim.parent.mkdir(parents=True, exist_ok=True)
    victim.write_bytes(b"precious")
    with pytest.raises(RemovalRefused, match="not an entry"):
        yard.purge(evolve(removal, trash=victim))
    assert victim.read_bytes() == b"precious"


def test_purge_follows_no_link(yard, tmp_path):
    checkpoint, _ = yard.make()
    removal = yard.remove(checkpoint)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/0100.pt").write_bytes(b"precious")
    removal.trash.unlink()
    removal.trash.parent.rmdir()
    removal.trash.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RemovalRefused):
        yard.purge(removal)
    assert (tmp_path / "elsewhere/0100.pt").read_bytes() == b"precious"


def test_a_purge_that_fails_can_be_tried_again_and_restored(yard, monkeypatch):
    checkpoint, data = yard.make()
    removal = yard.remove(checkpoint)

    def unlink(*args, **more):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", unlink)
        with pytest.raises(RemovalRefused, match="Read-only"):
            yard.purge(removal)
    assert yard.journal() == [RemovalState.TRASHED]
    yard.restore(removal)
    assert checkpoint.path.read_bytes() == data


def test_purging_what_somebody_else_removed_is_done(yard):
    checkpoint, _ = yard.make()
    removal = yard.remove(checkpoint)
    shutil.rmtree(removal.trash.parent)
    with pytest.raises(RemovalRefused):
        yard.restore(removal)
    yard.purge(removal)
    assert yard.state(checkpoint) is CheckpointState.PURGED


# ---- the rename itself ----------------------------------------------------------------------------------------------


def test_rename_noreplace_never_replaces(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    fd = os.open(tmp_path, os.O_DIRECTORY)
    try:
        with pytest.raises(FileExistsError):
            rename_noreplace("a", "b", source_dir=fd, target_dir=fd)
        assert (tmp_path / "b").read_text() == "b"
        rename_noreplace("a", "c", source_dir=fd, target_dir=fd)
        with pytest.raises(FileNotFoundError):
            rename_noreplace("a", "d", source_dir=fd, target_dir=fd)
    finally:
        os.close(fd)
    assert (tmp_path / "c").read_text() == "a"


def test_where_the_flag_is_missing_a_taken_name_is_still_refused(tmp_path, monkeypatch):
    import ctypes
    import errno

    from ckptwatch.apply import renaming

    class Old:
        @staticmethod
        def renameat2(*args):
            ctypes.set_errno(errno.EINVAL)
            return -1

    monkeypatch.setattr(renaming, "_libc", Old)
    test_rename_noreplace_never_replaces(tmp_path)


def test_a_directory_is_reached_without_following_links(tmp_path):
    (tmp_path / "root/a/b").mkdir(parents=True)
    (tmp_path / "root/link").symlink_to(tmp_path / "root/a")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with directory_below(tmp_path / "root", tmp_path / "root/a/b") as fd:
        assert os.path.samestat(os.fstat(fd), (tmp_path / "root/a/b").stat())
    for bad in ("root/link/b", "root/missing", "other", "root/../root/a"):
        with pytest.raises((OSError, ValueError)), directory_below(tmp_path / "root", tmp_path / bad):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
