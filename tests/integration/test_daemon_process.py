"""The daemon as a real process: noticed, stopped, alone on its state, asked and told things while it runs and after."""

import json
import os
import signal
import subprocess
import sys

import pytest

from ckptwatch.store import heartbeat
from tests.support import OURS, save, tree, until, zip_bytes

KEYS = {"daemon", "workers", "queue", "runs"}
RUN_KEYS = {"name", "path", "checkpoints", "best", "last", "bytes", "reclaimable_bytes", "alerts"}


def complete(project):
    return sorted(name for name, state in project.states().items() if state == "complete")


def settled(project, *names):
    def done():
        # Recorded comes before enqueued: without the last part a checkpoint just found would pass for evaluated.
        return (project.quiet_state() and complete(project) == sorted(names)
                and all(name in project.evaluations() for name in names))

    until(done, what=f"{names}")


# ---- while it runs --------------------------------------------------------------------------------------------------


def test_a_training_run_is_followed_as_it_goes(project):
    """Renamed into place, written slowly, rewritten, removed by its trainer: each is noticed while the daemon runs."""
    project.write(watch=[{"root": "runs", "quiet": 0.0, "scan_every": 3600.0}])
    with project.daemon() as daemon:
        project.save("a/0100.pt", quality=1.0)
        settled(project, "a/0100.pt")
        slow = project.root / "a/0200.pt"
        data = zip_bytes({"quality": 2.0})
        with slow.open("wb") as file:
            file.write(data[:100])
            file.flush()
            until(lambda: str(slow) in (daemon.answers() or {}).get("writing", {}), what="seen while it is written")
            assert "a/0200.pt" not in project.states()
            file.write(data[100:])
        settled(project, "a/0100.pt", "a/0200.pt")
        save(slow, {"quality": 9.0})
        until(lambda: len(project.evaluations()["a/0200.pt"]) == 2 and project.quiet_state(), what="evaluated anew")
        project.save("a/0300.pt", quality=3.0)
        settled(project, "a/0200.pt", "a/0300.pt")
        (project.root / "a/0300.pt").unlink()
        until(lambda: project.states()["a/0300.pt"] == "gone", what="loss noticed")
        assert daemon.stop() == 0
    assert project.states()["a/0100.pt"] == "trashed"


def test_commands_are_carried_out_by_the_running_daemon(project):
    for step, quality in ((100, 1.0), (200, 4.0), (300, 3.0), (400, 2.0)):
        project.save(f"a/{step:04d}.pt", quality=quality)
    project.run_rule(approve_over=0.1, keep={"best": 1, "last": 1})
    with project.daemon() as daemon:
        until(project.quiet_state, what="all evaluated")
        assert project.json("pin", "a@100", "--why", "paper")["path"].endswith("0100.pt")
        assert project.json("plan", "a")["runs"][0]["held"]
        until(lambda: project.cli("approve", "a").returncode == 0, what="plan to approve")
        settled(project, "a/0100.pt", "a/0200.pt", "a/0400.pt")
        assert project.json("unpin", "a@100")["path"].endswith("0100.pt")
        assert project.json("restore", "a@300")["bytes"] > 0
        assert project.json("retry", "a@200")["evaluations"] == 1
        until(project.quiet_state, what="evaluated again")
        refused = project.cli("pin", "a@999")
        assert (refused.returncode, refused.stdout) in ((1, ""), (2, "")) and "not known" in refused.stderr
        assert "Traceback" not in refused.stderr
        listed = project.json("trash")
        assert listed["bytes"] == sum(e["bytes"] for e in listed["entries"])
        assert project.json("trash", "--purge", "--yes")["purged"] == len(listed["entries"])
        assert daemon.stop() == 0
    assert "a/0300.pt" in complete(project)


def test_the_same_commands_without_a_daemon(project):
    for step, quality in ((100, 1.0), (200, 4.0), (300, 3.0)):
        project.save(f"a/{step:04d}.pt", quality=quality)
    done = project.cli("run", "--once")
    assert done.returncode == 0, done.stderr
    assert complete(project) == ["a/0200.pt", "a/0300.pt"]
    assert project.json("restore", "a@100")["path"].endswith("0100.pt")
    assert project.json("pin", "a@200")["path"].endswith("0200.pt")
    assert project.json("unpin", "a@200")["path"].endswith("0200.pt")
    assert project.json("retry", "a@300")["evaluations"] == 1
    assert project.cli("approve", "a").returncode == 2
    assert project.cli("trash").stdout.strip() == "trash is empty"


def test_status_has_the_same_keys_whether_the_daemon_is_up_down_or_never_was(project):
    def check(state):
        document = project.json("status")
        assert document.keys() >= KEYS and {"state", "pid", "since", "version"} <= document["daemon"].keys()
        assert {"queued", "running", "failed"} <= document["queue"].keys()
        assert document["daemon"]["state"] == state
        for run in document["runs"]:
            assert run.keys() >= RUN_KEYS and "total" in run["checkpoints"]
        for worker in document["workers"]:
            assert {"id", "device", "state", "checkpoint", "progress"} <= worker.keys()
        return document

    check("never")
    project.save("a/0100.pt", quality=1.0)
    with project.daemon() as daemon:
        settled(project, "a/0100.pt")
        up = check("running")
        assert up["daemon"]["pid"] == daemon.process.pid and [w["device"] for w in up["workers"]] == ["cpu"]
        assert up["runs"][0]["best"]["metric"] == "quality" and up["runs"][0]["best"]["value"] == 1.0
        assert daemon.stop() == 0
    assert check("stopped")["runs"][0]["best"]["path"].endswith("0100.pt")
    with project.daemon() as daemon:
        daemon.stop(signal.SIGKILL)
    assert check("down")["runs"] != []


# ---- alone on its state ---------------------------------------------------------------------------------------------


def test_a_second_daemon_is_refused_and_says_so(project):
    with project.daemon() as daemon:
        second = project.cli("run")
        assert second.returncode == 1
        assert f"held by process {daemon.process.pid}" in second.stderr and "another ckptwatch daemon" in second.stderr
        assert "Traceback" not in second.stderr
        assert daemon.answers(), "the first is not disturbed"
        once = project.cli("run", "--once")
        assert once.returncode == 1 and "held by process" in once.stderr


@pytest.mark.parametrize("how", ["file", "read-only"])
def test_a_state_directory_that_cannot_be_written_is_said_so(project, how):
    project.save("a/0100.pt", quality=1.0)
    prefix = []
    if how == "file":
        project.state.write_text("")
    else:
        project.state.mkdir()
        prefix = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"',
                  str(project.state)]
        if subprocess.run([*prefix, "true"], capture_output=True).returncode:
            pytest.skip("no mount namespaces here")
    argv = [*prefix, *project._argv(("run", "--once"), True, True)]
    done = subprocess.run(argv, cwd=project.base, env=project.environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot use state directory" in done.stderr and "state_dir" in done.stderr and "Traceback" not in done.stderr
    assert not (project.root / OURS).exists()


# ---- stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_in_the_middle_of_an_evaluation_costs_nothing(project, number):
    project.save("a/0100.pt", misbehave="hang")
    with project.daemon() as daemon:
        until(lambda: [w for w in (daemon.answers() or {"workers": ()})["workers"] if w["progress"]], what="at work")
        with project.reading() as conn:
            assert heartbeat.read(conn).stopped_at is None
        assert daemon.stop(number) == 0
    [waiting] = project.evaluations()["a/0100.pt"]
    assert (waiting.state, waiting.attempts) == ("pending", 0)
    with project.reading() as conn:
        assert signal.Signals(number).name in heartbeat.read(conn).last_words
    project.save("a/0100.pt", quality=1.0)
    assert project.cli("run", "--once").returncode == 0
    assert [e.state for e in project.evaluations()["a/0100.pt"]] == ["abandoned", "done"]


def test_workers_do_not_outlive_a_killed_daemon(project):
    from tests.support import alive

    project.save("a/0100.pt", misbehave="hang")
    with project.daemon() as daemon:
        until(lambda: [w for w in (daemon.answers() or {"workers": ()})["workers"] if w["progress"]], what="at work")
        children = subprocess.run(["pgrep", "-P", str(daemon.process.pid)], capture_output=True, text=True).stdout.split()
        assert children
        daemon.stop(signal.SIGKILL)
    until(lambda: not any(alive(int(pid)) for pid in children), what="workers ended")


# ---- what is imported -----------------------------------------------------------------------------------------------


def modules_after(code, cwd):
    done = subprocess.run([sys.executable, "-c", f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"],
                          capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_daemon_never_imports_torch(project):
    project.save("a/0100.pt", loss=0.5)
    project.write(runs=[{"rank": {"by": "loss", "mode": "min"}, "keep": {"best": 1}}], publish={"tensorboard": True})
    found = modules_after(
        "from pathlib import Path; from ckptwatch.config import load_config; from ckptwatch.daemon import Daemon\n"
        f"Daemon(load_config(Path({str(project.file)!r}))).run_once()", project.base)
    assert "sqlalchemy" in found
    assert not {"torch", "torchvision", "torch_fidelity", "lpips", "open_clip", "tensorflow"} & found


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["status", "--help"], ["--version"]])
def test_help_imports_neither_torch_nor_sqlalchemy(tmp_path, arguments):
    found = modules_after(f"from ckptwatch.cli.app import app\ntry: app({arguments!r})\nexcept SystemExit: pass", tmp_path)
    assert not {"torch", "sqlalchemy", "alembic", "fastapi", "numpy"} & found


# ---- without a configuration ----------------------------------------------------------------------------------------


def test_bare_roots_are_observed_and_nothing_is_written_below_them(project):
    for step in (100, 200, 300):
        project.save(f"a/{step:04d}.pt", loss=1.0 / step)
    before = tree(project.root, ours=True)
    code = ("import sys; from pathlib import Path; from ckptwatch.config import settings_for_roots\n"
            "from ckptwatch.daemon import Daemon; from ckptwatch.model import evolve\n"
            "s = settings_for_roots([Path(sys.argv[1])])\n"  # only the quiet time of half a minute is not waited for
            "Daemon(evolve(s, roots=tuple(evolve(r, quiet=0.0) for r in s.roots))).run_once()")
    done = subprocess.run([sys.executable, "-c", code, str(project.root)], env=project.environment(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert tree(project.root, ours=True) == before
    assert os.listdir(project.base / "xdg/ckptwatch")
    status = json.loads(project.cli("status", "--json", config=False).stdout)
    assert status["runs"][0]["checkpoints"]["total"] == 3


def test_roots_and_a_configuration_together_are_refused(project):
    done = project.cli("run", str(project.root), "--once")
    assert done.returncode == 2 and "both roots and a configuration" in done.stderr
