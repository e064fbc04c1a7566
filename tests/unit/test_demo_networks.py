"""The demo's own networks go through the stock code of torch-fidelity, open_clip and lpips, and mean something there."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from ckptwatch.demo import clip, features, networks, perceptual, scenes

DRAWN = scenes.seeded(range(900_000, 900_128))
PICTURES = torch.from_numpy(scenes.render(DRAWN)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    # As in the demo; the second thread of a busy machine makes these small networks slower, not faster.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def files(one_thread, tmp_path_factory):
    """The real set; about twenty seconds."""
    return networks.make_networks(tmp_path_factory.mktemp("networks"))


@pytest.mark.slow
@pytest.mark.xdist_group("networks")
def test_torch_fidelity_takes_the_feature_network(files):
    from torch_fidelity.utils import create_feature_extractor

    networks.register()
    networks.register()
    extractor = create_feature_extractor(
        networks.NAME, [networks.FEATURES_LAYER, networks.LOGITS_LAYER], cuda=False, verbose=False,
        feature_extractor_weights_path=str(files.features),
    )
    found = extractor.convert_features_tuple_to_dict(extractor(PICTURES))
    assert found["64"].shape == (len(DRAWN), 64)
    assert found["logits"].shape == (len(DRAWN), scenes.CLASSES)
    assert (found["logits"].argmax(dim=1).numpy() == DRAWN.classes).mean() > 0.9


@pytest.mark.slow
@pytest.mark.xdist_group("networks")
def test_torch_fidelity_measures_with_it(files):
    import torch_fidelity

    networks.register()
    blurred = torch.nn.functional.avg_pool2d(PICTURES.float(), 9, 1, 4).round().to(torch.uint8)
    common = {
        "cuda": False, "fid": True, "isc": True, "feature_extractor": networks.NAME, "verbose": False, "cache": False,
        "feature_extractor_weights_path": str(files.features), "save_cpu_ram": True, "input2": Pictures(PICTURES[:64]),
    }
    real = torch_fidelity.calculate_metrics(input1=Pictures(PICTURES[64:]), **common)
    worse = torch_fidelity.calculate_metrics(input1=Pictures(blurred[64:]), **common)
    assert real["frechet_inception_distance"] < worse["frechet_inception_distance"]
    assert real["inception_score_mean"] > worse["inception_score_mean"]


@pytest.mark.slow
@pytest.mark.xdist_group("networks")
def test_open_clip_loads_the_folder_and_prefers_the_right_caption(files):
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{files.clip}")
    tokens = open_clip.get_tokenizer(f"local-dir:{files.clip}")(scenes.all_captions())
    model.eval()
    with torch.no_grad():
        seen = model.encode_image(
            torch.stack([preprocess(Image.fromarray(p.permute(1, 2, 0).numpy())) for p in PICTURES]), normalize=True
        )
        scores = seen @ model.encode_text(tokens, normalize=True).T
    right = torch.tensor([[own == other for other in scenes.all_captions()] for own in DRAWN.captions])
    assert scores[right].mean() > 0.7
    assert scores[~right].mean() < 0.2
    assert (scores.argmax(dim=1) == right.int().argmax(dim=1)).float().mean() > 0.7


@pytest.mark.slow
@pytest.mark.xdist_group("networks")
def test_lpips_loads_the_file_and_ranks_distances(files):
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = lpips.LPIPS(net="alex", pnet_rand=True, model_path=str(files.lpips), verbose=False)
    first = PICTURES[:32].float() / 127.5 - 1
    noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        near = metric(first, (first + 0.05 * noise).clamp(-1, 1)).flatten()
        far = metric(first, first.roll(1, dims=0)).flatten()
    assert (near < far).all()
    shipped = torch.load(next(iter(lpips.__path__)) + "/weights/v0.1/alex.pth", map_location="cpu", weights_only=True)
    own = metric.state_dict()
    assert all(torch.equal(own[name], value) for name, value in shipped.items())


class Pictures(torch.utils.data.Dataset):
    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.pictures[index]


@pytest.fixture
def short(monkeypatch):
    """Training of a few steps: what it learns does not matter here."""
    for module in (features, clip, perceptual):
        monkeypatch.setattr(module, "_STEPS", 3)
    monkeypatch.setattr(networks, "PICTURES", 300)


def test_the_same_seed_gives_the_same_networks_and_leaves_the_random_state_alone(short, tmp_path):
    state = torch.get_rng_state()
    for name in ("a", "b"):
        networks.make_networks(tmp_path / name, seed=4)
    networks.make_networks(tmp_path / "c", seed=5)
    a, b, c = (json.loads((tmp_path / name / "networks.json").read_text()) for name in "abc")
    assert a == b
    assert a["files"]["features.pt"] != c["files"]["features.pt"]
    assert torch.equal(state, torch.get_rng_state())


def test_a_set_that_is_up_to_date_is_not_made_again(short, tmp_path):
    told = []
    made = networks.make_networks(tmp_path, on_progress=lambda phase, part: told.append((phase, part)))
    assert [phase for phase, part in told if part == 1] == ["features", "clip", "lpips"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    told.clear()
    assert networks.make_networks(tmp_path, on_progress=lambda phase, part: told.append((phase, part))) == made
    assert not told
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def test_a_damaged_set_is_made_again(short, tmp_path):
    made = networks.make_networks(tmp_path)
    whole = made.lpips.read_bytes()
    made.lpips.write_bytes(whole[:1000])
    networks.make_networks(tmp_path)
    assert made.lpips.read_bytes() == whole


def test_nothing_unfinished_is_left_behind(short, tmp_path):
    networks.make_networks(tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert names == {
        "features.pt", "clip", "clip/open_clip_config.json", "clip/open_clip_model.safetensors", "lpips.pt", "networks.json",
    }


def test_a_missing_weights_file_says_how_to_make_it():
    with pytest.raises(ValueError, match=r"python -m ckptwatch\.demo\.networks"):
        features.ShapesExtractor(networks.NAME, ["64"])


def test_pictures_of_the_wrong_kind_are_an_error(short, tmp_path):
    made = networks.make_networks(tmp_path)
    extractor = features.ShapesExtractor(networks.NAME, ["64"], feature_extractor_weights_path=made.features)
    with pytest.raises(ValueError, match="uint8"):
        extractor(torch.zeros(1, 3, 64, 64))
    assert np.isfinite(extractor(torch.zeros(1, 3, 80, 80, dtype=torch.uint8))[0].numpy()).all()
