"""The conformance suite of formats, run on the plainest of ours, with files as the real libraries write them."""

import torch
from safetensors.torch import save_file

from ckptwatch.formats.base import formats
from ckptwatch.formats.safetensors_file import SafetensorsFile
from ckptwatch.formats.torch_zip import TorchZip
from ckptwatch.testing import FormatConformance


class TestTorchZip(FormatConformance):
    cuts = 500

    def make_format(self):
        return TorchZip()

    def write(self, directory):
        path = directory / "0000100.pt"
        torch.save({"model": {"w": torch.arange(20.0)}, "model_ema": {"w": torch.zeros(3)}, "step": 100, "loss": 0.5}, path)
        return path


class TestSafetensors(FormatConformance):
    cuts = 500

    def make_format(self):
        return SafetensorsFile()

    def write(self, directory):
        path = directory / "model-100.safetensors"
        save_file({"w": torch.arange(20.0), "b": torch.zeros(3)}, path, metadata={"step": "100"})
        return path


def test_the_installed_formats_have_distinct_names():
    names = [f.name for f in formats()]
    assert {"torch-zip", "safetensors"} <= set(names) and len(names) == len(set(names))


def test_a_save_count_is_no_step_unless_the_user_says_so(tmp_path):
    """Accelerate numbers its saves; `checkpoint_3` is the fourth one, at whatever step."""
    import re

    from ckptwatch.formats.base import Claim, Family, NamePatterns, examine
    from ckptwatch.model import Facts

    class Counting(Family):
        name = "counting"

        def examine(self, claim):
            return Facts(format="counting", complete=True, evidence="x\udcff", name_counts_saves=True)

    claim = Claim(format="counting", path=tmp_path / "checkpoint_3", members=(tmp_path / "checkpoint_3",))
    facts = examine(claim, Counting())
    assert (facts.step, facts.evidence) == (None, "x\\udcff"), "and what is no text can be recorded"
    own = NamePatterns(patterns=(re.compile(r"checkpoint_(?P<step>\d+)"),))
    assert examine(claim, Counting(), own).step == 3
