"""CLIP models of open_clip: embeddings of images and of prompts."""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckptwatch.evaluate.failures import metric_error
from ckptwatch.evaluate.images import encode
from ckptwatch.evaluate.networks import drift
from ckptwatch.evaluate.networks.base import Network
from ckptwatch.evaluate.networks.loading import hub_cache, is_file, loaded, must_exist
from ckptwatch.evaluate.networks.parts import joined
from ckptwatch.evaluate.networks.pool import pool
from ckptwatch.evaluate.networks.provenance import check_activation, is_torchscript, origin, preprocessing
from ckptwatch.model import Networks

LAYER = "embedding"
TEXT_BATCH = 64


@dataclass(frozen=True)
class Resized:
    """Images on their way through Pillow, one future each."""

    images: Sequence[Future[Tensor]]


class ClipNetwork(Network):
    """An open_clip model. `setting` is the section of the configuration that names it.

    Raises EvaluationError (RECIPE) when it cannot be made, or when it is known to compute another activation than its
    weights were trained with.
    """

    layers = (LAYER,)

    def __init__(
        self, networks: Networks, device: str, *, cache_dir: Path | None = None, setting: str = "networks.clip",
    ) -> None:
        super().__init__(networks.clip, device)
        self._setting = setting
        model, transform = self._create(networks)
        self._resize, self._normalise = _split(transform)
        self._model: Any = self._place(model)  # open_clip gives it in training mode
        self._details = _details(model)
        self._texts: tuple[tuple[str, ...], Tensor] | None = None
        self._choose(networks.precision, lambda: self.extract(drift.images()), cache_dir)

    def prepare(self, images: Tensor) -> Resized:
        """uint8 (n, 3, H, W), begun to be resized: by open_clip's own transform, through Pillow, in threads."""
        workers = pool()
        return Resized([workers.submit(self._resize, image) for image in images.cpu()])

    def extract(self, prepared: Resized | Tensor) -> dict[str, Tensor]:
        """Of what `prepare` gave, or of images: {"embedding": float32 (n, d)}, of unit length, on the CPU.

        Raises EvaluationError (METRIC) where it is not finite.
        """
        resized = self.prepare(prepared) if isinstance(prepared, Tensor) else prepared
        images = self._upload(torch.stack([future.result() for future in resized.images]))
        found = joined(self._parts.run(lambda part: self._forward(images[part]), len(images)))
        if not bool(torch.isfinite(found[LAYER]).all()):
            raise metric_error("embed images", "embeddings are not finite", path=self.name, retryable=False)
        return found

    def embed_images(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, H, W) to float32 (n, d), of unit length, on the CPU."""
        return self.extract(images)[LAYER]

    def embed_texts(self, prompts: tuple[str, ...]) -> Tensor:
        """float32 (len(prompts), d), of unit length, on the CPU, in fp32; computed once for one set of prompts."""
        if self._texts is None or self._texts[0] != prompts:
            unique = list(dict.fromkeys(prompts))
            parts = [self._embed(unique[i:i + TEXT_BATCH]) for i in range(0, len(unique), TEXT_BATCH)]
            place = {prompt: i for i, prompt in enumerate(unique)}
            self._texts = prompts, torch.cat(parts)[[place[p] for p in prompts]]
        return self._texts[1]

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        """The prompts of which the model sees only a beginning; its tokenizer cuts them without a word."""
        longest = self._tokenizer.context_length
        inner = getattr(self._tokenizer, "tokenizer", None)  # tokenizers of transformers add their own special tokens
        if inner is not None:
            return [p for p in dict.fromkeys(prompts) if len(inner(p).input_ids) > longest]
        return [p for p in dict.fromkeys(prompts) if len(self._tokenizer.encode(p)) + 2 > longest]

    def dimension(self, layer: str) -> int | None:
        """The d of the embedding, found with a black image."""
        return self.extract(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[layer].shape[1]

    @cached_property
    def _tokenizer(self) -> Any:
        """Made when there are prompts: CMMD has none, and some tokenizers are files of their own."""
        import open_clip

        return loaded(
            lambda: open_clip.get_tokenizer(self.name), f"tokenizer of CLIP {self.name}", hub_cache(),
            f"where there is no network, set {self._setting}.model to local-dir:PATH with the tokenizer's files",
        )

    def _forward(self, images: Tensor) -> dict[str, Tensor]:
        with self._exact():
            normalised = self._normalise(images)
        with self._numbers():
            return {LAYER: self._model.encode_image(normalised, normalize=True).float().cpu()}

    def _embed(self, prompts: list[str]) -> Tensor:
        tokens = self._tokenizer(prompts).to(self._device)

        def forward(part: slice) -> Tensor:
            with self._exact():
                return self._model.encode_text(tokens[part], normalize=True).float().cpu()

        return torch.cat(self._parts.run(forward, len(tokens)))

    def _create(self, networks: Networks) -> tuple[Any, Any]:
        """The model and its transform."""
        import open_clip

        local = networks.clip.startswith("local-dir:")
        pretrained = None if local or networks.clip.startswith("hf-hub:") else networks.clip_pretrained
        if pretrained and os.sep in pretrained:
            must_exist(Path(pretrained), "load CLIP", f"{self._setting}.pretrained")
        options = self._options_of(Path(pretrained)) if pretrained and is_file(pretrained) else {}

        def create() -> Any:
            # Unlike create_model_and_transforms this refuses to go on with random weights.
            return open_clip.create_model_from_pretrained(networks.clip, pretrained, precision="fp32", **options)

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = loaded(
                create, f"CLIP {networks.clip} ({pretrained or 'its own weights'})",
                networks.clip.removeprefix("local-dir:") if local else pretrained if is_file(pretrained) else hub_cache(),
                f"where there is no network, set {self._setting}.pretrained to a weights file, or {self._setting}.model to "
                "local-dir:PATH with open_clip_config.json and weights; HF_HUB_OFFLINE=1 spares the attempts to connect",
            )
        self.warnings += [str(w.message) for w in caught if "QuickGELU" in str(w.message)]
        return made

    def _options_of(self, file: Path) -> dict[str, Any]:
        """What open_clip is to be told about a weights file. Raises EvaluationError (RECIPE) where it does not fit."""
        import open_clip

        model = self.name.replace("/", "-")  # as open_clip reads it
        if open_clip.get_model_config(model) is None or open_clip.get_pretrained_cfg(model, str(file)):
            return {}
        found = origin(file)
        doubts = [check_activation(model, file, found, self._setting)] if found else []
        options, doubt = preprocessing(model, found, self._setting)
        self.warnings += [text for text in (*doubts, doubt) if text]
        # torch opens TorchScript only so; the check before it makes sure that nothing else is opened so.
        return options | ({"weights_only": False} if is_torchscript(file) else {})


def _split(transform: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """open_clip's transform as what is Pillow's, uint8 image to uint8 image, and what the device may do for a batch."""
    from torchvision.transforms import Compose, Normalize, ToTensor

    *steps, to_tensor, normalise = transform.transforms
    if not isinstance(to_tensor, ToTensor) or not isinstance(normalise, Normalize):
        return lambda image: transform(encode(image)), lambda images: images
    geometry = Compose(steps)

    def resize(image: Tensor) -> Tensor:
        return torch.from_numpy(np.array(geometry(encode(image)))).permute(2, 0, 1)

    return resize, lambda images: normalise(images.float() / 255)


def _details(model: Any) -> str:
    """Activation and preprocessing, for people."""
    from open_clip.transformer import QuickGELU

    quick = any(isinstance(module, QuickGELU) for module in model.modules())
    found = model.visual.preprocess_cfg
    height, width = (found["size"],) * 2 if isinstance(found["size"], int) else found["size"]
    side = f"{height}" if height == width else f"{width}×{height}"
    mean, std = (" ".join(f"{x:.4g}" for x in found[key]) for key in ("mean", "std"))
    resized = f"{side} px {found['interpolation']} {found['resize_mode']}"
    return f"{'QuickGELU' if quick else 'GELU'}, {resized}, mean {mean}, std {std}"
