"""Features are those of the stock extractors; what makes a network fast, or fit into memory, changes nothing."""

import gc
import weakref

import pytest
import torch
import torchvision
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

from ckptwatch.evaluate.networks import FeatureNetwork, NetworkStore, exact
from ckptwatch.evaluate.networks.exactness import lowered
from ckptwatch.evaluate.networks.parts import PATIENCE, Parts
from ckptwatch.evaluate.networks.transfer import resolved, upload
from ckptwatch.model import Networks, evolve
from tests.parity import tiny_networks
from tests.parity.evaluation_kit import TINY
from tests.parity.tiny_networks import LAYER, LOGITS, write_clip, write_dino, write_inception, write_lpips


@pytest.fixture(scope="module", autouse=True)
def _registered():
    FeatureNetwork(TINY, (LAYER,), "cpu")


def pictures(count: int, height: int = 48, width: int = 40, seed: int = 0) -> torch.Tensor:
    noise = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=noise) * 255
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").to(torch.uint8)


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return found.shape == expected.shape and float((found - expected).abs().max() / expected.abs().max()) <= tolerance


# ---- stock extractors ----


def test_inception_is_that_of_torch_fidelity_though_its_norms_are_folded(tmp_path):
    layers = ["64", "192", "768", "2048", "logits_unbiased"]
    weights = write_inception(tmp_path / "inception.pth")
    stock = FeatureExtractorInceptionV3("inception-v3-compat", list(layers), feature_extractor_weights_path=str(weights))
    ours = FeatureNetwork(Networks(features_weights=weights), layers, "cpu")
    images = pictures(3)
    found = ours.extract(ours.prepare(images))
    for layer, expected in zip(layers, stock(images), strict=True):
        assert found[layer].dtype == torch.float32 and float(expected.std()) > 0.01
        assert same(found[layer], expected), layer
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in ours._network.modules())
    assert ours.dimension("2048") == 2048


def test_vgg_is_that_of_torch_fidelity(tmp_path):
    stock = torchvision.models.vgg16()  # initialised after He
    torch.save(stock.state_dict(), tmp_path / "vgg.pth")
    networks = Networks(features="vgg16", features_weights=tmp_path / "vgg.pth")
    ours = FeatureNetwork(networks, ("fc2_relu",), "cpu")
    (tmp_path / "vgg.pth").unlink()
    extractor = FeatureExtractorVGG16.__new__(FeatureExtractorVGG16)
    torch.nn.Module.__init__(extractor)
    extractor.features_list, extractor.feature_extractor_internal_dtype = ["fc2_relu"], torch.float32
    for tail in (6, 5, 4):
        del stock.classifier[tail]
    extractor.model = stock.eval()
    images = pictures(2)
    with torch.no_grad():
        (expected,) = extractor(images)
    assert float(expected.std()) > 0.01 and same(ours.extract(images)["fc2_relu"], expected)


def test_what_prepare_gave_and_images_are_the_same_to_extract():
    network, images = FeatureNetwork(TINY, (LAYER, LOGITS), "cpu"), pictures(5)
    prepared, direct = network.extract(network.prepare(images)), network.extract(images)
    assert list(prepared) == [LAYER, LOGITS] and network.layers == (LAYER, LOGITS)
    assert all(torch.equal(prepared[layer], direct[layer]) for layer in prepared)


# ---- what a network says of itself ----


def test_digest_follows_the_weights_and_identity_shows_them(tmp_path):
    first = FeatureNetwork(TINY, (LAYER,), "cpu")
    state = first._network.state_dict()
    torch.save({k: v * 2 for k, v in state.items()}, tmp_path / "double.pt")
    second = FeatureNetwork(evolve(TINY, features_weights=tmp_path / "double.pt"), (LAYER,), "cpu")
    assert first.digest != second.digest and len(bytes.fromhex(first.digest)) == 32
    assert first.identity == f"tiny-conv, weights {first._weights[:8]}, fp32" != second.identity
    assert FeatureNetwork(TINY, (LAYER,), "cpu").digest == first.digest


def test_digest_is_of_the_weights_as_they_were_loaded_not_of_what_they_were_made_into(tmp_path, monkeypatch):
    monkeypatch.setattr(FeatureNetwork, "_tune", lambda self: self._network.conv.weight.data.zero_())
    changed = FeatureNetwork(TINY, (LAYER,), "cpu")
    monkeypatch.undo()
    assert FeatureNetwork(TINY, (LAYER,), "cpu").digest == changed.digest


# ---- numbers ----


@pytest.mark.parametrize("spoil", [
    lambda: torch.set_float32_matmul_precision("medium"),
    lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "tf32"),
    lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    lambda: (torch.set_float32_matmul_precision("medium"),
             setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee")),
])
def test_nothing_a_sampler_set_lowers_the_precision_and_all_of_it_is_as_before(spoil):
    backends = torch.backends
    switches = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul, backends.mkldnn.conv]
    untouched = [s.fp32_precision for s in switches]
    a = torch.rand(64, 64, generator=torch.Generator().manual_seed(1))
    expected = (a.double() @ a.double()).float()
    try:
        spoil()
        before = [s.fp32_precision for s in switches]
        with torch.autocast("cpu"), exact(torch.device("cpu")):
            assert {s.fp32_precision for s in switches} == {"ieee"}
            assert same(a @ a, expected, 1e-6)
        assert [s.fp32_precision for s in switches] == before
    finally:
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = True
        for switch, value in zip(switches, untouched, strict=True):
            switch.fp32_precision = value


@pytest.mark.parametrize(("precision", "switch", "dtype"), [
    ("fp32", "ieee", torch.float32), ("tf32", "tf32", torch.float32), ("bf16", "ieee", torch.bfloat16),
    ("fp16", "ieee", torch.float16),
])
def test_lowered_is_what_was_asked_for_and_nothing_else(precision, switch, dtype):
    before = torch.backends.cuda.matmul.fp32_precision
    with lowered(torch.device("cpu"), precision):
        assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == switch
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype and not torch.is_grad_enabled()
    assert torch.backends.cuda.matmul.fp32_precision == before and not torch.is_autocast_enabled("cpu")


# ---- memory ----


class Cramped:
    """A forward pass for which more than `room` images are too many; it keeps what it allocated, as a real one does."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sizes: list[int] = []
        self.held: list[weakref.ref] = []
        self.held_at_next: list[int] = []

    def __call__(self, part: slice) -> list[int]:
        gc.collect()
        self.held_at_next.append(sum(ref() is not None for ref in self.held))
        workspace = torch.zeros(8)
        self.held.append(weakref.ref(workspace))
        self.sizes.append(part.stop - part.start)
        if part.stop - part.start > self.room:
            raise torch.OutOfMemoryError(f"tried to allocate {workspace.nbytes} bytes")
        return list(range(part.start, part.stop))


@pytest.mark.parametrize(("room", "count"), [(100, 7), (7, 7), (3, 7), (1, 5), (2, 64)])
def test_batch_that_does_not_fit_is_done_in_parts_in_order(room, count):
    forward = Cramped(room)
    assert [i for part in Parts().run(forward, count) for i in part] == list(range(count))
    assert max(forward.sizes[-3:]) <= room


def test_memory_of_a_failed_attempt_is_free_before_the_next():
    forward = Cramped(1)
    Parts().run(forward, 8)
    assert set(forward.held_at_next) == {0}


def test_one_image_that_does_not_fit_is_an_error():
    forward = Cramped(0)
    with pytest.raises(torch.OutOfMemoryError):
        Parts().run(forward, 8)
    assert forward.sizes == [8, 4, 2, 1]


def test_other_errors_are_not_tried_again():
    calls = []

    def forward(part: slice) -> None:
        calls.append(part)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        Parts().run(forward, 8)
    assert len(calls) == 1


def test_what_fitted_is_remembered_and_more_is_tried_again_later():
    parts, forward = Parts(), Cramped(4)
    parts.run(forward, 8)
    forward.sizes.clear()
    for _ in range(PATIENCE // 2 - 1):
        parts.run(forward, 8)
    assert set(forward.sizes) == {4}  # no batch fails twice
    forward.room = 8
    parts.run(forward, 8)
    parts.run(forward, 8)
    assert forward.sizes[-1] == 8


def cramp(module, monkeypatch, name: str, room: int) -> None:
    """Lets a forward pass fail for more than `room` images."""
    whole = getattr(module, name)

    def forward(images, *args, **kwargs):
        if len(images) > room:
            raise torch.OutOfMemoryError("no room")
        return whole(images, *args, **kwargs)

    monkeypatch.setattr(module, name, forward)


def test_every_network_goes_on_in_parts(tmp_path, monkeypatch):
    networks = evolve(
        TINY, clip=f"local-dir:{write_clip(tmp_path / 'clip')}", lpips_weights=write_lpips(tmp_path / "lpips.pt"),
        dino=tiny_networks.DINO, dino_weights=write_dino(tmp_path / "dino.pt"),
    )
    store, images = NetworkStore("cpu"), pictures(7)
    features, clip = store.features(networks, (LAYER, LOGITS)), store.clip(networks)
    dino, lpips = store.dino(networks), store.lpips(networks)
    originals = images.flip(0)

    def everything():
        return {
            **features.extract(images), **clip.extract(images), **dino.extract(images),
            "texts": clip.embed_texts(tuple("abcdefg")), "lpips": lpips.distances(images, originals),
            "lpips to": lpips.distances_to(images, lpips.reference(originals)),
        }

    expected = everything()
    clip._texts = None
    for module, name in [(features._network, "forward"), (clip._model, "encode_image"), (clip._model, "encode_text"),
                         (dino._network, "forward_features"), (lpips._network.net, "forward")]:
        cramp(module, monkeypatch, name, 2)
    found = everything()
    assert len(found) == 7
    for name, rows in expected.items():
        assert same(found[name], rows), name


# ---- transfer ----


def test_networks_share_one_copy_of_a_batch_on_the_device():
    device = resolved("meta")  # a device that every torch has
    images = pictures(2)
    copy = upload(images, device)
    assert copy.device == device and upload(images, device) is copy and upload(copy, device) is copy
    assert upload(images, torch.device("cpu")) is images
    images.add_(1)
    assert upload(images, device) is not copy


def test_copy_goes_with_its_original():
    images = pictures(2)
    copy = weakref.ref(upload(images, torch.device("meta")))
    assert copy() is not None
    del images
    gc.collect()
    assert copy() is None


def test_images_of_inference_mode_can_be_copied():
    with torch.inference_mode():
        images = pictures(2) + 1
    assert upload(images, torch.device("meta")) is upload(images, torch.device("meta"))


# ---- the store ----


def test_networks_stay_loaded_and_the_least_recently_used_goes_first():
    store = NetworkStore("cpu")
    layers = [(LAYER,), (LOGITS,), (LAYER, LOGITS), (LOGITS, LAYER)]
    kept = [store.features(TINY, wanted) for wanted in layers]
    assert [store.features(TINY, wanted) for wanted in layers] == kept
    store.features(evolve(TINY, precision="tf32"), (LAYER,))
    assert store.features(TINY, layers[1]) is kept[1]
    assert store.features(TINY, layers[0]) is not kept[0]


def test_weights_written_again_are_loaded_again(tmp_path):
    weights = tmp_path / "weights.pt"
    networks = evolve(TINY, features_weights=weights)
    state = FeatureNetwork(TINY, (LAYER,), "cpu")._network.state_dict()
    store, digests = NetworkStore("cpu"), []
    for factor in (1, 2):
        torch.save({k: v * factor for k, v in state.items()}, weights.with_suffix(".new"))
        weights.with_suffix(".new").replace(weights)
        digests.append(store.features(networks, (LAYER,)).digest)
    assert digests[0] != digests[1]


def test_precision_and_recall_share_the_feature_network_where_that_has_their_layer():
    store, networks = NetworkStore("cpu"), evolve(TINY, prc=TINY.features, prc_layer=LAYER)
    assert store.prc_is_features(networks) and not store.prc_is_features(TINY)
    features = store.features(networks, (LAYER, LOGITS))
    assert store.prc(networks) is features
    assert store.prc(evolve(networks, prc_layer="24", precision="tf32")) is not features
    other = store.prc(evolve(networks, features="inception-v3-compat"))
    assert other is features  # whoever it was loaded for


def test_precision_and_recall_have_a_network_of_their_own_elsewhere():
    store, networks = NetworkStore("cpu"), evolve(TINY, prc=TINY.features, prc_layer=LAYER)
    own = store.prc(networks)
    assert own.layers == (LAYER,) and store.prc(networks) is own


def test_cmmd_shares_the_clip_network_where_model_and_weights_are_the_same(tmp_path):
    first, second = (f"local-dir:{write_clip(tmp_path / name)}" for name in ("first", "second"))
    store = NetworkStore("cpu")
    networks = evolve(TINY, clip=first, cmmd=first, cmmd_pretrained="laion2b")  # the directory has its own weights
    assert store.cmmd(networks) is store.clip(networks)
    assert store.cmmd(evolve(networks, cmmd=second)) is not store.clip(networks)
    store.clear()
    assert store.clip(networks) is store.cmmd(networks)
