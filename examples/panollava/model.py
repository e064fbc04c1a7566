"""A vision-language model in small: views of a panorama, an encoder, an MLP, and a frozen language model with LoRA."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from panoramas import COLOURS, PLACES, SHAPES, VIEW
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

WORDS = ("<pad>", "<start>", "<end>", "a", "and",
         *dict.fromkeys(word for text in (*COLOURS, *SHAPES, *PLACES) for word in text.split()))
PAD, START, END = range(3)
LONGEST = 14  # words of a caption, with its end


@dataclass(frozen=True)
class Lora:
    """As PEFT's adapter_config.json names them."""

    r: int = 8
    lora_alpha: int = 16


def encode(captions: Sequence[str]) -> Tensor:
    """(n, LONGEST + 1): start, words, end, padding."""
    rows = [[START, *(WORDS.index(w) for w in caption.split()), END] for caption in captions]
    return torch.tensor([row + [PAD] * (LONGEST + 1 - len(row)) for row in rows])


def decode(tokens: Tensor) -> str:
    words = tokens.tolist()
    return " ".join(WORDS[t] for t in (words[:words.index(END)] if END in words else words))


class LoraLinear(nn.Module):
    """A frozen linear map and a trained one of low rank beside it."""

    def __init__(self, base: nn.Linear, lora: Lora) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(lora.r, base.in_features) / base.in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, lora.r))
        self.scale = lora.lora_alpha / lora.r

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * (x @ self.lora_A.T @ self.lora_B.T)


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, length, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, length, dim)
        x = x + self.proj(mixed)
        return x + self.down(torch.relu(self.up(self.norm2(x))))


class LanguageModel(nn.Module):
    """Words after a prefix of vectors."""

    def __init__(self, dim: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(len(WORDS), dim), nn.Embedding(LONGEST + 1, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, len(WORDS))

    def forward(self, prefix: Tensor, tokens: Tensor) -> Tensor:
        """Logits (n, words, vocabulary) of what follows each word."""
        x = torch.cat([prefix, self.words(tokens) + self.positions.weight[:tokens.shape[1]]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, prefix.shape[1]:]))


class PanoLLaVA(nn.Module):
    """views → encoder → MLP → one vector each → language model."""

    def __init__(self, language_model: LanguageModel, lora: Lora, dim: int = 64) -> None:
        super().__init__()
        side = VIEW // 4
        self.vision = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(32 * side * side, dim))
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.places = nn.Parameter(torch.randn(4, dim) * 0.5)
        self.language_model = language_model.requires_grad_(False)
        for block in self.language_model.blocks:
            for name in ("qkv", "proj", "up", "down"):
                setattr(block, name, LoraLinear(getattr(block, name), lora))

    def prefix(self, seen: Tensor) -> Tensor:
        """seen: (n, 4, 3, VIEW, VIEW)."""
        return self.mlp(self.vision(seen.flatten(0, 1))).view(len(seen), 4, -1) + self.places

    def loss(self, seen: Tensor, tokens: Tensor) -> Tensor:
        """Mean cross entropy of the words."""
        logits = self.language_model(self.prefix(seen), tokens[:, :-1])
        return cross_entropy(logits.transpose(1, 2), tokens[:, 1:], ignore_index=PAD)

    @torch.no_grad()
    def describe(self, seen: Tensor) -> list[str]:
        """The likeliest word each time."""
        prefix, tokens = self.prefix(seen), torch.full((len(seen), 1), START)
        for _ in range(LONGEST):
            following = self.language_model(prefix, tokens)[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, following], dim=1)
        return [decode(row[1:]) for row in tokens]

    def trained(self) -> dict[str, Tensor]:
        """What a checkpoint holds: everything but the frozen language model."""
        return {name: value for name, value in self.state_dict().items() if not _frozen(name)}

    def adapter(self) -> dict[str, Tensor]:
        return {f"base_model.model.{name}": value for name, value in self.state_dict().items() if "lora_" in name}


def _frozen(name: str) -> bool:
    return name.startswith("language_model.") and "lora_" not in name


def load(networks: Path, checkpoint: Path, lora: Path | None) -> PanoLLaVA:
    """The model of a checkpoint. An adapter's directory says its rank; the adapter itself is taken from there only where
    the checkpoint has none."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    shape = json.loads((lora / "adapter_config.json").read_text()) if lora else state["hyper_parameters"]["lora"]
    language_model = LanguageModel()
    language_model.load_state_dict(load_file(networks / "language_model.safetensors"))
    model = PanoLLaVA(language_model, Lora(r=shape["r"], lora_alpha=shape["lora_alpha"]))
    weights = dict(state["state_dict"])
    if lora and not any("lora_" in name for name in weights):
        found = load_file(lora / "adapter_model.safetensors")
        weights |= {name.removeprefix("base_model.model."): value for name, value in found.items()}
    missing, surplus = model.load_state_dict(weights, strict=False)
    if surplus or not all(map(_frozen, missing)):
        raise SystemExit(f"{checkpoint}: does not fit the model: {surplus or missing}")
    return model.eval()


def pretrained_language_model(networks: Path, captions: Sequence[str]) -> LanguageModel:
    """One that knows how captions are worded and nothing of pictures; trained once, in seconds."""
    path, model = networks / "language_model.safetensors", LanguageModel()
    if path.exists():
        model.load_state_dict(load_file(path))
        return model
    tokens, rng = encode(captions), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        batch = tokens[torch.randint(len(tokens), (64,), generator=rng)]
        logits = model(torch.randn(64, 4, 64, generator=rng) * 0.5, batch[:, :-1])
        loss = cross_entropy(logits.transpose(1, 2), batch[:, 1:], ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    networks.mkdir(exist_ok=True)
    save_file(model.state_dict(), path)
    return model
