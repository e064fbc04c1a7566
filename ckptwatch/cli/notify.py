"""notify: does a message reach whoever the configuration names?"""

import socket
from typing import Annotated, Any

import typer

from ckptwatch.cli.console import console, emit_json
from ckptwatch.cli.context import AsciiOption, ConfigOption, JsonOption, settings_of


def notify(
    test: Annotated[bool, typer.Option("--test", help="Send a test message to every endpoint.")] = False,
    config: ConfigOption = None, json: JsonOption = False, ascii_only: AsciiOption = False,
) -> None:
    """Send a test message to each URL under notify: and say whether it arrived. URLs are shown without their secrets."""
    from ckptwatch.core.telling import Message
    from ckptwatch.errors import ConfigError, UsageError
    from ckptwatch.publish.notify import deliver, endpoints_of

    if not test:
        raise UsageError("notify", "there is nothing to send but a test message", hint="ckptwatch notify --test")
    settings = settings_of(config)
    if not settings.notify.to:
        raise UsageError("send a test message", "the configuration names nobody to notify",
                         hint='add notify: ["slack://…"], or ["env:NAME"] for a URL in an environment variable')
    endpoints, problems = endpoints_of(settings.notify.to)
    if problems:
        if json:
            emit_json({"version": 1, "ok": False, "problems": problems, "endpoints": []})
            raise typer.Exit(2)
        raise ConfigError(None, problems)
    message = Message(title="ckptwatch: test message", level="warning",
                      body=f"Alarms of training runs watched on {socket.gethostname()} will arrive here.")
    results = [(endpoint.shown, deliver(endpoint, message)) for endpoint in endpoints]
    _show(results, json=json, ascii_only=ascii_only)
    if not all(arrived for _, arrived in results):
        raise typer.Exit(1)


def _show(results: list[tuple[str, bool]], *, json: bool, ascii_only: bool) -> None:
    if json:
        document: dict[str, Any] = {
            "version": 1, "ok": all(arrived for _, arrived in results), "problems": [],
            "endpoints": [{"url": shown, "arrived": arrived} for shown, arrived in results]}
        emit_json(document)
        return
    out = console(ascii_only=ascii_only)
    for shown, arrived in results:
        out.print(f"✓ {shown}: arrived" if arrived else f"✗ {shown}: not delivered; is it reachable, are its secrets right?",
                  style="green" if arrived else "red")
