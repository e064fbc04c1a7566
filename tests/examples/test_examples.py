"""What holds of every example: a directory of its own, nothing that exists only on somebody's machine."""

import re

import pytest
import yaml

from ckptwatch.config import load_config
from tests.examples.example import EXAMPLES

NAMES = sorted(p.name for p in EXAMPLES.iterdir() if p.is_dir() and (p / "config.yaml").exists())
HERE = re.compile(r"/(?:work|tmp|home|root|Users)/")


def strings(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def test_each_of_the_five_systems_has_its_example():
    assert {"hunyuan-dit", "san-depth", "panollava", "sdpose", "jit"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_can_be_read_about_configured_and_tested(name):
    assert (EXAMPLES / name / "README.md").read_text().startswith("# ")
    assert f"({name}/" in (EXAMPLES / "README.md").read_text()
    settings = load_config(EXAMPLES / name / "config.yaml")
    assert settings.runs


@pytest.mark.parametrize("name", NAMES)
def test_an_example_holds_no_path_of_somebodys_machine(name):
    config = yaml.safe_load((EXAMPLES / name / "config.yaml").read_text())
    assert [text for text in strings(config) if text.startswith(("/", "~"))] == []
    for file in (p for p in (EXAMPLES / name).iterdir() if p.suffix in (".py", ".yaml", ".md", ".txt")):
        assert HERE.findall(file.read_text()) == [], file.name


def test_the_full_size_of_jit_is_what_the_original_does():
    settings = load_config(EXAMPLES / "jit" / "config.full.yaml")
    recipe, (rule,) = settings.recipes["imagenet256"], settings.runs
    assert (recipe.samples, recipe.batch_size, recipe.num_classes, recipe.image_size) == (50_000, 256, 1000, 256)
    assert recipe.workers == len(settings.workers.devices)
    assert recipe.reference.stats is not None
    assert rule.evaluate.every_epochs == 40
    assert rule.evaluate.variants == ("model", "model_ema1", "model_ema2")
    assert rule.keep.every_epochs == 100
    assert set(rule.expect) == {"model", "optimizer", "model_ema1", "model_ema2"}
