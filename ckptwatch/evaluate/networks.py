"""The networks that metrics rest on: feature extractor (torch-fidelity), CLIP (open_clip), LPIPS (lpips).

They stay loaded between jobs. All run in fp32 without TF32: cuDNN's TF32 is on by default and moves features on Ampere
and newer, so every forward pass here is inside `exact()`, whatever a sampler has set for itself.
"""

import hashlib
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import is_out_of_memory, metric_error, recipe_error
from ckptwatch.evaluate.images import DECODERS, encode, size_text
from ckptwatch.evaluate.loading import load_function
from ckptwatch.model import Networks

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
LPIPS_FILES = {
    "alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
LPIPS_SMALLEST = 32  # px; AlexNet's pooling fails at 24 and works at 31
WARM = 2             # networks of one kind kept loaded
TEXT_BATCH = 64

_registered: set[str] = set()  # features_module functions already called in this process


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Full fp32, no gradients, no autocast; afterwards everything as before."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


class FeatureNetwork:
    """A torch-fidelity feature extractor: uint8 images to one float32 vector per image and layer.

    Raises EvaluationError (RECIPE) when it cannot be made.
    """

    def __init__(self, networks: Networks, layers: Sequence[str], device: str) -> None:
        self.name = networks.features
        self.layers = tuple(layers)
        self._device = torch.device(device)
        self._network = self._create(networks)
        self._digest: str | None = None

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 (n, 3, H, W) to {layer: float32 (n, d)} on the CPU. Raises EvaluationError (METRIC, RECIPE)."""
        with exact(self._device):
            outputs = self._network(images.to(self._device))
            found = {k: v.float().cpu() for k, v in self._network.convert_features_tuple_to_dict(outputs).items()}
        for layer, features in found.items():
            if features.ndim != 2:
                raise recipe_error(
                    "use feature layer", f"it gives shape {tuple(features.shape)}, wanted (n, d)",
                    path=f"{self.name}/{layer}", hint="name a layer with one vector per image", retryable=False,
                )
            if not bool(torch.isfinite(features).all()):
                raise metric_error("extract features", "they are not finite", path=f"{self.name}/{layer}", retryable=False)
        return found

    def dimension(self, layer: str) -> int | None:
        """The d of a layer, found with a black image; None where the network does not take 64 px."""
        try:
            return self.extract(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[layer].shape[1]
        except (RuntimeError, ValueError, AssertionError, EvaluationError):
            return None

    @property
    def digest(self) -> str:
        """What the features depend on besides the images: class and weights (hex)."""
        if self._digest is None:
            value = hashlib.sha256(f"{type(self._network).__module__}.{type(self._network).__qualname__}".encode())
            for name, tensor in self._network.state_dict().items():
                value.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
                value.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
            self._digest = value.hexdigest()
        return self._digest

    def _create(self, networks: Networks) -> Any:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
        from torch_fidelity.utils import create_feature_extractor

        _register(networks.features_module)
        if self.name not in FEATURE_EXTRACTORS_REGISTRY:
            raise recipe_error(
                "load feature extractor", f"not known to torch-fidelity; known: {', '.join(FEATURE_EXTRACTORS_REGISTRY)}",
                path=self.name, hint="set networks.features.extractor, or register yours with networks.features.module",
                retryable=False,
            )
        provided = FEATURE_EXTRACTORS_REGISTRY[self.name].get_provided_features_list()
        unknown = [layer for layer in self.layers if layer not in provided]
        if unknown:
            raise recipe_error(
                "load feature extractor", f"it has no layer {unknown[0]!r}; it has: {', '.join(provided)}", path=self.name,
                hint="set networks.features.layer (FID, KID) and networks.features.logits (Inception Score)",
                retryable=False,
            )
        _must_exist(networks.features_weights, "load feature extractor", "networks.features.weights")
        weights = str(networks.features_weights) if networks.features_weights else None
        options = {"feature_extractor_weights_path": weights} if weights else {}

        def create() -> Any:
            return create_feature_extractor(self.name, list(self.layers), cuda=False, verbose=False, **options)

        where = torch_home() / (INCEPTION_FILE if self.name == "inception-v3-compat" else "")
        return _loaded(
            create, f"feature extractor {self.name}", weights or where,
            f"where there is no network, copy the weights to {where}, or set networks.features.weights to their file",
        ).to(self._device)


class ClipNetwork:
    """An open_clip model: cosine between images and prompts. Raises EvaluationError (RECIPE) when it cannot be made."""

    def __init__(self, networks: Networks, device: str) -> None:
        import open_clip

        self.name = networks.clip
        self._device = torch.device(device)
        local = networks.clip.startswith("local-dir:")
        pretrained = None if local or networks.clip.startswith("hf-hub:") else networks.clip_pretrained
        if pretrained and os.sep in pretrained:
            _must_exist(Path(pretrained), "load CLIP", "networks.clip.pretrained")
        cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME") or "~/.cache/huggingface"

        def create() -> Any:
            # Unlike create_model_and_transforms this refuses to go on with random weights.
            made = open_clip.create_model_from_pretrained(networks.clip, pretrained, precision="fp32", device=device)
            return (*made, open_clip.get_tokenizer(networks.clip))

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._model, self._preprocess, self._tokenizer = _loaded(
                create, f"CLIP {networks.clip} ({pretrained or 'its own weights'})",
                networks.clip.removeprefix("local-dir:") if local else pretrained if _is_file(pretrained) else cache,
                "where there is no network, set networks.clip.pretrained to a weights file, or networks.clip.model to "
                "local-dir:PATH with open_clip_config.json and weights; HF_HUB_OFFLINE=1 spares the attempts to connect",
            )
        self.warnings = [str(w.message) for w in caught if "QuickGELU" in str(w.message)]
        self._model.eval()  # open_clip gives it in training mode
        self._texts: tuple[tuple[str, ...], Tensor] | None = None

    def embed_texts(self, prompts: tuple[str, ...]) -> Tensor:
        """float32 (len(prompts), d), unit length, on the CPU; computed once for one set of prompts."""
        if self._texts is None or self._texts[0] != prompts:
            unique = list(dict.fromkeys(prompts))
            parts = []
            with exact(self._device):
                for i in range(0, len(unique), TEXT_BATCH):
                    tokens = self._tokenizer(unique[i:i + TEXT_BATCH]).to(self._device)
                    parts.append(self._model.encode_text(tokens, normalize=True).float().cpu())
            place = {prompt: i for i, prompt in enumerate(unique)}
            self._texts = prompts, torch.cat(parts)[[place[p] for p in prompts]]
        return self._texts[1]

    def embed_images(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, H, W) to float32 (n, d), unit length, on the CPU. Resizing is open_clip's own, through Pillow."""
        with ThreadPoolExecutor(DECODERS) as pool:
            prepared = list(pool.map(lambda image: self._preprocess(encode(image)), images))
        with exact(self._device):
            return self._model.encode_image(torch.stack(prepared).to(self._device), normalize=True).float().cpu()

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        """The prompts of which the model sees only a beginning; its tokenizer cuts them without a word."""
        longest = self._tokenizer.context_length
        inner = getattr(self._tokenizer, "tokenizer", None)  # tokenizers of transformers add their own special tokens
        if inner is not None:
            return [p for p in dict.fromkeys(prompts) if len(inner(p).input_ids) > longest]
        return [p for p in dict.fromkeys(prompts) if len(self._tokenizer.encode(p)) + 2 > longest]


class LpipsNetwork:
    """LPIPS v0.1. Raises EvaluationError (RECIPE) when it cannot be made."""

    def __init__(self, networks: Networks, device: str) -> None:
        self.name = networks.lpips
        self._device = torch.device(device)
        if networks.lpips not in LPIPS_FILES:
            raise recipe_error(
                "load LPIPS", f"no such trunk; there are {', '.join(LPIPS_FILES)}", path=networks.lpips,
                hint="set networks.lpips", retryable=False,
            )
        _must_exist(networks.lpips_weights, "load LPIPS", "networks.lpips.weights")
        where = torch_home() / LPIPS_FILES[networks.lpips]
        self._network = _loaded(
            lambda: _make_lpips(networks), f"LPIPS {networks.lpips}", networks.lpips_weights or where,
            f"where there is no network, copy the trunk's weights to {where}, or set networks.lpips.weights to a state "
            "dict of trunk and heads",
        ).to(self._device)

    def distances(self, images: Tensor, originals: Tensor) -> Tensor:
        """uint8 (n, 3, H, W) twice to float64 (n,), 0 and up. Raises EvaluationError (RECIPE) below 32 px."""
        if min(images.shape[-2:]) < LPIPS_SMALLEST:
            raise recipe_error(
                "compute LPIPS", f"images are {size_text(images.shape)} px, it needs at least {LPIPS_SMALLEST} px a side",
                path=self.name, hint="take lpips out of the recipe's metrics", retryable=False,
            )
        with exact(self._device):
            # The one place where [0, 255] becomes [−1, 1].
            pair = [x.to(self._device).float() / 127.5 - 1 for x in (images, originals)]
            return self._network(*pair).flatten().double().cpu()


class NetworkStore:
    """The networks a worker keeps loaded: at most `WARM` of each kind, the least recently used goes first."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._kept: dict[str, OrderedDict[Any, Any]] = {}

    def features(self, networks: Networks, layers: Sequence[str]) -> FeatureNetwork:
        key = (networks.features, networks.features_weights, networks.features_module, tuple(layers))
        return self._get("features", key, lambda: FeatureNetwork(networks, layers, self._device))

    def clip(self, networks: Networks) -> ClipNetwork:
        key = (networks.clip, networks.clip_pretrained)
        return self._get("clip", key, lambda: ClipNetwork(networks, self._device))

    def lpips(self, networks: Networks) -> LpipsNetwork:
        key = (networks.lpips, networks.lpips_weights)
        return self._get("lpips", key, lambda: LpipsNetwork(networks, self._device))

    def clear(self) -> None:
        self._kept.clear()

    def _get(self, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        kept = self._kept.setdefault(kind, OrderedDict())
        if key not in kept:
            while len(kept) >= WARM:
                kept.popitem(last=False)
            kept[key] = make()
        kept.move_to_end(key)
        return kept[key]


def torch_home() -> Path:
    """Where torch looks for downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _make_lpips(networks: Networks) -> Any:
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips 0.1.4 calls torchvision in a way deprecated since 2022
        if networks.lpips_weights is None:
            return lpips.LPIPS(net=networks.lpips, verbose=False)
        model = lpips.LPIPS(net=networks.lpips, pnet_rand=True, pretrained=False, verbose=False)
    # lpips itself loads with strict=False and would go on with a random trunk.
    state = torch.load(networks.lpips_weights, map_location="cpu", weights_only=True)
    lacking = [k for k in model.load_state_dict(state, strict=False).missing_keys if k.startswith(("net.", "lin"))]
    # `lins.N` are second names of `linN`.
    lacking = [k for k in lacking if not (k.startswith("lins.") and f"lin{k.split('.')[1]}.model.1.weight" in state)]
    if lacking:
        raise ValueError(f"the file lacks {len(lacking)} of its weights (first: {lacking[0]})")
    return model


def _register(function: str) -> None:
    """Calls the function that registers a third-party extractor, once per process."""
    if not function or function in _registered:
        return
    register = load_function(function, "feature extractor module")
    try:
        register()
    except Exception as error:
        raise recipe_error(
            "register feature extractor", f"{type(error).__name__}: {error}", path=function, retryable=False,
            hint="networks.features.module must call torch_fidelity.register_feature_extractor",
        ) from error
    _registered.add(function)


def _loaded(make: Callable[[], Any], what: str, where: Path | str, hint: str) -> Any:
    """What `make` makes; any failure but exhausted memory becomes an EvaluationError that says how to provide weights."""
    try:
        return make()
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, EvaluationError):
            raise
        cause = f"{type(error).__name__}: {str(error).strip()[:400]} (weights looked for in {where})"
        raise recipe_error(f"load {what}", cause, hint=hint) from error


def _must_exist(path: Path | None, operation: str, setting: str) -> None:
    if path is not None and not path.is_file():
        raise recipe_error(operation, "no such file", path=path, hint=f"{setting} must name the weights file")


def _is_file(name: str | None) -> bool:
    return name is not None and Path(name).is_file()
