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
    by: Annotated[str | None, typer.Option(
        "--by", metavar="METRIC", help="Another metric than the configured one; shows only, decides nothing.")] = None,
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
    if by is not None:
        a = _by(a, by)
    if json:
        emit_json(_document(a))
        return
    if a.ranking is None:
        raise UsageError("rank", "its configuration has no rank: section", path=a.run.name,
                         hint="add rank: {by: METRIC, mode: min} under runs:")
    _show(a, ascii_only)


def _by(a: Any, metric: str) -> Any:
    """The assessment with a ranking by another metric."""
    import difflib

    from ckptwatch.core.logged import direction
    from ckptwatch.core.ranking import rank as ranked
    from ckptwatch.errors import UsageError
    from ckptwatch.model import RankRule, evolve

    known = {name: score for c in a.contenders for name, score in c.scores.items()}
    if metric not in known:
        near = difflib.get_close_matches(metric, known, n=1, cutoff=0.0)
        raise UsageError("rank", f"no checkpoint has a {metric}", path=a.run.name,
                         hint=f"did you mean {near[0]}? there are: {', '.join(sorted(known))}" if near
                         else "nothing is known yet")
    rules = [m.rule for m in (a.rule.keep.monitors if a.rule.keep else ())]
    rule = next((r for r in rules if r.by == metric), None)
    if rule is None:
        mode = known[metric].mode or direction(metric)
        if mode is None:
            raise UsageError("rank", f"cannot tell which direction of {metric} is better", path=a.run.name,
                             hint=f"say so: keep: {{best: {{{metric}: {{count: 1, mode: min}}}}}} under runs:")
        rule = RankRule(by=metric, mode=mode)
    recipe = a.recipe.composite if a.recipe else None
    return evolve(a, ranking=ranked(a.contenders, rule=rule, digest=a.stand.digest if a.stand else None, composite=recipe),
                  monitored=())


def _document(a: Any) -> dict[str, Any]:
    ranking = a.ranking
    recipe = a.recipe.name if a.recipe else None
    if ranking is None:
        return {"version": 1, "run": a.run.name, "metric": None, "mode": None, "recipe": recipe, "digest": None,
                "ranking": [], "unranked": [], "monitors": []}
    return {
        "version": 1, "run": a.run.name, "recipe": recipe, **_ranking(ranking),
        "monitors": [_ranking(r) for r in a.monitored],
    }


def _ranking(ranking: Any) -> dict[str, Any]:
    return {
        "metric": ranking.metric, "mode": str(ranking.mode), "digest": ranking.digest,
        "ranking": [
            {"rank": p.rank, "path": str(p.contender.path), "step": p.contender.step, "epoch": p.contender.epoch,
             "variant": p.contender.variant, "reason": p.reason,
             "scores": {n: {"value": s.value, "low": s.low, "high": s.high, "n": s.n, "source": s.source or None}
                        for n, s in p.contender.scores.items()}}
            for p in ranking.places],
        "unranked": [{"path": str(u.contender.path), "step": u.contender.step, "variant": u.contender.variant,
                      "reason": u.reason} for u in ranking.unranked],
    }


def _show(a: Any, ascii_only: bool) -> None:
    from rich.text import Text

    out = console(ascii_only=ascii_only)
    ranking = a.ranking
    better = "higher" if ranking.mode == "max" else "lower"
    recipe = f", recipe {a.recipe.name} ({(ranking.digest or 'none')[:8]})" if a.recipe else ", logged by the trainer"
    variants = {p.contender.variant for p in ranking.places}
    variant = f" of {next(iter(variants))}" if len(variants) == 1 and "" not in variants else ""
    out.print(f"{a.run.name} by {ranking.metric}{variant} ({better} is better){recipe}", style="bold", no_wrap=True)
    monitored = {r.metric for r in a.monitored}
    # What is ranked by comes first, then what was measured, then what training logged.
    everywhere = {n: s for p in ranking.places for n, s in p.contender.scores.items()}
    names = sorted(everywhere, key=lambda n: (n != ranking.metric, n not in monitored, bool(everywhere[n].source),
                                              everywhere[n].mode is None, n))
    rows, left_out = _table(ranking.places, names, out.width)
    for position, row in enumerate(rows):
        style = "dim" if position == 0 else "green" if position == 1 else ""
        out.print(Text(row, style=style), no_wrap=True, overflow="ellipsis")
    if left_out:
        out.print(f"  (no room for {', '.join(left_out)}; --json has all)", style="dim", no_wrap=True, overflow="ellipsis")
    for u in ranking.unranked:
        variant = f" {u.contender.variant}" if u.contender.variant else ""
        out.print(f"  – {_name(u.contender)}{variant}: {u.reason}", style="yellow", no_wrap=True, overflow="ellipsis")
    for other in a.monitored:
        if other.metric == ranking.metric:
            continue
        firsts = "   ".join(f"#{p.rank} {p.score.value:.4g} @{_name(p.contender)}" for p in other.places[:3])
        out.print(f"also by {other.metric}: {firsts or 'none has one'}", style="dim", no_wrap=True, overflow="ellipsis")


REASON_ROOM = 28  # columns the reason should have at least; metrics give way to it


def _table(places: Any, names: list[str], width: int) -> tuple[list[str], list[str]]:
    """Header and one row per place; and the metrics left out for want of room, the ranked one never."""
    first = [["#", "step", "variant"], *([str(p.rank), _name(p.contender), p.contender.variant] for p in places)]
    if len({p.contender.variant for p in places}) < 2:
        first = [row[:2] for row in first]  # one variant stands in the title
    columns = [_padded([row[i] for row in first], left=i == VARIANT_COLUMN) for i in range(len(first[0]))]
    shown = 0
    for name in names:
        column = _padded([name, *(_cell(p.contender.scores.get(name)) for p in places)])
        taken = sum(len(c[0]) + 2 for c in [*columns, column])
        if shown and taken + REASON_ROOM > width:
            break
        columns.append(column)
        shown += 1
    reasons = ["reason", *(p.reason.removeprefix(f"{p.score.metric} {p.score.value:.4g}").lstrip(", ") for p in places)]
    rows = ["  ".join([*cells, reason]) for *cells, reason in zip(*columns, reasons, strict=True)]
    return rows, names[shown:]


VARIANT_COLUMN = 2


def _padded(cells: list[str], *, left: bool = False) -> list[str]:
    width = max(map(len, cells))
    return [c.ljust(width) if left else c.rjust(width) for c in cells]


def _name(contender: Any) -> str:
    from ckptwatch.core.amounts import format_step

    if contender.step is not None:
        return format_step(contender.step)
    return f"epoch {contender.epoch}" if contender.epoch is not None else contender.path.name


def _cell(score: "Score | None") -> str:
    if score is None:
        return "–"
    text = f"{score.value:.4g}"
    if score.low is not None and score.high is not None:
        text += f" ±{(score.high - score.low) / 2:.2g}"
    return text
