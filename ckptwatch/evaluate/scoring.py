"""All metrics of one evaluation over one pass through the images.

Everything that can be known to fail before an image exists fails here, at the beginning: sampling costs hours.
"""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ckptwatch.core.metrics import METRICS
from ckptwatch.evaluate.failures import metric_error, recipe_error
from ckptwatch.evaluate.metrics.base import Metric, Observation
from ckptwatch.evaluate.metrics.clip_score import ClipScore
from ckptwatch.evaluate.metrics.custom import Custom, Spool, find_function
from ckptwatch.evaluate.metrics.fid import Fid
from ckptwatch.evaluate.metrics.inception_score import InceptionScore
from ckptwatch.evaluate.metrics.kid import Kid
from ckptwatch.evaluate.metrics.lpips import Lpips
from ckptwatch.evaluate.networks import FeatureNetwork, NetworkStore
from ckptwatch.evaluate.originals import Originals
from ckptwatch.evaluate.reference import ReferenceSet
from ckptwatch.evaluate.samplers.base import Report, Warn
from ckptwatch.model import MetricSpec, Recipe, Score


class Scoring:
    """Metrics of a recipe, with the networks, references and originals they need. Raises EvaluationError (RECIPE)."""

    def __init__(
        self, recipe: Recipe, prompts: tuple[str, ...], store: NetworkStore, *,
        work_dir: Path, cache_dir: Path, report: Report, warn: Warn,
    ) -> None:
        self._recipe = recipe
        self._prompts = prompts
        self._store = store
        self._cache_dir = cache_dir
        self._report = report
        self._warn = warn
        self._spool = Spool(work_dir / "spool")
        self._names = [spec.name for spec in recipe.metrics]
        self._check()
        self.originals = self._find_originals()
        self._features = self._feature_network()
        self._clip = store.clip(recipe.networks) if "clip_score" in self._names else None
        self._texts = self._embed_prompts()
        self._lpips = store.lpips(recipe.networks) if "lpips" in self._names else None
        self._metrics: list[Metric] = [self._make(spec) for spec in recipe.metrics]

    def observe(self, start: int, images: Tensor) -> Observation:
        """A batch of generated images, uint8 (n, 3, H, W), seen by every metric. Raises EvaluationError."""
        batch = Observation(
            start=start, images=images, prompts=self._prompts[start:start + len(images)],
            look=self._look,
            compare=self._compare,
            find_originals=self._find_pairs,
            distance=self._distance,
        )
        for metric in self._metrics:
            metric.update(batch)
        return batch

    def compute(self) -> tuple[Score, ...]:
        """All scores, in the order of the recipe. Raises EvaluationError (METRIC) when two have one name."""
        scores: dict[str, Score] = {}
        self._report("scoring", self._recipe.samples, self._recipe.samples)
        for metric in self._metrics:
            for score in metric.compute():
                if score.metric in scores:
                    raise metric_error(
                        "compute metrics", f"two metrics give a score named {score.metric!r}", retryable=False,
                        hint="rename the key that the custom metric returns",
                    )
                scores[score.metric] = score
        return tuple(scores.values())

    def _check(self) -> None:
        recipe = self._recipe
        for spec in recipe.metrics:
            info = None if spec.function else METRICS.get(spec.name)
            if info and recipe.samples < info.minimum_samples:
                raise recipe_error(
                    f"compute {spec.name}", f"{recipe.samples} samples, it needs at least {info.minimum_samples}",
                    path=f"recipe {recipe.name}", hint="raise `samples` of the recipe", retryable=False,
                )
            if info and info.needs_prompts and recipe.prompts is None:
                raise recipe_error(
                    f"compute {spec.name}", "the recipe has no prompts", path=f"recipe {recipe.name}", retryable=False,
                    hint="set `prompts` to a file with one prompt a line",
                )
        if len(set(self._names)) != len(self._names):
            raise recipe_error("compute metrics", "a metric is named twice", path=f"recipe {recipe.name}", retryable=False)

    def _find_originals(self) -> Originals | None:
        reference = self._recipe.reference
        # Reference images of FID are no pairs, so comparisons without LPIPS want reference.paired.
        if "lpips" in self._names or reference.paired is not None:
            return Originals(reference, self._recipe.samples, self._warn)
        return None

    def _feature_network(self) -> FeatureNetwork | None:
        networks = self._recipe.networks
        layers = [networks.features_layer] if {"fid", "kid"} & set(self._names) else []
        if "inception_score" in self._names and networks.logits_layer not in layers:
            layers.append(networks.logits_layer)
        return self._store.features(networks, layers) if layers else None

    def _embed_prompts(self) -> Tensor | None:
        if self._clip is None:
            return None
        for text in self._clip.warnings:
            self._warn(text)
        cut = self._clip.truncated(self._prompts)
        if cut:
            self._warn(f"CLIP sees only the beginning of {len(cut)} prompts (first: {cut[0][:60]!r}…)")
        return self._clip.embed_texts(self._prompts).double()

    # What an Observation asks for lazily; the asserts say that only metrics of the recipe ask.

    def _look(self, images: Tensor) -> dict[str, Tensor]:
        assert self._features is not None
        return self._features.extract(images)

    def _compare(self, start: int, images: Tensor) -> Tensor:
        assert self._clip is not None and self._texts is not None
        seen = self._clip.embed_images(images).double()
        return (seen * self._texts[start:start + len(images)]).sum(dim=1)

    def _find_pairs(self, start: int, images: Tensor) -> Tensor:
        assert self.originals is not None
        return self.originals.for_images(start, images)

    def _distance(self, images: Tensor, originals: Tensor) -> Tensor:
        assert self._lpips is not None
        return self._lpips.distances(images, originals)

    def _make(self, spec: MetricSpec) -> Metric:
        if spec.function or spec.name not in METRICS:
            return Custom(spec, find_function(spec), self._spool)
        networks = self._recipe.networks
        makers: dict[str, Callable[[], Metric]] = {
            "fid": lambda: Fid(networks.features_layer, self._reference().statistics(), networks.features),
            "kid": lambda: Kid(networks.features_layer, self._reference().features(), networks.features),
            "inception_score": lambda: InceptionScore(networks.logits_layer, networks.features),
            "clip_score": lambda: ClipScore(networks.clip),
            "lpips": lambda: Lpips(networks.lpips),
        }
        return makers[spec.name]()

    def _reference(self) -> ReferenceSet:
        assert self._features is not None
        return ReferenceSet(
            reference=self._recipe.reference, network=self._features, layer=self._recipe.networks.features_layer,
            cache_dir=self._cache_dir, batch_size=self._recipe.batch_size, report=self._report,
        )
