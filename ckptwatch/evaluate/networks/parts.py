"""Forward passes that fit into memory: a batch that does not is done in halves."""

import gc
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ckptwatch.evaluate.failures import is_out_of_memory

T = TypeVar("T")
PATIENCE = 64  # parts after which twice as many images are tried again: what training held may be free by now


class Parts(Generic[T]):
    """The parts in which one network's batches fit; what it has learnt serves the batches that follow."""

    def __init__(self) -> None:
        self._largest: int | None = None  # images that fitted where more did not; None: nothing has failed yet
        self._succeeded = 0

    def run(self, forward: Callable[[slice], T], count: int) -> list[T]:
        """`forward` of slices that together are 0…count, in order. Raises its error where a single image does not fit."""
        found: list[T] = []
        done = 0
        while done < count:
            size = min(self._largest or count, count - done)
            result = _attempt(forward, slice(done, done + size))
            if result is None:
                # Only here, out of the handler, is the failed pass without a traceback that holds its tensors.
                free_memory()
                self._largest, self._succeeded = max(1, size // 2), 0
                continue
            found.append(result[0])
            done += size
            self._grow(size)
        return found

    def _grow(self, size: int) -> None:
        self._succeeded += size == self._largest
        if self._largest is not None and self._succeeded >= PATIENCE:
            self._largest, self._succeeded = self._largest * 2, 0


def free_memory() -> None:
    """Drops unreachable tensors, and gives the GPU's cached blocks back to whoever needs them."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows by layer, of all parts."""
    if len(parts) == 1:
        return parts[0]
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}


def _attempt(forward: Callable[[slice], T], part: slice) -> tuple[T] | None:
    """The result, or None where memory ran out and less may fit."""
    try:
        return (forward(part),)
    except Exception as error:
        if not is_out_of_memory(error) or part.stop - part.start == 1:
            raise
    return None
