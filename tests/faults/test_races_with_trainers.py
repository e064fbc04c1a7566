"""A trainer rewrites the very name that is being removed, in every way trainers do; its new content is never lost."""

import random
import subprocess
import sys
import time

from ckptwatch.errors import RemovalRefused
from ckptwatch.model import CheckpointEvent
from ckptwatch.store import checkpoints
from tests.support import zip_bytes
from tests.yard import Yard

ROUNDS = 300
WRITER = """
import os, sys
path = sys.argv[1]
for line in sys.stdin:
    how, count = line.split()
    data = (b"%08d" % int(count)) * 4096
    if how == "rename":
        with open(path + ".tmp", "wb") as f: f.write(data)
        os.replace(path + ".tmp", path)
    elif how == "unlink":
        try: os.unlink(path)
        except FileNotFoundError: pass
        with open(path, "wb") as f: f.write(data)
    else:
        with open(path, "wb") as f:
            for i in range(0, len(data), 4096):
                f.write(data[i:i + 4096]); f.flush()
    print("done", flush=True)
"""


def whole(data, count):
    return data == (b"%08d" % count) * 4096


def test_new_content_survives_every_way_of_rewriting_the_name(tmp_path):
    yard = Yard(tmp_path)
    path = yard.root / "a/last.pt"
    path.parent.mkdir()
    path.write_bytes((b"%08d" % 0) * 4096)
    argv = [sys.executable, "-c", WRITER, str(path)]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    chance = random.Random(7)
    removed = refused = 0
    for count in range(1, ROUNDS + 1):
        judged = yard.record("a/last.pt")
        command = f"{chance.choice(['rename', 'in-place', 'unlink'])} {count}\n"
        # Which of the two is faster depends on the machine; so some rounds settle it, and the others race.
        order = chance.choice(["remove first", "write first", *["race"] * 8])
        if order != "remove first":
            child.stdin.write(command)
            child.stdin.flush()
        if order == "write first":
            assert child.stdout.readline() == "done\n"
        spin = time.perf_counter() + chance.random() * 0.0006  # another phase of the writing each round
        while time.perf_counter() < spin:
            pass
        try:
            removal = yard.remove(judged)
            removed += 1
        except RemovalRefused:
            removal, refused = None, refused + 1
        assert order == "race" or (removal is not None) == (order == "remove first")
        if order == "remove first":
            child.stdin.write(command)
            child.stdin.flush()
        if order != "write first":
            assert child.stdout.readline() == "done\n"
        assert whole(path.read_bytes(), count), f"round {count}: the new content is not under its name"
        if removal is not None:
            kept = removal.trash.read_bytes()
            assert whole(kept, count - 1) or kept != path.read_bytes(), f"round {count}: the trash holds the new content"
        else:
            with yard.db.write() as conn:
                checkpoints.move(conn, judged.id, CheckpointEvent.REWRITTEN)
    child.communicate()
    yard.db.close()
    assert removed and refused, (removed, refused)


def test_names_that_come_and_go_are_never_mixed_up(tmp_path, caplog):
    """Another process rotates many names. Each removal takes what was judged; or nothing; or, told in the log, what had
    already been replaced by something newer under the same name before it could be put back."""
    yard = Yard(tmp_path)
    code = ("import os, sys, random\nr = random.Random(1)\nroot, data = sys.argv[1], sys.stdin.buffer.read()\n"
            "print('ready', flush=True)\n"
            "while True:\n  n = f'{root}/{r.randrange(8)}.pt'\n"
            "  open(n + '.tmp', 'wb').write(data + b'%d' % r.randrange(10**9))\n"
            "  os.replace(n + '.tmp', n)\n  m = f'{root}/{r.randrange(8)}.pt'\n  os.path.exists(m) and os.unlink(m)")
    (yard.root / "a").mkdir()
    argv = [sys.executable, "-c", code, str(yard.root / "a")]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdin.write(zip_bytes({}))
    child.stdin.close()
    assert child.stdout.readline() == b"ready\n"
    taken = others = 0
    try:
        for i in range(ROUNDS):
            path = yard.root / f"a/{i % 8}.pt"
            try:
                judged = yard.record(f"a/{i % 8}.pt", step=i)
                removal = yard.remove(judged)
            except (OSError, RemovalRefused):
                with yard.db.write() as conn:
                    if living := checkpoints.living(conn, path):
                        checkpoints.move(conn, living.id, CheckpointEvent.VANISHED)
                continue
            info = removal.trash.lstat()
            identity = judged.identity
            taken += 1
            others += (info.st_ino, info.st_size, info.st_mtime_ns) != (identity.inode, identity.size, identity.mtime_ns)
    finally:
        child.kill()
        child.wait()
        yard.db.close()
    assert taken > others == caplog.text.count("its name is taken: kept in trash")
