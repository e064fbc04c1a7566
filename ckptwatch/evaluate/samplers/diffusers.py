"""The sampler `diffusers`: a pipeline of that library, whole in each checkpoint, or kept and given each one's weights."""

import time
from pathlib import Path
from typing import Any

from ckptwatch.evaluate.failures import checkpoint_error, recipe_error
from ckptwatch.evaluate.samplers.base import Request, Warn
from ckptwatch.evaluate.samplers.diffusers_call import PipelineCall
from ckptwatch.evaluate.samplers.diffusers_configuration import compare_configurations, read_configuration
from ckptwatch.evaluate.samplers.diffusers_lora import put_lora, take_off_lora
from ckptwatch.evaluate.samplers.diffusers_pipeline import dtype_for, library, networks, open_pipeline
from ckptwatch.evaluate.samplers.diffusers_weights import INDEX, Found, find_weights
from ckptwatch.evaluate.samplers.generating import GeneratedSource, Problem, release
from ckptwatch.evaluate.samplers.replacing import Slots, require_finite
from ckptwatch.model import Pipeline
from ckptwatch.model import Sampler as SamplerSpec
from ckptwatch.workers.wire import Job

_USUAL = ("unet", "transformer")  # what is trained, unless `component` says otherwise


class DiffusersSampler:
    """With a base, that pipeline is loaded once, and one component of it gets the weights of each checkpoint; or the LoRA
    that the checkpoint holds is put onto it. Without, each checkpoint is a pipeline with a model_index.json."""

    def __init__(self, spec: SamplerSpec, device: str) -> None:
        """Raises EvaluationError (RECIPE): diffusers missing, base unusable, component unknown or ambiguous, float16 on a
        CPU; torch.OutOfMemoryError."""
        assert spec.diffusers is not None
        library()
        self._spec: Pipeline = spec.diffusers
        self._options = spec.options
        self._timeout = spec.timeout
        self._device = device
        self._dtype = dtype_for(self._spec.dtype, device)
        self._pipeline: Any = None
        self._replaced = False  # are the base's own weights gone
        self._lora = False      # is a LoRA on it
        if self._spec.base:
            self._open_base()

    def sample(self, request: Request) -> GeneratedSource:
        """Raises EvaluationError: CHECKPOINT, NOT_FINITE, RECIPE; torch.OutOfMemoryError."""
        job = request.job
        request.report("loading", 0, 1)
        if self._spec.base:
            self._take_over(job, request.warn)
        else:
            self._open_checkpoint(job, request.warn)
        problem = Problem(path=self._spec.base or str(job.checkpoint), hint="the pipeline must return RGB or grey images")
        call = PipelineCall(self._pipeline, self._options, request, problem)
        request.report("loading", 1, 1)
        return GeneratedSource(call, request, time.monotonic() + self._timeout, problem)

    def _open_base(self) -> None:
        place = self._spec.base
        if place.startswith(("/", "~", ".")):
            place = str(Path(place).expanduser())
            if not Path(place).is_dir():
                raise recipe_error("open diffusers pipeline", "there is no such directory", path=place,
                                   hint="`diffusers.base` is a directory or a name on the hub")
        self._drop_pipeline()
        self._pipeline = open_pipeline(place, self._dtype, self._device, recipe_error)
        self._component = self._spec.component or self._usual_component()
        network = networks(self._pipeline).get(self._component)
        if network is None:
            raise self._no_component(f"it has no component {self._component} with weights")
        self._slots = Slots(network.state_dict(), self._component)

    def _take_over(self, job: Job, warn: Warn) -> None:
        """Makes the base what the checkpoint is."""
        found = find_weights(job.checkpoint, job.variant, self._component)
        if self._lora:
            take_off_lora(self._pipeline)
            self._lora = False
        if found.lora:
            if self._replaced:
                self._open_base()  # a LoRA is to be put onto the base's own weights
            self._lora = True
            put_lora(self._pipeline, found.files[0])
            return
        self._replaced = True
        self._fill(self._slots, self._component, found, job, warn)

    def _open_checkpoint(self, job: Job, warn: Warn) -> None:
        directory = job.checkpoint.parent if job.checkpoint.name == INDEX else job.checkpoint
        if not (directory / INDEX).is_file():
            raise checkpoint_error(
                "open diffusers pipeline", f"it has no {INDEX}, so it is no pipeline by itself", path=job.checkpoint,
                hint="set `diffusers.base` to the pipeline of which it is a part", retryable=False)
        self._drop_pipeline()
        self._pipeline = open_pipeline(str(directory), self._dtype, self._device, checkpoint_error)
        parts = networks(self._pipeline)
        if job.variant and job.variant not in parts:
            component = next((n for n in parts if job.variant == f"{n}_ema"), "") or self._usual_component()
            found = find_weights(directory, job.variant, component)
            self._fill(Slots(parts[component].state_dict(), component), component, found, job, warn)
        for name, network in parts.items():
            require_finite({f"{name}.{key}": tensor for key, tensor in network.state_dict().items()}, job.checkpoint)

    def _fill(self, slots: Slots, component: str, found: Found, job: Job, warn: Warn) -> None:
        network, saved = networks(self._pipeline)[component], read_configuration(found.config)
        ours, theirs = type(network).__name__, saved.get("_class_name", "")
        hint = ""
        if theirs and theirs != ours:  # perhaps the class was renamed; names and shapes will tell
            hint = f"its class is {theirs}, that of {component} is {ours}"
        elif isinstance(getattr(network, "config", None), dict):  # transformers' holds what the installed version adds
            compare_configurations(network.config, saved, component, job.checkpoint, warn)
        slots.fill(found.tensors(trusted=job.trusted), job.checkpoint, hint)

    def _usual_component(self) -> str:
        there = [name for name in _USUAL if name in networks(self._pipeline)]
        if len(there) != 1:
            raise self._no_component(f"it has {' and '.join(there) or 'neither unet nor transformer'}")
        return there[0]

    def _no_component(self, cause: str) -> Exception:
        return recipe_error(
            "choose component of pipeline", cause, path=self._spec.base or type(self._pipeline).__name__, retryable=False,
            hint=f"set `diffusers.component` to one of {', '.join(networks(self._pipeline))}")

    def _drop_pipeline(self) -> None:
        """Before the next one comes, for there may be no room for two."""
        self._pipeline = self._slots = None
        self._replaced = self._lora = False
        release()
