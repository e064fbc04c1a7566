"""What a CLIP weights file is, and what follows from it. open_clip knows that of tags, and asks nothing about files.

Two things are lost with the tag, and neither gives an error: the activation the weights were trained with (QuickGELU or
GELU), and how images are to be preprocessed.
"""

import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ckptwatch.evaluate.failures import recipe_error

PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
SUFFIX = "-quickgelu"  # of open_clip's names for models with that activation


@dataclass(frozen=True, kw_only=True)
class Tag:
    """One set of weights in open_clip's registry."""

    model: str
    tag: str
    quick_gelu: bool
    preprocessing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> str:
        return f"{self.model} {self.tag}"


def origin(file: Path) -> Tag | None:
    """The tag whose weights a file holds, by its name, its place in a hub cache or its content; None: cannot be told.

    Names that tell no more than the model ("ViT-B-32.pt") prove nothing; for those the SHA-256 must be the registry's. A
    TorchScript archive is one of OpenAI's, the only ones that were published as such.
    """
    registered = list(_registry())
    places = [_plain(part) for part in (file.stem, *(parent.name for parent in list(file.parents)[:3]))]
    for tag, config in registered:
        if places[0] in _file_names(tag, config) or not _hub_names(config).isdisjoint(places):
            return tag
    if is_torchscript(file):
        fallback = Tag(model="an OpenAI model", tag="openai", quick_gelu=True)
        return _by_content(file, registered) or fallback
    return None if file.suffix == ".safetensors" else _by_content(file, registered)  # no such file has a registered digest


def check_activation(model: str, file: Path, found: Tag, setting: str) -> str:
    """Raises EvaluationError (RECIPE) where the model computes another activation than the weights were trained with and
    open_clip has a model that does not. Where it has none, a warning; else ""."""
    import open_clip

    quick = _uses_quick_gelu(model)
    if quick == found.quick_gelu:
        return ""
    trained, computed = ("QuickGELU", "GELU") if found.quick_gelu else ("GELU", "QuickGELU")
    cause = f"it holds {found.words}, trained with {trained}, and {model} computes {computed}"
    base = model.removesuffix(SUFFIX)
    better = base if quick else base + SUFFIX
    if better == model or better not in open_clip.list_models() or _uses_quick_gelu(better) == quick:
        return f"CLIP {file}: {cause}"
    raise recipe_error("load CLIP", cause, path=file, hint=f"set {setting}.model to {better}", retryable=False)


def preprocessing(model: str, found: Tag | None, setting: str) -> tuple[dict[str, Any], str]:
    """How images are to be preprocessed for a weights file, as keyword arguments of open_clip, and a warning or "".

    As the file's own tag says; without one as all tags of the model say; where they disagree, open_clip's default.
    """
    if found is not None and found.preprocessing:
        return _arguments(found.preprocessing), ""
    tags = [tag for tag, _ in _registry() if tag.model == model]
    tags = [tag for tag in tags if tag.quick_gelu == _uses_quick_gelu(model)] or tags
    differing = [key for key in PREPROCESSING if len({str(tag.preprocessing[key]) for tag in tags}) > 1]
    if differing:
        return {}, (
            f"CLIP {model}: open_clip's weights for it differ in {', '.join(differing)} of their preprocessing, and whose "
            f"the file is cannot be told; its default is used. Set {setting}.model to local-dir:PATH, whose "
            "open_clip_config.json says it"
        )
    return (_arguments(tags[0].preprocessing) if tags else {}), ""


def is_torchscript(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            names = [PurePosixPath(name) for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return False
    return any(name.name == "constants.pkl" for name in names) and any("code" in name.parts[1:] for name in names)


def _registry() -> Iterator[tuple[Tag, Mapping[str, Any]]]:
    """All tags; of two models that share them, the one that computes what they were trained with comes first."""
    import open_clip

    fitting, other = [], []
    for model, name in open_clip.list_pretrained():
        config = open_clip.get_pretrained_cfg(model, name)
        quick = bool(config.get("quick_gelu", False))
        tag = Tag(model=model, tag=name, quick_gelu=quick, preprocessing={key: config.get(key) for key in PREPROCESSING})
        (fitting if quick == _uses_quick_gelu(model) else other).append((tag, config))
    return iter(fitting + other)


def _uses_quick_gelu(model: str) -> bool:
    import open_clip

    return bool((open_clip.get_model_config(model.replace("/", "-")) or {}).get("quick_gelu", False))


def _arguments(found: Mapping[str, Any]) -> dict[str, Any]:
    return {f"image_{key}": found[key] for key in PREPROCESSING if found.get(key) is not None}


def _file_names(tag: Tag, config: Mapping[str, Any]) -> set[str]:
    names = {_plain(f"{tag.model}-{tag.tag}"), _plain(f"{tag.model.removesuffix(SUFFIX)}-{tag.tag}")}
    url = config.get("url") or ""
    if url and "openaipublic" not in url:
        names.add(_plain(PurePosixPath(url).stem))
    return names


def _hub_names(config: Mapping[str, Any]) -> set[str]:
    """How a hub's repository is called where it lies on a disk."""
    owner, _, rest = (config.get("hf_hub") or "").partition("/")
    name = rest.partition("/")[0]
    return {_plain(name), _plain(f"models--{owner}--{name}")} if name else set()


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def _by_content(file: Path, registered: list[tuple[Tag, Mapping[str, Any]]]) -> Tag | None:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    for tag, config in registered:
        expected = _expected_digest(config.get("url") or "")
        if expected and digest.startswith(expected):
            return tag
    return None


def _expected_digest(url: str) -> str:
    """The digest, or its beginning, that a registered address carries: OpenAI's in a folder, open_clip's in the name."""
    parts = PurePosixPath(url).parts
    if "openaipublic" in url and len(parts) > 1:
        return parts[-2]
    end = PurePosixPath(url).stem.rpartition("-")[2] if "mlfoundations" in url else ""
    return end if re.fullmatch(r"[0-9a-f]{8,64}", end) else ""
