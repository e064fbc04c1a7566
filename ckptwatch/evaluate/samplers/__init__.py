"""Samplers: `command`, `python`, `images`. All obey the same contract (`base.Sampler`)."""

from ckptwatch.evaluate.failures import recipe_error
from ckptwatch.evaluate.samplers.base import Request, Sampler, Source
from ckptwatch.evaluate.samplers.command import CommandSampler
from ckptwatch.evaluate.samplers.images import ImagesSampler
from ckptwatch.evaluate.samplers.python import Model, PythonSampler, SampleBatch
from ckptwatch.model import Sampler as SamplerSpec

__all__ = ["Model", "Request", "SampleBatch", "Sampler", "Source", "create_sampler"]


def create_sampler(spec: SamplerSpec, device: str) -> Sampler:
    """The sampler a recipe asks for. Raises EvaluationError (RECIPE, SAMPLER, OUT_OF_MEMORY)."""
    if spec.command:
        return CommandSampler(spec.command, spec.timeout)
    if spec.factory:
        return PythonSampler(spec.factory, spec.options, device, spec.timeout)
    if spec.images:
        return ImagesSampler(spec.images)
    raise recipe_error(
        "make sampler", "the recipe names none", hint="set one of sampler.command, sampler.python, sampler.images",
        retryable=False,
    )
