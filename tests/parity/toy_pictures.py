"""Pictures that show what they were made from. No torch here: sampler processes of tests shall start fast."""

import numpy as np


def pixels(seed: int, prompt: str, side: int = 40, label: int | None = None) -> np.ndarray:
    """uint8 (side, side, 3) that depends on seed, prompt and label alone."""
    noise = np.random.default_rng(seed)
    # Coarse squares and a colour cast, so that networks see differences between pictures.
    coarse = noise.integers(0, 256, (side // 4 + 1, side // 4 + 1, 3)).repeat(4, axis=0).repeat(4, axis=1)[:side, :side]
    cast = noise.random(3)
    image = (coarse * cast).astype(np.uint8)
    image[0, 0, 0] = seed % 256
    image[0, 0, 1] = sum(prompt.encode()) % 256
    if label is not None:
        image[0, 0, 2] = label % 256
    return image
