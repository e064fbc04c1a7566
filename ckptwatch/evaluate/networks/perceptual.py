"""LPIPS v0.1 (Zhang et al. 2018, arXiv 1801.03924), with the parts of the lpips package.

Its own forward pass sends both images through the trunk. Here what the trunk sees in an original can be kept: originals
stay the same from checkpoint to checkpoint.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckptwatch.evaluate.failures import recipe_error
from ckptwatch.evaluate.images import size_text
from ckptwatch.evaluate.networks import drift
from ckptwatch.evaluate.networks.base import Network
from ckptwatch.evaluate.networks.loading import loaded, must_exist, torch_home
from ckptwatch.evaluate.networks.tuning import lay_out
from ckptwatch.model import Networks

FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}
EPSILON = 1e-10  # as lpips
SMALLEST = 32  # px; AlexNet's pooling fails at 24 and works at 31

Seen = tuple[Tensor, ...]  # by layer of the trunk: float32 (n, c, h, w), of unit length along c


class LpipsNetwork(Network):
    """LPIPS with trunk alex, vgg or squeeze. Raises EvaluationError (RECIPE) when it cannot be made."""

    def __init__(self, networks: Networks, device: str, *, cache_dir: Path | None = None) -> None:
        super().__init__(networks.lpips, device)
        if networks.lpips not in FILES:
            raise recipe_error(
                "load LPIPS", f"no such trunk; there are {', '.join(FILES)}", path=networks.lpips,
                hint="set networks.lpips", retryable=False,
            )
        must_exist(networks.lpips_weights, "load LPIPS", "networks.lpips.weights")
        where = torch_home() / FILES[networks.lpips]
        self._network: Any = lay_out(self._place(loaded(
            lambda: _make(networks), f"LPIPS {networks.lpips}", networks.lpips_weights or where,
            f"where there is no network, copy the trunk's weights to {where}, or set networks.lpips.weights to a state "
            "dict of trunk and heads",
        )), self._device)
        self._choose(networks.precision, self._probe, cache_dir)

    def distances(self, images: Tensor, originals: Tensor) -> Tensor:
        """uint8 (n, 3, H, W) twice to float64 (n,), 0 and up. Raises EvaluationError (RECIPE) below 32 px."""
        self._check(images)
        left, right = self._upload(images), self._upload(originals)
        return torch.cat(self._parts.run(lambda part: self._compare(left[part], self._see(right[part])), len(left)))

    def reference(self, originals: Tensor) -> Seen:
        """What `distances_to` needs of originals, uint8 (n, 3, H, W): on the device, 2.6 MB for 256 px in AlexNet.

        Where the whole batch does not fit, on the CPU. Raises EvaluationError (RECIPE) below 32 px.
        """
        self._check(originals)
        images = self._upload(originals)

        def forward(part: slice) -> Seen:
            seen = self._see(images[part])
            return seen if part.stop - part.start == len(images) else tuple(layer.cpu() for layer in seen)

        parts = self._parts.run(forward, len(images))
        return parts[0] if len(parts) == 1 else tuple(torch.cat(layers) for layers in zip(*parts, strict=True))

    def distances_to(self, images: Tensor, reference: Seen) -> Tensor:
        """uint8 (n, 3, H, W), and `reference` of n originals of this size, to float64 (n,)."""
        self._check(images)
        left = self._upload(images)

        def forward(part: slice) -> Tensor:
            return self._compare(left[part], tuple(layer[part].to(self._device) for layer in reference))

        return torch.cat(self._parts.run(forward, len(left)))

    def _see(self, images: Tensor) -> Seen:
        with self._exact():
            return tuple(_unit(layer) for layer in self._trunk(images))

    def _trunk(self, images: Tensor) -> Sequence[Tensor]:
        with self._numbers():
            # The one place where [0, 255] becomes [−1, 1].
            return self._network.net(self._network.scaling_layer(images.float() / 127.5 - 1))

    def _compare(self, images: Tensor, reference: Seen) -> Tensor:
        from lpips import spatial_average

        layers = self._trunk(images)
        total: Any = 0
        with self._exact():
            for head, layer, theirs in zip(self._network.lins, layers, reference, strict=True):
                total = total + spatial_average(head(_unit(layer).sub_(theirs).square_()), keepdim=True)
            return total.flatten().double().cpu()

    def _probe(self) -> dict[str, Tensor]:
        images = drift.images()
        return {"distance": self.distances(images, images.roll(1, dims=0))[:, None]}

    def _check(self, images: Tensor) -> None:
        if min(images.shape[-2:]) < SMALLEST:
            raise recipe_error(
                "compute LPIPS", f"images are {size_text(images.shape)} px, it needs at least {SMALLEST} px a side",
                path=self.name, hint="take lpips out of the recipe's metrics", retryable=False,
            )


def _unit(layer: Tensor) -> Tensor:
    """What lpips.normalize_tensor computes, in a third of its time."""
    layer = layer.float()
    return layer / (torch.linalg.vector_norm(layer, dim=1, keepdim=True) + EPSILON)


def _make(networks: Networks) -> Any:
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips 0.1.4 calls torchvision in a way deprecated since 2022
        if networks.lpips_weights is None:
            return lpips.LPIPS(net=networks.lpips, verbose=False)
        model = lpips.LPIPS(net=networks.lpips, pnet_rand=True, pretrained=False, verbose=False)
    # lpips itself loads with strict=False and would go on with a random trunk.
    state = torch.load(networks.lpips_weights, map_location="cpu", weights_only=True)
    lacking = [k for k in model.load_state_dict(state, strict=False).missing_keys if k.startswith(("net.", "lin"))]
    # `lins.N` are second names of `linN`.
    lacking = [k for k in lacking if not (k.startswith("lins.") and f"lin{k.split('.')[1]}.model.1.weight" in state)]
    if lacking:
        raise ValueError(f"the file lacks {len(lacking)} of its weights (first: {lacking[0]})")
    return model
