"""What `command` owes while its program still writes: whole images only, in their final order, and nothing of a failure.

The program is a process that does what the test tells it through a pipe, and notes what it has done. A test's `director` is
resumed at each look of the sampler at the directory: it gives orders, and waits for looks, never for time.
"""

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.images import natural_key
from ckptwatch.evaluate.samplers import Batch, OrderChangedError, Request, create_sampler
from ckptwatch.evaluate.samplers.arriving import SETTLE, Arriving
from ckptwatch.evaluate.samplers.stored import Piece, mark_of
from ckptwatch.model import FailureKind, Sampler
from tests.parity.evaluation_kit import make_job
from tests.parity.toy_pictures import pixels
from tests.parity.toy_samplers import picture
from tests.processes import gone

COUNT, BATCH = 12, 5
PROGRAM = """
import mmap, os, sys
files, maps = {}, {}
pipe, notes, store, out = sys.argv[1:]
os.chdir(out)
with open(pipe) as orders, open(notes, "a") as said:
    print("started", os.getpid(), file=said, flush=True)
    for order in orders:
        what, *words = order.split()
        if what == "exit":
            sys.exit(int(words[0]))
        elif what == "put":  # SOURCE TARGET FROM TO: these bytes of the source, appended
            with open(os.path.join(store, words[0]), "rb") as source, open(words[1], "ab") as target:
                target.write(source.read()[int(words[2]):int(words[3])])
        elif what == "over":  # SOURCE TARGET
            with open(os.path.join(store, words[0]), "rb") as source, open(words[1], "wb") as target:
                target.write(source.read())
        elif what == "map":  # SOURCE TARGET: its first 128 bytes, then zeros to the same length; left mapped
            with open(os.path.join(store, words[0]), "rb") as source, open(words[1], "w+b") as target:
                data = source.read()
                target.truncate(len(data))
                maps[words[1]] = mmap.mmap(target.fileno(), len(data))
            maps[words[1]][:] = data[:128] + bytes(len(data) - 128)
        elif what == "fill":  # SOURCE TARGET: all of it, through the map
            with open(os.path.join(store, words[0]), "rb") as source:
                maps[words[1]][:] = source.read()
        elif what == "unmap":
            maps.pop(words[0]).close()
        elif what == "open":
            files[words[0]] = open(words[0], "r+b")
        elif what == "close":
            files.pop(words[0]).close()
        elif what == "say":
            print(*words, file=sys.stderr, flush=True)
        elif what == "rename":
            os.rename(*words)
        elif what == "remove":
            os.remove(words[0])
        print("done", file=said, flush=True)
"""
END = 1 << 40
Director = Callable[["Stage"], Iterator[None]]


class Stage:
    """A command under control, its sampler, and what came of it."""

    def __init__(self, directory: Path, **changes) -> None:
        self.store = directory / "store"
        self.store.mkdir()
        self.notes = directory / "notes"
        self.notes.touch()
        pipe = directory / "pipe"
        os.mkfifo(pipe)
        self.pipe = os.open(pipe, os.O_RDWR)  # also for reading: it neither waits for the program nor outlives it
        timeout = changes.pop("timeout", 60.0)
        spec = Sampler(
            command=(sys.executable, "-I", "-S", "-c", PROGRAM.replace("{", "{{").replace("}", "}}"),
                     str(pipe), str(self.notes), str(self.store), "{out_dir}"), timeout=timeout)
        job = make_job(directory, sampler=spec, **{"samples": COUNT, "batch_size": BATCH} | changes)
        scratch = job.work_dir / "part"
        scratch.mkdir()
        self.out = scratch / "images"
        self.warnings: list[str] = []
        self.progress: list[tuple[str, int, int]] = []
        self.seen: list[Batch] = []
        self.given = 0
        self.director: Iterator[None] = iter(())
        self.source = create_sampler(spec, "cpu").sample(Request(
            job=job, prompts=("",) * job.recipe.samples, scratch=scratch, device="cpu", report=self._report,
            warn=self.warnings.append,
        ))

    def _report(self, *now) -> None:
        self.progress.append(now)
        next(self.director, None)

    def keep(self, name: str, data: bytes) -> str:
        (self.store / name).write_bytes(data)
        return name

    def order(self, *orders: str) -> None:
        os.write(self.pipe, "".join(f"{order}\n" for order in orders).encode())
        self.given += len(orders)

    def write(self, *names: str) -> None:
        """Files of the store, whole, under their own names."""
        self.order(*(f"over {name} {name}" for name in names))

    def noted(self) -> list[str]:
        return self.notes.read_text().splitlines()

    def pid(self) -> int:
        return int(next(line for line in self.noted() if line.startswith("started")).split()[1])

    def starts(self) -> int:
        return sum(line.startswith("started") for line in self.noted())

    def looked_at(self, looks: int = 6) -> Iterator[None]:
        """Until all orders are carried out and the sampler has looked at the outcome, more than once."""
        while self.noted().count("done") < self.given:
            yield
        for _ in range(looks):
            yield

    def shown(self, batches: int) -> Iterator[None]:
        while len(self.seen) < batches:
            yield

    def play(self, director: Director) -> list[Batch]:
        self.director = director(self)
        for batch in self.source.batches():
            self.seen.append(batch)
        return self.seen

    def images(self) -> torch.Tensor:
        return torch.cat([batch.images for batch in self.seen])

    def close(self) -> None:
        os.close(self.pipe)


@pytest.fixture
def make_stage(tmp_path, monkeypatch):
    stages = []

    def make(**changes) -> Stage:
        stages.append(Stage(tmp_path, **changes))
        return stages[-1]

    for module in ("command", "running"):
        monkeypatch.setattr(f"ckptwatch.evaluate.samplers.{module}.POLL", 0.02)
    yield make
    for stage in stages:
        stage.close()


@pytest.fixture
def stage(make_stage) -> Stage:
    return make_stage()


def encoded(seed: int, kind: str = "png") -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels(seed, "")).save(data, {"jpg": "jpeg"}.get(kind, kind))
    return data.getvalue()


def stored(stage: Stage, count: int = COUNT, *, name: str = "img_{}.png", first: int = 0) -> list[str]:
    """PNG files of seeds 0, 1, … in the store, with their names in order."""
    return [stage.keep(name.format(first + i), encoded(i)) for i in range(count)]


def expected(count: int = COUNT) -> torch.Tensor:
    return torch.stack([picture(i, "") for i in range(count)])


def array_of(seeds: range, dtype: type = np.uint8) -> bytes:
    data = io.BytesIO()
    np.save(data, np.stack([pixels(i, "") for i in seeds]).astype(dtype))
    return data.getvalue()


# ---- while it writes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "first", "changes"), [
    ("img_{}.png", 0, {}),
    ("img_{}.png", 1, {}),
    ("{:06d}.png", 0, {}),
    ("step-300-sample{:03d}.PNG", 1, {}),
    ("{}.png", 12, {"samples": 24, "batch_size": 4, "part": 1, "parts": 2}),
    ("x{:03d}.png", 0, {"samples": 24, "batch_size": 4, "part": 1, "parts": 2}),
])
def test_batches_come_while_the_command_still_writes(make_stage, name, first, changes):
    stage = make_stage(**changes)
    size = changes.get("batch_size", BATCH)
    names = stored(stage, name=name, first=first)

    def director(stage):
        for batch in range(2):
            stage.write(*names[batch * size:(batch + 1) * size])
            yield from stage.shown(batch + 1)
        stage.write(*names[2 * size:])
        stage.order("exit 0")

    stage.play(director)
    start = 12 * changes.get("part", 0)
    assert [(b.start, len(b)) for b in stage.seen] == [
        (start + i, min(size, COUNT - i)) for i in range(0, COUNT, size)]
    assert torch.equal(stage.images(), expected())
    # Those that a single worker would see: a range's own counter goes on where the range before it ends.
    numbers = range(first, first + COUNT) if first else range(start, start + COUNT)
    assert [stem for b in stage.seen for stem in b.stems] == [Path(name.format(i)).stem for i in numbers]


def test_progress_tells_of_images_as_they_appear(stage):
    names = stored(stage)

    def director(stage):
        for name in names:
            stage.write(name)
            yield from stage.looked_at(1)
        stage.order("exit 0")

    stage.play(director)
    counts = [done for _, done, _ in stage.progress]
    assert set(range(COUNT)) <= set(counts) and counts == sorted(counts)
    assert {(s, t) for s, _, t in stage.progress} == {("sampling", COUNT)}
    assert counts.index(COUNT) == len(counts) - 1  # all are there only when the command has ended


def test_images_out_of_order_wait_for_those_before_them(stage):
    names = stored(stage)

    def director(stage):
        stage.write(*reversed(names[5:]), *names[1:3], names[4], names[0])
        yield from stage.looked_at()
        assert stage.seen == []  # img_3 is missing
        stage.write(names[3])
        yield from stage.shown(2)
        stage.order("exit 0")

    stage.play(director)
    assert torch.equal(stage.images(), expected())


def test_two_writers_whose_second_is_first_lose_nothing(stage):
    names = stored(stage)

    def director(stage):
        stage.write(*names[1::2])
        yield from stage.looked_at()
        stage.write(*names[::2])
        yield from stage.shown(2)
        stage.order("exit 0")

    stage.play(director)
    assert torch.equal(stage.images(), expected())


@pytest.mark.parametrize(("name", "first", "others"), [
    ("city{}_b.png", 0, []), ("img_{}.png", 3, []), ("img_{}.png", 0, ["img_7.jpg"]), ("img_{}.png", 0, ["img_007.png"]),
    ("img_{}.png", 0, ["a_grid.png"]), ("img_{}.png", 0, ["a1.png"]),
])
def test_where_the_place_is_uncertain_all_wait_for_the_end(stage, name, first, others):
    names = stored(stage, name=name, first=first)

    def director(stage):
        stage.order(*(f"over {names[7]} {other}" for other in others))
        stage.write(*names)
        yield from stage.looked_at()
        assert stage.seen == []
        stage.order("exit 0")

    stage.play(director)
    ordered = sorted([*names, *others], key=natural_key)[:COUNT]
    seeds = [7 if name in others else names.index(name) for name in ordered]
    assert [stem for b in stage.seen for stem in b.stems] == [Path(name).stem for name in ordered]
    assert torch.equal(stage.images(), torch.stack([picture(seed, "") for seed in seeds]))


def test_temporary_and_hidden_names_are_no_images(stage):
    names = stored(stage)

    def director(stage):
        stage.write(*names[:3])
        stage.order(*(f"over {names[0]} {other}" for other in ("img_3.png.tmp", ".img_4.png", "img_5.png~", "notes.txt")))
        stage.order(f"over {names[3]} img_3.png.tmp", "rename img_3.png.tmp img_3.png")
        stage.write(names[4])
        yield from stage.shown(1)
        stage.write(*names[5:])
        stage.order("exit 0")

    stage.play(director)
    assert torch.equal(stage.images(), expected())


def test_an_image_under_another_name_for_a_while_does_not_stop_the_reading(stage):
    names = stored(stage)

    def director(stage):
        stage.order(f"over {names[0]} writing.png")
        yield from stage.looked_at()
        stage.order(f"rename writing.png {names[0]}")
        stage.write(*names[1:5])
        yield from stage.shown(1)
        stage.write(*names[5:])
        stage.order("exit 0")

    stage.play(director)
    assert torch.equal(stage.images(), expected())


# ---- half-written files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_half_an_image_is_never_scored(stage, kind):
    names = [stage.keep(f"img_{i}.{kind}", encoded(i, kind)) for i in range(COUNT)]
    size = len(encoded(2, kind))

    def director(stage):
        stage.write(*names[:2], *names[3:])
        for begin, end in ((0, 0), (0, size // 2), (size // 2, size - 30)):
            stage.order(f"put {names[2]} {names[2]} {begin} {end}")
            yield from stage.looked_at()
            assert stage.seen == []
        stage.order(f"put {names[2]} {names[2]} {size - 30} {END}")
        yield from stage.shown(2)
        stage.order("exit 0")

    stage.play(director)
    exact = [np.array(Image.open(io.BytesIO(encoded(i, kind))).convert("RGB")) for i in range(COUNT)]
    assert torch.equal(stage.images(), torch.from_numpy(np.stack(exact)).permute(0, 3, 1, 2))


def test_half_an_array_is_never_scored(stage):
    stage.keep("x0.npy", array_of(range(7)))
    stage.keep("x1.npy", array_of(range(7, COUNT)))
    size = len(array_of(range(7)))

    def director(stage):
        stage.write("x1.npy")
        for begin, end in ((0, 50), (50, 128 + 40 * 40 * 3 * 6), (128 + 40 * 40 * 3 * 6, size - 1)):
            stage.order(f"put x0.npy x0.npy {begin} {end}")
            yield from stage.looked_at()
            assert stage.seen == []
        stage.order(f"put x0.npy x0.npy {size - 1} {END}")
        yield from stage.shown(2)
        stage.order("exit 0")

    stage.play(director)
    assert torch.equal(stage.images(), expected())


def test_an_array_that_fills_through_a_map_is_never_scored_half(stage):
    """Full length at once, and no new time when bytes of a dirty page change: only the kernel knows that it is open."""
    stage.keep("x0.npy", array_of(range(COUNT)))

    def director(stage):
        stage.order("map x0.npy x0.npy")
        yield from stage.looked_at()
        assert stage.seen == []
        stage.order("fill x0.npy x0.npy")
        yield from stage.looked_at()
        assert stage.seen == []
        stage.order("unmap x0.npy")
        yield from stage.shown(2)
        stage.order("exit 0")

    stage.play(director)
    assert torch.equal(stage.images(), expected())


def test_where_nobody_knows_who_writes_arrays_wait_for_the_end(stage, monkeypatch):
    monkeypatch.setattr("ckptwatch.evaluate.samplers.stored.has_writer", lambda _: None)
    stage.keep("x0.npy", array_of(range(COUNT)))

    def director(stage):
        stage.write("x0.npy")
        yield from stage.looked_at()
        assert stage.seen == []
        stage.order("exit 0")

    stage.play(director)
    assert torch.equal(stage.images(), expected())


def test_where_nobody_knows_who_writes_images_still_come_early(stage, monkeypatch):
    monkeypatch.setattr("ckptwatch.evaluate.samplers.stored.has_writer", lambda _: None)
    names = stored(stage)

    def director(stage):
        stage.write(*names)
        yield from stage.shown(2)
        stage.order("exit 0")

    stage.play(director)
    assert torch.equal(stage.images(), expected())


def test_an_image_that_is_open_for_writing_waits(stage):
    names = stored(stage)

    def director(stage):
        stage.write(names[3])
        stage.order(f"open {names[3]}")
        stage.write(*names[:3], *names[4:])
        yield from stage.looked_at()
        assert stage.seen == []
        stage.order(f"close {names[3]}")
        yield from stage.shown(2)
        stage.order("exit 0")

    stage.play(director)
    assert torch.equal(stage.images(), expected())


def test_links_to_images_and_arrays_elsewhere_come_early(tmp_path):
    (tmp_path / "elsewhere.npy").write_bytes(array_of(range(2)))
    old = time.time() - 60
    os.utime(tmp_path / "elsewhere.npy", (old, old))
    out = tmp_path / "out"
    out.mkdir()
    (out / "0.npy").symlink_to(tmp_path / "elsewhere.npy")
    with Arriving(out, firsts={0}, batch_size=2, limit=1) as arriving:
        assert arriving.look() == 2
        found = arriving.batch()
    assert found is not None and torch.equal(torch.cat(found[1]), expected(2))


def test_a_file_that_changes_while_it_is_read_is_not_whole(tmp_path, monkeypatch):
    file = tmp_path / "0.png"
    file.write_bytes(encoded(0))
    mark = mark_of(file)
    assert torch.equal(Piece(file).read_unchanged(mark)[0], picture(0, ""))
    original = Piece.read

    def overtaken(piece):
        images = original(piece)
        os.truncate(file, file.stat().st_size + 1)
        return images

    monkeypatch.setattr(Piece, "read", overtaken)
    with pytest.raises(ValueError, match="while it was read"):
        Piece(file).read_unchanged(mark)
    with pytest.raises(ValueError, match="has changed"):
        Piece(file).read_unchanged(mark)


@pytest.mark.parametrize("ahead", [0, 3600, -3600])
def test_a_file_just_written_is_left_alone_for_a_moment_whatever_its_clock_says(tmp_path, monkeypatch, ahead):
    now = [1_000_000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time_ns=lambda: int(now[0] * 1e9))
    monkeypatch.setattr("ckptwatch.evaluate.samplers.arriving.time", clock)
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encoded(i))
        os.utime(tmp_path / f"{i}.png", (now[0] + ahead, now[0] + ahead))

    with Arriving(tmp_path, firsts={0, 1}, batch_size=2, limit=1) as arriving:
        def read():
            assert arriving.look() == 2
            return arriving.batch()

        if ahead >= 0:  # a clock that is behind makes every file old; it is then whole if it decodes
            assert read() is None
            now[0] += SETTLE / 2
            assert read() is None
            os.utime(tmp_path / "0.png", (now[0] + ahead, now[0] + ahead))
            now[0] += SETTLE * 0.75
            assert read() is None
        for _ in range(2):
            now[0] += SETTLE * 1.5
            found = read()
            if found is not None:
                break
        assert found is not None and torch.equal(torch.cat(found[1]), expected(2))


@pytest.mark.parametrize("exit_status", [0, 1])
def test_an_image_that_stays_half_is_an_error_at_the_end(stage, exit_status):
    names = stored(stage)

    def director(stage):
        stage.write(*names[:2], *names[3:])
        stage.order(f"put {names[2]} {names[2]} 0 100")
        yield from stage.looked_at()
        stage.order(f"exit {exit_status}")

    with pytest.raises(EvaluationError) as caught:
        stage.play(director)
    assert caught.value.kind == FailureKind.SAMPLER and stage.seen == []
    assert ("exit status 1" in str(caught.value)) if exit_status else (caught.value.path.name == names[2])


# ---- arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(12,), (1,) * 12, (3, 4, 5), (7, 0, 5)])
def test_arrays_are_cut_into_batches_while_they_come(stage, sizes):
    begins = [sum(sizes[:n]) for n in range(len(sizes))]
    empty = array_of(range(1))[:-4800].replace(b"(1, 40,", b"(0, 40,")
    names = [stage.keep(f"x{n}.npy", array_of(range(b, b + s)) if s else empty)
             for n, (b, s) in enumerate(zip(begins, sizes, strict=True))]

    def director(stage):
        stage.write(*names)
        yield from stage.shown(2)
        assert stage.progress[-1][1] == COUNT - 1
        stage.order("exit 0")

    stage.play(director)
    assert [len(b) for b in stage.seen] == [5, 5, 2] and {b.stems for b in stage.seen} == {None}
    assert torch.equal(stage.images(), expected())


@pytest.mark.parametrize("wrong", ["floats", "both"])
def test_what_can_never_be_right_ends_the_command_at_once(stage, wrong):
    stage.keep("x0.npy", array_of(range(COUNT), np.float32 if wrong == "floats" else np.uint8))
    stage.keep("x1.png", encoded(0))

    def director(stage):
        stage.write(*{"floats": ["x0.npy"], "both": ["x0.npy", "x1.png"]}[wrong])
        yield from stage.looked_at()

    with pytest.raises(EvaluationError) as caught:
        stage.play(director)
    assert {"floats": "uint8", "both": "x1.png"}[wrong] in str(caught.value)
    assert not caught.value.retryable or wrong == "floats"
    assert gone(stage.pid())


@pytest.mark.parametrize("wrong", ["floats", "both", "sizes", "half"])
def test_what_the_command_said_is_not_hidden_by_what_its_files_are(stage, wrong):
    names = stored(stage)
    stage.keep("x0.npy", array_of(range(COUNT), np.float32 if wrong == "floats" else np.uint8))
    stage.keep("half.npy", array_of(range(COUNT))[:-1])
    wide = io.BytesIO()
    Image.fromarray(pixels(0, "", 44)).save(wide, "png")
    stage.keep("wide.png", wide.getvalue())
    orders = {
        "floats": ["over x0.npy x0.npy"], "both": ["over x0.npy x0.npy", f"over {names[0]} {names[0]}"],
        "sizes": [*(f"over {name} {name}" for name in names), f"over wide.png {names[1]}"],
        "half": ["over half.npy x0.npy", "exit 0"],
    }

    def director(stage):
        stage.order("say no space left", *orders[wrong])
        yield

    with pytest.raises(EvaluationError) as caught:
        stage.play(director)
    assert {"floats": "uint8", "both": "x0.npy", "sizes": "44×44", "half": "its header says"}[wrong] in str(caught.value)
    assert str(caught.value.cause).endswith("; it said: no space left") and caught.value.kind == FailureKind.SAMPLER
    assert caught.value.retryable == (wrong != "both") and caught.value.hint


# ---- what was read does not stand -----------------------------------------------------------------------------------


def read_again(stage: Stage) -> torch.Tensor:
    stage.seen = []
    stage.play(lambda _: iter(()))
    assert stage.starts() == 1, "the command was run twice"
    return stage.images()


def test_an_image_written_again_after_it_was_read_has_all_read_again(stage):
    names = stored(stage)
    stage.keep("new", encoded(99))

    def director(stage):
        stage.write(*names)
        yield from stage.shown(2)
        stage.order(f"over new {names[1]}", "exit 0")

    with pytest.raises(OrderChangedError, match="some again"):
        stage.play(director)
    assert len(stage.seen) == 2
    images = read_again(stage)
    assert torch.equal(images[1], picture(99, "")) and torch.equal(images[2:], expected()[2:])


def test_an_array_written_again_after_a_part_was_read_has_all_read_again(stage):
    stage.keep("x0.npy", array_of(range(COUNT)))
    stage.keep("new", array_of(range(50, 50 + COUNT + 3)))

    def director(stage):
        stage.write("x0.npy")
        yield from stage.shown(1)
        stage.order("over new x0.npy")
        yield from stage.looked_at()
        stage.order("exit 0")

    with pytest.raises(OrderChangedError):
        stage.play(director)
    assert torch.equal(read_again(stage), torch.stack([picture(50 + i, "") for i in range(COUNT)]))


@pytest.mark.parametrize(("late", "stands"), [("img_0.png", False), ("a_grid.png", False), ("z_grid.png", True)])
def test_an_image_that_belongs_before_those_read_has_all_read_again(stage, late, stands):
    names = stored(stage, COUNT + 1, first=1)
    stage.keep("late", encoded(77))

    def director(stage):
        stage.write(*names[:7])
        yield from stage.shown(1)
        stage.order(f"over late {late}")
        yield from stage.looked_at()
        stage.write(*names[7:-1])
        yield from stage.looked_at()
        assert len(stage.seen) == 1  # what cannot stand, or may not, is not continued
        stage.order("exit 0")

    if stands:
        stage.play(director)
        assert torch.equal(stage.images(), expected())
    else:
        with pytest.raises(OrderChangedError, match="belong before"):
            stage.play(director)
        assert torch.equal(read_again(stage), torch.cat([picture(77, "")[None], expected()[:-1]]))
    assert stage.warnings == [f"the sampler wrote {COUNT + 1} images, the first {COUNT} are scored"]


def test_an_image_removed_after_it_was_read_has_all_read_again(stage):
    names = stored(stage, COUNT + 1)

    def director(stage):
        stage.write(*names)
        yield from stage.shown(1)
        stage.order(f"remove {names[2]}", "exit 0")

    with pytest.raises(OrderChangedError):
        stage.play(director)
    whole = expected(COUNT + 1)
    assert torch.equal(read_again(stage), torch.cat([whole[:2], whole[3:]]))


def test_images_can_be_read_again(stage):
    names = stored(stage)

    def director(stage):
        stage.write(*names)
        stage.order("exit 0")
        yield

    stage.play(director)
    assert stage.source.stage == "scoring"
    assert torch.equal(read_again(stage), expected())


# ---- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [10, COUNT])
def test_a_command_that_fails_after_its_last_image_yields_no_whole_set(make_stage, count):
    stage = make_stage(samples=count)
    names = stored(stage, count)

    def director(stage):
        stage.write(*names)
        yield from stage.shown((count - 1) // BATCH)
        yield from stage.looked_at()
        stage.order("exit 3")

    with pytest.raises(EvaluationError) as caught:
        stage.play(director)
    assert caught.value.kind == FailureKind.SAMPLER and "exit status 3" in str(caught.value)
    assert len(stage.images()) == (count - 1) // BATCH * BATCH  # the last batch waits until all is known to be well


def test_too_few_images_are_an_error_even_though_some_were_read(stage):
    names = stored(stage)

    def director(stage):
        stage.write(*names[:11])
        yield from stage.shown(2)
        stage.order("exit 0")

    with pytest.raises(EvaluationError) as caught:
        stage.play(director)
    assert "11 of 12 images" in str(caught.value)


def test_mixed_sizes_are_noticed_while_it_writes_and_afterwards(stage):
    names = stored(stage)
    wide = io.BytesIO()
    Image.fromarray(pixels(0, "", 44)).save(wide, "png")
    stage.keep(names[11], wide.getvalue())

    def director(stage):
        stage.write(*names)
        yield from stage.shown(2)
        stage.order("exit 0")

    with pytest.raises(EvaluationError) as caught:
        stage.play(director)
    assert "img_0.png is 40×40, img_11.png is 44×44" in str(caught.value)


def test_its_time_runs_while_images_are_scored(stage, monkeypatch):
    hours = [0]
    clock = SimpleNamespace(monotonic=lambda: hours[0] * 3600, sleep=time.sleep)
    monkeypatch.setattr("ckptwatch.evaluate.samplers.running.time", clock)
    names = stored(stage)

    def director(stage):
        stage.write(*names)
        yield

    stage.director = director(stage)
    batches = stage.source.batches()
    next(batches)
    hours[0] = 1
    assert gone(stage.pid())  # though nobody asks for the next batch
    with pytest.raises(EvaluationError, match="no end after 60 s, killed"):
        list(batches)


def test_the_command_ends_when_nobody_wants_more(stage):
    names = stored(stage)

    def director(stage):
        stage.write(*names)
        yield

    stage.director = director(stage)
    batches = stage.source.batches()
    next(batches)
    batches.close()
    assert gone(stage.pid())


def test_the_command_ends_when_a_metric_fails(stage):
    names = stored(stage)

    def director(stage):
        stage.write(*names)
        yield

    def score() -> None:
        for batch in stage.source.batches():
            raise KeyError(batch.start)

    stage.director = director(stage)
    with pytest.raises(KeyError):
        score()
    assert gone(stage.pid())


def test_a_reader_who_left_and_comes_back_gets_images_of_a_new_run(stage):
    names = stored(stage)

    def director(stage):
        stage.write(*names[:6], names[8])
        yield

    stage.director = director(stage)
    batches = stage.source.batches()
    next(batches)
    batches.close()

    def whole(stage):
        stage.write(*names)
        stage.order("exit 0")
        yield

    assert torch.equal(torch.cat([b.images for b in stage.play(whole)]), expected())
    assert stage.starts() == 2


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_a_few_batches_are_in_memory_however_far_the_command_is(make_stage, monkeypatch, kind):
    stage = make_stage(samples=40, batch_size=2)
    names = stored(stage, 40) if kind == "png" else [stage.keep("0.npy", array_of(range(40)))]
    read, most = [], 0
    original = Piece.read

    def counting(piece):
        read.append(len(piece))
        return original(piece)

    monkeypatch.setattr(Piece, "read", counting)

    def director(stage):
        stage.write(*names)
        yield from stage.shown(19)
        stage.order("exit 0")

    stage.director = director(stage)
    for batch in stage.source.batches():
        stage.seen.append(batch)
        most = max(most, sum(read) - sum(map(len, stage.seen[:-1])))
    assert torch.equal(stage.images(), expected(40))
    assert most <= 4 * 2
