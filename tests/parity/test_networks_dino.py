"""DINOv2 is what EDM2 runs: bicubic to 224 px, ImageNet's normalisation, the reference's position embedding, class token."""

import math

import pytest
import timm
import torch
from torch.nn import functional

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.networks import DinoNetwork
from ckptwatch.evaluate.networks.dino import fitted, resample
from ckptwatch.model import Networks
from tests.parity.test_networks import pictures, same
from tests.parity.tiny_networks import DINO, write_dino

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(directory, model: str = DINO) -> DinoNetwork:
    return DinoNetwork(Networks(dino=model, dino_weights=write_dino(directory / "dino.pt", model)), "cpu")


def reference_position(stored: torch.Tensor, side: int) -> torch.Tensor:
    """Cubic convolution (a = −0.75) of an (m, m, d) grid at side × side places, in float64 and without F.interpolate.

    The DINOv2 reference hands F.interpolate the scale (side + 0.1) / m, which therefore puts the sample of index i at
    (i + 0.5) · m / (side + 0.1) − 0.5.
    """
    m = len(stored)

    def kernel(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.25 * x**3 - 2.25 * x**2 + 1
        return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    weights = torch.zeros(side, m, dtype=torch.float64)
    for i in range(side):
        place = (i + 0.5) * m / (side + 0.1) - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            weights[i, min(max(tap, 0), m - 1)] += kernel(place - tap)  # the edge goes on
    return torch.einsum("im,jn,mnd->ijd", weights, weights, stored.double())


# ---- position embedding ----


@pytest.mark.parametrize(("native", "side"), [(37, 16), (10, 14), (16, 7)])
def test_position_embedding_is_resampled_as_the_reference_does(native, side):
    stored = torch.randn(1, 1 + native * native, 6, generator=torch.Generator().manual_seed(1))
    found = resample(stored, side, 1)
    expected = reference_position(stored[0, 1:].reshape(native, native, 6), side)
    assert found.shape == (1, 1 + side * side, 6) and torch.equal(found[:, :1], stored[:, :1])
    assert same(found[0, 1:].reshape(side, side, 6).double(), expected, 1e-5)
    plain = functional.interpolate(stored[:, 1:].reshape(1, native, native, 6).permute(0, 3, 1, 2), (side, side),
                                   mode="bicubic", antialias=True)
    assert not same(found[0, 1:].reshape(side, side, 6), plain[0].permute(1, 2, 0), 1e-2)  # timm's is another


def test_position_embedding_of_the_native_side_is_as_it_was():
    stored = torch.randn(1, 1 + 16 * 16, 4)
    assert resample(stored, 16, 1) is stored


# ---- the network ----


def test_features_are_those_of_stock_timm_at_native_resolution(tmp_path):
    model = "vit_tiny_patch16_224"
    ours = network(tmp_path, model)
    stock = timm.create_model(model, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "dino.pt")}).eval()
    images = pictures(3, 224, 224)
    mean, std = (torch.tensor(stock.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        expected = stock.forward_head(stock.forward_features((images / 255 - mean) / std), pre_logits=True)
    found = ours.extract(ours.prepare(images))["cls"]
    assert found.shape == (3, ours.dimension("cls")) and float(found.std(dim=0).min()) > 1e-3
    assert same(found, expected)


def test_images_are_resized_as_edm2_does(tmp_path):
    ours, images = network(tmp_path), pictures(3, 300, 180)
    resized = functional.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True)
    seen = []
    forward = ours._network.forward_features
    ours._network.forward_features = lambda x: (seen.append(x), forward(x))[1]
    ours.extract(images)
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.5,) * 3, (0.5,) * 3))  # those of this model
    assert torch.allclose(seen[0], (resized / 255 - mean) / std, atol=1e-6)


def test_model_of_another_resolution_runs_at_224_px_with_the_resampled_embedding(tmp_path):
    ours = network(tmp_path)
    stored = torch.load(tmp_path / "dino.pt", weights_only=True)["pos_embed"]
    assert torch.equal(ours._network.pos_embed, resample(stored, 14, 1))
    assert ours.extract(pictures(2))["cls"].shape == (2, 64) and ours.dimension("patch") is None
    assert ours.identity.startswith("test_vit, weights ") and "224 px" in ours.identity


def test_real_dinov2_is_made_ready():
    model = timm.create_model("vit_small_patch14_dinov2.lvd142m", pretrained=False)
    stored = model.pos_embed.detach().clone()
    fitted(model)
    assert model.patch_embed.grid_size == (16, 16)
    assert torch.equal(model.pos_embed, resample(stored, 16, 1)) and model.pos_embed.shape == (1, 257, 384)
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["std"]) == IMAGENET
    with torch.no_grad():
        assert model.eval().forward_features(torch.zeros(1, 3, 224, 224))[:, 0].shape == (1, 384)


def test_registers_antialias_as_their_reference_does():
    model, stock = (timm.create_model("vit_small_patch14_reg4_dinov2.lvd142m", pretrained=False) for _ in range(2))
    stock.load_state_dict(model.state_dict())
    stock.set_input_size((224, 224))
    assert torch.equal(fitted(model).pos_embed, stock.pos_embed)


def test_embedding_without_a_place_for_the_class_token_is_resampled_whole():
    model = timm.create_model("deit3_small_patch16_384", pretrained=False)
    stored = model.pos_embed.detach().clone()
    assert stored.shape == (1, 24 * 24, 384)
    assert torch.equal(fitted(model).pos_embed, resample(stored, 14, 0))


def test_original_weights_of_meta_are_taken_too(tmp_path):
    state = timm.create_model("vit_small_patch14_dinov2.lvd142m", pretrained=False).state_dict()
    torch.save({**state, "mask_token": torch.zeros(1, 384)}, tmp_path / "dinov2_vits14_pretrain.pth")
    weights = Networks(dino="vit_small_patch14_dinov2.lvd142m", dino_weights=tmp_path / "dinov2_vits14_pretrain.pth")
    made = DinoNetwork(weights, "cpu")
    assert torch.equal(made._network.cls_token, state["cls_token"]) and made.dimension("cls") == 384


# ---- errors ----


@pytest.mark.parametrize(("networks", "words"), [
    (Networks(dino="vit_tiny_patch16_224", dino_weights="missing.pt"), ["no such file", "networks.dino.weights"]),
    (Networks(dino="no_such_model"), ["no_such_model", "networks.dino.model"]),
    (Networks(dino=DINO), [DINO, "networks.dino.weights"]),
])
def test_missing_networks_say_where_they_belong(tmp_path, monkeypatch, networks, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    if networks.dino_weights:
        networks = Networks(dino=networks.dino, dino_weights=tmp_path / networks.dino_weights)
    with pytest.raises(EvaluationError) as caught:
        DinoNetwork(networks, "cpu")
    assert caught.value.kind == "recipe"
    for word in words:
        assert word in str(caught.value)


def test_weights_of_another_model_are_an_error(tmp_path):
    weights = write_dino(tmp_path / "dino.pt")
    with pytest.raises(EvaluationError, match="vit_tiny_patch16_224"):
        DinoNetwork(Networks(dino="vit_tiny_patch16_224", dino_weights=weights), "cpu")


def test_network_without_a_class_token_is_an_error(tmp_path):
    weights = write_dino(tmp_path / "dino.pt", "test_vit2")
    with pytest.raises(EvaluationError, match="no class token") as caught:
        DinoNetwork(Networks(dino="test_vit2", dino_weights=weights), "cpu")
    assert not caught.value.retryable
