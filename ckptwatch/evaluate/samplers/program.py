"""The sampler `program`: a network that brings its own code, as TorchScript or as a torch.export archive."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import checkpoint_error, describe, is_out_of_memory, recipe_error
from ckptwatch.evaluate.samplers.base import Request
from ckptwatch.evaluate.samplers.generating import SLACK, GeneratedSource, Problem, SampleBatch, release, run_foreign
from ckptwatch.evaluate.samplers.programs import Opened, ProgramKind, open_program, program_kind
from ckptwatch.evaluate.samplers.replacing import require_finite, shortened
from ckptwatch.evaluate.weights import load_variant
from ckptwatch.model import Program
from ckptwatch.model import Sampler as SamplerSpec
from ckptwatch.workers.wire import Job


class ProgramSampler:
    """Calls a program as program(noise), or program(noise, labels) where the recipe has `num_classes`.

    noise: float32 (n, *spec.program.noise), standard normal, of each sample drawn from its own seed on the CPU, so that it
    is the same on every device. labels: int64 (n,). The program returns (n, 3, H, W): uint8, or floating point from `low`
    to `high`. With `file` that program is kept, and gets the weights of each checkpoint; without, each checkpoint is a
    program itself, which only a trusted root may hold.
    """

    def __init__(self, spec: SamplerSpec, device: str) -> None:
        """Raises EvaluationError (RECIPE) where `file` cannot be used; whatever torch raises when memory is exhausted."""
        assert spec.program is not None
        self._spec: Program = spec.program
        self._timeout = spec.timeout
        self._device = device
        self._program: Opened | None = None
        if self._spec.file is not None:
            self._program = _opened(self._spec.file, device, recipe_error)

    def sample(self, request: Request) -> GeneratedSource:
        """Raises EvaluationError: CHECKPOINT, NOT_FINITE, RECIPE, SAMPLER."""
        job = request.job
        request.report("loading", 0, 1)
        program = self._checkpoint_itself(job) if self._spec.file is None else self._with_weights_of(request)
        self._check_inputs(program, job)
        request.report("loading", 1, 1)
        path = str(self._spec.file or job.checkpoint)
        problem = Problem(path=path, hint=f"it must return (n, 3, H, W), uint8 or float in {self._range}")
        return GeneratedSource(
            lambda batch: self._generate(program, batch, problem), request, time.monotonic() + self._timeout, problem,
        )

    def _checkpoint_itself(self, job: Job) -> Opened:
        self._program = None
        release()  # the old program goes before the new one comes
        if job.variant:
            raise checkpoint_error(
                "use checkpoint as program", f"a program holds one set of weights, and no variant {job.variant!r}",
                path=job.checkpoint, hint="leave `variants` out, or set `program.file`", retryable=False,
            )
        _check_trust(job)
        self._program = _opened(job.checkpoint, self._device, checkpoint_error)
        require_finite(self._program.state, job.checkpoint)
        return self._program

    def _with_weights_of(self, request: Request) -> Opened:
        job, program = request.job, self._program
        assert program is not None
        stayed = program.slots.fill(_weights(job), job.checkpoint)
        if stayed and program.kind == ProgramKind.TORCHSCRIPT:  # an exported program knows that they are no weights
            request.warn(f"{len(stayed)} buffers are not in the checkpoint and stay as in {self._spec.file}: "
                         f"{shortened(stayed)}")
        return program

    def _check_inputs(self, program: Opened, job: Job) -> None:
        classes = job.recipe.num_classes
        wanted = 1 if classes is None else 2
        if program.inputs != wanted:
            how = "noise alone" if wanted == 1 else "noise and labels"
            raise self._mismatch(f"it takes {program.inputs} inputs, but would be given {how}", job,
                                 "`num_classes` of the recipe decides whether labels are given")
        noise = self._spec.noise
        if program.shape is not None and not _fits(noise, program.shape):
            raise self._mismatch(f"its input is {_shape(program.shape)}, but `noise` is {_shape(noise)}", job,
                                 "`program.noise` is the shape of one sample's input")

    def _mismatch(self, cause: str, job: Job, hint: str) -> EvaluationError:
        return recipe_error("call program", cause, path=self._spec.file or job.checkpoint, hint=hint, retryable=False)

    def _generate(self, program: Opened, batch: SampleBatch, problem: Problem) -> Tensor:
        inputs = [draw_noise(batch.seeds, self._spec.noise).to(self._device)]
        if batch.labels is not None:
            inputs.append(torch.tensor(batch.labels, device=self._device))
        images = run_foreign("the program", lambda: program.run(*inputs), problem.path)
        return self._from_range(images, problem)

    def _from_range(self, images: object, problem: Problem) -> Tensor:
        """From [low, high] to [0, 1]; what has another type or shape is left for `checked_images` to judge."""
        if not isinstance(images, Tensor):
            raise problem(f"it returned a {type(images).__name__}, not a tensor")
        if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3 or not images.numel():
            return images
        low, high = self._spec.low, self._spec.high
        images, slack = images.detach().float(), SLACK * (high - low)
        smallest, largest = (float(v) for v in torch.aminmax(images))
        if not math.isfinite(smallest) or not math.isfinite(largest):
            return images  # a clamp would hide it
        if smallest < low - slack or largest > high + slack:
            raise problem(f"its values must lie in {self._range} (`program.range`), these reach from {smallest:.4g} "
                          f"to {largest:.4g}")
        return images.clamp(low, high).sub(low).div(high - low)

    @property
    def _range(self) -> str:
        return f"[{self._spec.low:g}, {self._spec.high:g}]"


def draw_noise(seeds: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 (n, *shape) on the CPU; row i depends on seeds[i] alone."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def _opened(path: Path, device: str, error_maker: Callable[..., EvaluationError]) -> Opened:
    try:
        return open_program(path, device)
    except Exception as error:  # archives from anywhere fail in arbitrary ways
        if is_out_of_memory(error):
            raise
        cause = str(error) if isinstance(error, ValueError) else describe(error)
        raise error_maker(
            "open program", cause, path=path,
            hint=f"save it with torch.jit.save or torch.export.save of torch {torch.__version__} or an older one",
        ) from error


def _weights(job: Job) -> dict[str, Tensor]:
    """The variant's tensors by name; those of a program, if the checkpoint is one and trusted."""
    try:
        kind = program_kind(job.checkpoint)
    except OSError as error:
        raise checkpoint_error("load checkpoint", error.strerror or str(error), path=job.checkpoint) from error
    if kind is None:
        return load_variant(job.checkpoint, job.variant, trusted=job.trusted)
    _check_trust(job)
    state, prefix = _opened(job.checkpoint, "cpu", checkpoint_error).state, f"{job.variant}." if job.variant else ""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _check_trust(job: Job) -> None:
    if not job.trusted:
        raise checkpoint_error(
            "use checkpoint as program", "opening it would run code that it holds, and its root is not trusted",
            path=job.checkpoint, retryable=False,
            hint="if nobody else can write there, set `watch[].trusted: true`; or keep the program in `program.file` and "
                 "let training save its weights alone",
        )


def _fits(noise: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return len(noise) == len(shape) and all(wanted in (None, size) for size, wanted in zip(noise, shape, strict=True))


def _shape(shape: tuple[int | None, ...]) -> str:
    return "×".join("any" if size is None else str(size) for size in shape) or "a scalar"
