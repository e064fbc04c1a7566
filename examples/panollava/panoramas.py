"""The data: small equirectangular panoramas with two things in them, and captions that say what stands where.

A split is a directory of pictures and a CSV with the columns url, instruction and response, as PanoLLaVA reads it.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample

HEIGHT, WIDTH = 48, 96  # pixels, over 180 and 360 degrees
VIEW = 24               # pixels a side of one perspective view
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230), "yellow": (235, 210, 40)}
SHAPES = ("ball", "box", "cross")
PLACES = ("in front", "on the right", "behind you", "on the left")  # at longitudes 0, 90, 180, 270 degrees
INSTRUCTION = "describe the panorama"


@dataclass(frozen=True)
class Row:
    """One line of a split's CSV."""

    url: str
    picture: Tensor  # (3, HEIGHT, WIDTH), 0 to 1
    response: str


def make_split(directory: Path, split: str, count: int, seed: int) -> Path:
    """Draw a split, unless it is there, and return its CSV."""
    table = directory / f"{split}.csv"
    if table.exists():
        return table
    rng = np.random.default_rng(seed)
    (directory / split).mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        picture, caption = draw(rng)
        Image.fromarray(picture).save(directory / split / f"{i:04d}.png")
        rows.append({"url": f"{split}/{i:04d}.png", "instruction": INSTRUCTION, "response": caption})
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=("url", "instruction", "response"))
        writer.writeheader()
        writer.writerows(rows)
    return table


def draw(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A panorama (HEIGHT, WIDTH, 3) of bytes and its caption."""
    sky = np.linspace(200, 90, HEIGHT)[:, None, None] * np.ones((1, WIDTH, 3)) + rng.normal(0, 6, (HEIGHT, WIDTH, 3))
    said = []
    for place in sorted(rng.choice(len(PLACES), 2, replace=False)):
        colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        # The middle of the picture is in front.
        x = WIDTH / 2 + place * WIDTH / 4 + rng.uniform(-4, 4)
        y = HEIGHT / 2 + rng.uniform(-3, 3)
        sky[_mask(shape, x, y, rng.uniform(5, 7))] = COLOURS[colour]
        said.append(f"a {colour} {shape} {PLACES[place]}")
    return np.clip(sky, 0, 255).astype(np.uint8), " and ".join(said)


def _mask(shape: str, x: float, y: float, size: float) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    across = np.abs((columns - x + WIDTH / 2) % WIDTH - WIDTH / 2)  # the left edge touches the right one
    down = np.abs(rows - y)
    if shape == "ball":
        return across**2 + down**2 <= size**2
    if shape == "box":
        return np.maximum(across, down) <= size * 0.9
    return (np.minimum(across, down) <= size * 0.3) & (np.maximum(across, down) <= size)


def read_split(table: Path, limit: int | None = None) -> list[Row]:
    """The first rows of a CSV; pictures are looked for relative to it."""
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))[:limit]
    rows = []
    for line in lines:
        with Image.open(table.parent / line["url"]) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
        rows.append(Row(line["url"], torch.from_numpy(pixels).permute(2, 0, 1), line["response"]))
    return rows


def views(pictures: Tensor) -> Tensor:
    """Four perspective views of 100 degrees each, front, right, back, left: (n, 3, HEIGHT, WIDTH) → (n, 4, 3, VIEW, VIEW).

    A ray (x, y, 1) of a pinhole camera turned by yaw meets the sphere at longitude yaw + atan x, latitude atan(y cos)."""
    half = math.tan(math.radians(50))
    y, x = torch.meshgrid(torch.linspace(-half, half, VIEW), torch.linspace(-half, half, VIEW), indexing="ij")
    found = []
    for yaw in range(4):
        longitude = torch.atan(x) / math.pi + yaw / 2
        latitude = torch.atan(y * torch.cos(torch.atan(x))) / (math.pi / 2)
        grid = torch.stack([(longitude + 1) % 2 - 1, latitude], dim=-1).expand(len(pictures), -1, -1, -1)
        found.append(grid_sample(pictures, grid, align_corners=False, padding_mode="border"))
    return torch.stack(found, dim=1)
