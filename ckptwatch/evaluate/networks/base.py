"""What all networks have in common: a device, a precision, weights with a digest, words about themselves."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ckptwatch.evaluate.networks.drift import FP32, Chosen, choose
from ckptwatch.evaluate.networks.exactness import exact, lowered
from ckptwatch.evaluate.networks.parts import Parts
from ckptwatch.evaluate.networks.transfer import resolved, upload

SHORT = 8  # hex digits of a weights digest where people read it


class Network:
    """A loaded network. Its module's parameters are on the device, in evaluation mode, without gradients.

    `identity` are the words for a score's definition, `digest` (hex) covers all that its output depends on besides the
    images: class, weights, preprocessing, precision. `warnings` are for the evaluation's result.
    """

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        self.warnings: list[str] = []
        self._device = resolved(device)
        self._parts: Parts[Any] = Parts()
        self._chosen: Chosen = FP32
        self._details = ""
        self._weights = ""

    @property
    def identity(self) -> str:
        details = f", {self._details}" if self._details else ""
        return f"{self.name}, weights {self._weights[:SHORT]}, {self._chosen.words}{details}"

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join([self._weights, self._details, self._chosen.precision]).encode()).hexdigest()

    def _place(self, module: nn.Module) -> nn.Module:
        """The module on the device; its weights are hashed before anything could change them."""
        module.eval().requires_grad_(False)
        self._weights = weights_digest(module)
        return module.to(self._device)

    def _choose(self, precision: str, probe: Callable[[], Mapping[str, Tensor]], cache_dir: Path | None) -> None:
        """Settles the precision: the wanted one where features drift little enough, else fp32 with a warning."""
        def measured(wanted: str) -> Mapping[str, Tensor]:
            self._chosen = Chosen(wanted)
            try:
                return probe()
            finally:
                self._chosen = FP32

        self._chosen = choose(
            precision, self._device, key=f"{self._weights}\n{self._details}", name=self.name, probe=measured,
            cache_dir=cache_dir,
        )
        if self._chosen.warning:
            self.warnings.append(self._chosen.warning)

    @contextmanager
    def _exact(self) -> Iterator[None]:
        with exact(self._device):
            yield

    @contextmanager
    def _numbers(self) -> Iterator[None]:
        """The precision that was chosen."""
        with lowered(self._device, self._chosen.precision):
            yield

    def _upload(self, images: Tensor) -> Tensor:
        return upload(images, self._device)


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over class and state dict (hex); 1 to 2 GB a second."""
    value = hashlib.sha256(f"{type(module).__module__}.{type(module).__qualname__}".encode())
    for name, tensor in module.state_dict().items():
        value.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        value.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return value.hexdigest()
