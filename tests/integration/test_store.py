"""The database keeps its promises by itself: one writer, one row, one way through the states, history that stays."""

import fcntl
import math
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from ckptwatch.errors import StateError
from ckptwatch.model import (
    CHECKPOINT_TRANSITIONS,
    CheckpointEvent,
    CheckpointState,
    EvaluationState,
    Facts,
    Failure,
    FailureKind,
    Identity,
    RemovalState,
    Role,
    Score,
)
from ckptwatch.store import checkpoints, evaluations, events, heartbeat, overview, removals, roots, runs
from ckptwatch.store.database import FILE, LOCK, open_reading, open_writing

ROOT = Path("/runs")


@pytest.fixture
def db(tmp_path):
    database = open_writing(tmp_path / "state")
    yield database
    database.close()


@pytest.fixture
def conn(db):
    with db.write() as connection:
        roots.record(connection, ROOT, uuid="u", device=1)
        yield connection


def add(conn, name="a/0100.pt", *, run="a", step=100, epoch=None, complete=True, inode=1, **more):
    run_, _ = runs.run_named(conn, ROOT, run, path=ROOT / run, now=1.0)
    facts = Facts(format="torch-zip", complete=complete, evidence="31 entries", step=step, epoch=epoch, **more)
    return checkpoints.record(conn, run_id=run_.id, path=ROOT / name, facts=facts, role=Role.REGULAR, generation=0, now=1.0,
                              identity=Identity(device=1, inode=inode, size=10, mtime_ns=5, fingerprint="f"))


def queue(conn, checkpoint, digest="d", variant="", now=1.0):
    evaluations.enqueue(conn, checkpoint.id, variant=variant, recipe="r", digest=digest, now=now)
    [found] = [e for e in evaluations.of_checkpoint(conn, checkpoint.id) if (e.digest, e.variant) == (digest, variant)]
    return found.id


def state(conn, number):
    return evaluations.evaluation(conn, number).state


def claim(conn, number):
    return evaluations.claim(conn, number, log=Path("/log"), now=2.0)


def fail(conn, number, *, retryable=True, attempts=3):
    failure = Failure(kind=FailureKind.SAMPLER, message="broke", hint="mend it", retryable=retryable)
    return evaluations.fail(conn, number, failure, attempts=attempts, retry_at=60.0, now=3.0)


def finish(conn, number, *scores):
    return evaluations.finish(conn, number, results=scores, seconds=1.0, samples=None, now=4.0)


# ---- one writer -----------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_naming_the_first(db, tmp_path):
    code = ("import sys; from pathlib import Path; from ckptwatch.store.database import open_writing\n"
            "open_writing(Path(sys.argv[1]))")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "state")], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"held by process {os.getpid()}" in done.stderr and "another ckptwatch daemon" in done.stderr


def test_the_lock_goes_with_its_process(tmp_path):
    code = ("import os, sys; from pathlib import Path; from ckptwatch.store.database import open_writing\n"
            "open_writing(Path(sys.argv[1])); os._exit(9)")
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 9
    open_writing(tmp_path).close()


def test_a_closed_database_can_be_opened_again(tmp_path):
    for _ in range(3):
        open_writing(tmp_path).close()


def test_a_failed_open_lets_go_of_the_lock(tmp_path):
    (tmp_path / FILE).write_bytes(b"this is no database, and long enough to look at " * 100)
    with pytest.raises(StateError, match="not a database"):
        open_writing(tmp_path)
    with (tmp_path / LOCK).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("kind", ["file", "below a file", "dangling link"])
def test_a_state_directory_that_cannot_be_used_is_said_so(tmp_path, kind):
    place = tmp_path / "state"
    if kind == "dangling link":
        place.symlink_to(tmp_path / "nowhere/deep")
        (tmp_path / "nowhere").write_text("")
    else:
        place.write_text("")
        place = place / "x" if kind == "below a file" else place
    with pytest.raises(StateError) as caught:
        open_writing(place)
    assert str(place) in str(caught.value) and "state_dir" in caught.value.hint and caught.value.exit_status == 1


def test_others_read_while_one_writes(db, tmp_path):
    with db.write() as conn:
        roots.record(conn, ROOT, uuid="u", device=1)
    reader = open_reading(tmp_path / "state")
    with db.write() as conn:
        add(conn)
        with reader.read() as other:
            assert runs.all_runs(other) == (), "what is not committed is not seen, and nobody waits"
    with reader.read() as other:
        assert len(runs.all_runs(other)) == 1
    reader.close()


def test_a_reader_writes_nothing(db, tmp_path):
    reader = open_reading(tmp_path / "state")
    with pytest.raises(RuntimeError), reader.write():
        pass
    with pytest.raises(StateError), reader.read() as conn:
        roots.record(conn, ROOT, uuid="u", device=1)
    reader.close()


def test_no_database_is_no_error(tmp_path):
    assert open_reading(tmp_path) is None


def test_garbage_in_place_of_the_database_is_an_error_in_words(tmp_path):
    (tmp_path / FILE).write_bytes(b"garbage" * 1000)
    with pytest.raises(StateError, match="read the database"):
        open_reading(tmp_path)


def test_a_failed_transaction_leaves_nothing(db):
    with pytest.raises(ZeroDivisionError), db.write() as conn:
        roots.record(conn, ROOT, uuid="u", device=1)
        raise ZeroDivisionError
    with db.read() as conn:
        assert roots.all_(conn) == ()


def test_a_path_with_odd_characters_is_a_path(tmp_path):
    place = tmp_path / "50% of? #1"
    open_writing(place).close()
    assert (place / FILE).exists()
    open_reading(place).close()


def test_many_readers_at_once_do_not_disturb_the_writer(db, tmp_path):
    with db.write() as conn:
        roots.record(conn, ROOT, uuid="u", device=1)
    problems, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                reader = open_reading(tmp_path / "state")
                with reader.read() as conn:
                    overview.run_overviews(conn)
                reader.close()
            except Exception as error:
                problems.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for t in threads:
        t.start()
    for i in range(50):
        with db.write() as conn:
            add(conn, f"a/{i}.pt", step=i, inode=i)
    stop.set()
    for t in threads:
        t.join()
    assert problems == []


def test_every_commit_is_on_disk_before_the_next_step(db):
    with db.read() as conn:
        assert conn.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert conn.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert conn.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


# ---- history --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["UPDATE events SET message = 'nothing happened'", "DELETE FROM events"])
def test_history_cannot_be_rewritten_even_by_hand(tmp_path, statement):
    database = open_writing(tmp_path)
    with database.write() as conn:
        events.append(conn, now=1.0, kind="found", message="x", run="a", path=ROOT / "a", data={"n": 1})
    database.close()
    with closing(sqlite3.connect(tmp_path / FILE)) as raw, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        raw.execute(statement)
    reader = open_reading(tmp_path)
    with reader.read() as conn:
        [event] = events.recent(conn)
    reader.close()
    assert (event.kind, event.message, event.path, event.data) == ("found", "x", ROOT / "a", {"n": 1})


def test_history_can_be_asked_for_one_run(conn):
    for i, run in enumerate("abab"):
        events.append(conn, now=float(i), kind="k", message="", run=run)
    assert [e.at for e in events.recent(conn, run="a")] == [2.0, 0.0]
    assert [e.at for e in events.recent(conn, limit=1)] == [3.0]


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def test_a_path_holds_one_living_checkpoint(db, conn):
    add(conn)
    with pytest.raises(Exception, match="UNIQUE"):
        add(conn, inode=2)


def test_a_checkpoint_comes_back_as_it_went_in(conn):
    made = add(conn, epoch=3, metrics={"loss": 0.5, "bad": math.nan, "inf": math.inf}, variants=("model", "ema"))
    found = checkpoints.living(conn, ROOT / "a/0100.pt")
    assert found.id == made.id and found.metrics["loss"] == 0.5 and found.variants == ("model", "ema")
    assert math.isnan(found.metrics["bad"]) and math.isnan(found.metrics["inf"])
    assert found.identity == Identity(device=1, inode=1, size=10, mtime_ns=5, fingerprint="f")


@pytest.mark.parametrize("before", list(CheckpointState))
@pytest.mark.parametrize("event", list(CheckpointEvent))
def test_only_transitions_of_the_table_exist(conn, before, event):
    from sqlalchemy import update

    from ckptwatch.store.tables import checkpoints as table
    made = add(conn)
    conn.execute(update(table).values(state=before))
    after = CHECKPOINT_TRANSITIONS.get((before, event))
    if after is None:
        with pytest.raises(ValueError, match="no transition"):
            checkpoints.move(conn, made.id, event)
        assert checkpoints.checkpoint(conn, made.id).state is before
    else:
        assert checkpoints.move(conn, made.id, event).state is after


def test_the_newest_is_by_step_never_by_row(conn):
    add(conn, "a/2.pt", step=200, inode=2)
    add(conn, "a/1.pt", step=100, inode=1)
    incomplete = add(conn, "a/9.pt", step=900, inode=9, complete=False)
    newest = checkpoints.newest(conn, incomplete.run_id)
    assert newest.step == 200


def test_a_departed_checkpoint_is_known_by_its_identity(conn):
    made = add(conn)
    checkpoints.move(conn, made.id, CheckpointEvent.VANISHED)
    assert checkpoints.departed(conn, made.path, made.identity).id == made.id
    other = Identity(device=1, inode=1, size=10, mtime_ns=6, fingerprint="f")
    assert checkpoints.departed(conn, made.path, other) is None


def test_a_step_means_what_is_on_disk_before_what_was(conn):
    old = add(conn)
    checkpoints.move(conn, old.id, CheckpointEvent.TRASH)
    assert checkpoints.by_step(conn, old.run_id, 100).id == old.id
    new = add(conn, inode=2)
    assert checkpoints.by_step(conn, old.run_id, 100).id == new.id
    assert checkpoints.by_step(conn, old.run_id, 100, in_trash=True).id == old.id
    assert checkpoints.by_path(conn, old.path, in_trash=True).id == old.id
    assert checkpoints.by_step(conn, old.run_id, 5) is None


def test_a_remounted_root_takes_its_checkpoints_along(conn):
    made = add(conn)
    roots.rebase(conn, ROOT, device=77)
    assert checkpoints.checkpoint(conn, made.id).identity.device == 77
    assert roots.get(conn, ROOT).device == 77


# ---- the queue ------------------------------------------------------------------------------------------------------


def test_an_evaluation_exists_once_per_checkpoint_variant_and_digest(conn):
    made = add(conn)
    for digest, variant in (("d", ""), ("d", "ema"), ("e", "")):
        assert evaluations.enqueue(conn, made.id, variant=variant, recipe="r", digest=digest, now=1.0)
        assert not evaluations.enqueue(conn, made.id, variant=variant, recipe="r", digest=digest, now=9.0)
    assert len(evaluations.of_checkpoint(conn, made.id)) == 3


def test_an_evaluation_is_claimed_once(conn):
    number = queue(conn, add(conn))
    assert claim(conn, number) and not claim(conn, number)
    assert evaluations.evaluation(conn, number).attempts == 1


def test_a_result_counts_once_and_only_while_running(conn):
    number = queue(conn, add(conn))
    assert not finish(conn, number, Score(metric="fid", value=1.0))
    claim(conn, number)
    assert finish(conn, number, Score(metric="fid", value=2.0))
    assert not finish(conn, number, Score(metric="fid", value=3.0))
    assert evaluations.evaluation(conn, number).scores["fid"].value == 2.0


def test_nan_is_stored_as_null_and_read_as_nan(conn, db):
    number = queue(conn, add(conn))
    claim(conn, number)
    finish(conn, number, Score(metric="fid", value=math.nan), Score(metric="kid", value=-math.inf, low=math.nan, n=5),
           Score(metric="zero", value=0.0))
    found = evaluations.evaluation(conn, number).scores
    assert math.isnan(found["fid"].value) and math.isnan(found["kid"].value) and found["kid"].low is None
    assert found["zero"].value == 0.0, "0.0 is a value"
    raw = dict(conn.exec_driver_sql("SELECT metric, value FROM scores").tuples().all())
    assert raw == {"fid": None, "kid": None, "zero": 0.0}


def test_a_metric_named_twice_is_one_score(conn):
    number = queue(conn, add(conn))
    claim(conn, number)
    assert finish(conn, number, Score(metric="fid", value=1.0), Score(metric="fid", value=2.0))
    assert len(evaluations.evaluation(conn, number).scores) == 1


def test_attempts_are_counted_and_end(conn):
    number = queue(conn, add(conn))
    for attempt in (1, 2):
        claim(conn, number)
        assert fail(conn, number)
        found = evaluations.evaluation(conn, number)
        assert (found.state, found.attempts, found.available_at) == (EvaluationState.PENDING, attempt, 60.0)
        assert found.failure.message == "broke" and found.failure.hint == "mend it"
    claim(conn, number)
    fail(conn, number)
    assert state(conn, number) is EvaluationState.FAILED
    assert not claim(conn, number)


def test_what_cannot_end_otherwise_is_not_tried_again(conn):
    number = queue(conn, add(conn))
    claim(conn, number)
    fail(conn, number, retryable=False)
    found = evaluations.evaluation(conn, number)
    assert found.state is EvaluationState.FAILED and not found.failure.retryable and found.failure.hint == "mend it"


def test_a_requeue_costs_no_attempt(conn):
    number = queue(conn, add(conn))
    for _ in range(10):
        claim(conn, number)
        assert evaluations.requeue(conn, number, now=5.0)
    found = evaluations.evaluation(conn, number)
    assert (found.state, found.attempts, found.failure) == (EvaluationState.PENDING, 0, None)


def test_retry_starts_from_zero(conn):
    number = queue(conn, add(conn))
    claim(conn, number)
    fail(conn, number, attempts=1)
    assert evaluations.retry(conn, number, now=7.0)
    found = evaluations.evaluation(conn, number)
    assert (found.state, found.attempts, found.available_at, found.failure) == (EvaluationState.PENDING, 0, 7.0, None)


def test_a_running_evaluation_cannot_be_retried(conn):
    number = queue(conn, add(conn))
    claim(conn, number)
    assert not evaluations.retry(conn, number, now=7.0)


def test_what_a_checkpoint_takes_along_comes_back_with_it(conn):
    made = add(conn)
    waiting, done = queue(conn, made, "w"), queue(conn, made, "d")
    claim(conn, done)
    finish(conn, done)
    evaluations.abandon(conn, made.id, now=5.0)
    assert (state(conn, waiting), state(conn, done)) == (EvaluationState.ABANDONED, EvaluationState.DONE)
    evaluations.revive(conn, made.id, now=6.0)
    assert state(conn, waiting) is EvaluationState.PENDING


def test_an_outdated_recipe_is_waited_for_no_longer_until_it_is_wanted_again(conn):
    made = add(conn)
    number = queue(conn, made, "old")
    evaluations.abandon_outdated(conn, "r", "new", now=5.0)
    assert state(conn, number) is EvaluationState.ABANDONED
    assert evaluations.enqueue(conn, made.id, variant="", recipe="r", digest="old", now=6.0)
    assert state(conn, number) is EvaluationState.PENDING


def test_only_whole_checkpoints_on_the_right_root_wait(conn):
    whole, gone, broken = add(conn), add(conn, "a/2.pt", inode=2), add(conn, "a/3.pt", inode=3, complete=False)
    for made in (whole, gone, broken):
        queue(conn, made)
    checkpoints.move(conn, gone.id, CheckpointEvent.VANISHED)
    assert [r.run_id for r in evaluations.waiting(conn)] == [whole.run_id]
    roots.note(conn, ROOT, problem="unmounted")
    assert evaluations.waiting(conn) == [], "attempts on a root that is away would only be used up"


def test_thousands_of_evaluations_are_read_with_their_scores(conn):
    made = [add(conn, f"a/{i}.pt", step=i, inode=i) for i in range(600)]
    for c in made:
        number = queue(conn, c)
        claim(conn, number)
        finish(conn, number, Score(metric="fid", value=float(c.step)))
    found = evaluations.of_checkpoints_in(conn, made[0].run_id)
    assert len(found) == 600 and all(e.scores["fid"].value >= 0 for e in found)


# ---- the journal ----------------------------------------------------------------------------------------------------


def intend(conn, made):
    return removals.intend(conn, checkpoint_id=made.id, original=made.path, trash_dir=ROOT / ".ckptwatch/trash",
                           reason="rank 9", size=10, now=1.0, purge_at=2.0)


def test_no_two_removals_share_a_place_in_the_trash(conn):
    one, two = intend(conn, add(conn)), intend(conn, add(conn, "b/0100.pt", run="b"))
    assert one.trash.name == two.trash.name == "0100.pt" and one.trash != two.trash
    assert (one.run, two.run, one.step) == ("a", "b", 100)


def test_a_checkpoint_is_removed_once_at_a_time(conn):
    made = add(conn)
    first = intend(conn, made)
    with pytest.raises(Exception, match="UNIQUE"), conn.begin_nested():
        intend(conn, made)
    removals.advance(conn, first.id, RemovalState.ABANDONED)
    assert intend(conn, made).id != first.id


def test_there_is_one_heartbeat(conn):
    for pid in (1, 2):
        heartbeat.begin(conn, pid=pid, version="0", now=float(pid))
    heartbeat.beat(conn, now=9.0)
    found = heartbeat.read(conn)
    assert (found.pid, found.since, found.heartbeat, found.stopped_at) == (2, 2.0, 9.0, None)
    heartbeat.stop(conn, now=10.0, last_words="bye")
    assert (heartbeat.read(conn).stopped_at, heartbeat.read(conn).last_words) == (10.0, "bye")
