"""The metrics of a recipe, made before any image is."""

from collections.abc import Callable, Mapping

from ckptwatch.core.metrics import METRICS
from ckptwatch.evaluate.metrics.base import Metric
from ckptwatch.evaluate.metrics.clip_score import ClipScore
from ckptwatch.evaluate.metrics.cmmd import Cmmd
from ckptwatch.evaluate.metrics.custom import Custom, Spool, find_function
from ckptwatch.evaluate.metrics.fid import FrechetDistance
from ckptwatch.evaluate.metrics.inception_score import InceptionScore
from ckptwatch.evaluate.metrics.kid import Kid
from ckptwatch.evaluate.metrics.lpips import Lpips
from ckptwatch.evaluate.metrics.precision_recall import Manifolds, Precision, Recall
from ckptwatch.evaluate.panel import PRC, Panel
from ckptwatch.evaluate.reference import ReferenceSet
from ckptwatch.model import Recipe

NEEDING_REFERENCE = ("fid", "kid", "precision", "recall", "fd_dinov2", "cmmd")


def create_metrics(
    recipe: Recipe, panel: Panel, references: Mapping[str, ReferenceSet], originals: str, spool: Spool,
) -> tuple[Metric, ...]:
    """In the order of the recipe; `references` by metric, `originals` in words. Raises EvaluationError (RECIPE)."""
    both = next((metric for metric in PRC if metric in references), None)
    manifolds: Manifolds | None = None
    if both is not None:
        look = panel.looks[both]
        features = references[both].features()
        manifolds = Manifolds(look.key, features, f"{look.words}, {references[both].identity}")
    return tuple(
        Custom(spec, find_function(spec), spool) if spec.function or spec.name not in METRICS
        else _lpips(panel, originals) if spec.name == "lpips"
        else _MAKERS[spec.name](panel, references, manifolds)
        for spec in recipe.metrics
    )


Maker = Callable[[Panel, Mapping[str, ReferenceSet], Manifolds | None], Metric]


def _frechet(metric: str) -> Maker:
    def make(panel: Panel, references: Mapping[str, ReferenceSet], _: Manifolds | None) -> Metric:
        look = panel.looks[metric]
        statistics = references[metric].statistics()
        return FrechetDistance(metric, look.key, statistics, f"{look.words}, {references[metric].identity}")

    return make


def _kernel(metric: str, made: Callable[..., Metric]) -> Maker:
    def make(panel: Panel, references: Mapping[str, ReferenceSet], _: Manifolds | None) -> Metric:
        look = panel.looks[metric]
        features = references[metric].features()
        return made(look.key, features, f"{look.words}, {references[metric].identity}")

    return make


def _inception_score(panel: Panel, _: Mapping[str, ReferenceSet], __: Manifolds | None) -> Metric:
    look = panel.looks["inception_score"]
    return InceptionScore(look.key, look.words)


def _clip_score(panel: Panel, _: Mapping[str, ReferenceSet], __: Manifolds | None) -> Metric:
    assert panel.clip is not None
    return ClipScore(panel.clip.identity)


def _lpips(panel: Panel, originals: str) -> Metric:
    assert panel.lpips is not None
    return Lpips(f"{panel.lpips.identity}, {originals}")


def _precision(_: Panel, __: Mapping[str, ReferenceSet], manifolds: Manifolds | None) -> Metric:
    assert manifolds is not None
    return Precision(manifolds)


def _recall(_: Panel, __: Mapping[str, ReferenceSet], manifolds: Manifolds | None) -> Metric:
    assert manifolds is not None
    return Recall(manifolds)


_MAKERS: dict[str, Maker] = {
    "fid": _frechet("fid"), "fd_dinov2": _frechet("fd_dinov2"), "kid": _kernel("kid", Kid), "cmmd": _kernel("cmmd", Cmmd),
    "inception_score": _inception_score, "precision": _precision, "recall": _recall, "clip_score": _clip_score,
}
