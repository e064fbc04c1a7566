"""All metrics of one evaluation over one pass through the images.

Everything that can be known to fail before an image exists fails here, at the beginning: sampling costs hours.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ckptwatch.core.metrics import METRICS
from ckptwatch.evaluate.failures import metric_error, recipe_error
from ckptwatch.evaluate.ledger import Ledger
from ckptwatch.evaluate.metrics.base import Measured, Metric
from ckptwatch.evaluate.metrics.create import NEEDING_REFERENCE, create_metrics
from ckptwatch.evaluate.metrics.custom import Spool
from ckptwatch.evaluate.networks import NetworkStore
from ckptwatch.evaluate.originals import Originals
from ckptwatch.evaluate.pairs import PairCache
from ckptwatch.evaluate.panel import Panel
from ckptwatch.evaluate.reference import ReferenceSet, prime
from ckptwatch.evaluate.samplers.base import Batch, Report, Warn
from ckptwatch.evaluate.views import ClipView, NetworkView, PairView, Sight, SpoolView, View
from ckptwatch.model import Recipe


@dataclass(frozen=True)
class Glance:
    """A batch whose preparation has begun; `Scoring.observe` takes it."""

    sight: Sight
    prepared: tuple[Any, ...]


class Scoring:
    """Metrics of a recipe, with the networks, references and originals they need. Raises EvaluationError (RECIPE).

    A part of a shared evaluation that is not to score asks for no references: they are read where the parts are merged.
    """

    def __init__(
        self, recipe: Recipe, prompts: tuple[str, ...], store: NetworkStore, pairs: PairCache, *,
        spool: Path, cache_dir: Path, report: Report, warn: Warn, scores: bool = True,
    ) -> None:
        self._recipe = recipe
        self._prompts = prompts
        self._report = report
        self._warn = warn
        self._spool = Spool(spool, prompts)
        _check(recipe)
        self._panel = Panel(recipe, store, cache_dir)
        self._panel.tell(warn)
        self.originals = self._find_originals()
        self._views = self._make_views(pairs)
        self._metrics: tuple[Metric, ...] = ()
        if scores:
            references = self._references(cache_dir)
            prime(tuple(references.values()))
            originals = self.originals.identity(cache_dir) if self.originals and self._panel.lpips else ""
            self._metrics = create_metrics(recipe, self._panel, references, originals, self._spool)

    def prepare(self, batch: Batch) -> Glance:
        """Begins what can be done for a batch while the one before it is looked at."""
        sight = Sight(batch, self.originals)
        return Glance(sight, tuple(view.prepare(sight) for view in self._views))

    def observe(self, glance: Glance, ledger: Ledger) -> None:
        """Every network looks at a batch once. Raises EvaluationError, OrderChangedError."""
        for view, prepared in zip(self._views, glance.prepared, strict=True):
            ledger.append(view.look(glance.sight, prepared))
        if self.originals is not None and self._panel.lpips is not None:  # without it only pictures show originals
            ledger.pairing = self.originals.pairing

    @property
    def networks(self) -> dict[str, str]:
        """Digests of what looks at the images."""
        return self._panel.digests

    @property
    def distances(self) -> tuple[str, ...]:
        """Keys of rows whose mean and covariance will be asked for."""
        return self._panel.distances

    def compute(self, ledger: Ledger) -> tuple[Measured, ...]:
        """All scores, in the order of the recipe. Raises EvaluationError (METRIC) when two have one name."""
        found: dict[str, Measured] = {}
        for done, metric in enumerate(self._metrics):
            self._report("computing", done, len(self._metrics))
            for measured in metric.compute(ledger):
                name = measured.score.metric
                if name in found:
                    raise metric_error(
                        "compute metrics", f"two metrics give a score named {name!r}", retryable=False,
                        hint="rename the key that the custom metric returns",
                    )
                found[name] = measured
        self._report("computing", len(self._metrics), len(self._metrics))
        return tuple(found.values())

    def _find_originals(self) -> Originals | None:
        reference = self._recipe.reference
        # Reference images of FID are no pairs, so comparisons without LPIPS want reference.paired.
        if self._panel.lpips is not None or reference.paired is not None:
            return Originals(reference, self._recipe.samples, self._warn)
        return None

    def _make_views(self, pairs: PairCache) -> tuple[View, ...]:
        panel = self._panel
        views: list[View] = []
        clip_sees_for_cmmd = panel.clip is not None and panel.networks.get("cmmd") is panel.clip
        for purpose, network in panel.networks.items():
            if not (purpose == "cmmd" and clip_sees_for_cmmd):
                views.append(NetworkView(network, purpose))
        if panel.clip is not None:
            if cut := panel.clip.truncated(self._prompts):
                self._warn(f"CLIP sees only the beginning of {len(cut)} prompts (first: {cut[0][:60]!r}…)")
            embeddings = panel.looks["cmmd"].key if clip_sees_for_cmmd else None
            views.append(ClipView(panel.clip, panel.clip.embed_texts(self._prompts), embeddings))
        if panel.lpips is not None:
            assert self.originals is not None
            views.append(PairView(panel.lpips, self.originals, pairs))
        if any(spec.function or spec.name not in METRICS for spec in self._recipe.metrics):
            views.append(SpoolView(self._spool))
        return tuple(views)

    def _references(self, cache_dir: Path) -> dict[str, ReferenceSet]:
        return {
            metric: ReferenceSet(
                metric=metric, reference=self._recipe.reference, network=look.network, layer=look.layer,
                cache_dir=cache_dir, batch_size=self._recipe.batch_size, report=self._report,
            )
            for metric, look in self._panel.looks.items() if metric in NEEDING_REFERENCE
        }


def influences(found: tuple[Measured, ...]) -> dict[str, Tensor]:
    """Each sample's influence on each metric that has one, float64 (n,)."""
    return {m.score.metric: m.influence for m in found if m.influence is not None}


def _check(recipe: Recipe) -> None:
    """What the configuration allows and no evaluation can do. Raises EvaluationError (RECIPE)."""
    where = f"recipe {recipe.name}"
    for spec in recipe.metrics:
        info = None if spec.function else METRICS.get(spec.name)
        if info and recipe.samples < info.minimum_samples:
            raise recipe_error(
                f"compute {spec.name}", f"{recipe.samples} samples, it needs at least {info.minimum_samples}",
                path=where, hint="raise `samples` of the recipe", retryable=False,
            )
        if info and info.needs_prompts and recipe.prompts is None:
            raise recipe_error(
                f"compute {spec.name}", "the recipe has no prompts", path=where, retryable=False,
                hint="set `prompts` to a file with one prompt a line",
            )
    names = [spec.name for spec in recipe.metrics]
    if len(set(names)) != len(names):
        raise recipe_error("compute metrics", "a metric is named twice", path=where, retryable=False)
