"""eval: evaluate one checkpoint now, in the foreground, by a worker process of our own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptwatch.cli.console import console, emit_json
from ckptwatch.cli.context import AsciiOption, ConfigOption, JsonOption, path_meant, settings_of

if TYPE_CHECKING:
    from ckptwatch.errors import CkptwatchError
    from ckptwatch.formats.base import Claim
    from ckptwatch.model import Facts, Recipe
    from ckptwatch.settings import Settings


def evaluate(
    path: Annotated[str, typer.Argument(help="A checkpoint: its path, an alias, or RUN@STEP.")], config: ConfigOption = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Recipe of the configuration; default: the one of the "
                                               "checkpoint's run.")] = None,
    variant: Annotated[str | None, typer.Option("--variant", help="Weight set, such as model_ema.")] = None,
    max_samples: Annotated[int | None, typer.Option("--max-samples", min=1, help="Fewer samples than the recipe.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda:0, …; default: as configured.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show where each value came from.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Keep generated samples in this directory.")] = None,
    json: JsonOption = False, ascii_only: AsciiOption = False,
) -> None:
    """Evaluate a checkpoint now. Nothing is recorded; the daemon's own scores stay as they are."""
    from ckptwatch.foreground import evaluate_now
    from ckptwatch.planning import with_composite

    settings = settings_of(config)
    checkpoint, claim = _existing(path_meant(path, config))
    run = _run_name(settings, claim)
    run_shown, run_origin = (run, "its place below the watched root") if run else (claim.path.parent.name, "its directory")
    facts = _facts(settings, claim)
    rule_recipe, origin = _recipe(settings, checkpoint, run, recipe)
    chosen, origins = _with_overrides(rule_recipe, origin, max_samples)
    variant, variant_origin = _variant(settings, run, variant)
    origins["variant"] = (variant or "(whole checkpoint)", variant_origin)
    origins["run"] = (run_shown, run_origin)
    origins |= {name: (value, "its name and content") for name, value in (("step", facts.step), ("epoch", facts.epoch))}
    doubts = () if facts.complete else (f"{checkpoint.name} is not complete: {facts.evidence}",)
    errors = console(ascii_only=ascii_only, stderr=True)
    for doubt in doubts:  # now: the evaluation may fail for it
        errors.print(f"▲ {doubt}", style="yellow", soft_wrap=True)
    result = evaluate_now(settings, _holding(claim, checkpoint, variant), chosen, variant=variant, device=device, keep=out,
                          screen=errors, run=run_shown, facts=facts)
    scores = with_composite({s.metric: s for s in result.scores}, chosen)
    digest = _digest(settings, chosen)
    document = {
        "version": 1, "path": str(checkpoint), "recipe": chosen.name, "digest": digest, "variant": variant,
        "run": run_shown, "step": facts.step, "epoch": facts.epoch,
        "seconds": result.seconds,
        "scores": {s.metric: {"value": s.value, "low": s.low, "high": s.high, "n": s.n, "definition": s.definition}
                   for s in scores.values()},
        "warnings": [*doubts, *result.warnings],
    }
    if explain:
        document["explain"] = {k: {"value": v, "from": source} for k, (v, source) in origins.items()}
    if json:
        emit_json(document)
        return
    screen = console(ascii_only=ascii_only)
    if explain:
        for name, (value, source) in origins.items():
            screen.print(f"{name:<12} {value}  (from {source})", soft_wrap=True)
    for score in scores.values():
        error = f" ±{(score.high - score.low) / 2:.2g}" if score.low is not None and score.high is not None else ""
        screen.print(f"{score.metric:<18} {score.value:.5g}{error}  n={score.n}  {score.definition}", no_wrap=True)
    for warning in result.warnings:
        screen.print(f"▲ {warning}", style="yellow")
    screen.print(f"{checkpoint.name} evaluated in {result.seconds:.1f} s by recipe {chosen.name} ({digest[:8]})"
                 + (f"; samples in {out}" if out else ""))


def _digest(settings: "Settings", recipe: "Recipe") -> str:
    """What the scores compare with: equal digests only. With fewer samples than the recipe's it is another one."""
    from ckptwatch.recipes import ContentDigests, inspect_recipe

    return inspect_recipe(recipe, ContentDigests(settings.state_dir / "cache" / "contents.json"))[0]


def _existing(path: Path) -> "tuple[Path, Claim]":
    """The real path of what is meant, and the checkpoint that it is, or is a member of."""
    from ckptwatch.errors import UsageError
    from ckptwatch.formats.base import claim_at, formats

    if not path.exists():
        cause = "a dangling link" if path.is_symlink() else "no such file"
        raise UsageError("evaluate", cause, path=path, hint="give a checkpoint; `ckptwatch rank RUN` lists a run's")
    try:
        claim = claim_at(path.resolve())
    except OSError as error:
        raise _unreadable(path, error) from error
    if claim is None:
        cause = "a directory, not a checkpoint" if path.is_dir() else "no known checkpoint format claims it"
        hint = "name one of the checkpoints in it" if path.is_dir() else \
            f"known formats: {', '.join(f.name for f in formats())}"
        raise UsageError("evaluate", cause, path=path, hint=hint)
    return path.resolve(), claim


def _facts(settings: "Settings", claim: "Claim") -> "Facts":
    """What the daemon would know of it: its content, and its name as the root's own patterns read it."""
    from ckptwatch.formats.base import NamePatterns, examine, format_named

    format_ = format_named(claim.format)
    assert format_ is not None
    rule = next((r for r in settings.roots if claim.path.is_relative_to(r.root.resolve())), None)
    try:
        return examine(claim, format_, NamePatterns(patterns=rule.names) if rule else None)
    except OSError as error:
        raise _unreadable(claim.path, error) from error


def _unreadable(path: Path, error: OSError) -> "CkptwatchError":
    from ckptwatch.errors import CkptwatchError

    return CkptwatchError("evaluate", error.strerror or str(error), path=path, hint="give a checkpoint that can be read")


def _holding(claim: "Claim", checkpoint: Path, variant: str) -> Path:
    """The file that holds the variant, where a checkpoint is several files."""
    from ckptwatch.formats.base import format_named

    format_ = format_named(claim.format) if variant else None
    if format_ is None:
        return checkpoint
    return format_.variant_path(claim.path, tuple(m.name for m in claim.members), variant)


def _run_name(settings: "Settings", claim: "Claim") -> str | None:
    """None for what lies below no watched root, or is one itself."""
    from ckptwatch.core.naming import run_directory, run_name

    directory = run_directory(claim.path, whole=claim.whole)
    for rule in settings.roots:
        root = rule.root.resolve()
        if claim.path.is_relative_to(root) and directory.is_relative_to(root):
            return run_name(directory.relative_to(root))
    return None


def _recipe(settings: "Settings", checkpoint: Path, run: str | None, given: str | None) -> tuple["Recipe", str]:
    from ckptwatch.errors import UsageError

    names = ", ".join(settings.recipes) or "none"
    if given is not None:
        if given not in settings.recipes:
            raise UsageError("evaluate", f"no recipe {given!r}", hint=f"the configuration has: {names}")
        return settings.recipes[given], "--recipe"
    rule = settings.rule_for(run) if run is not None else None
    if rule is not None and rule.evaluate is not None:
        return settings.recipes[rule.evaluate.recipe], f"the configuration's rule for run {run}"
    if len(settings.recipes) == 1:
        return next(iter(settings.recipes.values())), "the configuration's only recipe"
    raise UsageError("evaluate", "cannot tell which recipe to use", path=checkpoint,
                     hint=f"name one with --recipe; the configuration has: {names}")


def _with_overrides(recipe: "Recipe", origin: str, max_samples: int | None) -> tuple["Recipe", dict[str, tuple[Any, str]]]:
    from ckptwatch.model import evolve

    samples, source = recipe.samples, f"recipe {recipe.name}"
    if max_samples is not None and max_samples < samples:
        samples, source = max_samples, "--max-samples"
    origins: dict[str, tuple[Any, str]] = {
        "recipe": (recipe.name, origin), "samples": (samples, source), "seed": (recipe.seed, f"recipe {recipe.name}"),
        "prompts": (str(recipe.prompts) if recipe.prompts else None, f"recipe {recipe.name}"),
        "metrics": (", ".join(m.name for m in recipe.metrics), f"recipe {recipe.name}"),
    }
    return evolve(recipe, samples=samples), origins


def _variant(settings: "Settings", run: str | None, given: str | None) -> tuple[str, str]:
    if given is not None:
        return given, "--variant"
    rule = settings.rule_for(run) if run is not None else None
    if rule is not None and rule.evaluate is not None and rule.evaluate.variants not in ((), ("all",)):
        return rule.evaluate.variants[0], f"the configuration's rule for run {run}"
    return "", "default"
