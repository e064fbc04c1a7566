"""What a name says: step, epoch, metrics and role of a checkpoint, and which run a directory belongs to.

Every row of the table is matched against the whole name. A name that fits no row is not guessed at: nothing is known
about it, and what cannot be parsed is never removed.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePath

from ckptwatch.model import Role

LONGEST = 255  # NAME_MAX; no file has a longer name, and it bounds the time a hostile string can take

CONVENTIONAL = frozenset(
    {"checkpoints", "checkpoint", "ckpt", "ckpts", "weights", "models", "snapshots", "saved_models"}
)


@dataclass(frozen=True, kw_only=True)
class NameFacts:
    """None where the name does not say."""

    step: int | None = None
    epoch: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    role: Role = Role.REGULAR


# ---- pieces. Quantifiers are bounded or possessive, so no name can make a match backtrack for long -------------------

# 18 digits fit a 64-bit integer; longer numbers are hashes or dates with times, not steps.
_INT = r"\d{1,18}+"
_NUMBER = r"(?>[-+]?(?:\d{1,18}(?:\.\d{1,30})?|\.\d{1,30})(?:e[-+]?\d{1,3})?|[-+]?inf|nan)"
_SUFFIX = (
    r"(?:\.(?:pth\.tar|pt\.tar|weights\.h5|weights\.json|safetensors|msgpack|pdparams|params|pickle|ckpt|keras|hdf5|onnx|gguf|tar|"
    r"zip|pth|pt2|pkl|npz|npy|bin|h5|pt|ts))"
)
_END = rf"(?:-v\d{{1,6}})?{_SUFFIX}?"  # Lightning appends -v1 where a name is taken

_COUNTERS: dict[str, str] = {
    "epoch": "epoch", "epochs": "epoch", "ep": "epoch",
    "step": "step", "steps": "step", "global_step": "step", "global-step": "step", "train_step": "step",
    "iter": "step", "iters": "step", "iteration": "step", "iterations": "step", "ba": "step", "kimg": "step",
    "eval_step": "", "val_step": "", "rank": "",  # they count something else
}
_NOUNS = (
    "network-snapshot", "training-state", "checkpoints", "checkpoint", "snapshot", "weights", "state", "chkpt", "model",
    "ckpt",
)
_METRICS = (
    r"(?:(?:train|valid|val|test|eval)[-_]?)?(?:loss|accuracy|acc|fid|kid|lpips|psnr|ssim|miou|iou|dice|map|auc|ap|ar|f1|"
    r"rmse|mae|mse|abs_rel|bleu|rouge|wer|cer|perplexity|ppl|score|reward)"
)


def _any(words: Iterable[str]) -> str:
    return "|".join(re.escape(w) for w in sorted(words, key=len, reverse=True))


_COUNTER = rf"(?:{_any(_COUNTERS)})[-_=.]?{_INT}"
_EQUAL = rf"[a-z][\w.@%<>/]{{0,60}}+={_NUMBER}"
_BARE = rf"{_METRICS}[-_]?\d{{1,9}}\.\d{{1,30}}"
_PAIR = rf"(?>{_COUNTER}|{_EQUAL}|{_BARE})"
_METRIC_PAIRS = rf"(?:{_EQUAL}|{_BARE})(?:[-_.]{{1,2}}(?:{_EQUAL}|{_BARE})){{0,8}}"
_PREFIX = r"(?:(?P<prefix>.{1,200}?)[-_.]{1,2})??"
_ROLE = r"best|last|latest|final"
_WORDS = rf"(?P<prefix>(?:(?:{_ROLE}|{_any(_NOUNS)})[-_.]{{1,2}}){{1,3}})"
_TAG = rf"(?:[-_.](?P<tag>{_ROLE}|ema\d{{0,2}}|full|model|weights|lora|adapter|unet|transformer|fp16|bf16|fp32|pruned))?"

_FLAGS = re.IGNORECASE | re.ASCII
# The first row that matches the whole name decides. Each yields some of: step, epoch, pairs, prefix, tag.
_TABLE = tuple(
    re.compile(row, _FLAGS)
    for row in (
        r"(?:\.|(?:tmp|temp)[-_.]).*",                                            # on its way: says nothing
        rf"checkpoint-(?P<epoch>{_INT})\.pth\.tar",                              # timm counts epochs
        rf"recovery-(?P<epoch>{_INT})-{_INT}\.pth\.tar",                          # timm: epoch, batch in it
        r"(?:(?:weights|model|checkpoint|ckpt)[-_.])?(?P<epoch>\d{1,6}+)(?:-\d{1,6}\.\d{1,30})?"
        r"(?:\.keras|\.weights\.h5|\.weights\.json)",                            # Keras: epoch, a metric without its name
        rf"(?P<step>{_INT}){_TAG}{_END}",                                         # 0002000.pt
        rf"network-snapshot-(?P<step>{_INT})-\d\.\d{{1,6}}{_END}",                # EDM2: one file per EMA length
        rf"(?:{_any(_NOUNS)})[-_=.](?P<step>{_INT}){_TAG}{_END}",                 # checkpoint-100, model_0004999.pth
        rf"(?:checkpoint|ckpt)(?P<step>{_INT}){_TAG}{_END}",                      # ckpt200.pt
        rf"(?P<prefix>{_ROLE})[-_.](?:{_any(_NOUNS)})[-_=.](?P<step>{_INT}){_END}",   # best_checkpoint_9.pt
        rf"(?:model|ema_\d\.\d{{1,6}}_|ema)(?P<step>\d{{6,12}}+){_END}",           # guided diffusion: model010000.pt
        rf"(?P<prefix>[a-z]\w{{0,60}}?)[-_.](?:checkpoint|ckpt)[-_=.](?P<step>{_INT}){_END}",  # train_checkpoint_9.pt
        rf"{_PREFIX}(?P<pairs>{_COUNTER}(?:[-_.]{{1,2}}{_PAIR}){{0,8}}){_TAG}{_END}",  # epoch=2-step=500-val_loss=0.3
        rf"{_PREFIX}(?P<tag>{_ROLE})(?:[-_.]?(?:{_any(_NOUNS)}|ema\d{{0,2}}|rank\d{{1,6}})){{0,2}}{_END}",  # model_best.pth
        rf"(?P<prefix>.{{1,200}}?)_(?P<step>{_INT})_(?P<pairs>{_EQUAL}){_END}",   # Ignite: name_9_val_acc=0.77.pt
        rf"{_WORDS}(?P<pairs>{_METRIC_PAIRS}){_TAG}{_END}",                       # best_model_val_acc=0.77.pt
        rf"{_PREFIX}(?P<pairs>{_METRIC_PAIRS}){_TAG}{_END}",
        rf"(?P<tag>best)[-_.][a-z][\w@]{{0,60}}{_END}",                           # best_val_loss.pt
    )
)
_READ_PAIR = re.compile(
    rf"(?:(?P<counter>{_any(_COUNTERS)})[-_=.]?(?P<count>{_INT})|(?P<key>[a-z][\w.@%<>/]{{0,60}}+)=(?P<value>{_NUMBER})"
    rf"|(?P<metric>{_METRICS})(?P<gap>[-_]?)(?P<bare>\d{{1,9}}\.\d{{1,30}}))[-_.]{{0,2}}",
    _FLAGS,
)
_ONLY_METRICS = re.compile(rf"(?:.{{1,200}}?[-_.]{{1,2}})??(?P<pairs>{_METRIC_PAIRS})", _FLAGS)
_ANY_METRIC = re.compile(rf"{_EQUAL}|{_BARE}", _FLAGS)
_SUFFIX_AT_END = re.compile(rf".*?(?P<suffix>{_SUFFIX})", _FLAGS | re.DOTALL)
_PLAIN_WORDS = frozenset(_NOUNS) | {"ema", "best", "last", "latest", "final"}
_ROLES = {"best": Role.BEST, "last": Role.LAST, "latest": Role.LAST, "final": Role.FINAL}


def parse_name(name: str, own: Iterable[re.Pattern[str]] = ()) -> NameFacts:
    """The facts in a file or directory base name, with or without suffix. Never raises; time is bounded.

    `own` are a user's patterns, tried first on the whole name: groups `step` and `epoch` are counts, `role` is best, last
    or final, any other group is a metric.
    """
    if len(name) > LONGEST:
        return NameFacts()
    for pattern in own:
        if match := pattern.fullmatch(name):
            return _by_groups(match.groupdict())
    return _parse(name)


@lru_cache(maxsize=8192)  # a tree has the same names in many runs, and several formats ask about each
def _parse(name: str) -> NameFacts:
    match = next(filter(None, (row.fullmatch(name) for row in _TABLE)), None)
    if match is None:
        return NameFacts()
    found = match.groupdict()
    prefix = found.get("prefix") or ""
    counts, metrics = _read_pairs(found.get("pairs") or "")
    before = _ONLY_METRICS.fullmatch(prefix)  # val_loss=0.3-epoch=1.ckpt
    if before and counts:
        metrics = {**_read_pairs(before["pairs"])[1], **metrics}
    for unit in ("step", "epoch"):
        if found.get(unit):
            counts[unit] = int(found[unit])
    role = _ROLES.get((found.get("tag") or "").lower()) or _role_of_prefix(prefix)
    return NameFacts(step=counts.get("step"), epoch=counts.get("epoch"), metrics=metrics, role=role)


@lru_cache(maxsize=8192)
def series_of(name: str) -> str:
    """What is in a name beside counts, metrics and the usual words: `fold0` in `fold0_epoch_5.pth`. Several models that are
    trained into one directory differ in it."""
    match = next(filter(None, (row.fullmatch(name) for row in _TABLE)), None) if len(name) <= LONGEST else None
    prefix = _ANY_METRIC.sub("", (match.groupdict().get("prefix") or "") if match else "").lower()
    words = [word for word in re.split(r"[-_.]+", prefix) if word]
    return "_".join(word for word in words if word not in _PLAIN_WORDS)


def _by_groups(groups: Mapping[str, str | None]) -> NameFacts:
    """What a user's pattern found. A group that is no number says nothing."""
    counts: dict[str, int] = {}
    metrics: dict[str, float] = {}
    for name, text in groups.items():
        if text is None or name == "role":
            continue
        if name in ("step", "epoch"):
            if re.fullmatch(_INT, text, _FLAGS):
                counts[name] = int(text)
        elif re.fullmatch(_NUMBER, text, _FLAGS):
            metrics[name] = float(text)
    role = _ROLES.get((groups.get("role") or "").lower(), Role.REGULAR)
    return NameFacts(step=counts.get("step"), epoch=counts.get("epoch"), metrics=metrics, role=role)


# A metric called val/acc in Lightning's file-name template makes a directory: `epoch=1-val/acc=0.688.ckpt`.
_FIRST_HALF = re.compile(
    r"(?:[\w.]{1,60}[-_])?(?:epoch|step)=\d{1,18}(?:-[\w.]{1,60}=[^-/]{1,40}){0,8}-[a-z]\w{0,60}", _FLAGS)
_SECOND_HALF = re.compile(rf"[a-z][\w.@]{{0,60}}={_NUMBER}.*", _FLAGS)


def whole_name(path: PurePath) -> str:
    """The name of a checkpoint, put together again where a slash in a metric's name has cut it in two."""
    return f"{path.parent.name}/{path.name}" if is_cut(path) else path.name


def is_cut(path: PurePath) -> bool:
    return _SECOND_HALF.fullmatch(path.name) is not None and _FIRST_HALF.fullmatch(path.parent.name) is not None


def suffix_of(name: str) -> str:
    """The suffix by which checkpoints are known, `.pt` or `.pth.tar`; "" where `.32` is only part of a number."""
    match = _SUFFIX_AT_END.fullmatch(name[-LONGEST:])
    return match["suffix"] if match else ""


def run_directory(path: PurePath, *, whole: bool) -> PurePath:
    """The directory of the run a checkpoint belongs to. `whole`: the path is a directory that is one checkpoint.

    A directory whose name says neither step nor role is a run with one checkpoint, `runs/my-pipeline`.
    """
    if whole and parse_name(path.name) == NameFacts():
        return path
    return path.parent.parent if is_cut(path) else path.parent


def run_name(relative_directory: PurePath) -> str:
    """The run's name: its path below the root, without the directories by which trainers group checkpoints."""
    parts = list(relative_directory.parts)
    while parts and parts[-1].lower() in CONVENTIONAL:
        parts.pop()
    return "/".join(parts) or "."


def _read_pairs(pairs: str) -> tuple[dict[str, int], dict[str, float]]:
    counts: dict[str, int] = {}
    metrics: dict[str, float] = {}
    position = 0
    while match := _READ_PAIR.match(pairs, position):
        position = match.end()
        if match["counter"]:
            unit = _COUNTERS[match["counter"].lower()]
            if unit:
                counts[unit] = int(match["count"])
        elif match["key"]:
            metrics[match["key"]] = float(match["value"])
        elif match["gap"] != "-":  # loss-0.42 may be a dash or a minus: better no value than a wrong one
            metrics[match["metric"]] = float(match["bare"])
    return counts, metrics


def _role_of_prefix(prefix: str) -> Role:
    """`best_AP_epoch_150` is a best; `last_try_step_9` is no last: other words than ours name an experiment."""
    words = re.split(r"[-_.]+", prefix.lower().strip("-_."))
    if "best" in (words[0], words[-1]):
        return Role.BEST
    if all(w in _PLAIN_WORDS for w in words):
        return next((_ROLES[w] for w in words if w in _ROLES), Role.REGULAR)
    return Role.REGULAR
