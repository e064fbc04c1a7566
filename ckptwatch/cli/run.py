"""run: the daemon."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckptwatch.cli.context import ConfigOption

if TYPE_CHECKING:
    from ckptwatch.settings import Settings


def run(
    roots: Annotated[list[Path] | None, typer.Argument(
        metavar="[ROOT]...", help="Directories to watch without a configuration: find, rank by logged metrics, report, "
                                  "remove nothing.")] = None,
    config: ConfigOption = None,
    once: Annotated[bool, typer.Option("--once", help="Process what is there, then exit.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide everything, change nothing below the roots.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log details.")] = False,
) -> None:
    """Watch, evaluate, rank, keep and prune until stopped."""
    from ckptwatch.config import settings_for_roots
    from ckptwatch.daemon import Daemon
    from ckptwatch.errors import UsageError

    if roots and config is not None:
        raise UsageError("run", "both roots and a configuration are given", hint="name the roots under watch: in the file")
    for root in roots or ():
        if not root.is_dir():
            raise UsageError("watch", "no such directory" if not root.exists() else "not a directory", path=root)
    settings = settings_for_roots(roots) if roots else _configured(config)
    logging.basicConfig(
        stream=sys.stderr, level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for noisy in ("watchdog", "asyncio", "alembic", "PIL", "tensorboard"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    daemon = Daemon(settings, dry_run=dry_run)
    daemon.stop_on_signals()
    if not once:
        daemon.run()
        return
    if daemon.run_once():
        raise typer.Exit(3)


def _configured(config: Path | None) -> "Settings":
    from ckptwatch.cli.context import settings_of
    from ckptwatch.errors import UsageError

    settings = settings_of(config)
    if not settings.roots:
        raise UsageError("run", "nothing to watch", hint="give -c CONFIG, or directories: ckptwatch run runs/")
    return settings
