"""Published files on a real disk: whole or absent, and not rewritten for nothing."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ckptwatch.model import (
    Checkpoint,
    CheckpointState,
    Contender,
    Identity,
    Mode,
    Place,
    Ranking,
    Role,
    Score,
    Unranked,
)
from ckptwatch.publish.atomic import read_document, write_atomic, write_document, write_if_changed
from ckptwatch.publish.tracker import RESULTS, TRACKER, write_results, write_tracker


def checkpoint(root, id, state=CheckpointState.COMPLETE, **logged):
    return Checkpoint(
        id=id, run_id=1, path=root / "demo" / f"step_{id}.pt", format="torch-zip", state=state, evidence="", step=id,
        identity=Identity(device=1, inode=id, size=1000, mtime_ns=1), role=Role.REGULAR, generation=0, epoch=id // 10,
        metrics=logged, variants=(), found_at=0.0,
    )


def ranking(checkpoints, values, metric="fid"):
    places = []
    for i, (id, value) in enumerate(values.items(), start=1):
        c = checkpoints[id]
        scores = {
            metric: Score(metric=metric, value=value, low=value - 1, high=value + 1, n=2000),
            "clip_score": Score(metric="clip_score", value=math.nan),
        }
        who = Contender(checkpoint_id=id, path=c.path, generation=0, step=c.step, epoch=c.epoch, scores=scores, digest="d1")
        places.append(Place(rank=i, contender=who, score=scores[metric], reason=f"{metric} {value}"))
    lost = Contender(checkpoint_id=40, path=Path("/runs/demo/step_40.pt"), generation=0, step=40, epoch=4)
    return Ranking(
        metric=metric, mode=Mode.MIN, digest="d1", places=tuple(places),
        unranked=(Unranked(contender=lost, reason="evaluation failed"),),
    )


@pytest.fixture
def field(tmp_path):
    checkpoints = {id: checkpoint(tmp_path, id, loss=0.5) for id in (10, 20, 30)}
    return tmp_path / ".ckptwatch" / "demo", checkpoints, ranking(checkpoints, {20: 7.0, 30: 8.0, 10: 9.0})


def test_the_tracker_tells_what_a_script_needs(field, tmp_path):
    directory, checkpoints, order = field
    assert write_tracker(directory, run="demo", ranking=order, keep_best=2, checkpoints=checkpoints, now=0.0)
    found = json.loads((directory / TRACKER).read_text())
    entries = found.pop("best_checkpoints")
    assert found == {
        "version": 1, "run": "demo", "tracked_metric": "fid", "mode": "min", "higher_is_better": False, "save_top_k": 2,
        "recipe_digest": "d1", "updated": "1970-01-01T00:00:00+00:00",
    }
    assert [e["step"] for e in entries] == [20, 30]
    assert entries[0] == {
        "rank": 1, "step": 20, "epoch": 2, "variant": "", "path": "../../demo/step_20.pt",
        "absolute_path": str(tmp_path / "demo/step_20.pt"), "bytes": 1000, "reason": "fid 7.0",
        "metrics": {"clip_score": None, "fid": 7.0}, "logged": {"loss": 0.5},
        "scores": {
            "clip_score": {"value": None, "low": None, "high": None, "n": None},
            "fid": {"value": 7.0, "low": 6.0, "high": 8.0, "n": 2000},
        },
    }
    assert (directory / entries[0]["path"]).resolve() == (tmp_path / "demo/step_20.pt").resolve()


def test_nothing_new_is_not_written_again(field):
    directory, checkpoints, order = field
    given = {"run": "demo", "ranking": order, "keep_best": 2, "checkpoints": checkpoints}
    assert write_tracker(directory, **given, now=1.0)
    before = (directory / TRACKER).stat()
    assert not write_tracker(directory, **given, now=2.0)
    after = (directory / TRACKER).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert write_tracker(directory, **{**given, "keep_best": 3}, now=3.0)
    assert write_tracker(directory, **given, now=4.0)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_damaged_tracker_is_replaced(field, damage):
    directory, checkpoints, order = field
    directory.mkdir(parents=True)
    (directory / TRACKER).write_bytes(damage)
    assert write_tracker(directory, run="demo", ranking=order, keep_best=1, checkpoints=checkpoints, now=0.0)
    assert read_document(directory / TRACKER)["run"] == "demo"


def test_the_results_tell_how_a_run_ended(field, tmp_path):
    directory, checkpoints, order = field
    checkpoints[50] = checkpoint(tmp_path, 50, CheckpointState.TRASHED)
    given = {"run": "demo", "ranking": order, "keep_best": 1, "checkpoints": checkpoints}
    given["ended"] = "no new checkpoint for 1h"
    assert write_results(directory, **given, now=0.0)
    assert not write_results(directory, **given, now=9.0)
    found = read_document(directory / RESULTS)
    assert found["ended"] == "no new checkpoint for 1h"
    assert found["totals"] == {
        "checkpoints": 4, "by_state": {"complete": 3, "trashed": 1}, "ranked": 3, "unranked": 1, "bytes": 3000,
    }
    assert [e["step"] for e in found["best_checkpoints"]] == [20]
    assert found["unranked"][0]["reason"] == "evaluation failed"


def test_a_path_that_is_no_utf8_survives(tmp_path):
    odd = {1: checkpoint(tmp_path / os.fsdecode(b"caf\xe9"), 1)}
    assert write_tracker(tmp_path, run="a", ranking=ranking(odd, {1: 1.0}), keep_best=1, checkpoints=odd, now=0.0)
    assert not write_tracker(tmp_path, run="a", ranking=ranking(odd, {1: 1.0}), keep_best=1, checkpoints=odd, now=1.0)
    assert read_document(tmp_path / TRACKER)["best_checkpoints"][0]["absolute_path"] == str(odd[1].path)


def test_others_may_read_what_is_published(tmp_path):
    old = os.umask(0o022)
    try:
        write_atomic(tmp_path / "a.json", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


def test_nothing_is_left_behind(tmp_path):
    write_document(tmp_path / "a.json", {"a": 1})
    assert write_if_changed(tmp_path / "b", b"1")
    assert not write_if_changed(tmp_path / "b", b"1")
    assert write_if_changed(tmp_path / "b", b"2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b"]


def test_contents_are_durable_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor):
        order.append("fsync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def spy_replace(source, target):
        order.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_atomic(tmp_path / "a.json", b"x")
    assert order == ["fsync .a.json.tmp", "replace", f"fsync {tmp_path.name}"]


def test_a_temporary_name_that_is_a_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / ".a.json.tmp").symlink_to(victim)
    with pytest.raises(OSError, match=r"symbolic links|ELOOP"):
        write_atomic(tmp_path / "a.json", b"x")
    assert victim.read_bytes() == b"precious"


def test_when_the_disk_is_full_the_old_file_stays(tmp_path):
    write_atomic(tmp_path / "a.json", b"old")
    code = textwrap.dedent(f"""
        import resource, signal, sys
        from pathlib import Path
        from ckptwatch.publish.atomic import write_atomic
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as ENOSPC: the write fails half-way
        try:
            write_atomic(Path({str(tmp_path / "a.json")!r}), b"n" * 5000)
        except OSError:
            sys.exit(7)
    """)
    assert subprocess.run([sys.executable, "-c", code]).returncode == 7
    assert (tmp_path / "a.json").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_killed_writer_never_leaves_a_partial_file(tmp_path):
    """Twenty writers killed at arbitrary instants: every look at the file sees one whole document."""
    code = textwrap.dedent(f"""
        from pathlib import Path
        from ckptwatch.publish.atomic import write_document
        print("ready", flush=True)
        n = 0
        while True:
            n += 1
            write_document(Path({str(tmp_path / "a.json")!r}), {{"n": n, "same": [n] * 20_000}})
    """)
    seen = 0
    for kill in range(20):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.02 + kill * 0.007)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if (tmp_path / "a.json").exists():
            found = json.loads((tmp_path / "a.json").read_text())
            assert set(found["same"]) == {found["n"]}
            assert len(found["same"]) == 20_000
            seen += 1
    assert seen > 5
    assert write_document(tmp_path / "a.json", {"n": 0})  # what the killed ones left is in nobody's way
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
