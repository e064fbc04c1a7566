"""inspect: what a path holds, and how we know."""

from typing import Annotated

import typer

from ckptwatch.cli.console import console, emit_json
from ckptwatch.cli.context import AsciiOption, ConfigOption, JsonOption, path_meant


def inspect(
    path: Annotated[str, typer.Argument(help="A checkpoint: its path, an alias, or RUN@STEP.")],
    config: ConfigOption = None, json: JsonOption = False, ascii_only: AsciiOption = False,
) -> None:
    """Show format, completeness with evidence, step, epoch, logged metrics, variants, size and identity."""
    from ckptwatch.core.amounts import format_bytes
    from ckptwatch.errors import CkptwatchError, UsageError
    from ckptwatch.formats.base import examine, format_of, formats
    from ckptwatch.watch.scanner import entry_of

    try:
        entry = entry_of(path_meant(path, config).resolve(strict=True))
        format_ = format_of(entry)
        if format_ is None:
            names = ", ".join(f.name for f in formats())
            raise UsageError("inspect", "no known checkpoint format claims it", path=path, hint=f"known formats: {names}")
        facts = examine(entry.path, format_)
    except OSError as error:
        raise CkptwatchError("inspect", error.strerror or str(error), path=path,
                             hint="give a file that can be read, or RUN@STEP") from error
    identity = {"device": entry.device, "inode": entry.inode, "size": entry.size, "mtime_ns": entry.mtime_ns,
                "fingerprint": facts.fingerprint}
    if json:
        emit_json({"version": 1, "path": str(entry.path), "format": facts.format, "complete": facts.complete,
                   "evidence": facts.evidence, "step": facts.step, "epoch": facts.epoch, "metrics": dict(facts.metrics),
                   "variants": list(facts.variants), "bytes": entry.size, "identity": identity})
    else:
        out = console(ascii_only=ascii_only)
        rows = {
            "path": str(entry.path), "format": facts.format,
            "complete": ("✓ yes: " if facts.complete else "✗ no: ") + facts.evidence,
            "step": facts.step, "epoch": facts.epoch,
            "metrics": ", ".join(f"{k} {v:.4g}" for k, v in facts.metrics.items()) or None,
            "variants": ", ".join(facts.variants) or None, "size": f"{format_bytes(entry.size)} ({entry.size:,} bytes)",
            "identity": f"inode {entry.inode}, fingerprint {facts.fingerprint or 'none'}",
        }
        for name, value in rows.items():
            out.print(f"{name:<9} {'unknown' if value is None else value}", soft_wrap=True)
    if not facts.complete:
        raise typer.Exit(3)
