"""What every sampler owes: the same images of one checkpoint whatever the batch size, and errors a person can act on."""

import os
from pathlib import Path

import psutil
import pytest
import torch

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.samplers import Request, create_sampler
from ckptwatch.model import FailureKind, Sampler
from tests.parity.evaluation_kit import TOY, command, make_job, shell, write_images
from tests.parity.toy_samplers import Toy, picture

COUNT = 12
PROMPTS = tuple(("a red car", "two dogs", "snow: {x}, “ü”")[i % 3] for i in range(COUNT))


def request(directory: Path, spec: Sampler, *, warn=None, progress=None, **changes) -> Request:
    job = make_job(directory, sampler=spec, **{"samples": COUNT, "seed": 40} | changes)
    return Request(
        job=job, prompts=PROMPTS[:job.recipe.samples], device="cpu",
        report=lambda *now: progress.append(now) if progress is not None else None,
        warn=warn.append if warn is not None else lambda _: None,
    )


def generate(asked: Request) -> list[torch.Tensor]:
    return list(create_sampler(asked.job.recipe.sampler, "cpu").sample(asked).batches())


def failure(directory: Path, spec: Sampler, **changes) -> EvaluationError:
    asked = request(directory, spec, **changes)
    with pytest.raises(EvaluationError) as caught:
        generate(asked)
    return caught.value


def images_of(directory: Path) -> Sampler:
    write_images(directory / "run" / "samples" / "waymo_a_0000300", COUNT, first=40)
    return Sampler(images="samples/{run}_{step:07d}")


SAMPLERS = {"command": lambda _: command(), "python": lambda _: TOY, "images": images_of}


@pytest.fixture(params=SAMPLERS)
def spec(request, tmp_path):
    return SAMPLERS[request.param](tmp_path)


# ---- the contract ----


@pytest.mark.parametrize("batch_size", [1, 5, COUNT, 100])
def test_images_do_not_depend_on_the_batch_size(spec, tmp_path, batch_size):
    batches = generate(request(tmp_path, spec, batch_size=batch_size))
    assert [len(b) for b in batches] == [len(p) for p in torch.arange(COUNT).split(batch_size)]
    images = torch.cat(batches)
    assert images.dtype == torch.uint8 and images.shape == (COUNT, 3, 40, 40)
    assert images[:, 0, 0, 0].tolist() == [40 + i for i in range(COUNT)]  # order and seed
    prompts = ("",) * COUNT if spec.images else PROMPTS
    assert torch.equal(images, torch.stack([picture(40 + i, p) for i, p in enumerate(prompts)]))


def test_fewer_samples_are_the_first_of_more(spec, tmp_path):
    warnings = []
    few = torch.cat(generate(request(tmp_path, spec, samples=4, warn=warnings)))
    assert few[:, 0, 0, 0].tolist() == [40, 41, 42, 43]
    assert bool(warnings) == bool(spec.images)  # eight images are not used, and that is said


# ---- command ----


def test_command_reports_progress_while_it_samples(tmp_path):
    progress = []
    generate(request(tmp_path, command(), progress=progress))
    assert progress[-1] == ("sampling", COUNT, COUNT)
    assert all(stage == "sampling" and done <= total == COUNT for stage, done, total in progress)


def test_command_output_goes_to_the_log_and_its_last_lines_into_the_error(tmp_path):
    error = failure(tmp_path, shell("echo loading; echo 'KeyError: unet' >&2; exit 3"))
    assert error.kind == FailureKind.SAMPLER
    assert "run sampler" in str(error) and "exit status 3" in str(error) and "KeyError: unet" in str(error)
    assert "loading\n" in (tmp_path / "job.log").read_text()
    assert error.hint


def test_progress_bars_do_not_fill_the_error(tmp_path):
    error = failure(tmp_path, shell(r"printf '10%%\r50%%\r100%%\nboom\n' >&2; exit 1"))
    assert str(error.cause) == "exit status 1; it said: 100% | boom"


def test_signals_are_named(tmp_path):
    assert "SIGSEGV" in str(failure(tmp_path, shell("kill -SEGV $$")))


def test_too_few_images_say_how_many_there_are(tmp_path):
    source = write_images(tmp_path / "elsewhere", 3)
    error = failure(tmp_path, shell(f'cp {source}/*.png "$1"'))
    assert error.kind == FailureKind.SAMPLER and "3 of 12 images" in str(error)


def test_timeout_kills_the_whole_tree(tmp_path):
    pid_file = tmp_path / "pid"
    # A grandchild in a session of its own, as launchers of distributed jobs make them.
    error = failure(tmp_path, shell(f"echo started; setsid sleep 1000 & echo $! > {pid_file}; wait", timeout=1.0))
    assert error.kind == FailureKind.SAMPLER and "1 s" in str(error) and "started" in str(error)
    assert _ends(int(pid_file.read_text()))


def test_children_left_behind_are_killed_when_the_command_ends(tmp_path):
    pid_file, source = tmp_path / "pid", write_images(tmp_path / "elsewhere", COUNT)
    generate(request(tmp_path, shell(f'cp {source}/*.png "$1"; sleep 1000 & echo $! > {pid_file}')))
    assert _ends(int(pid_file.read_text()))


def _ends(pid: int) -> bool:
    """Is the process gone, or about to be? A kill takes a moment."""
    try:
        return psutil.Process(pid).wait(timeout=20) is None
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody reaps orphans in this container


def test_sampler_gets_no_input_and_default_signals(tmp_path):
    source = write_images(tmp_path / "elsewhere", COUNT)
    generate(request(tmp_path, shell(f'cat; cp {source}/*.png "$1"')))  # `cat` would wait for ever on an open input


def test_command_not_found(tmp_path):
    error = failure(tmp_path, Sampler(command=("no-such-program", "--x")))
    assert error.kind == FailureKind.SAMPLER and "command not found: no-such-program" in str(error)


def test_script_without_interpreter_is_told(tmp_path):
    script = tmp_path / "sample.sh"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    error = failure(tmp_path, Sampler(command=(str(script),)))
    assert "exit status 127" in str(error) and "cannot start" in str(error)


def test_unreadable_image_is_named(tmp_path):
    source = write_images(tmp_path / "elsewhere", COUNT)
    whole = (source / "img_7.png").read_bytes()
    (source / "img_7.png").write_bytes(whole[: len(whole) // 2])
    error = failure(tmp_path, shell(f'cp {source}/*.png "$1"'))
    assert error.kind == FailureKind.SAMPLER and error.path.name == "img_7.png"


def test_mixed_sizes_name_both_images(tmp_path):
    source = write_images(tmp_path / "elsewhere", COUNT)
    write_images(tmp_path / "wide", 1, side=44)
    os.replace(tmp_path / "wide" / "img_0.png", source / "img_11.png")
    error = failure(tmp_path, shell(f'cp {source}/*.png "$1"'))
    assert error.kind == FailureKind.SAMPLER
    assert "img_0.png is 40×40" in str(error) and "img_11.png is 44×44" in str(error)


def test_out_of_memory_in_the_command_is_out_of_memory(tmp_path):
    error = failure(tmp_path, shell("echo 'torch.OutOfMemoryError: CUDA out of memory.' >&2; exit 1"))
    assert error.kind == FailureKind.OUT_OF_MEMORY


def test_unknown_placeholder_lists_the_known_ones(tmp_path):
    error = failure(tmp_path, Sampler(command=("/bin/echo", "{chekpoint}")))
    assert error.kind == FailureKind.RECIPE and "{chekpoint}" in str(error) and "{checkpoint}" in error.hint


def test_braces_can_be_written(tmp_path):
    error = failure(tmp_path, Sampler(command=("/bin/sh", "-c", 'echo "$0"; exit 1', '{{"a": 1}}')))
    assert '{"a": 1}' in str(error)


def test_every_placeholder_is_filled_in(tmp_path):
    words = ("{checkpoint}", "{variant}", "{prompts}", "{seed}", "{count}", "{out_dir}", "{device}", "{step:05d}", "{run}")
    error = failure(tmp_path, Sampler(command=("/bin/sh", "-c", 'echo "$@"; exit 1', "sh", *words)), variant="ema")
    work = tmp_path / "work"
    said = f"{tmp_path}/run/step_0000300.pt ema {work}/prompts.txt 40 12 {work}/images cpu 00300 waymo_a"
    assert said in str(error)


# ---- images ----


def test_missing_directory_is_named(tmp_path):
    error = failure(tmp_path, Sampler(images="samples/{stem}"))
    assert error.kind == FailureKind.SAMPLER and str(error.path).endswith("run/samples/step_0000300")


def test_too_few_training_images_say_how_many(tmp_path):
    write_images(tmp_path / "run" / "e3", 5)
    assert "5 of 12 images" in str(failure(tmp_path, Sampler(images="e{epoch}")))


def test_unknown_step_is_an_error_not_a_directory_called_none(tmp_path):
    error = failure(tmp_path, Sampler(images="s{step}"), step=None)
    assert error.kind == FailureKind.SAMPLER and "step of this checkpoint is not known" in str(error)


# ---- python ----


def misbehaving(how: str) -> Sampler:
    return Sampler(factory="tests.parity.toy_samplers:Misbehaving", options={"how": how})


def test_nan_images_are_an_error_not_a_number(tmp_path):
    for how in ("nan", "infinite"):
        error = failure(tmp_path, misbehaving(how))
        assert error.kind == FailureKind.NOT_FINITE and not error.retryable
    assert "sample 4" in str(failure(tmp_path, misbehaving("nan")))  # the last of the first batch


def test_float_images_are_rounded_not_cut_off(tmp_path):
    exact = torch.cat(generate(request(tmp_path, TOY)))
    assert torch.equal(torch.cat(generate(request(tmp_path, misbehaving("floats")))), exact)


@pytest.mark.parametrize(("how", "words"), [
    ("minus_one", "must lie in [0, 1]"),
    ("channels_last", "(5, 40, 40, 3), wanted (5, 3, H, W)"),
    ("too_few", "(4, 3, 40, 40), wanted (5, 3, H, W)"),
    ("integers", "torch.int64"),
    ("array", "ndarray, not a tensor"),
    ("growing", "mixed sizes: 20×40, then 25×40"),
    ("raises", "sample() raised ValueError: bad timestep"),
    ("exits", "sample() raised SystemExit"),
    ("load", "load() raised RuntimeError: missing key: decoder.weight"),
])
def test_bad_samplers_are_told_what_is_wrong(tmp_path, how, words):
    error = failure(tmp_path, misbehaving(how))
    assert error.kind == FailureKind.SAMPLER and words in str(error)
    assert "tests.parity.toy_samplers:Misbehaving" in str(error)


@pytest.mark.parametrize(("factory", "kind", "words"), [
    ("no_such_module:f", FailureKind.RECIPE, "no module named 'no_such_module'"),
    ("tests.parity.toy_samplers:nothing", FailureKind.RECIPE, "has no 'nothing'"),
    ("tests.parity.toy_samplers:NOT_CALLABLE", FailureKind.RECIPE, "is a int"),
    ("toy_samplers", FailureKind.RECIPE, "module:function"),
    ("tests.parity.toy_samplers:NoSample", FailureKind.SAMPLER, "without sample()"),
    ("tests.parity.toy_samplers:broken_factory", FailureKind.SAMPLER, "OSError: no such config"),
])
def test_bad_factories_are_told_what_is_wrong(tmp_path, factory, kind, words):
    error = failure(tmp_path, Sampler(factory=factory))
    assert error.kind == kind and words in str(error)


def test_out_of_memory_stays_out_of_memory(tmp_path):
    assert failure(tmp_path, misbehaving("memory")).kind == FailureKind.OUT_OF_MEMORY


def test_batches_are_halved_when_memory_is_short(tmp_path):
    asked = request(tmp_path, misbehaving("small_batches_only"), batch_size=7)
    assert torch.equal(torch.cat(generate(asked)), torch.cat(generate(request(tmp_path, TOY))))


def test_model_is_made_once_and_loads_every_checkpoint(tmp_path):
    made = Toy.made
    sampler = create_sampler(TOY, "cpu")
    for variant in ("model", "model_ema1"):
        list(sampler.sample(request(tmp_path, TOY, variant=variant)).batches())
    assert Toy.made == made + 1
    assert sampler._model.loaded == [("step_0000300.pt", "model"), ("step_0000300.pt", "model_ema1")]


def test_python_sampler_past_its_time_is_stopped_between_batches(tmp_path):
    error = failure(tmp_path, Sampler(factory=TOY.factory, timeout=-1.0))
    assert error.kind == FailureKind.SAMPLER and "0 of 12 images" in str(error)
