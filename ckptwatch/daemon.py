"""The daemon: wiring and loop. The only module that knows all rooms, and the only one that reads the clock.

One thread takes messages from one queue: filesystem hints, timer ticks, worker reports, requests from the control socket.
"""

import logging
import os
import queue
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apscheduler.schedulers.background import BackgroundScheduler

from ckptwatch import __version__
from ckptwatch.commands import Commands
from ckptwatch.control import Server
from ckptwatch.errors import CkptwatchError, StateError
from ckptwatch.model import EvaluationState, to_plain
from ckptwatch.settings import NotifyRule, Settings
from ckptwatch.stages.evaluation import EvaluationStage
from ckptwatch.stages.health import HealthStage
from ckptwatch.stages.intake import Intake
from ckptwatch.stages.keeping import KeepingStage
from ckptwatch.stages.logs import LogStage
from ckptwatch.stages.telling import Teller
from ckptwatch.store import evaluations, heartbeat, runs
from ckptwatch.store.database import open_writing
from ckptwatch.watch.observer import Observer
from ckptwatch.workers.supervisor import Died, Said

log = logging.getLogger(__name__)

PULSE = 1.0        # seconds between looks at what falls due: settling files, time limits, retries
LOOK = 2.0         # seconds between looks at the logs of training
GATHER = 0.2       # seconds in which hints about one directory are taken together
HEARTBEAT = 15.0   # seconds between signs of life in the database
ROUND = 15.0       # seconds between looks at what depends on time alone: grace periods, `within`, refused removals


@dataclass(frozen=True)
class Hint:
    root: Path
    directory: Path


@dataclass(frozen=True)
class Tick:
    what: str  # "pulse" or "scan"
    root: Path | None = None


@dataclass(frozen=True)
class Request:
    content: Mapping[str, Any]
    reply: "queue.Queue[Mapping[str, Any]]" = field(default_factory=lambda: queue.Queue(1))


@dataclass(frozen=True)
class Stop:
    why: str


class Daemon:
    """Watches until stopped (`run`) or until everything there is processed (`run_once`)."""

    def __init__(self, settings: Settings, *, dry_run: bool = False) -> None:
        self.settings = settings
        self._dry_run = dry_run
        # A SimpleQueue, because a signal handler puts into it: Queue would wait for a lock its own thread holds.
        self._queue: queue.SimpleQueue[Hint | Tick | Said | Died | Request | Stop] = queue.SimpleQueue()
        self._dirty: set[int] = set()
        self._hints: dict[tuple[Path, Path], float] = {}
        self._scan: set[Path] = set()
        self._last_beat = 0.0
        self._last_round = -ROUND
        self._last_look = -LOOK
        self._to_the_end = False  # nobody writes any more: half a line at the end of a log is a line
        self._observer: Observer | None = None
        self._stop: Stop | None = None
        self._trouble = ""  # why the database cannot be written, if so

    # ---- life ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until SIGTERM, SIGINT or `stop`. Raises StateError if the state directory cannot be used."""
        self._open()
        scheduler = BackgroundScheduler(daemon=True)
        self._observer = observer = Observer(lambda root, directory: self._queue.put(Hint(root, directory)))
        control = Server(self.settings.state_dir, self._ask)
        try:
            self._schedule(scheduler)
            self._scan.update(self._intakes)
            log.info("watching %s", ", ".join(str(r) for r in self._intakes))
            self._loop()
        finally:
            if scheduler.running:
                scheduler.shutdown(wait=False)
            control.close()
            observer.stop()
            self._close(self._stop.why if self._stop else "ended by an error")

    def run_once(self) -> int:
        """Process what is there, then stop. Returns how many evaluations failed and how many roots have a problem."""
        self._open()
        try:
            self._scan.update(self._intakes)
            self._to_the_end = True
            deadline: dict[Path, float] = {}
            while self._stop is None:
                self._work()
                if not self._busy(deadline):
                    break
                self._take(timeout=0.2)
            if self._stop is None:
                self._keeping.end_silent_runs(now=time.time(), at_once=True)
                self._teller.tell(now=time.time())
            with self._db.read() as conn:
                failed = len(evaluations.in_state(conn, EvaluationState.FAILED))
            return failed + sum(bool(intake.problem) for intake in self._intakes.values())
        finally:
            self._close("processed once")

    def stop(self, why: str) -> None:
        """May be called from any thread and from a signal handler."""
        self._queue.put(Stop(why))

    def stop_on_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda n, _: self.stop(f"received {signal.Signals(n).name}"))

    def _open(self) -> None:
        now = time.time()
        self._db = open_writing(self.settings.state_dir)
        try:
            with self._db.write() as conn:
                heartbeat.begin(conn, pid=os.getpid(), version=__version__, now=now)
            self._intakes = {
                rule.root: Intake(self._db, rule, observe_only=self.settings.observe_only,
                                  expected_of=self.settings.outline.expected_of)
                for rule in self.settings.roots
            }
            self._evaluation = EvaluationStage(self._db, self.settings, self._queue.put)
            self._logs = LogStage(self._db, self.settings)
            self._health = HealthStage(self._db, self.settings)
            self._teller = Teller(self._db, NotifyRule() if self._dry_run else self.settings.notify)
            self._keeping = KeepingStage(self._db, self.settings, self._intakes, dry_run=self._dry_run)
            self._commands = Commands(self._db, self.settings, self._keeping, self._intakes, self._dirty.add)
            self._evaluation.recover(now=now)
            for root, intake in self._intakes.items():
                intake.check(now=now)
                self._keeping.recover(root, now=now)  # before the first scan takes a half-done removal for a loss
            self._evaluation.refresh_recipes(now=now)
            self._logs.refresh()
            with self._db.read() as conn:
                self._dirty.update(r.id for r in runs.all_runs(conn))
        except BaseException:
            self._db.close()
            raise

    def _close(self, why: str) -> None:
        now = time.time()
        try:
            self._evaluation.stop(now=now)
            self._health.close()
            self._teller.close()
            self._keeping.close()
            with self._db.write() as conn:
                heartbeat.stop(conn, now=now, last_words=why)
        except StateError as error:
            log.error("%s", error)
        finally:
            self._db.close()
        log.info("stopped: %s", why)

    def _schedule(self, scheduler: BackgroundScheduler) -> None:
        def post(tick: Tick) -> None:
            self._queue.put(tick)

        # It logs every run of a job at INFO; a tick a second is no news.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        scheduler.add_job(post, "interval", seconds=PULSE, args=[Tick("pulse")], coalesce=True, max_instances=1)
        for rule in self.settings.roots:
            scheduler.add_job(post, "interval", seconds=rule.scan_every, args=[Tick("scan", rule.root)], coalesce=True,
                              max_instances=1)
        scheduler.start()

    # ---- the loop ------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while self._stop is None:
            try:
                self._work()
                self._recovered()
            except StateError as error:
                self._degraded(error)
            self._take(timeout=self._pause())

    def _pause(self) -> float:
        """Until the next thing falls due, at most a pulse."""
        if self._trouble:
            return PULSE  # what is due could not be done; do not try again at once
        if self._dirty or self._logs.pending:
            return 0.0
        now, mono = time.time(), time.monotonic()
        due = [d - now for i in self._intakes.values() if (d := i.recheck_at) is not None]
        due += [d - mono for d in self._hints.values()]
        return max(0.0, min([PULSE, *due]))

    def _take(self, *, timeout: float) -> None:
        """Wait for a message, then take all there are."""
        try:
            message = self._queue.get(timeout=timeout)
            while True:
                self._handle(message)
                message = self._queue.get_nowait()
        except queue.Empty:
            pass

    def _handle(self, message: Hint | Tick | Said | Died | Request | Stop) -> None:
        match message:
            case Hint():
                self._hints.setdefault((message.root, message.directory), time.monotonic() + GATHER)
            case Tick(what="scan") if message.root is not None:
                self._scan.add(message.root)
            case Request():
                message.reply.put(self._answer(message.content))
            case Said() | Died():
                self._report(message)
            case Stop():
                self._stop = message

    def _report(self, report: Said | Died) -> None:
        try:
            changed = self._evaluation.handle(report, now=time.time(), mono=time.monotonic())
        except StateError as error:
            # The result is lost with the transaction; a restart, or the time limit, makes the attempt again.
            self._degraded(error)
            return
        if changed is not None:
            self._dirty.add(changed)

    def _work(self) -> None:
        """Everything that is due now, in the order of the data's way."""
        now, mono = time.time(), time.monotonic()
        for root in list(self._scan):
            self._scan.discard(root)
            self._hints = {k: v for k, v in self._hints.items() if k[0] != root}
            self._look_at_root(root, now)
            self._logs.refresh()
            if self._evaluation.refresh_recipes(now=now):
                self._everything_dirty()
        for key in [k for k, due in self._hints.items() if due <= mono]:
            del self._hints[key]
            root, directory = key
            self._dirty |= self._intakes[root].scan(directory, now=now)
        for intake in self._intakes.values():
            if (due := intake.recheck_at) is not None and due <= now:
                self._dirty |= intake.settle(now=now)
        self._logs.changed(self._dirty)
        if mono - self._last_look >= LOOK or self._logs.pending or self._to_the_end:
            self._last_look = mono
            self._dirty |= self._logs.look(mono=time.monotonic, now=now, final=self._to_the_end)
        self._health.changed(self._dirty)
        self._health.logged(self._logs.take_grown())
        self._look_after(now)
        if mono - self._last_round >= ROUND:
            self._last_round = mono
            self._dirty |= self._keeping.purge_due(now=now) | self._keeping.time_dependent()
            self._health.changed(self._keeping.end_silent_runs(now=now))
            self._teller.tell(now=now)
        while self._dirty and self._stop is None:
            self._process(self._dirty.pop(), now)
        self._dirty |= self._keeping.more()
        self._evaluation.enforce_limits(mono=mono)
        self._evaluation.dispatch(now=now, mono=mono)
        if mono - self._last_beat >= HEARTBEAT:
            self._last_beat = mono
            with self._db.write() as conn:
                heartbeat.beat(conn, now=now)

    def _look_after(self, now: float) -> None:
        """Is training well?"""
        self._health.scan_weights(now=now)
        for news in self._health.look(mono=time.monotonic, now=now, at_once=self._to_the_end):
            self._keeping.draw_alarms(news)

    def _look_at_root(self, root: Path, now: float) -> None:
        intake = self._intakes[root]
        intake.check(now=now)
        if self._observer is not None:
            # Subscribe first, scan second: nothing falls in between. A root that is gone takes its watch along.
            if intake.problem:
                self._observer.unwatch(root)
            else:
                self._observer.watch(root)
        self._dirty |= intake.scan(root, now=now)

    def _process(self, run_id: int, now: float) -> None:
        try:
            self._keeping.process(run_id, now=now)
        except CkptwatchError:
            raise
        except Exception:  # a fault with one run must not end the care for the others
            log.exception("run %d could not be processed; nothing is removed from it", run_id)

    def _everything_dirty(self) -> None:
        with self._db.read() as conn:
            self._dirty.update(r.id for r in runs.all_runs(conn))

    def _busy(self, deadline: dict[Path, float]) -> bool:
        """For --once: is there still something to wait for? A file that is written without end is given up."""
        if self._scan or self._dirty or self._logs.pending or self._health.pending:
            return True
        if any(w.job for w in self._evaluation.pool.workers):
            return True
        with self._db.read() as conn:
            stands = heartbeat.recipe_stands(conn)
            if any(r.recipe in stands and not stands[r.recipe].problem for r in evaluations.waiting(conn)):
                return bool(self._evaluation.pool.workers)
        for root, intake in self._intakes.items():
            quiet = intake.rule.quiet
            if intake.writing and not deadline:
                log.info("waiting for %d files to settle: each must be unchanged for %g s", len(intake.writing), quiet)
            for path in intake.writing:
                if time.monotonic() < deadline.setdefault(path, time.monotonic() + 4 * quiet + 5):
                    return True
            if intake.writing:
                log.warning("%s: given up waiting for %d files that are still being written", root, len(intake.writing))
        return False

    # ---- trouble with the database -------------------------------------------------------------------------------

    def _degraded(self, error: StateError) -> None:
        if self._trouble != str(error):
            log.error("%s; watching goes on, nothing is removed until it can be recorded", error)
        self._trouble = str(error)
        self._everything_later()

    def _everything_later(self) -> None:
        self._scan.update(self._intakes)  # what could not be recorded is found again
        for intake in self._intakes.values():
            intake.start_over()

    def _recovered(self) -> None:
        if self._trouble:
            log.info("the database can be written again")
            self._trouble = ""

    # ---- requests ------------------------------------------------------------------------------------------------

    def _ask(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """In the client's thread: hand the request to the main loop and wait for its answer."""
        request = Request(content)
        self._queue.put(request)
        try:
            return request.reply.get(timeout=55)
        except queue.Empty:
            return {"ok": False, "error": "the daemon is busy and did not answer within 55 s; try again"}

    def _answer(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            if content.get("command") == "live":
                return {"ok": True, **self.live()}
            return {"ok": True, **self._commands.handle(content, now=time.time())}
        except CkptwatchError as error:
            return {"ok": False, "error": str(error)}
        except KeyError as error:
            return {"ok": False, "error": f"the request lacks {error}"}
        except Exception as error:  # a request must not end the daemon
            log.exception("request failed")
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    def live(self) -> dict[str, Any]:
        """What only the running daemon knows."""
        mono = time.monotonic()
        return {
            "pid": os.getpid(),
            "trouble": self._trouble,
            "writing": {str(p): why for i in self._intakes.values() for p, why in i.writing.items()},
            "alias_problems": {str(k): v for k, v in self._keeping.alias_problems.items()},
            "workers": [
                {
                    "id": w.id, "device": w.device, "state": str(w.state), "seconds": mono - w.since,
                    "checkpoint": str(w.job.checkpoint) if w.job else None, "run": w.job.run if w.job else None,
                    "step": w.job.step if w.job else None, "variant": w.job.variant if w.job else None,
                    "progress": to_plain(w.progress) if w.progress else None,
                }
                for w in self._evaluation.pool.workers
            ],
        }


def run_commands(settings: Settings, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Carry out one request without a daemon: take the lock and do it; after an approval, bring the run in order.

    Raises StateError if a daemon holds the lock, CkptwatchError if the request cannot be followed.
    """
    db = open_writing(settings.state_dir)
    try:
        now = time.time()
        dirty: set[int] = set()
        intakes = {r.root: Intake(db, r, expected_of=settings.outline.expected_of) for r in settings.roots}
        keeping = KeepingStage(db, settings, intakes)
        for root, intake in intakes.items():
            intake.check(now=now)
            keeping.recover(root, now=now)
        reply = Commands(db, settings, keeping, intakes, dirty.add).handle(content, now=now)
        # Only an approval asks for removals. Somebody who pins must not set off a plan that no daemon was started for.
        for run_id in dirty if content.get("command") == "approve" else ():
            while keeping.process(run_id, now=now) and keeping.more():
                pass
        keeping.close()
        return reply
    finally:
        db.close()

