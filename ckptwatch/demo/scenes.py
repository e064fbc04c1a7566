"""Procedural captioned pictures: one coloured shape on a background, 64 × 64 px, nothing to download.

Everything about a picture follows from its seed. The caption names the shape, its colour and the background; where the
shape stands, how large it is, how far it is tilted and how the light falls stay open: that is what a generator has to
fill in from its latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
# Words apart from COLOURS: a bag of words then says without word order which colour belongs to what.
BACKGROUNDS = ("white", "grey", "black", "pink")
CLASSES = len(SHAPES) * len(COLOURS)
NUISANCES = 5  # x, y, size, tilt, light

_COLOUR_RGB = np.array(
    [[214, 40, 40], [245, 130, 20], [250, 215, 50], [40, 160, 70], [40, 90, 215], [130, 50, 170]], dtype=np.float32
)
_BACKGROUND_RGB = np.array([[238, 238, 232], [140, 144, 148], [28, 28, 34], [248, 190, 205]], dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """What n pictures show.

    `shape`, `colour`, `background`: (n,) int64, indices of the tuples above. `nuisance`: (n, 5) float32 in −1 … 1:
    horizontal place (right is +), vertical place (down is +), size, tilt, light.
    """

    shape: np.ndarray
    colour: np.ndarray
    background: np.ndarray
    nuisance: np.ndarray

    def __len__(self) -> int:
        return len(self.shape)

    @property
    def classes(self) -> np.ndarray:
        """(n,) int64 in 0 … CLASSES − 1: shape and colour together."""
        return self.shape * len(COLOURS) + self.colour

    @property
    def captions(self) -> list[str]:
        return [
            caption(SHAPES[s], COLOURS[c], BACKGROUNDS[b])
            for s, c, b in zip(self.shape, self.colour, self.background, strict=True)
        ]


def caption(shape: str, colour: str, background: str) -> str:
    article = "an" if colour[0] in "aeiou" else "a"
    return f"{article} {colour} {shape} on a {background} background"


def all_captions() -> list[str]:
    """Every caption there is, 96 of them, in the order of `everything`."""
    return everything(np.random.default_rng(0)).captions


def everything(rng: np.random.Generator) -> Scenes:
    """One scene per caption; place, size, tilt and light are drawn from `rng`."""
    grid = np.meshgrid(range(len(SHAPES)), range(len(COLOURS)), range(len(BACKGROUNDS)), indexing="ij")
    shape, colour, background = (axis.ravel().astype(np.int64) for axis in grid)
    nuisance = rng.uniform(-1, 1, (len(shape), NUISANCES)).astype(np.float32)
    return Scenes(shape=shape, colour=colour, background=background, nuisance=nuisance)


def draw(rng: np.random.Generator, count: int) -> Scenes:
    """`count` random scenes from one stream of random numbers."""
    return Scenes(
        shape=rng.integers(len(SHAPES), size=count),
        colour=rng.integers(len(COLOURS), size=count),
        background=rng.integers(len(BACKGROUNDS), size=count),
        nuisance=rng.uniform(-1, 1, (count, NUISANCES)).astype(np.float32),
    )


def seeded(seeds: Sequence[int]) -> Scenes:
    """The scenes of these seeds; each depends on its own seed alone."""
    single = [draw(np.random.default_rng(seed), 1) for seed in seeds]
    return Scenes(**{
        name: np.concatenate([getattr(s, name) for s in single]) for name in ("shape", "colour", "background", "nuisance")
    })


def scene(seed: int) -> tuple[np.ndarray, str, dict[str, int]]:
    """Picture (64, 64, 3) uint8, caption, and labels {"shape", "colour", "background", "class"} of one seed."""
    scenes = seeded([seed])
    labels = {
        "shape": int(scenes.shape[0]), "colour": int(scenes.colour[0]), "background": int(scenes.background[0]),
        "class": int(scenes.classes[0]),
    }
    return render(scenes)[0], scenes.captions[0], labels


def render(scenes: Scenes, chunk: int = 256) -> np.ndarray:
    """Pictures (n, 64, 64, 3) uint8. In chunks, because the intermediate planes are large."""
    pictures = np.empty((len(scenes), SIZE, SIZE, 3), dtype=np.uint8)
    for start in range(0, len(scenes), chunk):
        part = slice(start, start + chunk)
        pictures[part] = _render(
            scenes.shape[part], scenes.colour[part], scenes.background[part], scenes.nuisance[part]
        )
    return pictures


def write_references(directory: Path, count: int, seed: int = 1_000_000) -> tuple[Path, Path]:
    """Write originals `directory/reference/000000.png` … and `directory/prompts.txt`; line i is the caption of original i.

    The default seed keeps them apart from what the demo trains on. Returns directory of originals and file of prompts.
    """
    from PIL import Image

    reference = directory / "reference"
    reference.mkdir(parents=True, exist_ok=True)
    scenes = seeded(range(seed, seed + count))
    for index, picture in enumerate(render(scenes)):
        Image.fromarray(picture).save(reference / f"{index:06d}.png")
    for left_over in reference.glob("[0-9]*.png"):  # of an earlier, longer set: it has no prompt now
        if int(left_over.stem) >= count:
            left_over.unlink()
    prompts = directory / "prompts.txt"
    prompts.write_text("".join(f"{line}\n" for line in scenes.captions), encoding="utf-8")
    return reference, prompts


def _render(shape: np.ndarray, colour: np.ndarray, background: np.ndarray, nuisance: np.ndarray) -> np.ndarray:
    n = len(shape)
    across, down, size, tilt, light = (nuisance[:, k].reshape(n, 1, 1) for k in range(NUISANCES))
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) * (2 / SIZE) - 1
    y, x = axis.reshape(1, SIZE, 1), axis.reshape(1, 1, SIZE)
    radius = 0.52 + 0.1 * size
    dx, dy = x - 0.22 * across, y - 0.22 * down
    cos, sin = np.cos(0.3 * tilt), np.sin(0.3 * tilt)
    u, v = (cos * dx + sin * dy) / radius, (cos * dy - sin * dx) / radius

    # Signed distance to the edge in units of the radius, negative inside.
    distance = np.empty((n, SIZE, SIZE), dtype=np.float32)
    for kind, edge in enumerate((_circle, _square, _triangle, _cross)):
        chosen = shape == kind
        if chosen.any():
            distance[chosen] = edge(u[chosen], v[chosen])
    cover = np.clip(0.5 - distance * radius * (SIZE / 2), 0, 1)[..., None]

    shade = (1 + 0.12 * light * x)[..., None]
    ground = _BACKGROUND_RGB[background].reshape(n, 1, 1, 3) * shade
    figure = _COLOUR_RGB[colour].reshape(n, 1, 1, 3)
    return np.clip(np.rint(ground + cover * (figure - ground)), 0, 255).astype(np.uint8)


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v) - 0.9


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.78


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    slope = np.float32(0.866)
    return np.maximum(v - 0.62, slope * np.abs(u) - 0.5 * v - 0.5)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    a, b = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(a - 0.95, b - 0.3), np.maximum(b - 0.95, a - 0.3))
