"""Is a checkpoint finished being written? One of three proofs; the others are a rename into place and its format."""

from dataclasses import dataclass

from ckptwatch.core.amounts import format_duration

# Without a lease a writer that pauses cannot be told from one that is done, so the pause has to be longer.
WITHOUT_LEASE = 4.0
WHILE_OPEN = 1.0  # seconds between looks at a file somebody writes
SOONEST = 0.01    # seconds; no answer is ever "ask again at once"


@dataclass(frozen=True, kw_only=True)
class Settling:
    settled: bool
    reason: str                # in words
    recheck_at: float | None   # when the answer may differ; None once settled


def settle(
    *, changed_at: float, first_seen_unchanged: float, now: float, quiet: float, writer: bool | None
) -> Settling:
    """Settled if nobody has it open for writing and it has not changed for the quiet time.

    `changed_at` is the latest mtime or ctime of its files; `first_seen_unchanged` is when we first saw it as it is now,
    by our own clock: it counts where the file's time lies in the future (clock skew), which would otherwise never pass.
    `writer` is None where the file system has no leases. A step back of our own clock only makes it wait longer.
    """
    if writer:
        return Settling(settled=False, reason="open for writing", recheck_at=now + max(quiet, WHILE_OPEN))
    wait = quiet if writer is False else quiet * WITHOUT_LEASE
    skewed = changed_at > now
    since = min(first_seen_unchanged if skewed else changed_at, now)
    known = "no writer" if writer is False else "file system has no leases"
    by = ", by our clock: its own time lies in the future" if skewed else ""
    state = f"{known}, unchanged for {format_duration(now - since)}{by}"
    if now - since >= wait:
        return Settling(settled=True, reason=state, recheck_at=None)
    needed = f"{state}; needs {format_duration(wait)}"
    return Settling(settled=False, reason=needed, recheck_at=max(since + wait, now + SOONEST))
