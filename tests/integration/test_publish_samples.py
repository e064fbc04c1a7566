"""Samples for people: copied whole, replaced whole, and one sheet over all of them."""

import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from ckptwatch.publish.samples import LABEL, ROWS, publish_samples, samples_directory, write_overview


def fill(directory, count=3, colour=(200, 0, 0), size=(64, 64)):
    directory.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", size, colour).save(directory / f"eval_generated_{i:03d}.jpg")
        Image.new("RGB", (128, 64), "black").save(directory / f"eval_comparison_{i:03d}.jpg")
        (directory / f"eval_prompt_{i:03d}.txt").write_text("a red square")
    return directory


def names(directory):
    return sorted(p.name for p in directory.iterdir())


def test_samples_are_copied_and_nothing_else_appears(tmp_path):
    source, target = fill(tmp_path / "work", 2), tmp_path / "run/evaluation_samples/step_1"
    assert publish_samples(source, target) == 6
    assert names(target) == names(source)
    assert (target / "eval_generated_000.jpg").read_bytes() == (source / "eval_generated_000.jpg").read_bytes()
    assert names(target.parent) == ["step_1"]


def test_existing_samples_are_replaced_not_mixed(tmp_path):
    target = tmp_path / "s/step_1"
    publish_samples(fill(tmp_path / "old", 5), target)
    publish_samples(fill(tmp_path / "new", 2), target)
    assert names(target) == names(tmp_path / "new")
    assert names(target.parent) == ["step_1"]


def test_links_pipes_and_directories_of_the_sampler_are_left_out(tmp_path):
    source = fill(tmp_path / "work", 1)
    (tmp_path / "secret").write_text("secret")
    (source / "eval_generated_001.jpg").symlink_to(tmp_path / "secret")
    os.mkfifo(source / "eval_generated_002.jpg")
    (source / "sub").mkdir()
    assert publish_samples(source, tmp_path / "s/step_1") == 3
    assert names(tmp_path / "s/step_1") == ["eval_comparison_000.jpg", "eval_generated_000.jpg", "eval_prompt_000.txt"]


def test_a_failed_copy_leaves_the_old_samples(tmp_path):
    target = tmp_path / "s/step_1"
    publish_samples(fill(tmp_path / "old", 2), target)
    with pytest.raises(FileNotFoundError):
        publish_samples(tmp_path / "missing", target)
    assert names(target) == names(tmp_path / "old")
    assert names(target.parent) == ["step_1"]


def test_killed_between_the_renames_the_old_samples_come_back(tmp_path):
    target = tmp_path / "s/step_1"
    publish_samples(fill(tmp_path / "old", 2), target)
    target.rename(target.with_name(".step_1.old"))
    fill(target.with_name(".step_1.new"), 1)
    with pytest.raises(FileNotFoundError):
        publish_samples(tmp_path / "missing", target)
    assert names(target) == names(tmp_path / "old")
    publish_samples(fill(tmp_path / "new", 3), target)
    assert names(target) == names(tmp_path / "new")
    assert names(target.parent) == ["step_1"]


def test_each_variant_has_its_directory():
    run = Path("/r/.ckptwatch/demo")
    assert samples_directory(run, "step_1", "") == run / "evaluation_samples/step_1"
    assert samples_directory(run, "step_1", "model_ema1") == run / "evaluation_samples/step_1-model_ema1"
    assert samples_directory(run, "step_1", "a/b") == run / "evaluation_samples/step_1-a_b"


def near(colour, expected):
    return all(abs(a - b) < 24 for a, b in zip(colour, expected, strict=True))


def test_the_overview_has_one_labelled_row_per_checkpoint_in_the_order_given(tmp_path):
    colours = {"1k": (200, 0, 0), "2k": (0, 200, 0), "385k": (0, 0, 200)}
    for label, colour in colours.items():
        fill(tmp_path / label, 3, colour)
    target = tmp_path / "out/overview.jpg"
    entries = [(label, Path(label)) for label in colours]
    assert write_overview(tmp_path, entries, target, tile=64)
    with Image.open(target) as sheet:
        assert (sheet.format, sheet.size) == ("JPEG", (LABEL + 3 * 64, 3 * 64))
        for row, colour in enumerate(colours.values()):
            for column in range(3):
                assert near(sheet.getpixel((LABEL + column * 64 + 32, row * 64 + 32)), colour)
            label = sheet.crop((0, row * 64, LABEL, row * 64 + 64)).convert("L")
            assert label.getextrema()[0] < 60  # there is dark text on white
    before = target.stat().st_mtime_ns
    assert not write_overview(tmp_path, entries, target, tile=64)
    assert target.stat().st_mtime_ns == before


def test_an_unreadable_sample_is_a_grey_tile_and_a_missing_row_is_left_out(tmp_path):
    (fill(tmp_path / "a", 2) / "eval_generated_000.jpg").write_bytes(b"\xff\xd8 no image")
    assert write_overview(tmp_path, [("a", Path("a")), ("gone", Path("gone"))], tmp_path / "o.jpg", tile=32)
    with Image.open(tmp_path / "o.jpg") as sheet:
        assert sheet.size == (LABEL + 64, 32)
        assert near(sheet.getpixel((LABEL + 16, 16)), (211, 211, 211))
        assert near(sheet.getpixel((LABEL + 48, 16)), (200, 0, 0))


def test_without_samples_there_is_no_sheet(tmp_path):
    assert not write_overview(tmp_path, [("a", Path("a"))], tmp_path / "o.jpg")
    assert not (tmp_path / "o.jpg").exists()


def test_an_entry_may_be_one_image_and_any_mode_is_shown(tmp_path):
    Image.new("RGBA", (10, 30), (0, 0, 200, 255)).save(tmp_path / "sheet.png")
    assert write_overview(tmp_path, [("385k", Path("sheet.png"))], tmp_path / "o.jpg", tile=64)
    with Image.open(tmp_path / "o.jpg") as sheet:
        assert near(sheet.getpixel((LABEL + 32, 32)), (0, 0, 200))


def test_of_very_many_checkpoints_an_even_choice_is_shown(tmp_path):
    for name, colour in (("first", (200, 0, 0)), ("middle", (0, 200, 0)), ("last", (0, 0, 200))):
        fill(tmp_path / name, 1, colour, size=(16, 16))
    entries = [("x", Path("first")), *[("y", Path("middle"))] * 2000, ("z", Path("last"))]
    assert write_overview(tmp_path, entries, tmp_path / "o.jpg", tile=16)
    with Image.open(tmp_path / "o.jpg") as sheet:
        assert sheet.size[1] == ROWS * 16
        assert near(sheet.getpixel((LABEL + 8, 8)), (200, 0, 0))
        assert near(sheet.getpixel((LABEL + 8, ROWS * 16 - 8)), (0, 0, 200))


def test_publishing_needs_no_reader_to_be_root(tmp_path):
    source = fill(tmp_path / "work", 1)
    for path in source.iterdir():
        path.chmod(0o600)
    publish_samples(source, tmp_path / "s/step_1")
    mask = int(subprocess.run(["sh", "-c", "umask"], capture_output=True, text=True).stdout, 8)
    assert (tmp_path / "s/step_1/eval_generated_000.jpg").stat().st_mode & 0o777 == 0o666 & ~mask
