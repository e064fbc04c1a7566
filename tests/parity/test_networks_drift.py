"""A network computes in less than fp32 only where that was measured to move little; the answer is kept, and honest."""

import json
import math

import pytest
import torch
from torch import nn
from torch_fidelity import FeatureExtractorBase, register_feature_extractor

from ckptwatch.evaluate.networks import ClipNetwork, DinoNetwork, FeatureNetwork, LpipsNetwork, drift
from ckptwatch.evaluate.networks.drift import LARGEST, choose, drift_of
from ckptwatch.model import Networks, evolve
from tests.parity import tiny_networks
from tests.parity.evaluation_kit import TINY
from tests.parity.test_networks import pictures
from tests.parity.tiny_networks import LAYER, write_clip, write_dino, write_lpips

CPU = torch.device("cpu")


class Brittle(FeatureExtractorBase):
    """Small differences of large numbers: what bf16 cannot do."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)
        self.head = nn.Linear(3, 4)
        with torch.no_grad():
            self.head.weight.copy_(torch.arange(12).reshape(4, 3) / 12)
            self.head.bias.fill_(1000.0)

    @staticmethod
    def get_provided_features_list():
        return ("4",)

    def forward(self, input):
        return (self.head(input.float().mean(dim=(2, 3)) / 255),)


class Stubborn(Brittle):
    """Takes no autocast at all."""

    def forward(self, input):
        if torch.is_autocast_enabled("cpu"):
            raise TypeError("expected float32")
        return super().forward(input)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    FeatureNetwork(TINY, (LAYER,), "cpu")
    for name, extractor in (("brittle", Brittle), ("stubborn", Stubborn)):
        register_feature_extractor(name, extractor)


@pytest.fixture
def counted(monkeypatch):
    """How many times the images of the check were asked for."""
    calls = []
    images = drift.images
    monkeypatch.setattr(drift, "images", lambda: (calls.append(1), images())[1])
    return calls


def low(networks: Networks, precision: str = "bf16") -> Networks:
    return evolve(networks, precision=precision)


# ---- the measure ----


def test_drift_is_relative_to_the_spread_of_features_not_to_their_size():
    full = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    moved = full + 0.01 * full.flip(0)
    spread = (full - full.mean(dim=0)).norm()
    assert drift_of(moved, full) == pytest.approx(float(0.01 * full.norm() / spread))
    assert drift_of(moved + 1000, full + 1000) == pytest.approx(drift_of(moved, full), rel=1e-2)
    assert drift_of(full, full) == 0


@pytest.mark.parametrize(("lower", "full"), [
    (torch.full((3, 2), math.nan), torch.rand(3, 2)), (torch.full((3, 2), math.inf), torch.rand(3, 2)),
    (torch.rand(3, 2), torch.ones(3, 2)),
])
def test_what_cannot_be_measured_is_too_much(lower, full):
    assert drift_of(lower, full) == math.inf


def test_images_of_the_check_are_always_the_same_and_have_structure():
    images = drift.images()
    assert images.shape == (32, 3, 256, 256) and images.dtype == torch.uint8
    assert torch.equal(images, drift.images.__wrapped__())
    values = images.float()
    assert float(values.std(dim=(1, 2, 3)).min()) > 10  # no image is flat
    assert float((values[:, :, 1:] - values[:, :, :-1]).abs().mean()) < 0.5 * float(values.std())  # and none mere noise


# ---- the choice ----


@pytest.mark.parametrize(("moved", "taken"), [(0.5 * LARGEST, True), (LARGEST * 0.999, True), (1.5 * LARGEST, False)])
def test_wanted_precision_is_taken_up_to_the_limit(moved, taken):
    full = torch.tensor([[1.0], [-1.0]])

    def probe(precision):
        return {"a": full, "b": full * (1 + moved) if precision == "bf16" else full}  # one layer is enough

    found = choose("bf16", CPU, key="k", name="net", probe=probe, cache_dir=None)
    assert found.precision == ("bf16" if taken else "fp32")
    assert found.words == ("bf16" if taken else "fp32")
    assert bool(found.warning) != taken
    if not taken:
        assert "net runs in fp32, not bf16" in found.warning
        assert f"{100 * moved:.2g} %" in found.warning and "2 %" in found.warning


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_nothing_is_checked_where_nothing_changes(precision, tmp_path, counted):
    network = FeatureNetwork(low(TINY, precision), (LAYER,), "cpu", cache_dir=tmp_path)
    assert network.identity.endswith(", fp32") and not network.warnings and not counted and not list(tmp_path.iterdir())


def test_network_in_bf16_says_so_and_computes_so(tmp_path):
    exact, fast = (FeatureNetwork(networks, (LAYER,), "cpu", cache_dir=tmp_path) for networks in (TINY, low(TINY)))
    images = pictures(20)
    a, b = exact.extract(images)[LAYER], fast.extract(images)[LAYER]
    assert b.dtype == torch.float32 and 0 < drift_of(b, a) <= LARGEST
    assert fast.identity.endswith(", bf16") and not fast.warnings
    assert fast.digest != exact.digest


@pytest.mark.parametrize(("name", "words"), [("brittle", "drifts by"), ("stubborn", "TypeError: expected float32")])
def test_network_that_bears_it_badly_stays_in_fp32_with_a_warning(tmp_path, name, words):
    wanted = Networks(features=name, features_layer="4")
    exact, network = (FeatureNetwork(n, ("4",), "cpu", cache_dir=tmp_path) for n in (wanted, low(wanted)))
    (warning,) = network.warnings
    assert f"{name} runs in fp32, not bf16" in warning and words in warning
    assert network.identity.endswith(", fp32") and network.digest == exact.digest
    images = pictures(4)
    assert torch.equal(network.extract(images)["4"], exact.extract(images)["4"])


def test_all_kinds_of_networks_are_checked(tmp_path, counted):
    networks = low(Networks(
        clip=f"local-dir:{write_clip(tmp_path / 'clip')}", lpips_weights=write_lpips(tmp_path / "lpips.pt"),
        dino=tiny_networks.DINO, dino_weights=write_dino(tmp_path / "dino.pt"),
    ))
    cache = tmp_path / "cache"
    cache.mkdir()
    for made in (ClipNetwork(networks, "cpu", cache_dir=cache), DinoNetwork(networks, "cpu", cache_dir=cache),
                 LpipsNetwork(networks, "cpu", cache_dir=cache)):
        assert ", bf16" in made.identity or made.warnings, made.name
    assert len(list(cache.glob("drift-*.json"))) == 3 and len(counted) == 6


# ---- the record ----


def test_check_runs_once_per_network_not_per_start(tmp_path, counted):
    first = FeatureNetwork(low(TINY), (LAYER,), "cpu", cache_dir=tmp_path)
    assert len(counted) == 2
    (record,) = tmp_path.iterdir()
    assert record.name.startswith("drift-") and json.loads(record.read_text())["precision"] == "bf16"
    again = FeatureNetwork(low(TINY), (LAYER,), "cpu", cache_dir=tmp_path)
    assert len(counted) == 2 and (again.identity, again.digest) == (first.identity, first.digest)


def test_refusal_is_remembered_too(tmp_path, counted):
    brittle = low(Networks(features="brittle", features_layer="4"))
    first, again = (FeatureNetwork(brittle, ("4",), "cpu", cache_dir=tmp_path) for _ in range(2))
    assert len(counted) == 2 and first.warnings == again.warnings != []


def test_other_weights_precision_or_torch_is_another_check(tmp_path, monkeypatch):
    state = FeatureNetwork(TINY, (LAYER,), "cpu")._network.state_dict()
    torch.save({k: v * 2 for k, v in state.items()}, tmp_path / "double.pt")
    cache = tmp_path / "cache"
    cache.mkdir()
    for number, networks in enumerate([
        low(TINY), low(TINY, "fp16"), low(evolve(TINY, features_weights=tmp_path / "double.pt")),
    ], start=1):
        FeatureNetwork(networks, (LAYER,), "cpu", cache_dir=cache)
        assert len(list(cache.iterdir())) == number
    monkeypatch.setattr(torch, "__version__", "99.0")
    FeatureNetwork(low(TINY), (LAYER,), "cpu", cache_dir=cache)
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("damage", [
    b"", b"\x00\xff", b"{}", b"[]", b'{"drift": "0.0", "problem": ""}', b'{"drift": null, "problem": ""}',
    b'{"drift": -1.0, "problem": ""}', b'{"drift": NaN, "problem": ""}',
])
def test_damaged_record_is_checked_again(tmp_path, counted, damage):
    whole = FeatureNetwork(low(TINY), (LAYER,), "cpu", cache_dir=tmp_path)
    (record,) = tmp_path.iterdir()
    good = record.read_bytes()
    record.write_bytes(damage)
    counted.clear()
    again = FeatureNetwork(low(TINY), (LAYER,), "cpu", cache_dir=tmp_path)
    assert len(counted) == 2 and again.identity == whole.identity
    assert record.read_bytes() == good


def test_record_that_cannot_be_written_is_no_failure(tmp_path):
    network = FeatureNetwork(low(TINY), (LAYER,), "cpu", cache_dir=tmp_path / "not_there")
    assert ", bf16" in network.identity
