"""Feature extractors of torch-fidelity: Inception for FID, KID and Inception Score, VGG for precision and recall."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import metric_error, recipe_error
from ckptwatch.evaluate.loading import load_function
from ckptwatch.evaluate.networks import drift
from ckptwatch.evaluate.networks.base import Network
from ckptwatch.evaluate.networks.loading import loaded, must_exist, torch_home
from ckptwatch.evaluate.networks.parts import joined
from ckptwatch.evaluate.networks.tuning import fold_batch_norm, lay_out
from ckptwatch.model import Networks

FILES = {"inception-v3-compat": "weights-inception-2015-12-05-6726825d.pth", "vgg16": "vgg16-397923af.pth"}

_registered: set[str] = set()  # features_module functions already called in this process


class FeatureNetwork(Network):
    """A torch-fidelity feature extractor: uint8 images to one float32 vector per image and layer.

    `setting` is the section of the configuration that names it. Raises EvaluationError (RECIPE) when it cannot be made.
    """

    def __init__(
        self, networks: Networks, layers: Sequence[str], device: str, *,
        cache_dir: Path | None = None, setting: str = "networks.features",
    ) -> None:
        super().__init__(networks.features, device)
        self.layers = tuple(layers)
        self._network: Any = self._place(self._create(networks, setting))
        self._tune()
        self._choose(networks.precision, lambda: self.extract(drift.images()), cache_dir)

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, H, W), begun to be copied to the device."""
        return self._upload(images)

    def extract(self, prepared: Tensor) -> dict[str, Tensor]:
        """Of what `prepare` gave, or of images: {layer: float32 (n, d)} on the CPU.

        Raises EvaluationError: METRIC where they are not finite, RECIPE where a layer has no vectors.
        """
        images = self._upload(prepared)
        found = joined(self._parts.run(lambda part: self._forward(images[part]), len(images)))
        for layer, features in found.items():
            self._check(layer, features)
        return found

    def dimension(self, layer: str) -> int | None:
        """The d of a layer, found with a black image; None where the network does not take 64 px."""
        try:
            return self.extract(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[layer].shape[1]
        except (RuntimeError, ValueError, AssertionError, EvaluationError):
            return None

    def _tune(self) -> None:
        """Only the networks that are known to bear it: one of the user's may look at the layout of its tensors."""
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

        if type(self._network) is FeatureExtractorInceptionV3:
            fold_batch_norm(self._network)
        if type(self._network) in (FeatureExtractorInceptionV3, FeatureExtractorVGG16):
            lay_out(self._network, self._device)

    def _forward(self, images: Tensor) -> dict[str, Tensor]:
        with self._numbers():
            outputs = self._network(images)
            return {k: v.float().cpu() for k, v in self._network.convert_features_tuple_to_dict(outputs).items()}

    def _check(self, layer: str, features: Tensor) -> None:
        if features.ndim != 2:
            raise recipe_error(
                "use feature layer", f"it gives shape {tuple(features.shape)}, wanted (n, d)",
                path=f"{self.name}/{layer}", hint="name a layer with one vector per image", retryable=False,
            )
        if not bool(torch.isfinite(features).all()):
            raise metric_error("extract features", "they are not finite", path=f"{self.name}/{layer}", retryable=False)

    def _create(self, networks: Networks, setting: str) -> Any:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
        from torch_fidelity.utils import create_feature_extractor

        _register(networks.features_module)
        if self.name not in FEATURE_EXTRACTORS_REGISTRY:
            raise recipe_error(
                "load feature extractor", f"not known to torch-fidelity; known: {', '.join(FEATURE_EXTRACTORS_REGISTRY)}",
                path=self.name, hint=f"set {setting}.extractor, or register yours with networks.features.module",
                retryable=False,
            )
        provided = FEATURE_EXTRACTORS_REGISTRY[self.name].get_provided_features_list()
        unknown = [layer for layer in self.layers if layer not in provided]
        if unknown:
            which = "(FID, KID) and networks.features.logits (Inception Score)" if setting == "networks.features" else ""
            raise recipe_error(
                "load feature extractor", f"it has no layer {unknown[0]!r}; it has: {', '.join(provided)}", path=self.name,
                hint=f"set {setting}.layer {which}".strip(), retryable=False,
            )
        must_exist(networks.features_weights, "load feature extractor", f"{setting}.weights")
        weights = str(networks.features_weights) if networks.features_weights else None
        options = {"feature_extractor_weights_path": weights} if weights else {}

        def create() -> Any:
            return create_feature_extractor(self.name, list(self.layers), cuda=False, verbose=False, **options)

        where = torch_home() / FILES.get(self.name, "")
        return loaded(
            create, f"feature extractor {self.name}", weights or where,
            f"where there is no network, copy the weights to {where}, or set {setting}.weights to their file",
        )


def _register(function: str) -> None:
    """Calls the function that registers a third-party extractor, once per process."""
    if not function or function in _registered:
        return
    register = load_function(function, "feature extractor module")
    try:
        register()
    except Exception as error:
        raise recipe_error(
            "register feature extractor", f"{type(error).__name__}: {error}", path=function, retryable=False,
            hint="networks.features.module must call torch_fidelity.register_feature_extractor",
        ) from error
    _registered.add(function)
