"""Evaluation by a program of the user's own: it is given a checkpoint and answers with metrics as JSON."""

import shlex
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ckptwatch.core.placeholders import EVALUATION, examine_pattern
from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.answers import Output, scores_of
from ckptwatch.evaluate.failures import checkpoint_error, metric_error, recipe_error, sampler_error, says_out_of_memory
from ckptwatch.evaluate.kept_pairs import KeptPairs
from ckptwatch.evaluate.progress import Reporter
from ckptwatch.evaluate.samplers.placeholders import fill
from ckptwatch.evaluate.samplers.running import POLL, Outcome, Running
from ckptwatch.formats.reading import read_json
from ckptwatch.model import EvaluationCommand, FailureKind
from ckptwatch.pairs import FILE
from ckptwatch.surroundings import adapter_doubt, around
from ckptwatch.workers.wire import Job, Progress, Result

STAGE = "evaluating"
RUN = "run evaluation command"
LONGEST_SHOWN = 400            # characters of the command in an error
LARGEST_RESULT = 16 * 1024**2  # bytes
# A Python program writes each line when it is complete, or progress would be known at the end.
_ENVIRONMENT = {"PYTHONUNBUFFERED": "1"}
_LOGGING = frozenset({"log_samples", "log_interval", "log_max_samples"})
_WHY_UNSET = {
    "step": "the step of this checkpoint is not known",
    "epoch": "the epoch of this checkpoint is not known",
    "metadata": "there is no checkpoint_metadata.json in the checkpoint or beside it",
    "lora": "there is no lora_weights/ in the checkpoint or beside it",
    "csv_input": "no csv_input is set",
    "max_samples": "no max_samples is set",
}


def evaluate_by_command(job: Job, send: Callable[[Progress], None], device: str) -> Result:
    """The scores that the recipe's command answers for one checkpoint. Raises EvaluationError, OSError.

    Kinds of errors: RECIPE where the command cannot be filled in, SAMPLER where it does not start, fails, takes too long or
    says nothing, OUT_OF_MEMORY where it says so, METRIC where its answer lacks a metric of the recipe.
    """
    begin, command = time.monotonic(), job.recipe.command
    assert command is not None
    if not job.checkpoint.exists():
        raise checkpoint_error(
            "evaluate checkpoint", "it is gone", path=job.checkpoint, hint="it was moved or removed meanwhile")
    out_dir = job.work_dir / "out"
    shutil.rmtree(out_dir, ignore_errors=True)  # of an attempt before
    out_dir.mkdir(parents=True)
    found = around(job.checkpoint)
    warnings = [doubt] if found.lora is not None and (doubt := adapter_doubt(found.lora)) else []
    argv = command_line(command, values_of(job, command, out_dir, device))
    report = Reporter(job.job, send)
    report(STAGE, 0, 1)
    kept = KeptPairs(job.work_dir / "samples", command)
    output = Output(kept.add)
    with Running(argv, job.log, command.timeout, hear=output.hear, env=_ENVIRONMENT) as running:
        while not running.ended(POLL):
            if (told := output.progress) is not None:
                report(told[0] or STAGE, told[1], told[2])
        outcome = running.outcome()
    _check(outcome, argv, command, job.log)
    scores = scores_of(_answer(output, command, out_dir, outcome, job.log), job.recipe.metrics)
    if command.log_samples and not kept.seen:
        warnings += _read_pairs(kept, out_dir / FILE)
    samples = kept.close()
    report(STAGE, 1, 1)
    return Result(job=job.job, scores=scores, seconds=time.monotonic() - begin, samples=samples, warnings=tuple(warnings))


def _read_pairs(kept: KeptPairs, path: Path) -> list[str]:
    """From the file, since standard output had none. Warnings: without its pairs an evaluation is still one."""
    try:
        kept.read(path)
    except FileNotFoundError:
        return [f'log_samples is on, and the command showed no pairs: it should print {{"sample": {{"prediction": …, '
                f'"target": …}}}} lines, or write {path.name} into {{out_dir}}']
    except OSError as error:
        return [f"its {path.name} cannot be read: {error.strerror or error}"]
    return []


# ---- the command line ------------------------------------------------------------------------------------------------


def values_of(job: Job, command: EvaluationCommand, out_dir: Path, device: str) -> dict[str, Any]:
    """What each placeholder stands for; None for one without a value."""
    found = around(job.checkpoint)
    return {
        "checkpoint": job.checkpoint, "run": job.run, "out_dir": out_dir, "device": device, "variant": job.variant,
        "step": job.step, "epoch": job.epoch, "metadata": found.metadata, "lora": found.lora,
        "csv_input": command.csv_input, "max_samples": command.max_samples, "batch_size": job.recipe.batch_size,
        "log_samples": "true" if command.log_samples else "false", "log_interval": command.log_interval,
        "log_max_samples": command.log_max_samples,
    }


def command_line(command: EvaluationCommand, values: Mapping[str, Any]) -> list[str]:
    """argv. Words in a list are left out together where a placeholder in one of them has no value; the variant has none
    where the checkpoint is meant as a whole, and what is about logging samples has none where none are logged.

    Raises EvaluationError: RECIPE for a lone word whose placeholder has no value, or that cannot be filled in; SAMPLER where
    there is no such program.
    """
    off = {name for name, value in values.items() if value is None or value == ""}
    off_in_lists = off if command.log_samples else off | _LOGGING
    argv: list[str] = []
    for words in command.argv:
        if isinstance(words, str):
            _must_have(words, off - {"variant"})
            argv.append(fill(words, values, "the evaluation command"))
        elif off_in_lists.isdisjoint(name for word in words for name in examine_pattern(word, EVALUATION)[1]):
            argv += [fill(word, values, "the evaluation command") for word in words]
    if not argv or shutil.which(argv[0]) is None:
        program = argv[0] if argv else ""
        raise sampler_error(
            RUN, f"command not found: {program}", path=program or None, retryable=False,
            hint="give the full path of the program as the first word of `command`, and make it executable")
    return argv


def _must_have(word: str, off: set[str]) -> None:
    for name in examine_pattern(word, EVALUATION)[1]:
        if name in off:
            raise recipe_error(
                "fill in the evaluation command", f"{{{name}}} has no value: {_WHY_UNSET[name]}", path=word, retryable=False,
                hint=f'put the words that need it into a list of their own, which is then left out: ["--{name}", '
                     f'"{{{name}}}"]')


# ---- how it ended ----------------------------------------------------------------------------------------------------


def _check(outcome: Outcome, argv: list[str], command: EvaluationCommand, log: Path) -> None:
    said, shown = outcome.said, shlex.join(argv)
    shown = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}…"
    if outcome.timed_out:
        raise sampler_error(
            RUN, f"no end after {command.timeout:g} s, killed{said}", path=shown,
            hint=f"raise `timeout` of the recipe, or lower `max_samples`; full output in {log}")
    if outcome.status == 0:
        return
    if says_out_of_memory(outcome.tail):
        raise EvaluationError(
            RUN, f"{outcome.words}: out of memory{said}", path=shown, kind=FailureKind.OUT_OF_MEMORY,
            hint="let the command use smaller batches, or give it a freer device")
    raise sampler_error(RUN, f"{outcome.words}{said}", path=shown, hint=_hint(outcome, log))


def _answer(output: Output, command: EvaluationCommand, out_dir: Path, outcome: Outcome, log: Path) -> Mapping[str, Any]:
    if command.result:
        return _result_file(out_dir, command.result, outcome)
    if (answer := output.answer()) is None:
        raise sampler_error(
            RUN, f"exit status 0, but no line of its standard output is a JSON object{outcome.said}", retryable=False,
            hint='it should print one such as {"accuracy": 0.93} last, or write it to a file that `result` names; full '
                 f"output in {log}")
    return answer


def _result_file(out_dir: Path, name: str, outcome: Outcome) -> Mapping[str, Any]:
    path = out_dir / name
    if not path.resolve().is_relative_to(out_dir.resolve()):
        raise recipe_error("read the answer of the evaluation command", "`result` leads out of {out_dir}", path=name,
                           hint="give a name below {out_dir}, such as metrics.json", retryable=False)
    try:
        answer = read_json(path, LARGEST_RESULT)
    except FileNotFoundError:
        there = ", ".join(sorted(p.name for p in out_dir.iterdir())[:8]) if out_dir.is_dir() else ""
        raise sampler_error(
            RUN, f"exit status 0, but it wrote no {name} into {{out_dir}}; found there: {there or 'nothing'}{outcome.said}",
            retryable=False, hint="give the command {out_dir}, and `result` the file's name below it") from None
    except OSError as error:
        raise sampler_error(RUN, f"its {name} cannot be read: {error.strerror or error}",
                            hint="the command must leave a plain file that can be read") from error
    except ValueError as error:
        raise metric_error("use the answer of the evaluation command", str(error), path=name, retryable=False,
                           hint='the file should hold one JSON object such as {"accuracy": 0.93}') from error
    if not isinstance(answer, dict):
        raise metric_error("use the answer of the evaluation command", f"a JSON {type(answer).__name__}, not an object",
                           path=name, hint='it should look like {"accuracy": 0.93}', retryable=False)
    return answer


def _hint(outcome: Outcome, log: Path) -> str:
    if outcome.status == 128 + signal.SIGKILL:
        return f"the kernel kills a process when the machine is out of memory: see dmesg; output in {log}"
    if "can't open file" in outcome.tail or "No such file" in outcome.tail:
        return f"relative paths in `command` start at {Path.cwd()}; use absolute ones; output in {log}"
    return f"run the command above by hand; its whole output is in {log}"
