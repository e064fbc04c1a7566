"""status: the first line answers "is anything wrong?", every problem carries its fix, every row answers one question."""

import gc
import itertools
import textwrap
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptwatch.cli.console import console, emit_json
from ckptwatch.cli.context import AsciiOption, ConfigOption, JsonOption, outline_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rich.console import Console
    from rich.text import Text

    from ckptwatch.settings import Settings
    from ckptwatch.status import Alert, Status
    from ckptwatch.store.overview import RunOverview

IN_FULL = 6       # runs shown with all their rows; more become one line each
LISTED = 20       # lines of runs; the rest is counted
PAST = 0.25       # part of the shown range lost since the best, above which a run is past it
ALERTS = 8        # alerts written out; the rest is counted
_LOOK = {"OK": ("✓", "green"), "BUSY": ("●", "cyan"), "WARN": ("▲", "yellow"), "FAIL": ("✗", "red"), "DOWN": ("✗", "red")}
_FOR_SCRIPTS = ("kind", "subject", "numbers")  # of an alert: its message says it in words
_CHECK = {"OK": 0, "BUSY": 0, "WARN": 10, "FAIL": 11, "DOWN": 12}


def status(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run: its name or directory; default: all.")] = None,
    config: ConfigOption = None, json: JsonOption = False, ascii_only: AsciiOption = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 0 ok, 10 warning, 11 failing, 12 daemon down.")] = False,
    watch: Annotated[float | None, typer.Option("--watch", metavar="SECONDS", min=0.2, help="Repeat until Ctrl-C.")] = None,
) -> None:
    """Show daemon, workers, queue, runs, best, disk and alerts. Works with the daemon down."""
    if watch is None:
        gc.disable()  # nothing that is made from here on is garbage before the process ends
    try:
        found = _report(run, config, json=json, ascii_only=ascii_only, watch=watch)
    finally:
        gc.enable()
    if check:
        raise typer.Exit(_CHECK[str(found.level)])


def _report(run: str | None, config: "Path | None", *, json: bool, ascii_only: bool, watch: float | None) -> "Status":
    """Once, or with `watch` again and again. Returns what was shown."""
    from ckptwatch.status import as_json, gather

    outline = outline_of(config)
    while True:
        found = gather(outline, run=run, now=time.time())
        if json:
            emit_json(as_json(found))
        else:
            out = console(ascii_only=ascii_only)
            if watch is not None and out.is_terminal:
                out.clear()
            show(found, lambda: settings_of(config), out, one=run is not None)
        if watch is None:
            return found
        time.sleep(watch)


def show(s: "Status", settings: "Callable[[], Settings]", out: "Console", *, one: bool = False) -> None:
    """Print a status. `settings` is asked only where runs are shown in full: their plan follows from it."""
    _line(out, _headline(s))
    alerts = _together(s.alerts)
    for alert, others in alerts[:ALERTS]:
        _alert(out, alert, others)
    if len(alerts) > ALERTS:
        _line(out, f"  ! {len(alerts) - ALERTS} more: ckptwatch status --json", "yellow")
    if s.daemon != "running" and s.beat is not None:
        _line(out, "      start  ckptwatch run -c CONFIG, or systemctl start ckptwatch; nothing is pruned while it is down")
    for worker in s.live.get("workers", ()):
        if worker.get("checkpoint"):
            _line(out, _at_work(worker), "cyan")
    for path, reason in list(s.live.get("writing", {}).items())[:3]:
        _line(out, f"  settling  {path.rsplit('/', 1)[-1]}: {reason}", "dim")
    if not s.runs:
        roots = ", ".join(str(r) for r in s.roots)
        _line(out, f"no runs yet below {roots}" if roots else "no runs yet")
    alarmed = {a.run for a in s.alerts}
    shown = sorted(s.runs, key=lambda r: (r.name not in alarmed, -r.newest_at))
    if len(shown) <= IN_FULL or one:
        _all_in_full(s, sorted(shown, key=lambda r: r.name), settings, out)
        return
    for r in shown[:LISTED]:
        _line(out, _in_one_line(s, r))
    if len(shown) > LISTED:
        _line(out, f"… and {len(shown) - LISTED} more runs: ckptwatch status RUN, or --json", "dim")


def _line(out: "Console", text: "str | Text", style: str | None = None) -> None:
    out.print(text, style=style, no_wrap=True, overflow="ellipsis")


def _headline(s: "Status") -> "Text":
    from rich.text import Text

    from ckptwatch.core.amounts import format_bytes, format_duration

    symbol, colour = _LOOK[str(s.level)]
    text = Text(f"{symbol} {s.level}", style=f"bold {colour}")
    parts = [s.host, _daemon_words(s)]
    if s.daemon == "running" and s.scanned_at is not None:
        parts.append(f"scan {format_duration(round(max(0.0, s.now - s.scanned_at)))} ago")
    parts.append(f"{len(s.runs)} run{'' if len(s.runs) == 1 else 's'}")
    busy = sum(bool(w.get("checkpoint")) for w in s.live.get("workers", ()))
    if s.live.get("workers"):
        parts.append(f"{busy} evaluating" if busy else "worker idle")
    if failed := s.queue.get("failed"):
        parts.append(f"{failed} failed")
    parts += [f"disk {format_bytes(d.free)} free" for d in s.disks[:2]]
    text.append("  " + " · ".join(parts), "default")
    return text


def _daemon_words(s: "Status") -> str:
    from ckptwatch.core.amounts import format_duration

    if s.daemon == "running":
        return f"daemon up {format_duration(s.now - s.beat.since)}" if s.beat else "daemon up"
    if s.beat is None:
        return "daemon has never run"
    if s.daemon == "stopped":
        return f"daemon stopped {format_duration(s.now - (s.beat.stopped_at or s.now))} ago ({s.beat.last_words})"
    return f"daemon not running, last sign of life {format_duration(s.now - s.beat.heartbeat)} ago (pid {s.beat.pid} gone)"


def _together(alerts: "Sequence[Alert]") -> "list[tuple[Alert, list[str]]]":
    """Each alert with the other names of its run of which the same is to be said: one NaN spoils every term of a loss."""
    found: dict[Any, tuple[Alert, list[str]]] = {}
    for alert in alerts:
        kind = alert.details.get("kind")
        key = (alert.run, kind) if kind else id(alert)
        if key in found:
            found[key][1].append(str(alert.details["subject"]))
        else:
            found[key] = (alert, [])
    return list(found.values())


def _alert(out: "Console", alert: "Alert", others: "Sequence[str]" = ()) -> None:
    style = "red" if str(alert.level) == "FAIL" else "yellow"
    message, *rest = alert.message.split("\n")
    if others:
        message += f"; the same of {', '.join(others[:4])}" + (f" and {len(others) - 4} more" if len(others) > 4 else "")
    # The one thing that may wrap: an error cut off at the edge helps nobody.
    _folded(out, f"  ! {message}", indent=4, style=style)
    for line in rest:
        out.print(f"    {line.strip()}", style=style)
    for name, value in alert.details.items():
        if name not in _FOR_SCRIPTS:
            label = name.replace("_", " ")
            _folded(out, f"      {label:<6} {value}", indent=7 + max(6, len(label)))
    if alert.fix:
        _line(out, f"      fix    {alert.fix}")


def _folded(out: "Console", text: str, *, indent: int, style: str = "") -> None:
    """Between words only, so that a path can be copied as it is."""
    lines = textwrap.wrap(text, out.width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    for line in lines:
        out.print(line, style=style, soft_wrap=True)


def _at_work(worker: "dict[str, Any]") -> str:
    from ckptwatch.core.amounts import format_duration, format_step

    name = f"{worker['run']}@{format_step(worker['step'])}" if worker["step"] is not None else worker["checkpoint"]
    if worker.get("variant"):
        name += f" [{worker['variant']}]"
    progress = worker.get("progress")
    text = f"  queue  {name} on {worker['device']} {format_duration(worker['seconds'])}"
    if progress and progress["total"]:
        part = progress["done"] / progress["total"]
        text += f", {progress['stage']} {part:.0%} {progress['done']}/{progress['total']}"
    return text


def _in_one_line(s: "Status", r: "RunOverview") -> "Text":
    from rich.text import Text

    from ckptwatch.core.amounts import format_bytes, format_duration

    alarmed = any(a.run == r.name for a in s.alerts)
    text = Text("▲ " if alarmed else "  ", style="yellow")
    best = f"{r.best_metric} {r.best_value:.4g} @{_step(r.best)}" if r.best and r.best_value is not None else "no best yet"
    text.append(f"{r.name:<30} step {_step(r.last):>7}  {format_duration(max(0.0, s.now - r.newest_at)):>6} ago  "
                f"{best:<28} {r.counts.get('complete', 0):>4} ckpts {format_bytes(r.bytes):>10}", "default")
    return text


def _step(named: Any) -> str:
    from ckptwatch.core.amounts import format_step

    if named is None:
        return "?"
    if named.step is not None:
        return format_step(named.step)
    return f"epoch {named.epoch}" if named.epoch is not None else named.path.rpartition("/")[2]


def _all_in_full(s: "Status", shown: "list[RunOverview]", settings: "Callable[[], Settings]", out: "Console") -> None:
    from ckptwatch.errors import ConfigError

    try:
        known = settings() if shown else None
    except ConfigError as error:
        out.print(f"  ! {error}", style="yellow")
        for r in shown:
            _line(out, _in_one_line(s, r))
        return
    for r in shown:
        assert known is not None
        if any(r.counts.get(state) for state in ("complete", "incomplete", "trashed")):
            _in_full(s, r, known, out)
        else:
            _line(out, f"\n{r.name} · no checkpoints left")


# ---- one run in full ------------------------------------------------------------------------------------------------


def _in_full(s: "Status", r: "RunOverview", settings: "Settings", out: "Console") -> None:
    from ckptwatch.planning import assess
    from ckptwatch.store import runs
    from ckptwatch.store.database import open_reading

    db = open_reading(settings.state_dir)
    assert db is not None
    with db.read() as conn:
        a = assess(conn, runs.run(conn, r.id), settings, now=s.now)
    db.close()
    out.print()
    _line(out, _title(s, r, a), "bold")
    for label, text, right in (_best(a), _trend(a), _losses(a), _queue(a), _keep(r, a), _trash(s, r), _next(r, a)):
        if text:
            _row(out, label, text, right)


def _row(out: "Console", label: str, text: str, right: str) -> None:
    room = out.width - 9
    column = max(56, len(text) + 2)  # the right-hand part stands in line where there is room for it
    if right and column + len(right) <= room:
        text = f"{text:<{column}}{right}"
    elif right and len(text) + 2 + len(right) <= room:
        text = f"{text}  {right}"
    _line(out, f"  {label:<6} {text}")


def _title(s: "Status", r: "RunOverview", a: Any) -> str:
    from ckptwatch.core.amounts import format_duration

    saved = a.last.identity.mtime_ns / 1e9 if a.last is not None else r.newest_at  # it may have been found long after
    ago = f", {format_duration(max(0.0, s.now - saved))} ago"
    times = sorted(c.identity.mtime_ns / 1e9 for c in a.checkpoints.values())
    gaps = sorted(b - x for x, b in itertools.pairwise(times))
    every = f" (every {format_duration(gaps[len(gaps) // 2])})" if len(gaps) > 1 and gaps[len(gaps) // 2] >= 1 else ""
    return f"{r.name} · step {_step(r.last)}{ago}{every}" + (" · ended" if r.ended_at else "")


def _best(a: Any) -> tuple[str, str, str]:
    if a.ranking is None or not a.ranking.places:
        unranked = len(a.ranking.unranked) if a.ranking else 0
        where = f"why: ckptwatch rank {a.run.name}" if unranked else ""
        return "best", f"none yet ({unranked} unranked)" if a.ranking else "", where
    parts = [f"{a.ranking.metric} {_value(a.ranking.places[0])}"]
    parts += [f"#{p.rank} {p.score.value:.4g} @{_place_step(p)}" for p in a.ranking.places[1:3]]
    places = a.ranking.places
    tie = "#1 and #2 tie within error" if len(places) > 1 and "tie within error" in places[1].reason else ""
    waits = ("evaluation pending", "evaluation running")  # these will have a rank; the others need a look
    without = [u for u in a.ranking.unranked if not any(w in u.reason for w in waits)]
    if without:
        tie = tie or f"{len(without)} unranked: ckptwatch rank {a.run.name}"
    return "best", "   ".join(parts), tie


def _value(place: Any) -> str:
    score = place.score
    error = f" ±{(score.high - score.low) / 2:.2g}" if score.low is not None and score.high is not None else ""
    variant = f" [{place.contender.variant}]" if place.contender.variant else ""
    return f"{score.value:.4g}{error} @{_place_step(place)}{variant}"


def _place_step(place: Any) -> str:
    from ckptwatch.core.amounts import format_step

    c = place.contender
    return format_step(c.step) if c.step is not None else f"epoch {c.epoch}" if c.epoch is not None else c.path.name


def _trend(a: Any) -> tuple[str, str, str]:
    places = sorted(a.ranking.places, key=lambda p: a.checkpoints[p.contender.checkpoint_id].order) if a.ranking else []
    first = a.ranking.places[0].contender.variant if places else ""
    values = [p.score.value for p in places if p.contender.variant == first][-10:]
    if len(values) < 3:
        return "trend", "", ""
    low, high = min(values), max(values)
    bars = "".join("▁▂▃▄▅▆▇█"[int((v - low) / (high - low) * 7) if high > low else 0] for v in values)
    best = low if str(a.ranking.mode) == "min" else high
    lost = abs(values[-1] - best) / (high - low) if high > low else 0.0
    word = "flat" if high == low else "improving" if lost == 0 else "past its best" if lost > PAST else "near its best"
    return "trend", f"{bars}  {values[-1] - values[0]:+.3g} over last {len(values)}", word


def _losses(a: Any) -> tuple[str, str, str]:
    """Every term of the loss that training logged for its newest checkpoint."""
    logged = {n: s for n, s in a.last.logged.items() if "loss" in n.lower()} if a.last is not None else {}
    if not logged:
        return "loss", "", ""
    shown = sorted(logged, key=lambda name: (len(name), name))[:4]  # the total has the shortest name
    told = "   ".join(f"{name} {logged[name].value:.4g}" for name in shown)
    more = f"   {len(logged) - len(shown)} more" if len(logged) > len(shown) else ""
    return "loss", told + more, f"ckptwatch stats {a.run.name}"


def _queue(a: Any) -> tuple[str, str, str]:
    from ckptwatch.core.amounts import format_duration

    counts: dict[str, int] = {}
    for e in a.evaluations:
        counts[str(e.state)] = counts.get(str(e.state), 0) + 1
    if not counts:
        return "queue", "", ""
    seconds = sorted(e.seconds for e in a.evaluations if e.seconds is not None)
    now = [f"{counts[k]} {w}" for k, w in (("running", "running"), ("pending", "waiting")) if counts.get(k)]
    text = f"{', '.join(now) or 'idle'}; {counts.get('done', 0)} evaluated, {counts.get('failed', 0)} failed"
    return "queue", text + (f", median {format_duration(seconds[len(seconds) // 2])}" if seconds else ""), ""


def _keep(r: "RunOverview", a: Any) -> tuple[str, str, str]:
    from ckptwatch.core.amounts import format_bytes
    from ckptwatch.model import Action

    kept = [d for d in a.plan.decisions if d.action is Action.KEEP]
    if a.rule.keep is None:
        return "keep", f"{len(kept)} ckpts {format_bytes(r.bytes)}: everything, no keep rule", ""
    words: dict[str, int] = {}
    for d in kept:
        words[_why(d.reasons)] = words.get(_why(d.reasons), 0) + 1
    told = ", ".join(f"{count} {word}" for word, count in words.items())
    return "keep", f"{len(kept)} ckpts {format_bytes(r.bytes)}: {told}", ""


def _why(reasons: "tuple[str, ...]") -> str:
    """One word for the strongest reason."""
    text = " ".join(reasons)
    for needle, word in (("pinned", "pinned"), ("keep best", "best"), ("milestone", "milestone"), ("newest", "last"),
                         ("last", "last"), ("pending", "waiting"), ("running", "evaluating"), ("unranked", "unranked"),
                         ("younger", "recent"), ("incomplete", "incomplete")):
        if needle in text:
            return word
    return "protected"


def _trash(s: "Status", r: "RunOverview") -> tuple[str, str, str]:
    from ckptwatch.core.amounts import format_bytes, format_duration

    count = r.counts.get("trashed", 0)
    if not count:
        return "trash", "", ""
    purge = s.purges.get(r.id)
    when = f", first purge in {format_duration(max(0.0, purge - s.now))}" if purge is not None else ""
    return "trash", f"{count} ckpts {format_bytes(r.trash_bytes)}{when}", "ckptwatch trash"


def _next(r: "RunOverview", a: Any) -> tuple[str, str, str]:
    from ckptwatch.core.amounts import format_bytes

    removals = a.plan.removals
    if not removals:
        return "next", "", ""
    text = f"plan would remove {len(removals)} ({format_bytes(a.plan.reclaimed)})"
    return "next", text + (", waits for approval" if a.plan.held else ""), f"ckptwatch plan {r.name}"
