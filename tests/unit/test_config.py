"""The configuration: every problem at once, each with its line; what is accepted means what it says."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ckptwatch.config import load_config, settings_for_roots, yields
from ckptwatch.errors import CkptwatchError, ConfigError, UsageError
from ckptwatch.model import KeepRules, Mode
from ckptwatch.outline import find_config
from ckptwatch.settings import RootRule, WorkerRule

MINIMAL = "watch:\n  - root: runs\n"
RECIPE = """watch:
  - root: runs
recipes:
  t2i:
    sampler: {images: "out/{step}"}
    samples: 50
    prompts: prompts.txt
    reference: {images: ref}
    metrics: [fid, clip_score, {name: sharpness, function: "my.metrics:sharpness", mode: max}]
    composite: {fid: {weight: -0.4, range: [0, 300]}, clip_score: {weight: 0.6, range: [0, 1]}}
"""


def load(tmp_path, text, name="config.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return load_config(path)


def problems(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.exit_status == 2
    return caught.value.problems


def only(tmp_path, text):
    found = problems(tmp_path, text)
    assert len(found) == 1, found
    return found[0]


# ---- what is accepted -----------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_settings(tmp_path):
    settings = load(tmp_path, MINIMAL)
    assert settings.roots == (RootRule(root=tmp_path / "runs"),)
    assert settings.workers == WorkerRule()
    assert not settings.observe_only
    assert settings.rule_for("anything").keep is None


def test_relative_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "etc").mkdir()
    monkeypatch.chdir("/")
    settings = load(tmp_path, RECIPE + "state_dir: ../state\n", "etc/config.yaml")
    assert settings.state_dir == tmp_path / "state"
    assert settings.roots[0].root == tmp_path / "etc/runs"
    assert settings.recipes["t2i"].prompts == tmp_path / "etc/prompts.txt"
    assert settings.recipes["t2i"].reference.images == tmp_path / "etc/ref"
    assert settings.directory == tmp_path / "etc"


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load(tmp_path, MINIMAL + "state_dir: ~/s\n").state_dir == tmp_path / "home/s"


def test_durations_are_seconds(tmp_path):
    root = load(tmp_path, "watch:\n  - {root: runs, quiet: 2m, scan_every: 1.5h}\n").roots[0]
    assert (root.quiet, root.scan_every) == (120.0, 5400.0)


def test_the_first_rule_that_matches_counts(tmp_path):
    settings = load(tmp_path, MINIMAL + "runs:\n  - {match: 'a*', keep: {last: 1}}\n  - {match: '*', keep: {last: 9}}\n")
    assert settings.rule_for("abc").keep == KeepRules(last=1)
    assert settings.rule_for("b/abc").keep == KeepRules(last=9)


def test_a_known_metric_brings_its_direction(tmp_path):
    text = RECIPE + "runs:\n  - {evaluate: {recipe: t2i}, rank: {by: %s}}\n"
    assert load(tmp_path, text % "fid").rule_for("x").rank.mode is Mode.MIN
    assert load(tmp_path, text % "clip_score").rule_for("x").rank.mode is Mode.MAX
    assert load(tmp_path, text % "composite_score").rule_for("x").rank.mode is Mode.MAX
    assert load(tmp_path, text % "sharpness").rule_for("x").rank.mode is Mode.MAX


def test_recipes_yield_their_metrics_and_the_composite(tmp_path):
    assert yields(load(tmp_path, RECIPE).recipes["t2i"]) == ("fid", "clip_score", "sharpness", "composite_score")


def test_evaluation_can_be_switched_off(tmp_path):
    text = RECIPE + "runs:\n  - {evaluate: {recipe: t2i, enabled: false}, rank: {by: fid}}\n"
    assert load(tmp_path, text).rule_for("x").evaluate is None


def test_bare_roots_are_only_observed(tmp_path):
    settings = settings_for_roots([tmp_path])
    assert settings.observe_only and settings.rule_for("x").keep is None
    assert not (settings.publish.json or settings.publish.tensorboard or settings.publish.samples)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_an_unknown_key_is_named_with_its_line_and_a_suggestion(tmp_path):
    text = "watch:\n  - root: runs\n    quite: 3s\nruns:\n  - keep: {besst: 3}\nrecipe: {}\n"
    assert problems(tmp_path, text) == [
        "line 3, watch.0.quite: unknown key `quite`; did you mean `quiet`?",
        "line 5, runs.0.keep.besst: unknown key `besst`; did you mean `best`?",
        "line 6, recipe: unknown key `recipe`; did you mean `recipes`?",
    ]


def test_every_problem_comes_at_once_with_its_line(tmp_path):
    found = problems(tmp_path, """watch:
  - root: runs
    scan_every: 0
workers:
  attempts: many
recipes:
  a:
    metrics: []
runs:
  - rank: {by: fid, mode: upwards}
  - keep: {best: -2}
""")
    places = [(int(p.split(",")[0].removeprefix("line ")), p.split(", ")[1].split(":")[0]) for p in found]
    assert places == [
        (3, "watch.0.scan_every"), (5, "workers.attempts"), (8, "recipes.a.metrics"), (10, "runs.0.rank.mode"),
        (11, "runs.1.keep.best"),
    ]


def test_contradictions_come_at_once_with_their_line(tmp_path):
    found = problems(tmp_path, RECIPE + """runs:
  - evaluate: {recipe: t2i}
    rank: {by: sharpnes}
  - rank: {by: fid, mode: max}
  - keep: {best: 3}
  - evaluate: {recipe: nothing}
  - rank: {by: jod}
""")
    assert [p.split(":")[0] for p in found] == [
        "line 13, runs.0.rank.by", "line 13, runs.0.rank.by", "line 14, runs.1.rank.mode", "line 15, runs.2.keep.best",
        "line 16, runs.3.evaluate.recipe", "line 17, runs.4.rank.by",
    ]


def test_an_address_that_is_none_is_refused_without_being_shown(tmp_path):
    [problem] = problems(tmp_path, MINIMAL + "notify: ['hunter2@example.org', 'env:CKPTWATCH_MAIL', 'json://localhost']\n")
    assert problem.startswith("line 3, notify.0: ") and "hunter2" not in problem


@pytest.mark.parametrize(("recipe", "expected"), [
    ("{metrics: [loss]}", "exactly one of sampler"),
    ("{command: [x], logged: {}, metrics: [loss]}", "found: command, logged"),
    ("{command: [x]}", "metrics is missing"),
    ("{command: [x], metrics: [loss], samples: 3}", "samples: of no use in a recipe with command"),
    ("{command: [x, '{chekpoint}'], metrics: [loss]}", "did you mean {checkpoint}?"),
    ("{command: [x, [--csv, '{csv_inputs}']], metrics: [loss]}", "did you mean {csv_input}?"),
    ("{command: [x], metrics: [jod]}", "say which direction of `jod` is better"),
    ("{logged: {}, metrics: [{name: loss, function: 'a:b', mode: min}]}", "only in a recipe with a sampler"),
])
def test_recipes_without_images_are_checked_as_well(tmp_path, recipe, expected):
    assert expected in only(tmp_path, MINIMAL + f"recipes:\n  a: {recipe}\n")


def test_monitors_have_directions_from_names_recipes_and_themselves(tmp_path):
    text = MINIMAL + "runs:\n  - keep: {best: {abs_rel: 3, d1: {save_top_k: 1, mode: max}}}\n"
    rule = load(tmp_path, text).rule_for("x")
    assert [(m.rule.by, str(m.rule.mode), m.best) for m in rule.keep.monitors] == [("abs_rel", "min", 3), ("d1", "max", 1)]
    assert rule.rank.by == "abs_rel" and rule.best_count == 3
    assert "say which direction of `d1`" in only(tmp_path, MINIMAL + "runs:\n  - keep: {best: {d1: 1}}\n")


@pytest.mark.parametrize(("run", "expected"), [
    ("{rank: {by: val_loss, mode: max}}", "`val_loss` is better when lower"),
    ("{keep: {best: {accuracy: {count: 1, mode: min}}}}", "`accuracy` is better when higher"),
    ("{keep: {best: {}}}", "name a metric"),
    ("{keep: {best: {val/loss: 1, val_loss: 1}}}", "its alias would be that of `val/loss`"),
    ("{evaluate: {recipe: a}, keep: {best: {los: 1}}}", "did you mean `loss`?"),
])
def test_what_would_keep_the_wrong_checkpoints_is_refused(tmp_path, run, expected):
    assert expected in only(tmp_path, MINIMAL + f"recipes:\n  a: {{command: [x], metrics: [loss]}}\nruns:\n  - {run}\n")


@pytest.mark.parametrize(("words", "more", "expected"), [
    ("'{csv_input}'", "", "{csv_input} has no value: set csv_input"),
    ("'{log_interval}'", "", "{log_interval} has no value: set log_samples"),
    ("[--csv, '{csv_input}']", ", result: ../x.json", "the file must lie below {out_dir}"),
])
def test_commands_that_cannot_work_are_refused(tmp_path, words, more, expected):
    assert expected in only(tmp_path, MINIMAL + f"recipes:\n  a: {{command: [x, {words}], metrics: [loss]{more}}}\n")


def test_the_trainers_own_words_mean_the_same(tmp_path):
    text = MINIMAL + "runs:\n  - {rank: {monitor: abs_rel, mode: min, period: 2}, keep: {save_top_k: -1}}\n"
    rule = load(tmp_path, text).rule_for("x")
    assert (rule.rank.by, rule.rank.period, rule.keep.best) == ("abs_rel", 2, -1)


def test_unknown_keys_do_not_hide_contradictions(tmp_path):
    found = problems(tmp_path, MINIMAL + "colour: blue\nruns:\n  - rank: {by: fid, mode: max}\n")
    assert [p.split(":")[0] for p in found] == ["line 3, colour", "line 5, runs.0.rank.mode"]


def test_a_metric_the_recipe_cannot_yield_is_refused_naming_what_it_can(tmp_path):
    text = RECIPE + "runs:\n  - {evaluate: {recipe: t2i}, rank: {by: kid}}\n"
    assert "recipe `t2i` cannot yield `kid`; it yields fid, clip_score, sharpness, composite_score" in only(tmp_path, text)


@pytest.mark.parametrize(("change", "expected"), [
    ({"metrics": ["fidd"]}, "did you mean `fid`?"),
    ({"metrics": ["fid", "fid"]}, "listed twice"),
    ({"reference": {}}, "set reference.images or reference.stats"),
    ({"reference": {"stats": "s.npz"}, "metrics": ["kid"], "composite": None}, "`kid` compares with reference images"),
    ({"reference": {"images": "a", "stats": "b"}}, "contradict each other"),
    ({"prompts": None}, "`clip_score` needs prompts"),
    ({"samples": 1}, "needs at least 2 samples"),
    ({"composite": {"kid": {"weight": 1, "range": [0, 1]}}}, "the recipe has no metric `kid`"),
    ({"composite": {"fid": {"weight": 1, "range": [1, 0]}}}, "range must rise"),
    ({"composite": {"fid": {"weight": 0, "range": [0, 1]}}}, "weight 0 takes no part"),
    ({"composite": {}}, "at least one term"),
    ({"sampler": {"images": "x", "command": ["y"]}}, "exactly one of command, python, diffusers, program, images"),
    ({"sampler": {}}, "exactly one of command, python, diffusers, program, images"),
    ({"sampler": {"images": "x", "options": {"a": 1}}}, "this sampler has neither"),
    ({"sampler": {"program": {"noise": [3, 8, 8], "range": [1, 1]}}}, "range must rise"),
    ({"sampler": {"program": {"file": "x"}}}, "key `noise` is missing"),
    ({"sampler": {"diffusers": {"component": "unet"}}}, "set base too"),
    ({"networks": {"precision": "int8"}}, "fp32"),
    ({"num_classes": 0}, "greater than or equal to 1"),
    ({"sampler": {"python": "no function"}}, "of the form"),
    ({"metrics": [{"name": "fid", "function": "a:b", "mode": "max"}]}, "built-in metric"),
    ({"metrics": [{"name": "a;b", "function": "a:b", "mode": "max"}], "composite": None}, "of the form"),
    ({"composite": {"fid": {"weight": float("nan"), "range": [0, 1]}}}, "a finite number, found nan"),
    ({"composite": {"fid": {"weight": 1, "range": [0, float("inf")]}}}, "a finite number, found inf"),
    ({"sampler": {"program": {"noise": [3, 8, 8], "range": [float("-inf"), 1]}}}, "a finite number, found -inf"),
    ({"sampler": {"images": "x", "timeout": float("inf")}}, "a finite number, found inf"),
    ({"sampler": {"command": ["x", "{bogus}"]}}, "there is no placeholder {bogus}; known are {checkpoint}"),
    ({"sampler": {"command": ["x", "{checkpiont}"]}}, "did you mean {checkpoint}?"),
    ({"sampler": {"command": ["x", "{oops"]}}, "write {{ and }} for braces"),
    ({"sampler": {"command": ["x", "{}"]}}, "positional"),
    ({"sampler": {"command": ["x", "{checkpoint.nonsense}"]}}, "no attribute"),
    ({"sampler": {"command": ["x", "{labels}"]}}, "{labels} has no value: set num_classes"),
    ({"sampler": {"command": ["x", "{num_classes}"]}}, "{num_classes} has no value: set num_classes"),
    ({"sampler": {"command": ["x", "{image_size}"]}}, "{image_size} has no value: set image_size"),
    ({"sampler": {"images": "out/{checkpoint}"}}, "no placeholder {checkpoint}; known are {step} {epoch} {run} {stem}"),
    ({"sampler": {"images": "out/{stem:07d}"}}, "Unknown format code"),
])
def test_a_contradictory_recipe_is_refused(tmp_path, change, expected):
    raw = yaml.safe_load(RECIPE)
    raw["recipes"]["t2i"].update(change)
    assert any(expected in p for p in problems(tmp_path, yaml.safe_dump(raw)))


def test_each_word_of_a_command_with_a_wrong_placeholder_is_told_with_its_line(tmp_path):
    found = problems(tmp_path, MINIMAL + """recipes:
  a:
    sampler:
      command: [x, "{bogus}",
                "{oops", "{labels} {image_size}"]
    metrics: [inception_score]
  b: {sampler: {images: "{epoc}"}, metrics: [inception_score]}
""")
    assert [p.split(": ")[0] for p in found] == [
        "line 6, recipes.a.sampler.command.1", "line 7, recipes.a.sampler.command.2", "line 7, recipes.a.sampler.command.3",
        "line 7, recipes.a.sampler.command.3", "line 9, recipes.b.sampler.images",
    ]


def test_whatever_a_sampler_can_fill_in_is_accepted(tmp_path):
    raw = yaml.safe_load(RECIPE)
    command = ["{checkpoint}", "{checkpoint.parent}/{checkpoint.stem}", "{step:07d}", "{labels}", "{{no placeholder}}",
               "{num_classes}{image_size:>4}", "{count} {start} {seed} {device} {variant} {run} {out_dir} {prompts}"]
    raw["recipes"]["t2i"] |= {"sampler": {"command": command}, "num_classes": 10, "image_size": 64}
    assert load(tmp_path, yaml.safe_dump(raw)).recipes["t2i"].sampler.command == tuple(command)


@pytest.mark.parametrize("text", [
    MINIMAL + "runs:\n  - {keep: {}}\n",
    MINIMAL + "runs:\n  - {keep: {last: -1}}\n",
    MINIMAL + "runs:\n  - {approve_over: 2}\n",
    MINIMAL + "runs:\n  - {aliases: {best: 'a/b.pt'}}\n",
    MINIMAL + "runs:\n  - {aliases: {best: '{colour}.pt'}}\n",
    MINIMAL + "runs:\n  - {aliases: {best: same, last: same}}\n",
    MINIMAL + "workers: {devices: [gpu]}\n",
    MINIMAL + "workers: {devices: [cpux]}\n",
    MINIMAL + "workers: {devices: ['cuda:0, cuda:1']}\n",
    MINIMAL + "recipes: {'a b': {sampler: {images: x}, metrics: [inception_score]}}\n",
    "watch: [{root: runs, quiet: -1}]\n",
    "watch: [{root: runs, quiet: soon}]\n",
    "watch: [{root: runs, quiet: .inf}]\n",
    "watch: [{root: runs, scan_every: .nan}]\n",
    MINIMAL + "workers: {timeout: .inf}\n",
    MINIMAL + "runs:\n  - {keep: {within: .nan}}\n",
    MINIMAL + "runs:\n  - {approve_over: .nan}\n",
    "watch: [{root: runs}, {root: runs}]\n",
    "watch: [{root: runs}, {root: ./runs/inner}]\n",
    "watch: []\n",
    "recipes: {}\n",
    "watch: [{root: '~nobody-of-that-name/runs'}]\n",
    'watch: [{root: "ru\\0ns"}]\n',
    MINIMAL + "runs:\n  - {keep: {last: 1}, keep: {last: 2}}\n",
])
def test_nonsense_is_refused_with_its_line(tmp_path, text):
    assert all(p.startswith("line ") for p in problems(tmp_path, text))


@pytest.mark.parametrize("text", [
    "", "\0", "just words", "- a\n- b\n", "watch: [", "a: b: c", "%YAML 9.9\n---\n", "watch: *nowhere\n", "&a [*a]\n",
    "watch: &a [*a]\n", "? {a: b}\n: c\n", "1: 2\nwatch: 3\n", "!!python/object/apply:os.system ['true']\n",
    "[" * 5000, "a: " * 5000, "{a: " * 3000, "watch: !!binary x\n", "2026-13-45: x\n", "watch: 0o9999999999999\n",
    "<<: 3\nwatch: 1\n",
])
def test_yaml_garbage_is_a_problem_not_a_crash(tmp_path, text):
    assert problems(tmp_path, text)


@given(st.text(alphabet=st.sampled_from("watchrun:[]{}-,&*!?'\" \n\t#%@|>0a"), max_size=80))
def test_no_text_gets_past_the_two_errors_of_a_configuration(tmp_path_factory, text):
    try:
        load(tmp_path_factory.getbasetemp(), text, "fuzz.yaml")
    except CkptwatchError as error:
        assert error.exit_status == 2


def test_python_objects_are_never_made(tmp_path):
    marker = tmp_path / "made"
    problems(tmp_path, f"watch: !!python/object/apply:os.mkdir ['{marker}']\n")
    assert not marker.exists()


def test_nested_roots_are_seen_through_relative_names(tmp_path):
    assert "contain one another" in only(tmp_path, f"watch: [{{root: runs}}, {{root: {tmp_path}/other/../runs/a}}]\n")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00watch")
    with pytest.raises(UsageError):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_a_missing_configuration_names_its_path(tmp_path, kind):
    path = tmp_path / "c.yaml"
    if kind == "directory":
        path.mkdir()
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert str(path) in str(caught.value) and caught.value.exit_status == 2


def test_the_given_file_wins_then_the_environment_then_the_usual_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_config(None) is None
    (tmp_path / "ckptwatch.yaml").write_text(MINIMAL)
    assert find_config(None) == Path("ckptwatch.yaml")
    monkeypatch.setenv("CKPTWATCH_CONFIG", "/elsewhere.yaml")
    assert find_config(None) == Path("/elsewhere.yaml")
    assert find_config(Path("mine.yaml")) == Path("mine.yaml")


def test_one_mistake_is_one_problem_also_where_a_key_takes_several_kinds(tmp_path):
    raw = yaml.safe_load(RECIPE)
    raw["workers"] = {"devices": ["gpu0"]}
    raw["recipes"]["t2i"]["metrics"] = ["fid", {"name": "x"}, 7]
    raw["runs"] = [{"evaluate": {"recipe": "t2i", "variants": 7}, "aliases": {"best": 3}}]
    found = problems(tmp_path, yaml.safe_dump(raw))
    assert len(found) == 5
    assert not any("constrained" in p or "literal" in p or "MetricSection" in p for p in found)
