"""pin, unpin, retry, approve, restore: what a person decides. Safe while the daemon runs, done by ourselves when not."""

from typing import Annotated

import typer

from ckptwatch.cli.console import emit_json
from ckptwatch.cli.context import ConfigOption, JsonOption, act

Target = Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint: its path, an alias, or RUN@STEP.")]


def pin(
    path: Target, config: ConfigOption = None, json: JsonOption = False,
    why: Annotated[str, typer.Option("--why", help="Kept with the pin and shown as its reason.")] = "",
) -> None:
    """Keep a checkpoint, whatever the rules say."""
    reply = act(config, "pin", target=path, why=why)
    emit_json(dict(reply)) if json else print(f"pinned {reply['path']}")


def unpin(path: Target, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Let the rules decide again."""
    reply = act(config, "unpin", target=path)
    emit_json(dict(reply)) if json else print(f"unpinned {reply['path']}")


def retry(path: Target, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Evaluate a checkpoint again: after failures, or although it has scores."""
    reply = act(config, "retry", target=path)
    emit_json(dict(reply)) if json else print(f"{reply['path']} waits for evaluation again")


def approve(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run: its name or directory.")],
    config: ConfigOption = None, json: JsonOption = False,
) -> None:
    """Let a plan go ahead that removes so much that it waits for a person. See `ckptwatch plan RUN` first."""
    from ckptwatch.core.amounts import format_bytes

    reply = act(config, "approve", target=run)
    if json:
        emit_json(dict(reply))
    else:
        print(f"approved for {reply['run']}: {reply['removals']} removals, {format_bytes(reply['bytes'])}, into the trash")


def restore(path: Target, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Bring a checkpoint back from the trash, bit for bit. It is pinned, so that no rule takes it again."""
    from ckptwatch.core.amounts import format_bytes

    reply = act(config, "restore", target=path)
    emit_json(dict(reply)) if json else print(f"restored {reply['path']} ({format_bytes(reply['bytes'])}) and pinned it")
