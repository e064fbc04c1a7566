"""Filesystem events as hints: which directory changed. Losing one costs nothing but time, the scan finds it."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer as WatchdogObserver
from watchdog.observers.api import ObservedWatch

from ckptwatch.watch.scanner import OURS

log = logging.getLogger(__name__)

# Without a filter each write of a checkpoint is an event of its own, and the queue overflows.
EVENTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent, FileClosedEvent, FileMovedEvent, FileDeletedEvent, DirCreatedEvent, DirMovedEvent, DirDeletedEvent,
]


class Observer:
    """Watches roots and calls `hint(root, directory)` from its own thread for each directory that changed."""

    def __init__(self, hint: Callable[[Path, Path], None]) -> None:
        self._hint = hint
        self._observer = WatchdogObserver()
        self._started = False
        self._watches: dict[Path, ObservedWatch | None] = {}

    def watch(self, root: Path) -> str:
        """Start watching a root, unless it is watched already or events cannot be had there, which is returned in words;
        the periodic scan goes on regardless."""
        if root in self._watches:
            return ""
        self._watches[root] = None
        if not self._started:
            self._observer.start()
            self._started = True
        try:
            self._watches[root] = self._observer.schedule(
                _Handler(root, self._hint), str(root), recursive=True, event_filter=EVENTS)
        except OSError as error:
            problem = f"no filesystem events for {root}: {error.strerror or error}; found by scan only"
            log.warning(problem)
            return problem
        return ""

    def unwatch(self, root: Path) -> None:
        """The root is gone or not the right one; `watch` may be called for it again."""
        if (watch := self._watches.pop(root, None)) is not None:
            with contextlib.suppress(KeyError, OSError):  # its emitter may have ended with the directory
                self._observer.unschedule(watch)

    def stop(self) -> None:
        if self._started:
            self._observer.stop()
            self._observer.join()


class _Handler(FileSystemEventHandler):
    def __init__(self, root: Path, hint: Callable[[Path, Path], None]) -> None:
        self._root = root
        self._hint = hint

    def on_any_event(self, event: FileSystemEvent) -> None:
        for raw in (event.src_path, event.dest_path):
            if raw:
                path = Path(raw if isinstance(raw, str) else raw.decode(errors="surrogateescape"))
                if OURS not in path.parts and path != self._root:  # the root's own parent is not ours to look at
                    self._hint(self._root, path.parent)
                    if event.is_directory and path.is_dir():
                        self._hint(self._root, path)  # another one may have been moved here under a known name
