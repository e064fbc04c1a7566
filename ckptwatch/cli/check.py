"""check: is a checkpoint, and the training it is of, fit to go on with? Asked before or at the first checkpoint."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckptwatch.cli.console import console, emit_json
from ckptwatch.cli.context import AsciiOption, ConfigOption, JsonOption, path_meant, settings_of

if TYPE_CHECKING:
    from rich.console import Console

    from ckptwatch.formats.base import NamePatterns
    from ckptwatch.formats.bulk import Advance
    from ckptwatch.model import Recipe, RunRule
    from ckptwatch.quickcheck import Check, Evaluate, Subject, Wishes
    from ckptwatch.settings import RootRule, Settings

_SYMBOLS = {"ok": ("✓", "green"), "failed": ("✗", "red"), "skipped": ("–", "default")}


def check(
    path: Annotated[str, typer.Argument(help="A checkpoint: its path, an alias, or RUN@STEP; or a run's directory, for its "
                                        "newest complete checkpoint.")],
    config: ConfigOption = None,
    recipe: Annotated[str | None, typer.Option(
        "--recipe", "-r", help="Recipe of the configuration for the one pass; default: the one of the checkpoint's run.",
    )] = None,
    expect: Annotated[list[str] | None, typer.Option(
        "--expect", metavar="KEY",
        help="Entry it must have, such as optimizer; may be repeated. Default: `expect` of the run.",
    )] = None,
    expect_loss: Annotated[list[str] | None, typer.Option(
        "--expect-loss", metavar="NAME", help="Name that its run must log, such as loss_kpt; may be repeated. Default: "
                                              "`expect_logged` of the run.")] = None,
    no_pass: Annotated[bool, typer.Option("--no-pass", help="Leave out the pass of sampling or evaluation.")] = False,
    json: JsonOption = False, ascii_only: AsciiOption = False,
) -> None:
    """Check a checkpoint quickly: whole, loads, weights finite, expected keys and losses there, one pass of its recipe.

    Exit status 0 if nothing failed, 1 if something did.
    """
    from ckptwatch.quickcheck import checks

    meant = path_meant(path, config)
    errors = console(ascii_only=ascii_only, stderr=True)
    settings, trouble = _settings(config)
    subject, root = _subject(meant, settings)
    wishes = _wishes(subject, settings, root, trouble, recipe=recipe, expect=expect, expect_loss=expect_loss,
                     with_pass=not no_pass)
    shown = subject.saved.claim.path if subject.saved is not None else subject.run_directory
    screen = console(ascii_only=ascii_only)
    if not json:
        screen.print(str(shown), soft_wrap=True)
    done = []
    for found in checks(subject, wishes, _evaluate(subject, settings, errors), lambda total: _progress(total, errors)):
        done.append(found)
        if not json:
            _show(screen, found)
    ok = not any(found.state == "failed" for found in done)
    if json:
        emit_json({"version": 1, "path": str(shown), "ok": ok,
                   "checks": [{"name": c.name, "state": c.state.value, "words": c.words} for c in done]})
    if not ok:
        raise typer.Exit(1)


def _show(screen: "Console", found: "Check") -> None:
    symbol, style = _SYMBOLS[found.state.value]
    word = "" if found.state == "ok" else f"{found.state.value}: "
    screen.print(f"{symbol} {found.name:<9} {word}{found.words}", style=style, soft_wrap=True)


# ---- what is meant --------------------------------------------------------------------------------------------------


def _settings(config: Path | None) -> "tuple[Settings | None, str]":
    """The settings, or why there are none. One that was not asked for and is bad keeps nobody from looking at a file."""
    from ckptwatch.errors import CkptwatchError
    from ckptwatch.outline import find_config

    found = find_config(config)
    if found is None:
        return None, "no configuration: give one with -c CONFIG to have its recipe tried"
    try:
        return settings_of(config), ""
    except CkptwatchError:
        if config is not None:
            raise
        return None, f"{found} has problems: `ckptwatch check-config {found}` lists them"


def _subject(path: Path, settings: "Settings | None") -> "tuple[Subject, RootRule | None]":
    """What a path means, and the configured root that it lies below. Raises UsageError, CkptwatchError."""
    from ckptwatch.errors import CkptwatchError, UsageError
    from ckptwatch.formats.base import NamePatterns, claim_at, formats
    from ckptwatch.quickcheck import Subject, others_in, run_of, saved_of

    if not path.exists():
        cause = "a dangling link" if path.is_symlink() else "no such file or directory"
        raise UsageError("check", cause, path=path, hint="give a checkpoint, RUN@STEP, or a run's directory")
    try:
        real = path.resolve(strict=True)
        root = next((r for r in settings.roots if real.is_relative_to(r.root.resolve())), None) if settings else None
        names = NamePatterns(patterns=root.names) if root is not None else None
        claim = claim_at(real)
        if claim is not None:
            run = run_of(claim)
            others = others_in(run) if run != claim.path else ()
            return Subject(saved=saved_of(claim, names), run_directory=run, others=others), root
        if real.is_dir():
            return _of_run(real, names), root
    except OSError as error:
        raise CkptwatchError("check", error.strerror or str(error), path=path, hint="give what can be read") from error
    raise UsageError("check", "no known checkpoint format claims it", path=path,
                     hint=f"known formats: {', '.join(f.name for f in formats())}")


def _of_run(directory: Path, names: "NamePatterns | None") -> "Subject":
    from ckptwatch.errors import UsageError
    from ckptwatch.logged_now import logged_in
    from ckptwatch.model import Logged
    from ckptwatch.quickcheck import newest_in

    subject = newest_in(directory, names)
    if subject.saved is not None:
        return subject
    if subject.others:
        shown = ", ".join(str(d.relative_to(directory)) for d in subject.others[:8])
        more = f" and {len(subject.others) - 8} more" if len(subject.others) > 8 else ""
        raise UsageError("check", f"no run itself; it holds those of {shown}{more}", path=directory,
                         hint=f"name one of them: ckptwatch check {subject.others[0]}")
    if not logged_in(directory, (), Logged()).logs:
        raise UsageError("check", "neither a checkpoint nor a log in it", path=directory,
                         hint="give a checkpoint, or the directory a trainer writes into")
    return subject


def _wishes(
    subject: "Subject", settings: "Settings | None", root: "RootRule | None", trouble: str, *, recipe: str | None,
    expect: list[str] | None, expect_loss: list[str] | None, with_pass: bool,
) -> "Wishes":
    from ckptwatch.model import RunRule
    from ckptwatch.quickcheck import Wishes

    name = _run_name(subject, root)
    rule = settings.rule_for(name) if settings is not None and name else RunRule()
    chosen, why = _recipe(settings, rule, recipe, trouble) if with_pass else (None, "")
    return Wishes(
        rule=rule, recipe=chosen, no_recipe=why, expect=tuple(expect or rule.expect),
        expect_losses=tuple(expect_loss or rule.expect_logged), trusted=root is not None and root.trusted,
        with_pass=with_pass)


def _run_name(subject: "Subject", root: "RootRule | None") -> str:
    """Of a run below a watched root; "" for any other."""
    from ckptwatch.core.naming import run_name

    if root is None or not subject.run_directory.is_relative_to(root.root.resolve()):
        return ""
    return run_name(subject.run_directory.relative_to(root.root.resolve()))


def _recipe(
    settings: "Settings | None", rule: "RunRule", given: str | None, trouble: str,
) -> "tuple[Recipe | None, str]":
    """The recipe of the pass, or why there is none. Raises UsageError for one that does not exist."""
    from ckptwatch.errors import UsageError

    if given is not None and (settings is None or given not in settings.recipes):
        has = f"the configuration has: {', '.join(settings.recipes) or 'none'}" if settings is not None else trouble
        raise UsageError("check", f"no recipe {given!r}", hint=has)
    if settings is None:
        return None, trouble
    if given is not None:
        return settings.recipes[given], ""
    if rule.evaluate is not None:
        return settings.recipes[rule.evaluate.recipe], ""
    if len(settings.recipes) == 1:
        return next(iter(settings.recipes.values())), ""
    names = ", ".join(settings.recipes) or "none"
    return None, f"cannot tell which recipe is meant: name one with --recipe (the configuration has: {names})"


# ---- doing it -------------------------------------------------------------------------------------------------------


def _evaluate(subject: "Subject", settings: "Settings | None", screen: "Console") -> "Evaluate":
    from ckptwatch.foreground import evaluate_now

    def evaluate(recipe: "Recipe", variant: str):  # type: ignore[no-untyped-def]
        assert settings is not None and subject.saved is not None
        claim, format_ = subject.saved.claim, subject.saved.format
        members = tuple(m.name for m in claim.members) if len(claim.members) > 1 else ()
        holding = format_.variant_path(claim.path, members, variant) if variant else claim.path
        return evaluate_now(settings, holding, recipe, variant=variant, device=None, keep=None, screen=screen,
                            run=subject.run_directory.name, facts=subject.saved.facts)

    return evaluate


@contextlib.contextmanager
def _progress(total: int, screen: "Console") -> "Iterator[Advance]":
    """A bar with bytes and time left on standard error; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("weights"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
               TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
