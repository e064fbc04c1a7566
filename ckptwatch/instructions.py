"""What `ckptwatch eval` is to run, from command line, metadata and configuration, and where each value came from."""

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from ckptwatch.core.precedence import Given, Settled, Source, settle
from ckptwatch.errors import CkptwatchError, UsageError
from ckptwatch.metadata import SECTION, Metadata
from ckptwatch.model import EvaluationCommand, MetricSpec, Recipe, evolve
from ckptwatch.outline import config_text

METADATA = "checkpoint_metadata.json"
# Values with an option of their own.
OPTIONS: Mapping[str, str] = {
    "command": "--command", "metrics": "--command", "csv_input": "--csv-input", "max_samples": "--max-samples",
    "log_samples": "--log-samples", "log_interval": "--log-interval", "log_max_samples": "--log-max-samples",
}
NOT_GIVEN = "not given"
# `result` says how a command answers, so it is taken from where the command is.
VALUES = ("csv_input", "max_samples", "batch_size", "metrics", "timeout", "log_samples", "log_interval", "log_max_samples")
_OF_RECIPE = frozenset({"metrics", "batch_size"})  # the others belong to its command
_DEFAULTS: Mapping[str, Any] = {
    "batch_size": 32, "metrics": (), "timeout": 3600.0, "log_samples": False, "log_interval": 1, "log_max_samples": 20,
}


@dataclass(frozen=True, kw_only=True)
class Configured:
    """The recipe that the configuration has for a checkpoint."""

    recipe: Recipe
    origin: str                           # how it was chosen
    stated: frozenset[str] = frozenset()  # keys that its section in the file has; the others are defaults
    asked_for: bool = False               # by --recipe


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """A recipe with everything settled."""

    recipe: Recipe
    origins: Mapping[str, tuple[Any, str]] = field(default_factory=dict)  # of each value, as it is shown
    warnings: tuple[str, ...] = ()
    directory: Path | None = None  # in which the command runs; None: that of the configuration


def stated_in(config: Path | None, recipe: str) -> frozenset[str]:
    """Keys of a recipe's section in a configuration that has been found good; () without one."""
    if config is None:
        return frozenset()
    raw = yaml.safe_load(config_text(config))
    return frozenset(map(str, raw["recipes"][recipe])) if isinstance(raw, dict) and recipe in raw.get("recipes", {}) else \
        frozenset()


def choose(options: Mapping[str, Any], metadata: Metadata | None, configured: Configured | None) -> Settled:
    """What is to be run: `value` is argv, or the configuration's recipe, or None where nobody says."""
    given = [Given(source=Source.COMMAND_LINE, origin=OPTIONS["command"], value=options.get("command"))]
    given += metadata.given("command") if metadata else ()
    given = [evolve(g, shown=shown(g.value)) for g in given if g.value is not None]
    if configured is not None:
        recipe = configured.recipe
        words = shown(recipe.command.argv) if recipe.command is not None else f"recipe {recipe.name}"
        given.append(Given(
            source=Source.COMMAND_LINE if configured.asked_for else Source.CONFIGURATION, value=recipe, shown=words,
            origin="--recipe" if configured.asked_for else f"recipe {recipe.name}"))
    return settle("command", given)


def instructions(
    options: Mapping[str, Any], metadata: Metadata | None, configured: Configured | None, chosen: Settled, *, trust: bool,
) -> Instructions:
    """Everything about the command that was chosen: argv, or the configuration's recipe for a command.

    Raises CkptwatchError for a command of metadata that others may have written, UsageError for a missing csv_input.
    """
    if chosen.source is Source.METADATA and metadata is not None and metadata.foreign and not trust:
        raise _not_trusted(metadata, chosen)
    base = chosen.value if isinstance(chosen.value, Recipe) else Recipe(name="command", metrics=())
    argv = base.command.argv if base.command is not None else chosen.value
    if chosen.origin == OPTIONS["command"]:
        options = {**options, "metrics": ()}  # of another program than theirs: all that it answers counts
    elif isinstance(chosen.value, Recipe) and chosen.value.metrics:
        options = {**options, "metrics": chosen.value.metrics}  # those of the program that is run
    settled = {name: settle(name, _given(name, options, metadata, configured)) for name in VALUES}
    _must_exist(settled["csv_input"])
    values = {name: s.value for name, s in settled.items()}
    command = EvaluationCommand(
        argv=argv, result=_result(chosen, metadata), **{n: v for n, v in values.items() if n not in _OF_RECIPE})
    return Instructions(
        recipe=evolve(base, command=command, metrics=values["metrics"], batch_size=values["batch_size"]),
        origins={"command": (shown(argv), chosen.origin),
                 **{name: (_told(name, s.value), s.origin or NOT_GIVEN) for name, s in settled.items()}},
        warnings=(*(s.conflict for s in (chosen, *settled.values()) if s.conflict), *_of_no_use(options, values)),
        directory=_directory(chosen, metadata))


def bound(argv: tuple[str | tuple[str, ...], ...], values: Mapping[str, Any]) -> tuple[str | tuple[str, ...], ...]:
    """argv with some placeholders filled in already; the others stay what they are."""
    return tuple(_bound(w, values) if isinstance(w, str) else tuple(_bound(inner, values) for inner in w) for w in argv)


def _bound(word: str, values: Mapping[str, Any]) -> str:
    parts = []
    for literal, name, format_, conversion in Formatter().parse(word):
        parts.append(_escaped(literal))
        if name is None:
            continue
        asked = "{" + name + (f"!{conversion}" if conversion else "") + (f":{format_}" if format_ else "") + "}"
        parts.append(_escaped(asked.format_map(values)) if re.split(r"[.\[]", name)[0] in values else asked)
    return "".join(parts)


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def shown(argv: tuple[str | tuple[str, ...], ...]) -> str:
    """As a person would type it; what may be left out stands in brackets."""
    return " ".join(_quoted(w) if isinstance(w, str) else f"[{' '.join(map(_quoted, w))}]" for w in argv)


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w@%+=:,./{}-]+", word) else shlex.quote(word)


def nothing_to_run(path: Path, metadata: Path | None, looked: Path, configuration: str) -> CkptwatchError:
    """Where nobody says what to run: the three places."""
    in_metadata = f"{metadata} has no {SECTION}.command" if metadata else f"there is no {looked / METADATA}"
    return UsageError(
        "evaluate", f"nothing says what to run: no --command; {in_metadata}; {configuration}", path=path,
        hint=f'--command "python eval.py --ckpt {{checkpoint}}"; or in {METADATA}: "{SECTION}": {{"command": ["python", '
             '"eval.py", "--ckpt", "{checkpoint}"]}; or a configuration with a recipe, -c CONFIG')


def _given(
    name: str, options: Mapping[str, Any], metadata: Metadata | None, configured: Configured | None,
) -> list[Given]:
    given = [Given(source=Source.COMMAND_LINE, origin=_option(name, options.get(name)), value=options.get(name))]
    given += metadata.given(name) if metadata else ()
    command = configured.recipe.command if configured else None
    if configured is not None and command is not None and name in configured.stated:
        value = getattr(configured.recipe if name in _OF_RECIPE else command, name)
        given.append(Given(source=Source.CONFIGURATION, origin=f"recipe {configured.recipe.name}", value=value))
    if name == "metrics":
        given = [evolve(g, shown=_names(g.value)) for g in given if g.value is not None]
    return [*given, Given(source=Source.DEFAULT, origin="default", value=_DEFAULTS.get(name))]


def _option(name: str, value: Any) -> str:
    return "--no-log-samples" if name == "log_samples" and value is False else OPTIONS.get(name, "")


def _result(chosen: Settled, metadata: Metadata | None) -> str:
    """The file in which the command answers: said where the command is."""
    if isinstance(chosen.value, Recipe):
        return chosen.value.command.result if chosen.value.command is not None else ""
    if chosen.source is not Source.METADATA or metadata is None:
        return ""
    return next((str(g.value) for g in metadata.given("result")), "")


def _directory(chosen: Settled, metadata: Metadata | None) -> Path | None:
    """Relative paths start where they were written down."""
    if isinstance(chosen.value, Recipe):
        return None
    return metadata.path.parent if chosen.source is Source.METADATA and metadata is not None else Path.cwd()


def _of_no_use(options: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    given = [OPTIONS[name] for name in ("log_interval", "log_max_samples") if options.get(name) is not None]
    return [f"{' and '.join(given)}: of no use without --log-samples"] if given and not values["log_samples"] else []


def _must_exist(csv_input: Settled) -> None:
    path = csv_input.value
    if path is not None and not os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises for names that are too long)
        cause = "no plain file" if os.path.lexists(path) else "no such file"
        raise UsageError("read csv_input", f"{cause} (from {csv_input.origin})", path=path,
                         hint="give another with --csv-input FILE")


def _not_trusted(metadata: Metadata, chosen: Settled) -> CkptwatchError:
    return UsageError(
        "run the command of the metadata", f"{metadata.foreign}, so it may be somebody else's: {shown(chosen.value)}",
        path=metadata.path, hint="if you trust it, add --trust; or give a command of your own with --command")


def _told(name: str, value: Any) -> Any:
    if name == "metrics":
        return _names(value) or "(all that the command answers)"
    return str(value) if isinstance(value, Path) else value


def _names(metrics: tuple[MetricSpec, ...]) -> str:
    return ", ".join(spec.name for spec in metrics)
