"""YAML → pydantic → plain values (ckptwatch.settings). Unknown keys are errors; all errors come at once, with their line."""

import copy
import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ckptwatch.core.aliasing import check_template
from ckptwatch.core.amounts import parse_duration
from ckptwatch.core.metrics import COMPOSITE, METRICS
from ckptwatch.errors import ConfigError, UsageError
from ckptwatch.model import (
    AliasRule,
    Composite,
    CompositeTerm,
    EvaluateRule,
    KeepRules,
    MetricSpec,
    Mode,
    Networks,
    RankRule,
    Recipe,
    Reference,
    RunRule,
    Sampler,
)
from ckptwatch.settings import PublishRule, RootRule, Settings, WorkerRule, default_state_dir

Duration = Annotated[float, BeforeValidator(lambda v: parse_duration(v) if isinstance(v, str) else v), Field(ge=0)]
Place = tuple[str | int, ...]


def _expanded(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("a path cannot contain a NUL character")
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(str(error)) from error


UserPath = Annotated[Path, AfterValidator(_expanded)]

SEARCHED = ("ckptwatch.yaml", "~/.config/ckptwatch/config.yaml", "/etc/ckptwatch/config.yaml")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WatchSection(_Section):
    root: UserPath
    quiet: Duration = 30.0
    scan_every: Annotated[Duration, Field(gt=0)] = 60.0
    trusted: bool = False
    exclude: list[str] = []


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


class SamplerSection(_Section):
    command: list[str] | None = None
    factory: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = Field(None, alias="python")
    options: dict[str, Any] = {}
    images: str | None = None
    timeout: Annotated[Duration, Field(gt=0)] = 3600.0

    @model_validator(mode="after")
    def _one_kind(self) -> "SamplerSection":
        given = [name for name, value in (("command", self.command), ("python", self.factory), ("images", self.images))
                 if value]
        if len(given) != 1:
            raise ValueError(f"give exactly one of command, python, images (found: {', '.join(given) or 'none'})")
        if self.options and not self.factory:
            raise ValueError("options are the keyword arguments of a python factory; this sampler has none")
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


class NetworksSection(_Section):
    features: FeaturesSection = FeaturesSection()
    clip: ClipSection = ClipSection()
    lpips: LpipsSection = LpipsSection()


class MetricSection(_Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.@/-]*$")]
    function: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    mode: Mode


class TermSection(_Section):
    weight: float
    range: tuple[float, float]

    @model_validator(mode="after")
    def _rising(self) -> "TermSection":
        if not self.range[0] < self.range[1]:
            raise ValueError(f"range must rise, found {list(self.range)}")
        if self.weight == 0:
            raise ValueError("weight 0 takes no part: leave the term out")
        return self


class RecipeSection(_Section):
    sampler: SamplerSection
    metrics: Annotated[list[str | MetricSection], Field(min_length=1)]
    samples: Annotated[int, Field(ge=1)] = 2000
    seed: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=1)] = 32
    prompts: UserPath | None = None
    reference: ReferenceSection = ReferenceSection()
    networks: NetworksSection = NetworksSection()
    composite: dict[str, TermSection] | None = None
    composite_missing: Literal["error", "renormalise"] = "error"
    num_evaluation_samples: Annotated[int, Field(ge=0)] = 20
    version: int = 1


class EvaluateSection(_Section):
    recipe: str
    every: Annotated[int, Field(ge=1)] = 1
    final: bool = True
    enabled: bool = True
    variants: Literal["all"] | list[str] = []


class RankSection(_Section):
    by: str
    mode: Mode | None = None
    ties: Literal["newest", "oldest"] = "newest"


class KeepSection(_Section):
    best: Annotated[int, Field(ge=-1)] | None = None
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

    @model_validator(mode="after")
    def _templates(self) -> "AliasesSection":
        for name in (self.best, self.last):
            if name and (problem := check_template(name)):
                raise ValueError(problem)
        if self.best and self.best == self.last:
            raise ValueError("best and last cannot be the same link")
        return self


class RunSection(_Section):
    match: str = "*"
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
    runs: list[RunSection] = []


def find_config(given: Path | None) -> Path | None:
    """The configuration to use: `-c`, else $CKPTWATCH_CONFIG, else the first of SEARCHED that exists, else None."""
    if given is not None:
        return given
    if named := os.environ.get("CKPTWATCH_CONFIG"):
        return Path(named)
    return next((p for p in (Path(s).expanduser() for s in SEARCHED) if p.exists()), None)


def load_config(path: Path) -> Settings:
    """Settings from a YAML file. Raises ConfigError with every problem, each with its line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise UsageError("read configuration", cause, path=path, hint="write one with config.example.yaml as a start") \
            from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(path, [f"not valid YAML: {error}"]) from error
    if not isinstance(raw, dict):
        raise ConfigError(path, ["the file must be a mapping that begins with `watch:`"])
    problems = list(_repeated(node, set()))
    config, unusable = _validated(raw)
    problems += [_tell(e, node) for e in unusable]
    if config is not None:
        problems += [f"{_where(place, node)}{text}" for place, text in _contradictions(config, path.absolute().parent)]
    if config is None or problems:
        raise ConfigError(path, problems)
    return _settings(config, path.absolute().parent)


def _validated(raw: dict[Any, Any]) -> tuple[Config | None, list[Any]]:
    """The configuration, if it can be had without its unknown keys, and everything that is wrong with it by itself."""
    try:
        return Config.model_validate(raw), []
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    if any(e["type"] != "extra_forbidden" for e in problems):
        return None, problems
    raw = copy.deepcopy(raw)
    for e in problems:  # unknown keys must not hide what the known ones contradict
        *parents, key = e["loc"]
        section: Any = raw
        for part in parents:
            section = section[part] if isinstance(section, list) or part in section else section
        section.pop(key, None)
    try:
        return Config.model_validate(raw), problems
    except ValidationError:
        return None, problems


def settings_for_roots(roots: list[Path], state_dir: Path | None = None) -> Settings:
    """Settings for `ckptwatch run ROOT…` without a configuration: watch, rank, report; write and remove nothing there."""
    return Settings(
        state_dir=state_dir or default_state_dir(), roots=tuple(RootRule(root=r.absolute()) for r in roots),
        workers=WorkerRule(devices=()), observe_only=True, publish=PublishRule(json=False, tensorboard=False, samples=False),
    )


def yields(recipe: Recipe) -> tuple[str, ...]:
    """The metric names a recipe can yield, the composite included."""
    names = tuple(m.name for m in recipe.metrics)
    return (*names, COMPOSITE) if recipe.composite else names


# ---- problems and their places --------------------------------------------------------------------------------------


def _tell(error: Any, node: yaml.Node) -> str:
    place = tuple(error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = f"unknown key `{place[-1]}`"
        near = difflib.get_close_matches(str(place[-1]), _siblings(place), n=1)
        message += f"; did you mean `{near[0]}`?" if near else ""
    elif error["type"] == "missing":
        message = f"key `{place[-1]}` is missing"
    return f"{_where(place, node)}{message}"


def _siblings(place: Place) -> list[str]:
    """Keys that would be accepted where `place` ends."""
    model: Any = Config
    for part in place[:-1]:
        if isinstance(part, int) or not isinstance(model, type):
            continue
        by_name = {(f.alias or n): f for n, f in model.model_fields.items()}
        if part in by_name:
            model = _model_in(by_name[part].annotation)
            if model is None:
                return []
    return [f.alias or n for n, f in model.model_fields.items()] if isinstance(model, type) else []


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        if (found := _model_in(part)) is not None:
            return found
    return None


def _where(place: Place, node: yaml.Node) -> str:
    """`line 12, recipes.t2i.samples: ` for the deepest part of the place that stands in the file."""
    line = 1
    for part in place:
        inner = _child(node, part)
        if inner is None:
            continue  # a union member or a missing key: stay with its parent
        line, node = inner
    dotted = ".".join(str(p) for p in place)
    return f"line {line}, {dotted}: " if dotted else f"line {line}: "


def _child(node: yaml.Node, part: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None


def _repeated(node: yaml.Node, seen: set[int]) -> Iterator[str]:
    """Keys given twice in one mapping: YAML would silently take the last."""
    if id(node) in seen:
        return  # an alias, perhaps of a node that contains it
    seen.add(id(node))
    inner = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in lines:
                    yield f"line {line}: `{key.value}` is given twice, first in line {lines[key.value]}"
                lines.setdefault(key.value, line)
            inner.append(value)
    for value in inner:
        yield from _repeated(value, seen)


def _contradictions(config: Config, base: Path) -> Iterator[tuple[Place, str]]:
    seen: set[Path] = set()
    for i, watch in enumerate(config.watch):
        root = Path(os.path.normpath(base / watch.root))
        for other in seen:
            if root.is_relative_to(other) or other.is_relative_to(root):
                yield ("watch", i, "root"), f"{root} and {other} contain one another: watch the outer one alone"
        seen.add(root)
    for name, recipe in config.recipes.items():
        for key, problem in _recipe_contradictions(recipe):
            yield ("recipes", name, *key), problem
    for i, run in enumerate(config.runs):
        for key, problem in _run_contradictions(run, config):
            yield ("runs", i, *key), problem


def _recipe_contradictions(recipe: RecipeSection) -> Iterator[tuple[Place, str]]:
    names: list[str] = []
    for i, metric in enumerate(recipe.metrics):
        name = metric if isinstance(metric, str) else metric.name
        if name in names:
            yield ("metrics", i), f"metric `{name}` is listed twice"
        names.append(name)
        if not isinstance(metric, str):
            if name in METRICS or name == COMPOSITE:
                yield ("metrics", i), f"`{name}` is the name of a built-in metric; give yours another"
            continue
        info = METRICS.get(name)
        if info is None:
            near = difflib.get_close_matches(name, METRICS, n=1)
            yield ("metrics", i), (
                f"unknown metric `{name}`; " + (f"did you mean `{near[0]}`? " if near else "")
                + f"built in: {', '.join(METRICS)}; your own needs {{name, function, mode}}"
            )
            continue
        reference = recipe.reference
        if info.needs_reference and not (reference.images or (info.accepts_stats and reference.stats)):
            needed = "reference.images or reference.stats" if info.accepts_stats else "reference.images"
            yield ("metrics", i), f"`{name}` compares with reference images: set {needed}"
        if info.needs_pairs and not (reference.paired or reference.images):
            yield ("metrics", i), f"`{name}` compares with paired originals: set reference.paired"
        if info.needs_prompts and recipe.prompts is None:
            yield ("metrics", i), f"`{name}` needs prompts: set prompts"
        if recipe.samples < info.minimum_samples:
            yield ("samples",), f"`{name}` needs at least {info.minimum_samples} samples, found {recipe.samples}"
    for term in recipe.composite or {}:
        if term not in names:
            yield ("composite", term), f"the recipe has no metric `{term}`; it yields {', '.join(names)}"
    if recipe.composite is not None and not recipe.composite:
        yield ("composite",), "a composite needs at least one term"


def _run_contradictions(run: RunSection, config: Config) -> Iterator[tuple[Place, str]]:
    recipe = None
    if run.evaluate:
        recipe = config.recipes.get(run.evaluate.recipe)
        if recipe is None:
            yield ("evaluate", "recipe"), (
                f"no recipe `{run.evaluate.recipe}`; there are: {', '.join(config.recipes) or 'none'}")
    if run.rank and recipe:
        names = [m if isinstance(m, str) else m.name for m in recipe.metrics]
        names += [COMPOSITE] if recipe.composite else []
        if run.rank.by not in names:
            near = difflib.get_close_matches(run.rank.by, names, n=1)
            yield ("rank", "by"), (
                f"recipe `{run.evaluate.recipe if run.evaluate else ''}` cannot yield `{run.rank.by}`; it yields "
                f"{', '.join(names)}" + (f"; did you mean `{near[0]}`?" if near else ""))
    if run.rank and run.rank.mode is None and _known_mode(run.rank.by, recipe) is None:
        yield ("rank", "by"), f"say which direction of `{run.rank.by}` is better: mode: min or max"
    if run.rank and run.rank.mode is not None:
        known = _known_mode(run.rank.by, recipe)
        if known is not None and known != run.rank.mode:
            yield ("rank", "mode"), f"`{run.rank.by}` is better when {_WORD[known]}, mode {run.rank.mode} contradicts that"
    if run.keep and run.keep.best is not None and run.keep.best > 0 and run.rank is None:
        yield ("keep", "best"), "keeping the best needs a rank: section that says best by what"


_WORD = {Mode.MIN: "lower", Mode.MAX: "higher"}


def _known_mode(metric: str, recipe: RecipeSection | None) -> Mode | None:
    if metric == COMPOSITE:
        return Mode.MAX
    for spec in recipe.metrics if recipe else ():
        if isinstance(spec, MetricSection) and spec.name == metric:
            return spec.mode
    info = METRICS.get(metric)
    return info.mode if info else None


# ---- to plain values ------------------------------------------------------------------------------------------------


def _settings(config: Config, base: Path) -> Settings:
    def absolute(path: Path) -> Path:
        return Path(os.path.normpath(base / path.expanduser()))

    recipes = {name: _recipe(name, section, absolute) for name, section in config.recipes.items()}
    devices = ("auto",) if config.workers.devices == "auto" else tuple(config.workers.devices)
    return Settings(
        state_dir=absolute(config.state_dir) if config.state_dir else default_state_dir(),
        roots=tuple(
            RootRule(root=absolute(w.root), quiet=w.quiet, scan_every=w.scan_every, trusted=w.trusted,
                     exclude=tuple(w.exclude))
            for w in config.watch
        ),
        workers=WorkerRule(devices=devices, **config.workers.model_dump(exclude={"devices"})),
        publish=PublishRule(json=config.publish.json_files, tensorboard=config.publish.tensorboard,
                            samples=config.publish.samples),
        recipes=recipes,
        runs=tuple(_run_rule(r, config) for r in config.runs),
        directory=base,
    )


def _recipe(name: str, section: RecipeSection, absolute: Any) -> Recipe:
    def path(value: Path | None) -> Path | None:
        return None if value is None else absolute(value)

    clip = section.networks.clip
    model, pretrained = clip.model, clip.pretrained
    if model.startswith("local-dir:"):
        model = f"local-dir:{absolute(Path(model.removeprefix('local-dir:')))}"
    if absolute(Path(pretrained)).is_file():
        pretrained = str(absolute(Path(pretrained)))
    features = section.networks.features
    composite = None
    if section.composite:
        terms = {k: CompositeTerm(weight=t.weight, low=t.range[0], high=t.range[1]) for k, t in section.composite.items()}
        composite = Composite(terms=terms, missing=section.composite_missing)
    sampler = section.sampler
    images = sampler.images or ""
    return Recipe(
        name=name,
        sampler=Sampler(command=tuple(sampler.command or ()), factory=sampler.factory or "", options=sampler.options,
                        images=images, timeout=sampler.timeout),
        metrics=tuple(
            MetricSpec(name=m, mode=METRICS[m].mode) if isinstance(m, str)
            else MetricSpec(name=m.name, function=m.function, mode=m.mode)
            for m in section.metrics
        ),
        samples=section.samples, seed=section.seed, batch_size=section.batch_size, prompts=path(section.prompts),
        reference=Reference(images=path(section.reference.images), stats=path(section.reference.stats),
                            paired=path(section.reference.paired)),
        networks=Networks(
            features=features.extractor, features_layer=features.layer, logits_layer=features.logits,
            features_weights=path(features.weights), features_module=features.module or "",
            clip=model, clip_pretrained=pretrained,
            lpips=section.networks.lpips.net, lpips_weights=path(section.networks.lpips.weights),
        ),
        composite=composite, keep_samples=section.num_evaluation_samples, version=section.version,
    )


def _run_rule(section: RunSection, config: Config) -> RunRule:
    evaluate = None
    if section.evaluate and section.evaluate.enabled:
        variants = ("all",) if section.evaluate.variants == "all" else tuple(section.evaluate.variants)
        evaluate = EvaluateRule(recipe=section.evaluate.recipe, every=section.evaluate.every,
                                final=section.evaluate.final, variants=variants)
    rank = None
    if section.rank:
        recipe = config.recipes.get(section.evaluate.recipe) if section.evaluate else None
        mode = section.rank.mode or _known_mode(section.rank.by, recipe)
        rank = RankRule(by=section.rank.by, mode=mode or Mode.MIN, ties=section.rank.ties)
    return RunRule(
        match=section.match, evaluate=evaluate, rank=rank,
        keep=KeepRules(**section.keep.model_dump()) if section.keep else None,
        grace=section.trash.grace, approve_over=section.approve_over,
        aliases=AliasRule(directory=section.aliases.dir, best=section.aliases.best or None,
                          last=section.aliases.last or None),
        ended_after=section.ended_after,
    )
