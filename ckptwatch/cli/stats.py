"""stats: what a run's losses and metrics came to."""

from typing import TYPE_CHECKING, Annotated

import typer

from ckptwatch.cli.console import console, emit_json
from ckptwatch.cli.context import AsciiOption, ConfigOption, JsonOption, outline_of

if TYPE_CHECKING:
    from pathlib import Path

    from ckptwatch.store.logs import Log


def stats(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run: its name or directory.")],
    config: ConfigOption = None, json: JsonOption = False, ascii_only: AsciiOption = False,
) -> None:
    """Show mean, spread, extremes and last value of every logged loss, the best of every metric, and the alarms."""
    from ckptwatch.commands import find_run
    from ckptwatch.errors import UsageError
    from ckptwatch.publish.stats import as_json, as_text, statistics_of
    from ckptwatch.store import alarms, logs
    from ckptwatch.store.database import open_reading

    state_dir = outline_of(config).state_dir
    db = open_reading(state_dir)
    if db is None:
        raise UsageError("show statistics", "nothing is recorded yet", path=state_dir, hint="start `ckptwatch run` first")
    try:
        with db.read() as conn:
            found = find_run(conn, run)
            statistics = statistics_of(found.name, logs.summaries(conn, found.id), alarms.of_run(conn, found.id))
            read = logs.of_run(conn, found.id)
    finally:
        db.close()
    if json:
        emit_json({**as_json(statistics), "logs": [
            {"path": str(log.path), "dialect": log.dialect, "rows": log.rows, "bad": log.bad, "trouble": log.trouble or None}
            for log in read]})
        return
    out = console(ascii_only=ascii_only)
    lines = as_text(statistics).splitlines()
    if read:
        lines += ["", "Logs", *(f"  {_told(log, found.path)}" for log in read)]
    for line in lines:
        out.print(line, soft_wrap=True, markup=False, highlight=False)


def _told(log: "Log", run: "Path") -> str:
    """"metrics.csv (csv): 1,200 rows, 3 records could not be read: …"."""
    from ckptwatch.store.logs import shown

    text = f"{shown(log.path, run)} ({log.dialect}): {log.rows:,} rows"
    if log.bad:
        text += f", {log.bad:,} records could not be read"
    return f"{text}: {log.trouble}" if log.trouble else text
