"""The conformance suite of formats, run on ours, with files as the real libraries write them."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ckptwatch.formats.base import formats
from ckptwatch.formats.safetensors_file import SafetensorsFile
from ckptwatch.formats.torch_zip import TorchZip
from ckptwatch.testing import FormatConformance

EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=6)


class TestTorchZip(FormatConformance):
    every = 3

    def make_format(self):
        return TorchZip()

    def write(self, directory):
        path = directory / "0000100.pt"
        torch.save({"model": {"w": torch.arange(20.0)}, "model_ema": {"w": torch.zeros(3)}, "step": 100, "loss": 0.5}, path)
        return path


class TestSafetensors(FormatConformance):
    def make_format(self):
        return SafetensorsFile()

    def write(self, directory):
        path = directory / "model-100.safetensors"
        save_file({"w": torch.arange(20.0), "b": torch.zeros(3)}, path, metadata={"step": "100"})
        return path


def test_the_installed_formats_have_distinct_names():
    names = [f.name for f in formats()]
    assert {"torch-zip", "safetensors"} <= set(names) and len(names) == len(set(names))


@pytest.fixture(params=[TestTorchZip, TestSafetensors])
def written(request, tmp_path):
    suite = request.param()
    path = suite.write(tmp_path)
    return suite, path, path.read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS)
def test_no_mutation_raises(edits, written):
    suite, path, whole = written
    data = bytearray(whole)
    for place, length, replacement in edits:
        begin = place % (len(data) + 1)
        data[begin:begin + length] = replacement
    suite.examine_bytes(bytes(data), path)
