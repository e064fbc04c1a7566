"""What formats read from real files, and what they never do: run code, follow a hostile header, take a foreign file."""

import collections
import fractions
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ckptwatch.formats.base import Claim, claim_at, examine, format_named
from ckptwatch.formats.inert_pickle import Inert, PickleError, TooLargeError, load_inert
from ckptwatch.formats.parts import look
from ckptwatch.formats.pickle_walk import walk
from ckptwatch.formats.reading import BoundedReader
from tests.support import zip_bytes


def facts_at(path):
    claim = claim_at(path)
    return examine(claim, format_named(claim.format))


def facts_of(path, content, **more):
    torch.save(content, path, **more)
    return facts_at(path)


def write_zip(path, raw):
    """A file as torch.save lays it out, around this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", raw)


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


def test_an_empty_file_says_so(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"")
    assert facts_at(tmp_path / "x.pt").evidence == "empty file"


def test_a_foreign_zip_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    facts = facts_at(tmp_path / "x.pt")
    assert not facts.complete and "not from torch.save" in facts.evidence


def test_a_checkpoint_stored_inside_a_truncated_one_does_not_pass_for_it(tmp_path):
    inner = zip_bytes({"step": 1})
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"step": 2}))
        archive.writestr("archive/data/0", inner)
    whole = (tmp_path / "x.pt").read_bytes()
    assert facts_at(tmp_path / "x.pt").complete
    (tmp_path / "x.pt").write_bytes(whole[:whole.index(inner) + len(inner)])
    assert not facts_at(tmp_path / "x.pt").complete


def test_a_flipped_tensor_byte_is_another_fingerprint_once_written(tmp_path):
    prints = {facts_of(tmp_path / "x.pt", {"w": torch.full((4,), float(i))}).fingerprint for i in range(3)}
    assert len(prints) == 3


def test_a_missing_file_is_an_error_not_a_verdict(tmp_path):
    for format_ in (format_named("torch-zip"), format_named("safetensors"), format_named("keras")):
        with pytest.raises(FileNotFoundError):
            format_.examine(Claim(format=format_.name, path=tmp_path / "x.pt", members=(tmp_path / "x.pt",)))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("new", [True, False])
def test_tensors_without_dimensions_and_numbers_of_numpy_are_metrics(tmp_path, kind, new):
    rows = torch.tensor([0.25, 0.375, 0.5], dtype=kind)
    facts = facts_of(tmp_path / "x.pt", {
        "model": {"w": torch.zeros(3)}, "loss": torch.tensor(0.75, dtype=kind, requires_grad=True), "second": rows[1],
        "best": np.float64(0.125), "small": np.float32(0.5), "epoch": np.int64(7), "count": torch.tensor(3),
    }, _use_new_zipfile_serialization=new)
    assert facts.metrics == {"loss": 0.75, "second": 0.375, "best": 0.125, "small": 0.5}
    assert facts.epoch == 7


def test_a_parameter_without_dimensions_is_no_metric(tmp_path):
    assert facts_of(tmp_path / "clip.pt", {"logit_scale": torch.tensor(4.6), "proj": torch.zeros(2, 2)}).metrics == {}


def bytes_read():
    """By this process so far, as the kernel counts them."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["rchar"])


def test_reading_facts_touches_no_tensor(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": {"w": torch.zeros(1_000_000)}, "step": 3, "loss": torch.tensor(0.5)}, path)
    facts_at(path)  # what is imported on the way is not counted
    before = bytes_read()
    facts = facts_at(path)
    assert facts.metrics == {"loss": 0.5} and facts.step == 3
    assert 0 < bytes_read() - before < 100_000 < path.stat().st_size


@pytest.mark.parametrize("length", [5, 100, 5000, 3_000_000])
def test_data_between_the_facts_is_skipped(tmp_path, length):
    raw = pickle.dumps({"before": 0.5, "buffer": b"x" * length, "text": "y" * length, "step": 7, "loss": 0.25}, protocol=2)
    write_zip(tmp_path / "x.pt", raw)
    facts = facts_at(tmp_path / "x.pt")
    assert facts.complete and facts.step == 7 and facts.metrics == {"before": 0.5, "loss": 0.25}


def test_a_pickle_too_large_for_memory_is_walked_through_in_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr("ckptwatch.formats.torch_zip.IN_MEMORY", 100)
    facts = facts_of(tmp_path / "x.pt", {"model": {"w": torch.zeros(3)}, "notes": "x" * 10_000, "step": 5})
    assert facts.complete and facts.step == 5


def test_a_pickle_of_too_many_opcodes_costs_the_facts_only(tmp_path):
    write_zip(tmp_path / "step=9.pt", pickle.dumps({"step": 1, "list": [0.5] * 1_000_100}))
    facts = facts_at(tmp_path / "step=9.pt")
    assert facts.complete and facts.step == 9 and "no facts are read" in facts.evidence


def test_a_tensor_that_is_not_there_is_noticed(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(300)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {n: archive.read(n) for n in archive.namelist()}
    for data, evidence in ((None, "is missing"), (records["x/data/0"][:-1], "is short")):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (records | {"x/data/0": data}).items():
                if content is not None:
                    archive.writestr(name, content)
        facts = facts_at(path)
        assert not facts.complete and "data/0, to which data.pkl refers, " + evidence in facts.evidence


@pytest.mark.filterwarnings("ignore")
def test_a_script_of_torch_is_a_complete_file(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 1), torch.zeros(1, 2)), tmp_path / "x.pt")
    facts = facts_at(tmp_path / "x.pt")
    assert facts.complete, facts.evidence


def test_a_file_of_the_size_of_skipped_tensors_is_complete(tmp_path):
    with torch.serialization.skip_data():
        torch.save({"model": {"w": torch.zeros(300)}, "step": 5}, tmp_path / "x.pt")
    assert facts_at(tmp_path / "x.pt").complete


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\..\\x", "a\0b", "a\nb"])
def test_names_that_leave_the_archive_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"step": 1}))
        archive.writestr("PLACEHOLDER".ljust(len(name), "_")[:len(name)] if len(name) < 11 else "P" * len(name), b"x")
    data = (tmp_path / "x.pt").read_bytes()
    placeholder = ("PLACEHOLDER".ljust(len(name), "_")[:len(name)] if len(name) < 11 else "P" * len(name)).encode()
    (tmp_path / "x.pt").write_bytes(data.replace(placeholder, name.encode()))
    facts = facts_at(tmp_path / "x.pt")
    assert not facts.complete and "is none that belongs into an archive" in facts.evidence


def test_two_records_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"step": 1}))
        archive.writestr("x/data.pkk", pickle.dumps({"step": 2}))
    data = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(data.replace(b"data.pkk", b"data.pkl"))
    assert "two records are named 'x/data.pkl'" in facts_at(tmp_path / "x.pt").evidence


def test_a_packed_pickle_is_read_within_reason(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"step": 8, "names": [f"layer{n}" for n in range(200)]}))
    assert facts_at(tmp_path / "x.pt").step == 8
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"step": 8, "bomb": b"\0" * 1_000_000}))
    facts = facts_at(tmp_path / "x.pt")
    assert not facts.complete and "claims 1,000," in facts.evidence


# ---- torch.save, the older kind -------------------------------------------------------------------------------------


def old(path, content, **more):
    torch.save(content, path, _use_new_zipfile_serialization=False, **more)
    return facts_at(path)


@pytest.mark.parametrize("kind", [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.uint16,
])
def test_the_size_of_every_type_of_number_is_known(tmp_path, kind):
    facts = old(tmp_path / "x.pt", {"model": {"w": torch.zeros(7, 3).to(kind)}, "step": 5})
    assert facts.complete, facts.evidence
    assert (facts.format, facts.step, facts.variants) == ("torch-legacy", 5, ("model",))


@pytest.mark.filterwarnings("ignore")
def test_views_shared_and_empty_tensors_and_whole_modules_add_up(tmp_path):
    base = torch.arange(100.0)
    layer = torch.nn.Linear(3, 2)
    for content in (
        {"a": base[3:7], "b": base[::2], "c": base}, {"a": torch.zeros(0)}, [layer, layer], base.untyped_storage(),
        {"q": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)}, torch.sparse_coo_tensor([[1]], [2.0]),
    ):
        assert old(tmp_path / "x.pt", content).complete


def test_an_old_file_with_anything_behind_it_is_not_whole(tmp_path):
    old(tmp_path / "x.pt", {"w": torch.zeros(3)})
    with (tmp_path / "x.pt").open("ab") as file:
        file.write(b"\0")
    facts = facts_at(tmp_path / "x.pt")
    assert not facts.complete and "its tensors end at byte" in facts.evidence


def test_a_hole_where_a_count_of_elements_should_be_is_noticed(tmp_path):
    """As when the size of the file is set before it is filled."""
    old(tmp_path / "x.pt", {"w": torch.zeros(3)})
    data = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(data[:-20] + b"\0" * 20)
    assert "a storage has 0 elements, its pickle says 3" in facts_at(tmp_path / "x.pt").evidence


def test_the_kind_of_before_is_refused_in_words(tmp_path):
    with tarfile.open(tmp_path / "x.pt", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(__file__, "storages")
    assert "a tar file, as torch wrote before" in facts_at(tmp_path / "x.pt").evidence


def test_other_files_under_such_names_are_told_apart(tmp_path):
    for data, evidence in ((pickle.dumps({"a": 1}), "lacks the magic number"), (b"hello", "begins neither like a zip")):
        (tmp_path / "x.pt").write_bytes(data)
        facts = facts_at(tmp_path / "x.pt")
        assert not facts.complete and evidence in facts.evidence


# ---- plain pickles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_whole_only_to_its_last_byte(tmp_path, protocol):
    content = {"a": [1, 2**40, -5, 2**200, 0.5, None, True, "text", "ü", b"bytes", (1,), {2, 3}, frozenset({4})],
               "c": collections.OrderedDict(x=1), "d": fractions.Fraction(1, 3), "long": "x" * 5_000}
    raw = pickle.dumps(content, protocol=protocol)
    path = tmp_path / "x.pkl"
    path.write_bytes(raw)
    found = walk(path)
    assert found.whole, found.evidence
    assert "fractions Fraction" in found.named and "collections OrderedDict" in found.named
    for length in {*range(0, len(raw), 13), *range(300), *range(len(raw) - 40, len(raw))}:
        path.write_bytes(raw[:length])
        assert not walk(path).whole
    path.write_bytes(raw + b"x")
    assert not walk(path).whole


def test_to_walk_a_large_file_costs_little(tmp_path):
    with (tmp_path / "x.pkl").open("wb") as file:  # sparse: a payload of 8 GB that ends after 1 GB
        file.write(b"\x80\x04\x8e" + (8 << 30).to_bytes(8, "little"))
        file.truncate(1 << 30)
    tracemalloc.start()
    found = walk(tmp_path / "x.pkl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found.whole and "reaches past the end" in found.evidence and peak < 1_000_000
    with (tmp_path / "x.pkl").open("r+b") as file:
        file.write(b"\x80\x04\x8e" + ((1 << 30) - 12).to_bytes(8, "little"))
        file.seek(-1, 2)
        file.write(b".")
    assert look(tmp_path / "x.pkl").whole


# ---- hostile files --------------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner)
    | st.dictionaries(st.text(), inner).map(collections.OrderedDict), max_leaves=20)


@given(DATA, st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_plain_data_is_read_as_pickle_reads_it(data, protocol):
    raw = pickle.dumps(data, protocol=protocol)
    assume(max(map(len, re.findall(rb"[0-9]+", raw)), default=0) <= 64)  # longer numbers are skipped
    assert load_inert(raw) == data


@pytest.mark.parametrize("function", [os.system, subprocess.check_call, exec, eval])
def test_a_hostile_pickle_runs_nothing(tmp_path, function):
    marker = tmp_path / "executed"
    code = f"touch {marker}" if function in (os.system, subprocess.check_call) else f"open({str(marker)!r}, 'w')"
    (tmp_path / "x.pt").write_bytes(zip_bytes({"evil": Payload(function, code), "step": 3}))
    facts = facts_at(tmp_path / "x.pt")
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


def test_stand_ins_remember_what_they_stand_for():
    thing = load_inert(b"\x80\x02cargparse\nNamespace\n)\x81}U\x02lrK\x01sb.")
    assert (thing.what, thing.state) == ("argparse.Namespace", {"lr": 1})


def test_an_ordered_dict_stays_one_whatever_state_is_set_on_it():
    raw = b"\x80\x02ccollections\nOrderedDict\n}U\x01aK\x01sb0ccollections\nOrderedDict\n)R}U\x01aK\x01sb."
    assert load_inert(raw) == {} and not hasattr(collections.OrderedDict, "a")


@pytest.mark.parametrize("raw", [
    b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s.",             # a key nested 300,000 deep
    b"\x80\x02}(" + b")" + b"\x85" * 300_000 + b"K\x01u.",
    b"\x80\x02()" + b"\x85" * 300_000 + b"K\x01d.",
    b"\x80\x04\x8f(" + b")" + b"\x85" * 300_000 + b"\x90.",
    b"\x80\x04()" + b"\x85" * 300_000 + b"\x91.",
    b"\x80\x02ccollections\nOrderedDict\n]]()" + b"\x85" * 300_000 + b"K\x01eaa\x85R.",
    b"]" * 300_000 + b"a" * 299_999 + b".",
], ids=["setitem", "setitems", "dict", "set", "frozenset", "ordered dict", "lists"])
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


@pytest.mark.parametrize("piece", [
    b"N", b"(", b"}", b")\x85", b"I1\n", b"N2\x86", b"cos\nsystem\n", b"cos\nsystem\n)R", b"](K\x01K\x02e", b"}U\x01aK\x01s",
], ids=repr)
def test_no_pickle_takes_long(piece):
    began = time.process_time()
    with pytest.raises(TooLargeError):
        load_inert(b"\x80\x04" + piece * 1_000_100 + b".")
    assert time.process_time() - began < 10  # about 2 s; the machine may be slow


@pytest.mark.parametrize("piece", [b"L" + b"9" * 4000 + b"L\n", b"\x8c\xff" + b"a" * 255, b"X\0\x10\0\0" + b"a" * 4096,
                                   b"c" + b"a" * 4000 + b"\nb\n"], ids=["digits", "short", "long", "names"])
def test_no_pickle_is_read_without_end(monkeypatch, piece):
    monkeypatch.setattr("ckptwatch.formats.pickle_walk.BYTES", 1 << 20)
    with pytest.raises(TooLargeError, match="1,048,576 bytes"):
        load_inert(b"\x80\x04" + piece * (2_000_000 // len(piece)) + b".")


def test_one_list_cannot_be_made_into_very_many_dicts():
    pairs = b"](" + b"K\x01K\x02\x86" * 1000 + b"e\x94"
    again = b"ccollections\nOrderedDict\nh\x00\x85R"
    with pytest.raises(TooLargeError, match="ordered dicts"):
        load_inert(b"\x80\x04" + pairs + again * 2000 + b".")


def test_a_declared_giant_directory_is_not_read(tmp_path):
    data = bytearray(zip_bytes({"step": 1}))
    end = data.rindex(b"PK\x05\x06")
    data[end + 12:end + 16] = struct.pack("<I", 0xFFFFFFF0)
    with (tmp_path / "x.pt").open("wb") as file:
        file.write(data)
    facts = facts_at(tmp_path / "x.pt")
    assert not facts.complete


def test_a_real_giant_directory_is_not_read_to_its_end(tmp_path):
    with (tmp_path / "x.pt").open("wb") as file:  # sparse: a directory of 1 GB that costs no disk
        file.write(b"PK\x03\x04")
        file.seek(1_000_000_000)
        file.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 999_999_996, 4, 0))
    tracemalloc.start()
    facts = facts_at(tmp_path / "x.pt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not facts.complete and peak < 200_000_000


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 200_000_000)
    tracemalloc.start()
    facts = facts_at(tmp_path / "x.pt")
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
    return facts_at(path)


def test_safetensors_say_their_step_in_metadata(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"global_step": "500", "epoch": "2"})
    facts = facts_at(tmp_path / "model.safetensors")
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
    ("a.pth.tar", "torch-zip"), ("a.pt.tar", "torch-zip"), ("metamodel.pt", "torch-zip"), ("option.pt", "torch-zip"),
    ("tempo_100.pt", "torch-zip"), ("model_schedule_100.pt", "torch-zip"), ("optimus-prime-100.pt", "torch-zip"),
    ("opt-125m.pt", "torch-zip"), ("meta-llama.pt", "torch-zip"), ("model_temp_0.5.pt", "torch-zip"),
    ("a.txt", None), ("pt", None), ("a.pt.tmp", None), ("a.tar", None), ("a.pkl", None), (".hidden.pt", None),
    *((name, None) for name in (
        "optimizer.pt", "optimizer-100.pt", "optimizer_0.pt", "optim_000100_rank0.pt", "opt000100.pt", "scheduler.pt",
        "scaler.pt", "grad_scaler.pt", "rng_state.pth", "rng_state_3.pth", "random_states_0.pt", "training-state-0002048.pt",
        "training_state_100.pt", "meta.pt", "meta_000100.pt", "metadata.pt", "sampler.pt", "epoch_3_optimizer.pt",
        "model_100_optim.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "tmp.pth.tar", "recovery_tmp.pth.tar",
        "tmp_model.pt", "temp-1.pt", "lr_scheduler.pt", "opt-100.pt",
    )),
])
def test_files_are_claimed_by_their_name(tmp_path, name, format_name):
    (tmp_path / name).write_bytes(b"")
    found = claim_at(tmp_path / name)
    assert (found.format if found else None) == format_name


def test_no_single_file_format_claims_a_directory(tmp_path):
    (tmp_path / "a.pt").mkdir()
    assert claim_at(tmp_path / "a.pt") is None


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.json", "x.pkl", "x.keras", "x.h5", "x.distcp"])
def test_a_pipe_under_the_name_of_a_file_keeps_nobody_waiting(tmp_path, name):
    os.mkfifo(tmp_path / name)
    try:
        assert not look(tmp_path / name).whole
    except OSError as error:
        assert "not a plain file" in str(error)
