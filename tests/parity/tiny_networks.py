"""Small networks for tests, loaded by the same code that loads the real ones."""

import json
import warnings
from pathlib import Path

import lpips
import open_clip
import timm
import torch
from torch import nn
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

NAME = "tiny-conv"
LAYER = "24"
LOGITS = "logits"
CLIP_MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
DINO = "test_vit"  # timm's own for tests: patches of 16, 160 px, 64 features


class TinyConv(FeatureExtractorBase):
    """uint8 (n, 3, H, W) of any size to 24 features and 7 logits."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **_):
        super().__init__(name, features_list)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(8)
            self.conv = nn.Conv2d(3, 24, 5, stride=2)
            self.head = nn.Linear(24, 7)
            self.head.weight.data.mul_(20)
        if feature_extractor_weights_path is not None:
            self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    @staticmethod
    def get_provided_features_list():
        return LAYER, LOGITS

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return LOGITS if metric == "isc" else LAYER

    def forward(self, input):
        assert input.dtype == torch.uint8
        features = self.conv(input.float() / 127.5 - 1).relu().mean(dim=(2, 3))
        found = {LAYER: features, LOGITS: self.head(features)}
        return tuple(found[name] for name in self.features_list)


def register():
    register_feature_extractor(NAME, TinyConv)


def write_clip(directory: Path) -> Path:
    """A model directory that open_clip loads as `local-dir:`, with random weights."""
    directory.mkdir()
    config = {
        "model_cfg": CLIP_MODEL,
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.3, 0.3], "interpolation": "bicubic"},
    }
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        model = open_clip.CLIP(**config["model_cfg"])
        torch.save(model.state_dict(), directory / "open_clip_pytorch_model.bin")
    return directory


def write_lpips(path: Path) -> Path:
    """A state dict of trunk and heads, as `networks.lpips_weights` wants it."""
    torch.save(stock_lpips("alex").state_dict(), path)
    return path


def stock_lpips(net: str) -> lpips.LPIPS:
    """The network of the lpips package, with a random trunk and the heads that ship with it."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


def write_inception(path: Path) -> Path:
    """Weights for torch-fidelity's Inception whose features do not collapse, as those of the default initialisation do."""
    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_, **__):
            return None

    torch.save({}, path)
    network = Untrained("inception-v3-compat", ["192"], feature_extractor_weights_path=str(path))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):  # no identity: folding it must matter
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.data.uniform_(0.8, 1.2)
                module.bias.data.normal_(std=0.1)
    torch.save(network.state_dict(), path)
    return path


def write_dino(path: Path, model: str = DINO) -> Path:
    """Weights of a timm model, as `networks.dino_weights` wants them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = timm.create_model(model, pretrained=False)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.08)
    torch.save(network.state_dict(), path)
    return path
