"""Following a file: every record once, whatever happens to the file."""

import builtins
import json
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptwatch.logs import follower as module
from ckptwatch.logs.base import Fed
from ckptwatch.logs.follower import Follower, Place
from ckptwatch.logs.json_lines import JsonLines
from ckptwatch.logs.lines import LONGEST
from ckptwatch.model import Logged


def line(step, **more):
    return json.dumps({"step": step, "loss": step / 10, **more}) + "\n"


def lines(*steps):
    return "".join(line(step) for step in steps)


class Log:
    """A log that is written, and what a follower has read of it."""

    def __init__(self, path, dialect=None):
        self.path = path
        self.dialect = dialect or JsonLines()
        self.follower = Follower(path, self.dialect, Logged())
        self.time = 1_000_000_000_000_000_000

    def append(self, text):
        with self.path.open("ab") as file:
            file.write(text if isinstance(text, bytes) else text.encode())
        self.touch()

    def touch(self):
        """Each change has a time of its own, however quick the test is."""
        self.time += 1_000_000_000
        os.utime(self.path, ns=(self.time, self.time))

    def poll(self, **options):
        return self.follower.poll(**options)

    def steps(self, **options):
        return [row.step for row in self.poll(**options).rows]

    def reopened(self):
        """As after a restart of the daemon: all it knows has been through JSON."""
        place = Place.from_plain(json.loads(json.dumps(self.follower.place.to_plain())))
        self.follower = Follower(self.path, self.dialect, Logged(), place)
        return self


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "train.jsonl")


# ---- growing --------------------------------------------------------------------------------------------------------


def test_each_record_is_told_once(log):
    log.append(lines(1, 2))
    assert log.steps() == [1, 2]
    assert log.steps() == []
    log.append(lines(3))
    assert log.steps() == [3]


def test_half_a_record_waits_for_the_rest_wherever_it_is_cut(tmp_path):
    text = lines(1, 2, 3).replace("loss", "lößß")
    data = text.encode()
    for cut in range(len(data) + 1):
        log = Log(tmp_path / f"{cut}.jsonl")
        log.append(data[:cut])
        first = log.poll()
        log.append(data[cut:])
        second = log.poll()
        assert [r.step for r in (*first.rows, *second.rows)] == [1, 2, 3]
        assert first.bad == second.bad == 0 and not second.restarted


@given(st.lists(st.integers(1, 80), max_size=30), st.integers(1, 64), st.randoms(use_true_random=False))
def test_however_it_is_written_and_read_the_rows_are_the_same(tmp_path_factory, pieces, limit, chance: random.Random):
    log = Log(tmp_path_factory.mktemp("log") / "a.jsonl")
    data, told = lines(*range(20)).encode(), []
    cuts = [*pieces, len(data)]
    for size in cuts:
        log.append(data[:size])
        data = data[size:]
        while True:
            polled = log.poll(limit=limit)
            told += [row.step for row in polled.rows]
            assert polled.bad == 0 and not polled.restarted
            if chance.random() < 0.3:
                log.reopened()
            if not polled.more:
                break
    while (polled := log.poll(limit=limit)).rows or polled.more:
        told += [row.step for row in polled.rows]
    assert told == list(range(20))


def test_no_more_than_the_limit_is_read_at_once(log):
    log.append(lines(*range(100)))
    polled = log.poll(limit=200)
    assert 0 < len(polled.rows) < 15 and polled.more
    told = [row.step for row in polled.rows]
    while polled.more:
        polled = log.poll(limit=200)
        told += [row.step for row in polled.rows]
    assert told == list(range(100))


def test_a_record_larger_than_the_limit_is_read(log):
    log.append(line(1, text="x" * 5000) + line(2))
    assert log.steps(limit=100) + log.steps(limit=100) == [1, 2]


def test_a_file_that_has_not_changed_is_not_opened(log, monkeypatch):
    log.append(lines(1) + '{"step": 2')
    log.poll()
    opened = []
    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda path, *a, **k: opened.append(path) or real(path, *a, **k))
    assert log.steps() == [] and opened == []
    assert log.reopened().steps() == [] and len(opened) == 1  # half a record may have become whole meanwhile
    assert log.steps() == [] and len(opened) == 1
    log.append("}\n")
    log.poll()
    assert len(opened) > 1


def test_a_last_line_without_its_end_is_taken_when_nobody_writes_on(log):
    log.append(lines(1) + lines(2).rstrip("\n"))
    assert log.steps() == [1]
    assert log.steps(final=True) == [2]
    assert log.steps(final=True) == []
    log.append("\n" + lines(3))  # somebody did
    assert log.steps() == [3]


@pytest.mark.parametrize("rest", ['{"step": 2, "loss"', '{"step": 2, "loss": 0.', "\0\0\0", "garbage", ""])
def test_half_a_line_stays_half_even_then(log, rest):
    log.append(lines(1) + rest)
    polled = log.poll(final=True)
    assert [row.step for row in polled.rows] == [1] and polled.bad == 0
    log.append("\n")
    assert log.steps(final=True) == []


def test_a_line_that_is_finished_after_all_is_whole(log):
    log.append(lines(1) + '{"step": 2, "loss"')
    assert log.steps(final=True) == [1]
    log.append(": 0.5}\n")
    assert log.steps(final=True) == [2]


# ---- other files under the same name --------------------------------------------------------------------------------


def test_a_log_rotated_by_renaming_goes_on_in_the_new_file(log):
    log.append(lines(1, 2))
    log.poll()
    log.path.rename(log.path.with_suffix(".jsonl.1"))
    assert log.poll() == module.Polled()
    log.append(lines(3))
    polled = log.poll()
    assert polled.restarted and [row.step for row in polled.rows] == [3]


def test_the_renamed_file_is_known_under_its_new_name(log):
    log.append(lines(1, 2))
    log.poll()
    log.append(lines(3))
    other = log.path.rename(log.path.with_suffix(".jsonl.1"))
    polled = Follower(other, log.dialect, Logged(), log.follower.place).poll()
    assert [row.step for row in polled.rows] == [3] and not polled.restarted


def test_a_log_truncated_in_place_is_read_from_its_beginning(log):
    log.append(lines(*range(10)))
    log.poll()
    os.truncate(log.path, 0)
    log.append(lines(11))
    polled = log.poll()
    assert polled.restarted and [row.step for row in polled.rows] == [11]


def test_the_hole_that_copytruncate_leaves_is_passed_over(log):
    with log.path.open("w") as file:
        file.write(lines(1, 2))
        file.flush()
        assert log.steps() == [1, 2]
        os.truncate(log.path, 0)
        file.write(lines(3))
    log.touch()
    polled = log.poll()
    assert polled.restarted and polled.bad == 0 and [row.step for row in polled.rows] == [3]


def test_a_log_written_anew_is_noticed_even_if_it_is_longer(log):
    log.append(lines(1, 2))
    log.poll()
    log.path.write_text(lines(7, 8, 9, 10))
    log.touch()
    polled = log.poll()
    assert polled.restarted and [row.step for row in polled.rows] == [7, 8, 9, 10]


def test_a_log_written_anew_with_the_same_beginning_is_noticed(log):
    begin = lines(*range(1000))
    log.append(begin + lines(2000, 2001))
    log.poll()
    log.path.write_text(begin + lines(3000, 3001, 3002))
    log.touch()
    polled = log.poll(limit=1 << 20)
    assert polled.restarted and [row.step for row in polled.rows][-3:] == [3000, 3001, 3002]


def test_a_log_written_anew_with_the_same_end_is_noticed(log):
    begin, end = '{"config": "%s"}\n', lines(*range(100))
    log.append(begin % "a" + end)
    log.poll()
    log.path.write_text(begin % "b" + end)
    log.touch()
    polled = log.poll()
    assert polled.restarted and [row.step for row in polled.rows] == [*range(100)]


def test_a_log_written_anew_and_moved_into_place_with_more_at_its_end_goes_on(log):
    """As loggers do that write atomically, and as a file system does that numbers its files anew when it is mounted."""
    log.append(lines(1, 2))
    log.poll()
    new = log.path.with_name("new")
    new.write_text(lines(1, 2, 3))
    new.replace(log.path)
    log.touch()
    polled = log.poll()
    assert not polled.restarted and [row.step for row in polled.rows] == [3]


def test_what_is_cut_off_before_it_was_read_is_no_new_file(log):
    log.append(lines(1) + '{"step": 2, "lo')
    log.poll()
    os.truncate(log.path, len(lines(1)))
    log.append(lines(3))
    polled = log.poll()
    assert not polled.restarted and [row.step for row in polled.rows] == [3]


def test_a_run_begun_anew_in_the_same_file_gives_its_rows_in_order(log):
    log.append(lines(1, 2, 3))
    log.append(lines(1, 2))
    polled = log.poll()
    assert [row.step for row in polled.rows] == [1, 2, 3, 1, 2] and not polled.restarted


def test_a_log_goes_on_after_a_restart_of_the_daemon(log):
    log.append(lines(1, 2))
    log.poll()
    log.append(lines(3))
    assert log.reopened().steps() == [3]
    os.truncate(log.path, 0)
    log.append(lines(1))
    assert log.reopened().poll().restarted


@pytest.mark.parametrize("plain", [{}, {"inode": "x"}, {"offset": -5}, {"inode": None, "offset": 1},
                                   {"inode": 1, "size": 1, "mtime_ns": 1, "offset": -1, "head_size": 0}])
def test_a_record_that_is_no_place_is_none(plain):
    assert Place.from_plain(plain) is None


# ---- what is no log -------------------------------------------------------------------------------------------------


def test_a_missing_file_has_nothing_and_may_come(log):
    assert log.poll() == module.Polled()
    log.append(lines(1))
    assert log.steps() == [1]


def test_a_pipe_is_not_opened(log):
    os.mkfifo(log.path)
    assert "not a plain file" in log.poll().trouble


def test_a_pipe_that_takes_the_place_between_two_calls_is_not_waited_for(log):
    log.append(lines(1))
    info = log.path.stat()
    log.path.unlink()
    os.mkfifo(log.path)
    assert "not a plain file" in log.poll(info=info).trouble


def test_a_directory_is_no_log(log):
    log.path.mkdir()
    assert "not a plain file" in log.poll().trouble


def test_a_file_that_cannot_be_reached_is_trouble_until_it_can(log):
    log.path.symlink_to(log.path)
    assert "Too many levels" in log.poll().trouble
    log.path.unlink()
    log.append(lines(1))
    assert log.steps() == [1]


@pytest.mark.parametrize("limit", [1 << 16, 1 << 20, 1 << 24])
def test_an_endless_line_is_counted_and_passed_over(log, limit):
    log.append(lines(1) + "x" * (3 * LONGEST) + "\n" + lines(2))
    told, bad = [], 0
    while True:
        polled = log.poll(limit=limit)
        told, bad = told + [row.step for row in polled.rows], bad + polled.bad
        if not polled.more:
            break
    assert told == [1, 2] and bad == 1


def test_an_endless_line_is_passed_over_while_it_is_written_and_across_a_restart(log):
    log.append(lines(1))
    log.poll()
    bad = 0
    for _ in range(30):
        log.append("x" * (LONGEST // 10))
        bad += log.poll().bad
    assert log.follower.place.offset > LONGEST  # it is not read again from where it began
    log.append("\n" + lines(2))
    polled = log.reopened().poll()
    assert [row.step for row in polled.rows] == [2] and bad + polled.bad == 1


@given(st.binary(max_size=2000), st.integers(1, 300))
def test_no_bytes_are_a_fault(tmp_path_factory, data, limit):
    log = Log(tmp_path_factory.mktemp("log") / "a.jsonl")
    log.append(data)
    while log.poll(limit=limit).more:
        pass
    log.append(b"\n" + lines(1).encode())
    told = []
    while (polled := log.poll(limit=limit)).more or polled.rows:
        told += [row.step for row in polled.rows]
    assert told == [1]


class Stubborn:
    """A dialect whose reader never finds an end."""

    name, precedence, title, files, whole = "stubborn", 1, "", "", False

    def claims(self, path, head):
        return True

    def reader(self, logged, state=None):
        return self

    def state(self):
        return {}

    def feed(self, data):
        return Fed(consumed=0)


def test_a_reader_that_finds_no_end_does_not_stop_us(tmp_path):
    log = Log(tmp_path / "a", Stubborn())
    log.append(b"x" * (module.RECORD + 10))
    assert log.poll().bad == 1
    assert not log.poll().more


# ---- documents ------------------------------------------------------------------------------------------------------


class Document(Stubborn):
    """A list of steps, read whole."""

    whole = True

    def __init__(self, told=0):
        self.told = told

    def reader(self, logged, state=None):
        return Document((state or {}).get("told", 0))

    def state(self):
        return {"told": self.told}

    def feed(self, data):
        try:
            steps = json.loads(data)
        except ValueError:
            return Fed(consumed=0)
        new, self.told = steps[self.told:], len(steps)
        return Fed(consumed=len(data), rows=[*new])


def test_a_document_is_read_whole_each_time_it_has_changed(tmp_path):
    log = Log(tmp_path / "state.json", Document())
    for content, told in (("[1]", [1]), ("[1, 2", []), ("[1, 2, 3]", [2, 3]), ("[1, 2, 3]", [])):
        log.path.write_text(content)
        log.touch()
        assert list(log.poll().rows) == told
    assert log.reopened().poll() == module.Polled()


def test_a_document_beyond_all_bounds_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "JSON_LIMIT", 10)
    log = Log(tmp_path / "state.json", Document())
    log.append(b"[" + b"1," * 10 + b"1]")
    polled = log.poll()
    assert not polled.rows and "larger than 10 bytes" in polled.trouble
