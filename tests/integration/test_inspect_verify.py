"""`inspect --verify`: a flipped byte is found wherever a checksum covers it, and where none does, that is said."""

import hashlib
import json
import os
import random
import shutil
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as torch_dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.filesystem import SerializationFormat
from typer.testing import CliRunner

import ckptwatch.cli.app as cli
from ckptwatch.errors import CkptwatchError
from ckptwatch.formats import bulk
from ckptwatch.formats.base import claim_at, format_named
from ckptwatch.formats.dcp_metadata import read_index
from ckptwatch.formats.integrity import size_of, verify
from ckptwatch.testing import damaged

W = {"w": torch.arange(600.0), "b": torch.ones(20)}


@dataclass
class Done:
    code: int
    out: str
    error: str

    @property
    def json(self):
        return json.loads(self.out)


def inspect(*arguments):
    result = CliRunner().invoke(cli.app, ["inspect", *(str(a) for a in arguments)])
    if isinstance(result.exception, CkptwatchError):
        return Done(result.exception.exit_status, result.stdout, str(result.exception))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def verdicts(path):
    """State and evidence of each file, by its name."""
    claim = claim_at(path)
    told = []
    found = {v.path.name: (v.state.value, v.evidence) for v in verify(claim, format_named(claim.format), told.append)}
    assert sum(told) == size_of(claim), "the progress does not end at the whole"
    return found


def flip(path, place, mask=1):
    with path.open("r+b") as file:
        file.seek(place)
        old = file.read(1)[0]
        file.seek(place)
        file.write(bytes([old ^ mask]))


def inside_records(path):
    """Some places in every record of a zip file, with its name."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            with path.open("rb") as file:
                file.seek(info.header_offset + 26)
                begin = info.header_offset + 30 + sum(int.from_bytes(file.read(2), "little") for _ in range(2))
            for place in {0, info.compress_size // 2, info.compress_size - 1} if info.compress_size else ():
                yield info.filename, begin + place


# ---- what carries checksums -----------------------------------------------------------------------------------------


@pytest.fixture
def torch_file(tmp_path):
    path = tmp_path / "0100.pt"
    torch.save({"model": W, "step": 100}, path)
    return path


def test_a_flipped_byte_anywhere_in_a_record_of_a_torch_file_is_found_and_named(torch_file):
    assert verdicts(torch_file)["0100.pt"] == ("ok", "CRC-32 of 8 records")
    for record, place in inside_records(torch_file):
        flip(torch_file, place)
        state, evidence = verdicts(torch_file)["0100.pt"]
        assert state == "damaged" and record in evidence, (record, place, evidence)
        flip(torch_file, place)
    assert verdicts(torch_file)["0100.pt"][0] == "ok"


def test_whatever_is_flipped_torch_loads_the_same_or_it_is_found(torch_file):
    """Bytes between the records, and times in the headers, may change unseen: they hold nothing."""
    whole = torch_file.read_bytes()
    chance = random.Random(0)
    with zipfile.ZipFile(torch_file) as archive:
        directory = range(archive.start_dir, len(whole))
    for place in [*directory, *(chance.randrange(len(whole)) for _ in range(100))]:
        flip(torch_file, place, 1 << chance.randrange(8))
        if verdicts(torch_file)["0100.pt"][0] != "damaged":
            content = torch.load(torch_file, weights_only=True)
            assert content["step"] == 100 and all(torch.equal(content["model"][k], W[k]) for k in W), place
        torch_file.write_bytes(whole)


def test_a_hole_of_zeros_in_a_storage_is_found(torch_file):
    record, begin = next((r, p) for r, p in inside_records(torch_file) if r.endswith("data/0"))
    with torch_file.open("r+b") as file:
        file.seek(begin + 100)
        file.write(bytes(500))
    assert verdicts(torch_file)["0100.pt"][0] == "damaged", record


def test_a_flipped_byte_in_a_keras_file_is_found(tmp_path):
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    path = tmp_path / "01-0.50.keras"
    model.save(path)
    assert verdicts(path)[path.name][0] == "ok"
    for record, place in inside_records(path):
        flip(path, place)
        state, evidence = verdicts(path)[path.name]
        assert state == "damaged" and record in evidence, (record, evidence)
        flip(path, place)


def test_packed_records_are_unpacked_and_checked(tmp_path):
    path = tmp_path / "epoch_1" / "weights.npz"
    path.parent.mkdir()
    np.savez_compressed(path, w=np.arange(5000.0))
    assert verdicts(path.parent)["weights.npz"][0] == "ok"
    last = max(place for _, place in inside_records(path))
    for record, place in inside_records(path):
        flip(path, place, 0x80)  # the last bits of all are filling
        assert verdicts(path.parent)["weights.npz"][0] == "damaged" or place == last, record
        flip(path, place, 0x80)


def test_a_record_that_unpacks_to_more_than_it_says_is_damaged(tmp_path):
    path = tmp_path / "epoch_1" / "weights.npz"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", bytes(64 << 20))
    data = path.read_bytes().replace((64 << 20).to_bytes(4, "little"), (1 << 10).to_bytes(4, "little"))
    path.write_bytes(data)
    state, evidence = verdicts(path.parent)["weights.npz"]
    assert state == "damaged" and "of 1,024" in evidence


@pytest.fixture
def sharded(tmp_path):
    path = tmp_path / "step-7"
    writer = torch_dcp.FileSystemWriter(path, thread_count=2)
    torch_dcp.save({"model": W, "optim": {"m": torch.zeros(300)}, "train": {"step": 7}}, storage_writer=writer, no_dist=True)
    return path


def test_a_flipped_byte_in_any_record_of_a_shard_is_found_and_named(sharded):
    assert {n: s for n, (s, _) in verdicts(sharded).items()} == {
        ".metadata": "no checksum", "__0_0.distcp": "ok", "__0_1.distcp": "ok"}
    for name, records in read_index(sharded / ".metadata").files.items():
        for record in records:
            for place in (0, 3, record.length // 2, record.length - 1):
                flip(sharded / name, record.offset + place)
            state, evidence = verdicts(sharded)[name]
            assert state == "damaged" and record.name in evidence, evidence
            for place in (0, 3, record.length // 2, record.length - 1):
                flip(sharded / name, record.offset + place)


def test_a_shard_that_is_missing_is_damage(sharded):
    (sharded / "__0_1.distcp").unlink()
    assert verdicts(sharded)["__0_1.distcp"] == ("damaged", ".metadata refers to it, but it is missing")


def test_megatrons_checksums_cover_every_byte(tmp_path):
    path = tmp_path / "iter_0000100"
    torch_dcp.save({"model.w": W["w"]}, checkpoint_id=path, no_dist=True)
    torch.save({"iteration": 100}, path / "common.pt")
    (path / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.iterdir()}
    (path / "integrity.json").write_text(json.dumps({"algorithm": "sha256", "files": sums}))
    assert {n: s for n, (s, _) in verdicts(path).items() if n != "integrity.json"} == dict.fromkeys(sums, "ok")
    for name in sums:
        flip(path / name, (path / name).stat().st_size // 2)
        state, evidence = verdicts(path)[name]
        assert state == "damaged" and "SHA-256 differs" in evidence
        flip(path / name, (path / name).stat().st_size // 2)
    (path / "common.pt").rename(tmp_path / "elsewhere")
    assert verdicts(path)["common.pt"] == ("damaged", "listed with a checksum, but missing")


def test_a_list_of_checksums_that_cannot_be_read_is_damage(tmp_path):
    path = tmp_path / "iter_0000100"
    torch_dcp.save({"model.w": W["w"]}, checkpoint_id=path, no_dist=True)
    (path / "integrity.json").write_text('{"files": {"../../etc/passwd": "00"}}')
    assert "cannot be read" in verdicts(path)[path.name][1]


# ---- what carries none ----------------------------------------------------------------------------------------------


@pytest.fixture
def safetensors(tmp_path):
    path = tmp_path / "model-100.safetensors"
    save_file(W, path)
    return path


def test_it_is_said_that_safetensors_cannot_show_a_flipped_byte(safetensors):
    flip(safetensors, safetensors.stat().st_size - 10)
    state, evidence = verdicts(safetensors)[safetensors.name]
    assert state == "no checksum" and "a flipped byte inside a tensor cannot be seen" in evidence


def test_shards_in_the_layout_of_safetensors_are_judged_by_it(tmp_path):
    path = tmp_path / "step-3"
    writer = torch_dcp.FileSystemWriter(path, serialization_format=SerializationFormat.SAFETENSORS)
    torch_dcp.save({"model": W}, storage_writer=writer, no_dist=True)
    assert inspect(path).code == 0
    assert "safetensors carries no checksum" in verdicts(path)["__0_0.distcp"][1]
    shard = path / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert inspect(path).code == 3
    assert inspect(path, "--verify").code == 1


@pytest.mark.parametrize(("change", "said"), [
    (lambda h: h["b"].update(data_offsets=[0, 80]), "overlap"),
    (lambda h: h.update(b={**h["b"], "data_offsets": [88, 168]}), "overlap"),
    (lambda h: h["w"].update(shape=[599]), "do not make F32"),
    (lambda h: h["w"].update(dtype="BF16"), "do not make BF16"),
    (lambda h: h.pop("w"), "hole"),
    (lambda h: h["b"].update(data_offsets=[-1, 80]), "impossible numbers"),
    (lambda h: h["b"].update(shape="x"), "impossible numbers"),
    (lambda h: h["b"].update(shape=None), "TypeError"),
    (lambda h: h.pop("b"), "hole"),
])
def test_ranges_that_cannot_be_are_damage(safetensors, change, said):
    data = safetensors.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if header["b"]["data_offsets"][0] == 0:  # the order is the library's affair
        header["b"]["data_offsets"], header["w"]["data_offsets"] = [2400, 2480], [0, 2400]
    change(header)
    text = json.dumps(header).encode()
    safetensors.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    state, evidence = verdicts(safetensors)[safetensors.name]
    assert state == "damaged", evidence
    assert said in evidence or "end at byte" in evidence


def test_an_index_must_name_the_shard_that_holds_the_tensor(tmp_path):
    path = tmp_path / "step_5"
    path.mkdir()
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    save_file({"a": W["w"]}, path / names[0])
    save_file({"b": W["w"]}, path / names[1])
    index = path / "model.safetensors.index.json"
    for weight_map, state in (({"a": names[0], "b": names[1]}, "no checksum"), ({"a": names[1], "b": names[0]}, "damaged")):
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        assert verdicts(path)[index.name][0] == state


def test_zip_files_written_without_crc_are_not_called_damaged(tmp_path):
    path = tmp_path / "epoch_1" / "weights.npz"
    path.parent.mkdir()
    np.savez(path, w=np.arange(50.0))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        crc = archive.infolist()[0].CRC.to_bytes(4, "little")
    path.write_bytes(bytes(data).replace(crc, bytes(4)))
    state, evidence = verdicts(path.parent)["weights.npz"]
    assert state == "no checksum" and "without CRC-32" in evidence


def test_older_torch_files_and_pickles_are_walked_to_their_end(tmp_path):
    path = tmp_path / "step_5"
    path.mkdir()
    torch.save({"model": W}, path / "a.pt", _use_new_zipfile_serialization=False)
    (path / "b.pkl").write_bytes(b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.")
    found = verdicts(path)
    assert found["a.pt"][0] == found["b.pkl"][0] == "no checksum"
    for name in ("a.pt", "b.pkl"):
        (path / name).write_bytes((path / name).read_bytes()[:-1])
        assert verdicts(path)[name][0] == "damaged"


def test_links_in_a_checkpoint_are_told_and_not_followed(sharded, tmp_path):
    (sharded / "extra.bin").symlink_to(tmp_path / "nowhere")
    assert verdicts(sharded)["extra.bin"] == ("no checksum", "a link, which is not followed")


# ---- bounds ---------------------------------------------------------------------------------------------------------


def test_a_large_file_is_read_in_small_pieces_and_its_pages_are_given_back(tmp_path, monkeypatch):
    path = tmp_path / "0100.pt"
    torch.save({"w": torch.zeros(8 << 20)}, path)
    sizes, freed = [], []
    pread = os.pread

    def reading(fd, size, offset):
        sizes.append(size)
        return pread(fd, size, offset)

    monkeypatch.setattr(bulk.os, "pread", reading)
    monkeypatch.setattr(bulk.os, "posix_fadvise", lambda fd, offset, length, advice: freed.append(length))
    assert verdicts(path)["0100.pt"][0] == "ok"
    assert max(sizes) <= bulk.CHUNK
    assert sum(freed) >= 32 << 20


def test_verifying_what_is_damaged_never_raises(sharded, tmp_path):
    chance = random.Random(0)
    path = tmp_path / "step_9"
    path.mkdir()
    torch.save(W, path / "a.pt")
    torch.save(W, path / "b.pt", _use_new_zipfile_serialization=False)
    save_file(W, path / "model.safetensors")
    np.savez_compressed(path / "c.npz", w=np.arange(9.0))
    for file in [*path.iterdir(), *sharded.iterdir()]:
        whole = file.read_bytes()
        for _ in range(20):
            file.write_bytes(damaged(whole, chance))
            claim = claim_at(file.parent)
            assert all(v.evidence for v in verify(claim, format_named(claim.format)))
        file.write_bytes(whole)


def test_a_file_that_cannot_be_read_is_told_with_the_others(sharded, monkeypatch):
    chunks = bulk.Bulk.chunks

    def failing(self, begin=0, end=None):
        if self.path.name == "__0_0.distcp":
            raise OSError(5, "Input/output error")
        return chunks(self, begin, end)

    monkeypatch.setattr(bulk.Bulk, "chunks", failing)
    found = verdicts(sharded)
    assert found["__0_0.distcp"] == ("damaged", "cannot be read: Input/output error")
    assert found["__0_1.distcp"][0] == "ok"


# ---- the command ----------------------------------------------------------------------------------------------------


def test_status_0_and_a_summary_where_all_is_fine(torch_file):
    done = inspect(torch_file, "--verify")
    assert done.code == 0
    assert "1 ok, 0 damaged, 0 without checksum" in done.out and "CRC-32 of 8 records" in done.out
    assert done.error == ""  # no bar where there is no terminal


def test_status_1_and_the_record_where_one_is_damaged(sharded):
    flip(sharded / "__0_0.distcp", 3)
    done = inspect(sharded, "--verify")
    assert done.code == 1
    assert "✗ damaged: __0_0.distcp: record " in done.out
    assert inspect(sharded).code == 0  # its structure is whole


def test_status_3_where_it_is_incomplete_but_nothing_is_damaged(sharded):
    (sharded / ".metadata").rename(sharded / ".metadata.tmp")
    assert inspect(sharded, "--verify").code == 3


def test_json_lists_every_file(sharded):
    document = inspect(sharded, "--verify", "--json").json
    verified = document["verified"]
    assert document["complete"] and verified["damaged"] == 0 and verified["bytes"] == document["bytes"]
    assert {f["path"] for f in verified["files"]} == {str(p) for p in sharded.iterdir()}
    assert all(f["state"] in ("ok", "no checksum") and f["evidence"] for f in verified["files"])
    assert "verified" not in inspect(sharded, "--json").json


def test_a_directory_is_described_as_a_whole(sharded):
    document = inspect(sharded, "--json").json
    assert (document["format"], document["step"], document["files"]) == ("dcp", 7, 3)
    assert document["bytes"] == sum(p.stat().st_size for p in sharded.iterdir())


def test_a_file_in_a_directory_checkpoint_says_what_it_is_a_part_of(sharded):
    done = inspect(sharded / "__0_0.distcp")
    assert done.code == 2 and f"it is a part of the checkpoint {sharded}" in done.error
    torch.save(W, sharded / "extra.pt")
    document = inspect(sharded / "extra.pt", "--json").json
    assert document["part_of"] == str(sharded) and document["format"] == "torch-zip"


def test_a_run_lists_the_checkpoints_below_it(sharded, tmp_path):
    shutil.copytree(sharded, tmp_path / "step-8")
    done = inspect(tmp_path)
    assert done.code == 2
    assert "2 checkpoints lie below it: step-7, step-8" in done.error
    assert f"ckptwatch inspect {tmp_path / 'step-7'}" in done.error
