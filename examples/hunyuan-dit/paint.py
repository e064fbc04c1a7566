"""A metric of our own: is the vehicle painted in the colour that the prompt asks for?"""

import numpy as np
from driving import COLOURS, paints, parse

NEAR = 45.0     # distance in RGB up to which a pixel counts as painted
FEWEST = 30     # pixels that make a vehicle
VEHICLE = slice(14, 56)  # rows where it can be


def paint_match(images) -> float:
    """Share of the images, 0 … 1, in which the prompt's colour is the one most pixels have of all vehicle colours.

    `images` iterates over uint8 (n, 3, H, W) tensors; `images.prompts` has a text for each image.
    """
    right, prompts = 0, iter(images.prompts)
    for batch in images:
        for picture in batch.numpy():
            _, colour, surroundings = parse(next(prompts))
            pixels = picture[:, VEHICLE].reshape(3, -1).T.astype(np.float32)
            distance = np.linalg.norm(pixels[:, None] - paints(surroundings)[None], axis=2)
            nearest = distance.argmin(axis=1)[distance.min(axis=1) < NEAR]
            counts = np.bincount(nearest, minlength=len(COLOURS))
            right += int(counts[colour] == counts.max() >= FEWEST)
    return right / len(images)
