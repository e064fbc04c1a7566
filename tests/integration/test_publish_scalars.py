"""Scalars read back with TensorBoard's own reader."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ckptwatch.publish.scalars import Point, Scalars


def point(step, value, tag="Evaluation/FID", wall_time=100.0):
    return Point(tag=tag, step=step, value=value, wall_time=wall_time)


def read(directory):
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def files(directory):
    return sorted(directory.glob("events.*"))


@pytest.fixture
def scalars(tmp_path):
    made = []

    def make(directory=tmp_path / "tb"):
        made.append(Scalars(directory))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_tensorboard_reads_what_was_written(scalars, tmp_path):
    written = scalars().reconcile([point(1000, 7.5), point(2000, 6.25), point(1000, 1.0, "Evaluation/IsBest/ema")])
    assert written == 3
    assert read(tmp_path / "tb") == {
        "Evaluation/FID": [(1000, 7.5), (2000, 6.25)], "Evaluation/IsBest/ema": [(1000, 1.0)],
    }


def test_a_restarted_daemon_writes_no_point_twice(scalars, tmp_path):
    points = [point(s, s / 3) for s in range(0, 5000, 1000)]  # a third is no 32-bit float
    first = scalars()
    assert first.reconcile(points[:3]) == 3
    assert first.reconcile(points[:3]) == 0
    first.close()
    again = scalars()
    assert again.reconcile(points[:3]) == 0
    assert len(files(tmp_path / "tb")) == 1  # nothing to write, no new file
    assert again.reconcile(points) == 2
    assert [step for step, _ in read(tmp_path / "tb")["Evaluation/FID"]] == [0, 1000, 2000, 3000, 4000]


def test_a_point_that_changed_is_written_once_more_and_the_last_counts(scalars, tmp_path):
    one = scalars()
    for best in (1.0, 0.0, 0.0, 1.0):
        one.reconcile([point(1000, best, "Evaluation/IsBest")])
    assert read(tmp_path / "tb")["Evaluation/IsBest"] == [(1000, 1.0), (1000, 0.0), (1000, 1.0)]
    assert scalars().reconcile([point(1000, 1.0, "Evaluation/IsBest")]) == 0


def test_two_values_at_one_step_do_not_flip_for_ever(scalars, tmp_path):
    one = scalars()
    for _ in range(3):
        one.reconcile([point(1000, 1.0), point(1000, 2.0)])
    assert read(tmp_path / "tb")["Evaluation/FID"] == [(1000, 2.0)]


@pytest.mark.parametrize("cut", [1, 4, 13, 30])
def test_a_record_cut_off_by_a_crash_is_written_again_and_only_that(scalars, tmp_path, cut):
    first = scalars()
    first.reconcile([point(s, float(s)) for s in (1, 2, 3)])
    first.close()
    path = files(tmp_path / "tb")[0]
    os.truncate(path, path.stat().st_size - cut)
    again = scalars()
    assert again.reconcile([point(s, float(s)) for s in (1, 2, 3, 4)]) == 2
    again.close()
    assert read(tmp_path / "tb")["Evaluation/FID"] == [(s, float(s)) for s in (1, 2, 3, 4)]


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, b"\xff" * 5000, b"text\n"])
def test_a_damaged_file_does_not_hide_the_others(scalars, tmp_path, damage):
    first = scalars()
    first.reconcile([point(1, 1.0)])
    first.close()
    (tmp_path / "tb" / "events.out.tfevents.0000000001.damaged").write_bytes(damage)
    assert scalars().reconcile([point(1, 1.0), point(2, 2.0)]) == 1


@pytest.mark.parametrize("restarted", [False, True])
def test_what_somebody_removed_is_written_anew(scalars, tmp_path, restarted):
    one = scalars()
    one.reconcile([point(1, 1.0)])
    if restarted:
        one = scalars()
        assert one.reconcile([point(1, 1.0)]) == 0
    shutil.rmtree(tmp_path / "tb")
    assert one.reconcile([point(1, 1.0), point(2, 2.0)]) == 2
    assert read(tmp_path / "tb")["Evaluation/FID"] == [(1, 1.0), (2, 2.0)]


def test_on_a_full_disk_it_raises_and_later_catches_up(tmp_path):
    code = textwrap.dedent(f"""
        import resource, signal
        from pathlib import Path
        from ckptwatch.publish.scalars import Point, Scalars
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        scalars = Scalars(Path({str(tmp_path / "tb")!r}))
        points = [Point(tag="Evaluation/FID", step=s, value=float(s), wall_time=1.0) for s in range(100)]
        scalars.reconcile(points[:2])
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))  # as ENOSPC: a write ends half-way
        for _ in range(2):
            try:
                scalars.reconcile(points)
            except OSError:
                continue
            raise SystemExit("no error")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        scalars.reconcile(points)
        scalars.close()
    """)
    subprocess.run([sys.executable, "-c", code], check=True)
    assert read(tmp_path / "tb")["Evaluation/FID"] == [(s, float(s)) for s in range(100)]


def test_files_are_read_in_the_order_written_however_fast_they_follow(scalars, tmp_path):
    for n in range(12):
        one = scalars()
        one.reconcile([point(1, float(n))])
        one.close()
    assert read(tmp_path / "tb")["Evaluation/FID"] == [(1, float(n)) for n in range(12)]
    assert scalars().reconcile([point(1, 11.0)]) == 0


def test_values_beyond_32_bits_do_not_raise(scalars):
    one = scalars()
    assert one.reconcile([point(1, 1e300)]) == 1
    assert one.reconcile([point(1, 1e300)]) == 0


def test_killed_at_any_instant_no_point_is_lost_or_drawn_twice(tmp_path):
    directory = tmp_path / "tb"
    code = textwrap.dedent(f"""
        from pathlib import Path
        from ckptwatch.publish.scalars import Point, Scalars
        scalars = Scalars(Path({str(directory)!r}))
        print("ready", flush=True)
        for last in range(1, 400):
            scalars.reconcile(
                [Point(tag="Evaluation/FID", step=s, value=s / 7, wall_time=1.0) for s in range(last)]
            )
        print("done", flush=True)
        scalars.close()
    """)
    for kill in range(4):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.4 + kill * 0.13)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    steps = [step for step, _ in read(directory)["Evaluation/FID"]]
    assert steps == list(range(399))


def test_neither_torch_nor_tensorflow_is_loaded(tmp_path):
    code = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from ckptwatch.publish import samples, scalars, summary, tracker
        assert "tensorboard" not in sys.modules  # loaded when there is something to write
        scalars.Scalars(Path({str(tmp_path)!r})).reconcile([scalars.Point(tag="a", step=1, value=1.0, wall_time=1.0)])
        assert not {{"torch", "tensorflow"}} & set(sys.modules)
    """)
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
