"""CLIP score and LPIPS are what stock open_clip and lpips say on the same images and weights."""

import warnings
from pathlib import Path

import lpips
import open_clip
import pytest
import torch
from PIL import Image

from ckptwatch.evaluate.images import decode, list_images
from ckptwatch.evaluate.networks import ClipNetwork, LpipsNetwork
from ckptwatch.model import Networks, Reference, Sampler
from tests.parity.evaluation_kit import TINY, TOY, failure, make_job, metrics, run, scores, write_images
from tests.parity.tiny_networks import write_clip, write_lpips

PROMPTS = ("a red car", "two dogs in the snow", "a street at night")


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Networks:
    directory = tmp_path_factory.mktemp("networks")
    return Networks(
        features=TINY.features, features_layer=TINY.features_layer, logits_layer=TINY.logits_layer,
        features_module=TINY.features_module, clip=f"local-dir:{write_clip(directory / 'clip')}",
        lpips_weights=write_lpips(directory / "lpips.pt"),
    )


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(f"{p}\n" for p in PROMPTS))
    return tmp_path / "prompts.txt"


def load(directory) -> torch.Tensor:
    return torch.stack([decode(p) for p in list_images(directory)])


# ---- CLIP score ----


def test_clip_score_is_that_of_open_clip(tmp_path, networks, prompts):
    generated = write_images(tmp_path / "generated", 12, side=50)
    job = make_job(
        tmp_path, sampler=Sampler(images=str(generated)), metrics=metrics("clip_score"), networks=networks, prompts=prompts,
    )
    score = run(job)[0].scores[0]

    model, _, preprocess = open_clip.create_model_and_transforms(networks.clip)
    model.eval()
    tokens = open_clip.get_tokenizer(networks.clip)([PROMPTS[i % 3] for i in range(12)])
    with torch.no_grad():
        seen = model.encode_image(torch.stack([preprocess(Image.open(p)) for p in list_images(generated)]), normalize=True)
        cosines = (seen * model.encode_text(tokens, normalize=True)).sum(dim=1)
    assert score.value == pytest.approx(float(cosines.clamp(min=0).mean()), rel=1e-5)
    assert 0 <= score.low < score.value < score.high <= 1


def test_clip_is_in_evaluation_mode(networks):
    assert not ClipNetwork(networks, "cpu")._model.training


def test_truncated_prompts_are_a_warning(tmp_path, networks):
    (tmp_path / "long.txt").write_text("a car\n" + "very " * 40 + "red car\n")
    job = make_job(tmp_path, metrics=metrics("clip_score"), networks=networks, prompts=tmp_path / "long.txt")
    assert any("beginning of 1 prompts" in w for w in run(job)[0].warnings)


def test_prompt_that_just_fits_is_no_warning(networks):
    clip = ClipNetwork(networks, "cpu")  # 16 tokens, two of them begin and end
    assert clip.truncated(["car " * 14]) == [] and len(clip.truncated(["car " * 15])) == 1


def test_prompts_are_embedded_once(networks):
    clip = ClipNetwork(networks, "cpu")
    first = clip.embed_texts(PROMPTS * 4)
    assert clip.embed_texts(PROMPTS * 4) is first
    assert first.shape == (12, 16) and torch.equal(first[0], first[3])


def test_clip_score_without_prompts_is_an_error(tmp_path, networks):
    error = failure(make_job(tmp_path, metrics=metrics("clip_score"), networks=networks))
    assert error.kind == "recipe" and "no prompts" in str(error)


# ---- LPIPS ----


def stock_lpips(weights) -> lpips.LPIPS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net="alex", pnet_rand=True, model_path=str(weights), verbose=False)


def test_lpips_is_that_of_lpips(tmp_path, networks):
    generated, originals = write_images(tmp_path / "g", 12), write_images(tmp_path / "o", 12, first=7000)
    job = make_job(
        tmp_path, sampler=Sampler(images=str(generated)), metrics=metrics("lpips"), networks=networks,
        reference=Reference(paired=originals),
    )
    score = run(job)[0].scores[0]
    with torch.no_grad():
        expected = stock_lpips(networks.lpips_weights)(load(generated) / 255, load(originals) / 255, normalize=True)
    assert score.value == pytest.approx(float(expected.mean()), rel=1e-5)
    assert 0 <= score.low < score.value < score.high


def test_lpips_of_an_image_with_itself_is_zero(tmp_path, networks):
    same = write_images(tmp_path / "same", 12)
    job = make_job(
        tmp_path, sampler=Sampler(images=str(same)), metrics=metrics("lpips"), networks=networks,
        reference=Reference(images=same),
    )
    assert scores(job) == {"lpips": 0.0}


def test_trunk_is_found_in_torch_home_as_lpips_finds_it(tmp_path, networks, monkeypatch):
    from torchvision.models import alexnet

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(alexnet(weights=None).state_dict(), tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth")
    a, b = load(write_images(tmp_path / "a", 2)), load(write_images(tmp_path / "b", 2, first=9))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        expected = lpips.LPIPS(net="alex", verbose=False)(a / 255, b / 255, normalize=True).flatten()
    assert LpipsNetwork(Networks(), "cpu").distances(a, b).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_originals_of_another_size_are_resized_with_a_warning(tmp_path, networks):
    generated, originals = write_images(tmp_path / "g", 12), write_images(tmp_path / "o", 12, side=64)
    job = make_job(
        tmp_path, sampler=Sampler(images=str(generated)), metrics=metrics("lpips"), networks=networks,
        reference=Reference(paired=originals),
    )
    result, _ = run(job)
    assert sum("resized" in w and "64×64" in w and "40×40" in w for w in result.warnings) == 1


def test_pairs_are_found_by_stem_where_all_stems_exist(tmp_path, networks):
    generated = write_images(tmp_path / "g", 12)
    originals = write_images(tmp_path / "o", 12)
    write_images(originals, 3, first=1, prefix="a_first")  # natural order alone would pair these
    job = make_job(
        tmp_path, sampler=Sampler(images=str(generated)), metrics=metrics("lpips"), networks=networks,
        reference=Reference(paired=originals),
    )
    assert scores(job) == {"lpips": 0.0}


def test_too_few_originals_are_an_error_before_sampling(tmp_path, networks):
    originals = write_images(tmp_path / "o", 11)
    job = make_job(
        tmp_path, sampler=Sampler(images="not_there"), metrics=metrics("lpips"), networks=networks,
        reference=Reference(paired=originals),
    )
    error = failure(job)
    assert error.kind == "recipe" and "11 originals for 12 samples" in str(error)


@pytest.mark.parametrize("reference", [Reference(), Reference(paired=Path("/no/such"))])
def test_missing_originals_are_an_error(tmp_path, networks, reference):
    error = failure(make_job(tmp_path, metrics=metrics("lpips"), networks=networks, reference=reference))
    assert error.kind == "recipe" and "originals" in str(error)


def test_images_too_small_for_lpips_are_an_error(tmp_path, networks):
    originals = write_images(tmp_path / "o", 12)
    small = Sampler(factory=TOY.factory, options={"side": 24})
    job = make_job(
        tmp_path, sampler=small, metrics=metrics("lpips"), networks=networks, reference=Reference(paired=originals),
    )
    error = failure(job)
    assert error.kind == "recipe" and "24×24 px" in str(error) and "32 px" in str(error)


def test_incomplete_lpips_weights_are_an_error_not_a_random_trunk(tmp_path, networks):
    state = torch.load(networks.lpips_weights)
    torch.save({k: v for k, v in state.items() if not k.startswith("net.slice3")}, tmp_path / "half.pt")
    originals = write_images(tmp_path / "o", 12)
    job = make_job(
        tmp_path, metrics=metrics("lpips"), networks=Networks(lpips_weights=tmp_path / "half.pt"),
        reference=Reference(paired=originals),
    )
    error = failure(job)
    assert error.kind == "recipe" and "net.slice3" in str(error)


# ---- weights that are not there ----


@pytest.mark.parametrize(("metric", "networks", "words"), [
    ("inception_score", Networks(), ["inception-2015-12-05", "networks.features.weights"]),
    ("lpips", Networks(), ["alexnet-owt-7be5be79.pth", "networks.lpips.weights"]),
    ("lpips", Networks(lpips="resnet"), ["alex, vgg, squeeze"]),
    ("clip_score", Networks(), ["ViT-B-32-quickgelu", "local-dir:", "HF_HUB_OFFLINE"]),
    ("clip_score", Networks(clip="no-such-model"), ["no-such-model"]),
    ("clip_score", Networks(clip_pretrained="/no/such/clip.pt"), ["/no/such/clip.pt", "no such file"]),
    ("clip_score", Networks(clip="local-dir:/no/such"), ["/no/such"]),
    ("inception_score", Networks(features="no-such"), ["known", "inception-v3-compat", "networks.features.module"]),
    ("inception_score", Networks(logits_layer="9999"), ["no layer '9999'", "logits_unbiased"]),
    ("inception_score", Networks(features_module="tests.parity.toy_samplers:broken_factory"), ["register"]),
    ("precision", Networks(), ["vgg16-397923af.pth", "networks.prc.weights"]),
    ("recall", Networks(prc="no-such"), ["known", "vgg16", "networks.prc.extractor"]),
    ("recall", Networks(prc_layer="pool5"), ["no layer 'pool5'", "fc2_relu", "networks.prc.layer"]),
    ("cmmd", Networks(), ["ViT-L-14-336-quickgelu", "networks.cmmd.pretrained", "HF_HUB_OFFLINE"]),
    ("cmmd", Networks(cmmd_pretrained="/no/such/clip.pt"), ["no such file", "networks.cmmd.pretrained"]),
    ("fd_dinov2", Networks(dino="vit_tiny_patch16_224"), ["vit_tiny_patch16_224", "networks.dino.weights"]),
    ("fd_dinov2", Networks(dino_weights=Path("/no/such/dino.pt")), ["no such file", "networks.dino.weights"]),
])
def test_missing_networks_say_where_they_belong(tmp_path, prompts, monkeypatch, metric, networks, words):
    # Nothing is downloaded: the cache is empty, and the proxy refuses.
    for name in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "empty"))
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    originals = write_images(tmp_path / "o", 12)
    error = failure(make_job(
        tmp_path, metrics=metrics(metric), networks=networks, prompts=prompts,
        reference=Reference(images=originals, paired=originals),
    ))
    assert error.kind == "recipe"
    for word in words:
        assert word in f"{error} {error.hint}"
