"""The placeholders that a check of the configuration knows are those that the samplers fill in."""

import re

import pytest

from ckptwatch.core.placeholders import COMMAND, IMAGES, NEEDS, examine_pattern
from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.samplers.base import Request
from ckptwatch.evaluate.samplers.command import command_line
from ckptwatch.evaluate.samplers.images import image_directory
from tests.parity.evaluation_kit import make_job


def request(tmp_path, **changes):
    job = make_job(tmp_path, **changes)
    return Request(job=job, prompts=("",) * job.recipe.samples, scratch=job.work_dir, device="cpu",
                   report=lambda *_: None, warn=lambda _: None)


def known(error):
    return set(re.findall(r"\{(\w+)\}", error.hint))


def test_the_lists_agree(tmp_path):
    with pytest.raises(EvaluationError) as of_command:
        command_line(("{nonsense}",), request(tmp_path))
    with pytest.raises(EvaluationError) as of_images:
        image_directory("{nonsense}", request(tmp_path).job)
    assert (known(of_command.value), known(of_images.value)) == (set(COMMAND), set(IMAGES))


@pytest.mark.parametrize("name", COMMAND)
def test_what_needs_a_key_of_the_recipe_is_what_fails_without_it(tmp_path, name):
    words = ("/bin/sh", f"{{{name}}}")
    everything = request(tmp_path, num_classes=2, image_size=8)
    assert len(command_line(words, everything)) == 2
    if name in NEEDS:
        with pytest.raises(EvaluationError, match=NEEDS[name]):
            command_line(words, request(tmp_path))
    else:
        assert len(command_line(words, request(tmp_path))) == 2


@pytest.mark.parametrize("pattern", [
    "{step}", "{step:07d}", "{checkpoint.stem}", "{checkpoint.parents[1]}", "{{}}", "{run!r}", "{step:{count}}", "{", "}",
    "{}", "{0}", "{step:zz}", "{run:d}", "{nonsense}", "{step.x}", "{step[0]}", "{checkpoint:>9}", "{step!x}",
])
def test_a_pattern_is_judged_as_the_sampler_will_judge_it(tmp_path, pattern):
    problem, _ = examine_pattern(pattern, COMMAND)
    try:
        command_line(("/bin/sh", pattern), request(tmp_path))
    except EvaluationError:
        assert problem
    else:
        assert not problem


def test_what_a_pattern_asks_for_is_told_once_and_in_order():
    assert examine_pattern("{step:{count}} {run} {step}", COMMAND) == ("", ("step", "count", "run"))


def test_the_stand_ins_are_of_the_types_that_come(tmp_path):
    job = request(tmp_path, num_classes=2, image_size=8).job
    assert isinstance(job.step, type(IMAGES["step"])) and isinstance(job.run, type(COMMAND["run"]))
    assert isinstance(job.checkpoint, type(COMMAND["checkpoint"]))
