"""The tensors in the tree of a pickle that was read without being run, each with its dotted name."""

from collections.abc import Iterator
from typing import Any

from ckptwatch.formats.inert_pickle import Inert, InertTensor
from ckptwatch.formats.tensor_places import LONGEST_NAME

DEEPEST = 64  # nesting of containers; deeper is garbage, not a checkpoint
# Top-level entries that neither training nor sampling computes with. Callbacks keep a best score, infinite at first.
NO_WEIGHTS = frozenset({
    "callbacks", "loops", "rng", "rng_state", "rng_states", "random_state", "random_states", "scheduler", "schedulers",
    "lr_scheduler", "lr_schedulers", "lr_sched", "message_hub", "meta", "metadata", "hyper_parameters",
    "datamodule_hyper_parameters", "args", "cfg", "config", "scaler", "grad_scaler", "amp", "dataloader",
})
_MODULES = frozenset({"_parameters", "_buffers", "_modules"})  # where torch.nn.Module keeps them; no part of a name


def tensors_in(tree: Any, name: str = "") -> Iterator[tuple[str, InertTensor, bool]]:
    """Names, tensors, and whether they count as weights. Each container once, cycles or not; `name` is that of the tree.

    Time and memory grow with the tree alone, not with the ways that lead through it.
    """
    top = tree if isinstance(tree, dict) else {}
    notes = {id(v) for v in top.values() if isinstance(v, InertTensor) and v.shape == ()} if _is_state(top) else set()
    seen: set[int] = set()
    stack: list[tuple[str, Any, int]] = [(name, tree, 0)]
    while stack:
        name, value, depth = stack.pop()
        if isinstance(value, InertTensor):
            yield name or "tensor", value, is_weight(name) and id(value) not in notes
            continue
        if type(value) is Inert:  # an object: what it would be given
            value = value.state
        if not isinstance(value, dict | list | tuple) or id(value) in seen or depth > DEEPEST:
            continue
        seen.add(id(value))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        stack.extend(reversed([(_below(name, key), item, depth + 1) for key, item in items
                               if isinstance(item, dict | list | tuple | Inert)]))


def is_weight(name: str) -> bool:
    """By the entry of the state that its name begins with."""
    return name.partition(".")[0].lower() not in NO_WEIGHTS


def _is_state(content: dict[Any, Any]) -> bool:
    """No flat state dict but a training state: then a tensor without dimensions is what the trainer noted down."""
    return not any(isinstance(value, InertTensor) and value.shape != () for value in content.values())


def _below(name: str, key: Any) -> str:
    if isinstance(key, str):
        part = "" if key in _MODULES else key[:LONGEST_NAME]
    elif isinstance(key, int) and abs(key) < 2**63:
        part = str(key)
    else:
        part = type(key).__name__
    joined = f"{name}.{part}" if name and part else name or part
    return joined if len(joined) <= LONGEST_NAME else f"{joined[:LONGEST_NAME - 1]}…"
