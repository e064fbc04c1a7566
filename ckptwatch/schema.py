"""The configuration file as pydantic sees it: one class per section, each key with its type and default."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ckptwatch.core.aliasing import check_template
from ckptwatch.core.amounts import parse_duration
from ckptwatch.model import Mode

Duration = Annotated[float, BeforeValidator(lambda v: parse_duration(v) if isinstance(v, str) else v), Field(ge=0)]


def _expanded(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("a path cannot contain a NUL character")
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(str(error)) from error


UserPath = Annotated[Path, AfterValidator(_expanded)]


def _name_pattern(value: str) -> str:
    try:
        pattern = re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    if not pattern.groupindex:
        raise ValueError("names no group: write (?P<step>\\d+), (?P<epoch>\\d+), (?P<role>best|last) or (?P<METRIC>[\\d.]+)")
    return value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _with_rising_range(section: Any) -> Any:
    if not section.range[0] < section.range[1]:
        raise ValueError(f"range must rise, found {list(section.range)}")
    return section


class WatchSection(_Section):
    root: UserPath
    quiet: Duration = 30.0
    scan_every: Annotated[Duration, Field(gt=0)] = 60.0
    trusted: bool = False
    exclude: list[str] = []
    names: list[Annotated[str, AfterValidator(_name_pattern)]] = []


class WorkersSection(_Section):
    devices: Literal["auto"] | list[Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?|mps)$")]] = "auto"
    timeout: Annotated[Duration, Field(gt=0)] = 7200.0
    attempts: Annotated[int, Field(ge=1)] = 3
    retry_after: Duration = 30.0
    threads: Annotated[int, Field(ge=1)] | None = None


class PublishSection(_Section):
    json_files: bool = Field(True, alias="json")
    tensorboard: bool = True
    samples: bool = True


class PipelineSection(_Section):
    base: str | None = None
    component: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _component_of_base(self) -> "PipelineSection":
        if self.component and not self.base:
            raise ValueError("component names the part of a base pipeline that the checkpoint is: set base too")
        return self


class ProgramSection(_Section):
    file: UserPath | None = None
    noise: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    range: tuple[float, float] = (-1.0, 1.0)

    @model_validator(mode="after")
    def _rising(self) -> "ProgramSection":
        return _with_rising_range(self)


class SamplerSection(_Section):
    command: list[str] | None = None
    factory: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = Field(None, alias="python")
    diffusers: PipelineSection | None = None
    program: ProgramSection | None = None
    options: dict[str, Any] = {}
    images: str | None = None
    timeout: Annotated[Duration, Field(gt=0)] = 3600.0

    @model_validator(mode="after")
    def _one_kind(self) -> "SamplerSection":
        kinds = {"command": self.command, "python": self.factory, "diffusers": self.diffusers, "program": self.program,
                 "images": self.images}
        given = [name for name, value in kinds.items() if value]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(kinds)} (found: {', '.join(given) or 'none'})")
        if self.options and given[0] not in ("python", "diffusers"):
            raise ValueError("options are the keyword arguments of a python factory or of a diffusers pipeline's call; "
                             "this sampler has neither")
        return self


class ReferenceSection(_Section):
    images: UserPath | None = None
    stats: UserPath | None = None
    paired: UserPath | None = None

    @model_validator(mode="after")
    def _not_both(self) -> "ReferenceSection":
        if self.images and self.stats:
            raise ValueError("images and stats contradict each other: give one")
        return self


class FeaturesSection(_Section):
    extractor: str = "inception-v3-compat"
    layer: str = "2048"
    logits: str = "logits_unbiased"
    weights: UserPath | None = None
    module: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None


class ClipSection(_Section):
    model: str = "ViT-B-32-quickgelu"
    pretrained: str = "openai"

    @model_validator(mode="after")
    def _paths(self) -> "ClipSection":
        _expanded(Path(self.model.removeprefix("local-dir:")))
        _expanded(Path(self.pretrained))
        return self


class LpipsSection(_Section):
    net: Literal["alex", "vgg", "squeeze"] = "alex"
    weights: UserPath | None = None


class PrcSection(_Section):
    extractor: str = "vgg16"
    layer: str = "fc2_relu"
    weights: UserPath | None = None


class DinoSection(_Section):
    model: str = "vit_large_patch14_dinov2.lvd142m"
    weights: UserPath | None = None


class CmmdSection(ClipSection):
    model: str = "ViT-L-14-336-quickgelu"


class NetworksSection(_Section):
    features: FeaturesSection = FeaturesSection()
    clip: ClipSection = ClipSection()
    lpips: LpipsSection = LpipsSection()
    prc: PrcSection = PrcSection()
    dino: DinoSection = DinoSection()
    cmmd: CmmdSection = CmmdSection()
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"


class MetricSection(_Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.@/()%:+ -]*$")]
    function: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None  # None: an installed entry point of that name
    mode: Mode


class TermSection(_Section):
    weight: float
    range: tuple[float, float]

    @model_validator(mode="after")
    def _rising(self) -> "TermSection":
        if self.weight == 0:
            raise ValueError("weight 0 takes no part: leave the term out")
        return _with_rising_range(self)


class LoggedSection(_Section):
    files: list[str] = []
    step: str | None = None
    epoch: str | None = None
    attach: Literal["not_later", "exact", "nearest", "carry"] = "not_later"


class RecipeSection(_Section):
    sampler: SamplerSection | None = None
    command: Annotated[list[str | list[str]], Field(min_length=1)] | None = None
    logged: LoggedSection | None = None
    metrics: Annotated[list[str | MetricSection], Field(min_length=1)] = []
    result: str | None = None
    timeout: Annotated[Duration, Field(gt=0)] = 3600.0
    csv_input: UserPath | None = None
    max_samples: Annotated[int, Field(ge=1)] | None = None
    log_samples: bool = False
    log_interval: Annotated[int, Field(ge=1)] = 1
    log_max_samples: Annotated[int, Field(ge=1)] = 20
    samples: Annotated[int, Field(ge=1)] = 2000
    seed: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=1)] = 32
    workers: Annotated[int, Field(ge=1)] = 1
    prompts: UserPath | None = None
    num_classes: Annotated[int, Field(ge=1)] | None = None
    image_size: Annotated[int, Field(ge=1)] | None = None
    reference: ReferenceSection = ReferenceSection()
    networks: NetworksSection = NetworksSection()
    composite: dict[str, TermSection] | None = None
    composite_missing: Literal["error", "renormalise"] = "error"
    num_evaluation_samples: Annotated[int, Field(ge=0)] = 20
    version: int = 1

    @model_validator(mode="after")
    def _one_kind(self) -> "RecipeSection":
        given = [name for name in ("sampler", "command", "logged") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of sampler (metrics of images), command (metrics of your own program), "
                             f"logged (metrics that training writes down) (found: {', '.join(given) or 'none'})")
        if not self.metrics and given[0] != "logged":
            raise ValueError("metrics is missing: name at least one")
        unused = _ONLY.get(given[0], frozenset()) & self.model_fields_set
        if unused:
            raise ValueError(f"{', '.join(sorted(unused))}: of no use in a recipe with {given[0]}")
        return self


_OF_COMMANDS = frozenset({"result", "timeout", "csv_input", "max_samples", "log_samples", "log_interval", "log_max_samples"})
_OF_IMAGES = frozenset({"samples", "seed", "workers", "prompts", "num_classes", "image_size", "reference",
                        "networks", "num_evaluation_samples"})
_ONLY = {  # keys that are of no use with which kind
    "sampler": _OF_COMMANDS, "command": _OF_IMAGES,
    "logged": _OF_COMMANDS | _OF_IMAGES | {"composite", "composite_missing", "version"},
}


class EvaluateSection(_Section):
    recipe: str
    every: Annotated[int, Field(ge=1)] = 1
    every_steps: Annotated[int, Field(ge=1)] | None = None
    every_epochs: Annotated[int, Field(ge=1)] | None = None
    final: bool = True
    enabled: bool = True
    variants: Literal["all"] | list[str] = []

    @model_validator(mode="after")
    def _one_frequency(self) -> "EvaluateSection":
        if sum((self.every != 1, self.every_steps is not None, self.every_epochs is not None)) > 1:
            raise ValueError("every, every_steps and every_epochs contradict each other: give one")
        return self


class RankSection(_Section):
    by: str = Field(validation_alias=AliasChoices("by", "monitor"))
    mode: Mode | None = None
    ties: Literal["newest", "oldest"] = "newest"
    period: Annotated[int, Field(ge=1)] = 1


class MonitorSection(_Section):
    count: Annotated[int, Field(ge=-1)] = Field(validation_alias=AliasChoices("count", "save_top_k"))
    mode: Mode | None = None


Count = Annotated[int, Field(ge=-1)]


class KeepSection(_Section):
    best: Count | dict[str, Count | MonitorSection] | None = Field(
        None, validation_alias=AliasChoices("best", "save_top_k"))
    last: Annotated[int, Field(ge=0)] | None = None
    every_steps: Annotated[int, Field(ge=1)] | None = None
    every_epochs: Annotated[int, Field(ge=1)] | None = None
    within: Duration | None = None

    @model_validator(mode="after")
    def _some_rule(self) -> "KeepSection":
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError("no rule given; leave `keep` out to keep everything")
        return self


class TrashSection(_Section):
    grace: Duration = 86400.0


class AliasesSection(_Section):
    dir: UserPath | None = None
    best: str | Literal[False] = "best{suffix}"
    last: str | Literal[False] = "last{suffix}"
    monitors: str | Literal[False] = "best_{metric}{suffix}"

    @model_validator(mode="after")
    def _templates(self) -> "AliasesSection":
        for name in (self.best, self.last, self.monitors):
            if name and (problem := check_template(name)):
                raise ValueError(problem)
        if self.monitors and "{metric}" not in self.monitors:
            raise ValueError("monitors names one link for each metric: it needs {metric}")
        if self.best and self.best == self.last:
            raise ValueError("best and last cannot be the same link")
        return self


class HealthSection(_Section):
    enabled: bool = True
    loss_spike: Annotated[float, Field(gt=1)] | None = 2.0
    metric_drop: Annotated[float, Field(gt=0)] | None = 0.05
    not_finite: bool = True
    weights: bool = True
    window: Annotated[int, Field(ge=5, le=500)] = 50
    plateau: Annotated[int, Field(ge=20)] | None = 500
    divergence: bool = True
    overfitting: Annotated[int, Field(ge=2)] | None = 5
    stuck: Annotated[int, Field(ge=2)] | None = 5
    stalled: Annotated[float, Field(gt=1)] | None = 3.0
    ignore: list[str] = []


class NotifySection(_Section):
    to: Annotated[list[str], Field(min_length=1)]
    every: Annotated[Duration, Field(ge=0)] = 3600.0
    at_most: Annotated[int, Field(ge=1)] = 20


class RunSection(_Section):
    match: str = "*"
    expect: list[str] = []
    expect_logged: list[str] = []
    logged: LoggedSection = LoggedSection()
    health: HealthSection | Literal[False] = HealthSection()
    evaluate: EvaluateSection | None = None
    rank: RankSection | None = None
    keep: KeepSection | None = None
    trash: TrashSection = TrashSection()
    approve_over: Annotated[float, Field(ge=0, le=1)] = 0.5
    aliases: AliasesSection = AliasesSection()
    ended_after: Duration = 3600.0


class Config(_Section):
    """The whole file. docs/configuration.md explains every key."""

    state_dir: UserPath | None = None
    watch: Annotated[list[WatchSection], Field(min_length=1)]
    workers: WorkersSection = WorkersSection()
    publish: PublishSection = PublishSection()
    recipes: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], RecipeSection] = {}
    notify: list[str] | NotifySection = []
    runs: list[RunSection] = []
