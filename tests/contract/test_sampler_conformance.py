"""The suite for authors of python samplers passes a good one, and names what is wrong with a bad one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckptwatch.errors import EvaluationError
from ckptwatch.testing import SamplerConformance
from tests.parity.toy_samplers import GoesOn, OneNoise, Toy, Trained


def two_checkpoints(directory: Path) -> list[tuple[Path, str]]:
    for name, weight in (("a.pt", 3.0), ("b.pt", 9.0)):
        torch.save({"ema": {"w": torch.full((3,), weight)}}, directory / name)
    return [(directory / "a.pt", "ema"), (directory / "b.pt", "ema")]


class TestTrained(SamplerConformance):
    """A sampler as it should be."""

    prompts = ("a red car", "two dogs")
    num_classes = 3
    image_size = 24

    def make_sampler(self):
        return Trained("cpu")

    def checkpoints(self, directory):
        return two_checkpoints(directory)


PROMISES = [name for name in dir(SamplerConformance) if name.startswith("test_")]


def broken(make, directory: Path, **attributes) -> dict[str, str]:
    """The promises that a sampler breaks, with what the suite says."""
    suite = type("Suite", (TestTrained,), {"make_sampler": lambda self: make("cpu"), **attributes})()
    found = {}
    for number, name in enumerate(PROMISES):
        place = directory / str(number)
        place.mkdir()
        try:
            getattr(suite, name)(place)
        except (AssertionError, EvaluationError) as error:
            found[name] = str(error)
    return found


def sampler_that(change):
    class Changed(Trained):
        def sample(self, batch):
            return change(super().sample(batch), batch)

    return Changed


def test_images_that_depend_on_the_batch_fail_it(tmp_path):
    said = broken(OneNoise, tmp_path)
    assert "batches of 1 and of 6: sample 1 by" in said["test_an_image_does_not_depend_on_the_size_of_its_batch"]
    assert "reversed order" in said["test_an_image_does_not_depend_on_its_place_or_company"]


def test_images_that_depend_on_what_was_made_before_fail_it(tmp_path):
    assert "from time to time" in broken(GoesOn, tmp_path)["test_the_same_images_come_again"]


def test_images_that_depend_on_the_company_fail_it(tmp_path):
    normalised = sampler_that(lambda images, batch: (images.float() + images.float().mean()) / 510)
    said = broken(normalised, tmp_path)
    assert set(said) == {"test_an_image_does_not_depend_on_the_size_of_its_batch",
                         "test_an_image_does_not_depend_on_its_place_or_company"}


def test_weights_that_are_not_loaded_fail_it(tmp_path):
    assert "is it loaded?" in broken(Toy, tmp_path)["test_an_image_is_the_same_after_another_checkpoint_was_loaded"]


def test_weights_that_stay_from_another_checkpoint_fail_it(tmp_path):
    class Mixing(Trained):
        def load(self, checkpoint, variant):
            before = getattr(self, "shift", 0)
            super().load(checkpoint, variant)
            self.shift = self.shift + before

    assert "in between" in broken(Mixing, tmp_path)["test_an_image_is_the_same_after_another_checkpoint_was_loaded"]


@pytest.mark.parametrize(("change", "promise"), [
    (lambda images, batch: images.float() / 127.5 - 1, "test_images_are_what_ckptwatch_takes"),
    (lambda images, batch: images[..., :20], "test_images_are_what_ckptwatch_takes"),
    (lambda images, batch: images * 0, "test_another_seed_makes_another_image"),
    (lambda images, batch: images.index_fill(1, torch.tensor(2), 0), "test_labels_are_heeded_where_the_recipe_has_classes"),
    (lambda images, batch: images.index_fill(1, torch.tensor(1), 0), "test_prompts_are_heeded_where_the_recipe_has_them"),
])
def test_each_promise_can_be_broken(tmp_path, change, promise):
    assert promise in broken(sampler_that(change), tmp_path)


def test_rounding_of_other_batch_shapes_is_allowed_for(tmp_path):
    rounding = sampler_that(lambda images, batch: (images.float() / 255 + len(batch) % 2 / 260).clamp(0, 1))
    (tmp_path / "strict").mkdir()
    assert not broken(rounding, tmp_path)
    assert broken(rounding, tmp_path / "strict", tolerance=0)


def test_authors_of_formats_need_no_torch():
    code = "import sys, ckptwatch.testing as t; assert 'torch' not in sys.modules; t.SamplerConformance; t.FormatConformance"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        __import__("ckptwatch.testing").testing.Nothing  # noqa: B018
