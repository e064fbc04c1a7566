"""What generated images are compared with: statistics and features of a reference set, computed once and kept.

The cache is content-addressed: its key is a digest of the images' bytes, how they are read, the network with its weights and
precision, and the layer, so it cannot go stale. torch-fidelity's own is keyed by name only, and does.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import recipe_error
from ckptwatch.evaluate.images import list_images, read_batches
from ckptwatch.evaluate.metrics.statistics import CHUNK, Statistics, with_root
from ckptwatch.evaluate.reference_cache import (
    FeatureWriter,
    Tally,
    contents_digest,
    digest_of,
    load_arrays,
    open_features,
    store_arrays,
)
from ckptwatch.evaluate.samplers.base import Report
from ckptwatch.evaluate.stats_files import read_stats
from ckptwatch.evaluate.views import ImageNetwork
from ckptwatch.model import Reference

LAYOUT = "2"  # of the cache files and of how images are read; raise it when either changes
BY_STATISTICS = frozenset({"fid", "fd_dinov2"})  # metrics to which mean and covariance are enough
STATISTICS, FEATURES, CONTENT = "statistics", "features", "content"


@dataclass(frozen=True, kw_only=True)
class ReferenceSet:
    """Reference images or statistics of a recipe, seen through one layer of one network, for one metric."""

    metric: str  # "fid", …: what errors say that it was wanted for
    reference: Reference
    network: ImageNetwork
    layer: str
    cache_dir: Path
    batch_size: int
    report: Report
    _held: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def statistics(self) -> Statistics:
        """Mean, covariance and its root: of the stats file where there is one, else of the images.

        Raises EvaluationError (RECIPE).
        """
        if STATISTICS not in self._held:
            _fill([(self, STATISTICS)])
        return self._held[STATISTICS]

    def features(self) -> Tensor:
        """float32 (m, d) of the reference images, in their order; mapped from the cache, and safe to write to.

        Raises EvaluationError (RECIPE).
        """
        if FEATURES not in self._held:
            _fill([(self, FEATURES)])
        return self._held[FEATURES]

    @property
    def identity(self) -> str:
        """Which reference it is, in words for the definition of a score. After `prime`, `statistics` or `features`.

        The daemon's digest of a recipe notices an image that was overwritten in place only at its next start; this at once.
        """
        return f"reference {self._held[CONTENT][:8]}"

    @property
    def operation(self) -> str:
        """What fails without it."""
        return f"compute {self.metric}"


def prime(sets: Sequence[ReferenceSet]) -> None:
    """Makes what each set's metric will ask it for. All that no cache has comes from one pass over the images: they are
    decoded once, and each network looks at each batch once. Raises EvaluationError (RECIPE)."""
    _fill([(s, STATISTICS if s.metric in BY_STATISTICS else FEATURES) for s in sets])


def reference_images(directory: Path) -> list[Path]:
    """The images of a reference directory. Raises EvaluationError (RECIPE) unless there are at least two."""
    try:
        files = list_images(directory)
    except OSError as error:
        raise recipe_error(
            "read reference images", error.strerror or str(error), path=directory,
            hint="reference.images must name a directory of png, jpg or webp files; is its disk mounted?",
        ) from error
    if len(files) < 2:
        raise recipe_error(
            "read reference images", f"found {len(files)} images, at least 2 are needed", path=directory,
            hint="png, jpg, jpeg and webp files directly in it count, those in directories below it do not",
        )
    return files


# ---- filling ---------------------------------------------------------------------------------------------------------


def _fill(wanted: Sequence[tuple[ReferenceSet, str]]) -> None:
    """Puts what is wanted into the sets. Stats files first: what is wrong with them is soon known."""
    wanted = [(s, kind) for s, kind in wanted if kind not in s._held]
    of_images: dict[Path, list[tuple[ReferenceSet, str]]] = {}
    for s, kind in wanted:
        if kind == STATISTICS and s.reference.stats is not None:
            s._held[STATISTICS], s._held[CONTENT] = _of_stats_file(s, s.reference.stats)
        else:
            of_images.setdefault(_directory(s), []).append((s, kind))
    for directory, group in of_images.items():
        _fill_from_images(directory, group)


def _directory(s: ReferenceSet) -> Path:
    if s.reference.images is not None:
        return s.reference.images
    if s.reference.stats is not None:
        raise recipe_error(
            s.operation, "it needs reference images; mean and covariance are not enough", path=s.reference.stats,
            hint=f"set reference.images, or take {s.metric} out of the recipe's metrics", retryable=False,
        )
    stats = " or reference.stats" if s.metric in BY_STATISTICS else ""
    raise recipe_error(s.operation, "the recipe has no reference", hint=f"set reference.images{stats}", retryable=False)


def _of_stats_file(s: ReferenceSet, path: Path) -> tuple[Statistics, str]:
    mu, sigma = read_stats(path, network=s.network.name, layer=s.layer, dimension=s.network.dimension(s.layer))
    content = hashlib.sha256(mu.numpy().tobytes() + sigma.numpy().tobytes()).hexdigest()
    cache = s.cache_dir / f"statistics-{digest_of([LAYOUT, content])[:32]}.npz"
    stored = load_arrays(cache, {"root": 2})
    if stored is not None and stored["root"].shape == sigma.shape:
        return Statistics(mu=mu, sigma=sigma, root=stored["root"]), content
    made = with_root(mu, sigma)
    store_arrays(cache, {"root": made.root})
    return made, content


def _fill_from_images(directory: Path, wanted: Sequence[tuple[ReferenceSet, str]]) -> None:
    files = reference_images(directory)
    first = wanted[0][0]
    try:
        content = contents_digest(files, first.cache_dir)
    except OSError as error:
        raise recipe_error(
            "read reference images", error.strerror or str(error), path=error.filename or directory,
            hint="do the files stay while they are read? is their disk mounted?",
        ) from error
    keys = [digest_of([LAYOUT, content, s.network.name, s.layer, s.network.digest]) for s, _ in wanted]
    views: dict[str, _View] = {}  # sets that want the same of the same share one
    for (s, kind), key in zip(wanted, keys, strict=True):
        views.setdefault(key, _View(s, key, len(files))).want(kind)
    lacking = [view for view in views.values() if not view.find()]
    if lacking:
        _look(lacking, files, first)
    for (s, kind), key in zip(wanted, keys, strict=True):
        s._held[kind], s._held[CONTENT] = views[key].found[kind], content


def _look(views: Sequence["_View"], files: Sequence[Path], first: ReferenceSet) -> None:
    """One pass over the images: each batch is decoded once, and each network looks at it once."""
    networks: dict[int, tuple[ImageNetwork, list[_View]]] = {}
    for view in views:
        networks.setdefault(id(view.network), (view.network, []))[1].append(view)
    done = 0
    first.report("loading", 0, len(files))
    try:
        for images, prepared in _prepared(read_batches(files, first.batch_size, _image_error, same_size=False),
                                          [network for network, _ in networks.values()]):
            for (network, own), one in zip(networks.values(), prepared, strict=True):
                rows = network.extract(one)
                for view in own:
                    view.add(rows[view.layer])
            done += images
            first.report("loading", done, len(files))
        for view in views:
            view.finish()
    finally:
        for view in views:
            view.abandon()


def _prepared(batches: Iterable[Tensor], networks: Sequence[ImageNetwork]) -> Iterator[tuple[int, list[Any]]]:
    """The number of images of each batch, and what each network prepared of it, begun while the one before it is looked
    at."""
    waiting: tuple[int, list[Any]] | None = None
    for batch in batches:
        following = len(batch), [network.prepare(batch) for network in networks]
        if waiting is not None:
            yield waiting
        waiting = following
    if waiting is not None:
        yield waiting


class _View:
    """One layer of one network over all images: what is wanted of it, and what was found or made."""

    def __init__(self, s: ReferenceSet, key: str, count: int) -> None:
        self.network, self.layer = s.network, s.layer
        self.found: dict[str, Any] = {}
        self._count = count
        self._wanted: set[str] = set()
        self._width = 0
        base = s.cache_dir / f"reference-{key[:32]}"
        self._arrays, self._features = base.with_suffix(".npz"), base.with_suffix(".npy")
        self._tally: Tally | None = None
        self._writer: FeatureWriter | None = None

    def want(self, kind: str) -> None:
        self._wanted.add(kind)

    def find(self) -> bool:
        """Does the cache have all that is wanted? Statistics follow from features that were kept for another metric."""
        if STATISTICS in self._wanted and (stored := load_arrays(self._arrays, {"mu": 1, "sigma": 2, "root": 2})):
            self.found[STATISTICS] = Statistics(**stored)
        missing = self._wanted - self.found.keys()
        if missing and (features := open_features(self._features, self._count)) is not None:
            self.found[FEATURES] = features
            if STATISTICS in missing:
                tally = Tally()
                for block in features.split(CHUNK):
                    tally.add(block)
                self._keep_statistics(tally)
        return not self._wanted - self.found.keys()

    def add(self, rows: Tensor) -> None:
        """float32 (k, d). Raises EvaluationError (RECIPE)."""
        if not self._width:
            self._width = rows.shape[1]
            self._tally = Tally() if STATISTICS in self._wanted - self.found.keys() else None
            self._writer = FeatureWriter(self._features, self._count) if FEATURES in self._wanted else None
        if rows.shape[1] != self._width:
            raise recipe_error(
                "use feature layer", f"it gives {self._width} values for one image and {rows.shape[1]} for another",
                path=f"{self.network.name}/{self.layer}", retryable=False,
                hint="name a layer whose length does not depend on the image's size, or use images of one size",
            )
        if self._tally is not None:
            self._tally.add(rows)
        if self._writer is not None:
            self._writer.add(rows)

    def finish(self) -> None:
        if self._writer is not None:
            self.found[FEATURES] = self._writer.finish()
        if self._tally is not None:
            self._keep_statistics(self._tally)

    def abandon(self) -> None:
        """What is not finished leaves nothing behind."""
        if self._writer is not None:
            self._writer.abandon()

    def _keep_statistics(self, tally: Tally) -> None:
        moments = tally.moments()
        made = self.found[STATISTICS] = with_root(moments.mean, moments.covariance)
        store_arrays(self._arrays, {"mu": made.mu, "sigma": made.sigma, "root": made.root})


def _image_error(operation: str, cause: str, **where: Any) -> EvaluationError:
    where["hint"] = "remove or replace the broken reference image"
    return recipe_error(operation, cause, **where)
