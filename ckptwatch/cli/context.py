"""Options every command shares, and the way from them to settings."""

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    from ckptwatch.config import find_config, load_config
    from ckptwatch.errors import UsageError
    from ckptwatch.settings import Settings, default_state_dir

    found = find_config(config)
    if found is not None:
        return load_config(found)
    if (default_state_dir() / "ckptwatch.db").exists():
        return Settings(state_dir=default_state_dir(), roots=(), observe_only=True)
    raise UsageError("find a configuration", "none was given and none is in the usual places",
                     hint="give one with -c CONFIG (config.example.yaml is a start), or try `ckptwatch demo`")


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
