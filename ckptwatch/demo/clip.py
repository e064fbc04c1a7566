"""A tiny CLIP for the demo's scenes, in the layout that open_clip loads as `local-dir:DIR`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ckptwatch.demo import scenes

_SIZE = 32  # px; the preprocessing makes the pictures smaller, which is four times cheaper to learn from

# An unnamed "hf_tokenizer_name" is what makes get_tokenizer("local-dir:…") take the SimpleTokenizer of the wheel.
MODEL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": _SIZE, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "patch_size": None},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 1},
}
PREPROCESS = {
    "size": [_SIZE, _SIZE], "mode": "RGB", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic", "resize_mode": "squash",
}
_BATCH = 48
_STEPS = 200


def train_clip(
    pictures: Tensor, drawn: scenes.Scenes, *, rng: np.random.Generator,
    on_progress: Callable[[float], None] | None = None,
) -> dict[str, Tensor]:
    """The state dict of the open_clip model `MODEL`, trained on `pictures` (n, 3, 64, 64) uint8 and their captions.

    A batch holds a caption at most once, so no pair that counts as wrong is a right one. Colour and background nearly
    settle which caption belongs to a picture; a head of its own, thrown away later, makes the image tower look at the
    shape too.
    """
    import open_clip

    model = open_clip.CLIP(**MODEL)
    # 49,408 embeddings, of which the captions use 22: they stay random, and training touches only the rest.
    torch.nn.init.normal_(model.token_embedding.weight, std=0.3)
    model.token_embedding.requires_grad_(False)
    head = torch.nn.Linear(MODEL["embed_dim"], len(scenes.SHAPES))
    optimizer = torch.optim.AdamW(
        [*(p for p in model.parameters() if p.requires_grad), *head.parameters()], lr=4e-3, weight_decay=1e-2
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=_STEPS, pct_start=0.15)

    captions = sorted(set(drawn.captions))
    tokens = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])(captions)
    number = {caption: index for index, caption in enumerate(captions)}
    caption_of = np.array([number[caption] for caption in drawn.captions])
    pictures_of = [np.flatnonzero(caption_of == index) for index in range(len(captions))]
    small = torch.cat([_shrink(part) for part in pictures.split(250)])
    figure = torch.from_numpy(drawn.shape)
    model.train()
    for step in range(_STEPS):
        chosen = rng.permutation(len(captions))[:_BATCH]
        rows = torch.from_numpy(np.array([rng.choice(pictures_of[index]) for index in chosen]))
        seen = model.encode_image(small[rows])
        said = model.encode_text(tokens[torch.from_numpy(chosen)], normalize=True)
        logits = model.logit_scale.exp() * functional.normalize(seen, dim=-1) @ said.T
        target = torch.arange(len(rows))
        contrast = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        loss = contrast + 2 * functional.cross_entropy(head(seen), figure[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if on_progress:
            on_progress((step + 1) / _STEPS)
    return model.state_dict()


def _shrink(pictures: Tensor) -> Tensor:
    """uint8 pictures → float −1 … 1 at the model's size, as `PREPROCESS` has it."""
    return functional.interpolate(pictures.float() / 127.5 - 1, (_SIZE, _SIZE), mode="bicubic", antialias=True)


def write_clip(directory: Path, weights: dict[str, Tensor]) -> list[Path]:
    """Write the folder; returns its files."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    described = directory / "open_clip_config.json"
    described.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    saved = directory / "open_clip_model.safetensors"
    save_file({name: value.contiguous() for name, value in weights.items()}, saved)
    return [described, saved]
