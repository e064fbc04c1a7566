"""What formats read from real files, and what they never do: run code, follow a hostile header, take a foreign file."""

import collections
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from ckptwatch.formats.base import BoundedReader, examine, format_of, formats
from ckptwatch.formats.inert_pickle import Inert, PickleError, load_inert
from ckptwatch.formats.safetensors_file import SafetensorsFile
from ckptwatch.formats.torch_zip import TorchZip
from ckptwatch.testing import entry_at
from tests.support import zip_bytes


def facts_of(path, content, **more):
    torch.save(content, path, **more)
    return examine(path, TorchZip())


# ---- torch.save -----------------------------------------------------------------------------------------------------


def test_step_epoch_metrics_and_variants_come_from_the_content(tmp_path):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    facts = facts_of(tmp_path / "some.pt", {
        "model": layer.state_dict(), "ema": dict(layer.state_dict()), "optimizer": optimizer.state_dict(), "step": 1200,
        "epoch": 3, "loss": 0.25, "val_fid": float("nan"), "name": "x", "best": True, "args": {"lr": 1e-3}})
    assert facts.complete and facts.format == "torch-zip"
    assert (facts.step, facts.epoch, facts.variants) == (1200, 3, ("model", "ema"))
    assert facts.metrics["loss"] == 0.25 and set(facts.metrics) == {"loss", "val_fid"}
    assert "records" in facts.evidence


def test_the_name_wins_over_the_content(tmp_path):
    facts = facts_of(tmp_path / "epoch=7-step=900-loss=0.5.ckpt", {"step": 100, "epoch": 1, "loss": 0.75, "acc": 0.5})
    assert (facts.step, facts.epoch) == (900, 7)
    assert facts.metrics == {"loss": 0.5, "acc": 0.5}


@pytest.mark.parametrize(("content", "step"), [
    ({"global_step": 5}, 5), ({"iteration": 6}, 6), ({"step": -1}, None), ({"step": 2**70}, None), ({"step": True}, None),
    ({"step": 1.5}, None), ({"step": torch.tensor(3)}, None), ([1, 2], None), (torch.zeros(2), None), ({}, None),
    ("text", None), (None, None), (torch.nn.Linear(1, 1), None),
])
def test_any_content_is_a_complete_file(tmp_path, content, step):
    facts = facts_of(tmp_path / "x.pt", content)
    assert facts.complete, facts.evidence
    assert facts.step == step


def test_keys_that_are_no_strings_do_no_harm(tmp_path):
    assert facts_of(tmp_path / "x.pt", {1: 2.0, (1, (2,)): 3.0, None: {"w": torch.zeros(1)}, "step": 4}).step == 4


def test_names_that_cannot_be_shown_are_no_names(tmp_path):
    odd = ["\ud800", "a\0b", "\x1b[31mred", "line\nbreak", "x" * 1000]
    variants = {f"{k}2": {"w": torch.zeros(1)} for k in odd}
    facts = facts_of(tmp_path / "x.pt", {**dict.fromkeys(odd, 1.0), **variants, "größe": 2.0})
    assert facts.metrics == {"größe": 2.0} and facts.variants == ()


def test_the_old_pickle_format_is_told_apart_from_a_broken_file(tmp_path):
    facts = facts_of(tmp_path / "old.pt", {"step": 1}, _use_new_zipfile_serialization=False)
    assert not facts.complete and "not a torch zip file" in facts.evidence


def test_an_empty_file_says_so(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"")
    assert examine(tmp_path / "x.pt", TorchZip()).evidence == "empty file"


def test_a_foreign_zip_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    facts = examine(tmp_path / "x.pt", TorchZip())
    assert not facts.complete and "not from torch.save" in facts.evidence


def test_a_checkpoint_stored_inside_a_truncated_one_does_not_pass_for_it(tmp_path):
    inner = zip_bytes({"step": 1})
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"step": 2}))
        archive.writestr("archive/data/0", inner)
    whole = (tmp_path / "x.pt").read_bytes()
    assert examine(tmp_path / "x.pt", TorchZip()).complete
    (tmp_path / "x.pt").write_bytes(whole[:whole.index(inner) + len(inner)])
    assert not examine(tmp_path / "x.pt", TorchZip()).complete


def test_a_flipped_tensor_byte_is_another_fingerprint_once_written(tmp_path):
    prints = {facts_of(tmp_path / "x.pt", {"w": torch.full((4,), float(i))}).fingerprint for i in range(3)}
    assert len(prints) == 3


def test_a_missing_file_is_an_error_not_a_verdict(tmp_path):
    for format_ in formats():
        with pytest.raises(FileNotFoundError):
            format_.examine(tmp_path / "x.pt")


# ---- hostile files --------------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


@pytest.mark.parametrize("function", [os.system, subprocess.check_call, exec, eval])
def test_a_hostile_pickle_runs_nothing(tmp_path, function):
    marker = tmp_path / "executed"
    code = f"touch {marker}" if function in (os.system, subprocess.check_call) else f"open({str(marker)!r}, 'w')"
    (tmp_path / "x.pt").write_bytes(zip_bytes({"evil": Payload(function, code), "step": 3}))
    facts = examine(tmp_path / "x.pt", TorchZip())
    assert facts.complete and facts.step == 3
    assert not marker.exists()


@pytest.mark.parametrize("raw", [
    b"cos\nsystem\n(S'exit 1'\ntR.",               # GLOBAL, REDUCE
    b"(S'exit 1'\nios\nsystem\n.",                 # INST
    b"(cos\nsystem\nS'exit 1'\no.",                # OBJ
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x06exit 1\x85R.",  # STACK_GLOBAL
    b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\nU\x08__call__\x86R.",
])
def test_every_way_to_name_a_function_gives_a_stand_in(raw):
    assert isinstance(load_inert(raw), Inert)


def test_state_of_objects_is_set_nowhere():
    """BUILD on our own helper functions must not change them for the files that follow."""
    raw = b"\x80\x02ccollections\nOrderedDict\n}U\x01aK\x01sb0ccollections\nOrderedDict\nN}U\x08__name__U\x04evils\x86b0}."
    before = dict(vars(sys.modules["ckptwatch.formats.inert_pickle"]._ordered_dict))
    load_inert(raw)
    helper = sys.modules["ckptwatch.formats.inert_pickle"]._ordered_dict
    assert dict(vars(helper)) == before and helper.__name__ == "_ordered_dict"
    assert collections.OrderedDict.__name__ == "OrderedDict"


@pytest.mark.parametrize("raw", [
    b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s.",             # a key nested 300,000 deep
    b"\x80\x02}(" + b")" + b"\x85" * 300_000 + b"K\x01u.",
    b"\x80\x02()" + b"\x85" * 300_000 + b"K\x01d.",
    b"\x80\x04\x8f(" + b")" + b"\x85" * 300_000 + b"\x90.",
    b"\x80\x04()" + b"\x85" * 300_000 + b"\x91.",
    b"\x80\x02ccollections\nOrderedDict\n]]()" + b"\x85" * 300_000 + b"K\x01eaa\x85R.",
    b"]" * 300_000 + b"a" * 299_999 + b".",
])
def test_deep_nesting_does_not_overflow_the_stack(raw):
    """In a process of its own: what this guards against is a segmentation fault."""
    code = ("import sys; from ckptwatch.formats.inert_pickle import *\n"
            "try: load_inert(sys.stdin.buffer.read())\nexcept PickleError: 0")
    done = subprocess.run([sys.executable, "-c", code], input=raw, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("raw", [
    b"", b".", b"\x80\x02", b"r\xff\xff\xff\x7f.", b"\x80\x02]r\xff\xff\xff\x7f.", b"X\xff\xff\xff\x7fabc.",
    b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", b"I" + b"9" * 10_000 + b"\n.",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x82\x01.", b"P1\n.", b"(" * 100,
])
def test_a_broken_pickle_costs_an_error_of_its_own_and_little_memory(raw):
    tracemalloc.start()
    try:
        load_inert(raw)
    except PickleError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 50_000_000


def test_a_declared_giant_directory_is_not_read(tmp_path):
    data = bytearray(zip_bytes({"step": 1}))
    end = data.rindex(b"PK\x05\x06")
    data[end + 12:end + 16] = struct.pack("<I", 0xFFFFFFF0)
    with (tmp_path / "x.pt").open("wb") as file:
        file.write(data)
    facts = examine(tmp_path / "x.pt", TorchZip())
    assert not facts.complete


def test_a_real_giant_directory_is_not_read_to_its_end(tmp_path):
    with (tmp_path / "x.pt").open("wb") as file:  # sparse: a directory of 1 GB that costs no disk
        file.write(b"PK\x03\x04")
        file.seek(1_000_000_000)
        file.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 999_999_996, 4, 0))
    tracemalloc.start()
    facts = examine(tmp_path / "x.pt", TorchZip())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not facts.complete and peak < 200_000_000


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 200_000_000)
    tracemalloc.start()
    facts = examine(tmp_path / "x.pt", TorchZip())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not facts.complete and peak < 100_000_000


def test_the_reader_keeps_its_budget(tmp_path):
    (tmp_path / "x").write_bytes(b"0123456789")
    with (tmp_path / "x").open("rb") as file:
        reader = BoundedReader(file, 6)
        assert reader.read(4) == b"0123"
        with pytest.raises(ValueError, match="larger than any real"):
            reader.read()


# ---- safetensors ----------------------------------------------------------------------------------------------------


def write_header(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return examine(path, SafetensorsFile())


def test_safetensors_say_their_step_in_metadata(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"global_step": "500", "epoch": "2"})
    facts = examine(tmp_path / "model.safetensors", SafetensorsFile())
    assert facts.complete and (facts.step, facts.epoch) == (500, 2)


@pytest.mark.parametrize("header", [
    [], "x", 5, {"w": 5}, {"w": {}}, {"w": {"data_offsets": [0]}}, {"w": {"data_offsets": ["0", "4"]}},
    {"w": {"data_offsets": [4, 0]}}, {"w": {"data_offsets": [0, 2**70]}}, {"w": {"data_offsets": None}}, b"\xff\xfe", b"{",
    b"[" * 100_000, b"  \0 ",
])
def test_a_broken_safetensors_header_is_incomplete(tmp_path, header):
    facts = write_header(tmp_path / "m.safetensors", header, b"\0" * 4)
    assert not facts.complete and facts.evidence


@pytest.mark.parametrize("metadata", [None, 5, [], {"step": "x"}, {"step": "-1"}, {"step": "1e400"}, {"step": {}}])
def test_odd_metadata_costs_only_the_step(tmp_path, metadata):
    facts = write_header(tmp_path / "m.safetensors", {"__metadata__": metadata, "w": {"data_offsets": [0, 4]}}, b"\0" * 4)
    assert facts.complete and facts.step is None


def test_trailing_bytes_are_not_whole(tmp_path):
    assert not write_header(tmp_path / "m.safetensors", {"w": {"data_offsets": [0, 4]}}, b"\0" * 5).complete


# ---- who claims what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "format_name"), [
    ("a.pt", "torch-zip"), ("a.pth", "torch-zip"), ("a.ckpt", "torch-zip"), ("model.safetensors", "safetensors"),
    ("a.txt", None), ("pt", None), ("a.pt.tmp", None),
])
def test_files_are_claimed_by_their_name(tmp_path, name, format_name):
    (tmp_path / name).write_bytes(b"")
    found = format_of(entry_at(tmp_path / name))
    assert (found.name if found else None) == format_name


def test_no_single_file_format_claims_a_directory(tmp_path):
    (tmp_path / "a.pt").mkdir()
    assert format_of(entry_at(tmp_path / "a.pt")) is None
