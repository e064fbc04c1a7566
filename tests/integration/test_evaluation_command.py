"""An evaluation by a program of the user's own: how it is called, what it answers, how it fails, what is kept of it."""

import json
import math
import re
import sys
import tracemalloc
from dataclasses import replace

import pytest

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.answers import LONGEST_LINE, Output, scores_of
from ckptwatch.evaluate.command_evaluation import command_line, evaluate_by_command, values_of
from ckptwatch.evaluate.kept_pairs import KeptPairs
from ckptwatch.model import EvaluationCommand, FailureKind, MetricSpec, Mode, Recipe, evolve
from ckptwatch.pairs import FILE, read_pairs
from ckptwatch.preflight import lacking_here
from ckptwatch.recipes import ContentDigests, inspect_recipe
from ckptwatch.workers.wire import Job
from tests.support import OURS, save

ANSWER = 'echo \'{"bleu": 0.5, "loss": 0.25}\''


@pytest.fixture
def job(tmp_path):
    """A job for a command that is still to be given."""
    save(tmp_path / "exp/epoch05.ckpt")
    for name in ("work", "cache"):
        (tmp_path / name).mkdir()
    recipe = Recipe(name="r", metrics=(MetricSpec(name="bleu", mode=Mode.MAX),), command=EvaluationCommand(argv=("true",)))
    return Job(job="1#1", checkpoint=tmp_path / "exp/epoch05.ckpt", format="torch-zip", run="exp", step=None, epoch=5,
               variant="", recipe=recipe, work_dir=tmp_path / "work", cache_dir=tmp_path / "cache", log=tmp_path / "job.log")


def shell(job, script, **changes):
    """The job with a command for /bin/sh; $0 is {out_dir}."""
    command = EvaluationCommand(argv=("/bin/sh", "-c", script.replace("{", "{{").replace("}", "}}"), "{out_dir}"), **changes)
    return replace(job, recipe=evolve(job.recipe, command=command))


def run(job):
    seen = []
    result = evaluate_by_command(job, seen.append, "cpu")
    return result, [(p.stage, p.done, p.total) for p in seen]


def scores(job):
    return {s.metric: s for s in run(job)[0].scores}


def failure(job):
    with pytest.raises(EvaluationError) as caught:
        run(job)
    return caught.value


# ---- the answer -----------------------------------------------------------------------------------------------------


def test_the_last_json_object_of_standard_output_is_the_answer_whatever_stands_around_it(job):
    script = f'echo \'{{"bleu": 0.1}}\'; echo "[1, 2]"; printf "\\377\\000 50%%\\r"; {ANSWER}; echo "done {{ not json }}"'
    assert {name: s.value for name, s in scores(shell(job, script)).items()} == {"bleu": 0.5, "loss": 0.25}


def test_an_answer_without_a_newline_at_its_end_counts(job):
    assert scores(shell(job, 'printf \'{"bleu": 0.5}\''))["bleu"].value == 0.5


def test_what_is_on_standard_error_is_no_answer_but_in_the_log(job):
    ran = shell(job, f"{ANSWER}; echo '{{\"bleu\": 9}}' >&2")
    assert scores(ran)["bleu"].value == 0.5
    assert sorted(job.log.read_text().splitlines()) == ['{"bleu": 0.5, "loss": 0.25}', '{"bleu": 9}']


def test_a_file_below_out_dir_may_hold_the_answer(job):
    ran = shell(job, f'mkdir "$0/a"; {ANSWER} > "$0/a/metrics.json"; echo \'{{"bleu": 9}}\'', result="a/metrics.json")
    assert scores(ran)["bleu"].value == 0.5


def test_metrics_the_recipe_did_not_name_are_kept_behind_those_it_named(job):
    found = scores(shell(job, 'echo \'{"val_loss": 1, "bleu": 0.5, "words": 7}\''))
    assert list(found) == ["bleu", "val_loss", "words"]
    assert [s.mode for s in found.values()] == [Mode.MAX, Mode.MIN, None]


ROWS = [
    ({"bleu": 1, "val": {"loss": 0.5, "per": {"cat": 2}}}, {"bleu": 1, "val/loss": 0.5, "val/per/cat": 2}),
    ({"bleu": None, "a": math.inf, "b": math.nan}, {"bleu": math.nan, "a": math.inf, "b": math.nan}),
    ({"bleu": 0, "model": "x", "ok": True, "list": [1], "n": 3, "num_samples": 4}, {"bleu": 0}),
    ({"bleu": {"value": 0.25}, "a": {"value": 1, "unit": "m"}}, {"bleu": 0.25, "a/value": 1}),
    ({"bleu": 10**400, "\x1b[31m": 1, "": 2}, {"bleu": math.inf}),
]


@pytest.mark.parametrize(("answer", "values"), ROWS)
def test_numbers_are_scores_and_objects_in_objects_name_them(answer, values):
    found = {s.metric: s.value for s in scores_of(answer, [MetricSpec(name="bleu")])}
    assert found == pytest.approx(values, nan_ok=True)


def test_bounds_and_counts_come_with_a_score_or_with_all_beside_it():
    answer = {"bleu": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}, "loss": 1, "n": 40,
              "cat": {"bleu": 1, "num_samples": 2}}
    found = {s.metric: s for s in scores_of(answer, [])}
    assert (found["bleu"].low, found["bleu"].high) == (0.4, 0.6)
    assert {name: s.n for name, s in found.items()} == {"bleu": 9, "loss": 40, "cat/bleu": 2}


@pytest.mark.parametrize("bounds", [
    {"low": 0.6, "high": 0.4}, {"low": 0.4}, {"low": math.nan, "high": 1}, {"low": "x", "high": 1},
])
def test_bounds_that_are_none_are_left_out(bounds):
    [score] = scores_of({"bleu": {"value": 0.5, **bounds}}, [])
    assert (score.value, score.low, score.high) == (0.5, None, None)


def test_a_metric_that_is_missing_is_named_with_the_nearest_that_came():
    with pytest.raises(EvaluationError) as caught:
        scores_of({"bleu_4": 1, "val": {"cider": 2}, "loss": 3}, [MetricSpec(name=n) for n in ("bleu4", "cider", "loss")])
    assert caught.value.kind == FailureKind.METRIC and not caught.value.retryable
    assert "no `bleu4` (nearest: bleu_4)" in caught.value.cause
    assert "no `cider` (nearest: val/cider)" in caught.value.cause
    assert "`loss`" not in caught.value.cause


@pytest.mark.parametrize(("answer", "words"), [
    ({}, "no numbers"), ({"bleu": "0.5"}, "`bleu` is no number but '0.5'"), ({"bleu": [1]}, "`bleu` is no number"),
    ({f"m{i}": i for i in range(2000)}, "more than 1,000 numbers"),
])
def test_an_answer_of_no_use_says_why(answer, words):
    with pytest.raises(EvaluationError, match=re.escape(words)):
        scores_of(answer, [MetricSpec(name="bleu")] if answer else [])


# ---- hostile output -------------------------------------------------------------------------------------------------


def test_neither_long_lines_nor_many_fill_memory():
    output, block = Output(lambda pair: None), b"\0" * LONGEST_LINE
    tracemalloc.start()
    try:
        for _ in range(100):
            output.hear(block)
        output.hear(b'"}\n' + b'{"bleu": 1}\n')
        for _ in range(200):
            output.hear(b'{"progress": 1, "total": 2}\nnoise\n' * 100)
        assert tracemalloc.get_traced_memory()[1] < 8 * LONGEST_LINE
    finally:
        tracemalloc.stop()
    assert output.answer() == {"bleu": 1}


@pytest.mark.parametrize("noise", [
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"\n", b'{"a": 1' + b"1" * 5000 + b"}\n", b"{\xff}\n", b"{}}\n", b"{nan}\n",
    b'{"progress": 1e999, "total": 3}\n', b'{"progress": -1, "total": 3}\n', b'{"progress": "x", "total": 0}\n',
    b'{"progress": 1, "total": 0}\n',
])
def test_lines_that_only_look_like_json_change_nothing(noise):
    output = Output(lambda pair: None)
    output.hear(b'{"bleu": 1}\n' + noise)
    assert (output.answer(), output.progress) == ({"bleu": 1}, None)


def test_a_line_that_comes_in_pieces_is_one_line():
    output = Output(lambda pair: None)
    for byte in b'{"bleu": 1}\n\xf0':
        output.hear(bytes([byte]))
    assert output.answer() == {"bleu": 1}


# ---- progress -------------------------------------------------------------------------------------------------------


def test_progress_comes_while_the_command_still_runs(job):
    """It waits until what it said has been reported."""
    script = ('echo \'{"progress": 3, "total": 10, "stage": "captions"}\'; while [ ! -e "$0/heard" ]; do sleep 0.02; done; '
              + ANSWER)
    ran, seen = shell(job, script), []

    def hear(progress):
        seen.append((progress.stage, progress.done, progress.total))
        if progress.stage == "captions":
            (job.work_dir / "out/heard").touch()

    evaluate_by_command(ran, hear, "cpu")
    assert seen == [("evaluating", 0, 1), ("captions", 3, 10), ("evaluating", 1, 1)]


@pytest.mark.parametrize(("said", "progress"), [
    ({"progress": 0.25, "total": 1}, ("", 250, 1000)), ({"progress": 7, "total": 5}, ("", 5, 5)),
    ({"progress": 1, "total": 4, "stage": "\x1b"}, ("", 1, 4)),
])
def test_progress_may_be_a_fraction_and_never_exceeds_its_total(said, progress):
    output = Output(lambda pair: None)
    output.hear(json.dumps(said).encode() + b"\n")
    assert output.progress == progress


# ---- how it is called -----------------------------------------------------------------------------------------------


def argv(job, *words, **changes):
    command = EvaluationCommand(argv=("env", *words), **changes)
    return command_line(command, values_of(job, command, job.work_dir / "out", "cuda:1"))[1:]


def test_placeholders_stand_for_the_checkpoint_and_its_surroundings(job, tmp_path):
    (tmp_path / "exp/checkpoint_metadata.json").write_text("{}")
    (tmp_path / "exp/lora_weights").mkdir()
    exp, csv = tmp_path / "exp", tmp_path / "val.csv"
    found = argv(job, "{checkpoint}", "{run}", "{out_dir}", "{device}", "v{variant}", "{epoch:03d}", "{metadata}", "{lora}",
                 "{csv_input}", "{max_samples}", "{batch_size}", "{log_samples}", "{checkpoint.stem}", "{{x}}",
                 csv_input=csv, max_samples=7)
    assert found == [str(job.checkpoint), "exp", str(job.work_dir / "out"), "cuda:1", "v", "005",
                     str(exp / "checkpoint_metadata.json"), str(exp / "lora_weights"), str(csv), "7", "32", "false",
                     "epoch05", "{x}"]


@pytest.mark.parametrize("place", ["epoch05", "checkpoints/epoch05.ckpt"])
def test_surroundings_are_found_in_a_directory_and_above_a_conventional_one(job, tmp_path, place):
    directory = place == "epoch05"
    checkpoint = tmp_path / "run" / place
    (checkpoint if directory else checkpoint.parent).mkdir(parents=True)
    top = checkpoint if directory else tmp_path / "run"
    (top / "checkpoint_metadata.json").write_text("{}")
    (top / "lora_weights").mkdir()
    assert argv(replace(job, checkpoint=checkpoint), "{metadata}", "{lora}") == [
        str(top / "checkpoint_metadata.json"), str(top / "lora_weights")]


def test_words_in_a_list_are_left_out_together_where_one_has_no_value(job):
    words = (("--csv", "{csv_input}"), ("--n={max_samples}",), ("--lora", "{lora}"), ("--ema", "{variant}"), ("-x",),
             ("--log", "{log_samples}"), ("--every", "{log_interval}"))
    assert argv(job, *words, max_samples=3) == ["--n=3", "-x"]
    assert argv(replace(job, variant="ema"), *words, log_samples=True, log_interval=5) == [
        "--ema", "ema", "-x", "--log", "true", "--every", "5"]


@pytest.mark.parametrize("name", ["csv_input", "max_samples", "lora", "metadata", "step"])
def test_a_lone_word_without_a_value_is_an_error_of_the_recipe_that_says_how_to_leave_it_out(job, name):
    with pytest.raises(EvaluationError) as caught:
        argv(job, f"--x={{{name}}}")
    assert caught.value.kind == FailureKind.RECIPE and not caught.value.retryable
    assert f"{{{name}}} has no value" in caught.value.cause and "list of their own" in caught.value.hint


# ---- how it fails ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "changes", "kind", "words"), [
    ("echo broke >&2; exit 3", {}, FailureKind.SAMPLER, "exit status 3; it said: broke"),
    ("kill -SEGV $$", {}, FailureKind.SAMPLER, "killed by SIGSEGV"),
    ("echo 'CUDA out of memory' >&2; exit 1", {}, FailureKind.OUT_OF_MEMORY, "out of memory"),
    ("echo hello", {}, FailureKind.SAMPLER, "no line of its standard output is a JSON object; it said: hello"),
    ("echo busy; sleep 600", {"timeout": 0.5}, FailureKind.SAMPLER, "no end after 0.5 s, killed; it said: busy"),
    ("echo '{\"loss\": 1}'", {}, FailureKind.METRIC, "no `bleu`"),
    ('touch "$0/other.json"', {"result": "m.json"}, FailureKind.SAMPLER, "found there: other.json"),
    ('echo "[1]" > "$0/m.json"', {"result": "m.json"}, FailureKind.METRIC, "a JSON list, not an object"),
    ('echo "{" > "$0/m.json"', {"result": "m.json"}, FailureKind.METRIC, "no JSON"),
    ('mkfifo "$0/m.json"', {"result": "m.json"}, FailureKind.SAMPLER, "not a plain file"),
    ('rmdir "$0"', {"result": "m.json"}, FailureKind.SAMPLER, "found there: nothing"),
    ("true", {"result": "../m.json"}, FailureKind.RECIPE, "leads out of"),
])
def test_each_way_to_fail_has_its_kind_and_its_words(job, script, changes, kind, words):
    error = failure(shell(job, script, **changes))
    assert (error.kind, words in error.cause, bool(error.hint)) == (kind, True, True), error


def test_a_program_that_does_not_exist_is_not_tried_again(job):
    error = failure(replace(job, recipe=evolve(job.recipe, command=EvaluationCommand(argv=("no-such-program",)))))
    assert (error.kind, error.retryable) == (FailureKind.SAMPLER, False) and "no-such-program" in str(error)


def test_a_checkpoint_gone_meanwhile_is_told_before_anything_runs(job):
    job.checkpoint.unlink()
    assert failure(shell(job, "touch $0/ran")).kind == FailureKind.CHECKPOINT
    assert not (job.work_dir / "out").exists()


def test_a_process_left_behind_that_holds_standard_output_is_not_waited_for(job):
    assert scores(shell(job, f"sleep 1000 & {ANSWER}"))["bleu"].value == 0.5


# ---- pairs ----------------------------------------------------------------------------------------------------------

PAIRS = "for i in 0 1 2 3 4 5 6 7; do echo '{\"sample\": {\"prediction\": \"p'$i'\", \"target\": \"t\"}}'; done; "


def predictions(result):
    return [pair["prediction"] for pair in read_pairs(result.samples)]


@pytest.mark.parametrize(("changes", "kept"), [
    ({}, ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7"]), ({"log_interval": 3}, ["p0", "p3", "p6"]),
    ({"log_max_samples": 2}, ["p0", "p1"]), ({"log_interval": 3, "log_max_samples": 2}, ["p0", "p3"]),
])
def test_every_nth_pair_is_kept_up_to_so_many(job, changes, kept):
    result, _ = run(shell(job, PAIRS + ANSWER, log_samples=True, **changes))
    assert predictions(result) == kept and result.warnings == ()


def test_pairs_may_come_in_a_file(job):
    lines = PAIRS.replace("; done", ' >> "$0/samples.jsonl"; done') + 'echo "no json" >> "$0/samples.jsonl"; '
    result, _ = run(shell(job, lines + ANSWER, log_samples=True, log_interval=4))
    assert predictions(result) == ["p0", "p4"]


def test_without_log_samples_none_are_kept(job):
    result, _ = run(shell(job, PAIRS + ANSWER))
    assert result.samples is None and not (job.work_dir / "samples").exists()


def test_log_samples_without_pairs_is_told_and_is_no_failure(job):
    result, _ = run(shell(job, ANSWER, log_samples=True))
    assert result.samples is None and "showed no pairs" in result.warnings[0]


def test_pairs_of_any_size_stay_small(tmp_path):
    kept = KeptPairs(tmp_path, EvaluationCommand(argv=("x",), log_samples=True))
    kept.add({"prediction": "a" * 10**6, "target": {"deep": ["x" * 10**6]}, **{f"k{i}": i for i in range(1000)}})
    kept.close()
    [pair] = read_pairs(tmp_path)
    assert (tmp_path / FILE).stat().st_size < 70_000 and pair["prediction"].startswith("aaa")


def test_an_incomplete_adapter_is_handed_over_with_a_warning(job, tmp_path):
    (tmp_path / "exp/lora_weights").mkdir()
    (tmp_path / "exp/lora_weights/adapter_config.json").write_text("{}")
    result, _ = run(shell(job, ANSWER))
    assert "lora_weights lacks adapter_model.safetensors" in result.warnings[0]


# ---- digest and check -----------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "val.csv").write_text("a\n")
    command = EvaluationCommand(argv=("python", "eval.py", ("--log", "{log_samples}")), csv_input=tmp_path / "val.csv")
    return Recipe(name="r", metrics=(MetricSpec(name="bleu"),), command=command)


def digest(recipe, tmp_path):
    return inspect_recipe(recipe, ContentDigests(tmp_path / "cache.json"))


@pytest.mark.parametrize("change", [
    {"argv": ("python", "other.py")}, {"result": "m.json"}, {"max_samples": 5}, {"csv_input": None},
])
def test_what_changes_the_scores_of_a_command_changes_the_digest(recipe, tmp_path, change):
    other = evolve(recipe, command=evolve(recipe.command, **change))
    assert digest(other, tmp_path) != digest(recipe, tmp_path)


def test_so_do_the_content_of_the_dataset_the_metrics_and_the_version(recipe, tmp_path):
    before = digest(recipe, tmp_path)
    assert digest(evolve(recipe, metrics=(MetricSpec(name="cider"),)), tmp_path) != before
    assert digest(evolve(recipe, version=2), tmp_path) != before
    (tmp_path / "val.csv").write_text("changed\n")
    assert digest(recipe, tmp_path) != before


@pytest.mark.parametrize("change", [
    {"log_samples": True}, {"log_interval": 5}, {"log_max_samples": 5}, {"timeout": 5.0}, {"argv": ("python", "eval.py")},
])
def test_what_is_kept_for_people_does_not_change_it(recipe, tmp_path, change):
    other = evolve(recipe, command=evolve(recipe.command, **change))
    assert digest(other, tmp_path) == digest(recipe, tmp_path)


def test_a_missing_dataset_is_a_problem_of_the_recipe(recipe, tmp_path):
    (tmp_path / "val.csv").unlink()
    assert digest(recipe, tmp_path)[1] == [f"csv_input {tmp_path / 'val.csv'}: No such file or directory"]


@pytest.mark.parametrize(("argv", "words"), [
    (("no-such-program",), "no program 'no-such-program' in PATH"), (("bin/eval",), "no program"),
    (("python3", "eval.py"), "no file"), (("{checkpoint}/eval.sh",), None), (("python3", "-m", "eval"), None),
    (("python3", "{checkpoint}.py"), None),
])
def test_a_program_that_is_not_there_is_found_before_it_is_needed(recipe, tmp_path, argv, words):
    found = list(lacking_here(evolve(recipe, command=evolve(recipe.command, argv=argv)), tmp_path))
    assert [words in text for text in found] == ([True] if words else [])


# ---- in the daemon --------------------------------------------------------------------------------------------------

EVALUATION = '''
import json, sys
from pathlib import Path
step = int(Path(sys.argv[1]).stem)
if step == 300 and not Path("mended").exists(): print(json.dumps({"blue": 1})); raise SystemExit
for i in range(4): print(json.dumps({"sample": {"prediction": f"p{i} of {step}", "target": "t", "id": i}}))
print(json.dumps({"bleu": step / 1000, "val": {"loss": 1 - step / 1000}, "n": 4}))
'''


@pytest.mark.slow
def test_a_daemon_ranks_by_the_answer_keeps_pairs_and_tries_again_when_told(project):
    (project.base / "eval.py").write_text(EVALUATION)
    recipe = {"command": [sys.executable, "eval.py", "{checkpoint}", ["--csv", "{csv_input}"]], "metrics": ["bleu"],
              "log_samples": True, "log_interval": 2}
    project.write(recipes={"r": recipe}, workers={"devices": ["cpu"], "retry_after": 0, "attempts": 2},
                  runs=[{"match": "*", "evaluate": {"recipe": "r"}, "rank": {"by": "bleu"}}])
    for step in (100, 200, 300):
        project.save(f"a/{step:04d}.pt")
    assert project.cli("run", "--once", stub=False).returncode == 3  # done in part
    told = project.json("rank", "a", stub=False)
    assert [p["step"] for p in told["ranking"]] == [200, 100]
    assert told["ranking"][0]["scores"]["val/loss"]["value"] == pytest.approx(0.8)
    [unranked] = told["unranked"]
    assert unranked["step"] == 300 and "no `bleu` (nearest: blue)" in unranked["reason"]
    [evaluation] = project.evaluations()["a/0300.pt"]
    assert (evaluation.failure.kind, evaluation.attempts) == (FailureKind.METRIC, 1)
    kept = project.root / OURS / "runs/a/evaluation_samples/0200" / FILE
    assert [json.loads(line)["prediction"] for line in kept.read_text().splitlines()] == ["p0 of 200", "p2 of 200"]

    (project.base / "mended").touch()
    refused = project.cli("samples", "a@300")
    assert refused.returncode == 1 and "no `bleu`" in refused.stderr
    assert project.cli("retry", "a@300").returncode == 0
    assert project.cli("run", "--once", stub=False).returncode == 0
    assert project.json("rank", "a", stub=False)["ranking"][0]["step"] == 300
    [shown] = project.json("samples", "a@300", "-n", "1")["evaluations"]
    assert [pair["prediction"] for pair in shown["samples"]] == ["p0 of 300"]
    text = project.cli("samples", "a@300").stdout
    assert "2 pairs of 0300.pt by recipe r" in text and "p2 of 300" in text and "id: 2" in text
