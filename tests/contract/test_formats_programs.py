"""Programs that torch wrote are checkpoints like others: whole or not, with the step of their name."""

import pytest

from ckptwatch.formats.base import claim_at, examine
from ckptwatch.formats.torch_zip import TorchZip
from tests.contract.programs import write_program


@pytest.mark.parametrize("kind", ["export", "script"])
@pytest.mark.parametrize("name", ["step_0001000.pt2", "step_0001000.pt"])
def test_a_program_is_whole_and_has_its_step(tmp_path, kind, name):
    write_program(tmp_path / name, kind)
    facts = examine(claim_at(tmp_path / name), TorchZip())
    assert facts.complete and facts.step == 1000 and facts.fingerprint


@pytest.mark.parametrize("kind", ["export", "script"])
def test_a_program_that_was_cut_off_is_not_whole(tmp_path, kind):
    path = tmp_path / "step_0001000.pt2"
    write_program(path, kind)
    data = path.read_bytes()
    for cut in (1, 30, len(data) // 2, len(data) - 5):
        path.write_bytes(data[:-cut])
        assert not examine(claim_at(path), TorchZip()).complete, cut
