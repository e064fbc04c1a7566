"""Notifications through Apprise: to anything it knows by a URL (mail, Slack, Discord, Telegram, webhooks, …).

A thread of its own sends them, from a queue that is bounded, so a slow or dead endpoint never holds up the daemon. URLs hold
passwords: they are shown and logged only masked, and what a configuration need not hold can come from the environment.
"""

import contextlib
import logging
import os
import queue
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckptwatch.core.telling import Message

QUEUE = 100                  # messages that wait
BACKOFF = (2.0, 10.0, 60.0)  # seconds before each further attempt
PATIENCE = 5.0               # seconds that `close` waits for what is on its way
_ENVIRONMENT = re.compile(r"env:([A-Za-z_]\w*)", re.ASCII)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}://", re.ASCII)
_TALKATIVE = ("apprise", "urllib3", "requests_oauthlib", "oauthlib")  # what these log holds whole URLs, tokens in paths too
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One place messages go to."""

    shown: str     # masked, fit for logs and screens
    service: Any   # apprise.NotifyBase


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Since the notifier was made; each message counts once for each endpoint."""

    sent: int = 0
    failed: int = 0   # given up
    dropped: int = 0  # messages that found the queue full


def resolved(entry: str, environ: Mapping[str, str]) -> str:
    """The URL of an entry of `notify`: itself, or for `env:NAME` what that environment variable holds.

    Raises ValueError if the variable is not set.
    """
    match = _ENVIRONMENT.fullmatch(entry.strip())
    if match is None:
        return entry.strip()
    url = environ.get(match[1], "").strip()
    if not url:
        raise ValueError(f"the environment variable {match[1]} is not set")
    return url


def form_problem(entry: str) -> str | None:
    """What is wrong with the form of an entry. Looks neither at the environment nor at Apprise, which is slow to load."""
    text = entry.strip()
    if text.startswith("env:"):
        return None if _ENVIRONMENT.fullmatch(text) else "after env: comes the name of an environment variable"
    return None if _SCHEME.match(text) else "no Apprise URL: it begins with SCHEME://, such as slack://, mailto://, json://"


def endpoints_of(
    entries: Sequence[str], environ: Mapping[str, str] | None = None,
) -> tuple[list[Endpoint], list[str]]:
    """What can be sent to, and a problem in words, without secrets, for each entry that cannot."""
    known = os.environ if environ is None else environ
    found: list[Endpoint] = []
    problems = []
    for i, entry in enumerate(entries):
        try:
            found.append(_endpoint(resolved(entry, known)))
        except ValueError as problem:
            problems.append(f"notify[{i}]: {problem}")
    return found, problems


def _endpoint(url: str) -> Endpoint:
    apprise = _apprise()
    service = apprise.Apprise.instantiate(url, suppress_exceptions=True)
    if service is None:
        scheme = _SCHEME.match(url)
        beginning = f"{scheme[0]}…" if scheme else "it"
        raise ValueError(f"{beginning} is no URL that Apprise understands: see https://github.com/caronc/apprise/wiki")
    return Endpoint(shown=_masked(service), service=service)


def _apprise() -> Any:
    import apprise

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return apprise


def _masked(service: Any) -> str:
    """Scheme and host, or what stands in its place; a path may be a token."""
    scheme, _, rest = str(service.url(privacy=True)).partition("://")
    host, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")[::2]
    return f"{scheme}://{host}/…" if path else f"{scheme}://{host}"


def deliver(endpoint: Endpoint, message: Message) -> bool:
    """Send one message, now. False if the service refused it or could not be reached; never raises."""
    try:
        collected = _apprise().Apprise()
        collected.add(endpoint.service)
        return bool(collected.notify(title=message.title, body=message.body, notify_type=message.level))
    except Exception as error:  # a plugin of Apprise may raise anything
        _log.warning("notification to %s failed: %s", endpoint.shown, type(error).__name__)
        return False


class Notifier:
    """Sends messages in a thread of its own; `send` never waits."""

    def __init__(
        self, entries: Sequence[str], *, environ: Mapping[str, str] | None = None, backoff: Sequence[float] = BACKOFF,
        room: int = QUEUE,
    ) -> None:
        self._entries, self._environ, self._backoff = tuple(entries), environ, tuple(backoff)
        self._queue: queue.Queue[Message | None] = queue.Queue(room)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._counts = Counts()
        self._thread: threading.Thread | None = None

    @property
    def counts(self) -> Counts:
        with self._lock:
            return self._counts

    def send(self, message: Message) -> bool:
        """Have a message sent to every endpoint. False if too many wait, then it is dropped and counted.

        It returns at once and never raises; what becomes of it is logged and counted.
        """
        if not self._entries or self._stopping.is_set():
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="notifications", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self._count(dropped=1)
            _log.warning("notification dropped, %d wait already: %s", self._queue.maxsize, message.title)
            return False
        return True

    def close(self, timeout: float = PATIENCE) -> None:
        """Send what waits, as far as `timeout` seconds allow, with no second attempts."""
        self._stopping.set()
        if self._thread is None:
            return
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        endpoints, problems = endpoints_of(self._entries, self._environ)
        for problem in problems:
            _log.warning("no notifications there: %s", problem)
        while True:
            try:
                message = self._queue.get(timeout=0.2 if self._stopping.is_set() else None)
            except queue.Empty:
                return
            if message is None:
                return
            self._spread(message, endpoints)

    def _spread(self, message: Message, endpoints: Sequence[Endpoint]) -> None:
        """To all; those that failed again after each wait, so that a dead one does not hold up the others' first try."""
        left = [e for e in endpoints if not self._tried(e, message)]
        for seconds in self._backoff:
            if not left or self._stopping.wait(seconds):
                break
            left = [e for e in left if not self._tried(e, message)]
        for endpoint in left:
            self._count(failed=1)
            _log.warning("notification to %s failed and is given up: %s", endpoint.shown, message.title)

    def _tried(self, endpoint: Endpoint, message: Message) -> bool:
        arrived = deliver(endpoint, message)
        if arrived:
            self._count(sent=1)
        return arrived

    def _count(self, *, sent: int = 0, failed: int = 0, dropped: int = 0) -> None:
        with self._lock:
            c = self._counts
            self._counts = Counts(sent=c.sent + sent, failed=c.failed + failed, dropped=c.dropped + dropped)
