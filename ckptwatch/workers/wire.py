"""The documents daemon and worker exchange: one JSON object a line, each with a `type`.

Down (standard input of the worker): `Job`. End of file means: finish, then exit.
Up (a private descriptor; standard output and error of the worker go to its log): `Ready`, `Progress`, `Partial`, `Result`,
`Failed`.
The worker never sees the database; all it knows of the world is in its Job.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ckptwatch.model import (
    Composite,
    CompositeTerm,
    EvaluationCommand,
    Failure,
    FailureKind,
    Logged,
    MetricSpec,
    Mode,
    Networks,
    Pipeline,
    Program,
    Recipe,
    Reference,
    Sampler,
    Score,
    to_plain,
)

LONGEST_LINE = 4 * 1024 * 1024  # bytes; a longer one is garbage, not a document


class WireError(ValueError):
    """A line is no document of this protocol."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attempt at one evaluation."""

    job: str            # "<evaluation id>#<attempt>"; comes back in every answer
    checkpoint: Path
    format: str
    run: str
    step: int | None
    epoch: int | None
    variant: str        # "" for the checkpoint as a whole
    recipe: Recipe
    work_dir: Path      # exists, empty, ours; scratch space, removed afterwards by the daemon
    cache_dir: Path     # exists; content-addressed statistics of reference sets, kept between jobs
    log: Path           # standard output and error of this attempt, the sampler's included, are appended here
    trusted: bool = False  # may the checkpoint be unpickled without restriction
    part: int = 0       # of an evaluation that several workers share: which range of its samples; from 0
    parts: int = 1      # into how many it is split; all parts have the same work_dir
    merge: bool = False  # all parts are there: put them together and score

    @property
    def span(self) -> tuple[int, int]:
        """First sample and the one after the last. Parts end where batches do, so that every batch is the one that a
        single worker would see."""
        batches = -(-self.recipe.samples // self.recipe.batch_size)
        first, behind = (batches * p // self.parts * self.recipe.batch_size for p in (self.part, self.part + 1))
        return min(first, self.recipe.samples), min(behind, self.recipe.samples)


@dataclass(frozen=True, kw_only=True)
class Ready:
    device: str
    pid: int


@dataclass(frozen=True, kw_only=True)
class Progress:
    job: str
    stage: str  # "loading", "sampling" or, of images that are there, "scoring", "computing"
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Partial:
    """A part is done; what it measured lies in the work directory until the parts are merged."""

    job: str
    part: int


@dataclass(frozen=True, kw_only=True)
class Result:
    job: str
    scores: tuple[Score, ...]
    seconds: float
    samples: Path | None = None  # directory below work_dir with eval_generated_000.jpg … for people
    influence: Path | None = None  # file below work_dir: each sample's influence on each metric (ckptwatch.influences)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Failed:
    job: str
    failure: Failure
    details: Mapping[str, Any] = field(default_factory=dict)


Document = Job | Ready | Progress | Partial | Result | Failed
_TYPES: dict[str, type] = {
    "job": Job, "ready": Ready, "progress": Progress, "partial": Partial, "result": Result, "failed": Failed,
}
_NAMES = {cls: name for name, cls in _TYPES.items()}


def encode(document: Document) -> bytes:
    """One line, ending in a newline."""
    return json.dumps({"type": _NAMES[type(document)], **to_plain(document)}, allow_nan=True).encode() + b"\n"


def decode(line: bytes) -> Document:
    """The document of a line. Raises WireError for anything else, whatever the bytes are."""
    if len(line) > LONGEST_LINE:
        raise WireError(f"line of {len(line)} bytes")
    try:
        raw = _storable(json.loads(line))
        cls = _TYPES[raw.pop("type")]
        known = {f.name for f in fields(cls)}
        document = cls(**{k: _READERS.get((cls, k), _same)(v) for k, v in raw.items() if k in known})
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WireError(f"not a document: {line[:120]!r} ({error})") from error
    return document


def _storable(value: Any) -> Any:
    """Every text as UTF-8 can hold it: Python shows undecodable file names as lone surrogates, SQLite refuses those."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_storable(k): _storable(v) for k, v in value.items()}
    return [_storable(v) for v in value] if isinstance(value, list) else value


def recipe_from_plain(raw: Mapping[str, Any]) -> Recipe:
    """The inverse of `to_plain` for a Recipe."""
    def path(value: str | None) -> Path | None:
        return None if value is None else Path(value)

    values = dict(raw)
    sampler = dict(values["sampler"])
    sampler["command"] = tuple(sampler.get("command", ()))
    if pipeline := sampler.get("diffusers"):
        sampler["diffusers"] = Pipeline(**pipeline)
    if program := sampler.get("program"):
        sampler["program"] = Program(**{**program, "file": path(program.get("file")), "noise": tuple(program["noise"])})
    values["sampler"] = Sampler(**sampler)
    if command := values.get("command"):
        words = tuple(word if isinstance(word, str) else tuple(word) for word in command["argv"])
        values["command"] = EvaluationCommand(**{**command, "argv": words, "csv_input": path(command.get("csv_input"))})
    if logged := values.get("logged"):
        values["logged"] = Logged(**{**logged, "files": tuple(logged["files"])})
    values["metrics"] = tuple(
        MetricSpec(name=m["name"], function=m["function"], mode=Mode(m["mode"]) if m.get("mode") else None)
        for m in values["metrics"]
    )
    values["prompts"] = path(values.get("prompts"))
    values["reference"] = Reference(**{k: path(v) for k, v in values["reference"].items()})
    networks = dict(values["networks"])
    for key in ("features_weights", "lpips_weights", "prc_weights", "dino_weights"):
        networks[key] = path(networks.get(key))
    values["networks"] = Networks(**networks)
    if values.get("composite"):
        terms = {k: CompositeTerm(**v) for k, v in values["composite"]["terms"].items()}
        values["composite"] = Composite(terms=terms, missing=values["composite"]["missing"])
    return Recipe(**values)


def score_from_plain(raw: Mapping[str, Any]) -> Score:
    """The inverse of `to_plain` for a Score."""
    return Score(
        metric=str(raw["metric"]), value=float(raw["value"]), low=_optional(float, raw.get("low")),
        high=_optional(float, raw.get("high")), n=_optional(_count, raw.get("n")), mode=_optional(Mode, raw.get("mode")),
        definition=str(raw.get("definition", "")))


def failure_from_plain(raw: Mapping[str, Any]) -> Failure:
    """The inverse of `to_plain` for a Failure."""
    return Failure(kind=FailureKind(raw["kind"]), message=str(raw["message"]), hint=str(raw.get("hint", "")),
                   retryable=bool(raw.get("retryable", True)))


def _same(value: Any) -> Any:
    return value


def _optional(read: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else read(value)


def _count(value: Any) -> int:
    number = int(value)
    if not 0 <= number < 2**63:
        raise ValueError(f"{number} is no count")
    return number


_READERS: dict[tuple[type, str], Any] = {
    (Job, "checkpoint"): Path,
    (Job, "work_dir"): Path,
    (Job, "cache_dir"): Path,
    (Job, "log"): Path,
    (Job, "recipe"): recipe_from_plain,
    (Result, "scores"): lambda rows: tuple(score_from_plain(r) for r in rows),
    (Result, "seconds"): float,
    (Result, "samples"): lambda value: _optional(Path, value),
    (Result, "influence"): lambda value: _optional(Path, value),
    (Partial, "part"): _count,
    (Result, "warnings"): lambda rows: tuple(str(r) for r in rows),
    (Progress, "stage"): str,
    (Progress, "done"): _count,
    (Progress, "total"): _count,
    (Failed, "failure"): failure_from_plain,
}
