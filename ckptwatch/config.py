"""YAML → pydantic (ckptwatch.schema) → plain values (ckptwatch.settings). All problems come at once, with their line."""

import copy
import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ckptwatch.contradictions import Place, contradictions, known_mode
from ckptwatch.core.metrics import COMPOSITE
from ckptwatch.errors import ConfigError
from ckptwatch.model import (
    AliasRule,
    Composite,
    CompositeTerm,
    EvaluateRule,
    EvaluationCommand,
    HealthRule,
    KeepRules,
    Logged,
    MetricSpec,
    Mode,
    Monitor,
    Networks,
    Pipeline,
    Program,
    RankRule,
    Recipe,
    Reference,
    RunRule,
    Sampler,
    evolve,
)
from ckptwatch.outline import config_text
from ckptwatch.schema import (
    ClipSection,
    Config,
    HealthSection,
    KeepSection,
    LoggedSection,
    NotifySection,
    PipelineSection,
    ProgramSection,
    RecipeSection,
    RunSection,
)
from ckptwatch.settings import NotifyRule, PublishRule, RootRule, Settings, WorkerRule, default_state_dir


def load_config(path: Path) -> Settings:
    """Settings from a YAML file. Raises ConfigError with every problem, each with its line."""
    text = config_text(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(path, [f"not valid YAML: {error}"]) from error
    if not isinstance(raw, dict):
        raise ConfigError(path, ["the file must be a mapping that begins with `watch:`"])
    problems = list(_repeated(node, set()))
    config, unusable = _validated(raw)
    wrong = list(_told_once(unusable, raw))
    if config is not None:
        # A section that lost a wrong value would be told to lack it, which it does not.
        lossy = {place[:2] for place, text in wrong if not text.startswith("unknown key")}
        wrong += [(place, text) for place, text in contradictions(config, path.absolute().parent) if place[:2] not in lossy]
    problems += [f"{_where(place, node)}{text}" for place, text in wrong]
    if config is None or problems:
        raise ConfigError(path, sorted(problems, key=_line_of))
    return _settings(config, path.absolute().parent)


def _line_of(problem: str) -> int:
    number = problem.removeprefix("line ").split(",")[0].split(":")[0]
    return int(number) if number.isdigit() else 0


def _validated(raw: dict[Any, Any]) -> tuple[Config | None, list[Any]]:
    """The configuration, if it can be had without what is wrong in it by itself, and everything that is."""
    try:
        return Config.model_validate(raw), []
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    rest = copy.deepcopy(raw)
    for place, parent in sorted(((_place_in(raw, e)) for e in problems), key=lambda p: len(p[0]), reverse=True):
        _take_out(rest, place if parent is None else parent)
    try:
        return Config.model_validate(rest), problems
    except ValidationError:
        return None, problems


def _take_out(section: Any, place: Place) -> None:
    """Remove a key, so that what is wrong with it does not hide what the others contradict. List items stay."""
    *parents, key = place or ("",)
    for part in parents:
        if not ((isinstance(section, dict) and part in section) or (isinstance(section, list) and isinstance(part, int))):
            return
        section = section[part]
    if isinstance(section, dict):
        section.pop(key, None)


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


def _told_once(errors: list[Any], raw: Any) -> Iterator[tuple[Place, str]]:
    """One text per mistake. Where a key takes values of several kinds, pydantic complains once for each kind it tried."""
    tried: dict[Place, list[tuple[Place, Any]]] = {}
    for error in errors:
        place, union = _place_in(raw, error)
        tried.setdefault(place if union is None else union, []).append((place, error))
    for union, several in tried.items():
        # The kind that was meant is the one whose complaint lies inside the value.
        inside = [(place, error) for place, error in several if place != union]
        if inside or len(several) == 1:
            yield from ((place, _tell(place, error, raw)) for place, error in inside or several)
        else:
            kinds = dict.fromkeys(_kind(error["msg"]) for _, error in several)
            yield union, f"should be {' or '.join(kinds)}{_found(raw, union)}"


def _place_in(raw: Any, error: Any) -> tuple[Place, Place | None]:
    """Where in the file an error is; and where a key of several kinds is, if it lies below one."""
    place: list[str | int] = []
    union: Place | None = None
    value = raw
    for i, part in enumerate(error["loc"]):
        is_there = (isinstance(value, dict) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value))
        if is_there:
            value = value[part]
            place.append(part)
        elif i == len(error["loc"]) - 1 and error["type"] == "missing":
            place.append(part)
        elif union is None:
            union = tuple(place)  # not a key but the name of the kind that was tried
    return tuple(place), union


def _tell(place: Place, error: Any, raw: Any) -> str:
    if error["type"] == "extra_forbidden":
        if (same := _SYNONYMS.get(str(place[-1]))) is not None:
            return f"`{place[-1]}` is another word for `{same}`: give one of them"
        near = difflib.get_close_matches(str(place[-1]), _siblings(tuple(error["loc"])), n=1)
        return f"unknown key `{place[-1]}`" + (f"; did you mean `{near[0]}`?" if near else "")
    if error["type"] == "missing":
        return f"key `{place[-1]}` is missing"
    if error["type"] == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    return f"should be {_kind(error['msg'])}{_found(raw, place)}{_advice(place, raw)}"


_SYNONYMS = {"save_top_k": "best or count", "monitor": "by"}  # accepted in place of the other, not beside it


def _advice(place: Place, raw: Any) -> str:
    """What to write instead, for the slips that YAML makes easy."""
    value = raw
    for part in place:
        value = value[part]
    if place[-1:] == ("command",) and isinstance(value, str):
        return "; write [python, evaluate.py, --ckpt, \"{checkpoint}\"]"
    if isinstance(value, dict) and len(value) == 1 and next(iter(value.values())) is None and "command" in place:
        return f"; quote it: \"{{{next(iter(value))}}}\""
    return "; write [slack://…]" if place == ("notify",) and isinstance(value, str) else ""


def _kind(message: str) -> str:
    """pydantic's words without its own vocabulary: "a whole number", "a section"."""
    message = message.partition(", unable to parse")[0]
    for theirs, ours in (("Input should be ", ""), ("String should match pattern", "of the form"), ("Input should ", ""),
                         ("a valid integer", "a whole number"), ("a valid number", "a number"), ("a valid string", "a text"),
                         ("a valid list", "a list"), ("a valid boolean", "true or false"), ("False", "false")):
        message = message.replace(theirs, ours)
    message = message.replace("List should have at least 1 item after validation, not 0", "a list with at least one item")
    return "a section of keys" if "a valid dictionary" in message else message


def _found(raw: Any, place: Place) -> str:
    value = raw
    for part in place:
        value = value[part]
    return f", found {value!r}" if isinstance(value, str | int | float | bool | None) else ""


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
                     exclude=tuple(w.exclude), names=tuple(re.compile(n, re.ASCII) for n in w.names))
            for w in config.watch
        ),
        workers=WorkerRule(devices=devices, **config.workers.model_dump(exclude={"devices"})),
        publish=PublishRule(json=config.publish.json_files, tensorboard=config.publish.tensorboard,
                            samples=config.publish.samples),
        recipes=recipes, notify=_notify(config.notify),
        runs=tuple(_run_rule(r, config) for r in config.runs),
        directory=base,
    )


def _notify(section: list[str] | NotifySection) -> NotifyRule:
    if isinstance(section, list):
        return NotifyRule(to=tuple(section))
    return NotifyRule(to=tuple(section.to), every=section.every, at_most=section.at_most)


def _recipe(name: str, section: RecipeSection, absolute: Any) -> Recipe:
    def path(value: Path | None) -> Path | None:
        return None if value is None else absolute(value)

    def clip(section: ClipSection) -> tuple[str, str]:
        model, pretrained = section.model, section.pretrained
        if model.startswith("local-dir:"):
            model = f"local-dir:{absolute(Path(model.removeprefix('local-dir:')))}"
        if absolute(Path(pretrained)).is_file():
            pretrained = str(absolute(Path(pretrained)))
        return model, pretrained

    networks = section.networks
    features, prc, dino = networks.features, networks.prc, networks.dino
    (clip_model, clip_pretrained), (cmmd_model, cmmd_pretrained) = clip(networks.clip), clip(networks.cmmd)
    composite = None
    if section.composite:
        terms = {k: CompositeTerm(weight=t.weight, low=t.range[0], high=t.range[1]) for k, t in section.composite.items()}
        composite = Composite(terms=terms, missing=section.composite_missing)
    sampler = section.sampler
    return Recipe(
        name=name,
        sampler=Sampler() if sampler is None else Sampler(
            command=tuple(sampler.command or ()), factory=sampler.factory or "", options=sampler.options,
            images=sampler.images or "", timeout=sampler.timeout, diffusers=_pipeline(sampler.diffusers, absolute),
            program=_program(sampler.program, path)),
        command=_command(section, path), logged=_logged(section.logged) if section.logged is not None else None,
        metrics=tuple(
            MetricSpec(name=m, mode=known_mode(m, section)) if isinstance(m, str)
            else MetricSpec(name=m.name, function=m.function or "", mode=m.mode)
            for m in section.metrics
        ),
        samples=section.samples, seed=section.seed, batch_size=section.batch_size, workers=section.workers,
        prompts=path(section.prompts), num_classes=section.num_classes, image_size=section.image_size,
        reference=Reference(images=path(section.reference.images), stats=path(section.reference.stats),
                            paired=path(section.reference.paired)),
        networks=Networks(
            features=features.extractor, features_layer=features.layer, logits_layer=features.logits,
            features_weights=path(features.weights), features_module=features.module or "",
            clip=clip_model, clip_pretrained=clip_pretrained,
            lpips=networks.lpips.net, lpips_weights=path(networks.lpips.weights),
            prc=prc.extractor, prc_layer=prc.layer, prc_weights=path(prc.weights),
            dino=dino.model, dino_weights=path(dino.weights),
            cmmd=cmmd_model, cmmd_pretrained=cmmd_pretrained, precision=networks.precision,
        ),
        composite=composite, keep_samples=section.num_evaluation_samples, version=section.version,
    )


def _command(section: RecipeSection, path: Any) -> EvaluationCommand | None:
    if section.command is None:
        return None
    return EvaluationCommand(
        argv=tuple(word if isinstance(word, str) else tuple(word) for word in section.command), result=section.result or "",
        timeout=section.timeout, csv_input=path(section.csv_input), max_samples=section.max_samples,
        log_samples=section.log_samples, log_interval=section.log_interval, log_max_samples=section.log_max_samples)


def _logged(section: LoggedSection) -> Logged:
    return Logged(files=tuple(section.files), step=section.step or "", epoch=section.epoch or "", attach=section.attach)


def _pipeline(section: PipelineSection | None, absolute: Any) -> Pipeline | None:
    if section is None:
        return None
    base = section.base or ""
    # "owner/name" may be a hub's; what begins like a path, or is there, is one.
    if base and (base.startswith(("/", "~", ".")) or absolute(Path(base)).is_dir()):
        base = str(absolute(Path(base)))
    return Pipeline(base=base, component=section.component or "", dtype=section.dtype)


def _program(section: ProgramSection | None, path: Any) -> Program | None:
    if section is None:
        return None
    return Program(file=path(section.file), noise=tuple(section.noise), low=section.range[0], high=section.range[1])


def _run_rule(section: RunSection, config: Config) -> RunRule:
    evaluate, recipe = None, config.recipes.get(section.evaluate.recipe) if section.evaluate else None
    logged = section.logged
    if recipe is not None and recipe.logged is not None:
        logged = recipe.logged  # nothing is run for it: its checkpoints are ranked by what training logged
    elif section.evaluate and section.evaluate.enabled:
        variants = ("all",) if section.evaluate.variants == "all" else tuple(section.evaluate.variants)
        asked = section.evaluate
        evaluate = EvaluateRule(recipe=asked.recipe, every=asked.every, every_steps=asked.every_steps,
                                every_epochs=asked.every_epochs, final=asked.final, variants=variants)
    rank = None
    if section.rank:
        mode = section.rank.mode or known_mode(section.rank.by, recipe)
        rank = RankRule(by=section.rank.by, mode=mode or Mode.MIN, ties=section.rank.ties, period=section.rank.period)
    keep = _keep(section.keep, rank, recipe) if section.keep else None
    if rank is None and keep is not None and keep.monitors:
        rank = keep.monitors[0].rule  # what is shown as the best
    return RunRule(
        match=section.match, expect=tuple(section.expect), expect_logged=tuple(section.expect_logged),
        logged=_logged(logged), health=_health(section.health), evaluate=evaluate, rank=rank,
        keep=keep,
        grace=section.trash.grace, approve_over=section.approve_over,
        aliases=AliasRule(directory=section.aliases.dir, best=section.aliases.best or None,
                          last=section.aliases.last or None, monitors=section.aliases.monitors or None),
        ended_after=section.ended_after,
    )


def _keep(section: KeepSection, rank: RankRule | None, recipe: RecipeSection | None) -> KeepRules:
    values = section.model_dump(exclude={"best"})
    if not isinstance(section.best, dict):
        return KeepRules(best=section.best, **values)
    monitors = []
    for metric, wanted in section.best.items():
        count, mode = (wanted, None) if isinstance(wanted, int) else (wanted.count, wanted.mode)
        known = mode or (rank.mode if rank is not None and rank.by == metric else known_mode(metric, recipe)) or Mode.MIN
        rule = RankRule(by=metric, mode=known)
        monitors.append(Monitor(rule=evolve(rule, ties=rank.ties, period=rank.period) if rank else rule, best=count))
    return KeepRules(monitors=tuple(monitors), **values)


def _health(section: HealthSection | bool) -> HealthRule:
    if isinstance(section, bool):
        return HealthRule(enabled=False)
    return HealthRule(**{**section.model_dump(), "ignore": tuple(section.ignore)})
