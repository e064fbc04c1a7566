"""trash: what waits there, until when; or empty it now."""

import time
from pathlib import Path
from typing import Annotated

import typer

from ckptwatch.cli.console import console, emit_json
from ckptwatch.cli.context import AsciiOption, ConfigOption, JsonOption, act, settings_of


def trash(
    config: ConfigOption = None,
    purge: Annotated[bool, typer.Option("--purge", help="Remove everything in the trash for good, now.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before purging.")] = False,
    json: JsonOption = False, ascii_only: AsciiOption = False,
) -> None:
    """List what can be restored and until when; `--purge` frees its space now."""
    if purge:
        _purge(config, yes, json)
        return
    from ckptwatch.commands import trash_entries
    from ckptwatch.core.amounts import format_bytes, format_duration, format_step
    from ckptwatch.store.database import open_reading

    db = open_reading(settings_of(config).state_dir)
    entries = ()
    if db is not None:
        with db.read() as conn:
            entries = trash_entries(conn)
        db.close()
    if json:
        emit_json({"version": 1, "bytes": sum(e.bytes for e in entries), "entries": [
            {"path": str(e.original), "run": e.run, "step": e.step, "trash": str(e.trash), "bytes": e.bytes, "at": e.at,
             "purge_at": e.purge_at, "reason": e.reason} for e in entries]})
        return
    out = console(ascii_only=ascii_only)
    if not entries:
        out.print("trash is empty")
        return
    out.print(f"{len(entries)} checkpoints, {format_bytes(sum(e.bytes for e in entries))}; frees nothing until purged")
    now = time.time()
    for e in entries:
        name = f"{e.run}@{format_step(e.step)}" if e.step is not None else str(e.original)
        left = f"purged in {format_duration(max(0.0, e.purge_at - now))}"
        out.print(f"  {name:<28} {format_bytes(e.bytes):>10}  {left:<18} {e.reason}", no_wrap=True, overflow="ellipsis")
    first = entries[0]
    name = f"{first.run}@{format_step(first.step)}" if first.step is not None else str(first.original)
    out.print(f"bring one back:  ckptwatch restore {name}", no_wrap=True)


def _purge(config: Path | None, yes: bool, json: bool) -> None:
    import sys

    from ckptwatch.core.amounts import format_bytes
    from ckptwatch.errors import UsageError

    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("purge the trash", "not confirmed", hint="add --yes; what is purged cannot be brought back")
        typer.confirm("Remove everything in the trash for good?", abort=True)
    reply = act(config, "purge")
    if json:
        emit_json(dict(reply))
    else:
        print(f"purged {reply['purged']} checkpoints, {format_bytes(reply['bytes'])} freed")
    for problem in reply["problems"]:
        print(problem, file=sys.stderr)
    if reply["problems"]:
        raise typer.Exit(3)
