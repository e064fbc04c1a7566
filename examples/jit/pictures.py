"""The pictures of this example: the demo's coloured shapes in 24 classes, each with one shape, colour and background."""

import numpy as np

from ckptwatch.demo import scenes

CLASSES = scenes.CLASSES
SIZE = scenes.SIZE


def draw(rng: np.random.Generator, count: int) -> scenes.Scenes:
    """`count` scenes, `classes` in 0 … 23; `nuisance` (count, 5) in −1 … 1 is what a class leaves open."""
    drawn = scenes.draw(rng, count)
    background = (drawn.shape + drawn.colour) % len(scenes.BACKGROUNDS)
    return scenes.Scenes(shape=drawn.shape, colour=drawn.colour, background=background, nuisance=drawn.nuisance)


def render(drawn: scenes.Scenes) -> np.ndarray:
    """Pictures (n, 64, 64, 3) uint8."""
    return scenes.render(drawn)
