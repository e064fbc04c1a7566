"""Which checkpoint a path means: itself, or the best, last or newest of a directory; and what lies around it."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from ckptwatch.core.selection import SUFFIX, Seen, choose_checkpoint
from ckptwatch.errors import CkptwatchError, UsageError
from ckptwatch.formats.base import Claim, claim_at, claims_in, formats, list_folder
from ckptwatch.formats.metadata_directory import LORA, METADATA
from ckptwatch.surroundings import Surroundings, around

_SHOWN = 5  # names in an error


@dataclass(frozen=True, kw_only=True)
class Meant:
    """One checkpoint."""

    path: Path                     # links resolved
    claim: Claim                   # what it is, or is a member of
    why: str                       # why this one
    directory: Path | None = None  # in which it was chosen; None: it was named itself
    around: Surroundings = field(default_factory=Surroundings)


def meant_by(path: Path) -> Meant:
    """Raises UsageError, in words, for what is no checkpoint, a link to nothing, a directory without one; CkptwatchError
    for what cannot be read."""
    if not path.exists():
        cause = f"a dangling link to {path.readlink()}" if path.is_symlink() else "no such file"
        raise UsageError("evaluate", cause, path=path, hint="give a checkpoint, or a directory of checkpoints")
    try:
        real = path.resolve()
        if (claim := claim_at(real)) is not None:
            return Meant(path=real, claim=claim, why="named", around=around(real))
        if real.is_dir():
            return _in_directory(real, path)
    except OSError as error:
        raise unreadable(path, error) from error
    raise UsageError("evaluate", "no known checkpoint format claims it", path=path,
                     hint=f"known formats: {', '.join(f.name for f in formats())}")


def unreadable(path: Path, error: OSError) -> CkptwatchError:
    return CkptwatchError("evaluate", error.strerror or str(error), path=path, hint="give a checkpoint that can be read")


def _in_directory(directory: Path, path: Path) -> Meant:
    """`path` is what the directory was called."""
    choice = choose_checkpoint([_seen(directory / name) for name in os.listdir(directory) if name.endswith(SUFFIX)])
    if choice.problem:
        others = _others(directory) if choice.empty else ""
        raise UsageError("evaluate", choice.problem, path=path, hint=choice.hint + others)
    chosen = (directory / choice.name).resolve()
    claim = claim_at(chosen)
    if claim is None:
        raise UsageError("evaluate", f"{choice.name} is meant ({choice.why}), and is no checkpoint of a known format",
                         path=path, hint="name the checkpoint itself")
    # What the directory has counts before what lies beside the target of a link that leads out of it.
    there = around(chosen)
    metadata, lora = directory / METADATA, directory / LORA
    found = Surroundings(metadata=metadata if metadata.is_file() else there.metadata,
                         lora=lora if lora.is_dir() else there.lora)
    return Meant(path=chosen, claim=claim, why=choice.why, directory=directory, around=found)


def _seen(path: Path) -> Seen:
    link = str(path.readlink()) if path.is_symlink() else ""
    try:
        return Seen(name=path.name, link=link, modified=path.stat().st_mtime)
    except (OSError, RuntimeError):
        return Seen(name=path.name, link=link, there=False)


def _others(directory: Path) -> str:
    """Checkpoints that the directory has under other names."""
    names = sorted({claim.path.name for claim in claims_in(list_folder(directory, is_root=True)) if not claim.aside})
    return f": {', '.join(names[:_SHOWN])}{' …' if len(names) > _SHOWN else ''}" if names else ""
