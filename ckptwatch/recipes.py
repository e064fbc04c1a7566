"""A recipe's digest and its inputs on disk: what makes two scores comparable, and what is missing to measure at all."""

import contextlib
import hashlib
import json
import os
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from ckptwatch.core.placeholders import EVALUATION, examine_pattern
from ckptwatch.model import Recipe, to_plain

# Raised when the evaluation itself changes so that numbers of before and after do not compare.
EVALUATION_VERSION = 2
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FIDELITY = ("torch", "torchvision", "torch-fidelity", "pillow")  # pillow decodes the images
_LIBRARIES = {
    "fid": _FIDELITY, "inception_score": _FIDELITY, "kid": _FIDELITY, "precision": _FIDELITY, "recall": _FIDELITY,
    "clip_score": ("torch", "torchvision", "open_clip_torch", "pillow"),
    "cmmd": ("torch", "torchvision", "open_clip_torch", "pillow"),
    "fd_dinov2": ("torch", "timm", "pillow"),
    "lpips": ("torch", "torchvision", "lpips", "pillow"),
}
_LOGGING = frozenset({"log_samples", "log_interval", "log_max_samples"})  # what is kept for people changes no score
_SAMPLER_LIBRARIES = {"diffusers": ("torch", "diffusers"), "program": ("torch",)}

# What torch-fidelity, lpips and torchvision keep in torch's directory, by the name that the configuration has for it. The
# name of a file ends in the beginning of its SHA-256.
_IN_TORCH_HOME = {
    "inception-v3-compat": "weights-inception-2015-12-05-6726825d.pth",
    "vgg16": "vgg16-397923af.pth",
    "alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
# Which fields of `Networks` name a file of weights, a network of torch's directory, an open_clip model and its weights.
_WEIGHTS = ("features_weights", "lpips_weights", "prc_weights", "dino_weights")
_LIBRARY_NETWORKS = {"features": "features_weights", "lpips": "lpips_weights", "prc": "prc_weights"}
_CLIPS = {"clip": "clip_pretrained", "cmmd": "cmmd_pretrained"}
# Which metrics a field of `Networks` matters to; the others change no score, and no digest.
_USED_BY = {
    "features": ("fid", "kid", "inception_score"), "prc": ("precision", "recall"), "dino": ("fd_dinov2",),
    "cmmd": ("cmmd",), "clip": ("clip_score",), "lpips": ("lpips",), "logits": ("inception_score",),
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
            if not self._file.parent.parent.is_dir():
                return  # a command without a daemon's state directory leaves none behind
            self._file.parent.mkdir(exist_ok=True)
            temporary.write_text(json.dumps(self._known))
            temporary.replace(self._file)
            self._changed = False
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def inspect_recipe(recipe: Recipe, contents: ContentDigests) -> tuple[str, list[str]]:
    """(digest, problems). With problems (inputs missing, empty, unreadable) the recipe cannot be used at present.

    The digest covers what changes a score: sampler, seeds, classes, sample count, prompts, reference content, networks,
    their weights and precision, metrics and the versions of the libraries that compute them. Batch size, device, number of
    workers and kept images do not. Weights in a hub's cache are not looked at here: a worker tells what it had in the
    definition of each score, and the ranking keeps unlike ones apart.

    Of an evaluation command: its words, the file it answers in, the content of csv_input, max_samples and the metrics. What
    its own files hold is not looked at: raise `version` when they change.
    """
    return _inspect_images(recipe, contents) if recipe.kind == "images" else _inspect_other(recipe, contents)


def _inspect_other(recipe: Recipe, contents: ContentDigests) -> tuple[str, list[str]]:
    problems: list[str] = []
    csv_input = recipe.command.csv_input if recipe.command is not None else None
    content = None
    if csv_input is not None:
        try:
            if csv_input.exists() and not csv_input.is_file():
                raise OSError("not a plain file")
            content = contents.of(csv_input)
        except OSError as error:
            problems.append(f"csv_input {csv_input}: {error.strerror or error}")
    contents.save()
    return _digest(_described(recipe, content)), problems


def _inspect_images(recipe: Recipe, contents: ContentDigests) -> tuple[str, list[str]]:
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

    networks = _networks_used(recipe)
    for name in _WEIGHTS:
        if name in networks:
            networks[name] = content("network weights", getattr(recipe.networks, name))
    for name, given in _LIBRARY_NETWORKS.items():
        place = _in_torch_home(getattr(recipe.networks, name)) if name in networks and networks[given] is None else None
        if place is not None and place.is_file():
            found = content("network weights", place)
            # As published, it is what the library would download: the same digest before and after it did.
            networks[given] = None if found and found.startswith(place.stem.rpartition("-")[2]) else found
    for name, given in _CLIPS.items():
        if name not in networks:
            continue
        if (folder := _local_directory(getattr(recipe.networks, name))) is not None:
            files = sorted(folder.iterdir()) if folder.is_dir() else []
            if not files:
                problems.append(f"CLIP model {folder}: not there")
            networks[name] = [[f.name, content("CLIP model", f)] for f in files if f.is_file()]
        if Path(networks[given]).is_absolute():
            networks[given] = content("CLIP weights", Path(networks[given]))
    sampler = {k: v for k, v in to_plain(recipe.sampler).items() if k != "timeout"}
    if recipe.sampler.program is not None:
        sampler["program"]["file"] = content("sampler program", recipe.sampler.program.file)
    if (base := _local_base(recipe)) is not None:
        files = sorted(f for f in base.rglob("*") if f.is_file() and not f.name.startswith("."))
        if not files:
            problems.append(f"base pipeline {base}: not there")
        sampler["diffusers"]["base"] = [[str(f.relative_to(base)), content("base pipeline", f)] for f in files]
    libraries = sorted({name for m in recipe.metrics for name in _LIBRARIES.get(m.name, ())}
                       | set(_SAMPLER_LIBRARIES.get(recipe.sampler.kind, ())))
    described = {
        "evaluation": EVALUATION_VERSION,
        "version": recipe.version,
        "sampler": sampler,
        "samples": recipe.samples,
        "seed": recipe.seed,
        "num_classes": recipe.num_classes,
        "image_size": recipe.image_size,
        "prompts": content("prompts", recipe.prompts),
        "reference": {
            "images": content("reference images", recipe.reference.images, directory=True),
            "stats": content("reference statistics", recipe.reference.stats),
            "paired": content("paired originals", recipe.reference.paired, directory=True),
        },
        "networks": networks,
        "metrics": to_plain(recipe.metrics),
        "libraries": {name: _version(name) for name in libraries},
        "plugins": [_plugin_version(m.name) for m in recipe.metrics if not m.function and m.name not in _LIBRARIES],
    }
    contents.save()
    return _digest(described), problems


def _digest(described: Any) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _described(recipe: Recipe, csv_content: str | None) -> dict[str, Any]:
    """What makes the scores of a recipe without images what they are."""
    described = {"evaluation": EVALUATION_VERSION, "version": recipe.version, "metrics": to_plain(recipe.metrics)}
    if recipe.logged is not None:
        described["logged"] = to_plain(recipe.logged)
    if (command := recipe.command) is not None:
        described["command"] = {"argv": [list(w) if isinstance(w, tuple) else w for w in command.argv if _scored(w)],
                                "result": command.result, "csv_input": csv_content, "max_samples": command.max_samples}
    return described


def _scored(words: str | tuple[str, ...]) -> bool:
    """Words that may be left out and are about the logging of samples alone do not count."""
    asked = {name for word in words for name in examine_pattern(word, EVALUATION)[1]} if isinstance(words, tuple) else set()
    return not asked or not asked <= _LOGGING


def input_stamp(recipe: Recipe) -> tuple[Any, ...]:
    """Changes when an input of the recipe may have changed; cheap enough to ask at every scan.

    An image overwritten in place in a reference directory goes unnoticed until the next start.
    """
    if recipe.command is not None:
        return () if recipe.command.csv_input is None else (_stamp(recipe.command.csv_input),)
    networks = recipe.networks
    paths = [recipe.prompts, recipe.reference.images, recipe.reference.stats, recipe.reference.paired,
             *(getattr(networks, name) for name in _WEIGHTS),
             *(_in_torch_home(getattr(networks, name)) for name in _LIBRARY_NETWORKS)]
    for name, given in _CLIPS.items():
        paths.append(_local_directory(getattr(networks, name)))
        paths.append(Path(getattr(networks, given)) if Path(getattr(networks, given)).is_absolute() else None)
    if recipe.sampler.program is not None:
        paths.append(recipe.sampler.program.file)
    if (base := _local_base(recipe)) is not None:
        paths += [base, *sorted(base.rglob("*"))]
    return tuple(_stamp(p) for p in paths if p is not None)


def _networks_used(recipe: Recipe) -> dict[str, Any]:
    """The networks that the recipe's metrics rest on, and how they are run."""
    names = {m.name for m in recipe.metrics if not m.function}
    used = {prefix for prefix, metrics in _USED_BY.items() if names & set(metrics)}
    also = {"precision"} | ({"features_module"} if "prc" in used else set())  # it may register what `prc` names
    return {key: value for key, value in to_plain(recipe.networks).items() if key in also or key.partition("_")[0] in used}


def _local_base(recipe: Recipe) -> Path | None:
    """The directory of a base pipeline; None for one by its hub name."""
    pipeline = recipe.sampler.diffusers
    return Path(pipeline.base) if pipeline is not None and Path(pipeline.base).is_absolute() else None


def _local_directory(clip: str) -> Path | None:
    return Path(clip.removeprefix("local-dir:")) if clip.startswith("local-dir:") else None


def _in_torch_home(network: str) -> Path | None:
    """Where a library looks for the weights of one of its networks, None where that is not known."""
    if network not in _IN_TORCH_HOME:
        return None
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    return Path(home) / "hub" / "checkpoints" / _IN_TORCH_HOME[network]


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return (info.st_ino, info.st_size, info.st_mtime_ns)


def _plugin_version(metric: str) -> list[str]:
    """The packages that offer a metric of this name, with their versions."""
    points = entry_points(group="ckptwatch.metrics", name=metric)
    return sorted(f"{p.value} {p.dist.name} {p.dist.version}" if p.dist else p.value for p in points)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "missing"
