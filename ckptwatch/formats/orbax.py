"""Orbax: step directories of JAX programs, renamed into place when they are whole, and removed in place."""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ckptwatch.formats.base import About, Claim, Family, Folder
from ckptwatch.formats.ocdbt import NAME as MANIFEST
from ckptwatch.formats.ocdbt import manifest_flaw
from ckptwatch.formats.parts import fingerprint_of
from ckptwatch.formats.reading import is_name, numbers_in, read_json, whole_number
from ckptwatch.formats.tree import files_below
from ckptwatch.model import Facts

MARKER, COMMIT, ITEM = "_CHECKPOINT_METADATA", "commit_success.txt", "_METADATA"
_UNFINISHED = ".orbax-checkpoint-tmp"
_STEP = re.compile(r"(?:.{1,200}_)?0*(?P<step>\d{1,18})")
_USUAL_ITEMS = frozenset({"default", "items"})
_DESCRIPTIONS = frozenset({ITEM, ".zarray", "zarr.json"})
_NO_WEIGHTS = re.compile(r"opt_?state|optimizer.*|step|rng.*|.*scheduler.*|metrics", re.IGNORECASE)


class Orbax(Family):
    name = "orbax"
    precedence = 16
    about = About(
        title="Orbax",
        recognised="a directory with `_CHECKPOINT_METADATA`; step directories `100/`, `prefix_00000100/` with `_METADATA`, "
                   "`manifest.ocdbt`, `default/` or `items/`; `*.orbax-checkpoint-tmp*`",
        complete="the name, since the directory is renamed when it is whole; and, because it is removed in place: "
                 "`_CHECKPOINT_METADATA` can be read and tells a time of commit, every item it lists is there with data, "
                 "manifests are whole, and `commit_success.txt` is there if any item has one. A removal that was cut short "
                 "among the data files of an item is not noticed. A temporary directory is never complete",
        facts="step from the name; metrics from `metrics/metrics` and `_CHECKPOINT_METADATA`; variants are the outermost "
              "keys of the tree that are no optimizer's",
        forbidden_names=r"(?:[^_]{1,200}_)?\d+|.*\.orbax-checkpoint-tmp.*",
        forbidden_because="CheckpointManager takes each for a step",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        unfinished = _UNFINISHED in folder.name
        ours = MARKER in folder.files or (
            _STEP.fullmatch(folder.name) is not None
            and not (folder.files.isdisjoint((ITEM, MANIFEST)) and folder.folders.isdisjoint(_USUAL_ITEMS)))
        if unfinished or ours:
            yield self.claim_folder(folder)

    def examine(self, claim: Claim) -> Facts:
        top = claim.path
        if _UNFINISHED in top.name:
            return self.incomplete("temporary name: Orbax renames the directory when it is whole")
        try:
            files = files_below(top)
            document = self._document(top)
            evidence = _flaw(top, files, document)
            metrics = _metrics(top, document)
        except ValueError as error:
            return self.incomplete(str(error))
        if evidence:
            return self.incomplete(evidence)
        match = _STEP.fullmatch(top.name)
        items = _items(document) or _folders(top)
        return Facts(
            format=self.name, complete=True, step=int(match["step"]) if match else None, metrics=metrics,
            evidence=_said(top, items), variants=_variants(top, items), content_digest=True,
            fingerprint=fingerprint_of(files, top))

    @staticmethod
    def _document(top: Path) -> dict[str, Any]:
        """What `_CHECKPOINT_METADATA` says; {} in the layout of old that has none. Raises OSError, ValueError."""
        try:
            document = read_json(top / MARKER)
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ValueError(f"{MARKER}: {error}") from error
        if not isinstance(document, dict):
            raise ValueError(f"{MARKER} is no JSON object")
        return document


def _flaw(top: Path, files: list[Path], document: Mapping[str, Any]) -> str:
    """What is missing; "" if nothing is. Raises OSError."""
    here = frozenset(path.relative_to(top).as_posix() for path in files)
    items = _items(document) or _folders(top)
    if document and whole_number(document.get("commit_timestamp_nsecs")) is None:
        return f"{MARKER} tells no time of commit"
    if not items and not any(name.endswith((ITEM, MANIFEST)) for name in here):
        return "no item in it"
    bare = [item for item in items if not document and not _is_described(item, here)]
    if bare:
        return f"nothing describes its item {bare[0]}: being removed"
    return _item_flaw(items, here) or next(filter(None, (_file_flaw(path, top, here) for path in files)), "")


def _is_described(item: str, here: frozenset[str]) -> bool:
    """Is there more of it than data: a file directly in it, or the description of an array?"""
    inside = [name.removeprefix(f"{item}/") for name in here if name.startswith(f"{item}/")]
    return any(name in (ITEM, MANIFEST, COMMIT, "checkpoint") or name.endswith((".zarray", "zarr.json")) for name in inside)


def _item_flaw(items: Iterable[str], here: frozenset[str]) -> str:
    """Items that are not there, or not committed as the whole is."""
    for item in items:
        inside = {name.removeprefix(f"{item}/") for name in here if name.startswith(f"{item}/")}
        if not inside - {COMMIT}:
            return f"its item {item} is missing or empty"
        if COMMIT in inside and COMMIT not in here:
            return f"{COMMIT} is missing, which {item} has: being removed"
        if COMMIT in here and COMMIT not in inside:
            return f"{item}/{COMMIT} is missing, which the step has: being removed"
    return ""


def _file_flaw(path: Path, top: Path, here: frozenset[str]) -> str:
    """What is wrong with a file that describes others. Raises OSError."""
    name = path.relative_to(top).as_posix()
    below = name.removesuffix(path.name)
    evidence = ""
    if path.name == MANIFEST:
        merged = not path.parent.name.startswith("ocdbt.process_")  # else what one process wrote
        if merged and here.isdisjoint((f"{below}{ITEM}", f"{below}checkpoint")):
            return f"{below}{ITEM} is missing"
        evidence = manifest_flaw(path) or _without_data(here, f"{below}d/", frozenset())
    elif path.name in _DESCRIPTIONS:
        try:
            document = read_json(path)
        except ValueError as error:
            return f"{name}: {error}"
        if path.name == ITEM:
            if isinstance(document, dict) and document.get("use_ocdbt") is True and f"{below}{MANIFEST}" not in here:
                return f"{below}{MANIFEST} is missing"
            evidence = _without_data(here, below, {name, f"{below}{COMMIT}", MARKER})
    return evidence and f"{name}: {evidence}"


def _without_data(here: frozenset[str], below: str, besides: Collection[str]) -> str:
    found = any(name.startswith(below) and name not in besides for name in here)
    return "" if found else "the data it describes are missing"


def _items(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The directories it lists; none for a checkpoint without items, whose handler is named alone."""
    handlers = document.get("item_handlers")
    return tuple(k for k in handlers if is_name(k) and "/" not in k) if isinstance(handlers, dict) else ()


def _folders(top: Path) -> tuple[str, ...]:
    """The items of a step without metadata."""
    if (top / ITEM).exists() or (top / MANIFEST).exists():
        return ()
    return tuple(sorted(path.name for path in top.iterdir() if path.is_dir() and not path.is_symlink()))


def _metrics(top: Path, document: Mapping[str, Any]) -> dict[str, float]:
    """Raises OSError; ValueError for metrics that are cut off."""
    found = numbers_in(document.get("metrics"))
    try:
        return found | numbers_in(read_json(top / "metrics" / "metrics"))
    except (FileNotFoundError, NotADirectoryError):
        return found
    except ValueError as error:
        raise ValueError(f"metrics/metrics: {error}") from error


def _variants(top: Path, items: Iterable[str]) -> tuple[str, ...]:
    """Outermost keys of the trees that hold further keys: "params", "ema_params"."""
    found: dict[str, None] = {}
    for folder in [top, *(top / item for item in items)]:
        try:
            tree = read_json(folder / ITEM)
        except (OSError, ValueError):
            continue
        entries = tree.get("tree_metadata") if isinstance(tree, dict) else None
        for entry in entries.values() if isinstance(entries, dict) else ():
            path = entry.get("key_metadata") if isinstance(entry, dict) else None
            if isinstance(path, list) and len(path) > 1 and isinstance(path[0], dict):
                found[path[0].get("key") if isinstance(path[0].get("key"), str) else ""] = None
    return tuple(name for name in found if is_name(name) and not _NO_WEIGHTS.fullmatch(name))


def _said(top: Path, items: tuple[str, ...]) -> str:
    name = "renamed into place" if not (top / COMMIT).exists() else f"{COMMIT} is there"
    return f"{name}; " + (f"all items whole: {', '.join(items)}" if items else "its data whole")
