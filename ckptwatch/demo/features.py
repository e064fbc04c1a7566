"""The demo's feature network: a small classifier of scenes, usable wherever torch-fidelity takes a feature extractor.

It stands in for Inception: FID and KID compare its 64 features, the Inception Score its 24 classes (shape × colour).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from ckptwatch.demo import scenes

NAME = "ckptwatch-demo-shapes"
FEATURES_LAYER = "64"
LOGITS_LAYER = "logits"

_FEATURES = 64
_BATCH = 32
_STEPS = 300


class Trunk(nn.Module):
    """Pictures (n, 3, 64, 64) float in −1 … 1 → features (n, 64), mean 0 and variance 1 each over real scenes.

    The coarse stem is what makes it learn in seconds. Pooling by quarters lets the place of the shape survive into the
    features, so that FID notices wrong places too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            nn.Conv2d(3, 16, 7, stride=4, padding=3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        )
        self.project = nn.Linear(5 * 64, _FEATURES)
        self.standardise = nn.BatchNorm1d(_FEATURES, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.blocks(x)
        pooled = torch.cat([maps.amax(dim=(2, 3)), functional.adaptive_avg_pool2d(maps, 2).flatten(1)], dim=1)
        return self.standardise(self.project(pooled))


class ShapesExtractor(FeatureExtractorBase):
    """Offers the features "64" (n, 64) and "logits" (n, 24), float32, of uint8 pictures (n, 3, h, w)."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | Path | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            raise ValueError(
                f"{NAME} has no weights of its own: make them with `python -m ckptwatch.demo.networks DIR` "
                "and name DIR/features.pt as features_weights"
            )
        self.trunk = Trunk()
        self.classes = nn.Linear(_FEATURES, scenes.CLASSES)
        self.load_state_dict(torch.load(feature_extractor_weights_path, map_location="cpu", weights_only=True))
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.dtype != torch.uint8 or x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"pictures must be uint8 (n, 3, h, w), got {x.dtype} {tuple(x.shape)}")
        x = to_input(x)
        if x.shape[2:] != (scenes.SIZE, scenes.SIZE):
            x = functional.interpolate(x, (scenes.SIZE, scenes.SIZE), mode="bilinear", antialias=True)
        features = self.trunk(x)
        found = {FEATURES_LAYER: features}
        if LOGITS_LAYER in self.features_list:
            found[LOGITS_LAYER] = self.classes(torch.relu(features))
        return tuple(found[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return FEATURES_LAYER, LOGITS_LAYER

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"isc": LOGITS_LAYER, "fid": FEATURES_LAYER, "kid": FEATURES_LAYER, "prc": FEATURES_LAYER}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, scenes.SIZE, scenes.SIZE, dtype=torch.uint8)


def register() -> None:
    """Make the extractor known to torch-fidelity under `NAME`. Calling it again changes nothing."""
    if NAME not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(NAME, ShapesExtractor)


def to_input(pictures: Tensor) -> Tensor:
    """uint8 0 … 255 → float32 −1 … 1."""
    return pictures.float() / 127.5 - 1


def train_features(
    pictures: Tensor, drawn: scenes.Scenes, *, rng: np.random.Generator, on_progress: Callable[[float], None] | None = None
) -> dict[str, Tensor]:
    """The state dict of a `ShapesExtractor` trained on `pictures` (n, 3, 64, 64) uint8.

    It also learns background, place and size, though nobody asks for them later: only what training needs gets into
    the features, and FID is to notice all of it.
    """
    trunk = Trunk()
    heads = nn.ModuleDict({
        name: nn.Linear(_FEATURES, width) for name, width in (
            ("class", scenes.CLASSES), ("shape", len(scenes.SHAPES)), ("background", len(scenes.BACKGROUNDS)),
            ("nuisance", scenes.NUISANCES),
        )
    })
    optimizer = torch.optim.AdamW([*trunk.parameters(), *heads.parameters()], lr=1e-2, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=_STEPS, pct_start=0.15)
    label, figure = torch.from_numpy(drawn.classes), torch.from_numpy(drawn.shape)
    ground, open_ = torch.from_numpy(drawn.background), torch.from_numpy(drawn.nuisance)
    trunk.train()
    for step in range(_STEPS):
        rows = torch.from_numpy(rng.integers(len(pictures), size=_BATCH))
        features = trunk(to_input(pictures[rows]))
        active = torch.relu(features)
        loss = (
            functional.cross_entropy(heads["class"](active), label[rows])
            + functional.cross_entropy(heads["shape"](active), figure[rows])
            + 0.3 * functional.cross_entropy(heads["background"](active), ground[rows])
            + 0.3 * functional.mse_loss(heads["nuisance"](features), open_[rows])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if on_progress:
            on_progress((step + 1) / _STEPS)
    weights = {f"trunk.{name}": value for name, value in trunk.state_dict().items()}
    return weights | {f"classes.{name}": value for name, value in heads["class"].state_dict().items()}

