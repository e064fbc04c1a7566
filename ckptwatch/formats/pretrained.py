"""Weights as the Hugging Face libraries name them: which entries of a directory they are, and whether they are whole.

`save_pretrained` of transformers, diffusers and PEFT, Trainer and Accelerate all use these names.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ckptwatch.formats.parts import look
from ckptwatch.formats.reading import open_regular
from ckptwatch.formats.sharded_safetensors import Shards, Verdict, find_shards, judge_shards

WHOLE_JSON = 1024 * 1024  # bytes; of a larger tokenizer only the two ends are read

_STEMS = "model|pytorch_model|adapter_model|diffusion_pytorch_model|pytorch_model_fsdp"
_STEM = re.compile(rf"(?:{_STEMS})(?:_\d{{1,2}}+)?(?:\.[a-z0-9_-]{{1,24}}+)?")
_NUMBERED = re.compile(rf"(?:{_STEMS})_\d")
_SINGLE = re.compile(rf"{_STEM.pattern}\.(?:safetensors|bin)|pytorch_lora_weights\.safetensors")
_INDEX = re.compile(
    rf"(?P<stem>{_STEM.pattern})(?P<suffix>\.safetensors|\.bin)\.index(?:\.(?P<variant>[a-z0-9_-]{{1,24}}))?\.json")
_PICKLED = re.compile(
    r"(?:training_args|optimizer|scheduler|sampler|dl_state_dict|(?:diffusion_)?pytorch_model|adapter_model)[\w.-]{0,99}\.bin"
    r"|(?:random_states|custom_checkpoint)_\d{1,9}\.pkl")
_ADAPTER = frozenset({"adapter_model.safetensors", "adapter_model.bin"})
_JSON = frozenset({
    "generation_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "trainer_state.json", "model_index.json", "modules.json", "config_sentence_transformers.json",
})


# ---- by names --------------------------------------------------------------------------------------------------------


def is_weights(name: str) -> bool:
    """One file of weights, or a shard."""
    return _SINGLE.fullmatch(name) is not None or ("-of-" in name and bool(_known_shards((name,))))


def is_pretrained(name: str) -> bool:
    """A name that only these libraries give, or a safetensors file of any name."""
    return name.endswith((".safetensors", "config.json", ".index.json")) or name in _JSON or (
        _PICKLED.fullmatch(name) is not None or is_weights(name))


def weights_among(names: Iterable[str]) -> list[str]:
    """The files of weights, indexes left out, sorted."""
    return sorted(name for name in names if is_weights(name))


def indexes_among(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(".json") and _INDEX.fullmatch(name))


def is_saved_model(name: str) -> bool:
    """Weights of the one model of a directory: `model_1.safetensors` may be a step's, and is Accelerate's at best."""
    return is_weights(name) and _NUMBERED.match(name) is None and not name.startswith(("pytorch_lora", "pytorch_model_fsdp"))


# ---- by content ------------------------------------------------------------------------------------------------------


def judge_weights(directory: Path, names: Iterable[str]) -> Verdict:
    """All weights directly in a directory, whose files these are. Raises OSError."""
    names = frozenset(names)
    files: list[Path] = []
    said: list[str] = []
    for shards in _with_lone_indexes(names):
        verdict = judge_shards(directory, shards, names)
        if not verdict.whole:
            return verdict
        files += verdict.files
        said.append(verdict.evidence)
    for name in sorted(names):
        if not _SINGLE.fullmatch(name):
            continue
        if evidence := broken_file(directory / name):
            return Verdict(whole=False, evidence=f"{name}: {evidence}")
        files.append(directory / name)
        said.append(f"{name} whole")
    if not files:
        return Verdict(whole=False, evidence="no weights")
    return Verdict(whole=True, evidence=short_list(said), files=tuple(files))


def judge_adapters(directory: Path, names: Iterable[str]) -> str:
    """What is wrong with the adapter in a directory whose files these are: weights without configuration; "" if nothing."""
    names = frozenset(names)
    if names & _ADAPTER and "adapter_config.json" not in names:
        return "adapter_config.json, which is written after the weights, is missing"
    return broken_file(directory / "adapter_config.json") if "adapter_config.json" in names else ""


def is_structured(name: str) -> bool:
    """A file of a kind that can be judged. Others, a user's own log or a report, prove nothing."""
    return (name.endswith((".safetensors", ".pt", ".pth", ".ckpt", "config.json", ".index.json")) or name in _JSON
            or _PICKLED.fullmatch(name) is not None)


def broken_file(path: Path) -> str:
    """Why a file is not whole; "" if it is. Raises OSError, but for a file that is gone."""
    try:
        if path.suffix == ".json":
            return _broken_json(path)
        part = look(path)
    except FileNotFoundError:
        return "missing"
    return "" if part.whole else part.evidence


def _broken_json(path: Path) -> str:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > WHOLE_JSON:
            first = file.read(64)
            file.seek(size - 64)
            return "" if first.lstrip()[:1] in (b"{", b"[") and file.read(64).rstrip()[-1:] in (b"}", b"]") else "cut off"
    part = look(path)
    return "" if part.whole else part.evidence


def shown(name: str | Path) -> str:
    """As part of evidence, which is text, while the bytes of a name may be none."""
    return str(name).encode(errors="replace").decode()


def short_list(said: Sequence[str], most: int = 3) -> str:
    return "; ".join(said[:most]) + (f"; and {len(said) - most} more" if len(said) > most else "")


def _known_shards(names: Iterable[str]) -> list[Shards]:
    return [shards for shards in find_shards(names) if _STEM.fullmatch(shards.stem)]


def _with_lone_indexes(names: frozenset[str]) -> Iterator[Shards]:
    """The shards, and the indexes of which no shard is there (any more)."""
    used = set()
    for shards in _known_shards(names):
        used.add(shards.index)
        yield shards
    for name in sorted(names - used):
        if name.endswith(".json") and (match := _INDEX.fullmatch(name)):
            stem = match["stem"] + (f".{match['variant']}" if match["variant"] else "")
            yield Shards(stem=stem, suffix=match["suffix"], names=(), total=0, index=name)
