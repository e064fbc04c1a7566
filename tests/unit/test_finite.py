"""Looking for NaN and infinity in all weights: real files of torch, safetensors and torch.distributed.checkpoint."""

import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ckptwatch.formats import bulk
from ckptwatch.formats.base import Claim, claim_at
from ckptwatch.scan import finite
from ckptwatch.scan.finite import scan_path, scan_weights
from tests.support import zip_bytes

NAN, INF = float("nan"), float("inf")


def saved(path, content):
    torch.save(content, path)
    return scan_path(path)


# ---- what is found --------------------------------------------------------------------------------------------------


def test_healthy_weights_are_finite_and_every_number_is_looked_at(tmp_path):
    scan = saved(tmp_path / "a.pt", {"model": {"w": torch.randn(64, 3), "b": torch.zeros(7).half(), "n": torch.arange(9)}})
    assert (scan.state, scan.tensors, scan.bytes, scan.bad) == ("finite", 2, 64 * 3 * 4 + 7 * 2, {})


def test_the_bad_tensors_are_named_with_how_many_of_their_numbers_are_bad(tmp_path):
    w = torch.randn(10, 10)
    w[3] = NAN
    w[5, 5] = -INF
    scan = saved(tmp_path / "a.pt", {"model": {"enc": {"w": w}, "ok": torch.ones(3)}, "epoch": 3})
    assert scan.state == "not_finite"
    assert scan.bad == {"model.enc.w": 11}
    assert scan.bad_tensors == 1


TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn,
         torch.float8_e5m2fnuz, torch.float8_e4m3fnuz]


@pytest.mark.parametrize("dtype", TYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_every_floating_point_type_is_understood(tmp_path, dtype):
    # Every number there is of the narrow types, many of the wide ones.
    size = torch.empty(0, dtype=dtype).element_size()
    bits = torch.arange(256, dtype=torch.uint8) if size == 1 else \
        torch.randint(0, 256, (1 << 16, size), dtype=torch.uint8).flatten()
    numbers = bits.view(dtype)
    wide = numbers.to(torch.float32 if size < 4 else dtype)
    bad = int((~torch.isfinite(wide)).sum())
    assert bad > 0
    assert saved(tmp_path / "a.pt", {"w": numbers}).bad == {"w": bad}
    assert saved(tmp_path / "b.pt", {"w": numbers[torch.isfinite(wide)].clone()}).state == "finite"


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.complex32])
def test_both_parts_of_complex_numbers_are_looked_at(tmp_path, dtype):
    w = torch.zeros(4, 2).copy_(torch.tensor([[1.0, 0.0], [0.0, NAN], [INF, 0.0], [2.0, 2.0]]))
    assert saved(tmp_path / "a.pt", {"w": torch.view_as_complex(w).to(dtype)}).bad == {"w": 2}


def test_the_greatest_numbers_are_still_finite(tmp_path):
    content = {str(d): torch.full((4,), torch.finfo(d).max, dtype=d) for d in TYPES}
    content |= {f"-{d}": torch.full((4,), torch.finfo(d).min, dtype=d) for d in TYPES}
    assert saved(tmp_path / "a.pt", content).state == "finite"


def test_an_attention_mask_of_zero_and_minus_infinity_is_finite(tmp_path):
    mask = torch.full((300, 300), -INF).triu(1)
    assert saved(tmp_path / "a.pt", {"mask": mask, "w": torch.ones(2)}).state == "finite"
    assert saved(tmp_path / "b.pt", {"mask": mask.abs()}).bad == {"mask": 300 * 299 // 2}  # +∞ is no mask
    mask[2, 2] = 1.0
    assert saved(tmp_path / "c.pt", {"mask": mask}).state == "not_finite"


def test_a_mask_larger_than_one_read_is_judged_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "CHUNK", 4096)
    mask = torch.full((100, 100), -INF).triu(1)
    assert saved(tmp_path / "a.pt", {"mask": mask}).state == "finite"
    mask[99, 0] = 0.5  # in the last read
    assert saved(tmp_path / "b.pt", {"mask": mask}).bad == {"mask": 4950}


def test_the_state_of_the_optimizer_counts_too_and_is_named(tmp_path):
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.state[layer.weight]["exp_avg_sq"].fill_(INF)
    scan = saved(tmp_path / "a.pt", {"model": layer.state_dict(), "optimizer": optimizer.state_dict()})
    assert scan.bad == {"optimizer.state.0.exp_avg_sq": 6}


def test_what_callbacks_and_trainers_note_down_is_no_weight(tmp_path):
    # Lightning's EarlyStopping and everybody's best loss are infinite until there is one.
    content = {"state_dict": {"w": torch.ones(2)}, "callbacks": {"EarlyStopping": {"best_score": torch.tensor(INF)}},
               "best_loss": torch.tensor(INF)}
    assert saved(tmp_path / "a.ckpt", content).state == "finite"
    assert saved(tmp_path / "b.pt", {"w": torch.ones(2), "logit_scale": torch.tensor(NAN)}).bad == {"logit_scale": 1}


def test_a_layer_that_is_called_like_a_callback_is_still_a_weight(tmp_path):
    bad = torch.tensor([NAN])
    assert saved(tmp_path / "a.pt", {"metaformer.w": bad, "model.args.w": bad.clone()}).bad_tensors == 2


def test_whole_modules_are_looked_into_without_being_built(tmp_path):
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module[1].running_var.fill_(NAN)
    assert saved(tmp_path / "a.pt", {"model": module}).bad == {"model.1.running_var": 2}


def test_sparse_tensors_and_those_of_other_classes_are_looked_at_by_their_storage(tmp_path):
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, 2]]), torch.tensor([1.0, NAN]), (4,))
    scan = saved(tmp_path / "a.pt", {"s": sparse})
    assert scan.state == "not_finite"
    assert sum(scan.bad.values()) == 1


# ---- tensors that share bytes ---------------------------------------------------------------------------------------


def test_tied_weights_are_counted_once(tmp_path):
    w = torch.full((5,), NAN)
    scan = saved(tmp_path / "a.pt", {"embed": w, "head": w})
    assert (scan.tensors, scan.bytes, scan.bad_tensors) == (1, 20, 1)
    assert sum(scan.bad.values()) == 5


def test_of_views_of_one_buffer_the_bad_one_is_named(tmp_path):
    flat = torch.ones(1000)
    flat[250] = NAN
    content = {"a": flat[:100], "b": flat[100:400].view(30, 10), "c": flat[400:]}
    assert saved(tmp_path / "a.pt", content).bad == {"b": 1}
    assert saved(tmp_path / "b.pt", {"flat": flat, **content}).bad == {"b": 1}


def test_what_lies_in_a_buffer_between_tensors_is_nobodys(tmp_path):
    # torch saves the whole storage of a view; memory that was never written may hold anything.
    buffer = torch.full((100, 10), NAN)
    buffer[:, :3] = 1.0
    assert saved(tmp_path / "a.pt", {"w": buffer[:, :3], "v": buffer[:50, 2:3]}).state == "finite"
    assert saved(tmp_path / "b.pt", {"w": buffer.view(-1)[:3]}).state == "finite"
    buffer[7, 1] = INF
    assert saved(tmp_path / "c.pt", {"w": buffer[:, :3]}).bad == {"w": 1}
    assert saved(tmp_path / "d.pt", {"w": buffer[:, :3].t(), "x": buffer[::2, 1:3]}).bad == {"w": 1}


def test_transposed_and_expanded_tensors_are_looked_at(tmp_path):
    w = torch.ones(4, 6)
    w[1, 2] = NAN
    assert saved(tmp_path / "a.pt", {"w": w.t(), "e": torch.tensor([[INF]]).expand(3, 3)}).bad == {"w": 1, "e": 1}


# ---- kinds of checkpoints -------------------------------------------------------------------------------------------


def test_safetensors_files(tmp_path):
    path = tmp_path / "model.safetensors"
    content = {"a": torch.randn(50, 50), "b": torch.tensor([1.0, NAN]).bfloat16(), "n": torch.arange(3),
               "f": torch.tensor([NAN, 1.0]).to(torch.float8_e4m3fn)}
    save_file(content, path)
    scan = scan_path(path)
    assert (scan.state, scan.bad, scan.tensors) == ("not_finite", {"b": 1, "f": 1}, 3)


def test_shards_and_their_optimizer_in_one_directory(tmp_path):
    top = tmp_path / "checkpoint-10"
    top.mkdir()
    save_file({"a": torch.ones(3)}, top / "model-00001-of-00002.safetensors")
    save_file({"b": torch.tensor([NAN])}, top / "model-00002-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (top / "model.safetensors.index.json").write_text(json.dumps(index))
    (top / "trainer_state.json").write_text("{}")
    torch.save({"state": {0: {"exp_avg": torch.tensor([INF])}}}, top / "optimizer.pt")
    scan = scan_weights(claim_at(top))
    assert scan.bad == {"model-00002-of-00002.safetensors: b": 1, "optimizer.pt: state.0.exp_avg": 1}


def test_a_set_of_files_is_scanned_and_its_neighbours_are_not(tmp_path):
    for name, value in (("a.pt", 1.0), ("b.pt", NAN), ("c.pt", NAN)):
        torch.save({"w": torch.tensor([value])}, tmp_path / name)
    scan = scan_path(tmp_path / "a.pt", ("a.pt", "b.pt"), "file-set")
    assert scan.bad == {"b.pt: w": 1}


def test_distributed_checkpoints(tmp_path):
    import torch.distributed.checkpoint as dcp

    good = {"model": {"w": torch.randn(8, 8), "b": torch.ones(3).bfloat16()}, "step": 3}
    dcp.save(good, checkpoint_id=tmp_path / "step-1", no_dist=True)
    good["model"]["w"][2, 2] = NAN
    dcp.save(good, checkpoint_id=tmp_path / "step-2", no_dist=True)
    first, second = (scan_path(tmp_path / f"step-{n}") for n in (1, 2))
    assert (first.state, first.tensors) == ("finite", 2)
    assert second.bad == {"model.w": 1}


@pytest.mark.parametrize("name", ["old.pt", "model.h5", "net.pkl", "w.npz"])
def test_what_is_not_looked_into_is_said_in_words(tmp_path, name):
    path = tmp_path / name
    if name == "old.pt":
        torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    elif name == "w.npz":
        np.savez(path, w=np.ones(2))
    else:
        path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100) if name == "model.h5" else pickle.dumps({"w": [1.0]}))
    scan = scan_path(path)
    assert scan.state == "unsupported"
    assert scan.words


def test_a_part_that_is_not_looked_into_is_named_beside_those_that_are(tmp_path):
    top = tmp_path / "step_5"
    top.mkdir()
    save_file({"a": torch.ones(3)}, top / "model.safetensors")
    torch.save({"w": torch.ones(2)}, top / "old.pt", _use_new_zipfile_serialization=False)
    scan = scan_path(top)
    assert scan.state == "finite"
    assert "old.pt" in scan.words


# ---- broken, changing and hostile -----------------------------------------------------------------------------------


def test_half_a_file_is_unreadable(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.randn(100, 100)}, path)
    whole = path.read_bytes()
    save_file({"w": torch.randn(100)}, tmp_path / "b.safetensors")
    for name, data in (("half.pt", whole[: len(whole) // 2]), ("empty.pt", b""), ("text.pt", b"hello"),
                       ("half.safetensors", (tmp_path / "b.safetensors").read_bytes()[:300])):
        (tmp_path / name).write_bytes(data)
        scan = scan_path(tmp_path / name)
        assert (scan.state, bool(scan.words)) == ("unreadable", True), name


def test_what_vanished_or_is_no_file_is_unreadable(tmp_path):
    assert "vanished" in scan_path(tmp_path / "gone.pt").words
    os.mkfifo(tmp_path / "pipe.pt")
    assert scan_path(tmp_path / "pipe.pt", format_name="torch-zip").state == "unreadable"


def test_a_file_that_changes_while_it_is_read_is_unreadable(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.randn(100)}, path)
    looked = finite._scan_file

    def rewritten(*arguments):
        looked(*arguments)
        (tmp_path / "new").write_bytes(path.read_bytes())
        (tmp_path / "new").replace(path)

    monkeypatch.setattr(finite, "_scan_file", rewritten)
    scan = scan_path(path)
    assert (scan.state, scan.words) == ("unreadable", "it changed while it was read")


def test_a_file_that_is_cut_off_while_it_is_read_is_unreadable(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.randn(1 << 16)}, path)
    found = finite.places_in

    def cut(*arguments):
        places = found(*arguments)
        os.truncate(path, 1001)
        return places

    monkeypatch.setattr(finite, "places_in", cut)
    scan = scan_path(path)
    assert scan.state == "unreadable"
    assert "cut off" in scan.words


def damaged(data, chance):
    data = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_damaged_files_never_raise(tmp_path, name):
    chance, path = random.Random(1), tmp_path / name
    content = {"w": torch.randn(20), "h": torch.ones(3).half(), "n": torch.arange(4)}
    save_file(content, path) if name.endswith("tensors") else torch.save({"model": content, "epoch": 2}, path)
    whole = path.read_bytes()
    states = set()
    for _ in range(300):
        path.write_bytes(damaged(whole, chance))
        states.add(scan_path(path).state)
    assert states <= {"finite", "not_finite", "unreadable", "unsupported"}
    assert {"unreadable", "finite"} <= states


def safetensors_bytes(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
         "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},  # overlaps
        {"a": {"dtype": "F32", "shape": [2**61], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},  # past the end
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"a": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}},
        {"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}},
        {"a": [1, 2]}, ["a"],
    ],
)
def test_a_safetensors_header_that_lies_is_unreadable(tmp_path, header):
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(header, bytes(12)))
    assert scan_path(tmp_path / "a.safetensors").state == "unreadable"


class Storage:
    """Pickled as torch refers to a storage; see `_torch_bytes`."""

    def __init__(self, kind, count, key="0"):
        self.kind, self.count, self.key = kind, count, key


class Tensor:
    def __init__(self, storage, offset=0, shape=(1,), stride=(1,)):
        self.arguments = (storage, offset, shape, stride, False, {})

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


def torch_bytes(content, storages):
    """A file of torch.save in which everything may be a lie."""
    import io

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if isinstance(thing, Storage):
                return ("storage", getattr(torch, thing.kind), thing.key, "cpu", thing.count)
            return None

    tree, data = io.BytesIO(), io.BytesIO()
    Pickler(tree, 2).dump(content)
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
        parts = {"data.pkl": tree.getvalue(), "version": b"3\n", **{f"data/{key}": part for key, part in storages.items()}}
        for name, part in parts.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), part)
    return data.getvalue()


NUMBERS = struct.pack("<8f", *range(8))


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor(Storage("FloatStorage", 2**40), shape=(2**40,)),
        Tensor(Storage("FloatStorage", 8), offset=7, shape=(2,)),
        Tensor(Storage("FloatStorage", 8), shape=(2,), stride=(2**50,)),
        Tensor(Storage("FloatStorage", 8), shape=(-1,)),
        Tensor(Storage("FloatStorage", 8), shape=(8, 1)),
        Tensor(Storage("FloatStorage", 8), offset="0"),
        Tensor(Storage("FloatStorage", 8, "nowhere")),
        [Tensor(Storage("FloatStorage", 8), shape=(8,)), Tensor(Storage("HalfStorage", 16), shape=(9,))],
    ],
    ids=["count", "offset", "stride", "negative", "dimensions", "type", "missing", "two types"],
)
def test_a_torch_file_that_lies_about_its_tensors_is_unreadable(tmp_path, tensor):
    (tmp_path / "a.pt").write_bytes(torch_bytes({"model": {"w": tensor}}, {"0": NUMBERS}))
    scan = scan_path(tmp_path / "a.pt")
    assert (scan.state, bool(scan.words)) == ("unreadable", True)


def test_the_files_made_here_are_read_as_those_of_torch(tmp_path):
    (tmp_path / "a.pt").write_bytes(torch_bytes({"w": Tensor(Storage("FloatStorage", 8), shape=(8,))}, {"0": NUMBERS}))
    assert torch.load(tmp_path / "a.pt", weights_only=True)["w"].tolist() == list(range(8))
    assert scan_path(tmp_path / "a.pt").bytes == 32


def test_many_thousand_views_of_the_same_bytes_cost_one_look(tmp_path, monkeypatch):
    storage, read = Storage("FloatStorage", 8), []
    chunks = bulk.Bulk.chunks

    def counted(self, begin=0, end=None):
        for chunk in chunks(self, begin, end):
            read.append(len(chunk))
            yield chunk

    monkeypatch.setattr(bulk.Bulk, "chunks", counted)
    views = [Tensor(storage, i % 4, (1 + i % 4,), (1,)) for i in range(20_000)]
    (tmp_path / "a.pt").write_bytes(torch_bytes({"w": views}, {"0": struct.pack("<8f", *([NAN] * 8))}))
    scan = scan_path(tmp_path / "a.pt")
    assert scan.state == "not_finite"
    assert sum(read) <= 32


def test_a_bomb_of_nested_containers_is_walked_once(tmp_path):
    inner = [Tensor(Storage("FloatStorage", 8), shape=(8,))]
    for _ in range(40):
        inner = [inner, inner]
    (tmp_path / "a.pt").write_bytes(torch_bytes({"w": inner}, {"0": NUMBERS}))
    assert (scan_path(tmp_path / "a.pt").state, scan_path(tmp_path / "a.pt").tensors) == ("finite", 1)


def test_a_pickle_of_more_than_is_read_is_unsupported(tmp_path, monkeypatch):
    from ckptwatch.formats import tensor_torch

    monkeypatch.setattr(tensor_torch, "OPCODES", 1000)
    scan = saved(tmp_path / "a.pt", {f"w{i}": torch.ones(1) for i in range(200)})
    assert scan.state == "unsupported"
    assert "1,000 opcodes" in scan.words


def test_nothing_in_a_file_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/run",))

    (tmp_path / "a.pt").write_bytes(zip_bytes({"model": Evil()}))
    assert scan_path(tmp_path / "a.pt").state == "finite"
    assert not (tmp_path / "run").exists()


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.full((16 << 20,), NAN)}, path)  # 64 MiB, all bad: the costly case
    scan_path(path)
    tracemalloc.start()
    try:
        assert scan_path(path).bad == {"w": 16 << 20}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20


def test_the_page_cache_is_given_back(tmp_path, monkeypatch):
    path, freed = tmp_path / "a.pt", []
    torch.save({"w": torch.zeros(1 << 20)}, path)
    give_back = os.posix_fadvise

    def noted(fd, offset, length, advice):
        freed.append((offset, length, advice))
        give_back(fd, offset, length, advice)

    monkeypatch.setattr(bulk.os, "posix_fadvise", noted)
    assert scan_path(path).state == "finite"
    assert all(advice == os.POSIX_FADV_DONTNEED for _, _, advice in freed)
    assert freed[-1][:2] == (0, 0)  # all of it


def test_progress_adds_up_to_the_size(tmp_path):
    path, told = tmp_path / "a.pt", []
    torch.save({"w": torch.zeros(1 << 20), "n": torch.zeros(1 << 20, dtype=torch.int32)}, path)
    scan_weights(Claim(format="torch-zip", path=path, members=(path,)), told.append)
    assert sum(told) == path.stat().st_size


def test_names_that_cannot_be_shown_are_made_showable(tmp_path):
    (tmp_path / "a.pt").write_bytes(torch_bytes(
        {"\x1b[31m\ud800" + "x" * 3000: Tensor(Storage("FloatStorage", 1))}, {"0": struct.pack("<f", NAN)}))
    (name,) = scan_path(tmp_path / "a.pt").bad
    assert name.isprintable()
    assert len(name) <= 300
    json.dumps(name).encode()


def test_only_the_first_twenty_bad_tensors_are_named_and_all_are_counted(tmp_path):
    scan = saved(tmp_path / "a.pt", {f"w{i:02d}": torch.tensor([NAN]) for i in range(50)})
    assert (len(scan.bad), scan.bad_tensors) == (20, 50)


def test_neither_torch_nor_sqlalchemy_is_imported():
    code = ("import sys, ckptwatch.workers.weight_scan, ckptwatch.scan.finite; "
            "print([m for m in ('torch', 'sqlalchemy', 'pydantic') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
