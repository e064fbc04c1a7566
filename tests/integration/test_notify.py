"""Notifications arrive over a real connection, a dead endpoint holds up nobody, and no secret is shown."""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ckptwatch.cli import app as cli
from ckptwatch.core.telling import Message
from ckptwatch.errors import CkptwatchError
from ckptwatch.publish.notify import Counts, Notifier, endpoints_of, form_problem
from tests.support import until

SECRET = "hunter2hunter2"
MESSAGE = Message(title="pose: loss spike of loss", body="loss 4.81 is 6.2 × its recent average 0.78", level="failure")


class Listener:
    """A webhook on this machine. `status` is what it answers; while `held` is set it answers nothing at all."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status = 200
        self.refuse = 0            # so many requests are answered with 503 first
        self.go = threading.Event()
        self.go.set()
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                listener.go.wait(60)
                if listener.refuse > 0:
                    listener.refuse -= 1
                    self.send_response(503)
                else:
                    listener.got.append(body)
                    self.send_response(listener.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """No words on the tests' screen."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"json://watch:{SECRET}@127.0.0.1:{self.server.server_address[1]}/hooks/{SECRET}"

    def close(self) -> None:
        self.go.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def listener(monkeypatch) -> Iterator[Listener]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Listener()
    yield made
    made.close()


@pytest.fixture
def dead(listener) -> str:
    """An address at which nobody listens."""
    unused = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = unused.server_address[1]
    unused.server_close()
    return f"json://watch:{SECRET}@127.0.0.1:{port}/{SECRET}"


# ---- the notifier ---------------------------------------------------------------------------------------------------


def test_a_message_arrives_whole(listener):
    notifier = Notifier([listener.url])
    assert notifier.send(MESSAGE)
    until(lambda: notifier.counts.sent == 1, what="the message was sent")
    notifier.close()
    (got,) = listener.got
    assert (got["title"], got["message"], got["type"]) == (MESSAGE.title, MESSAGE.body, "failure")


def test_what_waits_is_sent_before_the_end(listener):
    notifier = Notifier([listener.url])
    for _ in range(5):
        assert notifier.send(MESSAGE)
    notifier.close(timeout=60)
    assert len(listener.got) == 5
    assert not notifier.send(MESSAGE), "after the end nothing is taken"


def test_an_endpoint_that_answers_nothing_holds_up_nobody_and_what_is_too_much_is_dropped(listener):
    listener.go.clear()
    notifier = Notifier([listener.url], room=3)
    taken = [notifier.send(MESSAGE) for _ in range(10)]  # would not return if sending waited for an answer
    assert taken.count(True) in (3, 4) and taken[0] and not taken[-1]
    assert notifier.counts.dropped == taken.count(False)
    listener.go.set()
    notifier.close(timeout=60)
    assert len(listener.got) >= taken.count(True)


def test_a_passing_failure_is_tried_again(listener):
    listener.refuse = 2
    notifier = Notifier([listener.url], backoff=(0.0, 0.0, 0.0))
    notifier.send(MESSAGE)
    until(lambda: notifier.counts.sent == 1, what="the third attempt succeeded")
    notifier.close()
    assert notifier.counts == Counts(sent=1)
    assert len(listener.got) == 1


def test_a_dead_endpoint_is_given_up_counted_and_logged_without_its_secrets(listener, dead, caplog):
    caplog.set_level(logging.DEBUG)
    notifier = Notifier([dead, listener.url, "foo://x", "env:CKPTWATCH_NOT_SET"], backoff=(0.0,))
    notifier.send(MESSAGE)
    until(lambda: notifier.counts.failed == 1, what="the dead endpoint was given up")
    notifier.close()
    assert notifier.counts.sent == 1 and len(listener.got) == 1, "the other one got it all the same"
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("ckptwatch", "apprise"))]
    assert any("given up" in line and "json://watch:****@127.0.0.1" in line for line in ours)
    assert any("CKPTWATCH_NOT_SET is not set" in line for line in ours)
    assert SECRET not in caplog.text


def test_without_endpoints_nothing_is_sent_and_no_thread_begins():
    before = threading.active_count()
    notifier = Notifier([])
    assert not notifier.send(MESSAGE)
    notifier.close()
    assert threading.active_count() == before


# ---- entries --------------------------------------------------------------------------------------------------------


def test_a_url_can_come_from_the_environment(listener):
    found, problems = endpoints_of(["env:MY_HOOK"], {"MY_HOOK": f" {listener.url}\n"})
    assert not problems
    assert found[0].shown.startswith("json://watch:****@127.0.0.1:")
    assert SECRET not in found[0].shown


@pytest.mark.parametrize("entry", [
    f"slack://T1JJ3T3L2/A1BRTD4JD/{SECRET}{SECRET[:4]}cccccc/#general", f"discord://123456789/{SECRET}",
    f"https://discord.com/api/webhooks/123456789/{SECRET}", f"mailtos://user:{SECRET}@example.com",
    f"tgram://123456789:{SECRET}AAAAAAAAAAAAAAAAAAAAA/12345", f"jsons://example.com/{SECRET}?+X-Token={SECRET}",
])
def test_no_secret_of_any_service_is_shown(entry):
    found, problems = endpoints_of([entry], {})
    assert len(found) + len(problems) == 1
    assert SECRET not in " ".join([*(e.shown for e in found), *problems])


def test_what_apprise_does_not_understand_is_a_problem_with_its_place_and_without_its_secrets():
    found, problems = endpoints_of([f"foo://{SECRET}", SECRET, "env:NOWHERE", "slack://"], {})
    assert not found
    assert [p.split(":")[0] for p in problems] == [f"notify[{i}]" for i in range(4)]
    assert "NOWHERE is not set" in problems[2]
    assert SECRET not in " ".join(problems)


@pytest.mark.parametrize(("entry", "good"), [
    ("slack://a/b/c", True), ("env:HOOK", True), (" json://localhost ", True), ("env:", False), ("env:MY HOOK", False),
    (f"env:slack://{SECRET}", False), ("$HOOK", False), ("someone@example.com", False), ("", False),
])
def test_the_form_of_an_entry_is_checked_without_apprise(entry, good):
    problem = form_problem(entry)
    assert (problem is None) is good
    assert SECRET not in (problem or "")


def test_apprise_is_not_loaded_before_something_is_to_be_sent():
    code = ("import sys; import ckptwatch.publish.notify as n; n.form_problem('slack://x'); "
            "n.Notifier(['slack://x']).close(); print('apprise' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- `ckptwatch notify --test` --------------------------------------------------------------------------------------


@pytest.fixture
def configured(tmp_path):
    (tmp_path / "runs").mkdir()

    def write(*entries: str) -> str:
        path = tmp_path / "ckptwatch.yaml"
        content: dict[str, Any] = {"state_dir": str(tmp_path / "state"), "watch": [{"root": str(tmp_path / "runs")}]}
        path.write_text(yaml.safe_dump(content | ({"notify": list(entries)} if entries else {})))
        return str(path)

    return write


def notify(*arguments: str) -> tuple[int, str, str]:
    """Status, standard output, error."""
    done = CliRunner().invoke(cli.app, ["notify", *arguments])
    if isinstance(done.exception, CkptwatchError):
        return done.exception.exit_status, done.stdout, str(done.exception)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_a_test_message_reaches_every_endpoint_and_the_masked_url_says_so(listener, configured):
    status, out, _ = notify("--test", "-c", configured(listener.url))
    assert status == 0
    assert [m["title"] for m in listener.got] == ["ckptwatch: test message"]
    assert "✓ json://watch:****@127.0.0.1" in out and "arrived" in out
    assert SECRET not in out


def test_one_that_fails_is_named_and_the_others_get_theirs(listener, dead, configured):
    status, out, _ = notify("--test", "--json", "-c", configured(dead, listener.url))
    document = json.loads(out)
    assert status == 1
    assert document["version"] == 1 and document["ok"] is False
    assert [e["arrived"] for e in document["endpoints"]] == [False, True]
    assert SECRET not in out
    assert len(listener.got) == 1


def test_a_service_that_refuses_has_not_got_it(listener, configured):
    listener.status = 401
    assert notify("--test", "-c", configured(listener.url))[0] == 1


def test_nobody_to_notify_a_bad_url_or_nothing_to_do_are_errors_of_usage(configured, monkeypatch):
    monkeypatch.delenv("NOT_THERE", raising=False)
    status, _, error = notify("--test", "-c", configured())
    assert status == 2 and "names nobody to notify" in error
    status, _, error = notify("--test", "-c", configured("env:NOT_THERE"))
    assert status == 2 and "NOT_THERE is not set" in error
    status, out, _ = notify("--test", "--json", "-c", configured("env:NOT_THERE"))
    assert status == 2 and json.loads(out)["problems"] == ["notify[0]: the environment variable NOT_THERE is not set"]
    status, _, error = notify("--test", "-c", configured(f"foo://{SECRET}"))
    assert status == 2 and SECRET not in error
    assert notify("-c", configured("env:NOT_THERE"))[0] == 2
