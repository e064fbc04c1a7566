"""What `eval` has to do: which checkpoint, by which recipe, with which values, and where each of these came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptwatch.cli.context import settings_of
from ckptwatch.core.naming import run_directory, run_name
from ckptwatch.core.precedence import Settled
from ckptwatch.errors import CkptwatchError, UsageError
from ckptwatch.formats.base import Claim, NamePatterns, examine, format_named
from ckptwatch.instructions import (
    NOT_GIVEN,
    OPTIONS,
    Configured,
    Instructions,
    bound,
    choose,
    instructions,
    nothing_to_run,
    stated_in,
)
from ckptwatch.meant import Meant, meant_by, unreadable
from ckptwatch.metadata import Metadata, read_metadata, words_of
from ckptwatch.model import Facts, Recipe, evolve
from ckptwatch.outline import default_state_dir, find_config
from ckptwatch.recipes import ContentDigests, inspect_recipe
from ckptwatch.settings import Settings
from ckptwatch.surroundings import adapter_doubt, around

_TOLD = ("experiment_name", "stage")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One evaluation, ready to be made."""

    settings: Settings
    checkpoint: Path
    holding: Path                           # the file that holds the variant
    facts: Facts
    run: str
    recipe: Recipe
    variant: str
    digest: str                             # equal: scores compare
    origins: Mapping[str, tuple[Any, str]]  # each value, and where it came from
    doubts: tuple[str, ...]
    directory: Path | None                  # in which a command runs; None: the configuration's


def wanted_by(
    path: Path, config: Path | None, options: Mapping[str, Any], *, recipe: str | None, variant: str | None, trust: bool,
) -> Wanted:
    """Raises CkptwatchError with everything that can be known to be wrong before something runs."""
    options = _understood(options, recipe)
    settings = _settings(config)
    meant = meant_by(path)
    run = _run_name(settings, meant.claim)
    facts = _facts(settings, meant.claim)
    configured = _configured(settings, config, run, recipe)
    metadata, doubts = _metadata(meant, options, configured)
    chosen = choose(options, metadata, configured)
    if chosen.value is None:
        raise nothing_to_run(path, metadata.path if metadata else None, meant.directory or meant.path.parent,
                             _without_recipe(settings, config))
    told = _instructed(options, meant, metadata, configured, chosen, trust)
    variant, variant_origin = _variant(settings, run, variant)
    doubts += [] if facts.complete else [f"{meant.path.name} is not complete: {facts.evidence}"]
    if told.recipe.command is not None and meant.around.lora is not None and (doubt := adapter_doubt(meant.around.lora)):
        doubts.append(doubt)
    run_shown, run_origin = (run, "its place below the watched root") if run else \
        (meant.claim.path.parent.name, "its directory")
    origins = {
        "checkpoint": (str(meant.path), meant.why), "recipe": (told.recipe.name, _origin_of_recipe(told, configured)),
        **(_surroundings(meant, metadata) if told.recipe.command is not None else {}), **told.origins,
        "variant": (variant or "(whole checkpoint)", variant_origin), "run": (run_shown, run_origin),
        "step": (facts.step, "its name and content"), "epoch": (facts.epoch, "its name and content"),
    }
    digest, _ = inspect_recipe(told.recipe, ContentDigests(settings.state_dir / "cache" / "contents.json"))
    return Wanted(
        settings=settings, checkpoint=meant.path, holding=_holding(meant.claim, meant.path, variant), facts=facts,
        run=run_shown, recipe=told.recipe, variant=variant, digest=digest, origins=origins,
        doubts=(*doubts, *told.warnings), directory=told.directory)


# ---- what was given -------------------------------------------------------------------------------------------------


def _understood(options: Mapping[str, Any], recipe: str | None) -> dict[str, Any]:
    """The command as words, the dataset as an absolute path. Raises UsageError."""
    command, csv_input = options["command"], options["csv_input"]
    if command is not None and recipe is not None:
        raise UsageError("evaluate", "both --command and --recipe are given", hint="give the one that is to be run")
    try:
        words = None if command is None else words_of(command)
    except ValueError as error:
        raise UsageError("read --command", str(error), path=command,
                         hint='it should look like "python eval.py --ckpt {checkpoint}"') from error
    return {**options, "command": words, "csv_input": None if csv_input is None else csv_input.expanduser().absolute()}


def _settings(config: Path | None) -> Settings:
    """Without any configuration, none: a directory may say everything itself."""
    try:
        return settings_of(config)
    except UsageError:
        if find_config(config) is not None:
            raise
        return Settings(state_dir=default_state_dir(), roots=(), observe_only=True)


def _metadata(
    meant: Meant, options: Mapping[str, Any], configured: Configured | None,
) -> tuple[Metadata | None, list[str]]:
    """The metadata, and a doubt where they cannot be used but need not be: for a checkpoint that was named itself, or whose
    command the command line says."""
    if meant.around.metadata is None:
        return None, []
    try:
        return read_metadata(meant.around.metadata), []
    except CkptwatchError as error:
        said = options["command"] is not None or (configured is not None and configured.asked_for)
        if said or (meant.directory is None and configured is not None):
            return None, [f"{error.path}: {error.cause}"]
        raise


def _configured(settings: Settings, config: Path | None, run: str | None, given: str | None) -> Configured | None:
    """The configuration's recipe for the checkpoint: the one asked for, its run's, or the only one."""
    if given is not None and given not in settings.recipes:
        raise UsageError("evaluate", f"no recipe {given!r}",
                         hint=f"the configuration has: {', '.join(settings.recipes) or 'none'}")
    rule = settings.rule_for(run) if run is not None else None
    if given is not None:
        name, origin = given, "--recipe"
    elif rule is not None and rule.evaluate is not None:
        name, origin = rule.evaluate.recipe, f"the configuration's rule for run {run}"
    elif len(settings.recipes) == 1:
        name, origin = next(iter(settings.recipes)), "the configuration's only recipe"
    else:
        return None
    return Configured(recipe=settings.recipes[name], origin=origin, stated=stated_in(find_config(config), name),
                      asked_for=given is not None)


def _without_recipe(settings: Settings, config: Path | None) -> str:
    if (file := find_config(config)) is None:
        return "there is no configuration"
    several = f"; it has {', '.join(settings.recipes)}: name one with --recipe" if settings.recipes else ""
    return f"the configuration {file} has no recipe for this checkpoint{several}"


# ---- what is to be done with it -------------------------------------------------------------------------------------


def _instructed(
    options: Mapping[str, Any], meant: Meant, metadata: Metadata | None, configured: Configured | None, chosen: Settled,
    trust: bool,
) -> Instructions:
    recipe = chosen.value
    if isinstance(recipe, Recipe) and recipe.kind == "logged":
        raise UsageError("evaluate", f"recipe {recipe.name} runs nothing: it takes what training logs", path=meant.path,
                         hint="`ckptwatch rank RUN` shows it; or say with --command what to run")
    if isinstance(recipe, Recipe) and recipe.kind == "images":
        return _of_images(recipe, options, configured)
    told = instructions(options, metadata, configured, chosen, trust=trust)
    command, found = told.recipe.command, around(meant.path)
    assert command is not None
    # A worker looks around the checkpoint; what was found elsewhere, by a link that leads away, it must be told.
    elsewhere = {name: place for name in ("metadata", "lora")
                 if (place := getattr(meant.around, name)) is not None and place != getattr(found, name)}
    if not elsewhere:
        return told
    return evolve(told, recipe=evolve(told.recipe, command=evolve(command, argv=bound(command.argv, elsewhere))))


def _of_images(recipe: Recipe, options: Mapping[str, Any], configured: Configured | None) -> Instructions:
    unused = [OPTIONS[name] for name, value in options.items() if value is not None and name != "max_samples"]
    if unused:
        raise UsageError("evaluate", f"{', '.join(unused)}: of no use with recipe {recipe.name}, which scores images",
                         hint="they are for a command: give one with --command")
    samples, source, limit = recipe.samples, f"recipe {recipe.name}", options["max_samples"]
    if limit is not None and limit < samples:
        samples, source = limit, OPTIONS["max_samples"]
    return Instructions(recipe=evolve(recipe, samples=samples), origins={
        "samples": (samples, source), "seed": (recipe.seed, f"recipe {recipe.name}"),
        "prompts": (str(recipe.prompts) if recipe.prompts else None, f"recipe {recipe.name}"),
        "metrics": (", ".join(m.name for m in recipe.metrics), f"recipe {recipe.name}"),
    })


def _origin_of_recipe(told: Instructions, configured: Configured | None) -> str:
    if configured is not None and told.recipe.name == configured.recipe.name:
        return configured.origin
    return str(told.origins["command"][1])


def _surroundings(meant: Meant, metadata: Metadata | None) -> dict[str, tuple[Any, str]]:
    where = "the directory" if meant.directory is not None else "beside the checkpoint"
    found = {name: (str(place) if place is not None else None, where if place is not None else NOT_GIVEN)
             for name, place in (("metadata", meant.around.metadata), ("lora", meant.around.lora))}
    told = {name: (text, metadata.path.name) for name in _TOLD if metadata is not None and (text := metadata.text(name))}
    return {**found, **told}


def _facts(settings: Settings, claim: Claim) -> Facts:
    """What the daemon would know of it: its content, and its name as the root's own patterns read it."""
    format_ = format_named(claim.format)
    assert format_ is not None
    rule = next((r for r in settings.roots if claim.path.is_relative_to(r.root.resolve())), None)
    try:
        return examine(claim, format_, NamePatterns(patterns=rule.names) if rule else None)
    except OSError as error:
        raise unreadable(claim.path, error) from error


def _holding(claim: Claim, checkpoint: Path, variant: str) -> Path:
    """The file that holds the variant, where a checkpoint is several files."""
    format_ = format_named(claim.format) if variant else None
    if format_ is None:
        return checkpoint
    return format_.variant_path(claim.path, tuple(m.name for m in claim.members), variant)


def _run_name(settings: Settings, claim: Claim) -> str | None:
    """None for what lies below no watched root, or is one itself."""
    directory = run_directory(claim.path, whole=claim.whole)
    for rule in settings.roots:
        root = rule.root.resolve()
        if claim.path.is_relative_to(root) and directory.is_relative_to(root):
            return run_name(directory.relative_to(root))
    return None


def _variant(settings: Settings, run: str | None, given: str | None) -> tuple[str, str]:
    if given is not None:
        return given, "--variant"
    rule = settings.rule_for(run) if run is not None else None
    if rule is not None and rule.evaluate is not None and rule.evaluate.variants not in ((), ("all",)):
        return rule.evaluate.variants[0], f"the configuration's rule for run {run}"
    return "", "default"
