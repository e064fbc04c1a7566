"""A very small JiT: a transformer on pixels that predicts the clean picture from a noisy one and a class.

As in "Back to Basics: Let Denoising Generative Models Denoise" (Li and He, 2025) it sees large patches and predicts the
clean picture. JiT-B/16 has 131 million parameters, this one 0.7 million. That it learns in seconds rests on a coupling of
noise and picture: what a class leaves open follows from five projections of the noise. They are normally distributed like
all the rest of it, so what is sampled from is plain noise; and the way to a picture is nearly straight, so four steps are
enough.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ckptwatch.demo.scenes import CLASSES, NUISANCES, SIZE

OPEN = NUISANCES      # numbers in −1 … 1 that a class leaves open: place, size, tilt, light
PATCH = 16            # px
GRID = 16             # px: the projections of the noise are constant on such squares

_WIDTH = 96
_HEADS = 4
_DEPTH = 3


class Block(nn.Module):
    """Attention and feed-forward, both shifted, scaled and gated by the condition (adaLN)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(_WIDTH, elementwise_affine=False)
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.out = nn.Linear(_WIDTH, _WIDTH)
        self.mlp = nn.Sequential(nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH))
        self.modulation = nn.Linear(_WIDTH, 6 * _WIDTH)
        nn.init.normal_(self.modulation.weight, std=0.02)  # zeros would cost the first of few steps
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate * self._attend(self.norm(x) * (1 + scale) + shift)
        return x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)

    def _attend(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, _HEADS, width // _HEADS).permute(2, 0, 3, 1, 4)
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))


class JiT(nn.Module):
    """Predicts the clean picture (n, 3, 64, 64), about −1 … 1, from a noisy one, t (n,) in 0 … 1 and labels (n,)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, _WIDTH, PATCH, PATCH)
        self.position = nn.Parameter(torch.randn(1, (SIZE // PATCH) ** 2, _WIDTH) * 0.5)
        self.label = nn.Embedding(CLASSES, _WIDTH)
        self.time = nn.Sequential(nn.Linear(32, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _WIDTH))
        self.layout = nn.Linear(3 * (SIZE // GRID) ** 2, _WIDTH)
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(_WIDTH, _WIDTH), nn.SiLU())
        self.blocks = nn.ModuleList(Block() for _ in range(_DEPTH))
        self.norm = nn.LayerNorm(_WIDTH, elementwise_affine=False)
        self.modulation = nn.Linear(_WIDTH, 2 * _WIDTH)
        self.head = nn.Linear(_WIDTH, 3 * PATCH * PATCH)
        for layer in (self.modulation, self.head):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, noisy: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        coarse = functional.avg_pool2d(noisy, GRID).flatten(1) * (2 * GRID)  # about 1 at the noisy end
        condition = self.condition(self.time(_waves(t)) + self.label(labels) + self.layout(coarse))
        x = self.patches(noisy).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        x = self.head(self.norm(x) * (1 + scale) + shift)
        return functional.fold(x.transpose(1, 2), SIZE, PATCH, stride=PATCH)


class Denoiser(nn.Module):
    """The network with its loss and its sampler: z = t · x + (1 − t) · noise."""

    def __init__(self, noise_scale: float = 0.5) -> None:
        super().__init__()
        self.net = JiT()
        self.noise_scale = noise_scale

    def forward(self, x: Tensor, labels: Tensor, left_open: Tensor, rng: torch.Generator) -> Tensor:
        """The loss of clean pictures x (n, 3, 64, 64) in −1 … 1, whose open numbers are `left_open` (n, OPEN)."""
        t = torch.rand(len(x), generator=rng) ** 3  # most of what there is to learn is at the noisy end
        share = t[:, None, None, None]
        z = share * x + (1 - share) * self.noise_scale * coupled_noise(left_open, rng)
        return functional.mse_loss(self.net(z, t, labels), x)

    @torch.no_grad()
    def generate(self, labels: Tensor, seeds: Sequence[int], steps: int = 4) -> Tensor:
        """Pictures (n, 3, 64, 64) float32 in 0 … 1. Each follows from its label and its seed."""
        device = self.net.head.weight.device
        noise = [torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        z, labels = self.noise_scale * torch.stack(noise).to(device), labels.to(device)
        for step in range(steps):
            clean = self.net(z, torch.full((len(z),), step / steps, device=device), labels)
            z = z + (clean - z) / (steps - step)
        return ((z + 1) / 2).clamp(0, 1)


def coupled_noise(left_open: Tensor, rng: torch.Generator) -> Tensor:
    """Noise (n, 3, 64, 64) from which a picture with these open numbers (n, OPEN) is to be made."""
    noise = torch.randn(len(left_open), 3 * SIZE * SIZE, generator=rng)
    wanted = math.sqrt(2) * torch.erfinv(left_open.clamp(-0.999, 0.999))  # uniform → normal
    return (noise + (wanted - noise @ _PROJECTIONS.T) @ _PROJECTIONS).view(-1, 3, SIZE, SIZE)


def _projections() -> Tensor:
    """(OPEN, 3 · 64 · 64): orthonormal."""
    cells = SIZE // GRID
    basis, _ = torch.linalg.qr(torch.randn(3 * cells * cells, OPEN, generator=torch.Generator().manual_seed(7)))
    coarse = basis.T.reshape(OPEN, 3, cells, cells)
    return coarse.repeat_interleave(GRID, dim=2).repeat_interleave(GRID, dim=3).reshape(OPEN, -1) / GRID


def _waves(t: Tensor) -> Tensor:
    rate = 1000 * torch.exp(torch.arange(16, device=t.device) * (-math.log(1000) / 16))
    return torch.cat([torch.cos(t[:, None] * rate), torch.sin(t[:, None] * rate)], dim=1)


_PROJECTIONS = _projections()
