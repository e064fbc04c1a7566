"""check-config: every problem at once, and what each recipe can yield."""

from pathlib import Path
from typing import Annotated

import typer

from ckptwatch.cli.console import console, emit_json
from ckptwatch.cli.context import AsciiOption, JsonOption


def check_config(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration file to check.")],
    json: JsonOption = False, ascii_only: AsciiOption = False,
) -> None:
    """Check a configuration: all problems with their lines, what is missing on this machine, each recipe's metrics."""
    from ckptwatch.config import load_config, yields
    from ckptwatch.errors import ConfigError
    from ckptwatch.preflight import lacking_here
    from ckptwatch.recipes import ContentDigests, inspect_recipe

    try:
        settings = load_config(config)
    except ConfigError as error:
        if json:
            emit_json({"version": 1, "ok": False, "problems": error.problems, "recipes": {}})
            raise typer.Exit(2) from None
        raise
    problems = [f"watch: {r.root} is no directory" for r in settings.roots if not r.root.is_dir()]
    if settings.notify.to:
        from ckptwatch.publish.notify import endpoints_of

        # What comes from the environment is the service's, which this shell need not have.
        problems += endpoints_of([e for e in settings.notify.to if not e.startswith("env:")])[1]
    recipes = {}
    for name, recipe in settings.recipes.items():
        _, missing = inspect_recipe(recipe, ContentDigests(settings.state_dir / "cache" / "contents.json"))
        problems += [f"recipes.{name}: {m}" for m in (*missing, *lacking_here(recipe, settings.directory))]
        recipes[name] = list(yields(recipe))
    if json:
        emit_json({"version": 1, "ok": not problems, "problems": problems, "recipes": recipes})
    else:
        out = console(ascii_only=ascii_only)
        for name, metrics in recipes.items():
            out.print(f"recipe {name} can yield: {', '.join(metrics)}")
        if not problems:
            out.print(f"✓ {config}: no problems")
    if problems:
        if not json:
            raise ConfigError(config, problems)
        raise typer.Exit(2)
