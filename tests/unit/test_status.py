"""Status tells what is wrong and how to mend it, from the database alone, whatever else is broken."""

import json
import time

import pytest

from ckptwatch.errors import UsageError
from ckptwatch.model import Facts, Failure, FailureKind, Identity, Role
from ckptwatch.settings import RootRule, Settings
from ckptwatch.status import Level, as_json, gather
from ckptwatch.store import checkpoints, evaluations, heartbeat, roots, runs
from ckptwatch.store.database import FILE, open_writing


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "runs").mkdir()
    return Settings(state_dir=tmp_path / "state", roots=(RootRule(root=tmp_path / "runs"),))


@pytest.fixture
def conn(settings):
    db = open_writing(settings.state_dir)
    with db._engine.connect() as connection:  # committed when the test says so
        root = settings.roots[0].root
        roots.record(connection, root, uuid="u", device=1)
        run, _ = runs.run_named(connection, root, "a", path=root / "a", now=time.time())
        checkpoints.record(
            connection, run_id=run.id, path=root / "a/0100.pt", role=Role.REGULAR, generation=0, now=time.time(),
            facts=Facts(format="torch-zip", complete=True, evidence="e", step=100),
            identity=Identity(device=1, inode=1, size=10, mtime_ns=5))
        connection.commit()
        yield connection
    db.close()


def look(settings, **more):
    status = gather(settings.outline, now=time.time(), **more)
    json.dumps(as_json(status), allow_nan=False)
    return status


def test_before_the_first_start_there_is_nothing_and_that_is_said(settings):
    status = look(settings)
    assert (status.daemon, status.level, status.runs) == ("never", Level.DOWN, [])


@pytest.mark.parametrize(("stopped", "state"), [(False, "down"), (True, "stopped")])
def test_a_daemon_that_died_is_told_from_one_that_stopped(settings, conn, stopped, state):
    heartbeat.begin(conn, pid=1, version="0", now=5.0)
    if stopped:
        heartbeat.stop(conn, now=6.0, last_words="received SIGTERM")
    conn.commit()
    status = look(settings)
    assert status.daemon == state and status.level is Level.DOWN
    assert as_json(status)["daemon"]["last_words"] == ("received SIGTERM" if stopped else "")


def test_a_wrong_root_is_a_failure(settings, conn):
    roots.note(conn, settings.roots[0].root, problem="its marker is gone")
    conn.commit()
    [alert] = look(settings).alerts
    assert alert.level is Level.FAIL and "marker is gone" in alert.message and alert.fix


def test_a_failed_evaluation_names_its_fix_and_a_second_attempt_is_a_warning(settings, conn):
    evaluations.enqueue(conn, 1, variant="ema", recipe="r", digest="d", now=1.0)
    for attempts, level, words in ((2, Level.WARN, "another follows"), (1, Level.FAIL, "tried 2×")):
        evaluations.claim(conn, 1, log=settings.state_dir / "x.log", now=1.0)
        failure = Failure(kind=FailureKind.SAMPLER, message="broke")
        evaluations.fail(conn, 1, failure, attempts=attempts, retry_at=1.0, now=2.0)
        conn.commit()
        [alert] = look(settings).alerts
        assert alert.level is level and words in alert.message and "a@100 [ema]" in alert.message
    assert alert.fix == "ckptwatch retry a@100" and as_json(look(settings))["queue"]["failed"] == 1


def test_one_run_alone_and_none_of_that_name(settings, conn):
    conn.commit()
    assert [r.name for r in look(settings, run="a").runs] == ["a"]
    with pytest.raises(UsageError, match="known runs: a"):
        look(settings, run="b")


def test_a_plan_that_waits_is_a_warning_of_its_run(settings, conn):
    runs.record_standing(conn, 1, runs.Standing(held="removes 8 of 12", reclaimable_bytes=80, planned_removals=8))
    conn.commit()
    document = as_json(look(settings))
    assert document["runs"][0]["reclaimable_bytes"] == 80
    assert document["runs"][0]["alerts"][0]["message"] == "removes 8 of 12"


def test_a_nan_standing_is_null_in_json(settings, conn):
    runs.record_standing(conn, 1, runs.Standing(best_checkpoint_id=1, best_metric="fid", best_value=None))
    conn.commit()
    assert as_json(look(settings))["runs"][0]["best"]["value"] is None


def test_a_stuck_socket_does_not_hide_the_database(settings, conn):
    import socket

    from ckptwatch import control

    conn.commit()
    with socket.socket(socket.AF_UNIX) as deaf, control._short(settings.state_dir / control.NAME) as short:
        deaf.bind(short)
        assert [r.name for r in look(settings).runs] == ["a"]


def test_a_broken_database_is_an_error_in_words(settings):
    from ckptwatch.errors import StateError

    settings.state_dir.mkdir()
    (settings.state_dir / FILE).write_bytes(b"garbage" * 1000)
    with pytest.raises(StateError, match="read the database"):
        look(settings)


def test_every_state_of_an_evaluation_is_counted():
    from ckptwatch.model import EvaluationState
    from ckptwatch.store.overview import UNDONE

    assert {*UNDONE, "done"} == set(EvaluationState)
