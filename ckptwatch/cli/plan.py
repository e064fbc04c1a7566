"""plan: what would be removed and kept, and why."""

import time
from typing import Annotated

import typer

from ckptwatch.cli.console import console, emit_json
from ckptwatch.cli.context import AsciiOption, ConfigOption, JsonOption, settings_of


def plan(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run: its name or directory; default: all.")] = None,
    config: ConfigOption = None, json: JsonOption = False, ascii_only: AsciiOption = False,
) -> None:
    """Show what would be removed and kept, with reasons and bytes. Changes nothing."""
    from rich.text import Text

    from ckptwatch.commands import find_run
    from ckptwatch.core.amounts import format_bytes, format_step
    from ckptwatch.model import Action
    from ckptwatch.planning import assess
    from ckptwatch.store import runs
    from ckptwatch.store.database import open_reading

    settings = settings_of(config)
    db = open_reading(settings.state_dir)
    found = []
    if db is not None:
        with db.read() as conn:
            wanted = (find_run(conn, run),) if run is not None else runs.all_runs(conn)
            found = [assess(conn, r, settings, now=time.time()) for r in wanted]
        db.close()
    if json:
        emit_json({"version": 1, "runs": [
            {"name": a.run.name, "held": a.plan.held or None, "reclaimed_bytes": a.plan.reclaimed, "decisions": [
                {"path": str(d.checkpoint.path), "step": d.checkpoint.step, "decision": str(d.action),
                 "bytes": d.checkpoint.identity.size, "reasons": list(d.reasons)} for d in a.plan.decisions]}
            for a in found]})
        return
    out = console(ascii_only=ascii_only)
    if not found:
        out.print("no runs are known yet; `ckptwatch run` finds them")
    for a in found:
        removals = a.plan.removals
        out.print(f"{a.run.name}: keep {len(a.plan.decisions) - len(removals)}, remove {len(removals)} "
                  f"({format_bytes(a.plan.reclaimed)} into the trash)", style="bold", no_wrap=True)
        for d in a.plan.decisions:
            remove = d.action is Action.REMOVE
            step = format_step(d.checkpoint.step) if d.checkpoint.step is not None else "?"
            line = Text("  ✗ remove " if remove else "  ✓ keep   ", style="red" if remove else "green")
            size = format_bytes(d.checkpoint.identity.size)
            line.append(f"{d.checkpoint.path.name:<24} {step:>7} {size:>10}  ", "default")
            line.append("; ".join(d.reasons), "default")
            out.print(line, no_wrap=True, overflow="ellipsis")
        if a.plan.held:
            out.print(f"  ▲ waits: {a.plan.held.replace('RUN', a.run.name)}", style="yellow", no_wrap=True)
