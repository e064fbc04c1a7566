"""The sampler `program`: the same images as the network itself, whatever the archive, the batch size and its name."""

import io
import os
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.samplers import Request
from ckptwatch.evaluate.samplers.program import ProgramSampler
from ckptwatch.evaluate.samplers.programs import ProgramKind, program_kind
from ckptwatch.model import FailureKind, Program, Sampler
from tests.parity.evaluation_kit import make_job

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")  # deprecated, but in use
COUNT, SEED, NOISE = 7, 90, (2, 4, 4)


class Generator(nn.Module):
    """Has whatever makes names and shapes hard: normalisation, a tied weight, a buffer that is not saved, a constant."""

    def __init__(self, seed: int, classes: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inner = nn.Conv2d(2, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.norm.running_mean.normal_()
            self.head = nn.Conv2d(4, 3, 1)
            self.again = self.inner
            self.label = nn.Embedding(classes, 4) if classes else None
        self.register_buffer("table", torch.linspace(0.5, 1.5, 4).view(4, 1, 1), persistent=False)
        self.gain = torch.full((1,), scale)

    def forward(self, noise: Tensor) -> Tensor:
        return self.pictures(self.hidden(noise))

    def hidden(self, noise: Tensor) -> Tensor:
        return self.norm(self.again(noise) + self.inner(noise)) * self.table

    def pictures(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.head(hidden)) * self.gain


class Labelled(Generator):
    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        return self.pictures(self.hidden(noise) + self.label(labels)[:, :, None, None])


def inputs(count: int, labelled: bool) -> tuple[Tensor, ...]:
    return torch.randn(count, *NOISE), *([torch.arange(count) % 3] if labelled else [])


def exported(network: nn.Module, path: Path, count: int, **batch: int) -> Path:
    example = inputs(count, isinstance(network, Labelled))
    dynamic = tuple({0: torch.export.Dim("batch", **batch)} for _ in example) if batch else None
    name = path.with_suffix(".pt2")  # else torch complains
    torch.export.save(torch.export.export(network, example, dynamic_shapes=dynamic), name)
    return name.rename(path)


def traced(network: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.trace(network, inputs(2, isinstance(network, Labelled))), path)
    return path


def scripted(network: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(network), path)
    return path


ARCHIVES = {
    "traced": traced,
    "scripted": scripted,
    "exported, any batch": lambda network, path: exported(network, path, 2, min=1),
    "exported, batches of 2 to 4": lambda network, path: exported(network, path, 3, min=2, max=4),
    "exported, batches of 3": lambda network, path: exported(network, path, 3),
}


@pytest.fixture(scope="module", params=ARCHIVES)
def archive(request, tmp_path_factory):
    """A program of every kind, under a name that says nothing."""
    return ARCHIVES[request.param](Generator(1).eval(), tmp_path_factory.mktemp("program") / "program.bin")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return exported(Generator(1).eval(), tmp_path_factory.mktemp("program") / "program.pt2", 2, min=1)


def weights(directory: Path, content: dict) -> Path:
    path = directory / "step_10.pt"
    torch.save(content, path)
    return path


def asked(directory: Path, spec: Sampler, checkpoint: Path, warned: list | None = None, **changes) -> Request:
    job = make_job(directory, sampler=spec, checkpoint=checkpoint, **{"samples": COUNT, "seed": SEED} | changes)
    return Request(
        job=job, prompts=("",) * COUNT, scratch=directory, device="cpu", report=lambda *_: None,
        warn=(warned if warned is not None else []).append,
    )


def spec_of(file: Path | None, **changes) -> Sampler:
    return Sampler(program=Program(**{"file": file, "noise": NOISE} | changes))


def images(request: Request, sampler: ProgramSampler | None = None) -> Tensor:
    sampler = sampler or ProgramSampler(request.job.recipe.sampler, "cpu")
    return torch.cat([batch.images for batch in sampler.sample(request).batches()])


def failure(request: Request) -> EvaluationError:
    with pytest.raises(EvaluationError) as caught:
        images(request)
    return caught.value


def by_hand(network: nn.Module, classes: int = 0, low: float = -1.0, high: float = 1.0) -> Tensor:
    noise = torch.stack([torch.randn(NOISE, generator=torch.Generator().manual_seed(SEED + i)) for i in range(COUNT)])
    labels = [torch.arange(COUNT) % classes] if classes else []
    with torch.no_grad():
        output = network.eval()(noise, *labels)
    return ((output - low) / (high - low) * 255).round().to(torch.uint8)


def same(one: Tensor, other: Tensor) -> bool:
    """Up to rounding, which may differ between batch sizes and between kernels."""
    return one.shape == other.shape and (one.int() - other.int()).abs().max() <= 1


# ---- the program is in the configuration ----


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_images_are_those_of_the_network_whatever_archive_and_batch_size(archive, tmp_path, batch_size):
    checkpoint = weights(tmp_path, {"model": Generator(1).state_dict(), "model_ema": Generator(2).state_dict()})
    sampler = ProgramSampler(spec_of(archive), "cpu")
    for variant, seed in (("model", 1), ("model_ema", 2), ("model", 1)):
        request = asked(tmp_path, spec_of(archive), checkpoint, variant=variant, batch_size=batch_size)
        assert same(images(request, sampler), by_hand(Generator(seed)))
    assert not same(by_hand(Generator(1)), by_hand(Generator(2)))


@pytest.mark.parametrize("make", [scripted, lambda network, path: exported(network, path, 4)])
def test_labels_are_the_classes_in_turn(make, tmp_path):
    file = make(Labelled(1, classes=3).eval(), tmp_path / "program")
    checkpoint = weights(tmp_path, Labelled(5, classes=3).state_dict())
    request = asked(tmp_path, spec_of(file), checkpoint, num_classes=3, batch_size=2)
    assert same(images(request), by_hand(Labelled(5, classes=3), 3))


def test_a_part_of_the_samples_is_that_part_of_the_whole(plain, tmp_path):
    checkpoint = weights(tmp_path, Generator(3).state_dict())
    parts = [images(asked(tmp_path, spec_of(plain), checkpoint, parts=2, part=p, batch_size=2)) for p in (0, 1)]
    assert all(len(part) for part in parts)
    assert same(torch.cat(parts), by_hand(Generator(3)))


def test_names_that_training_wrappers_add_are_understood(plain, tmp_path):
    state = {f"module._orig_mod.{name}": tensor for name, tensor in Generator(3).state_dict().items()}
    assert same(images(asked(tmp_path, spec_of(plain), weights(tmp_path, state))), by_hand(Generator(3)))


def test_tied_weights_need_to_be_there_once(archive, tmp_path):
    state = {name: tensor for name, tensor in Generator(3).state_dict().items() if not name.startswith("again.")}
    assert same(images(asked(tmp_path, spec_of(archive), weights(tmp_path, state))), by_hand(Generator(3)))


def test_missing_and_unknown_weights_are_named_and_counted(archive, tmp_path):
    state = dict(Generator(3).state_dict())
    del state["head.weight"]
    error = failure(asked(tmp_path, spec_of(archive), weights(tmp_path, {**state, "tail.weight": torch.ones(1)})))
    assert error.kind == FailureKind.CHECKPOINT and not error.retryable
    assert "lacks 1 of the 1" in error.cause and "(head.weight)" in error.cause and "has 1" in error.cause
    assert "(tail.weight)" in error.cause


def test_a_checkpoint_with_entries_is_told_which_there_are(plain, tmp_path):
    content = {"model": Generator(3).state_dict(), "ema": Generator(3).state_dict()}
    error = failure(asked(tmp_path, spec_of(plain), weights(tmp_path, content)))
    assert "head.bias" in error.cause or "inner.weight" in error.cause
    assert "variants" in error.hint and "model, ema" in error.hint


def test_other_shapes_are_told(archive, tmp_path):
    state = Generator(3).state_dict() | {"head.bias": torch.ones(5)}
    error = failure(asked(tmp_path, spec_of(archive), weights(tmp_path, state)))
    assert error.kind == FailureKind.CHECKPOINT and "head.bias is 5, there 3" in error.cause


def test_a_failed_replacement_changes_nothing(plain, tmp_path):
    sampler = ProgramSampler(spec_of(plain), "cpu")
    wrong = weights(tmp_path, Generator(3).state_dict() | {"head.bias": torch.ones(5)})
    with pytest.raises(EvaluationError):
        sampler.sample(asked(tmp_path, spec_of(plain), wrong))
    first_bias = sampler._program.slots._state["inner.bias"]
    assert torch.equal(first_bias, Generator(1).state_dict()["inner.bias"])


def test_weights_that_are_not_finite_are_named(plain, tmp_path):
    state = Generator(3).state_dict() | {"head.bias": torch.tensor([0.0, torch.nan, 0.0])}
    error = failure(asked(tmp_path, spec_of(plain), weights(tmp_path, state)))
    assert error.kind == FailureKind.NOT_FINITE and "head.bias" in error.cause


def test_buffers_that_torchscript_keeps_are_told(tmp_path):
    warned: list[str] = []
    file = scripted(Generator(1).eval(), tmp_path / "program")
    images(asked(tmp_path, spec_of(file), weights(tmp_path, Generator(3).state_dict()), warned))
    assert len(warned) == 1 and "table" in warned[0] and "stay" in warned[0]


def test_an_exported_program_demands_its_persistent_buffers(plain, tmp_path):
    state = dict(Generator(3).state_dict())
    del state["norm.running_mean"]
    assert "norm.running_mean" in failure(asked(tmp_path, spec_of(plain), weights(tmp_path, state))).cause


def test_program_and_recipe_must_agree_about_labels_and_noise(archive, plain, tmp_path):
    checkpoint = weights(tmp_path, Generator(3).state_dict())
    error = failure(asked(tmp_path, spec_of(archive), checkpoint, num_classes=3))
    assert error.kind == FailureKind.RECIPE and "1 inputs" in error.cause and "num_classes" in error.hint
    error = failure(asked(tmp_path, spec_of(plain, noise=(3, 4, 4)), checkpoint))
    assert error.kind == FailureKind.RECIPE and "2×4×4" in error.cause and "3×4×4" in error.cause


@pytest.mark.parametrize("content", [b"", b"no program", None])
def test_a_file_that_is_no_program_is_a_fault_of_the_recipe(tmp_path, content):
    file = tmp_path / "program.pt2"
    if content is None:
        torch.save(Generator(1).state_dict(), file)
    else:
        file.write_bytes(content)
    with pytest.raises(EvaluationError) as caught:
        ProgramSampler(spec_of(file), "cpu")
    assert caught.value.kind == FailureKind.RECIPE and "neither a TorchScript" in caught.value.cause


def test_a_damaged_program_is_a_fault_of_the_recipe(plain, tmp_path):
    damaged = tmp_path / "program.pt2"
    with zipfile.ZipFile(plain) as whole, zipfile.ZipFile(damaged, "w") as part:
        for name in whole.namelist():
            if not name.endswith("model.json"):
                part.writestr(name, whole.read(name))
    with pytest.raises(EvaluationError) as caught:
        ProgramSampler(spec_of(damaged), "cpu")
    assert caught.value.kind == FailureKind.RECIPE and caught.value.path == damaged


# ---- the checkpoint is the program ----


def test_a_program_as_checkpoint_is_sampled_where_the_root_is_trusted(archive, tmp_path):
    request = asked(tmp_path, spec_of(None), archive, trusted=True)
    assert same(images(request), by_hand(Generator(1)))


def test_each_checkpoint_is_its_own_program(tmp_path):
    sampler = ProgramSampler(spec_of(None), "cpu")
    for seed in (1, 2):
        checkpoint = scripted(Generator(seed).eval(), tmp_path / f"step_{seed}.pt")
        request = asked(tmp_path, spec_of(None), checkpoint, trusted=True)
        assert same(images(request, sampler), by_hand(Generator(seed)))


def test_an_untrusted_program_is_refused_unopened(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    file = exported(Generator(1).eval(), tmp_path / "step_1.pt", 2)
    payload = io.BytesIO()
    torch.save(Evil(), payload)
    evil = tmp_path / "step_2.pt"
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(evil, "w") as changed:
        for name in whole.namelist():
            changed.writestr(name, payload.getvalue() if name.endswith("sample_inputs/model.pt") else whole.read(name))
    for spec in (spec_of(None), spec_of(file)):
        error = failure(asked(tmp_path, spec, evil))
        assert error.kind == FailureKind.CHECKPOINT and not error.retryable
        assert "not trusted" in error.cause and "watch[].trusted: true" in error.hint
    assert not (tmp_path / "opened").exists()


def test_weights_of_a_trusted_program_may_go_into_the_one_of_the_configuration(plain, tmp_path):
    checkpoint = traced(Generator(3).eval(), tmp_path / "step_1.pt")
    with pytest.raises(EvaluationError, match="table"):  # TorchScript does not know that this is no weight
        raise failure(asked(tmp_path, spec_of(scripted(Nothing(), tmp_path / "other")), checkpoint, trusted=True))
    file = scripted(Generator(1).eval(), tmp_path / "program")
    assert same(images(asked(tmp_path, spec_of(file), checkpoint, trusted=True)), by_hand(Generator(3)))


def test_a_program_as_checkpoint_has_no_variants(plain, tmp_path):
    error = failure(asked(tmp_path, spec_of(None), plain, trusted=True, variant="ema"))
    assert error.kind == FailureKind.CHECKPOINT and "'ema'" in error.cause and not error.retryable


def test_a_program_whose_weights_are_not_finite_is_not_sampled(tmp_path):
    network = Generator(1).eval()
    with torch.no_grad():
        network.head.bias[0] = torch.inf
    error = failure(asked(tmp_path, spec_of(None), scripted(network, tmp_path / "step_1.pt"), trusted=True))
    assert error.kind == FailureKind.NOT_FINITE and "head.bias" in error.cause


def test_a_checkpoint_that_is_no_program_says_so(tmp_path):
    checkpoint = weights(tmp_path, Generator(1).state_dict())
    error = failure(asked(tmp_path, spec_of(None), checkpoint, trusted=True))
    assert error.kind == FailureKind.CHECKPOINT and "neither a TorchScript" in error.cause


# ---- what it returns ----


class Nothing(nn.Module):
    def forward(self, noise: Tensor) -> Tensor:
        return noise


class Scaled(nn.Module):
    """Images whose first pixel is `low` and whose last is `high`."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, noise: Tensor) -> Tensor:
        row = torch.linspace(self.low, self.high, 256)
        return row.view(1, 1, 1, 256).expand(noise.shape[0], 3, 8, 256)


class Bytes(nn.Module):
    def forward(self, noise: Tensor) -> Tensor:
        return torch.full((noise.shape[0], 3, 2, 2), 77, dtype=torch.uint8)


class Pair(nn.Module):
    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        return noise, noise


def outcome(directory: Path, network: nn.Module, **changes) -> Request:
    return asked(directory, spec_of(None, **changes), scripted(network, directory / "step_1.pt"), trusted=True)


@pytest.mark.parametrize("low,high", [(-1.0, 1.0), (0.0, 1.0), (-0.5, 3.5)])
def test_the_range_is_mapped_to_all_levels(tmp_path, low, high):
    made = images(outcome(tmp_path, Scaled(low, high), low=low, high=high))
    assert made[0, 0, 0].tolist() == list(range(256))


def test_a_little_overshoot_is_clamped_and_more_is_an_error(tmp_path):
    made = images(outcome(tmp_path, Scaled(-1.0015, 1.0015)))
    assert int(made.min()) == 0 and int(made.max()) == 255
    error = failure(outcome(tmp_path, Scaled(0.0, 255.0)))
    assert error.kind == FailureKind.SAMPLER and not error.retryable
    assert "[-1, 1]" in error.cause and "from 0 to 255" in error.cause


def test_bytes_are_taken_as_they_are(tmp_path):
    assert images(outcome(tmp_path, Bytes())).unique().tolist() == [77]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_an_error(tmp_path, value):
    error = failure(outcome(tmp_path, Scaled(-1.0, value)))
    assert error.kind == FailureKind.NOT_FINITE and "sample 0" in error.cause


@pytest.mark.parametrize("network,words", [(Nothing(), "shape (5, 2, 4, 4)"), (Pair(), "a tuple")])
def test_anything_but_images_is_an_error(tmp_path, network, words):
    error = failure(outcome(tmp_path, network))
    assert error.kind == FailureKind.SAMPLER and words in error.cause


def test_an_error_of_the_program_is_told(tmp_path):
    error = failure(outcome(tmp_path, Generator(1).eval(), noise=(5, 4, 4)))
    assert error.kind == FailureKind.SAMPLER and "the program raised" in error.cause


# ---- opening ----


def test_kinds_are_told_by_content(archive, tmp_path):
    kind = program_kind(archive)
    assert kind == (ProgramKind.EXPORTED if b"archive_format" in archive.read_bytes() else ProgramKind.TORCHSCRIPT)
    assert program_kind(weights(tmp_path, {"model": {}})) is None
    assert program_kind(tmp_path) is None


def test_opening_is_silent(archive, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ProgramSampler(spec_of(archive), "cpu")
    out, err = capfd.readouterr()
    assert out == "" and err == ""


def test_a_batch_dimension_in_steps_is_filled_up(tmp_path):
    batch = torch.export.Dim("half", min=1)
    program = torch.export.export(Generator(1).eval(), (torch.randn(6, *NOISE),), dynamic_shapes=({0: 2 * batch},))
    torch.export.save(program, tmp_path / "step_1.pt2")
    request = asked(tmp_path, spec_of(None), tmp_path / "step_1.pt2", trusted=True, batch_size=3)
    assert same(images(request), by_hand(Generator(1)))
