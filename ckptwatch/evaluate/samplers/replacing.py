"""A checkpoint's weights put in the place of those of a network that is loaded: in full, or not at all."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import checkpoint_error, not_finite_error
from ckptwatch.evaluate.weights import is_finite

SHOWN = 3  # names in an error
_COMPILED, _PARALLEL = "_orig_mod.", "module."  # what torch.compile and DistributedDataParallel add to names


class Slots:
    """The places for weights in a network.

    `state` maps names to the network's own tensors, which are written to. `may_stay` are names that a checkpoint need not
    have. `tied` maps a name to the one with which it shares a tensor; a checkpoint needs one of them (safetensors knows no
    shared tensors and drops the others). `network` is what errors call it.
    """

    def __init__(
        self, state: Mapping[str, Tensor], network: str, *, may_stay: Collection[str] = (),
        tied: Mapping[str, str] | None = None,
    ) -> None:
        self._state = dict(state)
        self._network = network
        self._may_stay = frozenset(may_stay)
        self._tied = tied_names(state) if tied is None else tied

    def fill(self, weights: Mapping[str, Tensor], path: Path, hint: str = "") -> tuple[str, ...]:
        """Copies `weights`, read from `path`, into the network, in its precision; returns the names of what stayed.

        Raises EvaluationError, not retryable: CHECKPOINT, naming the first few, for names that are missing or left over and
        for shapes that differ; NOT_FINITE for NaN and Inf.
        """
        given = self._with_tied(_plain_names(weights, self._state))
        missing = [name for name in self._state if name not in given]
        stayed = tuple(name for name in missing if name in self._may_stay)
        self._check_names([n for n in missing if n not in stayed], [n for n in given if n not in self._state], path, hint)
        self._check_shapes(given, path)
        require_finite(given, path)
        with torch.no_grad():
            for name, tensor in given.items():
                self._state[name].copy_(tensor)
        return stayed

    def _with_tied(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        by_group = {self._tied[name]: tensor for name, tensor in weights.items() if name in self._tied}
        absent = {name: by_group[group] for name, group in self._tied.items() if name not in weights and group in by_group}
        return {**weights, **absent}

    def _check_names(self, missing: list[str], others: list[str], path: Path, hint: str) -> None:
        if not missing and not others:
            return
        parts = [f"it lacks {len(missing)} of the {len(self._state)} weights of {self._network} ({shortened(missing)})"] \
            if missing else []
        parts += [f"has {len(others)} that {self._network} does not know ({shortened(others)})"] if others else []
        raise _misfit(" and ".join(parts) if missing else f"it {parts[0]}", path, hint or _names_hint(others))

    def _check_shapes(self, given: Mapping[str, Tensor], path: Path) -> None:
        wrong = [
            f"{name} is {_shape(tensor)}, there {_shape(self._state[name])}"
            for name, tensor in given.items() if tensor.shape != self._state[name].shape
        ]
        if wrong:
            raise _misfit(f"{len(wrong)} of {len(given)} weights have other shapes than those of {self._network}: "
                          f"{shortened(wrong, '; ')}", path, "the checkpoint is of a model of another size")


def tied_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names that share a tensor, each mapped to the first of them."""
    groups: dict[object, list[str]] = {}
    for name, tensor in state.items():
        if tensor.numel():
            groups.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype), []).append(name)
    return {name: names[0] for names in groups.values() if len(names) > 1 for name in names}


def require_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raises EvaluationError (NOT_FINITE), naming the first, where tensors hold NaN or Inf; attention masks may."""
    bad = [name for name, tensor in weights.items() if not is_finite(tensor)]
    if bad:
        raise not_finite_error(
            "evaluate checkpoint", f"weights are not finite: {len(bad)} of {len(weights)} tensors (first: {bad[0]})",
            path=path, hint="training has diverged; go back to a checkpoint before this one",
        )


def shortened(names: Iterable[str], separator: str = ", ") -> str:
    """The first few, and an ellipsis for the rest."""
    names = list(names)
    return separator.join([*names[:SHOWN], *(["…"] if len(names) > SHOWN else [])])


def _plain_names(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what wrappers of the training added, where the network itself has no such names."""
    plain = dict(weights)
    if not any(_COMPILED in name for name in wanted):
        plain = {name.replace(_COMPILED, ""): tensor for name, tensor in plain.items()}
    if all(name.startswith(_PARALLEL) for name in plain) and not any(name.startswith(_PARALLEL) for name in wanted):
        plain = {name.removeprefix(_PARALLEL): tensor for name, tensor in plain.items()}
    return plain


def _names_hint(others: list[str]) -> str:
    outermost = list(dict.fromkeys(name.split(".")[0] for name in others))
    if not outermost:
        return "the checkpoint is of another model, or its other weights are in another file"
    return f"if these are in an entry of the checkpoint, set `variants` of the run to it; outermost: {shortened(outermost)}"


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"


def _misfit(cause: str, path: Path, hint: str) -> EvaluationError:
    return checkpoint_error("put weights into network", cause, path=path, hint=hint, retryable=False)
