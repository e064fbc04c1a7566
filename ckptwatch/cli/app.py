"""`ckptwatch`: the commands by name. `--help` imports neither torch nor SQLAlchemy; a test looks at sys.modules."""

import os
import sys
from typing import Annotated

import typer

from ckptwatch import __version__
from ckptwatch.cli import (
    act,
    check,
    check_config,
    demo,
    evaluate,
    inspect,
    notify,
    plan,
    rank,
    run,
    samples,
    stats,
    status,
    trash,
)
from ckptwatch.cli.console import complain
from ckptwatch.errors import CkptwatchError

app = typer.Typer(
    name="ckptwatch", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Watches training runs, scores every finished checkpoint out of process and keeps the ones worth keeping.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"ckptwatch {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)] = False,
) -> None:
    """Options before any command."""


for _name, _command in (
    ("run", run.run), ("status", status.status), ("rank", rank.rank), ("plan", plan.plan), ("eval", evaluate.evaluate),
    ("inspect", inspect.inspect), ("pin", act.pin), ("unpin", act.unpin), ("retry", act.retry), ("approve", act.approve),
    ("samples", samples.samples),
    ("restore", act.restore), ("trash", trash.trash), ("check-config", check_config.check_config), ("demo", demo.demo),
    ("check", check.check), ("stats", stats.stats), ("notify", notify.notify),
):
    app.command(_name)(_command)


def main() -> None:
    """Exit status: 0 done, 1 failed, 2 usage or configuration, 3 done in part; 130 after Ctrl-C."""
    try:
        app()
    except CkptwatchError as error:
        complain(error)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        # `ckptwatch status | head` is no error; keep Python from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
