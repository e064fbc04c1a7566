"""A recipe's digest and its inputs on disk: what makes two scores comparable, and what is missing to measure at all."""

import contextlib
import hashlib
import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ckptwatch.model import Recipe, to_plain

# Raised when the evaluation itself changes so that numbers of before and after do not compare.
EVALUATION_VERSION = 1
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_LIBRARIES = {
    "fid": ("torch", "torchvision", "torch-fidelity"),
    "inception_score": ("torch", "torchvision", "torch-fidelity"),
    "kid": ("torch", "torchvision", "torch-fidelity"),
    "clip_score": ("torch", "open_clip_torch"),
    "lpips": ("torch", "lpips"),
}


class ContentDigests:
    """SHA-256 of files, remembered by (inode, size, mtime) in a file, so that a reference set is read once."""

    def __init__(self, cache_file: Path) -> None:
        self._file = cache_file
        self._changed = False
        try:
            raw = json.loads(cache_file.read_text())
            self._known: dict[str, list[Any]] = raw if isinstance(raw, dict) else {}
        except (OSError, ValueError, RecursionError):
            self._known = {}  # a lost cache costs one reading

    def of(self, path: Path) -> str:
        """Hex digest of a file's content. Raises OSError."""
        info = path.stat()
        key = [info.st_ino, info.st_size, info.st_mtime_ns]
        known = self._known.get(str(path))
        if isinstance(known, list) and len(known) == 4 and known[:3] == key:
            return str(known[3])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._known[str(path)] = [*key, digest]
        self._changed = True
        return digest

    def of_images(self, directory: Path) -> str:
        """Digest over names and contents of the images of a directory. Raises OSError, ValueError if there are none."""
        names = sorted(n for n in os.listdir(directory) if n.lower().endswith(IMAGE_SUFFIXES))
        if not names:
            raise ValueError("no images in it")
        total = hashlib.sha256()
        for name in names:
            total.update(f"{name}\0{self.of(directory / name)}\n".encode(errors="surrogateescape"))
        return total.hexdigest()

    def save(self) -> None:
        """Best effort: a cache that cannot be written only costs time."""
        if not self._changed:
            return
        temporary = self._file.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._known))
            temporary.replace(self._file)
            self._changed = False
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def inspect_recipe(recipe: Recipe, contents: ContentDigests) -> tuple[str, list[str]]:
    """(digest, problems). With problems (inputs missing, empty, unreadable) the recipe cannot be used at present.

    The digest covers what changes a score: sampler, seeds, sample count, prompts, reference content, networks and their
    weights, metrics and the versions of the libraries that compute them. Batch size, device and kept images do not.
    """
    problems: list[str] = []

    def content(name: str, path: Path | None, *, directory: bool = False) -> str | None:
        if path is None:
            return None
        try:
            return contents.of_images(path) if directory else contents.of(path)
        except OSError as error:
            problems.append(f"{name} {path}: {error.strerror or error}")
        except ValueError as error:
            problems.append(f"{name} {path}: {error}")
        return None

    networks = to_plain(recipe.networks)
    networks["features_weights"] = content("network weights", recipe.networks.features_weights)
    networks["lpips_weights"] = content("network weights", recipe.networks.lpips_weights)
    clip = recipe.networks.clip
    if clip.startswith("local-dir:"):
        folder = Path(clip.removeprefix("local-dir:"))
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        if not files:
            problems.append(f"CLIP model {folder}: not there")
        networks["clip"] = [[f.name, content("CLIP model", f)] for f in files if f.is_file()]
    if Path(recipe.networks.clip_pretrained).is_absolute():
        networks["clip_pretrained"] = content("CLIP weights", Path(recipe.networks.clip_pretrained))
    libraries = sorted({name for m in recipe.metrics for name in _LIBRARIES.get(m.name, ())})
    described = {
        "evaluation": EVALUATION_VERSION,
        "version": recipe.version,
        "sampler": {k: v for k, v in to_plain(recipe.sampler).items() if k != "timeout"},
        "samples": recipe.samples,
        "seed": recipe.seed,
        "prompts": content("prompts", recipe.prompts),
        "reference": {
            "images": content("reference images", recipe.reference.images, directory=True),
            "stats": content("reference statistics", recipe.reference.stats),
            "paired": content("paired originals", recipe.reference.paired, directory=True),
        },
        "networks": networks,
        "metrics": to_plain(recipe.metrics),
        "libraries": {name: _version(name) for name in libraries},
    }
    contents.save()
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(), problems


def input_stamp(recipe: Recipe) -> tuple[Any, ...]:
    """Changes when an input of the recipe may have changed; cheap enough to ask at every scan.

    An image overwritten in place in a reference directory goes unnoticed until the next start.
    """
    networks = recipe.networks
    paths = [recipe.prompts, recipe.reference.images, recipe.reference.stats, recipe.reference.paired,
             networks.features_weights, networks.lpips_weights]
    if networks.clip.startswith("local-dir:"):
        paths.append(Path(networks.clip.removeprefix("local-dir:")))
    if Path(networks.clip_pretrained).is_absolute():
        paths.append(Path(networks.clip_pretrained))
    clip = Path(recipe.networks.clip.removeprefix("local-dir:")), Path(recipe.networks.clip_pretrained)
    return tuple(_stamp(p) for p in [*paths, *(p for p in clip if p.is_absolute())] if p is not None)


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return (info.st_ino, info.st_size, info.st_mtime_ns)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "missing"
