"""Rooms with balls in them, cast ray by ray: a picture, the depth of each pixel, and the few depths a lidar would see."""

import numpy as np
import torch
from torch import Tensor

HEIGHT, WIDTH = 40, 56
NEAREST, FARTHEST = 0.8, 12.0  # metres
BALLS = 4
SEEN = 0.03                    # of the pixels, by the lidar


def _rays() -> np.ndarray:
    """Unit vectors (H, W, 3) with x to the right, y down, z forward."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    rays = np.stack([(x - WIDTH / 2) / WIDTH, (y - HEIGHT / 2) / WIDTH, np.full_like(x, 0.7)], axis=-1)
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


RAYS = _rays()


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture (3, H, W) in 0 … 1 and depth along z (1, H, W) in metres."""
    light = rng.normal(size=3) * (0.6, 0.3, 0.3) + (0, -1, -0.7)
    light /= np.linalg.norm(light)
    floor, wall = rng.uniform(0.8, 1.6), rng.uniform(5, 10)
    down, ahead = RAYS[..., 1], RAYS[..., 2]
    distance = np.where(down > 1e-3, floor / np.maximum(down, 1e-3), np.inf)
    normal = np.broadcast_to(np.float32([0, -1, 0]), RAYS.shape).copy()
    albedo = np.broadcast_to(rng.uniform(0.3, 0.9, 3), RAYS.shape).copy()
    behind = wall / ahead < distance
    distance[behind] = (wall / ahead)[behind]
    normal[behind], albedo[behind] = (0, 0, -1), rng.uniform(0.3, 0.9, 3)
    tiles = (np.floor(RAYS[..., 0] * distance * 1.5) + np.floor(ahead * distance * 1.5)) % 2
    albedo *= np.where(behind, 1.0, 0.75 + 0.25 * tiles)[..., None]
    for _ in range(BALLS):
        _ball(rng, distance, normal, albedo, floor, wall)
    shade = 0.35 + 0.65 * np.clip((normal * light).sum(-1), 0, 1)
    air = np.exp(-distance / 15)[..., None]
    picture = np.clip(albedo * shade[..., None] * air + 0.6 * (1 - air) + rng.normal(0, 0.01, RAYS.shape), 0, 1)
    depth = np.clip(distance * ahead, NEAREST, FARTHEST)
    return picture.transpose(2, 0, 1).astype(np.float32), depth[None].astype(np.float32)


def _ball(
    rng: np.random.Generator, distance: np.ndarray, normal: np.ndarray, albedo: np.ndarray, floor: float, wall: float,
) -> None:
    radius, z = rng.uniform(0.25, 0.7), rng.uniform(1.6, wall - 1)
    centre = np.float32([rng.uniform(-0.5, 0.5) * z, floor - radius, z])
    along = RAYS @ centre
    under = along**2 - (centre @ centre - radius**2)
    hit = along - np.sqrt(np.maximum(under, 0))
    first = (under > 0) & (hit < distance)
    distance[first] = hit[first]
    normal[first] = ((RAYS * hit[..., None] - centre) / radius)[first]
    albedo[first] = rng.uniform(0.2, 1.0, 3)


def scenes(seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (n, 3, H, W), depths (n, 1, H, W) and what the lidar sees of them: depths, 0 where it sees nothing."""
    made = [scene(np.random.default_rng([seed, i])) for i in range(count)]
    pictures, depths = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
    seen = torch.rand(depths.shape, generator=torch.Generator().manual_seed(seed)) < SEEN
    return pictures, depths, depths * seen
