"""What every sampler owes: the same images of one checkpoint whatever the batch size, and errors a person can act on."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageFile

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.samplers import Batch, Request, create_sampler
from ckptwatch.evaluate.samplers.numbering import Stems
from ckptwatch.model import FailureKind, Sampler
from tests.parity.evaluation_kit import TOY, command, make_job, shell, write_images
from tests.parity.toy_samplers import Toy, picture
from tests.processes import gone

COUNT = 12
PROMPTS = tuple(("a red car", "two dogs", "snow: {x}, “ü”")[i % 3] for i in range(COUNT))


def request(directory: Path, spec: Sampler, *, warn=None, progress=None, **changes) -> Request:
    job = make_job(directory, sampler=spec, **{"samples": COUNT, "seed": 40} | changes)
    scratch = job.work_dir / f"part-{job.part}"
    scratch.mkdir(exist_ok=True)
    return Request(
        job=job, prompts=PROMPTS[:job.recipe.samples], scratch=scratch, device="cpu",
        report=lambda *now: progress.append(now) if progress is not None else None,
        warn=warn.append if warn is not None else lambda _: None,
    )


def generate(asked: Request) -> list[torch.Tensor]:
    return [batch.images for batch in batches(asked)]


def batches(asked: Request) -> list[Batch]:
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


@pytest.mark.parametrize("parts", [2, 3])
def test_ranges_put_together_are_the_whole(spec, tmp_path, parts):
    whole = torch.cat(generate(request(tmp_path, spec)))
    warnings = []
    ranges = [batches(request(tmp_path, spec, part=p, parts=parts, warn=warnings)) for p in range(parts)]
    assert [b.start for of_range in ranges for b in of_range] == [0, 5, 10]
    assert torch.equal(torch.cat([b.images for of_range in ranges for b in of_range]), whole)
    assert not warnings  # that a range is less than the directory goes without saying


def test_range_without_samples_has_no_images(tmp_path):
    for spec in (TOY, images_of(tmp_path), shell("exit 1")):
        empty = request(tmp_path, spec, samples=4, part=0, parts=2)
        assert empty.count == 0 and batches(empty) == []


def test_stems_are_those_that_a_single_worker_would_see(tmp_path):
    def stems(spec, **changes):
        return [stem for batch in batches(request(tmp_path, spec, **changes)) for stem in batch.stems]

    counted = command()
    assert stems(counted, part=1, parts=2) == stems(counted)[5:] == [f"sample_{i}" for i in range(5, COUNT)]
    training = images_of(tmp_path)
    assert stems(training, part=1, parts=2) == stems(training)[5:] == [f"img_{i}" for i in range(5, COUNT)]
    assert {batch.stems for batch in batches(request(tmp_path, TOY))} == {None}


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
    assert gone(int(pid_file.read_text()))


def test_children_left_behind_are_killed_when_the_commandgone(tmp_path):
    pid_file, source = tmp_path / "pid", write_images(tmp_path / "elsewhere", COUNT)
    generate(request(tmp_path, shell(f'cp {source}/*.png "$1"; sleep 1000 & echo $! > {pid_file}')))
    assert gone(int(pid_file.read_text()))


def test_children_that_left_the_group_are_killed_when_the_command_ends(tmp_path):
    pid_file, source = tmp_path / "pid", write_images(tmp_path / "elsewhere", COUNT)
    generate(request(tmp_path, shell(f'cp {source}/*.png "$1"; setsid sleep 1000 & echo $! > {pid_file}')))
    assert gone(int(pid_file.read_text()))


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
    words = ("{checkpoint}", "{variant}", "{prompts}", "{seed}", "{count}", "{out_dir}", "{device}", "{step:05d}", "{run}",
             "{labels}", "{num_classes}", "{image_size}", "{batch_size}", "{start}")
    spec = Sampler(command=("/bin/sh", "-c", "printf '%s\\n' \"$*\"; exit 1", "sh", *words))
    failure(tmp_path, spec, variant="ema", num_classes=10, image_size=64, part=1, parts=2)
    work = tmp_path / "work" / "part-1"
    assert (tmp_path / "job.log").read_text().strip() == (
        f"{tmp_path}/run/step_0000300.pt ema {work}/prompts.txt 45 7 {work}/images cpu 00300 waymo_a "
        f"{work}/labels.txt 10 64 5 5")


def test_prompts_and_labels_of_a_range_are_in_files(tmp_path):
    files = ("/bin/sh", "-c", 'cat "$@"; exit 1', "sh", "{prompts}", "{labels}")
    failure(tmp_path, Sampler(command=files), num_classes=10, part=1, parts=2)
    said = (tmp_path / "job.log").read_text(encoding="utf-8")
    assert said.split("\n")[:-1] == [*PROMPTS[5:], "5", "6", "7", "8", "9", "0", "1"]


@pytest.mark.parametrize(("word", "key"), [
    ("{labels}", "num_classes"), ("{num_classes}", "num_classes"), ("{image_size}", "image_size"),
])
def test_placeholder_for_what_the_recipe_does_not_set_names_the_key(tmp_path, word, key):
    error = failure(tmp_path, Sampler(command=("/bin/echo", word)))
    assert error.kind == FailureKind.RECIPE and not error.retryable
    assert f"the recipe has no {key}" in str(error) and f"set `{key}`" in error.hint


def test_own_names_of_a_range_stay_as_they_are(tmp_path):
    source = tmp_path / "elsewhere"
    write_images(source, 7, prefix="city")
    for number, name in enumerate("gfedcba"):
        os.replace(source / f"city_{number}.png", source / f"{name}.png")
    found = batches(request(tmp_path, shell(f'cp {source}/*.png "$1"'), part=1, parts=2))
    assert [b.stems for b in found] == [("a", "b", "c", "d", "e"), ("f", "g")]


def test_global_names_of_a_range_that_begins_at_sample_1_stay_as_they_are(tmp_path):
    source = write_images(tmp_path / "elsewhere", 2)
    found = batches(request(
        tmp_path, shell(f'cp {source}/img_1.png "$1"'), samples=2, batch_size=1, part=1, parts=2))
    assert [(b.start, b.stems) for b in found] == [(1, ("img_1",))]


@pytest.mark.parametrize(("start", "first", "stem"), [
    (5, 0, "img_5"), (5, 1, "img_6"), (5, 5, "img_5"), (5, 6, "img_6"), (1, 0, "img_1"), (1, 1, "img_1"), (1, 2, "img_2"),
    (0, 0, "img_0"), (0, 1, "img_1"),
])
def test_a_ranges_own_counter_goes_on_and_one_of_the_whole_stays(start, first, stem):
    assert Stems(start, f"img_{first}.png")(Path(f"img_{first}.png")) == stem


# ---- images ----


def save_arrays(directory: Path, *parts: torch.Tensor, channels_last: bool = True) -> Sampler:
    """A sampler `images` whose directory holds these batches, uint8 (n, 3, H, W), as x0.npy, x1.npy, …"""
    target = directory / "run" / "arrays"
    target.mkdir(parents=True)
    for number, part in enumerate(parts):
        np.save(target / f"x{number}.npy", (part.permute(0, 2, 3, 1) if channels_last else part).contiguous().numpy())
    return Sampler(images="arrays")


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("sizes", [(12,), (7, 5), (1, 2, 9), (5, 0, 5, 2)])
def test_arrays_are_cut_into_batches_of_the_wanted_size(tmp_path, sizes, channels_last):
    wanted = torch.stack([picture(40 + i, "") for i in range(COUNT)])
    spec = save_arrays(tmp_path, *wanted.split(sizes), channels_last=channels_last)
    found = batches(request(tmp_path, spec))
    assert [len(b) for b in found] == [5, 5, 2] and {b.stems for b in found} == {None}
    assert torch.equal(torch.cat([b.images for b in found]), wanted)
    later = batches(request(tmp_path, spec, part=1, parts=2))
    assert torch.equal(torch.cat([b.images for b in later]), wanted[5:])


def test_images_and_arrays_in_one_directory_are_refused(tmp_path):
    spec = save_arrays(tmp_path, torch.zeros(COUNT, 3, 8, 8, dtype=torch.uint8))
    write_images(tmp_path / "run" / "arrays", 1)
    error = failure(tmp_path, spec)
    assert error.kind == FailureKind.SAMPLER and "img_0.png" in str(error) and "x0.npy" in str(error)


def test_too_few_images_in_arrays_say_how_many(tmp_path):
    assert "5 of 12 images" in str(failure(tmp_path, save_arrays(tmp_path, torch.zeros(5, 3, 8, 8, dtype=torch.uint8))))


@pytest.mark.parametrize(("array", "words"), [
    (np.zeros((12, 8, 8, 3), np.float32), "float32, wanted uint8"),
    (np.zeros((12, 8, 8, 3), np.int8), "int8, wanted uint8"),
    (np.zeros((8, 8, 3), np.uint8), "(8, 8, 3), wanted (n, H, W, 3) or (n, 3, H, W)"),
    (np.zeros((12, 8, 8, 4), np.uint8), "(12, 8, 8, 4), wanted"),
    (np.zeros((12, 3, 8, 3), np.uint8), "can be read as either"),
    (np.zeros((12, 8, 0, 3), np.uint8), "(12, 8, 0, 3), wanted"),
    (np.asfortranarray(np.zeros((12, 8, 8, 3), np.uint8)), "Fortran"),
    (np.array([{"a": 1}] * 12, dtype=object), "object, wanted uint8"),
])
def test_unfit_arrays_are_told_what_is_wanted(tmp_path, array, words):
    spec = save_arrays(tmp_path)
    np.save(tmp_path / "run" / "arrays" / "x0.npy", array, allow_pickle=True)
    error = failure(tmp_path, spec)
    assert error.kind == FailureKind.SAMPLER and error.path.name == "x0.npy" and words in str(error)


@pytest.mark.parametrize("change", [
    lambda d: d[:-1], lambda d: d + b"\0", lambda d: d[:40], lambda d: b"", lambda d: b"x" * 500,
    lambda d: d[:8] + b"\xff\xff" + d[10:], lambda d: d.replace(b"descr", b"descx"),
])
def test_arrays_that_are_not_whole_are_named(tmp_path, change):
    spec = save_arrays(tmp_path, torch.zeros(COUNT, 3, 8, 8, dtype=torch.uint8))
    file = tmp_path / "run" / "arrays" / "x0.npy"
    file.write_bytes(change(file.read_bytes()))
    error = failure(tmp_path, spec)
    assert error.kind == FailureKind.SAMPLER and error.path == file


def test_half_an_image_is_none_even_where_pillow_was_told_to_fill_it_up(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    spec = images_of(tmp_path)
    file = tmp_path / "run" / "samples" / "waymo_a_0000300" / "img_7.png"
    file.write_bytes(file.read_bytes()[:-100])
    assert failure(tmp_path, spec).path == file


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


def test_labels_and_size_reach_the_model(tmp_path):
    asked = request(tmp_path, TOY, num_classes=5, image_size=48)
    images = torch.cat(generate(asked))
    assert images.shape == (COUNT, 3, 48, 48)
    assert torch.equal(images, torch.stack([picture(40 + i, PROMPTS[i], 48, label=i % 5) for i in range(COUNT)]))
    later = generate(request(tmp_path, TOY, num_classes=5, image_size=48, part=1, parts=2))
    assert torch.equal(torch.cat(later), images[5:])


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
    ("growing_in_halves", "mixed sizes: 20×40, then 22×40"),
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


def test_sizes_that_fitted_are_asked_for_at_once_from_then_on(tmp_path):
    spec = misbehaving("small_batches_only")
    sampler = create_sampler(spec, "cpu")
    list(sampler.sample(request(tmp_path, spec, batch_size=6)).batches())
    assert sampler._model.sizes == [6, 3, 1, 2, 3, 1, 2, *[2] * 3]


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
