"""Alarms to people: what is due goes to the notifier, and is noted down as told."""

from ckptwatch.core.telling import HOUR, Told, messages
from ckptwatch.publish.notify import Notifier
from ckptwatch.settings import NotifyRule
from ckptwatch.store import alarms
from ckptwatch.store.database import Database


class Teller:
    """Decides in the daemon's thread; the notifier sends in its own."""

    def __init__(self, db: Database, rule: NotifyRule, notifier: Notifier | None = None) -> None:
        self._db = db
        self._rule = rule
        self._notifier = notifier or Notifier(rule.to)
        self._sent: list[float] | None = None  # when messages went out, in the last hour

    def tell(self, *, now: float) -> None:
        """Send what is due. Costs nothing where nobody is to be told."""
        if not self._rule.to:
            return
        with self._db.read() as conn:
            known = [Told(run=run, alarm=alarm, told_at=told_at)
                     for run, alarm, told_at in alarms.to_tell(conn, since=now - max(HOUR, self._rule.every))]
        if self._sent is None:  # what went out before a restart counts
            self._sent = sorted({t.told_at for t in known if t.told_at is not None})
        self._sent = [at for at in self._sent if now - HOUR < at <= now]
        for message in messages(known, every=self._rule.every, at_most=self._rule.at_most, sent=self._sent, now=now):
            if not self._notifier.send(message):
                break  # too many wait: they stay due
            self._sent.append(now)
            with self._db.write() as conn:
                alarms.told(conn, message.alarms, now=now)

    def close(self) -> None:
        self._notifier.close()
