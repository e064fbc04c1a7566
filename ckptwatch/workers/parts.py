"""One evaluation over several workers: the jobs of its parts, and the one that puts them together."""

from dataclasses import replace

from ckptwatch.workers.wire import Job


def parts_of(job: Job, workers: int) -> tuple[Job, ...]:
    """At most `workers` jobs, each with a range of whole batches of the samples; one job where that is all there is."""
    batches = -(-job.recipe.samples // job.recipe.batch_size)
    count = max(1, min(workers, job.recipe.workers, batches))
    return tuple(replace(job, part=part, parts=count) for part in range(count))


def merge_of(part: Job) -> Job:
    """The job that follows when all parts are done."""
    return replace(part, part=0, merge=True)
