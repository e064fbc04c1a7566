"""One evaluation from checkpoint to scores: what it reports, what it keeps, how it fails."""

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.artifacts import Artifacts
from ckptwatch.evaluate.engine import Engine
from ckptwatch.evaluate.failures import failure_of
from ckptwatch.evaluate.images import decode, list_images, read_batches
from ckptwatch.evaluate.networks import exact
from ckptwatch.evaluate.progress import Reporter
from ckptwatch.evaluate.prompts import read_prompts
from ckptwatch.model import FailureKind, MetricSpec, Mode, Reference, Sampler
from tests.parity.evaluation_kit import TOY, again, command, failure, make_job, metrics, run, scores, write_images
from tests.parity.toy_pictures import pixels
from tests.parity.toy_samplers import Toy


def custom(function: str, name: str = "level", mode: Mode | None = Mode.MAX) -> MetricSpec:
    return MetricSpec(name=name, function=f"tests.parity.toy_samplers:{function}", mode=mode)


# ---- the straight line ----


def test_scores_do_not_depend_on_batch_size_or_kind_of_sampler(tmp_path):
    reference = Reference(images=write_images(tmp_path / "reference", 30))
    found = []
    for number, (spec, size) in enumerate([(TOY, 5), (TOY, 12), (command(), 7)]):
        job = make_job(tmp_path, sampler=spec, batch_size=size, metrics=metrics("fid", "inception_score", "kid"),
                       reference=reference, seed=5)
        found.append(scores(again(job, number)))
    assert found[1] == pytest.approx(found[0], rel=1e-5, abs=1e-8)
    assert found[2] == pytest.approx(found[0], rel=1e-5, abs=1e-8)


def test_progress_tells_loading_sampling_computing_to_their_ends(tmp_path):
    _, seen = run(make_job(tmp_path, sampler=command()))
    stages = list(dict.fromkeys(p.stage for p in seen))
    assert stages == ["loading", "sampling", "computing"]
    for stage in stages:
        last = [p for p in seen if p.stage == stage][-1]
        assert last.done == last.total and last.job == "1#1"


def test_model_and_networks_stay_loaded_between_jobs(tmp_path):
    made, engine, job = Toy.made, Engine("cpu"), make_job(tmp_path)
    run(job, engine)
    network = engine._store.features(job.recipe.networks, ["logits"])
    run(again(job), engine)
    assert Toy.made == made + 1
    assert engine._store.features(job.recipe.networks, ["logits"]) is network


def test_sampler_that_failed_is_made_anew(tmp_path):
    engine = Engine("cpu")
    bad = make_job(tmp_path, sampler=Sampler(factory="tests.parity.toy_samplers:Misbehaving", options={"how": "raises"}))
    failure(bad, engine)
    assert not engine._sampler


def test_networks_are_dropped_when_memory_ran_out(tmp_path):
    engine = Engine("cpu")
    run(make_job(tmp_path), engine)
    assert engine._store._kept
    options = {"how": "memory"}
    error = failure(again(make_job(
        tmp_path, sampler=Sampler(factory="tests.parity.toy_samplers:Misbehaving", options=options))), engine)
    assert error.kind == FailureKind.OUT_OF_MEMORY and not engine._store._kept


def test_checkpoint_gone_meanwhile(tmp_path):
    job = make_job(tmp_path)
    job.checkpoint.unlink()
    assert failure(job).kind == FailureKind.CHECKPOINT


def test_recipe_without_metrics_or_samples(tmp_path):
    assert "names no metrics" in str(failure(make_job(tmp_path, metrics=())))
    assert "at least 1" in str(failure(make_job(tmp_path, samples=0)))
    assert "named twice" in str(failure(make_job(tmp_path, metrics=metrics("inception_score", "inception_score"))))
    assert "names none" in str(failure(make_job(tmp_path, sampler=Sampler())))


def test_tf32_of_a_sampler_does_not_reach_the_networks():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        with torch.autocast("cpu"), exact(torch.device("cpu")):
            assert not matmul.allow_tf32 and not cudnn.allow_tf32 and not torch.is_autocast_enabled("cpu")
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert matmul.allow_tf32 and cudnn.allow_tf32  # as the sampler wanted it
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


# ---- custom metrics ----


def test_custom_metric_sees_every_generated_image(tmp_path):
    result, _ = run(make_job(tmp_path, metrics=(custom("mean_level"), custom("two_numbers", "pair")), seed=3))
    by_name = {s.metric: s for s in result.scores}
    assert by_name["level"].value == pytest.approx(sum(pixels(3 + i, "").mean() for i in range(12)) / 12)
    assert by_name["level"].mode == Mode.MAX and by_name["level"].n == 12
    assert (by_name["first"].value, by_name["second"].value) == (1.0, 2.5)


@pytest.mark.parametrize(("function", "kind", "words"), [
    ("raises", FailureKind.METRIC, "KeyError: 'sharpness'"),
    ("not_a_number", FailureKind.METRIC, "returned nan"),
    ("text", FailureKind.METRIC, "returned a str"),
    ("nothing_there", FailureKind.RECIPE, "has no 'nothing_there'"),
])
def test_custom_metric_that_fails_is_named(tmp_path, function, kind, words):
    error = failure(make_job(tmp_path, metrics=(custom(function),)))
    assert error.kind == kind and words in str(error) and ("level" in str(error))


def test_unknown_metric_lists_the_built_in_ones(tmp_path):
    error = failure(make_job(tmp_path, metrics=metrics("fidd")))
    assert error.kind == FailureKind.RECIPE and "fidd" in str(error) and "fid, inception_score" in str(error)


def test_two_scores_of_one_name_are_an_error(tmp_path):
    error = failure(make_job(tmp_path, metrics=(custom("mean_level", "first"), custom("two_numbers", "pair"))))
    assert error.kind == FailureKind.METRIC and "'first'" in str(error)


# ---- pictures for people ----


def test_pictures_prompts_and_sheet_are_kept(tmp_path):
    originals = write_images(tmp_path / "originals", 12, side=52)
    (tmp_path / "p.txt").write_text("a car\na dog\n")
    result, _ = run(make_job(
        tmp_path, keep_samples=7, prompts=tmp_path / "p.txt", reference=Reference(paired=originals), seed=9,
    ))
    names = sorted(p.name for p in result.samples.iterdir())
    assert names == sorted([
        *(f"eval_generated_{i:03d}.jpg" for i in range(7)), *(f"eval_comparison_{i:03d}.jpg" for i in range(7)),
        *(f"eval_prompt_{i:03d}.txt" for i in range(7)), "sheet.jpg",
    ])
    assert (result.samples / "eval_prompt_003.txt").read_text() == "a dog\n"
    assert Image.open(result.samples / "eval_comparison_000.jpg").size == (84, 40)  # original left, gap, generated
    kept = decode(result.samples / "eval_generated_002.jpg").float()
    wanted = torch.from_numpy(pixels(11, "a car")).permute(2, 0, 1).float()
    assert (kept - wanted).abs().mean() < 12  # JPEG of coarse noise


def test_nothing_is_kept_when_nothing_is_wanted(tmp_path):
    result, _ = run(make_job(tmp_path, keep_samples=0))
    assert result.samples is None and not (tmp_path / "work" / "samples").exists()


def test_more_pictures_wanted_than_there_are(tmp_path):
    result, _ = run(make_job(tmp_path, keep_samples=50))
    assert len(list(result.samples.glob("eval_generated_*"))) == 12
    assert not list(result.samples.glob("eval_prompt_*"))  # the recipe has none


def test_sheet_of_sixteen_is_four_by_four(tmp_path):
    artifacts = Artifacts(tmp_path / "samples", 40)
    for start in (0, 20):
        artifacts.add(start, torch.zeros(20, 3, 300, 200, dtype=torch.uint8), ("",) * 20, None)
    artifacts.finish()
    width, height = Image.open(tmp_path / "samples" / "sheet.jpg").size
    assert (width, height) == (4 * 171 + 3 * 4, 4 * 256 + 3 * 4)


# ---- image files ----


def test_images_are_read_in_natural_order_whatever_their_suffix(tmp_path):
    for name in ("img10.png", "img9.JPG", "img1.webp", ".hidden.png", "notes.txt", "img2.jpeg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, format="PNG") if name != "notes.txt" else (
            tmp_path / name).write_text("")
    assert [p.name for p in list_images(tmp_path)] == ["img1.webp", "img2.jpeg", "img9.JPG", "img10.png"]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (9, 7), (200, 200, 200)).convert("RGBA" if mode in ("RGBA", "LA") else "RGB").convert(mode).save(
        tmp_path / f"x.{suffix}")
    assert decode(tmp_path / f"x.{suffix}").shape == (3, 7, 9)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    Image.new("I;16", (4, 4), 0x8000).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png").unique().tolist() == [0x80]


def test_no_more_than_two_batches_are_decoded_at_once(tmp_path, monkeypatch):
    from ckptwatch.evaluate import images

    write_images(tmp_path / "many", 40)
    seen = []
    monkeypatch.setattr(images, "decode", lambda p: (seen.append(p), torch.zeros(3, 4, 4, dtype=torch.uint8))[1])
    batches = read_batches(list_images(tmp_path / "many"), 5, EvaluationError)
    next(batches)
    assert len(seen) <= 10
    batches.close()


# ---- prompts, progress, failures ----


def test_prompts_repeat_and_keep_their_odd_characters(tmp_path):
    (tmp_path / "p.txt").write_bytes("\ufeffone\r\n\n two\u2028lines \nthree".encode())
    assert read_prompts(tmp_path / "p.txt", 5) == ("one", " two\u2028lines ", "three", "one", " two\u2028lines ")
    assert read_prompts(None, 2) == ("", "")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00", None])
def test_unusable_prompts_are_an_error_of_the_recipe(tmp_path, content):
    if content is not None:
        (tmp_path / "p.txt").write_bytes(content)
    error = failure(make_job(tmp_path, prompts=tmp_path / "p.txt"))
    assert error.kind == FailureKind.RECIPE and "read prompts" in str(error)


def test_progress_is_throttled_but_first_and_last_always_come():
    now, sent = [0.0], []
    report = Reporter("7#1", sent.append, clock=lambda: now[0])
    for i in range(1001):
        now[0] = i / 1000  # a thousand a second
        report("sampling", i, 1000)
    report("sampling", 1000, 1000)
    report("scoring", 0, 5)
    assert len(sent) == 7
    assert [(p.stage, p.done) for p in sent[:1] + sent[-2:]] == [("sampling", 0), ("sampling", 1000), ("scoring", 0)]


@pytest.mark.parametrize(("error", "kind"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), FailureKind.OUT_OF_MEMORY),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
     FailureKind.OUT_OF_MEMORY),
    (MemoryError(), FailureKind.OUT_OF_MEMORY),
    (OSError(12, "Cannot allocate memory"), FailureKind.OUT_OF_MEMORY),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), FailureKind.INTERNAL),
    (KeyError("x"), FailureKind.INTERNAL),
    (EvaluationError("a", "b", kind=FailureKind.SAMPLER, retryable=False), FailureKind.SAMPLER),
])
def test_errors_become_failures_of_their_kind(error, kind):
    found = failure_of(error)
    assert found.kind == kind and found.message
    assert found.retryable is (kind != FailureKind.SAMPLER)


def test_hint_is_told_once():
    error = EvaluationError("run sampler", "exit status 1", kind=FailureKind.SAMPLER, path="/x", hint="look at the log")
    found = failure_of(error)
    assert found.message == "cannot run sampler /x: exit status 1" and found.hint == "look at the log"


def test_directory_checkpoint_is_evaluated(tmp_path):
    job = make_job(tmp_path)
    folder = job.checkpoint.with_name("checkpoint-300")
    folder.mkdir()
    shutil.copy(job.checkpoint, folder / "model.pt")
    assert run(replace(job, checkpoint=folder))[0].scores
