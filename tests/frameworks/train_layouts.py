"""Layouts of trainers that cannot run here, side by side, a step of each in turn."""

import pickle
from pathlib import Path

from rehearsal import Rehearsal, rehearse  # isort: skip  (sets the environment before the libraries are imported)

import torch
import torch.distributed.checkpoint as dcp
from layouts import LAYOUTS, STEPS
from safetensors.torch import load_file
from writer import Writer


def train(rehearsal: Rehearsal):
    running = [layout(Writer(rehearsal, layout.__name__)) for layout in LAYOUTS]
    for step in STEPS:
        halted = {layout: path for layout in running if (path := next(layout)) is not None}
        if halted:
            rehearsal.hold(halted.values())
        assert all(next(layout) is None for layout in halted), f"more than one halt at step {step}"
        rehearsal.pause()
    assert all(next(layout, "over") == "over" for layout in running)
    return {"steps": STEPS}


def load(path: Path):
    """All tensors in the files of a checkpoint, and of those that belong to it."""
    arrays = {}
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.suffix in (".pt", ".pth", ".ckpt") and file.is_file():
            _collect(torch.load(file, weights_only=True), str(file.relative_to(path.parent)), arrays)
        elif file.suffix == ".pkl":
            _collect(pickle.loads(file.read_bytes()), file.name, arrays)
        elif file.suffix == ".safetensors":
            _collect(load_file(file), file.name, arrays)
        elif file.name == ".metadata":
            described = dcp.FileSystemReader(file.parent).read_metadata().state_dict_metadata
            state = {k: torch.empty(v.size) for k, v in described.items()}
            dcp.load(state, checkpoint_id=file.parent, no_dist=True)
            _collect(state, str(file.parent.relative_to(path.parent)), arrays)
    assert arrays, f"nothing in {path}"
    return arrays


def _collect(value, name, arrays):
    if isinstance(value, dict):
        for key, inner in value.items():
            _collect(inner, f"{name}.{key}", arrays)
    elif hasattr(value, "shape"):
        arrays[name] = value


if __name__ == "__main__":
    rehearse(train, load)
