"""Which devices get a worker, decided without importing torch."""

import os
from pathlib import Path


def resolve(devices: tuple[str, ...]) -> tuple[str, ...]:
    """("auto",) → every CUDA device this process may use, else ("cpu",); anything else as it is."""
    if devices != ("auto",):
        return devices
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = len([d for d in visible.split(",") if d.strip() and d.strip() != "-1"])
    else:
        count = sum(1 for p in Path("/dev").glob("nvidia*") if p.name.removeprefix("nvidia").isdigit())
    return tuple(f"cuda:{i}" for i in range(count)) or ("cpu",)
