"""A recipe's digest changes exactly when its scores stop being comparable."""

import json

import pytest

from ckptwatch.model import (
    Composite,
    CompositeTerm,
    MetricSpec,
    Networks,
    Pipeline,
    Program,
    Recipe,
    Reference,
    Sampler,
    evolve,
)
from ckptwatch.recipes import ContentDigests, input_stamp, inspect_recipe


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "ref").mkdir()
    for i in range(3):
        (tmp_path / f"ref/{i}.png").write_bytes(bytes([i]) * 10)
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/weights.bin").write_bytes(b"w")
    (tmp_path / "lpips.pt").write_bytes(b"l")
    return Recipe(
        name="r", sampler=Sampler(command=("gen",)), prompts=tmp_path / "prompts.txt",
        metrics=tuple(MetricSpec(name=name) for name in ("fid", "clip_score", "lpips")),
        reference=Reference(images=tmp_path / "ref"),
        networks=Networks(clip=f"local-dir:{tmp_path}/clip", lpips_weights=tmp_path / "lpips.pt"))


def inspect(recipe, tmp_path):
    return inspect_recipe(recipe, ContentDigests(tmp_path / "cache/contents.json"))


def digest(recipe, tmp_path):
    found, problems = inspect(recipe, tmp_path)
    assert problems == []
    return found


@pytest.mark.parametrize("change", [
    {"samples": 7}, {"seed": 7}, {"version": 2}, {"sampler": Sampler(command=("other",))},
    {"metrics": (MetricSpec(name="kid"),)},
    {"sampler": Sampler(factory="a:b", options={"steps": 4})}, {"networks": Networks(features_layer="768")},
    {"networks": Networks(precision="bf16")}, {"num_classes": 10}, {"image_size": 64},
    {"sampler": Sampler(diffusers=Pipeline(base="sd"))},
    {"reference": Reference()}, {"prompts": None},
])
def test_what_changes_a_score_changes_the_digest(recipe, tmp_path, change):
    assert digest(evolve(recipe, **change), tmp_path) != digest(recipe, tmp_path)


@pytest.mark.parametrize("change", [
    {"batch_size": 1}, {"keep_samples": 0}, {"workers": 4}, {"name": "other"},
    {"sampler": Sampler(command=("gen",), timeout=1.0)},
    {"composite": Composite(terms={"fid": CompositeTerm(weight=1, low=0, high=1)})},
])
def test_what_changes_no_score_leaves_the_digest(recipe, tmp_path, change):
    assert digest(evolve(recipe, **change), tmp_path) == digest(recipe, tmp_path)


@pytest.mark.parametrize("name", ["ref/1.png", "prompts.txt", "clip/weights.bin", "lpips.pt"])
def test_content_counts_not_names_and_times(recipe, tmp_path, name):
    before = digest(recipe, tmp_path)
    original = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(b"changed content")
    assert digest(recipe, tmp_path) != before
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(original)
    assert digest(recipe, tmp_path) == before


def test_an_image_more_is_another_reference_and_a_note_is_none(recipe, tmp_path):
    before = digest(recipe, tmp_path)
    (tmp_path / "ref/notes.txt").write_text("x")
    assert digest(recipe, tmp_path) == before
    (tmp_path / "ref/9.jpg").write_bytes(b"x")
    assert digest(recipe, tmp_path) != before


@pytest.mark.parametrize(("name", "words"), [
    ("ref", "reference images"), ("prompts.txt", "prompts"), ("clip", "CLIP model"), ("lpips.pt", "network weights")])
def test_every_missing_input_is_named_and_noticed_when_it_is_back(recipe, tmp_path, name, words):
    stamp = input_stamp(recipe)
    (tmp_path / name).rename(tmp_path / "away")
    _, problems = inspect(recipe, tmp_path)
    assert len(problems) == 1 and words in problems[0] and str(tmp_path / name) in problems[0]
    assert input_stamp(recipe) != stamp
    (tmp_path / "away").rename(tmp_path / name)
    assert inspect(recipe, tmp_path)[1] == []


def test_all_missing_inputs_come_at_once(recipe, tmp_path):
    for name in ("ref", "prompts.txt", "clip", "lpips.pt"):
        (tmp_path / name).rename(tmp_path / f"away-{name}")
    assert len(inspect(recipe, tmp_path)[1]) == 4


def test_an_empty_reference_is_a_problem(recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    _, problems = inspect(evolve(recipe, reference=Reference(images=tmp_path / "empty")), tmp_path)
    assert problems == [f"reference images {tmp_path}/empty: no images in it"]


@pytest.mark.parametrize("garbage", ["", "null", "[]", "{", "[" * 100_000, '{"x": 5}', '{"%s/prompts.txt": [1]}'])
def test_a_damaged_cache_costs_only_time(recipe, tmp_path, garbage):
    before = digest(recipe, tmp_path)
    cache = tmp_path / "cache/contents.json"
    cache.write_text(garbage.replace("%s", str(tmp_path)))
    assert digest(recipe, tmp_path) == before


def test_a_forged_cache_entry_of_the_wrong_shape_is_not_believed(recipe, tmp_path):
    before = digest(recipe, tmp_path)
    cache = tmp_path / "cache/contents.json"
    cut = {path: entry[:3] for path, entry in json.loads(cache.read_text()).items()}
    cache.write_text(json.dumps(cut))
    assert digest(recipe, tmp_path) == before


def test_a_file_is_read_once(recipe, tmp_path):
    digest(recipe, tmp_path)
    contents = ContentDigests(tmp_path / "cache/contents.json")
    before = dict(contents._known)
    inspect_recipe(recipe, contents)
    assert contents._known == before and not contents._changed


def test_a_cache_that_cannot_be_written_is_no_error(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    assert inspect_recipe(recipe, ContentDigests(tmp_path / "file/contents.json"))[1] == []


# ---- networks ----


def networks_of(recipe, **changes):
    return evolve(recipe, networks=evolve(recipe.networks, **changes))


@pytest.mark.parametrize("change", [
    {"prc": "inception-v3-compat"}, {"dino": "vit_small"}, {"cmmd": "ViT-B-32"}, {"cmmd_pretrained": "laion"},
    {"logits_layer": "other"},
])
def test_networks_that_no_metric_of_the_recipe_uses_leave_the_digest(recipe, tmp_path, change):
    assert digest(networks_of(recipe, **change), tmp_path) == digest(recipe, tmp_path)
    every = evolve(recipe, metrics=tuple(MetricSpec(name=n) for n in ("inception_score", "precision", "fd_dinov2", "cmmd")))
    assert digest(networks_of(every, **change), tmp_path) != digest(every, tmp_path)


def test_weights_where_the_library_looks_for_them_count_by_content(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    before, stamp = digest(recipe, tmp_path), input_stamp(recipe)
    place = tmp_path / "torch/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"mine")
    mine = digest(recipe, tmp_path)
    assert mine != before and input_stamp(recipe) != stamp
    place.write_bytes(b"other")
    assert digest(recipe, tmp_path) not in (before, mine)


def test_published_weights_are_the_same_before_and_after_the_download(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    before = digest(recipe, tmp_path)
    place = tmp_path / "torch/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"published")
    monkeypatch.setattr(ContentDigests, "of", lambda self, path: "6726825d" + "0" * 56 if path == place else "f" * 64)
    with_file = digest(recipe, tmp_path)
    place.unlink()
    assert with_file == digest(recipe, tmp_path) and before != ""


def test_program_counts_by_content(recipe, tmp_path):
    (tmp_path / "p.pt2").write_bytes(b"one")
    program = evolve(recipe, sampler=Sampler(program=Program(file=tmp_path / "p.pt2", noise=(3, 8, 8))))
    before, stamp = digest(program, tmp_path), input_stamp(program)
    (tmp_path / "p.pt2").write_bytes(b"other")
    assert digest(program, tmp_path) != before and input_stamp(program) != stamp


def test_base_pipeline_counts_by_content(recipe, tmp_path):
    (tmp_path / "base/unet").mkdir(parents=True)
    (tmp_path / "base/model_index.json").write_text("{}")
    (tmp_path / "base/unet/w.safetensors").write_bytes(b"one")
    pipeline = evolve(recipe, sampler=Sampler(diffusers=Pipeline(base=str(tmp_path / "base"))))
    before = digest(pipeline, tmp_path)
    (tmp_path / "base/unet/w.safetensors").write_bytes(b"other")
    assert digest(pipeline, tmp_path) != before
    (tmp_path / "base").rename(tmp_path / "away")
    assert any("base pipeline" in p for p in inspect(pipeline, tmp_path)[1])
