"""Rows come back as they were measured, in order, from one part or from several; what cannot be true is refused."""

import json

import numpy as np
import pytest
import torch

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.ledger import Ledger
from ckptwatch.evaluate.metrics.statistics import moments_of


def part(directory, batches, *, pairing="", moments=(), warnings=(), networks=None):
    directory.mkdir()
    ledger = Ledger(directory)
    for batch in batches:
        ledger.append(batch)
    ledger.pairing, ledger.warnings, ledger.networks = pairing, tuple(warnings), networks or {}
    ledger.save(moments)
    return directory


def features(n, seed=0, width=7):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cuts", [[23], [5, 18], [8, 8, 7]])
def test_rows_are_the_same_however_many_parts_wrote_them(tmp_path, cuts):
    x = features(23)
    parts = []
    for number, piece in enumerate(x.split(cuts)):
        batches = [{"f": b, "one": b[:, 0].double()} for b in piece.split(4) if len(b)] or [{"f": piece, "one": piece[:, 0]}]
        parts.append(part(tmp_path / str(number), batches))
    rows = Ledger.merged(parts).rows("f")
    assert len(rows) == 23 and rows.width == 7
    assert torch.equal(torch.cat(list(rows.blocks(3))), x) and torch.equal(rows.tensor(), x)
    chosen = np.array([22, 0, 5, 5, 4])
    assert torch.equal(rows.take(chosen), x[torch.from_numpy(chosen)])
    assert torch.equal(Ledger.merged(parts).rows("one").column(), x[:, 0].double())


def test_blocks_are_no_larger_than_asked(tmp_path):
    rows = Ledger.merged([part(tmp_path / "a", [{"f": features(10)}]), part(tmp_path / "b", [{"f": features(3)}])]).rows("f")
    assert [len(b) for b in rows.blocks(4)] == [4, 4, 2, 3]


def test_float64_rows_keep_their_precision(tmp_path):
    value = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    assert torch.equal(Ledger.merged([part(tmp_path / "a", [{"d": value}])]).rows("d").column(), value)


def test_moments_of_parts_are_those_of_the_whole(tmp_path):
    x = features(50) + 1000  # a common mean that float32 sums would not bear
    parts = [part(tmp_path / str(i), [{"f": piece}], moments=("f",)) for i, piece in enumerate(x.split([31, 19]))]
    found, whole = Ledger.merged(parts).moments("f"), moments_of([x])
    assert found.n == 50
    assert torch.allclose(found.mean, whole.mean, rtol=1e-14)
    assert torch.allclose(found.covariance, whole.covariance, rtol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_an_error_and_no_number(tmp_path, bad):
    x = features(4)
    x[2, 1] = bad
    with pytest.raises(EvaluationError) as caught:
        part(tmp_path / "a", [{"features/2048": x}])
    assert caught.value.kind == "metric" and "features/2048" in str(caught.value) and not caught.value.retryable


def test_parts_that_paired_differently_are_not_put_together(tmp_path):
    parts = [part(tmp_path / how, [{"f": features(3)}], pairing=how) for how in ("stem", "order")]
    with pytest.raises(EvaluationError, match="by name, another by order"):
        Ledger.merged(parts)


def test_a_part_that_read_no_originals_pairs_with_any(tmp_path):
    parts = [part(tmp_path / str(i), [{"f": features(3)}], pairing=how) for i, how in enumerate(("stem", "", "stem"))]
    assert Ledger.merged(parts).pairing == "stem"


def test_parts_that_looked_through_other_networks_are_not_put_together(tmp_path):
    parts = [part(tmp_path / d, [{"f": features(3)}], networks={"features": d}) for d in ("bf16", "fp32")]
    with pytest.raises(EvaluationError, match="other precisions"):
        Ledger.merged(parts)


def test_warnings_of_parts_are_told_once(tmp_path):
    parts = [part(tmp_path / str(i), [{"f": features(3)}], warnings=["resized", f"part {i}"]) for i in range(2)]
    assert Ledger.merged(parts).warnings == ("resized", "part 0", "part 1")


@pytest.mark.parametrize("how", ["blocks", "tensor"])
def test_rows_that_a_full_disk_cut_off_are_an_error(tmp_path, how):
    directory = part(tmp_path / "a", [{"f": features(9)}])
    file = directory / json.loads((directory / "ledger.json").read_text())["keys"]["f"][0]
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(EvaluationError, match="shorter"):
        rows = Ledger.merged([directory]).rows("f")
        list(rows.blocks()) if how == "blocks" else rows.tensor()
