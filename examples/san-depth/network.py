"""A small depth network with a sparse auxiliary branch (SAN): from a picture alone, or from that and what a lidar sees."""

import torch
from scenes import FARTHEST, NEAREST
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

WIDTHS = (16, 32, 48)


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(4, outputs), nn.ELU())


class SparseBranch(nn.Module):
    """Features at each scale from sparse depths: means over the pixels that have any, and how many these are."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(2, width) for width in WIDTHS)

    def forward(self, sparse: Tensor) -> list[Tensor]:
        seen, features = (sparse > 0).float(), []
        for level, layer in enumerate(self.blocks, start=1):
            size = 2**level
            share = avg_pool2d(seen, size)
            mean = avg_pool2d(1 / sparse.clamp_min(NEAREST) * seen, size) / share.clamp_min(1e-6)
            features.append(layer(torch.cat([mean, share], dim=1)) * (share > 0))
        return features


class DepthNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.encoder = nn.ModuleList([
            nn.Sequential(block(3, first, 2), block(first, first)),
            nn.Sequential(block(first, second, 2), block(second, second)),
            nn.Sequential(block(second, third, 2), block(third, third))])
        self.sparse = SparseBranch()
        self.weight = nn.Parameter(torch.zeros(3))  # how much the branch adds at each scale
        self.decoder = nn.ModuleList([block(third, second), block(second, first), block(first, first)])
        self.head = nn.Conv2d(first, 1, 3, 1, 1)

    def forward(self, picture: Tensor, sparse: Tensor | None = None) -> Tensor:
        """Depth in metres, (n, 1, H, W)."""
        skips, x = [], picture
        for layer in self.encoder:
            x = layer(x)
            skips.append(x)
        if sparse is not None:
            skips = [skip + w * added for skip, w, added in zip(skips, self.weight, self.sparse(sparse), strict=True)]
        x = skips.pop()
        for layer in self.decoder:
            size = skips[-1].shape[-2:] if skips else picture.shape[-2:]
            x = interpolate(layer(x), size=size, mode="bilinear", align_corners=False)
            x = x + skips.pop() if skips else x
        inverse = torch.sigmoid(self.head(x))
        return 1 / (1 / FARTHEST + (1 / NEAREST - 1 / FARTHEST) * inverse)


def silog(predicted: Tensor, depth: Tensor) -> Tensor:
    """Scale-invariant logarithmic error (Eigen et al. 2014) with 0.85 of its variance focus, as BTS and SAN train with."""
    apart = predicted.log() - depth.log()
    return (apart.square().mean() - 0.85 * apart.mean().square()).sqrt()


def roughness(predicted: Tensor, picture: Tensor) -> Tensor:
    """Edges in the inverse depth where the picture has none (Godard et al. 2017)."""
    inverse = 1 / predicted
    inverse = inverse / inverse.mean(dim=(2, 3), keepdim=True)
    total = torch.zeros(())
    for dim in (2, 3):
        edges = picture.diff(dim=dim).abs().mean(dim=1, keepdim=True)
        total = total + (inverse.diff(dim=dim).abs() * (-10 * edges).exp()).mean()
    return total


def depth_metrics(predicted: Tensor, depth: Tensor) -> dict[str, float]:
    """Means over scenes (Eigen et al. 2014): abs_rel, sq_rel, rmse in metres, rmse_log, and d1: the share within 1.25."""
    apart, dims = predicted - depth, (1, 2, 3)
    ratio = torch.maximum(predicted / depth, depth / predicted)
    found = {
        "abs_rel": (apart.abs() / depth).mean(dims), "sq_rel": (apart.square() / depth).mean(dims),
        "rmse": apart.square().mean(dims).sqrt(),
        "rmse_log": (predicted.log() - depth.log()).square().mean(dims).sqrt(), "d1": (ratio < 1.25).float().mean(dims),
    }
    return {name: float(values.mean()) for name, values in found.items()}
