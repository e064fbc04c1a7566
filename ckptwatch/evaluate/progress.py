"""Telling the daemon how far an evaluation is, without flooding it."""

import time
from collections.abc import Callable

from ckptwatch.workers.wire import Progress

INTERVAL = 0.2  # seconds between two messages of one stage


class Reporter:
    """Sends Progress for one job: the first and the last of every stage, and at most five a second between."""

    def __init__(
        self, job: str, send: Callable[[Progress], None], *, clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job = job
        self._send = send
        self._clock = clock
        self._stage = ""
        self._sent: tuple[int, int] | None = None
        self._next = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of `stage` ("loading", "sampling" or "scoring", "computing") are finished."""
        now = self._clock()
        fresh = stage != self._stage
        if not fresh and (self._sent == (done, total) or (done < total and now < self._next)):
            return
        self._stage, self._sent, self._next = stage, (done, total), now + INTERVAL
        self._send(Progress(job=self._job, stage=stage, done=done, total=total))
