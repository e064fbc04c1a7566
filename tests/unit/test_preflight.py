"""What a recipe lacks on this machine is found without importing or running anything of it."""

import sys

import pytest

from ckptwatch.model import MetricSpec, Networks, Recipe, Reference, Sampler
from ckptwatch.preflight import is_module, lacking_here


def lacking(directory, *, sampler=None, metrics=("inception_score",), **changes):
    specs = tuple(m if isinstance(m, MetricSpec) else MetricSpec(name=m) for m in metrics)
    recipe = Recipe(name="r", sampler=sampler or Sampler(images="x"), metrics=specs, **changes)
    return list(lacking_here(recipe, directory))


def command(*words):
    return Sampler(command=words)


def program(path, mode=0o755):
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


# ---- programs -------------------------------------------------------------------------------------------------------


def test_a_program_is_looked_for_where_the_command_runs(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    program(tmp_path / "bin/generate")
    assert lacking(tmp_path, sampler=command("bin/generate", "{checkpoint}")) == []
    assert lacking(tmp_path, sampler=command("./bin/generate")) == []
    assert lacking(tmp_path, sampler=command(str(tmp_path / "bin/generate"))) == []
    [problem] = lacking(tmp_path / "elsewhere", sampler=command("bin/generate"))
    assert str(tmp_path / "elsewhere/bin/generate") in problem


def test_a_bare_name_is_looked_for_in_path_alone(tmp_path, monkeypatch):
    program(tmp_path / "generate")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert "in PATH" in lacking(tmp_path, sampler=command("generate"))[0]
    program(tmp_path / "bin/generate")
    assert lacking(tmp_path, sampler=command("generate")) == []


def test_a_file_that_cannot_be_run_is_no_program(tmp_path):
    program(tmp_path / "gen.sh", mode=0o644)
    assert "chmod +x" in lacking(tmp_path, sampler=command("./gen.sh"))[0]


def test_a_program_that_depends_on_the_checkpoint_is_not_judged(tmp_path):
    assert lacking(tmp_path, sampler=command("{checkpoint}/sample.sh")) == []
    program(tmp_path / "bin/{x}")
    assert lacking(tmp_path, sampler=command("bin/{{x}}")) == []


# ---- modules --------------------------------------------------------------------------------------------------------


@pytest.fixture
def modules(tmp_path):
    """Each ends the process that imports it."""
    for name in ("single.py", "package/__init__.py", "package/inner.py", "spaced/deep/module.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('imported')\n")
    return tmp_path


@pytest.mark.parametrize("name", ["single", "package", "package.inner", "spaced.deep.module", "os.path", "sys",
                                  "yaml.loader", "ckptwatch.planning"])
def test_modules_of_the_configurations_directory_and_installed_ones_are_found(modules, name):
    before = set(sys.modules), list(sys.path)
    assert is_module(name, modules)
    assert (set(sys.modules), sys.path) == before, "a check imports nothing"


@pytest.mark.parametrize("name", ["nowhere", "package.nowhere", "single.inner", "spaced", "spaced.deep", "spaced.nowhere.x",
                                  "yaml.nowhere"])
def test_a_module_without_a_file_is_not_found(modules, name):
    assert not is_module(name, modules)


def test_a_module_is_not_looked_for_in_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "here.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # as `python -m ckptwatch` has it
    assert is_module("here", tmp_path)
    assert not is_module("here", tmp_path / "elsewhere")


def test_each_function_whose_module_is_missing_is_named_by_its_key(tmp_path):
    found = lacking(
        tmp_path, sampler=Sampler(factory="nowhere_a:make"),
        metrics=("fid", MetricSpec(name="mine", function="nowhere_b:mine")),
        networks=Networks(features_module="nowhere_c.deep:register"))
    assert [p.split(": ")[0] for p in found] == ["sampler.python", "metrics, mine", "networks.features.module"]
    assert all(name in p for name, p in zip(("nowhere_a", "nowhere_b", "nowhere_c.deep"), found, strict=True))


def test_a_module_that_no_metric_needs_is_not_missed(tmp_path):
    assert lacking(tmp_path, metrics=("lpips",), networks=Networks(features_module="nowhere:register")) == []


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("begin", "told"), [
    (b"PK\x03\x04rest", ""), (b"\x80\x04rest", ""), (b"", "an empty file"), (b"\x93NUMPY\x01\x00", "a single array"),
    (b"mu,sigma\n", "some other file"),
])
def test_statistics_are_told_by_their_first_bytes(tmp_path, begin, told):
    (tmp_path / "stats.npz").write_bytes(begin)
    found = lacking(tmp_path, metrics=("fid",), reference=Reference(stats=tmp_path / "stats.npz"))
    assert len(found) == bool(told) and all(told in p and "stats.npz" in p for p in found)


@pytest.mark.parametrize("given", ["clip/weights", "weights.pt", "w.PTH", "w.bin", "w.safetensors", "~/w"])
@pytest.mark.parametrize("metric", ["clip_score", "cmmd"])
def test_clip_weights_that_look_like_a_path_and_are_not_there_are_told(tmp_path, given, metric):
    networks = Networks(clip_pretrained=given, cmmd_pretrained=given)
    [problem] = lacking(tmp_path, metrics=(metric,), networks=networks)
    assert "no such file" in problem and problem.startswith(f"networks.{metric.removesuffix('_score')}.pretrained")
    assert lacking(tmp_path, networks=networks) == [], "no metric rests on them"


@pytest.mark.parametrize("given", ["openai", "laion2b_s34b_b79k"])
def test_a_tag_of_open_clip_is_no_path(tmp_path, given):
    assert lacking(tmp_path, metrics=("clip_score", "cmmd"),
                   networks=Networks(clip_pretrained=given, cmmd_pretrained=given)) == []
