"""Procedural driving scenes with captions, 64 × 64 px: the data set of this example, nothing to download.

A caption names colour, vehicle and surroundings. Where the vehicle stands, how large it is, how the hills and the road
markings lie and how the light falls stay open: five numbers in −1 … 1 that a generator has to make up.

The counts (4 vehicles, 6 colours, 4 surroundings, 5 open numbers) are those of `ckptwatch.demo.scenes`, so that the
networks which the demo trains for its metrics can be trained on these pictures too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ckptwatch.demo import scenes

SIZE = scenes.SIZE
OPEN = scenes.NUISANCES  # place, size, hills, markings, light
VEHICLES = ("car", "van", "bus", "truck")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
SURROUNDINGS = ("noon", "dusk", "night", "fog")

_PAINT = np.array(
    [[205, 35, 35], [245, 130, 20], [250, 215, 50], [40, 160, 70], [40, 90, 215], [140, 50, 175]], dtype=np.float32
)
_PALETTE = np.array([  # sky above, sky at the horizon, hills, verge, road, markings; one row for each of SURROUNDINGS
    [[105, 170, 235], [205, 230, 245], [95, 140, 90], [120, 165, 85], [120, 122, 126], [245, 245, 235]],
    [[110, 70, 120], [250, 165, 95], [85, 60, 70], [95, 80, 60], [88, 80, 84], [225, 205, 180]],
    [[8, 10, 28], [28, 32, 62], [14, 16, 30], [20, 26, 26], [42, 44, 52], [150, 150, 140]],
    [[205, 208, 210], [222, 224, 225], [190, 195, 197], [180, 186, 180], [165, 168, 170], [215, 217, 217]],
], dtype=np.float32)
_BRIGHTNESS = np.array([1.0, 0.8, 0.55, 1.0], dtype=np.float32)  # of a vehicle
_VEIL = np.array([0.0, 0.1, 0.1, 0.35], dtype=np.float32)        # how much of the horizon's colour lies over it

Box = tuple[float, float, float, float]  # left, right, bottom, top; the wheels stand at 0


@dataclass(frozen=True, kw_only=True)
class _Body:
    """In units of the vehicle's size."""

    boxes: tuple[Box, ...]
    windows: tuple[Box, ...]
    wheels: tuple[tuple[float, float], ...]  # place, radius


_BODIES = {
    "car": _Body(boxes=((-1.0, 1.0, 0.16, 0.52), (-0.55, 0.6, 0.5, 0.86)), windows=((-0.45, 0.5, 0.54, 0.78),),
                 wheels=((-0.6, 0.2), (0.6, 0.2))),
    "van": _Body(boxes=((-0.85, 0.8, 0.16, 1.0), (0.7, 1.0, 0.16, 0.62)), windows=((0.25, 0.75, 0.62, 0.9),),
                 wheels=((-0.52, 0.19), (0.58, 0.19))),
    "bus": _Body(boxes=((-1.3, 1.3, 0.18, 1.2),), wheels=((-0.8, 0.2), (0.8, 0.2)),
                 windows=((-1.18, -0.62, 0.7, 1.02), (-0.5, 0.06, 0.7, 1.02), (0.18, 0.74, 0.7, 1.02),
                          (0.86, 1.22, 0.6, 1.02))),
    "truck": _Body(boxes=((-1.3, 0.45, 0.34, 1.35), (0.58, 1.2, 0.2, 0.98)), windows=((0.8, 1.14, 0.6, 0.88),),
                   wheels=((-0.95, 0.21), (-0.45, 0.21), (0.85, 0.21))),
}


@dataclass(frozen=True, kw_only=True)
class Driving(scenes.Scenes):
    """`shape` are indices of VEHICLES, `background` of SURROUNDINGS."""

    @property
    def captions(self) -> list[str]:
        return [caption(VEHICLES[v], COLOURS[c], SURROUNDINGS[s])
                for v, c, s in zip(self.shape, self.colour, self.background, strict=True)]


def caption(vehicle: str, colour: str, surroundings: str) -> str:
    article = "an" if colour[0] in "aeiou" else "a"
    return f"{article} {colour} {vehicle} on the road {'in' if surroundings == 'fog' else 'at'} {surroundings}"


def parse(prompt: str) -> tuple[int, int, int]:
    """Indices of vehicle, colour and surroundings. Raises ValueError for a prompt that lacks one of them."""
    words = prompt.lower().replace(",", " ").split()
    found = [next((i for i, name in enumerate(names) if name in words), None)
             for names in (VEHICLES, COLOURS, SURROUNDINGS)]
    if None in found:
        raise ValueError(f"{prompt!r} must name one of {', '.join(VEHICLES)}, one of {', '.join(COLOURS)}, and one of "
                         f"{', '.join(SURROUNDINGS)}")
    return found[0], found[1], found[2]


def draw(rng: np.random.Generator, count: int) -> Driving:
    """`count` random scenes."""
    return Driving(**vars(scenes.draw(rng, count)))


def described(prompts: Sequence[str], left_open: np.ndarray) -> Driving:
    """A scene for each prompt, with what it leaves open: (n, OPEN) float32 in −1 … 1."""
    vehicle, colour, surroundings = np.array([parse(prompt) for prompt in prompts]).T
    return Driving(shape=vehicle, colour=colour, background=surroundings, nuisance=left_open)


def paints(surroundings: int) -> np.ndarray:
    """(6, 3) float32: how the COLOURS look in these surroundings."""
    return _in_the_light(_PAINT, surroundings)


def render(drawn: Driving, chunk: int = 256) -> np.ndarray:
    """Pictures (n, 64, 64, 3) uint8. In chunks, because the intermediate planes are large."""
    pictures = np.empty((len(drawn), SIZE, SIZE, 3), dtype=np.uint8)
    for start in range(0, len(drawn), chunk):
        part = slice(start, start + chunk)
        pictures[part] = _render(drawn.shape[part], drawn.colour[part], drawn.background[part], drawn.nuisance[part])
    return pictures


def _render(vehicle: np.ndarray, colour: np.ndarray, surroundings: np.ndarray, left_open: np.ndarray) -> np.ndarray:
    n = len(vehicle)
    across, size, hills, markings, light = (left_open[:, k].reshape(n, 1, 1) for k in range(OPEN))
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) * (2 / SIZE) - 1
    y, x = axis.reshape(1, SIZE, 1), axis.reshape(1, 1, SIZE)
    above, horizon, hill, verge, road, mark = np.moveaxis(_PALETTE[surroundings][:, :, None, None], 1, 0)

    picture = above + np.clip((y + 1) / 0.9, 0, 1)[..., None] * (horizon - above) + np.zeros((n, SIZE, SIZE, 3), np.float32)
    _paint(picture, y - (-0.12 - 0.12 * np.cos(2.2 * x + 2.4 * hills)), hill)
    _paint(picture, y - 0.12, verge)
    _paint(picture, y - 0.3, road)
    dash = (0.25 - np.abs((1.5 * x + 0.5 * markings) % 1.0 - 0.5)) / 1.5
    _paint(picture, np.minimum(dash, 0.035 - np.abs(y - 0.82)), mark)

    unit = 0.5 + 0.1 * size
    u, v = (x - 0.25 * across) / unit, (0.62 - y) / unit
    _paint(picture, np.minimum(0.06 - np.abs(v), 1.1 - np.abs(u)) * unit, 0.5 * road)  # its shadow
    for kind, name in enumerate(VEHICLES):
        rows = vehicle == kind
        if rows.any():
            part = picture[rows]
            _vehicle(part, _BODIES[name], colour[rows], surroundings[rows], u[rows], v[rows], unit[rows])
            picture[rows] = part
    return np.clip(np.rint(picture * (1 + 0.12 * light * x)[..., None]), 0, 255).astype(np.uint8)


def _vehicle(
    picture: np.ndarray, body: _Body, colour: np.ndarray, surroundings: np.ndarray, u: np.ndarray, v: np.ndarray,
    unit: np.ndarray,
) -> None:
    def seen(rgb: np.ndarray) -> np.ndarray:
        return np.stack([_in_the_light(c, s) for c, s in zip(rgb, surroundings, strict=True)])[:, None, None]

    n = len(colour)
    for boxes, shade in ((body.boxes, seen(_PAINT[colour])), (body.windows, seen(np.tile([185.0, 215.0, 235.0], (n, 1))))):
        for left, right, bottom, top in boxes:
            _paint(picture, np.minimum(np.minimum(u - left, right - u), np.minimum(v - bottom, top - v)) * unit, shade)
    tyre = seen(np.tile([25.0, 25.0, 28.0], (n, 1)))
    for place, radius in body.wheels:
        _paint(picture, (radius - np.hypot(u - place, v - radius)) * unit, tyre)


def _in_the_light(rgb: np.ndarray, surroundings: int) -> np.ndarray:
    lit = rgb * _BRIGHTNESS[surroundings]
    return lit + _VEIL[surroundings] * (_PALETTE[surroundings, 1] - lit)


def _paint(picture: np.ndarray, depth: np.ndarray, colour: np.ndarray) -> None:
    """Lay a colour over where `depth`, the distance to the edge in half pictures, is positive. Edges are smooth."""
    cover = np.clip(0.5 + depth * (SIZE / 2), 0, 1).astype(np.float32)[..., None]
    picture += cover * (colour - picture)
