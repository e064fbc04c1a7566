"""inspect: what a path holds, and how we know; with --verify, whether it still holds what was written."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptwatch.cli.console import console, emit_json
from ckptwatch.cli.context import AsciiOption, ConfigOption, JsonOption, path_meant, settings_of

if TYPE_CHECKING:
    from ckptwatch.errors import UsageError
    from ckptwatch.formats.base import Claim, Format, NamePatterns
    from ckptwatch.formats.bulk import Advance
    from ckptwatch.formats.integrity import FileVerdict
    from ckptwatch.model import Facts
    from ckptwatch.watch.sightings import Sighting

SHOWN = 20   # files or checkpoints listed one by one
LEVELS = 4   # directories above a path in which a checkpoint is looked for that it may be a part of


def inspect(
    path: Annotated[str, typer.Argument(help="A checkpoint: its path, an alias, or RUN@STEP.")],
    verify: Annotated[bool, typer.Option(
        "--verify", help="Read every byte and check it against the checksums in the files; exit status 1 if any is damaged.",
    )] = False,
    config: ConfigOption = None, json: JsonOption = False, ascii_only: AsciiOption = False,
) -> None:
    """Show format, completeness with evidence, step, epoch, logged metrics, variants, entries, size and identity."""
    from ckptwatch.core.expectation import lacking
    from ckptwatch.errors import CkptwatchError
    from ckptwatch.formats.base import examine
    from ckptwatch.watch.sightings import sight

    try:
        meant = path_meant(path, config).resolve(strict=True)
        claim, format_ = _claimed(meant, path)
        sighting = sight(claim)
        patterns, expected = _configured(meant, claim, config)
        facts = examine(claim, format_, patterns)
        missing = lacking(expected, facts.keys)
        verdicts = _verify(claim, format_, ascii_only) if verify else None
        if verify and sight(claim) != sighting:
            raise CkptwatchError("verify", "it changed while it was read", path=path, hint="try again when nobody writes it")
    except OSError as error:
        raise CkptwatchError("inspect", error.strerror or str(error), path=path,
                             hint="give a file that can be read, or RUN@STEP") from error
    around = _around(meant) if not claim.whole else None
    if json:
        emit_json(_document(sighting, facts, missing, around, verdicts))
    else:
        _show(sighting, facts, missing, around, verdicts, ascii_only)
    if verdicts and any(v.state == "damaged" for v in verdicts):
        raise typer.Exit(1)
    if not facts.complete:
        raise typer.Exit(3)


# ---- what is meant --------------------------------------------------------------------------------------------------


def _claimed(path: Path, given: str) -> "tuple[Claim, Format]":
    """Raises UsageError where it is no checkpoint, OSError."""
    from ckptwatch.formats.base import claim_at, format_named

    claim = claim_at(path)
    format_ = format_named(claim.format) if claim else None
    if claim is None or format_ is None:
        raise _no_checkpoint(path, given)
    return claim, format_


def _configured(path: Path, claim: "Claim", config: Path | None) -> "tuple[NamePatterns | None, tuple[str, ...]]":
    """The name patterns of the configured root the path lies below, and what its run expects of checkpoints. A
    configuration that was not asked for and is bad keeps nobody from looking at a file."""
    from ckptwatch.core.naming import run_directory, run_name
    from ckptwatch.errors import CkptwatchError
    from ckptwatch.formats.base import NamePatterns
    from ckptwatch.outline import find_config

    try:
        settings = settings_of(config) if find_config(config) is not None else None
    except CkptwatchError:
        if config is not None:
            raise
        settings = None
    for rule in settings.roots if settings is not None else ():
        root = rule.root.resolve()
        if settings is not None and path.is_relative_to(root):
            directory = run_directory(claim.path, whole=claim.whole)
            inside = directory.is_relative_to(root)  # a root that is a checkpoint itself is nobody's
            expected = settings.rule_for(run_name(directory.relative_to(root))).expect if inside else ()
            return NamePatterns(patterns=rule.names), expected
    return None, ()


def _no_checkpoint(path: Path, given: str) -> "UsageError":
    """What helps a person on: the checkpoints below a directory, the one a file is a part of, the formats we know."""
    from ckptwatch.errors import UsageError
    from ckptwatch.formats.base import formats

    if (around := _around(path)) is not None:
        return UsageError("inspect", f"it is a part of the checkpoint {around.path}", path=given,
                          hint=f"ckptwatch inspect {around.path}")
    if path.is_dir() and (below := _below(path)):
        more = f", and {len(below) - SHOWN} more" if len(below) > SHOWN else ""
        listed = ", ".join(str(c.path.relative_to(path)) for c in below[:SHOWN])
        count = "1 checkpoint lies" if len(below) == 1 else f"{len(below):,} checkpoints lie"
        return UsageError("inspect", f"it is no checkpoint itself; {count} below it: {listed}{more}", path=given,
                          hint=f"inspect one of them: ckptwatch inspect {below[0].path}")
    names = ", ".join(f.name for f in formats())
    return UsageError("inspect", "no known checkpoint format claims it", path=given, hint=f"known formats: {names}")


def _around(path: Path) -> "Claim | None":
    """The checkpoint that is a directory above this path."""
    from ckptwatch.formats.base import claims_in, list_folder

    for above in list(path.parents)[:LEVELS]:
        with contextlib.suppress(OSError):
            whole = next((c for c in claims_in(list_folder(above)) if c.whole), None)
            if whole is not None:
                return whole
    return None


def _below(path: Path) -> "list[Claim]":
    from ckptwatch.formats.base import claims_below

    found: list[Claim] = []
    with contextlib.suppress(OSError):  # one unreadable directory: what was found until then helps, too
        found.extend(claims_below(path))
    return sorted(found, key=lambda claim: claim.path)


# ---- verifying ------------------------------------------------------------------------------------------------------


def _verify(claim: "Claim", format_: "Format", ascii_only: bool) -> "list[FileVerdict]":
    from ckptwatch.errors import CkptwatchError
    from ckptwatch.formats.integrity import size_of
    from ckptwatch.formats.integrity import verify as verdicts

    try:
        with _progress(size_of(claim), ascii_only) as advance:
            return list(verdicts(claim, format_, advance))
    except ValueError as error:
        raise CkptwatchError("verify", str(error), path=claim.path) from error


@contextlib.contextmanager
def _progress(total: int, ascii_only: bool) -> "Iterator[Advance]":
    """A bar with bytes and time left on standard error; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
               TimeRemainingColumn())
    with Progress(*columns, console=console(ascii_only=ascii_only, stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


# ---- telling --------------------------------------------------------------------------------------------------------


def _document(
    sighting: "Sighting", facts: "Facts", missing: tuple[str, ...], around: "Claim | None",
    verdicts: "list[FileVerdict] | None",
) -> dict[str, Any]:
    identity = {"device": sighting.device, "inode": sighting.inode, "size": sighting.size, "mtime_ns": sighting.mtime_ns,
                "fingerprint": facts.fingerprint}
    document: dict[str, Any] = {
        "version": 1, "path": str(sighting.path), "format": facts.format, "complete": facts.complete,
        "evidence": facts.evidence, "step": facts.step, "epoch": facts.epoch, "metrics": dict(facts.metrics),
        "variants": list(facts.variants), "keys": list(facts.keys), "missing_keys": list(missing),
        "bytes": sighting.size, "identity": identity, "files": sighting.files,
        "members": [str(member) for member in sighting.claim.members],
        "part_of": str(around.path) if around is not None else None,
    }
    if verdicts is not None:
        document["verified"] = {
            "files": [{"path": str(v.path), "state": v.state.value, "evidence": v.evidence} for v in verdicts],
            "bytes": sighting.size, "damaged": sum(v.state == "damaged" for v in verdicts),
        }
    return document


def _show(
    sighting: "Sighting", facts: "Facts", missing: tuple[str, ...], around: "Claim | None",
    verdicts: "list[FileVerdict] | None", ascii_only: bool,
) -> None:
    from ckptwatch.core.amounts import format_bytes

    out = console(ascii_only=ascii_only)
    files = f", {sighting.files:,} files" if sighting.files != 1 else ""
    rows = {
        "path": str(sighting.path), "format": facts.format,
        "complete": ("✓ yes: " if facts.complete else "✗ no: ") + facts.evidence,
        "step": facts.step, "epoch": facts.epoch,
        "metrics": ", ".join(f"{k} {v:.4g}" for k, v in facts.metrics.items()) or None,
        "variants": ", ".join(facts.variants) or None,
        "keys": ", ".join(facts.keys[:SHOWN]) + f" and {len(facts.keys) - SHOWN} more" * (len(facts.keys) > SHOWN) or None,
        "size": f"{format_bytes(sighting.size)} ({sighting.size:,} bytes{files})",
        "identity": f"inode {sighting.inode}, fingerprint {facts.fingerprint or 'none'}",
    }
    if missing:
        rows["lacks"] = f"{', '.join(missing)}, which the configuration expects in its run"
    if around is not None:
        rows["part of"] = str(around.path)
    for name, value in rows.items():
        out.print(f"{name:<9} {'unknown' if value is None else value}", soft_wrap=True)
    if verdicts is None:
        return
    symbols = {"ok": "✓", "damaged": "✗", "no checksum": "·"}
    counts = {state: sum(v.state == state for v in verdicts) for state in symbols}
    out.print(f"verified  {format_bytes(sighting.size)} read: {counts['ok']} ok, {counts['damaged']} damaged, "
              f"{counts['no checksum']} without checksum", soft_wrap=True)
    top = sighting.path if sighting.claim.whole else sighting.path.parent
    ordered = sorted(verdicts, key=lambda v: v.state != "damaged")
    listed = ordered[: max(SHOWN, counts["damaged"])]
    for verdict in listed:
        name = verdict.path.relative_to(top) if verdict.path != top else verdict.path
        out.print(f"  {symbols[verdict.state]} {verdict.state}: {name}: {verdict.evidence}", soft_wrap=True)
    if len(ordered) > len(listed):
        out.print(f"  and {len(ordered) - len(listed)} more, none of them damaged")
