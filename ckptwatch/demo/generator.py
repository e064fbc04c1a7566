"""The generator that the demo trains: caption and latent in, picture out.

An implicit picture (cf. CIPS, Anokhin et al., CVPR 2021): a small network maps caption and latent to the weights of a
second one, which answers for any place in the picture what colour stands there. It can therefore be trained on a
handful of places per picture, which is what makes a minute on one CPU core enough, and it draws clean edges.

A caption reaches it as a bag of words: it is split at blanks, words outside the vocabulary are ignored, and the
embeddings of the rest are summed. Object colours and backgrounds use different words, so their order carries nothing.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ckptwatch.demo.scenes import BACKGROUNDS, COLOURS, NUISANCES, SHAPES, SIZE

VOCABULARY = {word: index for index, word in enumerate((*SHAPES, *COLOURS, *BACKGROUNDS), start=1)}
MAX_WORDS = 8
PLACES = SIZE * SIZE

_CONDITION = 128
_WIDTH = 64
_DEPTH = 3


def tokenise(captions: Sequence[str]) -> Tensor:
    """(n, MAX_WORDS) int64: indices of the known words of each caption, then zeros."""
    tokens = torch.zeros(len(captions), MAX_WORDS, dtype=torch.int64)
    for row, caption in enumerate(captions):
        known = [VOCABULARY[word] for word in caption.lower().split() if word in VOCABULARY][:MAX_WORDS]
        tokens[row, : len(known)] = torch.tensor(known, dtype=torch.int64)
    return tokens


def latent(seed: int) -> Tensor:
    """(5,) float32 in −1 … 1, the latent of one seed."""
    # The second word keeps this stream apart from the scene that has the same seed.
    return torch.from_numpy(np.random.default_rng([seed, 1]).uniform(-1, 1, NUISANCES).astype(np.float32))


def places() -> Tensor:
    """(PLACES, 2) float32 in −1 … 1: x and y of every pixel centre, row by row."""
    axis = (torch.arange(SIZE, dtype=torch.float32) + 0.5) * (2 / SIZE) - 1
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).reshape(PLACES, 2)


class Generator(nn.Module):
    """About 107,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(len(VOCABULARY) + 1, _CONDITION, mode="sum", padding_idx=0)
        self.latent = nn.Linear(NUISANCES, _CONDITION)
        self.condition = nn.Sequential(
            nn.ReLU(), nn.Linear(_CONDITION, _CONDITION), nn.ReLU(), nn.Linear(_CONDITION, _WIDTH * (3 + 2 * _DEPTH))
        )
        self.layers = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH) for _ in range(_DEPTH))
        self.colour = nn.Linear(_WIDTH, 3)

    def forward(self, tokens: Tensor, latents: Tensor, where: Tensor) -> Tensor:
        """Colours (n, p, 3) in 0 … 1 at the places `where` (n, p, 2) in −1 … 1.

        `tokens` (n, MAX_WORDS) int64 come from `tokenise`, `latents` (n, 5) lie in −1 … 1.
        """
        given = self.condition(self.words(tokens) + self.latent(latents))
        # The first layer's weights belong to the picture: they shift, scale and turn its system of coordinates.
        frame = given[:, : 3 * _WIDTH].view(-1, 3, _WIDTH)
        style = given[:, 3 * _WIDTH :].view(-1, _DEPTH, 2, 1, _WIDTH)
        hidden = torch.relu(torch.baddbmm(frame[:, 2:], 4 * where, frame[:, :2]))
        for index, layer in enumerate(self.layers):
            hidden = torch.relu(torch.addcmul(style[:, index, 1], layer(hidden), 1 + style[:, index, 0]))
        return torch.sigmoid(self.colour(hidden))

    @torch.no_grad()
    def draw(self, captions: Sequence[str], latents: Tensor) -> Tensor:
        """Whole pictures (n, 3, SIZE, SIZE) float32 in 0 … 1."""
        device = self.colour.weight.device
        where = places().to(device).expand(len(captions), -1, -1)
        colours = self(tokenise(captions).to(device), latents.to(device), where)
        return colours.view(-1, SIZE, SIZE, 3).permute(0, 3, 1, 2)
