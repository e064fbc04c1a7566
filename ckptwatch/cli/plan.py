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
    from ckptwatch.core.amounts import format_bytes
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
        widest = min(40, max((len(d.checkpoint.path.name) for d in a.plan.decisions), default=0))
        for d in a.plan.decisions:
            remove = d.action is Action.REMOVE
            line = Text("  ✗ remove " if remove else "  ✓ keep   ", style="red" if remove else "green")
            line.append(f"{d.checkpoint.path.name:<{widest}} {format_bytes(d.checkpoint.identity.size):>10}  ", "default")
            # A reason that cannot be read is none: they go on in further lines, in their column, where they do not fit.
            for part in _fitted(d.reasons, out.width - len(line)):
                out.print(line + Text(part, "default"), no_wrap=True, overflow="ellipsis")
                line = Text(" " * len(line))
        if a.plan.held:
            out.print(f"  ▲ waits: {a.plan.held.replace('RUN', a.run.name)}", style="yellow", no_wrap=True)


def _fitted(reasons: tuple[str, ...], room: int) -> list[str]:
    """The reasons in as few lines as they fit in."""
    lines = [reasons[0]]
    for reason in reasons[1:]:
        if len(lines[-1]) + 2 + len(reason) <= room:
            lines[-1] += f"; {reason}"
        else:
            lines.append(reason)
    return lines
