"""The networks a worker keeps loaded between jobs."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ckptwatch.evaluate.networks.clip import ClipNetwork
from ckptwatch.evaluate.networks.dino import DinoNetwork
from ckptwatch.evaluate.networks.features import FeatureNetwork
from ckptwatch.evaluate.networks.perceptual import LpipsNetwork
from ckptwatch.model import Networks, evolve

# Networks of one kind kept loaded: those of two recipes, in which two metrics may want different ones.
WARM = {"features": 4, "clip": 4, "dino": 2, "lpips": 2}


class NetworkStore:
    """Of each kind at most `WARM`; the least recently used goes first. All raise EvaluationError (RECIPE)."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._kept: dict[str, OrderedDict[Any, Any]] = {}

    def features(self, networks: Networks, layers: Sequence[str], *, cache_dir: Path | None = None) -> FeatureNetwork:
        return self._features(networks, layers, cache_dir, "networks.features")

    def prc_is_features(self, networks: Networks) -> bool:
        """Are precision and recall to be had from the feature network, asked for their layer too?"""
        return (networks.prc, networks.prc_weights) == (networks.features, networks.features_weights)

    def prc(self, networks: Networks, *, cache_dir: Path | None = None) -> FeatureNetwork:
        """The network of precision and recall: the feature network where that one has its layer, else one of its own."""
        own = evolve(networks, features=networks.prc, features_weights=networks.prc_weights)
        layers = next((key[-1] for key in reversed(self._kept.get("features", OrderedDict()))
                       if key[:-1] == _features_key(own) and networks.prc_layer in key[-1]), (networks.prc_layer,))
        return self._features(own, layers, cache_dir, "networks.prc")

    def clip(self, networks: Networks, *, cache_dir: Path | None = None) -> ClipNetwork:
        return self._clip(networks, cache_dir, "networks.clip")

    def cmmd(self, networks: Networks, *, cache_dir: Path | None = None) -> ClipNetwork:
        """The network of CMMD: that of the CLIP score where model and weights are the same."""
        own = evolve(networks, clip=networks.cmmd, clip_pretrained=networks.cmmd_pretrained)
        return self._clip(own, cache_dir, "networks.cmmd")

    def dino(self, networks: Networks, *, cache_dir: Path | None = None) -> DinoNetwork:
        key = (networks.dino, _stamp(networks.dino_weights), networks.precision)
        return self._get("dino", key, lambda: DinoNetwork(networks, self._device, cache_dir=cache_dir))

    def lpips(self, networks: Networks, *, cache_dir: Path | None = None) -> LpipsNetwork:
        key = (networks.lpips, _stamp(networks.lpips_weights), networks.precision)
        return self._get("lpips", key, lambda: LpipsNetwork(networks, self._device, cache_dir=cache_dir))

    def clear(self) -> None:
        self._kept.clear()

    def _features(
        self, networks: Networks, layers: Sequence[str], cache_dir: Path | None, setting: str,
    ) -> FeatureNetwork:
        return self._get("features", (*_features_key(networks), tuple(layers)), lambda: FeatureNetwork(
            networks, layers, self._device, cache_dir=cache_dir, setting=setting,
        ))

    def _clip(self, networks: Networks, cache_dir: Path | None, setting: str) -> ClipNetwork:
        return self._get("clip", _clip_key(networks), lambda: ClipNetwork(
            networks, self._device, cache_dir=cache_dir, setting=setting,
        ))

    def _get(self, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        kept = self._kept.setdefault(kind, OrderedDict())
        if key not in kept:
            while len(kept) >= WARM[kind]:
                kept.popitem(last=False)
            kept[key] = make()
        kept.move_to_end(key)
        return kept[key]


def _features_key(networks: Networks) -> tuple[Any, ...]:
    return networks.features, _stamp(networks.features_weights), networks.features_module, networks.precision


def _clip_key(networks: Networks) -> tuple[Any, ...]:
    if networks.clip.startswith("local-dir:"):  # it carries its own weights: `pretrained` beside it does not matter
        directory = Path(networks.clip.removeprefix("local-dir:"))
        files = sorted(directory.iterdir()) if directory.is_dir() else []
        return networks.clip, tuple(map(_stamp, files)), networks.precision
    return networks.clip, _stamp(Path(networks.clip_pretrained)), networks.precision


def _stamp(file: Path | None) -> tuple[Any, ...]:
    """The name of a weights file and what changes when it is written again; a tag is a name alone."""
    if file is None:
        return ()
    try:
        found = file.stat()
    except OSError:
        return (str(file),)
    return str(file), found.st_size, found.st_mtime_ns, found.st_ino
