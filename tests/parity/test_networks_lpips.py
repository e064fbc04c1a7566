"""LPIPS is that of the lpips package for each trunk, and what is kept of the originals spares work, not digits."""

import pytest
import torch

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.networks import LpipsNetwork
from ckptwatch.evaluate.pairs import PairCache
from ckptwatch.model import Networks
from tests.parity.test_networks import pictures
from tests.parity.tiny_networks import stock_lpips, write_lpips


@pytest.fixture(scope="module")
def alex(tmp_path_factory) -> LpipsNetwork:
    weights = write_lpips(tmp_path_factory.mktemp("lpips") / "alex.pt")
    return LpipsNetwork(Networks(lpips_weights=weights), "cpu")


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_distances_are_those_of_lpips(tmp_path, net):
    stock = stock_lpips(net)
    torch.save(stock.state_dict(), tmp_path / "weights.pt")
    ours = LpipsNetwork(Networks(lpips=net, lpips_weights=tmp_path / "weights.pt"), "cpu")
    images, originals = pictures(3, 40, 48), pictures(3, 40, 48, seed=1)
    with torch.no_grad():
        expected = stock(images / 255, originals / 255, normalize=True).flatten()
    assert float(expected.min()) > 1e-3
    for found in (ours.distances(images, originals), ours.distances_to(images, ours.reference(originals))):
        assert found.dtype == torch.float64 and float((found - expected).abs().max()) <= 1e-6


def test_reference_serves_any_number_of_images(alex):
    originals = pictures(4, seed=2)
    kept = alex.reference(originals)
    for seed in (3, 4):
        images = pictures(4, seed=seed)
        assert torch.equal(alex.distances_to(images, kept), alex.distances(images, originals))
    assert torch.equal(alex.distances_to(originals, kept), torch.zeros(4, dtype=torch.float64))


def test_kept_originals_go_through_the_trunk_once(alex, monkeypatch):
    seen = []
    forward = alex._network.net.forward
    monkeypatch.setattr(alex._network.net, "forward", lambda x: (seen.append(len(x)), forward(x))[1])
    originals, cache = pictures(2, seed=5), PairCache()
    for seed in (6, 7, 8):
        kept = cache.get("batch", lambda: alex.reference(originals))
        alex.distances_to(pictures(2, seed=seed), kept)
    assert seen == [2, 2, 2, 2]  # originals once, three times images


def test_reference_that_does_not_fit_at_once_goes_to_the_cpu_in_parts(alex, monkeypatch):
    originals, whole = pictures(5, seed=9), alex.reference(pictures(5, seed=9))
    forward = alex._network.net.forward

    def cramped(x):
        if len(x) > 2:
            raise torch.OutOfMemoryError("no room")
        return forward(x)

    monkeypatch.setattr(alex._network.net, "forward", cramped)
    parts = alex.reference(originals)
    for found, expected in zip(parts, whole, strict=True):
        assert found.device.type == "cpu" and torch.allclose(found, expected, atol=1e-6)
    monkeypatch.undo()
    alex._parts._largest = None


@pytest.mark.parametrize("call", [
    lambda network, images: network.distances(images, images), lambda network, images: network.reference(images),
    lambda network, images: network.distances_to(images, ()),
])
def test_too_small_images_are_an_error_in_words(alex, call):
    with pytest.raises(EvaluationError, match=r"31×40 px, it needs at least 32 px"):
        call(alex, pictures(1, 40, 31))


def test_digest_is_of_trunk_and_heads(alex, tmp_path):
    state = alex._network.state_dict()
    for number, part in enumerate(("net.slice1.0.weight", "lin2.model.1.weight")):
        file = tmp_path / f"{number}.pt"
        torch.save({k: v * 1.5 if k == part or k == part.replace("lin2", "lins.2") else v for k, v in state.items()}, file)
        assert LpipsNetwork(Networks(lpips_weights=file), "cpu").digest != alex.digest
    assert alex.identity.startswith("alex, weights ") and alex.identity.endswith(", fp32")
