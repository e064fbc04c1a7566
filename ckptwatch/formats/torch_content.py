"""What the tree of a torch file says: step, epoch, metrics and variants, where its top level holds them."""

from collections.abc import Iterable, Mapping
from typing import Any

from ckptwatch.formats.base import Reading
from ckptwatch.formats.inert_pickle import InertTensor
from ckptwatch.formats.reading import is_name

STEP_KEYS = ("step", "global_step", "iteration", "iter", "train_step")
EPOCH_KEYS = ("epoch", "current_epoch")
MOST_TENSORS = 32  # whose value is read from the file, each by a few bytes
MOST_KEYS = 1000   # top-level entries that are told; more are the entries of something else than a training state


def plain_reading(content: Any) -> Reading:
    """Of a file whose family is not known."""
    if not isinstance(content, dict):
        return Reading()
    return Reading(step=first_count(content, STEP_KEYS), epoch=first_count(content, EPOCH_KEYS),
                   metrics={} if _is_state_dict(content) else numbers(content), variants=variants(content))


def first_count(content: Mapping[Any, Any], keys: Iterable[str]) -> int | None:
    """The first of these entries that is a step or an epoch."""
    return next((n for n in (count(content.get(key)) for key in keys) if n is not None), None)


def count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def numbers(mapping: Any) -> dict[str, float]:
    """The floating-point entries, tensors without dimensions among them: what the trainer itself noted down."""
    found: dict[str, float] = {}
    tensors = 0
    for key, value in mapping.items() if isinstance(mapping, dict) else ():
        if not is_name(key):
            continue
        tensors += isinstance(value, InertTensor)
        number = value.number() if isinstance(value, InertTensor) and tensors <= MOST_TENSORS else value
        if isinstance(number, float):
            found[key] = number
    return found


def variants(content: Mapping[Any, Any]) -> tuple[str, ...]:
    """Top-level entries that are state dicts themselves. An optimizer's tensors lie deeper, so it is none."""
    return tuple(key for key, value in content.items() if is_name(key) and isinstance(value, dict) and holds_tensors(value))


def top_level(names: Iterable[Any]) -> tuple[str, ...]:
    """The top-level entries of a tree with these keys, or of one whose names are flat: what stands before the first dot.

    () for more than any training state has: it cannot be told what they are.
    """
    found: dict[str, None] = {}
    for name in names:
        entry = name.partition(".")[0] if isinstance(name, str) else None
        if is_name(entry):
            found[entry] = None
        if len(found) > MOST_KEYS:
            return ()
    return tuple(found)


def holds_tensors(mapping: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, InertTensor) for value in mapping.values())


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Then a tensor without dimensions is a parameter such as CLIP's `logit_scale`, not a metric."""
    return any(isinstance(value, InertTensor) and value.shape != () for value in content.values())
