"""CLIP sees images as its weights were trained to see them, or says that it cannot know how."""

import json
import threading

import open_clip
import pytest
import torch
from PIL import Image

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.networks import ClipNetwork
from ckptwatch.evaluate.networks.provenance import check_activation, is_torchscript, origin, preprocessing
from ckptwatch.model import Networks
from tests.parity.test_networks import pictures, same
from tests.parity.tiny_networks import CLIP_MODEL, write_clip

OPENAI, HALF = (0.48145466, 0.4578275, 0.40821073), (0.5, 0.5, 0.5)
STD = (0.26862954, 0.26130258, 0.27577711)


def tag(**changes):
    """One entry of open_clip's registry."""
    return {"url": "", "hf_hub": "", "mean": OPENAI, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest",
            **changes}


@pytest.fixture
def register(monkeypatch):
    """Makes a tiny model known to open_clip, with tags of its own."""
    def known(name: str, tags: dict, **config) -> None:
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, {**CLIP_MODEL, **config})
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tags)

    return known


@pytest.fixture
def weights(tmp_path):
    """A weights file of the tiny model under a name that tells nothing."""
    torch.save(open_clip.CLIP(**CLIP_MODEL).state_dict(), tmp_path / "mine.pt")
    return tmp_path / "mine.pt"


def network(model: str, file) -> ClipNetwork:
    return ClipNetwork(Networks(clip=model, clip_pretrained=str(file)), "cpu")


def problem(model: str, file, setting: str = "networks.clip") -> EvaluationError:
    with pytest.raises(EvaluationError) as caught:
        ClipNetwork(Networks(clip=model, clip_pretrained=str(file)), "cpu", setting=setting)
    return caught.value


def stock(name: str, images: torch.Tensor, **options) -> torch.Tensor:
    model, _, preprocess = open_clip.create_model_and_transforms(name, **options)
    model.eval()
    seen = torch.stack([preprocess(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    with torch.no_grad():
        return model.encode_image(seen, normalize=True)


class Holder(torch.nn.Module):
    """Weights and nothing that computes."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for head in dict.fromkeys(name.partition(".")[0] for name in state):
            below = {name.partition(".")[2]: value for name, value in state.items() if name.partition(".")[0] == head}
            if "" in below:
                self.register_buffer(head, below[""])
            else:
                self.add_module(head, Holder(below))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write_archive(path, state: dict[str, torch.Tensor]) -> None:
    """TorchScript such as OpenAI published: half precision, and three numbers among the weights."""
    numbers = {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.jit.script(Holder({**{name: value.half() for name, value in state.items()}, **numbers})).save(path)


def put(path, content=b"nothing"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# ---- embeddings ----


@pytest.mark.parametrize("changes", [
    {"resize_mode": "squash", "interpolation": "bilinear"}, {"resize_mode": "longest", "fill_color": 90}, {}, {"mean": HALF},
])
@pytest.mark.parametrize("size", [(48, 40), (32, 32), (20, 90)])
def test_embeddings_are_those_of_open_clip(tmp_path, changes, size):
    directory = write_clip(tmp_path / "clip")
    config = json.loads((directory / "open_clip_config.json").read_text())
    config["preprocess_cfg"].update(changes)
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    name, images = f"local-dir:{directory}", pictures(3, *size)
    ours = ClipNetwork(Networks(clip=name), "cpu")
    found = ours.extract(ours.prepare(images))["embedding"]
    assert found.shape == (3, ours.dimension("embedding")) and found.dtype == torch.float32
    assert same(found, stock(name, images)) and same(ours.embed_images(images), found)
    assert torch.allclose(found.norm(dim=1), torch.ones(3))


def test_resizing_goes_on_elsewhere_while_prepare_has_returned(tmp_path):
    ours = ClipNetwork(Networks(clip=f"local-dir:{write_clip(tmp_path / 'clip')}"), "cpu")
    resize, gate, images = ours._resize, threading.Event(), pictures(2)
    ours._resize = lambda image: (gate.wait(30), resize(image))[1]
    prepared = ours.prepare(images)
    assert not any(future.done() for future in prepared.images)
    gate.set()
    assert same(ours.extract(prepared)["embedding"], ours.extract(images)["embedding"])


def test_tokenizer_is_wanted_for_prompts_only(tmp_path):
    directory = write_clip(tmp_path / "clip")
    config = json.loads((directory / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "somebody/tokenizer"
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    ours = ClipNetwork(Networks(clip=f"local-dir:{directory}"), "cpu")  # enough for CMMD
    assert ours.embed_images(pictures(1)).shape == (1, 16)
    with pytest.raises(EvaluationError, match="tokenizer of CLIP") as caught:
        ours.embed_texts(("a car",))
    assert caught.value.kind == "recipe" and "local-dir:" in caught.value.hint


def test_identity_tells_activation_and_preprocessing_and_the_digest_covers_them(register, weights):
    register("tiny", {"a": tag(mean=HALF, resize_mode="squash")})
    register("tiny-other", {"a": tag()})
    register("tiny-quickgelu", {"a": tag()}, quick_gelu=True)
    first, second, third = (network(name, weights) for name in ("tiny", "tiny-other", "tiny-quickgelu"))
    assert "fp32, GELU, 32 px bicubic squash, mean 0.5 0.5 0.5, std 0.2686 0.2613 0.2758" in first.identity
    assert "QuickGELU" not in second.identity and ", QuickGELU, 32 px bicubic shortest, mean 0.4815" in third.identity
    assert first._weights == second._weights == third._weights and len({n.digest for n in (first, second, third)}) == 3


# ---- the activation ----


@pytest.mark.parametrize(("model", "place", "words"), [
    ("ViT-B-32", "b32_400m.pt", ["ViT-B-32-quickgelu metaclip_400m", "trained with QuickGELU"]),
    ("ViT-B-32", "models--timm--vit_base_patch32_clip_224.openai/snapshots/abc/open_clip_model.safetensors",
     ["ViT-B-32-quickgelu openai", "trained with QuickGELU"]),
    ("ViT-B-32", "vit_b_32-quickgelu-laion400m_e31-d867053b.pt", ["laion400m_e31", "trained with QuickGELU"]),
    ("ViT-L-14", "DFN2B-CLIP-ViT-L-14/open_clip_pytorch_model.bin", ["dfn2b", "trained with QuickGELU"]),
    ("ViT-B-32-quickgelu", "CLIP-ViT-B-32-laion2B-s34B-b79K/open_clip_pytorch_model.bin",
     ["ViT-B-32 laion2b_s34b_b79k", "trained with GELU"]),
    ("ViT-B-32-quickgelu", "vit_b_32-laion2b_e16-af8dbd0c.pth", ["laion2b_e16", "trained with GELU"]),
    ("ViT-B-16", "ViT-B-16-openai.bin", ["ViT-B-16-quickgelu openai", "trained with QuickGELU"]),
])
def test_known_weights_in_a_model_of_the_other_activation_are_an_error(tmp_path, model, place, words):
    error = problem(model, put(tmp_path / place))
    other = model.removesuffix("-quickgelu") if model.endswith("-quickgelu") else f"{model}-quickgelu"
    assert error.kind == "recipe" and not error.retryable and error.hint == f"set networks.clip.model to {other}"
    for word in [*words, f"{model} computes"]:
        assert word in str(error)


def test_error_names_the_setting_of_the_network_that_was_asked_for(tmp_path):
    assert "networks.cmmd.model" in problem("ViT-B-32", put(tmp_path / "b32_400m.pt"), "networks.cmmd").hint


@pytest.mark.parametrize("place", ["vit_base_patch32_clip_224.openai.safetensors", "b32_fullcc2.5b.pt"])
def test_known_weights_in_their_own_model_are_none(tmp_path, place):
    found = origin(put(tmp_path / place))
    assert found is not None and found.quick_gelu
    assert check_activation("ViT-B-32-quickgelu", tmp_path / place, found, "networks.clip") == ""


def test_weights_are_known_by_their_content_whatever_they_are_called(register, weights):
    import hashlib

    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    address = f"https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/tiny-somewhere-{digest[:8]}.pt"
    register("tiny", {"somewhere": tag(url=address, quick_gelu=True)})
    register("tiny-quickgelu", {"somewhere": tag(url=address, quick_gelu=True)}, quick_gelu=True)
    error = problem("tiny", weights)
    assert "tiny-quickgelu somewhere" in str(error) and error.hint == "set networks.clip.model to tiny-quickgelu"
    assert network("tiny-quickgelu", weights).embed_images(pictures(1)).shape == (1, 16)


@pytest.mark.parametrize("name", ["ViT-B-32.pt", "RN50.pt", "open_clip_pytorch_model.bin", "finetuned_openai.pt"])
def test_names_that_tell_no_more_than_a_model_prove_nothing(tmp_path, name):
    assert origin(put(tmp_path / name)) is None


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch would rather have torch.export
def test_torchscript_archive_is_one_of_openai_and_a_quickgelu_model(tmp_path):
    write_archive(tmp_path / "whatever.pt", {"proj": torch.zeros(2)})
    assert is_torchscript(tmp_path / "whatever.pt")
    error = problem("ViT-B-32", tmp_path / "whatever.pt")
    assert "openai" in str(error) and error.hint == "set networks.clip.model to ViT-B-32-quickgelu"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch would rather have torch.export
def test_torchscript_archive_is_loaded_into_its_model(register, tmp_path, weights):
    assert not is_torchscript(weights)
    register("tiny-quickgelu", {"openai": tag(quick_gelu=True)}, quick_gelu=True)
    state = torch.load(weights)
    write_archive(tmp_path / "archive.pt", state)
    torch.save({name: value.half() for name, value in state.items()}, tmp_path / "plain.pt")
    images = pictures(2)
    expected = stock("tiny-quickgelu", images, pretrained=str(tmp_path / "plain.pt"))
    assert same(network("tiny-quickgelu", tmp_path / "archive.pt").embed_images(images), expected)


def test_tag_in_a_model_of_the_other_activation_is_a_warning_as_open_clip_has_it(register, weights):
    register("tiny", {"mine": tag(file=str(weights), quick_gelu=True)})
    (warning,) = network("tiny", "mine").warnings
    assert "QuickGELU mismatch" in warning
    register("tiny", {"mine": tag(file=str(weights))})
    assert network("tiny", "mine").warnings == []


def test_model_without_a_counterpart_is_a_warning_not_an_error(tmp_path):
    file = put(tmp_path / "CLIP-ViT-B-32-roberta-base-laion2B-s12B-b32k" / "open_clip_pytorch_model.bin")
    warning = check_activation("roberta-ViT-B-32", file, origin(file), "networks.clip")
    assert "trained with GELU, and roberta-ViT-B-32 computes QuickGELU" in warning


# ---- preprocessing ----


@pytest.mark.parametrize(("model", "mean", "mode"), [
    ("ViT-B-16-SigLIP", HALF, "squash"), ("ViT-B-16-SigLIP2", HALF, "squash"), ("ViT-B-32-quickgelu", OPENAI, "shortest"),
    ("MobileCLIP-B", (0.0, 0.0, 0.0), "shortest"), ("ViT-H-14", OPENAI, "shortest"),
])
def test_file_is_preprocessed_as_all_tags_of_the_model_say(model, mean, mode):
    options, warning = preprocessing(model, None, "networks.clip")
    assert (options["image_mean"], options["image_resize_mode"], warning) == (mean, mode, "")


@pytest.mark.parametrize(("model", "keys"), [("ViT-L-14", "mean, std"), ("ViT-H-14-quickgelu", "resize_mode")])
def test_tags_that_disagree_are_a_warning_that_names_what_differs(model, keys):
    options, warning = preprocessing(model, None, "networks.cmmd")
    assert options == {} and f"differ in {keys} of" in warning and "networks.cmmd.model to local-dir:" in warning


def test_file_with_a_known_tag_is_preprocessed_as_that_one(tmp_path):
    found = origin(put(tmp_path / "CLIP-ViT-L-14-laion2B-s32B-b82K" / "open_clip_pytorch_model.bin"))
    options, warning = preprocessing("ViT-L-14", found, "networks.clip")
    assert options["image_mean"] == HALF and warning == ""


def test_embeddings_of_a_file_use_the_preprocessing_of_the_model(register, weights):
    changes = {"mean": HALF, "std": HALF, "resize_mode": "squash"}
    register("tiny", {"a": tag(**changes), "b": tag(**changes)})
    images = pictures(2, 60, 40)
    wanted = stock("tiny", images, pretrained=str(weights), image_mean=HALF, image_std=HALF, image_resize_mode="squash")
    ours = network("tiny", weights)
    assert same(ours.embed_images(images), wanted) and ours.warnings == []
    assert not same(stock("tiny", images, pretrained=str(weights)), wanted, 1e-3)  # what open_clip would have done


def test_embeddings_of_a_file_that_could_be_either_use_the_default_with_a_warning(register, weights):
    register("tiny", {"a": tag(), "b": tag(interpolation="bilinear")})
    images = pictures(2, 60, 40)
    ours = network("tiny", weights)
    assert same(ours.embed_images(images), stock("tiny", images, pretrained=str(weights)))
    (warning,) = ours.warnings
    assert "interpolation" in warning and "local-dir:" in warning
