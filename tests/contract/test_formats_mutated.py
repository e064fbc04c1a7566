"""Ten thousand damaged files: none of them raises, hangs, or breaks what holds for every verdict."""

import io
import json
import pickle
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from ckptwatch.formats.base import claim_at, examine, format_named

EXAMPLES = 10_000
SECONDS = 2  # of processor time, for one file

EDITS = st.lists(
    st.tuples(st.integers(0, 2**16), st.sampled_from(("set", "insert", "remove", "double", "flip", "cut")),
              st.binary(max_size=9)),
    min_size=1, max_size=6,
)


@dataclass(frozen=True)
class Kind:
    """A file that is damaged. `wrap` makes the file of what was damaged: a checksum would else hide it from the reader."""

    name: str  # of the file
    data: Callable[[], bytes]
    wrap: Callable[[bytes], bytes] = bytes

    def __str__(self) -> str:
        return self.name


def _saved(content, new=True):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def _pickle_in(content):
    with zipfile.ZipFile(io.BytesIO(_saved(content))) as archive:
        return archive.read("archive/data.pkl")


def _zip_around(raw):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", raw)
        for n in range(4):
            archive.writestr(f"archive/data/{n}", b"\1" * 64)
    return buffer.getvalue()


def _keras():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, b"{}")
    return buffer.getvalue()


def _hdf5():
    h5py = pytest.importorskip("h5py")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["w"] = [1, 2, 3]
    return buffer.getvalue()


PLAIN = {"model": {"w": torch.arange(4.0), "b": torch.zeros(2)}, "step": 100, "epoch": 2, "loss": torch.tensor(0.5),
         "x": 0.25}
LIGHTNING = {
    "pytorch-lightning_version": "2.6", "epoch": 1, "global_step": 4, "state_dict": {"w": torch.zeros(2)},
    "callbacks": {"Keeper": {"monitor": "loss", "best_k_models": {"/a/lightning.ckpt": torch.tensor(0.5)}}}}
MMENGINE = {
    "meta": {"epoch": 1, "iter": 4, "mmengine_version": "0.10"}, "state_dict": {"w": torch.zeros(2)},
    "message_hub": {"runtime_info": {"best_score": 0.5, "best_ckpt": "/a/best_acc_epoch_1.pth"}}}
OTHERS = {
    "arch": "x", "version": 1, "epoch": 2, "state_dict": {}, "metric": 0.5, "train_args": {}, "ema": None, "model": None,
    "trainer": {"iteration": 5, "epoch_length": 2, "max_epochs": 3}, "train_metrics": {"fitness": 0.5}}

HEADER = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}

# Add kinds here; the examples are divided among them.
KINDS = [
    Kind("zip.pt", lambda: _saved(PLAIN)),
    Kind("pickle_in_zip.pt", lambda: _pickle_in(PLAIN), _zip_around),
    Kind("lightning.ckpt", lambda: _pickle_in(LIGHTNING), _zip_around),
    Kind("best_acc_epoch_1.pth", lambda: _pickle_in(MMENGINE), _zip_around),
    Kind("others.pth.tar", lambda: _pickle_in(OTHERS), _zip_around),
    Kind("older.pt", lambda: _saved(PLAIN, new=False)),
    Kind("network-snapshot-000100.pkl", lambda: pickle.dumps({"G_ema": torch.nn.Linear(2, 2)}, protocol=4)),
    Kind("network-snapshot-000200.pkl", lambda: pickle.dumps({"G": [1.5, "x", (1, 2), {3}, b"y"]}, protocol=0)),
    Kind("model.safetensors", lambda: save({"w": torch.zeros(3)}, metadata={"step": "5", "epoch": "1"})),
    Kind("a.keras", _keras),
    Kind("a.weights.h5", _hdf5),
    Kind("header.safetensors", lambda: json.dumps({"__metadata__": {"step": "5"}, "w": HEADER}).encode(),
         lambda header: len(header).to_bytes(8, "little") + header + b"\0" * 4),
]


def edited(data, edits):
    copy = bytearray(data)
    for place, how, piece in edits:
        at = place % (len(copy) + 1)
        end = min(len(copy), at + len(piece))
        match how:
            case "set":
                copy[at:end] = piece
            case "insert":
                copy[at:at] = piece
            case "remove":
                del copy[at:end]
            case "double":
                copy[at:at] = copy[at:end]
            case "flip":
                copy[at:end] = bytes(b ^ 0x80 for b in copy[at:end])
            case "cut":
                del copy[at:]
    return bytes(copy)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_damage_raises_or_hangs(tmp_path, kind):
    data, path = kind.data(), tmp_path / kind.name
    path.write_bytes(kind.wrap(data))
    claim = claim_at(path)
    format_ = format_named(claim.format)
    assert examine(claim, format_).complete, "the undamaged file"

    @settings(max_examples=EXAMPLES // len(KINDS) + 1, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))
    @given(EDITS)
    def damage(edits):
        path.write_bytes(kind.wrap(edited(data, edits)))
        began = time.process_time()
        facts = examine(claim, format_)
        assert time.process_time() - began < SECONDS
        assert facts.evidence
        assert all(n is None or 0 <= n < 2**63 for n in (facts.step, facts.epoch))
        assert all(isinstance(k, str) and k.isprintable() and isinstance(v, float) for k, v in facts.metrics.items())
        assert all(isinstance(v, str) and v.isprintable() for v in facts.variants)
        assert facts.fingerprint or not facts.complete

    damage()
