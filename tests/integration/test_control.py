"""The socket: the owner's alone, patient with nobody, and never the end of the daemon."""

import json
import socket
import stat
import threading

import pytest

from ckptwatch import control
from ckptwatch.control import NAME, RefusedByDaemon, Server, request
from ckptwatch.errors import CkptwatchError
from tests.support import until


@pytest.fixture
def served(tmp_path):
    asked = []

    def handle(content):
        asked.append(dict(content))
        return {"ok": content["command"] != "no", "error": "because", "echo": content.get("target")}

    server = Server(tmp_path, handle)
    yield tmp_path, asked
    server.close()


def talk(directory, data, *, answer=True):
    with socket.socket(socket.AF_UNIX) as client, control._short(directory / NAME) as short:
        client.connect(short)
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(60)
        return json.loads(client.makefile().readline()) if answer else None


def test_a_request_gets_its_reply(served):
    directory, asked = served
    assert request(directory, "pin", target="größe@1")["echo"] == "größe@1"
    assert asked == [{"version": 1, "command": "pin", "target": "größe@1"}]


def test_a_refusal_comes_word_for_word(served):
    with pytest.raises(RefusedByDaemon) as caught:
        request(served[0], "no")
    assert str(caught.value) == "because" and caught.value.exit_status == 1


@pytest.mark.parametrize("data", [
    b"", b"\n", b"garbage\n", b"[]\n", b"5\n", b'{"version": 99}\n', b"\xff\xfe\n", b"[" * 60_000 + b"\n", b"x" * 70_000,
    b'{"version": 1',
])
def test_garbage_is_answered_and_the_next_request_too(served, data):
    directory, asked = served
    assert talk(directory, data)["ok"] is False
    assert asked == [] and request(directory, "pin")["ok"]


def test_a_client_that_hangs_up_or_hangs_disturbs_nobody(served):
    directory, _ = served
    talk(directory, b'{"version": 1, "command": "pin"}\n', answer=False)
    with socket.socket(socket.AF_UNIX) as stuck, control._short(directory / NAME) as short:
        stuck.connect(short)
        stuck.sendall(b'{"version"')
        assert request(directory, "pin")["ok"]


def test_the_socket_is_its_owners_alone(served):
    assert stat.S_IMODE((served[0] / NAME).stat().st_mode) == 0o600


def test_no_daemon_is_no_error(tmp_path):
    assert request(tmp_path, "live") is None
    Server(tmp_path, lambda content: {"ok": True}).close()
    assert request(tmp_path, "live") is None and not (tmp_path / NAME).exists()


def test_the_socket_of_a_dead_daemon_is_no_daemon(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead, control._short(tmp_path / NAME) as short:
        dead.bind(short)
    assert (tmp_path / NAME).exists() and request(tmp_path, "live") is None
    server = Server(tmp_path, lambda content: {"ok": True})
    assert request(tmp_path, "live")["ok"]
    server.close()


def test_a_deep_state_directory_is_no_problem(tmp_path):
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    server = Server(deep, lambda content: {"ok": True})
    assert request(deep, "live")["ok"]
    server.close()


def test_a_daemon_that_does_not_answer_is_said_so(tmp_path):
    forever = threading.Event()
    server = Server(tmp_path, lambda content: {"ok": forever.wait(60)})
    try:
        with pytest.raises(CkptwatchError, match="hear from the daemon"):
            request(tmp_path, "live", patience=0.2)
    finally:
        forever.set()
        server.close()


def test_close_ends_its_thread(tmp_path):
    server = Server(tmp_path, lambda content: {"ok": True})
    thread = server._thread
    server.close()
    until(lambda: not thread.is_alive(), what="control thread ended")
