"""In which numbers a network computes. Torch lowers fp32 behind one's back in six places; here none of them may."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

_LEGACY: tuple[tuple[Any, str], ...] = (
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cudnn, "allow_tf32"),
)


def _operators() -> tuple[Any, ...]:
    backends = torch.backends
    return (
        backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn,
        backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn,
    )


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Full fp32, no gradients, no autocast; afterwards everything as before.

    cuDNN's TF32 is on by default and moves features on Ampere and newer; `set_float32_matmul_precision("medium")` of a
    sampler makes even a CPU multiply in bfloat16.
    """
    with _precision("ieee"), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def lowered(device: torch.device, precision: str) -> Iterator[None]:
    """Like `exact`, in "tf32", "bf16" or "fp16". The weights stay fp32, and with them sums, norms and softmax."""
    if precision == "tf32":
        with _precision("tf32"), torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    elif precision in AUTOCAST:
        with exact(device), torch.autocast(device.type, dtype=AUTOCAST[precision]):
            yield
    else:
        with exact(device):
            yield


@contextmanager
def _precision(value: str) -> Iterator[None]:
    operators = _operators()
    before = [operator.fp32_precision for operator in operators]
    legacy, overall = _legacy(), _overall()
    # The old switches come first: where they disagree with the new ones, torch refuses to read them.
    _set_legacy([value == "tf32"] * len(_LEGACY), "high" if value == "tf32" else "highest")
    for operator in operators:
        operator.fp32_precision = value
    try:
        yield
    finally:
        _set_legacy(legacy, overall)
        for operator, old in zip(operators, before, strict=True):
            operator.fp32_precision = old


def _legacy() -> list[bool | None]:
    """The old switches; None for what cannot be read because somebody set a new one."""
    found: list[bool | None] = []
    for owner, name in _LEGACY:
        try:
            found.append(getattr(owner, name))
        except RuntimeError:
            found.append(None)
    return found


def _overall() -> str | None:
    with suppress(RuntimeError):
        return torch.get_float32_matmul_precision()
    return None


def _set_legacy(values: list[bool | None] | list[bool], overall: str | None) -> None:
    for (owner, name), value in zip(_LEGACY, values, strict=True):
        if value is not None:
            setattr(owner, name, value)
    if overall is not None:
        torch.set_float32_matmul_precision(overall)
