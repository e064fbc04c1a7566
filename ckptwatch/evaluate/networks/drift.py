"""Whether a network may compute in less than fp32: only where that moves its features little.

Nobody has published how far bf16 moves FID, and it depends on the network, the weights, the card and the version of torch.
So it is measured: 32 fixed images, in fp32 and in the lower precision.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ckptwatch.evaluate.failures import describe, is_out_of_memory
from ckptwatch.evaluate.networks.parts import free_memory

# Distances between distributions are made of differences between features, so drift δ is told relative to their spread. The
# Fréchet distance of a set to itself in lower precision is at most δ²·tr Σ, what moving each point costs: 0.0004·tr Σ. As a
# rule it is far less, for rounding has no direction.
LARGEST = 0.02
IMAGES = 32
SIDE = 256
LAYOUT = 1  # of the record and of the images; raise it when either changes


@dataclass(frozen=True)
class Chosen:
    """A precision, how it is told, and why the wanted one was not taken."""

    precision: str
    words: str = ""
    warning: str = ""


FP32 = Chosen("fp32", "fp32")

Probe = Callable[[str], Mapping[str, Tensor]]


def choose(
    wanted: str, device: torch.device, *, key: str, name: str, probe: Probe, cache_dir: Path | None,
) -> Chosen:
    """The wanted precision ("fp32", "tf32", "bf16", "fp16") where its drift is at most `LARGEST`, else fp32.

    `probe` gives the network's rows (n, d) by layer for `images()` in a precision; `key` says what the answer depends on
    besides device, precision and torch. The answer is kept in `cache_dir`.
    """
    if wanted == "fp32" or (wanted == "tf32" and device.type == "cpu"):  # a CPU has no TF32
        return FP32
    where = _device_name(device)
    digest = hashlib.sha256("\n".join([str(LAYOUT), key, where, wanted, torch.__version__]).encode()).hexdigest()[:32]
    record = None if cache_dir is None else cache_dir / f"drift-{digest}.json"
    found = _read(record)
    if found is None:
        found = _measure(wanted, probe)
        _write(record, {"drift": found[0], "problem": found[1], "network": name, "device": where, "precision": wanted,
                        "torch": torch.__version__, "layout": LAYOUT})
    drift, problem = found
    if drift is not None and drift <= LARGEST:
        print(f"{name} runs in {wanted}: its output drifts by {_percent(drift)} of its spread", flush=True)
        return Chosen(wanted, wanted)  # the figure differs from device to device, and words are compared
    reason = problem or f"its output drifts by {_percent(drift)} of its spread, {_percent(LARGEST)} are allowed"
    return Chosen("fp32", "fp32", f"{name} runs in fp32, not {wanted}: {reason}")


@cache
def images() -> Tensor:
    """uint8 (32, 3, 256, 256), always the same: shapes, textures and shades such as photographs have."""
    noise = torch.Generator().manual_seed(20)
    found = torch.zeros(IMAGES, 3, SIDE, SIDE)
    for cells, strength in ((2, 0.5), (8, 0.3), (32, 0.15), (128, 0.08)):
        coarse = torch.randn(IMAGES, 3, cells, cells, generator=noise) * strength
        found += torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")
    edge = torch.arange(SIDE)
    for image in found:
        for _ in range(4):  # flat shapes with hard edges
            x, y, radius = torch.randint(SIDE, (3,), generator=noise).tolist()
            inside = (edge[None] - x) ** 2 + (edge[:, None] - y) ** 2 < (radius / 4) ** 2
            image[:, inside] = torch.randn(3, 1, generator=noise) * 0.7
    contrast = torch.linspace(0.3, 1.2, IMAGES)[:, None, None, None]
    return ((found * contrast + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def drift_of(lower: Tensor, full: Tensor) -> float:
    """‖lower − full‖ / ‖full − its mean over rows‖, Frobenius, of (n, d) in float64; inf where `lower` is not finite."""
    lower, full = lower.double(), full.double()
    if not bool(torch.isfinite(lower).all()):
        return math.inf
    moved, spread = float((lower - full).norm()), float((full - full.mean(dim=0)).norm())
    if spread == 0:
        return 0.0 if moved == 0 else math.inf
    return moved / spread


def _measure(wanted: str, probe: Probe) -> tuple[float | None, str]:
    """The largest drift of any layer, or None and why there is none."""
    full = probe("fp32")
    problem = ""
    try:
        lower = probe(wanted)
        return max(drift_of(lower[layer], full[layer]) for layer in full), ""
    except Exception as error:  # a network of the user's may not take it at all
        if is_out_of_memory(error):
            raise
        problem = f"it fails in it ({describe(error)})"
    free_memory()
    return None, problem


def _percent(share: float | None) -> str:
    return "more than can be told" if share is None or not math.isfinite(share) else f"{100 * share:.2g} %"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def _read(record: Path | None) -> tuple[float | None, str] | None:
    """What an earlier check found, or None where there was none or its record is damaged."""
    if record is None:
        return None
    try:
        raw = json.loads(record.read_text())
        drift, problem = raw["drift"], raw["problem"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sound = isinstance(problem, str) and (problem if drift is None else isinstance(drift, float) and drift >= 0)
    return (drift, problem) if sound else None


def _write(record: Path | None, document: Mapping[str, object]) -> None:
    """Atomically; a full disk is no reason to fail, the check is only made again."""
    if record is None:
        return
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=record.parent, prefix=f".{record.name}.")
        with os.fdopen(handle, "w") as out:
            json.dump(document, out)
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).replace(record)
    except OSError as error:
        print(f"drift of {document['network']} not recorded: {error}", flush=True)
        if temporary:
            with suppress(OSError):
                Path(temporary).unlink()
