"""The networks that metrics rest on: feature extractors (torch-fidelity), CLIP (open_clip), DINOv2 (timm), LPIPS (lpips).

They stay loaded between jobs. All run in fp32 without TF32 unless `networks.precision` asks for less and a drift check
allows it; a batch that does not fit into memory is done in parts.
"""

from ckptwatch.evaluate.networks.clip import ClipNetwork
from ckptwatch.evaluate.networks.dino import DinoNetwork
from ckptwatch.evaluate.networks.exactness import exact
from ckptwatch.evaluate.networks.features import FeatureNetwork
from ckptwatch.evaluate.networks.loading import torch_home
from ckptwatch.evaluate.networks.perceptual import LpipsNetwork
from ckptwatch.evaluate.networks.store import NetworkStore

__all__ = ["ClipNetwork", "DinoNetwork", "FeatureNetwork", "LpipsNetwork", "NetworkStore", "exact", "torch_home"]
