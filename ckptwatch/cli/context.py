"""Options every command shares, and the way from them to settings."""

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptwatch.outline import Outline
    from ckptwatch.settings import Settings

ConfigOption = Annotated[Path | None, typer.Option(
    "--config", "-c", help="Configuration file; default: $CKPTWATCH_CONFIG, ./ckptwatch.yaml, "
                           "~/.config/ckptwatch/config.yaml, /etc/ckptwatch/config.yaml.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
AsciiOption = Annotated[bool, typer.Option("--ascii", help="ASCII symbols only.")]


def settings_of(config: Path | None) -> "Settings":
    """The settings of the configuration in use. Raises UsageError where there is none, ConfigError where it is bad.

    Without any configuration, what `ckptwatch run ROOT` keeps in the default state directory is used.
    """
    from ckptwatch.config import load_config
    from ckptwatch.settings import Settings, default_state_dir

    found = _found(config)
    return Settings(state_dir=default_state_dir(), roots=(), observe_only=True) if found is None else load_config(found)


def outline_of(config: Path | None) -> "Outline":
    """As `settings_of`, but only what `status` needs, and without complaint about the rest of the file."""
    from ckptwatch.outline import Outline, default_state_dir, read_outline

    found = _found(config)
    return Outline(state_dir=default_state_dir()) if found is None else read_outline(found)


def _found(config: Path | None) -> Path | None:
    from ckptwatch.errors import UsageError
    from ckptwatch.outline import default_state_dir, find_config

    found = find_config(config)
    if found is None and not (default_state_dir() / "ckptwatch.db").exists():
        raise UsageError("find a configuration", "none was given and none is in the usual places",
                         hint="give one with -c CONFIG (config.example.yaml is a start), or try `ckptwatch demo`")
    return found


def path_meant(target: str, config: Path | None) -> Path:
    """The file a person means: a path as it stands, or RUN@STEP of the configuration's runs.

    Raises UsageError if RUN@STEP names nothing known.
    """
    from ckptwatch.errors import UsageError

    path = Path(target)
    if path.exists() or path.is_symlink() or "@" not in target:
        return path
    from ckptwatch.commands import find_checkpoint
    from ckptwatch.store.database import open_reading

    db = open_reading(outline_of(config).state_dir)
    if db is None:
        raise UsageError("find checkpoint", "nothing is recorded yet", path=target, hint="give its path")
    try:
        with db.read() as conn:
            return find_checkpoint(conn, target).path
    finally:
        db.close()


def act(config: Path | None, command: str, **arguments: Any) -> "Mapping[str, Any]":
    """Have a command carried out: by the running daemon, or by ourselves under its lock."""
    from ckptwatch import control

    settings = settings_of(config)
    arguments["by"] = getpass.getuser()
    reply = control.request(settings.state_dir, command, **arguments)
    if reply is None:
        from ckptwatch.daemon import run_commands

        reply = run_commands(settings, {"command": command, **arguments})
    return reply
