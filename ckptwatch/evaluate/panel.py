"""The networks that look at the images of a recipe, each once however many metrics rest on it."""

from dataclasses import dataclass
from pathlib import Path

from ckptwatch.evaluate.networks import ClipNetwork, LpipsNetwork, NetworkStore
from ckptwatch.evaluate.samplers.base import Warn
from ckptwatch.evaluate.views import EMBEDDING, ImageNetwork
from ckptwatch.model import Recipe

FRECHET = ("fid", "fd_dinov2")  # those that need mean and covariance
PRC = ("precision", "recall")


@dataclass(frozen=True)
class Look:
    """What a metric rests on: one layer of one network. Rows are kept under `key`."""

    network: ImageNetwork
    purpose: str
    layer: str

    @property
    def key(self) -> str:
        return f"{self.purpose}/{self.layer}"

    @property
    def words(self) -> str:
        """For the definition of a score."""
        return f"{self.layer} of {self.network.identity}"


class Panel:
    """Networks by purpose ("features", "prc", "dino", "cmmd"), CLIP and LPIPS. Raises EvaluationError (RECIPE)."""

    def __init__(self, recipe: Recipe, store: NetworkStore, cache_dir: Path) -> None:
        networks = recipe.networks
        wanted = {spec.name for spec in recipe.metrics if not spec.function}
        self.looks: dict[str, Look] = {}
        self.networks: dict[str, ImageNetwork] = {}
        self.clip: ClipNetwork | None = store.clip(networks, cache_dir=cache_dir) if "clip_score" in wanted else None
        self.lpips: LpipsNetwork | None = store.lpips(networks, cache_dir=cache_dir) if "lpips" in wanted else None

        features = {"fid": networks.features_layer, "kid": networks.features_layer,
                    "inception_score": networks.logits_layer}
        shared = store.prc_is_features(networks)
        if shared:
            features |= dict.fromkeys(PRC, networks.prc_layer)
        layers = tuple(dict.fromkeys(layer for metric, layer in features.items() if metric in wanted))
        if layers:
            self._seat("features", store.features(networks, layers, cache_dir=cache_dir), features, wanted)
        if not shared and wanted & set(PRC):
            own = dict.fromkeys(PRC, networks.prc_layer)
            self._seat("prc", store.prc(networks, cache_dir=cache_dir), own, wanted)
        if "fd_dinov2" in wanted:
            self._seat("dino", store.dino(networks, cache_dir=cache_dir), {"fd_dinov2": "cls"}, wanted)
        if "cmmd" in wanted:
            self._seat("cmmd", store.cmmd(networks, cache_dir=cache_dir), {"cmmd": EMBEDDING}, wanted)

    @property
    def distances(self) -> tuple[str, ...]:
        """Keys of rows whose mean and covariance will be asked for."""
        return tuple(self.looks[metric].key for metric in FRECHET if metric in self.looks)

    @property
    def digests(self) -> dict[str, str]:
        """What looks at the images, by purpose: weights and precision."""
        known = {**self.networks, "clip": self.clip, "lpips": self.lpips}
        return {purpose: network.digest for purpose, network in known.items() if network is not None}

    def tell(self, warn: Warn) -> None:
        """What is to be known about the networks."""
        for network in (*self.networks.values(), self.clip, self.lpips):
            for text in network.warnings if network is not None else ():
                warn(text)

    def _seat(self, purpose: str, network: ImageNetwork, layers: dict[str, str], wanted: set[str]) -> None:
        self.networks[purpose] = network
        self.looks |= {metric: Look(network, purpose, layer) for metric, layer in layers.items() if metric in wanted}
