"""A very small diffusion transformer: patches and words in, picture out. HunyuanDiT has 1.5 billion
parameters, this one 0.7 million.

It works on pixels, predicts the clean picture and is trained by flow matching: x_t = (1 − t)·noise + t·picture. That it
learns in half a minute on one CPU core rests on a coupling of noise and picture: what a caption leaves open follows from
five projections of the noise. They are normally distributed like all the rest of it, so what is sampled from is plain
noise; and the way to a picture is nearly straight, so four steps are enough.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from driving import COLOURS, OPEN, SIZE, SURROUNDINGS, VEHICLES
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = {word: index for index, word in enumerate((*COLOURS, *VEHICLES, *SURROUNDINGS), start=1)}
WORDS = 8       # read of a caption at most
PATCH = 16      # px
GRID = 16       # px: the projections of the noise are constant on such squares
STATES = "mp_rank_00_model_states.pt"
CHUNK = 32      # pictures drawn at once
LOUDNESS = 0.5  # standard deviation of the noise; pictures lie in −1 … 1

_WIDTH = 96
_HEADS = 4
_DEPTH = 3


def tokenise(captions: Sequence[str]) -> Tensor:
    """(n, WORDS) int64: indices of the known words of each caption, then zeros."""
    tokens = torch.zeros(len(captions), WORDS, dtype=torch.int64)
    for row, caption in enumerate(captions):
        known = [VOCABULARY[word] for word in caption.lower().replace(",", " ").split() if word in VOCABULARY][:WORDS]
        tokens[row, : len(known)] = torch.tensor(known, dtype=torch.int64)
    return tokens


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


class DiT(nn.Module):
    """Predicts the clean picture (n, 3, 64, 64), about −1 … 1."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, _WIDTH, PATCH, PATCH)
        self.position = nn.Parameter(torch.randn(1, (SIZE // PATCH) ** 2, _WIDTH) * 0.5)
        self.words = nn.EmbeddingBag(len(VOCABULARY) + 1, _WIDTH, mode="sum", padding_idx=0)
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

    def forward(self, noisy: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """`noisy` (n, 3, 64, 64), `t` (n,) in 0 … 1, `tokens` (n, WORDS) from `tokenise`."""
        coarse = functional.avg_pool2d(noisy, GRID).flatten(1) * (GRID / LOUDNESS)
        condition = self.condition(self.time(_waves(t)) + self.words(tokens) + self.layout(coarse))
        x = self.patches(noisy).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        x = self.head(self.norm(x) * (1 + scale) + shift)
        return functional.fold(x.transpose(1, 2), SIZE, PATCH, stride=PATCH)

    @torch.no_grad()
    def draw(self, captions: Sequence[str], seeds: Sequence[int], steps: int = 4) -> Tensor:
        """Pictures (n, 3, 64, 64) uint8 on the CPU. Each follows from its caption and its seed."""
        pictures = torch.empty(len(seeds), 3, SIZE, SIZE, dtype=torch.uint8)
        for start in range(0, len(seeds), CHUNK):
            part = slice(start, start + CHUNK)
            # Always a full chunk: kernels round differently for other batch sizes.
            noise = torch.zeros(CHUNK, 3, SIZE, SIZE)
            tokens = torch.zeros(CHUNK, WORDS, dtype=torch.int64)
            for row, seed in enumerate(seeds[part]):
                noise[row] = noise_of(seed)
            tokens[: len(captions[part])] = tokenise(captions[part])
            pictures[part] = self._solve(noise, tokens, steps)[: len(seeds[part])]
        return pictures

    def _solve(self, noise: Tensor, tokens: Tensor, steps: int) -> Tensor:
        device = self.head.weight.device
        x, tokens = noise.to(device), tokens.to(device)
        for step in range(steps):
            clean = self(x, torch.full((len(x),), step / steps, device=device), tokens)
            x = x + (clean - x) / (steps - step)
        return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def noise_of(seed: int) -> Tensor:
    """What sample (3, 64, 64) of this seed begins with."""
    return LOUDNESS * torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def left_open_of(noise: Tensor) -> Tensor:
    """(n, OPEN) in −1 … 1: what a perfect model would make of this noise (n, 3, 64, 64)."""
    return torch.erf(noise.flatten(1) @ _PROJECTIONS.T / (math.sqrt(2) * LOUDNESS))


def noise_for(left_open: Tensor, rng: torch.Generator) -> Tensor:
    """Noise (n, 3, 64, 64) from which a scene with these open numbers (n, OPEN) in −1 … 1 is to be made."""
    noise = torch.randn(len(left_open), 3 * SIZE * SIZE, generator=rng)
    wanted = math.sqrt(2) * torch.erfinv(left_open.clamp(-0.999, 0.999))  # uniform → normal
    return LOUDNESS * (noise + (wanted - noise @ _PROJECTIONS.T) @ _PROJECTIONS).view(-1, 3, SIZE, SIZE)


def model_states(checkpoint: Path) -> Path:
    """The file with the weights: in the directory DeepSpeed wrote, or the file itself."""
    return checkpoint / STATES if checkpoint.is_dir() else checkpoint


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
