"""DINOv2 for FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675), a timm model.

As in EDM2, which is modelled after dgm-eval: images are resized to 224 px by bicubic interpolation with antialiasing in
float32, unclamped; normalised with the model's mean and standard deviation (ImageNet's, for DINOv2); features are the class
token after the final norm.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ckptwatch.evaluate.failures import metric_error, recipe_error
from ckptwatch.evaluate.networks import drift
from ckptwatch.evaluate.networks.base import Network
from ckptwatch.evaluate.networks.loading import hub_cache, loaded, must_exist
from ckptwatch.evaluate.networks.parts import joined
from ckptwatch.model import Networks

LAYER = "cls"
SIDE = 224     # px
OFFSET = 0.1   # patches; the reference adds them to the wanted grid before it divides by the native one


class DinoNetwork(Network):
    """A timm vision transformer with a class token. Raises EvaluationError (RECIPE) when it cannot be made."""

    layers = (LAYER,)

    def __init__(self, networks: Networks, device: str, *, cache_dir: Path | None = None) -> None:
        super().__init__(networks.dino, device)
        model = _create(networks)
        mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        self._details = f"{SIDE} px, bicubic with antialiasing"
        self._network: Any = self._place(model)
        self._mean, self._std = (torch.tensor(x, device=self._device)[:, None, None] for x in (mean, std))
        self._choose(networks.precision, lambda: self.extract(drift.images()), cache_dir)

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, H, W), begun to be copied to the device."""
        return self._upload(images)

    def extract(self, prepared: Tensor) -> dict[str, Tensor]:
        """Of what `prepare` gave, or of images: {"cls": float32 (n, d)} on the CPU. Raises EvaluationError (METRIC)."""
        images = self._upload(prepared)
        found = joined(self._parts.run(lambda part: self._forward(images[part]), len(images)))
        if not bool(torch.isfinite(found[LAYER]).all()):
            raise metric_error("extract features", "they are not finite", path=self.name, retryable=False)
        return found

    def dimension(self, layer: str) -> int | None:
        return self._network.num_features if layer == LAYER else None

    def _forward(self, images: Tensor) -> dict[str, Tensor]:
        with self._exact():
            resized = interpolate(images.float(), (SIDE, SIDE), mode="bicubic", antialias=True)
            normalised = (resized / 255 - self._mean) / self._std
        with self._numbers():
            return {LAYER: self._network.forward_features(normalised)[:, 0].float().cpu()}


def resample(position: Tensor, side: int, prefix: int) -> Tensor:
    """A position embedding (1, prefix + m·m, d) for side × side patches, as the DINOv2 reference computes it.

    Bicubic without antialiasing, at the scale (side + 0.1) / m: the offset, once against rounding, has become part of the
    published model. At the native side it is returned as it is.
    """
    native = math.isqrt(position.shape[1] - prefix)
    if native == side:
        return position
    grid = position[:, prefix:].float().reshape(1, native, native, -1).permute(0, 3, 1, 2)
    scale = (side + OFFSET) / native
    grid = interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([position[:, :prefix], grid.permute(0, 2, 3, 1).flatten(1, 2).to(position.dtype)], dim=1)


def _create(networks: Networks) -> Any:
    import timm

    must_exist(networks.dino_weights, "load DINOv2", "networks.dino.weights")
    file = {"pretrained_cfg_overlay": {"file": str(networks.dino_weights)}} if networks.dino_weights else {}
    return loaded(
        lambda: fitted(timm.create_model(networks.dino, pretrained=True, **file)), f"DINOv2 {networks.dino}",
        networks.dino_weights or hub_cache(),
        "where there is no network, set networks.dino.weights to the weights file (timm's or the original); "
        "networks.dino.model must be a timm model name",
    )


def fitted(model: Any) -> nn.Module:
    """A timm model made ready for 224 px. Raises EvaluationError (RECIPE) for one without a class token."""
    if getattr(model, "cls_token", None) is None:
        raise recipe_error(
            "load DINOv2", "it has no class token", path=model.pretrained_cfg["architecture"], retryable=False,
            hint="networks.dino.model must be a vision transformer of timm, such as vit_base_patch14_dinov2.lvd142m",
        )
    native = model.patch_embed.img_size
    if native is not None and tuple(native) != (SIDE, SIDE):
        position = model.pos_embed
        model.set_input_size((SIDE, SIDE))
        # The reference antialiases, as timm does, only where there are registers.
        if position is not None and getattr(model, "reg_token", None) is None:
            prefix = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
            model.pos_embed = nn.Parameter(resample(position.detach(), model.patch_embed.grid_size[0], prefix))
    return model
