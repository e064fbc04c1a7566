"""Which checkpoint of a directory is meant: the best, else the last, else the newest."""

from collections.abc import Collection
from dataclasses import dataclass

SUFFIX = ".ckpt"
PREFERRED = ("best.ckpt", "last.ckpt")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One entry of the directory."""

    name: str
    link: str = ""         # where it points to, as it stands in the link; "": it is no link
    there: bool = True     # False: a link to nothing
    modified: float = 0.0  # of what it is or points to, in seconds since the epoch


@dataclass(frozen=True, kw_only=True)
class Choice:
    """`name` is the entry that is meant, and why; or `problem` says why there is none, and `hint` what to do."""

    name: str = ""
    why: str = ""
    problem: str = ""
    hint: str = ""
    empty: bool = False  # there is nothing under the names that are looked for


def choose_checkpoint(seen: Collection[Seen]) -> Choice:
    """`best.ckpt`, else `last.ckpt`, else the newest `.ckpt` by modification time, of equally new ones the last by name.

    A preferred link that leads nowhere is a problem, not a reason to take another: somebody meant it.
    """
    by_name = {entry.name: entry for entry in seen}
    for name in PREFERRED:
        if (entry := by_name.get(name)) is None:
            continue
        if not entry.there:
            return Choice(problem=f"{name} points to {entry.link}, which does not exist", hint=_instead(name, seen))
        return Choice(name=name, why=f"{name}, a link to {entry.link}" if entry.link else name)
    others = [entry for entry in seen if entry.name.endswith(SUFFIX) and entry.there and not entry.name.startswith(".")]
    if not others:
        return Choice(problem=f"no checkpoint in it: looked for {', '.join(PREFERRED)} and *{SUFFIX}",
                      hint="name the checkpoint itself", empty=True)
    newest = max(others, key=lambda entry: (entry.modified, entry.name))
    of = "the only one" if len(others) == 1 else f"the newest of {len(others)}"
    return Choice(name=newest.name, why=f"{of} by modification time; there is no {' and no '.join(PREFERRED)}")


def _instead(dangling: str, seen: Collection[Seen]) -> str:
    names = sorted(entry.name for entry in seen if entry.name.endswith(SUFFIX) and entry.there)
    others = f"name a checkpoint yourself: {', '.join(names[:5])}" if names else "there is no other checkpoint in it"
    return f"{others}; or set the link anew, or remove {dangling}"
