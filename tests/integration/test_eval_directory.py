"""`ckptwatch eval DIR`: the directory says everything; what is wrong with it is said before anything runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ckptwatch.cli.evaluation import wanted_by
from ckptwatch.errors import CkptwatchError
from ckptwatch.instructions import bound, shown
from ckptwatch.metadata import read_metadata, words_of
from ckptwatch.pairs import columns_of, read_pairs
from tests.support import PATIENCE, save

OPTIONS = ("command", "csv_input", "max_samples", "log_samples", "log_interval", "log_max_samples")
PROGRAM = '''
import json, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
for i in range(int(options.get("--n", 3))):
    print(json.dumps({"sample": {"prediction": f"prediction {i}", "target": f"target {i}", "image": i}}))
print(json.dumps({"bleu": 0.5, "seen": options}))
print(json.dumps({"bleu": 0.5, "rows": len(open(options["--csv"]).readlines()), "n": 7}))
'''
COMMAND = [sys.executable, "../eval.py", "--ckpt", "{checkpoint}", ["--csv", "{csv_input}"], ["--n", "{max_samples}"]]
METADATA = {
    "experiment_name": "quic360", "stage": "vision", "model_config": {"vision": "siglip"},
    "training_config": {"batch_size": 4, "max_samples": "all"}, "dataset": {"val_csv": "val.csv"},
    "evaluation": {"command": COMMAND, "metrics": ["bleu"], "max_samples": 5},
}


class Experiment:
    """A directory as a trainer leaves it, beside the project's evaluation program."""

    def __init__(self, base):
        self.base, self.directory = base, base / "exp"
        self.directory.mkdir()
        (base / "runs").mkdir()
        (base / "eval.py").write_text(PROGRAM)
        (self.directory / "val.csv").write_text("image,caption\n")
        for epoch in (1, 2):
            save(self.directory / f"siglip_quic360_epoch{epoch:02d}_loss0.{9 - epoch}.ckpt")
            os.utime(self.checkpoint(epoch), (1000 + epoch, 1000 + epoch))
        self.write(METADATA)

    def checkpoint(self, epoch):
        return self.directory / f"siglip_quic360_epoch{epoch:02d}_loss0.{9 - epoch}.ckpt"

    def write(self, content):
        path = self.directory / "checkpoint_metadata.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def evaluation(self, **changes):
        section = {**METADATA["evaluation"], **changes}
        return self.write({**METADATA, "evaluation": {k: v for k, v in section.items() if v is not None}})

    def config(self, **recipe):
        content = {"state_dir": "state", "watch": [{"root": "runs"}], "recipes": {"r": {"metrics": ["bleu"], **recipe}}}
        (self.base / "config.yaml").write_text(yaml.safe_dump(content))
        return self.base / "config.yaml"

    def wanted(self, path=None, config=None, *, recipe=None, trust=False, **options):
        return wanted_by(path or self.directory, config, {**dict.fromkeys(OPTIONS), **options}, recipe=recipe, variant=None,
                         trust=trust)

    def refused(self, *arguments, **options):
        with pytest.raises(CkptwatchError) as caught:
            self.wanted(*arguments, **options)
        return str(caught.value)

    def cli(self, *arguments):
        environment = {**os.environ, "XDG_STATE_HOME": str(self.base / "xdg"), "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, "-m", "ckptwatch", *map(str, arguments)], cwd=self.base, env=environment,
                              text=True, capture_output=True, timeout=PATIENCE)


@pytest.fixture
def exp(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)
    return Experiment(tmp_path)


# ---- from end to end ------------------------------------------------------------------------------------------------


def test_a_directory_is_evaluated_without_a_configuration(exp):
    done = exp.cli("eval", "exp", "--explain", "--json", "--log-samples", "--log-interval", 2)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["path"] == str(exp.checkpoint(2)) and told["epoch"] == 2
    assert {name: s["value"] for name, s in told["scores"].items()} == {"bleu": 0.5, "rows": 1}
    assert [pair["prediction"] for pair in told["samples"]] == ["prediction 0", "prediction 2", "prediction 4"]
    assert told["explain"]["max_samples"] == {"value": 5, "from": "checkpoint_metadata.json, evaluation.max_samples"}
    assert "eval.py --ckpt {checkpoint}" in done.stderr and "(from checkpoint_metadata.json" in done.stderr
    assert not (exp.base / "xdg").exists(), "nothing is left behind"


def test_without_json_a_person_sees_scores_origins_and_pairs(exp):
    done = exp.cli("eval", "exp", "--explain", "--max-samples", 2, "--log-samples", "--out", "kept")
    assert done.returncode == 0, done.stderr
    for words in ("bleu               0.5  n=7", "(from --max-samples)", "experiment_name quic360", "prediction 1",
                  "target 1", "pairs in kept"):
        assert words in done.stdout
    assert [pair["image"] for pair in read_pairs(exp.base / "kept")] == [0, 1]
    shown_again = exp.cli("samples", "kept")
    assert "2 pairs" in shown_again.stdout and "prediction 1" in shown_again.stdout


def test_a_program_that_fails_is_told_with_its_last_words_and_status_1(exp):
    done = exp.cli("eval", "exp", "--command", f"{sys.executable} -c 'raise SystemExit(\"no such split\")'")
    assert done.returncode == 1 and "no such split" in done.stderr and "Traceback" not in done.stderr


# ---- which checkpoint -----------------------------------------------------------------------------------------------


def test_links_lead_to_the_checkpoint_that_is_evaluated(exp):
    assert exp.wanted().checkpoint == exp.checkpoint(2)
    (exp.directory / "last.ckpt").symlink_to(exp.checkpoint(1).name)
    assert exp.wanted().checkpoint == exp.checkpoint(1)
    (exp.directory / "best.ckpt").symlink_to(exp.checkpoint(2).name)
    wanted = exp.wanted()
    assert wanted.checkpoint == exp.checkpoint(2)
    assert wanted.origins["checkpoint"][1] == f"best.ckpt, a link to {exp.checkpoint(2).name}"


def test_a_checkpoint_that_is_named_is_that_one_with_the_metadata_beside_it(exp):
    wanted = exp.wanted(exp.checkpoint(1))
    assert wanted.checkpoint == exp.checkpoint(1) and wanted.recipe.command.max_samples == 5


def test_what_belongs_to_the_directory_is_handed_over_also_where_a_link_leads_out_of_it(exp):
    exp.evaluation(command=[sys.executable, "../eval.py", "{checkpoint}", "{metadata}", "{lora.name:>20}", "{{"])
    (exp.directory / "lora_weights").mkdir()
    far = exp.base / "far/away.ckpt"
    save(far)
    (exp.directory / "best.ckpt").symlink_to(far)
    wanted = exp.wanted()
    assert wanted.checkpoint == far
    assert wanted.recipe.command.argv[2:] == (
        "{checkpoint}", str(exp.directory / "checkpoint_metadata.json"), "        lora_weights", "{{")
    assert any("lacks adapter_config.json and adapter_model.safetensors" in doubt for doubt in wanted.doubts)


def test_binding_leaves_other_placeholders_and_braces_as_they_are():
    words = ("{x}{{y}}", ("{a}-{b!s:>3}", "{c.stem}"))
    assert bound(words, {"a": "{v}"}) == ("{x}{{y}}", ("{{v}}-{b!s:>3}", "{c.stem}"))


def test_a_directory_that_is_itself_a_checkpoint_is_that(exp):
    inner = exp.base / "runs/stage1_epoch3"
    save(inner / "model.ckpt")
    (inner / "checkpoint_metadata.json").write_text(json.dumps({"evaluation": {"command": ["true"]}}))
    wanted = exp.wanted(inner)
    assert (wanted.checkpoint, wanted.origins["checkpoint"][1]) == (inner, "named")


# ---- which value, and from where ------------------------------------------------------------------------------------


def test_each_value_shows_where_it_came_from(exp):
    origins = exp.wanted(log_max_samples=3, log_samples=True).origins
    assert origins["csv_input"] == (str(exp.directory / "val.csv"), "checkpoint_metadata.json, dataset.val_csv")
    assert origins["batch_size"] == (4, "checkpoint_metadata.json, training_config.batch_size")
    assert origins["metrics"] == ("bleu", "checkpoint_metadata.json, evaluation.metrics")
    assert origins["log_max_samples"] == (3, "--log-max-samples")
    assert origins["log_interval"] == (1, "default")
    assert origins["lora"] == (None, "not given")
    assert origins["stage"] == ("vision", "checkpoint_metadata.json")


def test_the_command_line_comes_before_metadata_before_configuration_before_defaults(exp):
    config = exp.config(command=["true"], max_samples=9, log_interval=7, timeout=60)
    wanted = exp.wanted(None, config)
    assert wanted.origins["max_samples"] == (5, "checkpoint_metadata.json, evaluation.max_samples")
    assert wanted.origins["log_interval"] == (7, "recipe r")
    assert wanted.origins["timeout"] == (60.0, "recipe r")
    assert wanted.origins["log_max_samples"] == (20, "default")
    assert wanted.origins["command"][1] == "checkpoint_metadata.json, evaluation.command"
    assert exp.wanted(None, config, max_samples=1).origins["max_samples"] == (1, "--max-samples")
    mine = exp.wanted(None, config, command="env python {checkpoint}")
    assert mine.recipe.command.argv == ("env", "python", "{checkpoint}") and mine.directory == exp.base
    assert mine.recipe.metrics == () and mine.origins["metrics"][1] == "--command", "theirs are those of another program"
    assert exp.wanted(None, config, recipe="r").recipe.command.argv == ("true",)


def test_where_metadata_and_configuration_disagree_both_values_and_the_winner_are_named(exp):
    config = exp.config(command=COMMAND, max_samples=9, csv_input="exp/val.csv")
    [doubt] = exp.wanted(None, config).doubts
    assert doubt == ("max_samples: checkpoint_metadata.json, evaluation.max_samples says 5, recipe r says 9; 5 counts, from "
                     "checkpoint_metadata.json, evaluation.max_samples")
    assert exp.wanted(None, config, max_samples=2).doubts[0].endswith("2 counts, from --max-samples")


def test_of_a_recipe_that_is_changed_in_nothing_the_digest_is_the_daemons(exp):
    from ckptwatch.config import load_config
    from ckptwatch.recipes import ContentDigests, inspect_recipe

    (exp.directory / "checkpoint_metadata.json").unlink()
    config = exp.config(command=["true"], max_samples=9)
    wanted = exp.wanted(None, config)
    theirs = inspect_recipe(load_config(config).recipes["r"], ContentDigests(exp.base / "none.json"))[0]
    assert wanted.digest == theirs and wanted.directory is None
    assert exp.wanted(None, config, max_samples=1).digest != theirs


def test_a_dataset_of_the_command_line_is_relative_to_where_the_caller_is(exp):
    (exp.base / "mine.csv").write_text("x\n")
    wanted = exp.wanted(csv_input=Path("mine.csv"))
    assert wanted.origins["csv_input"] == (str(exp.base / "mine.csv"), "--csv-input")


def test_values_that_are_not_meant_for_an_evaluation_are_left_alone(exp):
    exp.write({**METADATA, "training_config": {"batch_size": [4, 8], "max_samples": -1}, "dataset": ["a"],
               "evaluation": {"command": COMMAND}})
    wanted = exp.wanted()
    assert wanted.origins["batch_size"] == (32, "default") and wanted.recipe.command.csv_input is None


def test_options_about_logging_without_logging_are_told(exp):
    assert any("of no use without --log-samples" in doubt for doubt in exp.wanted(log_interval=3).doubts)


# ---- whose command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "mode"), [("exp/checkpoint_metadata.json", 0o666), ("exp", 0o777)])
def test_a_command_that_others_may_have_written_is_not_run_unless_trusted(exp, place, mode):
    (exp.base / place).chmod(mode)
    told = exp.refused()
    assert "can be written by others" in told and "eval.py" in told and "--trust" in told
    assert exp.wanted(trust=True).recipe.command is not None
    assert exp.wanted(command="true").recipe.command.argv == ("true",), "one's own needs no trust"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("place", ["exp/checkpoint_metadata.json", "exp"])
def test_a_command_of_somebody_else_is_not_run_unless_trusted(exp, place):
    os.chown(exp.base / place, 65534, -1)
    assert "not to you" in exp.refused()
    assert exp.wanted(trust=True).recipe.command is not None


def test_a_link_is_judged_by_the_file_it_leads_to(exp):
    (exp.base / "open").mkdir()
    path = exp.directory / "checkpoint_metadata.json"
    (exp.base / "open/m.json").write_text(path.read_text())
    (exp.base / "open").chmod(0o777)
    path.unlink()
    path.symlink_to("../open/m.json")
    assert "can be written by others" in exp.refused()


# ---- what is wrong --------------------------------------------------------------------------------------------------


def test_where_nothing_says_what_to_run_all_three_places_are_named(exp):
    (exp.directory / "checkpoint_metadata.json").unlink()
    told = exp.refused()
    assert "no --command" in told and f"there is no {exp.directory}/checkpoint_metadata.json" in told
    assert "there is no configuration" in told
    exp.write({"experiment_name": "x"})
    assert "checkpoint_metadata.json has no evaluation.command" in exp.refused()


def test_of_several_recipes_one_must_be_named(exp):
    (exp.directory / "checkpoint_metadata.json").unlink()
    config = exp.config(command=["true"])
    content = yaml.safe_load(config.read_text())
    content["recipes"]["s"] = content["recipes"]["r"]
    config.write_text(yaml.safe_dump(content))
    assert "it has r, s: name one with --recipe" in exp.refused(None, config)
    assert exp.wanted(None, config, recipe="s").recipe.name == "s"
    assert "no recipe 'q'" in exp.refused(None, config, recipe="q")


def test_a_directory_without_a_checkpoint_says_what_was_looked_for(exp):
    for epoch in (1, 2):
        exp.checkpoint(epoch).unlink()
    assert "looked for best.ckpt, last.ckpt and *.ckpt" in exp.refused()
    save(exp.directory / "step_100.pt")
    assert "name the checkpoint itself: step_100.pt" in exp.refused()


def test_a_link_to_nothing_says_where_it_points_and_what_else_there_is(exp):
    (exp.directory / "best.ckpt").symlink_to("gone.ckpt")
    told = exp.refused()
    assert "best.ckpt points to gone.ckpt, which does not exist" in told and exp.checkpoint(2).name in told
    assert "a dangling link to gone.ckpt" in exp.refused(exp.directory / "best.ckpt")


def test_a_link_to_itself_is_a_link_to_nothing(exp):
    (exp.directory / "best.ckpt").symlink_to("best.ckpt")
    assert "best.ckpt points to best.ckpt" in exp.refused()


BROKEN = [
    ("{", "no JSON"), ("", "no JSON"), ("[1]", "it holds a list, not an object"), ('"x"', "it holds a str"),
    ('{"a":' * 100_000, "no JSON"), ("\x00\xff", "no JSON"), ({"evaluation": ["x"]}, "evaluation is a list, not an object"),
]


@pytest.mark.parametrize(("content", "words"), BROKEN)
def test_metadata_that_are_none_say_why(exp, content, words):
    exp.write(content)
    told = exp.refused()
    assert words in told and "checkpoint_metadata.json" in told and "→" in told
    wanted = exp.wanted(command="true")
    assert any("checkpoint_metadata.json" in doubt for doubt in wanted.doubts), "with a command of one's own it is a doubt"


def test_metadata_that_cannot_be_read_are_told(exp):
    path = exp.directory / "checkpoint_metadata.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CkptwatchError, match="not a plain file"):
        read_metadata(path)
    assert "there is no" in exp.refused()


@pytest.mark.parametrize(("change", "words"), [
    ({"command": []}, "evaluation.command: should be a list of words"),
    ({"command": [["python"]]}, "should be a list of words"), ({"command": ["python", 3]}, "should be a list of words"),
    ({"command": "python 'x"}, "No closing quotation"),
    ({"command": ["python", "{checkpont}"]}, "did you mean {checkpoint}?"), ({"command": ["a\0b"]}, "NUL"),
    ({"max_samples": 0}, "evaluation.max_samples: should be a whole number from 1, found 0"),
    ({"csv_input": 5}, "evaluation.csv_input: should be the path of a file"),
    ({"log_samples": "yes"}, "should be true or false"), ({"timeout": "soon"}, "evaluation.timeout"),
    ({"metrics": [{"name": "bleu", "mode": "up"}]}, "should be min or max"),
    ({"metrics": ["a", "a"]}, "names a metric twice"),
])
def test_a_value_of_the_evaluation_that_cannot_be_one_is_told_by_its_key(exp, change, words):
    exp.evaluation(**change)
    told = exp.refused()
    assert words in told and "checkpoint_metadata.json" in told


@pytest.mark.parametrize(("options", "words"), [
    ({"command": "python '"}, "--command"), ({"command": "python {chekpoint}"}, "did you mean {checkpoint}?"),
    ({"command": "true", "recipe": "r"}, "both --command and --recipe"), ({"command": ""}, "should be a list of words"),
])
def test_a_command_line_that_cannot_be_followed_is_told(exp, options, words):
    assert words in exp.refused(**options)


def test_a_missing_dataset_is_told_with_where_it_was_named(exp):
    (exp.directory / "val.csv").unlink()
    told = exp.refused()
    assert f"{exp.directory}/val.csv: no such file (from checkpoint_metadata.json, dataset.val_csv)" in told
    assert "no such file (from --csv-input)" in exp.refused(csv_input=Path("missing.csv"))
    assert "no plain file (from --csv-input)" in exp.refused(csv_input=exp.base)


def test_options_for_commands_are_refused_with_a_recipe_for_images(exp):
    config = exp.config(sampler={"images": "x"}, metrics=["inception_score"], samples=20)
    assert "--csv-input, --log-samples: of no use with recipe r" in exp.refused(
        None, config, recipe="r", csv_input=exp.base / "eval.py", log_samples=True)
    wanted = exp.wanted(None, config, recipe="r", max_samples=12)
    assert wanted.recipe.samples == 12 and wanted.recipe.command is None


def test_a_recipe_of_logged_metrics_runs_nothing_and_says_so(exp):
    (exp.directory / "checkpoint_metadata.json").unlink()
    assert "runs nothing: it takes what training logs" in exp.refused(None, exp.config(logged={}))


# ---- showing --------------------------------------------------------------------------------------------------------


def test_where_nothing_is_recorded_samples_says_how_to_get_some(project):
    done = project.cli("samples", str(project.save("a/0100.pt")))
    assert done.returncode == 2 and "nothing is recorded yet" in done.stderr and "--log-samples" in done.stderr


def test_of_an_evaluation_that_kept_no_pairs_samples_says_what_to_set(project):
    path = project.save("a/0100.pt", quality=1.0)
    assert project.cli("run", "--once").returncode == 0
    done = project.cli("samples", "a@100")
    assert done.returncode == 1
    assert "recipe r kept no pairs" in done.stderr and "log_samples: true" in done.stderr and f"retry {path}" in done.stderr


def test_what_is_called_otherwise_is_still_prediction_and_target():
    assert columns_of({"id": 3, "pred": "a", "label": "b"}) == ("a", "b", {"id": 3})
    assert columns_of({"question": "q"}) == (None, None, {"question": "q"})


def test_a_command_is_shown_as_it_would_be_typed():
    assert shown(words_of(["python", "a b.py", "{checkpoint}", ["--n", "{max_samples}"]])) == (
        "python 'a b.py' {checkpoint} [--n {max_samples}]")
