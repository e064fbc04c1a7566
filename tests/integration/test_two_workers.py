"""An evaluation that two worker processes share gives the scores of one, up to the order of float64 sums."""

import sys
from dataclasses import replace

import pytest
from rich.console import Console

from ckptwatch.foreground import evaluate_now
from ckptwatch.model import MetricSpec, Mode, Recipe, Reference, Sampler
from ckptwatch.settings import Settings, WorkerRule
from tests.parity.evaluation_kit import ROOT, SCRIPT, TINY, make_job, metrics, write_images
from tests.parity.tiny_networks import write_clip, write_lpips

EVERYTHING = ("fid", "inception_score", "kid", "precision", "recall", "clip_score", "cmmd", "lpips")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    (directory / "prompts.txt").write_text("a red car\ntwo dogs\na street at night\n")
    write_images(directory / "reference", 90, first=5000)
    write_images(directory / "paired", 75, first=9000)
    return directory


@pytest.fixture(scope="module")
def recipe(place):
    clip = f"local-dir:{write_clip(place / 'clip')}"
    networks = replace(TINY, clip=clip, cmmd=clip, lpips_weights=write_lpips(place / "lpips.pt"),
                       prc=TINY.features, prc_layer=TINY.features_layer)
    brightness = MetricSpec(name="brightness", function="tests.parity.toy_samplers:mean_level", mode=Mode.MAX)
    return Recipe(
        name="t2i", sampler=Sampler(factory="tests.parity.toy_samplers:Toy"), metrics=(*metrics(*EVERYTHING), brightness),
        samples=75, batch_size=8, prompts=place / "prompts.txt", networks=networks, keep_samples=70,
        reference=Reference(images=place / "reference", paired=place / "paired"),
    )


def evaluate(place, recipe, devices, out=None):
    settings = Settings(state_dir=place / "state", roots=(), workers=WorkerRule(devices=devices, threads=1), directory=ROOT)
    checkpoint = make_job(place).checkpoint
    return evaluate_now(settings, checkpoint, recipe, variant="", device=None, keep=out, screen=Console(quiet=True))


@pytest.mark.slow
def test_two_workers_give_the_scores_and_pictures_of_one(place, recipe, tmp_path):
    one = evaluate(place, recipe, ("cpu",), tmp_path / "one")
    two = evaluate(place, replace(recipe, workers=2), ("cpu", "cpu"), tmp_path / "two")
    assert [s.metric for s in two.scores] == [*EVERYTHING, "brightness"]
    for a, b in zip(one.scores, two.scores, strict=True):
        assert b.value == pytest.approx(a.value, rel=1e-9, abs=1e-9), a.metric
        assert (b.n, b.mode, b.definition) == (a.n, a.mode, a.definition)
        for x, y in ((a.low, b.low), (a.high, b.high)):
            assert (x is None and y is None) or y == pytest.approx(x, rel=1e-6, abs=1e-9), a.metric
    pictures = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert pictures == sorted(p.name for p in (tmp_path / "two").iterdir())
    assert "eval_generated_069.jpg" in pictures and "eval_comparison_069.jpg" in pictures and "sheet.jpg" in pictures
    assert all((tmp_path / "one" / p).read_bytes() == (tmp_path / "two" / p).read_bytes() for p in pictures)


@pytest.mark.slow
def test_a_command_is_run_once_for_each_range_with_its_own_seeds(place, recipe, tmp_path):
    script = SCRIPT.replace("{", "{{").replace("}", "}}") + f"""
open("{tmp_path}/asked", "a").write(f"{{{{seed}}}} {{{{count}}}} {{{{prompts[0]}}}}\\n")
"""
    sampler = Sampler(command=(sys.executable, "-c", script, str(ROOT), "{prompts}", "{seed}", "{count}", "{out_dir}"))
    by_command = replace(recipe, sampler=sampler, seed=40, metrics=metrics("fid", "clip_score", "lpips"))
    one = evaluate(place, by_command, ("cpu",))
    two = evaluate(place, replace(by_command, workers=2), ("cpu", "cpu"))
    for a, b in zip(one.scores, two.scores, strict=True):
        assert b.value == pytest.approx(a.value, rel=1e-9), a.metric
    asked = sorted((tmp_path / "asked").read_text().splitlines())
    assert asked == ["40 40 a red car", "40 75 a red car", "80 35 two dogs"]

