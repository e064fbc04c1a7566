"""rank: a run's checkpoints from best to worst, with every metric and the reason of each place."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptwatch.cli.console import console, emit_json
from ckptwatch.cli.context import AsciiOption, ConfigOption, JsonOption, settings_of

if TYPE_CHECKING:
    from ckptwatch.model import Score


def rank(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run: its name or directory.")],
    config: ConfigOption = None, json: JsonOption = False, ascii_only: AsciiOption = False,
) -> None:
    """Show the ranking with every metric, interval and reason, and why the others have no place."""
    from ckptwatch.commands import find_run
    from ckptwatch.errors import UsageError
    from ckptwatch.planning import assess
    from ckptwatch.store.database import open_reading

    settings = settings_of(config)
    db = open_reading(settings.state_dir)
    if db is None:
        raise UsageError("rank", "nothing is recorded yet", path=settings.state_dir, hint="start `ckptwatch run` first")
    with db.read() as conn:
        a = assess(conn, find_run(conn, run), settings, now=time.time())
    db.close()
    if json:
        emit_json(_document(a))
        return
    if a.ranking is None:
        raise UsageError("rank", "its configuration has no rank: section", path=a.run.name,
                         hint="add rank: {by: METRIC, mode: min} under runs:")
    _show(a, ascii_only)


def _document(a: Any) -> dict[str, Any]:
    ranking = a.ranking
    recipe = a.recipe.name if a.recipe else None
    if ranking is None:
        return {"version": 1, "run": a.run.name, "metric": None, "mode": None, "recipe": recipe, "digest": None,
                "ranking": [], "unranked": []}
    return {
        "version": 1, "run": a.run.name, "metric": ranking.metric, "mode": str(ranking.mode), "recipe": recipe,
        "digest": ranking.digest,
        "ranking": [
            {"rank": p.rank, "path": str(p.contender.path), "step": p.contender.step, "epoch": p.contender.epoch,
             "variant": p.contender.variant, "reason": p.reason,
             "scores": {n: {"value": s.value, "low": s.low, "high": s.high, "n": s.n}
                        for n, s in p.contender.scores.items()}}
            for p in ranking.places],
        "unranked": [{"path": str(u.contender.path), "step": u.contender.step, "variant": u.contender.variant,
                      "reason": u.reason} for u in ranking.unranked],
    }


def _show(a: Any, ascii_only: bool) -> None:
    from rich.table import Table

    from ckptwatch.core.amounts import format_step

    out = console(ascii_only=ascii_only)
    ranking = a.ranking
    better = "higher" if ranking.mode == "max" else "lower"
    recipe = f", recipe {a.recipe.name} ({(ranking.digest or 'none')[:8]})" if a.recipe else ", logged by the trainer"
    out.print(f"{a.run.name} by {ranking.metric} ({better} is better){recipe}", style="bold", no_wrap=True)
    names = sorted({n for p in ranking.places for n in p.contender.scores}, key=lambda n: (n != ranking.metric, n))
    variants = any(p.contender.variant for p in ranking.places)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    if variants:
        table.add_column("variant", no_wrap=True)
    shown = names[: 5 if out.width >= PLENTY else 2 if out.width >= ENOUGH else 1]
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reason", no_wrap=True, overflow="ellipsis")
    for p in ranking.places:
        c = p.contender
        step = format_step(c.step) if c.step is not None else f"epoch {c.epoch}" if c.epoch is not None else c.path.name
        row = [str(p.rank), step, *([c.variant] if variants else []), *(_cell(c.scores.get(n)) for n in shown), p.reason]
        table.add_row(*row, style="green" if p.rank == 1 else None)
    out.print(table)
    if len(shown) < len(names):
        rest = ", ".join(names[len(shown):])
        out.print(f"  (not shown for want of room: {rest}; --json has all)", style="dim", no_wrap=True)
    for u in ranking.unranked:
        c = u.contender
        name = format_step(c.step) if c.step is not None else c.path.name
        variant = f" {c.variant}" if c.variant else ""
        out.print(f"  – {name}{variant}: {u.reason}", style="yellow", no_wrap=True, overflow="ellipsis")


PLENTY, ENOUGH = 100, 70  # columns of the terminal


def _cell(score: "Score | None") -> str:
    if score is None:
        return "–"
    text = f"{score.value:.4g}"
    if score.low is not None and score.high is not None:
        text += f" ±{(score.high - score.low) / 2:.2g}"
    return text
