"""Samplers: `command`, `python`, `diffusers`, `program`, `images`. All obey the same contract (`base.Sampler`)."""

from ckptwatch.evaluate.failures import recipe_error
from ckptwatch.evaluate.samplers.base import Batch, OrderChangedError, Request, Sampler, Source
from ckptwatch.evaluate.samplers.command import CommandSampler
from ckptwatch.evaluate.samplers.generating import SampleBatch
from ckptwatch.evaluate.samplers.images import ImagesSampler
from ckptwatch.evaluate.samplers.python import Model, PythonSampler
from ckptwatch.model import Sampler as SamplerSpec

__all__ = ["Batch", "Model", "OrderChangedError", "Request", "SampleBatch", "Sampler", "Source", "create_sampler"]


def create_sampler(spec: SamplerSpec, device: str) -> Sampler:
    """The sampler a recipe asks for. Raises EvaluationError (RECIPE, SAMPLER, OUT_OF_MEMORY)."""
    if spec.command:
        return CommandSampler(spec.command, spec.timeout)
    if spec.factory:
        return PythonSampler(spec.factory, spec.options, device, spec.timeout)
    if spec.diffusers:
        from ckptwatch.evaluate.samplers.diffusers import DiffusersSampler  # imports a large library, not always installed

        return DiffusersSampler(spec, device)
    if spec.program:
        from ckptwatch.evaluate.samplers.program import ProgramSampler

        return ProgramSampler(spec, device)
    if spec.images:
        return ImagesSampler(spec.images)
    raise recipe_error(
        "make sampler", "the recipe names none", retryable=False,
        hint="set one of sampler.command, sampler.python, sampler.diffusers, sampler.program, sampler.images",
    )
