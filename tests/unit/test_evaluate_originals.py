"""Which original each generated image is compared with."""

from pathlib import Path

import pytest
import torch

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.originals import Originals
from ckptwatch.evaluate.samplers import Batch, OrderChangedError
from ckptwatch.model import FailureKind, Reference
from tests.parity.evaluation_kit import write_images
from tests.parity.toy_samplers import picture

COUNT = 6


def originals(directory: Path, count: int = COUNT, samples: int = COUNT, warnings: list[str] | None = None) -> Originals:
    """img_0.png … with pictures of seeds 0 …"""
    paired = write_images(directory / "originals", count, first=0)
    return Originals(Reference(paired=paired), samples, [].append if warnings is None else warnings.append)


def batch(start: int, *stems: int | str, count: int = 2, side: int = 40) -> Batch:
    names = tuple(f"img_{s}" if isinstance(s, int) else s for s in stems)
    return Batch(start, torch.zeros(len(names) or count, 3, side, side, dtype=torch.uint8), names or None)


def seeds(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_images_without_names_are_paired_by_order_also_within_a_range(tmp_path):
    found = originals(tmp_path, count=12, samples=12)
    assert found.pairing == ""
    assert seeds(found.for_batch(batch(10))) == [10, 11]  # natural order: img_10 comes after img_9
    assert seeds(found.for_batch(batch(2))) == [2, 3]
    assert found.pairing == "order"


def test_images_with_names_of_originals_are_paired_by_name(tmp_path):
    found = originals(tmp_path)
    assert seeds(found.for_batch(batch(0, 4, 1))) == [4, 1]
    assert found.pairing == "stem"
    assert seeds(found.for_batch(batch(2, 0, 5))) == [0, 5]


def test_a_foreign_name_in_the_first_batch_means_order(tmp_path):
    found = originals(tmp_path)
    assert seeds(found.for_batch(batch(0, 4, "other"))) == [0, 1]
    assert seeds(found.for_batch(batch(2, 0, 5))) == [2, 3]
    assert found.pairing == "order"


@pytest.mark.parametrize("later", [batch(2, 0, "other"), batch(2)])
def test_a_foreign_name_later_has_all_read_again_by_order(tmp_path, later):
    found = originals(tmp_path)
    found.for_batch(batch(0, 4, 1))
    with pytest.raises(OrderChangedError, match="paired by order"):
        found.for_batch(later)
    assert seeds(found.for_batch(batch(0, 4, 1))) == [0, 1]
    assert seeds(found.for_batch(later)) == [2, 3]
    assert found.pairing == "order"


def test_reading_again_decides_again(tmp_path):
    found = originals(tmp_path)
    found.for_batch(batch(0, "writing", 1))
    assert seeds(found.for_batch(batch(0, 4, 1))) == [4, 1]  # the first batch again: the temporary name is gone
    assert found.pairing == "stem"


def test_originals_of_another_size_are_resized_and_that_is_said_once(tmp_path):
    warnings = []
    found = originals(tmp_path, warnings=warnings)
    assert found.for_batch(batch(0, side=20)).shape == (2, 3, 20, 20)
    found.for_batch(batch(2, side=20))
    assert len(warnings) == 1 and "40×40" in warnings[0] and "20×20" in warnings[0]
    assert torch.equal(found.for_batch(batch(0))[1], picture(1, ""))


def test_the_stamp_tells_originals_apart_and_whether_they_changed(tmp_path):
    found = originals(tmp_path)
    first = found.stamp(batch(0, 0, 1))
    assert first == found.stamp(batch(0, 0, 1))
    assert len({first, found.stamp(batch(2, 2, 3)), found.stamp(batch(0, 1, 0))}) == 3
    write_images(tmp_path / "originals", 1, first=99, side=48)
    assert found.stamp(batch(0, 0, 1)) != first
    (tmp_path / "originals" / "img_0.png").unlink()
    with pytest.raises(EvaluationError) as caught:
        found.stamp(batch(0, 0, 1))
    assert caught.value.path == tmp_path / "originals" / "img_0.png"


def test_too_few_or_broken_originals_are_named(tmp_path):
    with pytest.raises(EvaluationError, match="6 originals for 7 samples"):
        originals(tmp_path, samples=7)
    found = originals(tmp_path)
    (tmp_path / "originals" / "img_3.png").write_bytes(b"x")
    with pytest.raises(EvaluationError) as caught:
        found.for_batch(batch(2))
    assert caught.value.kind == FailureKind.RECIPE and caught.value.path.name == "img_3.png"
    with pytest.raises(EvaluationError, match="the recipe names none"):
        Originals(Reference(), 1, print)
