"""The sampler `images`: training has already written them, in a directory per checkpoint."""

from pathlib import Path

from ckptwatch.evaluate.failures import sampler_error
from ckptwatch.evaluate.images import list_images
from ckptwatch.evaluate.samplers.base import Request
from ckptwatch.evaluate.samplers.files import FileSource
from ckptwatch.evaluate.samplers.placeholders import fill
from ckptwatch.workers.wire import Job


class ImagesSampler:
    """Takes the first `count` images, in natural order, of the directory that a pattern names.

    The pattern may hold {step} {epoch} {run} {stem}, with formats like {step:07d}, and is relative to the directory in
    which the checkpoint lies.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def sample(self, request: Request) -> FileSource:
        job = request.job
        directory = image_directory(self._pattern, job)
        try:
            found = list_images(directory)
        except OSError as error:
            raise sampler_error(
                "find generated images", error.strerror or str(error), path=directory,
                hint=f"`images: {self._pattern}` must name the directory into which training writes its samples",
            ) from error
        if len(found) < request.count:
            raise sampler_error(
                "score generated images", f"the directory has {len(found)} of {request.count} images", path=directory,
                hint="lower `samples` of the recipe, or let training write more",
            )
        if len(found) > request.count:
            request.warn(f"{directory} has {len(found)} images, the first {request.count} are scored")
        return FileSource(found[:request.count], request.batch_size)


def image_directory(pattern: str, job: Job) -> Path:
    """The directory a pattern means for one checkpoint. Raises EvaluationError (RECIPE, SAMPLER)."""
    # "step_1.5" of a checkpoint directory is a name, not a stem with the suffix ".5".
    stem = job.checkpoint.name if job.checkpoint.is_dir() else job.checkpoint.stem
    values = {"step": job.step, "epoch": job.epoch, "run": job.run, "stem": stem}
    return job.checkpoint.parent / fill(pattern, values, "the image directory")
