"""A checkpoint of several files is removed and brought back as one: never half of it, never a file that is new."""

import os
import random
import shutil
import subprocess
import sys

import pytest

from ckptwatch.apply.pruner import Pruner
from ckptwatch.errors import RemovalRefused
from ckptwatch.model import CheckpointState, RemovalState
from ckptwatch.store import checkpoints, removals
from tests.faults.test_crashes_of_the_deleter import latest, recovered, remove
from tests.support import tree
from tests.yard import Yard

KINDS = ("set", "directory")


@pytest.fixture
def yard(tmp_path):
    made = Yard(tmp_path)
    yield made
    made.db.close()


def crash_in_a_process(base, step, number, action):
    """`action(yard)` in a child that dies the `number`-th time it comes to the step."""
    child = os.fork()
    if child == 0:
        left = [number]

        def at(name):
            left[0] -= name == step
            if left[0] == 0:
                os._exit(77)
        try:
            yard = Yard(base)
            yard.pruner = Pruner(yard.db, yard.root, at_step=at)
            action(yard)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 77, f"never came to {step}"


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_back_bit_for_bit(yard, kind):
    checkpoint, _ = yard.make_several(kind)
    before = tree(yard.root)
    removal = yard.remove(checkpoint)
    assert set(tree(yard.root)) == {"a"}, "nothing of it is left"
    assert yard.restore(removal).identity.size == checkpoint.identity.size
    assert tree(yard.root) == before and yard.journal() == [RemovalState.RESTORED]
    assert sorted(tree(yard.root / ".ckptwatch")) == ["trash"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_purge_leaves_nothing_of_it(yard, kind):
    checkpoint, _ = yard.make_several(kind)
    yard.purge(yard.remove(checkpoint))
    assert sorted(tree(yard.root, ours=True)) == [".ckptwatch", ".ckptwatch/trash", "a"]
    assert yard.state(checkpoint) is CheckpointState.PURGED


STEPS = [(kind, step, 1) for kind in KINDS for step in ("intended", "renamed", "verified", "trashed")]
STEPS += [("set", "renamed one", number) for number in (1, 2, 3)]  # only the files of a set are moved one by one


@pytest.mark.parametrize(("kind", "step", "number"), STEPS)
def test_a_crash_leaves_all_of_it_in_one_place(tmp_path, kind, step, number):
    yard = Yard(tmp_path)
    checkpoint, _ = yard.make_several(kind)
    before = tree(yard.root)
    yard.db.close()
    crash_in_a_process(tmp_path, step, number, remove)
    yard = recovered(tmp_path)
    removal = latest(yard)
    if yard.state(checkpoint) is CheckpointState.TRASHED:
        assert set(tree(yard.root)) == {"a"} and removal.state is RemovalState.TRASHED
        yard.restore(removal)
    else:
        assert yard.state(checkpoint) is CheckpointState.COMPLETE and removal.state is RemovalState.ABANDONED
    assert tree(yard.root) == before
    yard.db.close()


@pytest.mark.parametrize("step", ["restoring", "renamed one", "moved back", "restored"])
def test_a_restore_that_crashed_is_finished(tmp_path, step):
    yard = Yard(tmp_path)
    checkpoint, _ = yard.make_several("set")
    before = tree(yard.root)
    yard.remove(checkpoint)
    yard.db.close()
    crash_in_a_process(tmp_path, step, 1, lambda yard: yard.restore(latest(yard)))
    yard = recovered(tmp_path)
    assert tree(yard.root) == before and yard.state(checkpoint) is CheckpointState.COMPLETE
    yard.db.close()


@pytest.mark.parametrize("step", ["purging", "unlinked", "purged"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_purge_that_crashed_is_finished(tmp_path, kind, step):
    yard = Yard(tmp_path)
    checkpoint, _ = yard.make_several(kind)
    yard.remove(checkpoint)
    yard.db.close()
    crash_in_a_process(tmp_path, step, 1, lambda yard: yard.purge(latest(yard)))
    yard = recovered(tmp_path)
    assert yard.state(checkpoint) is CheckpointState.PURGED
    assert not [name for name, content in tree(yard.root, ours=True).items() if content is not None], "no file is left"
    yard.db.close()


def rewritten(base):
    (base / "meta.json").write_bytes(b"[]")  # of the same size


def grown(base):
    (base / "deep/er/part").write_bytes(b"p" * 2001)


def replaced(base):
    (base / "new").write_bytes(b"p" * 2000)
    os.utime(base / "new", (1, 1))  # older than what it replaces
    (base / "new").rename(base / "deep/er/part")


def joined(base):
    (base / "deep/er/more").write_bytes(b"")


def left(base):
    (base / "deep/er/part").unlink()


@pytest.mark.parametrize("change", [rewritten, grown, replaced, joined, left])
@pytest.mark.parametrize("kind", KINDS)
def test_what_changed_since_it_was_judged_stays(yard, kind, change):
    checkpoint, _ = yard.make_several(kind)
    change(checkpoint.path if kind == "directory" else checkpoint.path.parent)
    before = tree(yard.root)
    with pytest.raises(RemovalRefused, match=r"rewritten|No such file"):
        yard.remove(checkpoint)
    assert tree(yard.root) == before and yard.state(checkpoint) is CheckpointState.COMPLETE


@pytest.mark.parametrize("change", [rewritten, grown, replaced, joined, left])
@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_while_it_is_moved_goes_back(yard, kind, change):
    """After the rename the trainer still has the directory by an open descriptor, or a path it works on."""
    checkpoint, _ = yard.make_several(kind)

    def at(step):
        if step == "renamed":
            place = latest(yard).trash
            change(place if kind == "directory" else place.parent)

    pruner = Pruner(yard.db, yard.root, at_step=at)
    with pytest.raises(RemovalRefused, match=r"rewritten|No such file"):
        pruner.remove(checkpoint, run="a", reason="rank 9", grace=60.0, now=100.0)
    assert checkpoint.path.exists() and yard.journal() == [RemovalState.ABANDONED]
    base = checkpoint.path if kind == "directory" else checkpoint.path.parent
    assert (base / "deep/er/more").exists() == (change is joined), "what the trainer wrote came back with it"


@pytest.mark.parametrize("kind", KINDS)
def test_an_open_file_deep_inside_keeps_it(yard, kind):
    checkpoint, _ = yard.make_several(kind)
    base = checkpoint.path if kind == "directory" else checkpoint.path.parent
    with (base / "deep/er/part").open("rb"), pytest.raises(RemovalRefused, match="has it open"):
        yard.remove(checkpoint)
    assert yard.remove(checkpoint).state is RemovalState.TRASHED


@pytest.mark.parametrize("kind", KINDS)
def test_a_hard_link_inside_keeps_it(yard, kind):
    checkpoint, _ = yard.make_several(kind)
    base = checkpoint.path if kind == "directory" else checkpoint.path.parent
    os.link(base / "deep/er/part", yard.base / "backup")
    with pytest.raises(RemovalRefused, match="part has 2 hard links"):
        yard.remove(checkpoint)


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_swapped_in_for_a_part_is_not_followed(yard, kind, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").write_bytes(b"p" * 2000)
    checkpoint, _ = yard.make_several(kind)
    base = checkpoint.path if kind == "directory" else checkpoint.path.parent
    shutil.rmtree(base / "deep")
    (base / "deep").symlink_to(elsewhere)
    with pytest.raises(RemovalRefused):
        yard.remove(checkpoint)
    assert (elsewhere / "precious").exists()


def test_a_purge_removes_links_inside_not_what_they_point_to(yard, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").write_bytes(b"p")
    (yard.root / "a/0100").mkdir(parents=True)
    (yard.root / "a/0100/linked").symlink_to(elsewhere)
    checkpoint, _ = yard.make_several("directory")
    yard.purge(yard.remove(checkpoint))
    assert (elsewhere / "precious").exists() and set(tree(yard.root)) == {"a"}


@pytest.mark.parametrize("taken", ["model.bin", "meta.json", "deep"])
def test_a_set_is_not_restored_over_anything(yard, taken):
    checkpoint, _ = yard.make_several("set")
    removal = yard.remove(checkpoint)
    (yard.root / "a" / taken).write_bytes(b"newer")
    before = tree(yard.root, ours=True)
    with pytest.raises(RemovalRefused, match="exists"):
        yard.restore(removal)
    assert tree(yard.root, ours=True) == before


def test_a_rename_that_fails_in_the_middle_is_undone(yard, monkeypatch):
    checkpoint, _ = yard.make_several("set")
    before = tree(yard.root)
    real = Pruner._move

    def move(self, source, target, *, create=False):
        if source.name == "meta.json" and create is False:
            raise OSError(5, "Input/output error")
        real(self, source, target, create=create)

    monkeypatch.setattr(Pruner, "_move", move)
    with pytest.raises(RemovalRefused, match="Input/output error"):
        yard.remove(checkpoint)
    assert tree(yard.root) == before and yard.journal() == [RemovalState.ABANDONED]


REWRITER = """
import os, random, sys
r, root = random.Random(int(sys.argv[2])), sys.argv[1]
print('ready', flush=True)
n = 0
while True:
    name = r.choice(('model.bin', 'meta.json', 'deep/er/part'))
    n += 1
    try:
        os.makedirs(os.path.dirname(f'{root}/{name}'), exist_ok=True)
        with open(f'{root}/{name}.tmp', 'w') as f:
            f.write(f'new {n}')
        os.replace(f'{root}/{name}.tmp', f'{root}/{name}')
        print(name, n, flush=True)
    except OSError:
        pass
"""


@pytest.mark.parametrize("kind", KINDS)
def test_no_new_file_is_lost_to_a_removal(tmp_path, kind):
    """Another process rewrites parts of the checkpoint all the time. What it wrote last is where it put it, or in the
    trash, from where it can be had."""
    chance = random.Random(0)
    for number in range(12):
        (tmp_path / str(number)).mkdir()
        yard = Yard(tmp_path / str(number))
        checkpoint, _ = yard.make_several(kind)
        base = checkpoint.path if kind == "directory" else checkpoint.path.parent
        child = subprocess.Popen([sys.executable, "-c", REWRITER, str(base), str(number)], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "ready\n"
        for _ in range(chance.randrange(1, 20)):
            child.stdout.readline()
        for _ in range(30):
            try:
                yard.remove(checkpoint)
            except RemovalRefused:
                with yard.db.read() as conn:
                    assert checkpoints.checkpoint(conn, checkpoint.id).state is CheckpointState.COMPLETE
        child.kill()
        written = dict(line.split() for line in child.stdout.read().splitlines() if len(line.split()) == 2)
        child.wait()
        with yard.db.read() as conn:
            places = [base, *(r.trash if kind == "directory" else r.trash.parent for r in removals.in_state(
                conn, RemovalState.TRASHED))]
        for name, last in written.items():
            texts = [(place / name).read_text() for place in places if (place / name).exists()]
            assert any(int(t.split()[1]) >= int(last) for t in texts if t.startswith("new ")), (name, last, texts)
        yard.db.close()
