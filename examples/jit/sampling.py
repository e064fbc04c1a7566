"""The sampler that config.yaml names: `sampler: {python: "sampling:make_sampler"}`. It lives in ckptwatch's worker."""

from pathlib import Path

import torch
from denoiser import Denoiser
from torch import Tensor

from ckptwatch.evaluate.weights import load_variant


class JiTSampler:
    """Stays loaded between checkpoints; only the weights are exchanged."""

    def __init__(self, steps: int, device: str) -> None:
        self.steps = steps
        self.model = Denoiser().to(device).eval()

    def load(self, checkpoint: Path, variant: str) -> None:
        """`variant` is model, model_ema1 or model_ema2. Only its tensors are read, and nothing in the file is executed."""
        self.model.load_state_dict(load_variant(checkpoint, variant or "model_ema1"))

    def sample(self, batch) -> Tensor:
        """Pictures (n, 3, 64, 64) in 0 … 1. `batch.labels` are classes, `batch.seeds` say what to draw each from."""
        if batch.image_size not in (None, 64):
            raise ValueError(f"this model draws 64 px, not {batch.image_size}")
        return self.model.generate(torch.tensor(batch.labels), batch.seeds, self.steps)


def make_sampler(steps: int = 4, device: str = "cpu") -> JiTSampler:
    """Called once in each worker, with the recipe's options and the worker's device."""
    return JiTSampler(steps, device)
