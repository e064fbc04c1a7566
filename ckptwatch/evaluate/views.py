"""How the images of an evaluation are looked at: each view runs one network once per batch and gives rows for the ledger.

Metrics compute from those rows and never run a network, so two metrics that rest on the same features cost one pass.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from ckptwatch.evaluate.metrics.custom import Spool
from ckptwatch.evaluate.networks import ClipNetwork, LpipsNetwork
from ckptwatch.evaluate.originals import Originals
from ckptwatch.evaluate.pairs import PairCache
from ckptwatch.evaluate.samplers.base import Batch

CLIP_SCORE = "clip_score"  # keys of rows
LPIPS = "lpips"
EMBEDDING = "embedding"


class ImageNetwork(Protocol):
    """What `evaluate.networks` offers for images: rows by layer."""

    name: str
    layers: tuple[str, ...]
    identity: str            # words for the definition of a score: name, digest of the weights, precision
    warnings: Sequence[str]
    digest: str              # hex, of class, weights and precision

    def prepare(self, images: Tensor) -> Any:
        """Begins what can be done ahead on the CPU, with uint8 (n, 3, H, W); returns at once."""

    def extract(self, prepared: Any) -> dict[str, Tensor]:
        """float32 (n, d) by layer, on the CPU. Raises EvaluationError."""

    def dimension(self, layer: str) -> int | None:
        """The d of a layer, where it can be known without images."""


class Sight:
    """One batch while it is being looked at. Originals are read when first asked for."""

    def __init__(self, batch: Batch, originals: Originals | None) -> None:
        self.batch = batch
        self._originals = originals

    @cached_property
    def originals(self) -> Tensor | None:
        """uint8 (n, 3, H, W), resized to the generated size; None where there are none."""
        return None if self._originals is None else self._originals.for_batch(self.batch)


class View(Protocol):
    """One network's look at a batch."""

    def prepare(self, sight: Sight) -> Any:
        """Begins what can be done while another batch is looked at; its result goes to `look`."""

    def look(self, sight: Sight, prepared: Any) -> Mapping[str, Tensor]:
        """Rows by key, (n, d) or (n,). Raises EvaluationError."""


class NetworkView:
    """Features: rows `<purpose>/<layer>`."""

    def __init__(self, network: ImageNetwork, purpose: str) -> None:
        self._network = network
        self._purpose = purpose

    def prepare(self, sight: Sight) -> Any:
        return self._network.prepare(sight.batch.images)

    def look(self, _sight: Sight, prepared: Any) -> Mapping[str, Tensor]:
        return {f"{self._purpose}/{layer}": rows for layer, rows in self._network.extract(prepared).items()}


class ClipView:
    """Cosine of each image with its own prompt, −1 to 1, float64; and the embeddings themselves where a key is given."""

    def __init__(self, network: ClipNetwork, texts: Tensor, embeddings: str | None) -> None:
        self._network = network
        self._texts = texts.double()
        self._embeddings = embeddings

    def prepare(self, sight: Sight) -> Any:
        return self._network.prepare(sight.batch.images)

    def look(self, sight: Sight, prepared: Any) -> Mapping[str, Tensor]:
        seen = self._network.extract(prepared)[EMBEDDING]
        texts = self._texts[sight.batch.start:sight.batch.start + len(sight.batch)]
        rows = {CLIP_SCORE: (seen.double() * texts).sum(dim=1)}
        return rows if self._embeddings is None else {**rows, self._embeddings: seen}


class PairView:
    """LPIPS of each image to its original, float64. What the trunk sees in the originals is kept between checkpoints."""

    def __init__(self, network: LpipsNetwork, originals: Originals, cache: PairCache) -> None:
        self._network = network
        self._originals = originals
        self._cache = cache

    def prepare(self, sight: Sight) -> None:
        return None

    def look(self, sight: Sight, _prepared: None) -> Mapping[str, Tensor]:
        def see() -> Any:
            assert sight.originals is not None
            # Kept in the memory of the host: that of a GPU is training's.
            return tuple(layer.cpu() for layer in self._network.reference(sight.originals))

        images = sight.batch.images
        key = (self._network.digest, self._originals.stamp(sight.batch), images.shape[-2:])
        return {LPIPS: self._network.distances_to(images, self._cache.get(key, see))}


class SpoolView:
    """Keeps the images for metrics of the user's own; no rows."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def prepare(self, sight: Sight) -> None:
        return None

    def look(self, sight: Sight, _prepared: None) -> Mapping[str, Tensor]:
        self._spool.add(sight.batch)
        return {}
