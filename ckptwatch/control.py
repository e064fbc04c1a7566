"""The control socket: the same commands as the command line, for a daemon that is running.

One JSON object in, one out, a line each. The socket belongs to the owner of the state directory and nobody else. Each
client is served by a thread of its own with a time limit, so a stuck one stalls nobody.
"""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ckptwatch.errors import CkptwatchError, StateError

NAME = "control.sock"
VERSION = 1
PATIENCE = 5.0   # seconds a client may take to send its request
LONGEST = 65536  # bytes of a request


class Server:
    """Calls `handle(request) -> reply` for every request, in the thread of that client."""

    def __init__(self, state_dir: Path, handle: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        self._handle = handle
        path = state_dir / NAME
        path.unlink(missing_ok=True)  # we hold the lock of the directory, so a socket there is a dead daemon's
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            with _short(path) as short:
                self._socket.bind(short)
        finally:
            os.umask(mask)
        self._socket.listen(16)
        self._path = path
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            client.settimeout(PATIENCE)
            try:
                request = json.loads(_line(client))
                if not isinstance(request, dict) or request.get("version") != VERSION:
                    raise ValueError(f"not a request of version {VERSION}")
                reply = self._handle(request)
            except (ValueError, OSError, RecursionError) as error:
                reply = {"ok": False, "error": f"unusable request: {error}"}
            try:
                client.settimeout(60.0)
                client.sendall(json.dumps(reply).encode() + b"\n")
            except OSError:
                pass  # the client has gone; what it asked for is done


def request(state_dir: Path, command: str, *, patience: float = 60.0, **arguments: Any) -> Mapping[str, Any] | None:
    """The running daemon's reply, or None where none runs. Raises CkptwatchError with the daemon's words if it refused."""
    path = state_dir / NAME
    if not path.exists():
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(patience)
        try:
            with _short(path) as short:
                client.connect(short)
        except (ConnectionRefusedError, FileNotFoundError):
            return None  # the daemon died without tidying up
        except OSError as error:
            raise StateError("reach the daemon", error.strerror or str(error), path=path,
                             hint="run this command as the user the daemon runs as") from error
        try:
            client.sendall(json.dumps({"version": VERSION, "command": command, **arguments}).encode() + b"\n")
            reply = json.loads(_line(client, longest=64 * 1024 * 1024))
        except (OSError, ValueError) as error:
            raise StateError("hear from the daemon", str(error) or type(error).__name__, path=path,
                             hint="see `ckptwatch status`") from error
    if not reply.get("ok"):
        raise RefusedByDaemon(str(reply.get("error", "no reason given")))
    return reply


class RefusedByDaemon(CkptwatchError):
    """The daemon's own error message, passed on word for word."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__("carry out the command", message)

    def __str__(self) -> str:
        return self.message


def _line(connection: socket.socket, longest: int = LONGEST) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        part = connection.recv(65536)
        if not part:
            raise ValueError("connection closed in the middle")
        data += part
        if len(data) > longest:
            raise ValueError("too long")
    return bytes(data)


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for the socket within the 108 bytes of a socket address, however deep the state directory lies."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
