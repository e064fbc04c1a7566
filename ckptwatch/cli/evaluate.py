"""eval: evaluate one checkpoint now, in the foreground, by a worker process of our own."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptwatch.cli.console import console, emit_json
from ckptwatch.cli.context import AsciiOption, ConfigOption, JsonOption, path_meant
from ckptwatch.cli.samples import show_pairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from ckptwatch.cli.evaluation import Wanted
    from ckptwatch.model import Score
    from ckptwatch.workers.wire import Result


def evaluate(
    path: Annotated[str, typer.Argument(
        help="A checkpoint: its path, an alias, or RUN@STEP; or a directory: its best.ckpt, else last.ckpt, else the newest "
             ".ckpt.")],
    config: ConfigOption = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Recipe of the configuration; default: the one of the "
                                               "checkpoint's run.")] = None,
    command: Annotated[str | None, typer.Option("--command", help="What to run, with {checkpoint} and other placeholders; "
                                                "default: that of checkpoint_metadata.json, or of the recipe.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Run the command of a checkpoint_metadata.json that others may have "
                                        "written.")] = False,
    csv_input: Annotated[Path | None, typer.Option("--csv-input", help="Dataset for the command.")] = None,
    variant: Annotated[str | None, typer.Option("--variant", help="Weight set, such as model_ema.")] = None,
    max_samples: Annotated[int | None, typer.Option("--max-samples", min=1, help="Fewer samples.")] = None,
    log_samples: Annotated[bool | None, typer.Option("--log-samples/--no-log-samples", help="Show pairs of prediction and "
                                                     "target.")] = None,
    log_interval: Annotated[int | None, typer.Option("--log-interval", min=1, help="Every n-th pair.")] = None,
    log_max_samples: Annotated[int | None, typer.Option("--log-max-samples", min=1, help="At most so many pairs.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda:0, …; default: as configured.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show where each value came from.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Keep generated samples, or pairs, in this directory.")] = None,
    json: JsonOption = False, ascii_only: AsciiOption = False,
) -> None:
    """Evaluate a checkpoint now. Nothing is recorded; the daemon's own scores stay as they are."""
    from ckptwatch.cli.evaluation import wanted_by
    from ckptwatch.foreground import evaluate_now
    from ckptwatch.pairs import read_pairs
    from ckptwatch.planning import with_composite

    options = {"command": command, "csv_input": csv_input, "max_samples": max_samples, "log_samples": log_samples,
               "log_interval": log_interval, "log_max_samples": log_max_samples}
    wanted = wanted_by(path_meant(path, config), config, options, recipe=recipe, variant=variant, trust=trust)
    errors = console(ascii_only=ascii_only, stderr=True)
    _announce(errors, wanted)
    logs = wanted.recipe.command is not None and wanted.recipe.command.log_samples
    with tempfile.TemporaryDirectory(prefix="ckptwatch-pairs-") as scratch:
        keep = Path(scratch) / "pairs" if logs and out is None else out
        result = evaluate_now(wanted.settings, wanted.holding, wanted.recipe, variant=wanted.variant, device=device,
                              keep=keep, screen=errors, run=wanted.run, facts=wanted.facts, directory=wanted.directory)
        pairs = read_pairs(keep) if logs and keep is not None and result.samples is not None else ()
    scores = with_composite({s.metric: s for s in result.scores}, wanted.recipe)
    if json:
        emit_json(_document(wanted, result, scores, pairs if logs else None, explain))
        return
    screen = console(ascii_only=ascii_only)
    if explain:
        _explain(screen, wanted)
    _show(screen, wanted, result, scores)
    if pairs:
        show_pairs(screen, pairs)
    where = f"; {'pairs' if logs else 'samples'} in {out}" if out is not None and result.samples is not None else ""
    screen.print(f"{wanted.checkpoint.name} evaluated in {result.seconds:.1f} s by recipe {wanted.recipe.name} "
                 f"({wanted.digest[:8]}){where}", soft_wrap=True)


def _announce(errors: "Console", wanted: "Wanted") -> None:
    """Before anything runs: what was doubtful, for the evaluation may fail for it, and what it is that will run."""
    for doubt in wanted.doubts:
        errors.print(f"▲ {doubt}", style="yellow", soft_wrap=True)
    if wanted.recipe.command is not None:
        command, origin = wanted.origins["command"]
        errors.print(f"→ {wanted.checkpoint.name}: {command}  (from {origin})", soft_wrap=True)


def _explain(screen: "Console", wanted: "Wanted") -> None:
    from ckptwatch.instructions import NOT_GIVEN

    width = max(map(len, wanted.origins))
    for name, (value, source) in wanted.origins.items():
        where = source if source == NOT_GIVEN else f"from {source}"
        screen.print(f"{name:<{width}} {'–' if value is None else value}  ({where})", soft_wrap=True)


def _show(screen: "Console", wanted: "Wanted", result: "Result", scores: "Mapping[str, Score]") -> None:
    own = wanted.recipe.command is not None  # its definitions all say the same
    for score in scores.values():
        error = f" ±{(score.high - score.low) / 2:.2g}" if score.low is not None and score.high is not None else ""
        n = f"  n={score.n}" if score.n is not None or not own else ""
        screen.print(f"{score.metric:<18} {score.value:.5g}{error}{n}{'' if own else f'  {score.definition}'}", no_wrap=True)
    for warning in result.warnings:
        if warning not in wanted.doubts:
            screen.print(f"▲ {warning}", style="yellow")


def _document(
    wanted: "Wanted", result: "Result", scores: "Mapping[str, Score]", pairs: "Sequence[Mapping[str, Any]] | None",
    explain: bool,
) -> dict[str, Any]:
    document = {
        "version": 1, "path": str(wanted.checkpoint), "recipe": wanted.recipe.name, "digest": wanted.digest,
        "variant": wanted.variant, "run": wanted.run, "step": wanted.facts.step, "epoch": wanted.facts.epoch,
        "seconds": result.seconds,
        "scores": {s.metric: {"value": s.value, "low": s.low, "high": s.high, "n": s.n, "definition": s.definition}
                   for s in scores.values()},
        "warnings": list(dict.fromkeys((*wanted.doubts, *result.warnings))),
    }
    if pairs is not None:
        document["samples"] = list(pairs)
    if explain:
        document["explain"] = {k: {"value": v, "from": source} for k, (v, source) in wanted.origins.items()}
    return document
