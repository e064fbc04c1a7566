"""The demo's sampler, for the worker: `sampler: {factory: "ckptwatch.demo.sampler:create"}`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ckptwatch.demo.generator import Generator, latent
from ckptwatch.demo.scenes import SIZE

DEFAULT_VARIANT = "model_ema"


class Batch(Protocol):
    """Which samples are wanted. The three sequences are equally long."""

    indices: Sequence[int]
    seeds: Sequence[int]
    prompts: Sequence[str]


class DemoSampler:
    """Draws with one checkpoint at a time; stays loaded between checkpoints."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.model = Generator().to(self.device).eval()
        self.loaded: Path | None = None

    def load(self, checkpoint: Path, variant: str = "") -> None:
        """Take the weights `variant` ("model", "model_ema"; "" means model_ema) from a checkpoint of `demo.train`."""
        self.loaded = None
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        wanted = variant or DEFAULT_VARIANT
        if wanted not in state:
            raise KeyError(f"{checkpoint} holds no weights named {wanted!r}; it holds {', '.join(sorted(state))}")
        self.model.load_state_dict(state[wanted])
        self.loaded = Path(checkpoint)

    def sample(self, batch: Batch) -> Tensor:
        """Pictures (n, 3, 64, 64) uint8 on the CPU. Picture i follows from seeds[i] and prompts[i] alone."""
        if self.loaded is None:
            raise RuntimeError("no checkpoint is loaded; call load() first")
        pictures = torch.empty(len(batch.seeds), 3, SIZE, SIZE, dtype=torch.uint8)
        for index, (seed, prompt) in enumerate(zip(batch.seeds, batch.prompts, strict=True)):
            # One by one: kernels round differently for other batch shapes, and a picture would depend on its company.
            picture = self.model.draw([prompt], latent(seed)[None])[0]
            if not bool(picture.isfinite().all()):
                raise FloatingPointError(f"{self.loaded}: the picture of seed {seed} is not finite")
            pictures[index] = (picture * 255).round().to(torch.uint8).cpu()
        return pictures


def create(device: str = "cpu", **options: object) -> DemoSampler:
    """The factory named in the recipe. It takes no options."""
    if options:
        raise TypeError(f"the demo's sampler takes no options, got {', '.join(sorted(options))}")
    return DemoSampler(device)
