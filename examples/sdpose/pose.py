"""A very small SDPose: pictures of stick figures, a network that draws a heatmap for each joint, and how well it does.

As in top-down pose estimation one figure fills a picture; the network gives a heatmap for each joint, and for each cell how
far beside its middle the joint lies. Four terms make up the loss. The figures are drawn here, so nothing is downloaded.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE = 32    # px a side of a picture
CELLS = 16   # a side of a heatmap
JOINTS = ("head", "neck", "left_hand", "right_hand", "hip", "left_foot", "right_foot")
BONES = ((0, 1), (1, 2), (1, 3), (1, 4), (4, 5), (4, 6))
_STRIDE = SIZE / CELLS
_SPREAD = 1.0                        # cells: standard deviation of a joint's heatmap
_TOLERANCE = 0.035                   # of the figure's size, for each joint: the k of COCO's keypoint similarity
THRESHOLDS = np.arange(0.5, 1.0, 0.05)


def figures(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Pictures (n, 1, SIZE, SIZE) of 0 … 1 and joints (n, J, 2) in px."""
    height = rng.uniform(18, 24, count)
    hip = rng.uniform(-2.5, 2.5, (count, 2)) + np.array([SIZE / 2, SIZE / 2 + 1])
    lean = rng.normal(0, 0.15, count)

    def limb(start: np.ndarray, angle: np.ndarray, length: float) -> np.ndarray:
        return start + (length * height)[:, None] * np.stack([np.sin(angle), -np.cos(angle)], 1)

    neck = limb(hip, lean, 0.34)
    arms = [limb(neck, lean + side * rng.uniform(0.9, 2.4, count), 0.3) for side in (-1, 1)]
    legs = [limb(hip, math.pi - side * rng.uniform(0.05, 0.6, count), 0.42) for side in (-1, 1)]
    joints = np.stack([limb(neck, lean, 0.16), neck, *arms, hip, *legs], 1)
    return torch.from_numpy(_drawn(joints, rng)).float(), torch.from_numpy(joints).float()


def _drawn(joints: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bones as soft lines, a disk for the head, noise over all."""
    ys, xs = np.mgrid[:SIZE, :SIZE] + 0.5
    grid = np.stack([xs, ys], -1)[None]  # 1, S, S, 2
    picture = np.zeros((len(joints), SIZE, SIZE))
    for a, b in BONES:
        start, along = joints[:, a, None, None], (joints[:, b] - joints[:, a])[:, None, None]
        t = np.clip(((grid - start) * along).sum(-1) / (along**2).sum(-1), 0, 1)
        apart = ((grid - start - t[..., None] * along) ** 2).sum(-1)
        picture = np.maximum(picture, np.exp(-apart / (2 * (0.5 if b % 2 else 0.9) ** 2)))  # left and right differ
    picture = np.maximum(picture, np.exp(-((grid - joints[:, 0, None, None]) ** 2).sum(-1) / (2 * 1.6**2)))
    return np.clip(picture + rng.normal(0, 0.1, picture.shape), 0, 1)[:, None]


class PoseNet(nn.Module):
    """(n, 1, SIZE, SIZE) → logits of heatmaps (n, J, CELLS, CELLS), offsets (n, 2J, CELLS, CELLS) in cells."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.GroupNorm(4, width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1), nn.GroupNorm(4, width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.GroupNorm(4, 2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.GroupNorm(4, 2 * width), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 4), nn.ReLU())
        self.early = nn.Conv2d(1, width, 5, 2, 2)
        self.keypoint_head = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 3 * len(JOINTS), 1))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.cat([self.backbone(pictures), functional.relu(self.early(pictures))], 1)
        return tuple(self.keypoint_head(features).split((len(JOINTS), 2 * len(JOINTS)), 1))


def losses(net: PoseNet, pictures: Tensor, joints: Tensor) -> dict[str, Tensor]:
    """Every term, and `loss`, their sum."""
    logits, offsets = net(pictures)
    place = joints / _STRIDE - 0.5  # in cells
    centres = torch.arange(CELLS, dtype=torch.float32)
    beside = place[..., None] - centres                                                   # n, J, 2, CELLS
    apart = beside[:, :, 1, :, None] ** 2 + beside[:, :, 0, None, :] ** 2                  # n, J, CELLS, CELLS
    target = torch.softmax((-apart / (2 * _SPREAD**2)).flatten(2), -1)
    heat = torch.log_softmax(logits.flatten(2), -1)
    near = (apart < 2.25).float()
    wanted = torch.stack([beside[:, :, 0, None, :].expand_as(apart), beside[:, :, 1, :, None].expand_as(apart)], 2)
    off = (offsets.unflatten(1, (len(JOINTS), 2)) - wanted).abs().mean(2)
    soft = heat.exp().unflatten(2, (CELLS, CELLS))
    expected = torch.stack([(soft.sum(2) * centres).sum(-1), (soft.sum(3) * centres).sum(-1)], -1)
    bones = torch.tensor(BONES)
    lengths = [(p[:, bones[:, 0]] - p[:, bones[:, 1]]).norm(dim=-1) for p in (expected, place)]
    terms = {
        "loss_kpt": functional.kl_div(heat, target, reduction="none").sum(-1).mean(),
        "loss_reg": 0.5 * (off * near).sum() / near.sum(),
        "loss_bone": 0.1 * (lengths[0] - lengths[1]).abs().mean(),
    }
    return {**terms, "loss": sum(terms.values())}


@torch.no_grad()
def predict(net: PoseNet, pictures: Tensor) -> Tensor:
    """Joints (n, J, 2) in px: the highest cell of each heatmap, and how far beside its middle."""
    logits, offsets = net(pictures)
    cell = logits.flatten(2).argmax(-1)
    beside = offsets.unflatten(1, (len(JOINTS), 2)).flatten(3)
    offset = beside.gather(3, cell[:, :, None, None].expand(-1, -1, 2, -1))[..., 0]
    return (torch.stack([cell % CELLS, cell // CELLS], -1) + offset.clamp(-1.5, 1.5) + 0.5) * _STRIDE


def average_precision(predicted: Tensor, joints: Tensor) -> dict[str, float]:
    """AP, AP .5 and AP .75 of one figure a picture: the part of figures whose keypoint similarity reaches a threshold.

    Similarity: mean over joints of exp(−d² / (2 s² k²)), s the figure's size, as COCO defines it.
    """
    size = (joints.amax(1) - joints.amin(1)).norm(dim=-1)
    similar = torch.exp(-((predicted - joints) ** 2).sum(-1) / (2 * (size[:, None] * _TOLERANCE) ** 2)).mean(1).numpy()
    reached = {float(round(t, 2)): float((similar >= t).mean()) for t in THRESHOLDS}
    return {"AP": float(np.mean(list(reached.values()))), "AP .5": reached[0.5], "AP .75": reached[0.75]}
