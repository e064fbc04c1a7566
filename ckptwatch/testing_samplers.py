"""What every python sampler owes, as a suite for its author. `ckptwatch.testing` hands it on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptwatch.evaluate.samplers.generating import Problem, SampleBatch, checked_images, run_foreign
from ckptwatch.evaluate.samplers.python import Model

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SamplerConformance"]


class SamplerConformance:
    """An image follows from the weights, its seed, its prompt and its label, and from nothing else. Name your subclass Test…
    and give it `make_sampler` and `checkpoints`.

        class TestMySampler(SamplerConformance):
            prompts = ("a red car", "two dogs")
            def make_sampler(self): return create(device="cpu")
            def checkpoints(self, directory): return [(Path("tests/a.pt"), "ema"), (Path("tests/b.pt"), "ema")]

    Scores of two checkpoints are compared on the same seeds, by workers with batches of any size. A sampler that draws the
    noise of a batch from one generator, or goes on with the random numbers of the batch before, ruins the comparison.
    """

    prompts: Sequence[str] = ("",)   # of the recipe; give two where the sampler heeds them
    num_classes: int | None = None   # of the recipe; 2 or more where the sampler heeds labels
    image_size: int | None = None    # of the recipe, px a side
    seed = 40
    count = 6                        # images in a batch; 4 at least
    tolerance = 1                    # levels of 255 by which kernels may round otherwise in another batch

    def make_sampler(self) -> Model:
        """A new sampler, as your factory makes it."""
        raise NotImplementedError

    def checkpoints(self, directory: Path) -> Sequence[tuple[Path, str]]:
        """Two checkpoints of different weights, each with its variant ("" for none); `directory` is yours to write into."""
        raise NotImplementedError

    # ---- tools -----------------------------------------------------------------------------------------------------

    def batch(self, indices: Sequence[int], *, labels: Sequence[int] | None = None, prompts: Sequence[str] | None = None,
              seeds: Sequence[int] | None = None) -> SampleBatch:
        """What ckptwatch asks for when it wants samples `indices`, unless labels, prompts or seeds are given."""
        classes = self.num_classes
        turn = None if classes is None else tuple(i % classes for i in indices)
        return SampleBatch(
            indices=tuple(indices),
            seeds=tuple(self.seed + i for i in indices) if seeds is None else tuple(seeds),
            prompts=tuple(self.prompts[i % len(self.prompts)] for i in indices) if prompts is None else tuple(prompts),
            labels=turn if labels is None else tuple(labels), image_size=self.image_size,
        )

    def loaded(self, directory: Path) -> Model:
        """A sampler that has loaded the first checkpoint."""
        sampler = self.make_sampler()
        path, variant = self.checkpoints(directory)[0]
        run_foreign("load()", lambda: sampler.load(path, variant), type(sampler).__name__)
        return sampler

    def images(self, sampler: Model, batch: SampleBatch) -> "Tensor":
        """uint8 (n, 3, H, W), judged as ckptwatch does. Raises EvaluationError."""
        name = type(sampler).__name__
        images: Any = run_foreign("sample()", lambda: sampler.sample(batch), name)
        return checked_images(images, batch, Problem(path=name, hint="return (n, 3, H, W), uint8 or float in [0, 1]"))

    def assert_same(self, one: "Tensor", other: "Tensor", why: str, *, start: int = 0) -> None:
        """Each image of one is that of the other, up to `tolerance`. The first one is sample `start`."""
        assert one.shape == other.shape, f"{tuple(one.shape)} and {tuple(other.shape)}: {why}"
        apart = (one.int() - other.int()).abs().flatten(1).amax(dim=1).tolist()
        wrong = [f"sample {i} by {levels} levels" for i, levels in enumerate(apart, start) if levels > self.tolerance]
        assert not wrong, f"{why}: {', '.join(wrong)}"

    # ---- the promises ----------------------------------------------------------------------------------------------

    def test_images_are_what_ckptwatch_takes(self, tmp_path: Path) -> None:
        """uint8 or floating point in [0, 1], (n, 3, H, W), finite, in the size asked for."""
        images = self.images(self.loaded(tmp_path), self.batch(range(self.count)))
        if self.image_size is not None:
            assert tuple(images.shape[2:]) == (self.image_size, self.image_size), "batch.image_size is not heeded"

    def test_an_image_does_not_depend_on_the_size_of_its_batch(self, tmp_path: Path) -> None:
        sampler = self.loaded(tmp_path)
        whole = self.images(sampler, self.batch(range(self.count)))
        for size in (1, 2, self.count - 1):
            for start in range(0, self.count, size):
                indices = range(start, min(start + size, self.count))
                self.assert_same(
                    self.images(sampler, self.batch(indices)), whole[indices.start:indices.stop],
                    f"images differ between batches of {size} and of {self.count}", start=start)

    def test_an_image_does_not_depend_on_its_place_or_company(self, tmp_path: Path) -> None:
        sampler = self.loaded(tmp_path)
        whole = self.images(sampler, self.batch(range(self.count)))
        backwards = range(self.count - 1, -1, -1)
        self.assert_same(self.images(sampler, self.batch(backwards)).flip(0), whole, "images differ in reversed order")
        company = [0, *range(1000, 999 + self.count)]
        self.assert_same(self.images(sampler, self.batch(company))[:1], whole[:1], "an image differs in other company")

    def test_the_same_images_come_again(self, tmp_path: Path) -> None:
        first = self.images(self.loaded(tmp_path), self.batch(range(self.count)))
        sampler = self.loaded(tmp_path)
        for _ in range(2):
            self.assert_same(self.images(sampler, self.batch(range(self.count))), first, "images differ from time to time")

    def test_an_image_is_the_same_after_another_checkpoint_was_loaded(self, tmp_path: Path) -> None:
        sampler, batch = self.make_sampler(), self.batch(range(self.count))
        (path, variant), (other, others_variant) = self.checkpoints(tmp_path)[:2]
        sampler.load(path, variant)
        before = self.images(sampler, batch)
        sampler.load(other, others_variant)
        between = self.images(sampler, batch)
        sampler.load(path, variant)
        self.assert_same(self.images(sampler, batch), before, "images differ once another checkpoint was loaded in between")
        assert not between.equal(before), "another checkpoint makes the same images: is it loaded?"

    def test_another_seed_makes_another_image(self, tmp_path: Path) -> None:
        alike = self.batch([0] * self.count, seeds=range(self.seed, self.seed + self.count))
        images = self.images(self.loaded(tmp_path), alike)
        for i in range(1, self.count):
            assert not images[i].equal(images[0]), f"seeds {self.seed} and {self.seed + i} make the same image"

    def test_labels_are_heeded_where_the_recipe_has_classes(self, tmp_path: Path) -> None:
        if self.num_classes is None or self.num_classes < 2:
            return
        images = self.images(self.loaded(tmp_path), self.batch([0] * self.num_classes, labels=range(self.num_classes)))
        for i in range(1, self.num_classes):
            assert not images[i].equal(images[0]), f"classes 0 and {i} make the same image of one seed"

    def test_prompts_are_heeded_where_the_recipe_has_them(self, tmp_path: Path) -> None:
        different = list(dict.fromkeys(self.prompts))
        images = self.images(self.loaded(tmp_path), self.batch([0] * len(different), prompts=different))
        for i in range(1, len(different)):
            assert not images[i].equal(images[0]), f"{different[0]!r} and {different[i]!r} make the same image of one seed"
