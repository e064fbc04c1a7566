"""The sampler `images`: training has already written them, in a directory per checkpoint."""

from pathlib import Path

from ckptwatch.evaluate.failures import sampler_error
from ckptwatch.evaluate.samplers.base import Request
from ckptwatch.evaluate.samplers.files import FileSource, find_files
from ckptwatch.evaluate.samplers.placeholders import fill
from ckptwatch.workers.wire import Job


class ImagesSampler:
    """Takes the first images, in natural order, of the directory that a pattern names; of these the wanted range.

    The pattern may hold {step} {epoch} {run} {stem}, with formats like {step:07d}, and is relative to the directory in
    which the checkpoint lies. Instead of images the directory may hold arrays (.npy), uint8 (n, H, W, 3) or (n, 3, H, W).
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def sample(self, request: Request) -> FileSource:
        job, wanted = request.job, request.job.recipe.samples
        directory = image_directory(self._pattern, job)
        try:
            found = find_files(directory)
        except OSError as error:
            raise sampler_error(
                "find generated images", error.strerror or str(error), path=directory,
                hint=f"`images: {self._pattern}` must name the directory into which training writes its samples",
            ) from error
        # Every worker of a shared evaluation sees the same directory, and must judge it alike.
        if found.total < wanted:
            raise sampler_error(
                "score generated images", f"the directory has {found.total} of {wanted} images", path=directory,
                hint="lower `samples` of the recipe, or let training write more",
            )
        if found.total > wanted and job.parts == 1:
            request.warn(f"{directory} has {found.total} images, the first {wanted} are scored")
        return FileSource(found, request, first=request.start)


def image_directory(pattern: str, job: Job) -> Path:
    """The directory a pattern means for one checkpoint. Raises EvaluationError (RECIPE, SAMPLER)."""
    # "step_1.5" of a checkpoint directory is a name, not a stem with the suffix ".5".
    stem = job.checkpoint.name if job.checkpoint.is_dir() else job.checkpoint.stem
    values = {"step": job.step, "epoch": job.epoch, "run": job.run, "stem": stem}
    return job.checkpoint.parent / fill(pattern, values, "the image directory")
