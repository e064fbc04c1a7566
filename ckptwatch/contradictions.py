"""What a configuration says that cannot all be true, although each key by itself is fine. And where in the file."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ckptwatch.core.aliasing import in_a_name
from ckptwatch.core.logged import direction
from ckptwatch.core.metrics import COMPOSITE, METRICS, MetricInfo
from ckptwatch.core.placeholders import COMMAND, EVALUATION, IMAGES, NEEDS, examine_pattern
from ckptwatch.model import Mode
from ckptwatch.publish.notify import form_problem
from ckptwatch.schema import Config, MetricSection, MonitorSection, RecipeSection, RunSection

METRICS_GROUP = "ckptwatch.metrics"  # entry points: metric name → function of the images
Place = tuple[str | int, ...]


def contradictions(config: Config, base: Path) -> Iterator[tuple[Place, str]]:
    seen: set[Path] = set()
    for i, watch in enumerate(config.watch):
        root = Path(os.path.normpath(base / watch.root))
        for other in seen:
            if root.is_relative_to(other) or other.is_relative_to(root):
                yield ("watch", i, "root"), f"{root} and {other} contain one another: watch the outer one alone"
        seen.add(root)
        if config.state_dir and Path(os.path.normpath(base / config.state_dir)).is_relative_to(root):
            yield ("state_dir",), f"it lies below the watched root {root}, among what trainers write: put it elsewhere"
    entries = config.notify if isinstance(config.notify, list) else config.notify.to
    for i, entry in enumerate(entries):
        if problem := form_problem(entry):
            yield ("notify", i) if isinstance(config.notify, list) else ("notify", "to", i), problem
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
        if recipe.sampler is None:
            yield from ((("metrics", i), problem) for problem in _answered_metric(metric, recipe))
        elif isinstance(metric, MetricSection):
            yield from ((("metrics", i), problem) for problem in _own_metric(metric))
        elif (info := METRICS.get(name)) is None:
            near = difflib.get_close_matches(name, METRICS, n=1)
            yield ("metrics", i), (
                f"unknown metric `{name}`; " + (f"did you mean `{near[0]}`? " if near else "")
                + f"built in: {', '.join(METRICS)}; your own needs {{name, function, mode}}"
            )
        else:
            yield from ((("metrics", i), problem) for problem in _unmet_needs(info, recipe))
            if recipe.samples < info.minimum_samples:
                yield ("samples",), f"`{name}` needs at least {info.minimum_samples} samples, found {recipe.samples}"
    for term in recipe.composite or {}:
        if term not in names:
            yield ("composite", term), f"the recipe has no metric `{term}`; it yields {', '.join(names)}"
    if recipe.composite is not None and not recipe.composite:
        yield ("composite",), "a composite needs at least one term"
    yield from _placeholders(recipe)


def _answered_metric(metric: str | MetricSection, recipe: RecipeSection) -> Iterator[str]:
    """One that a program answers or that training logs: all there is to know of it is which direction is better."""
    name = metric if isinstance(metric, str) else metric.name
    if name == COMPOSITE:
        yield f"`{name}` is the name of a built-in metric; give yours another"
    elif isinstance(metric, MetricSection) and metric.function is not None:
        yield "function: only in a recipe with a sampler, whose images it is a function of"
    elif known_mode(name, recipe) is None:
        yield f"say which direction of `{name}` is better: {{name: {name}, mode: min}}, or mode: max"


def _placeholders(recipe: RecipeSection) -> Iterator[tuple[Place, str]]:
    sampler = recipe.sampler
    patterns: list[tuple[Place, str, Mapping[str, Any]]] = []
    if sampler is not None:
        patterns = [(("sampler", "command", i), word, COMMAND) for i, word in enumerate(sampler.command or ())]
        patterns += [(("sampler", "images"), sampler.images, IMAGES)] if sampler.images else []
    yield from _command_words(recipe)
    for place, pattern, values in patterns:
        problem, asked = examine_pattern(pattern, values)
        if problem:
            yield place, problem
        for name in asked:
            if name in NEEDS and getattr(recipe, NEEDS[name]) is None:
                yield place, f"{{{name}}} has no value: set {NEEDS[name]} of the recipe"


def _command_words(recipe: RecipeSection) -> Iterator[tuple[Place, str]]:
    lacking = {"csv_input": recipe.csv_input is None, "max_samples": recipe.max_samples is None,
               "log_interval": not recipe.log_samples, "log_max_samples": not recipe.log_samples}
    for i, words in enumerate(recipe.command or ()):
        for word in [words] if isinstance(words, str) else words:
            problem, asked = examine_pattern(word, EVALUATION)
            unset = [name for name in asked if lacking.get(name)] if isinstance(words, str) else []
            if problem:
                yield ("command", i), problem
            elif unset:
                key = "log_samples" if unset[0].startswith("log_") else unset[0]
                yield ("command", i), (f"{{{unset[0]}}} has no value: set {key}, or put the words that need it into a list "
                                       f"of their own: [--option, \"{{{unset[0]}}}\"]")
    if recipe.result is not None and (Path(recipe.result).is_absolute() or ".." in Path(recipe.result).parts):
        yield ("result",), "the file must lie below {out_dir}: give its name alone"


def _own_metric(metric: MetricSection) -> Iterator[str]:
    if metric.name in METRICS or metric.name == COMPOSITE:
        yield f"`{metric.name}` is the name of a built-in metric; give yours another"
    elif metric.function is None and metric.name not in _installed_metrics():
        yield f"no installed package provides a metric `{metric.name}` (entry points {METRICS_GROUP}): give its function"


def _unmet_needs(info: MetricInfo, recipe: RecipeSection) -> Iterator[str]:
    reference = recipe.reference
    if info.needs_reference and not (reference.images or (info.accepts_stats and reference.stats)):
        needed = "reference.images or reference.stats" if info.accepts_stats else "reference.images"
        yield f"`{info.name}` compares with reference images: set {needed}"
    if info.needs_pairs and not (reference.paired or reference.images):
        yield f"`{info.name}` compares with paired originals: set reference.paired"
    if info.needs_prompts and recipe.prompts is None:
        yield f"`{info.name}` needs prompts: set prompts"


def _installed_metrics() -> set[str]:
    return {point.name for point in entry_points(group=METRICS_GROUP)}


def _run_contradictions(run: RunSection, config: Config) -> Iterator[tuple[Place, str]]:
    recipe = None
    if run.evaluate:
        recipe = config.recipes.get(run.evaluate.recipe)
        if recipe is None:
            yield ("evaluate", "recipe"), (
                f"no recipe `{run.evaluate.recipe}`; there are: {', '.join(config.recipes) or 'none'}")
    if run.rank and recipe:
        names = _yielded(recipe)
        # What training logs may be ranked by beside a recipe's metrics; what it will log, nobody knows before it did.
        if run.rank.by not in names and (recipe.logged is None or recipe.metrics):
            near = difflib.get_close_matches(run.rank.by, names, n=1)
            yield ("rank", "by"), (
                f"recipe `{run.evaluate.recipe if run.evaluate else ''}` cannot yield `{run.rank.by}`; it yields "
                f"{', '.join(names)}" + (f"; did you mean `{near[0]}`?" if near else ""))
    if run.rank and run.rank.mode is None and known_mode(run.rank.by, recipe) is None:
        yield ("rank", "by"), f"say which direction of `{run.rank.by}` is better: mode: min or max"
    if run.rank and run.rank.mode is not None:
        known = declared_mode(run.rank.by, recipe)
        if known is not None and known != run.rank.mode:
            yield ("rank", "mode"), f"`{run.rank.by}` is better when {_WORD[known]}, mode {run.rank.mode} contradicts that"
    yield from _unlike_its_name(run.rank.by, run.rank.mode, ("rank", "mode")) if run.rank else ()
    best = run.keep.best if run.keep else None
    if isinstance(best, dict):
        yield from ((("keep", "best", *key), problem) for key, problem in _monitor_contradictions(best, run, recipe))
    if isinstance(best, int) and best > 0 and run.rank is None:
        yield ("keep", "best"), "keeping the best needs a rank: section that says best by what"


def _monitor_contradictions(
    best: Mapping[str, int | MonitorSection], run: RunSection, recipe: RecipeSection | None,
) -> Iterator[tuple[Place, str]]:
    if not best:
        yield (), "name a metric: {loss: 3}"
    links: dict[str, str] = {}
    for metric, wanted in best.items():
        other = links.setdefault(in_a_name(metric), metric)
        if other != metric and run.aliases.monitors:
            yield (metric,), f"its alias would be that of `{other}`: set aliases.monitors: false"
        own = None if isinstance(wanted, int) else wanted.mode
        yield from _unlike_its_name(metric, own, (metric,))
        names = _yielded(recipe) if recipe is not None and recipe.metrics else [metric]
        near = difflib.get_close_matches(metric, names, n=1)
        if metric not in names and (near or (recipe is not None and recipe.logged is not None)):
            # Beside what a recipe measures there is what training logs: only a slip of the pen is sure to be wrong.
            guess = f"; did you mean `{near[0]}`?" if near else ""
            yield (metric,), f"the recipe cannot yield `{metric}`; it yields {', '.join(names)}{guess}"
            continue
        ranked = run.rank.mode if run.rank and run.rank.by == metric else None
        if (own or ranked or known_mode(metric, recipe)) is None:
            yield (metric,), f"say which direction of `{metric}` is better: {metric}: {{count: 1, mode: min}}, or mode: max"


_WORD = {Mode.MIN: "lower", Mode.MAX: "higher"}


def _yielded(recipe: RecipeSection) -> list[str]:
    names = [m if isinstance(m, str) else m.name for m in recipe.metrics]
    return [*names, COMPOSITE] if recipe.composite else names


# Words at the end of a name that leave no doubt. The wrong direction would have the best checkpoints removed.
_CERTAIN = frozenset({"loss", "rmse", "mse", "mae", "fid", "kid", "lpips", "wer", "cer", "ppl", "perplexity", "nll",
                      "accuracy", "acc", "map", "miou", "iou", "auc", "f1", "psnr", "ssim", "bleu"})


def _unlike_its_name(metric: str, mode: Mode | None, place: Place) -> Iterator[tuple[Place, str]]:
    known = direction(metric) if mode is not None and re.split(r"[^a-z0-9]+", metric.lower())[-1] in _CERTAIN else None
    if known is not None and known != mode and metric not in METRICS:
        yield place, f"`{metric}` is better when {_WORD[known]}, mode {mode} contradicts that"


def declared_mode(metric: str, recipe: RecipeSection | None) -> Mode | None:
    """Which direction is better by what the metric is, or by what the recipe says."""
    if metric == COMPOSITE:
        return Mode.MAX
    for spec in recipe.metrics if recipe else ():
        if isinstance(spec, MetricSection) and spec.name == metric:
            return spec.mode
    info = METRICS.get(metric) if recipe is None or recipe.sampler is not None else None
    return info.mode if info else None


def known_mode(metric: str, recipe: RecipeSection | None) -> Mode | None:
    """The same; of what a program answers or training logs also by the words in its name."""
    return declared_mode(metric, recipe) or (direction(metric) if recipe is None or recipe.sampler is None else None)
