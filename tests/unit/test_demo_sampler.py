"""A sample of the demo's generator follows from its seed and prompt, however it is asked for."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ckptwatch.demo import sample, scenes
from ckptwatch.demo.generator import MAX_WORDS, Generator, tokenise
from ckptwatch.demo.sampler import create

PROMPTS = scenes.seeded(range(50, 62)).captions


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("sampler") / "0000001.pt"
    torch.save({"model": Generator().state_dict(), "model_ema": Generator().state_dict(), "step": 1}, path)
    return path


def batch(indices, seed=0):
    return SimpleNamespace(
        indices=list(indices), seeds=[seed + i for i in indices], prompts=[PROMPTS[i % len(PROMPTS)] for i in indices]
    )


def loaded(checkpoint, variant=""):
    sampler = create()
    sampler.load(checkpoint, variant)
    return sampler


def test_samples_do_not_depend_on_the_batch(checkpoint):
    sampler = loaded(checkpoint)
    together = sampler.sample(batch(range(12)))
    assert together.shape == (12, 3, 64, 64)
    assert together.dtype == torch.uint8
    for size in (1, 5):
        parts = [sampler.sample(batch(range(start, min(start + size, 12)))) for start in range(0, 12, size)]
        assert torch.equal(torch.cat(parts), together)
    shuffled = [7, 2, 11]
    assert torch.equal(sampler.sample(batch(shuffled)), together[shuffled])


def test_seed_and_prompt_both_matter(checkpoint):
    sampler = loaded(checkpoint)
    first = sampler.sample(batch([0]))
    assert not torch.equal(first, sampler.sample(batch([0], seed=1)))
    other = SimpleNamespace(indices=[0], seeds=[0], prompts=["a red circle on a grey background"])
    assert other.prompts != PROMPTS[:1]
    assert not torch.equal(first, sampler.sample(other))


def test_the_default_weights_are_the_moving_average(checkpoint):
    default = loaded(checkpoint).sample(batch(range(3)))
    assert torch.equal(default, loaded(checkpoint, "model_ema").sample(batch(range(3))))
    assert not torch.equal(default, loaded(checkpoint, "model").sample(batch(range(3))))


def test_the_command_writes_the_same_pictures(checkpoint, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    count = len(PROMPTS) + 2  # more than there are prompts: they start over
    arguments = ["--weights", "model", "--seed", "9", "--count", str(count)]
    assert sample.main(["--ckpt", str(checkpoint), "--prompts", str(prompts), "--out", str(out), *arguments]) == 0
    expected = loaded(checkpoint, "model").sample(batch(range(count), seed=9))
    files = sorted(out.iterdir())
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(count)]
    for file, picture in zip(files, expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), picture.permute(1, 2, 0).numpy())


def test_missing_weights_are_named(checkpoint):
    with pytest.raises(KeyError, match=r"'model_ema2'; it holds model, model_ema, step"):
        create().load(checkpoint, "model_ema2")


def test_pictures_that_are_not_finite_are_an_error(tmp_path):
    weights = {name: torch.full_like(value, float("nan")) for name, value in Generator().state_dict().items()}
    torch.save({"model_ema": weights}, tmp_path / "nan.pt")
    with pytest.raises(FloatingPointError, match="not finite"):
        loaded(tmp_path / "nan.pt").sample(batch([0]))


def test_unknown_options_are_an_error():
    with pytest.raises(TypeError, match="temperature"):
        create(temperature=1.0)


def test_words_outside_the_vocabulary_are_ignored():
    tokens = tokenise(["a red circle on a black background", "Circle BLACK red", "", "red " * 50])
    assert tokens.shape == (4, MAX_WORDS)
    assert sorted(tokens[0].tolist()) == sorted(tokens[1].tolist())
    assert not tokens[2].any()
