"""What goes wrong in an evaluation, as errors with a kind, and as the `Failure` that is sent to the daemon."""

import errno
from functools import partial

from ckptwatch.errors import EvaluationError
from ckptwatch.model import Failure, FailureKind

# Called as `raise sampler_error("generate images with", "exit status 1", path=…, hint=…)`.
checkpoint_error = partial(EvaluationError, kind=FailureKind.CHECKPOINT)
not_finite_error = partial(EvaluationError, kind=FailureKind.NOT_FINITE, retryable=False)
sampler_error = partial(EvaluationError, kind=FailureKind.SAMPLER)
recipe_error = partial(EvaluationError, kind=FailureKind.RECIPE)
metric_error = partial(EvaluationError, kind=FailureKind.METRIC)

# What CUDA, its driver, the CPU allocator and mmap say when there is no memory left.
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "OutOfMemoryError",
                 "ALLOC_FAILED")


_FULL = (errno.ENOSPC, errno.EDQUOT)


def says_out_of_memory(text: str) -> bool:
    """Does an error text, perhaps of another process, tell of exhausted memory?"""
    lowered = text.lower()
    return any(words.lower() in lowered for words in _MEMORY_WORDS)


def is_out_of_memory(error: BaseException) -> bool:
    """Is this error, or what caused it, exhausted memory of the host or of a GPU?

    torch.OutOfMemoryError is a RuntimeError whose text says so, hence no need to import torch here.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
            return True
        if isinstance(cause, RuntimeError | OSError) and says_out_of_memory(str(cause)):
            return True
        cause = cause.__cause__
    return False


def failure_of(error: BaseException) -> Failure:
    """The Failure that tells the daemon of an error.

    An EvaluationError keeps its kind, hint and retryability; exhausted memory is OUT_OF_MEMORY wherever it came up;
    anything else is a fault of ckptwatch (INTERNAL), whose traceback is in the log.
    """
    if isinstance(error, EvaluationError) and error.kind != FailureKind.INTERNAL and not is_out_of_memory(error):
        return Failure(
            kind=FailureKind(error.kind), message=_without_hint(error), hint=error.hint, retryable=error.retryable
        )
    if is_out_of_memory(error):
        return Failure(
            kind=FailureKind.OUT_OF_MEMORY, message=f"out of memory: {_first_line(error)}",
            hint="lower the recipe's batch_size or samples, or give the worker a device with more free memory",
        )
    if isinstance(error, OSError) and error.errno in _FULL:
        return Failure(
            kind=FailureKind.INTERNAL, message=f"no space left on the device: {error.filename or error.strerror}",
            hint="images and features of an evaluation lie in the state directory while it runs: free space there, or move "
                 "`state_dir`",
        )
    if isinstance(error, EvaluationError):
        return Failure(kind=FailureKind.INTERNAL, message=_without_hint(error), hint=error.hint)
    return Failure(
        kind=FailureKind.INTERNAL, message=f"{type(error).__name__}: {_first_line(error)}",
        hint="this is a fault of ckptwatch; the log of the evaluation has the traceback",
    )


def describe(error: BaseException) -> str:
    """An error of foreign code in one line: "ValueError: bad shape"."""
    return f"{type(error).__name__}: {_first_line(error)}"


def _without_hint(error: EvaluationError) -> str:
    where = f" {error.path}" if error.path is not None else ""
    return f"cannot {error.operation}{where}: {error.cause}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else "no message"
