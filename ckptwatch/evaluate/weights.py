"""The tensors of one variant of a checkpoint: reading them, and proving them finite before anything is sampled.

A checkpoint is untrusted input: nothing in it is executed unless its root is marked as trusted. Files that hold other
things beside tensors (argparse.Namespace, OmegaConf, …) are still read: what is not a tensor becomes an inert stand-in.

Names are flattened with dots, so that `{"model": {"a.weight": …}}` and a safetensors file with the key `model.a.weight`
look alike, and a variant is a name prefix in both. Only its tensors are read: the others of a file are not touched, but for
files of torch.save of the older kind, which cannot be mapped.
"""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import checkpoint_error, is_out_of_memory, not_finite_error
from ckptwatch.evaluate.weights_files import Directory, files_in
from ckptwatch.evaluate.weights_pickle import load_tree

CHUNK = 1 << 24   # elements looked at in one go: bounds memory for tensors that need conversion
DEEPEST = 32      # nesting of containers; deeper is garbage, not a checkpoint
# Top-level entries that do not shape the images. Adam state alone is twice the weights; reading it costs the trainer's
# disk bandwidth and says nothing about what a sampler will produce.
NOT_WEIGHTS = ("optim", "sched", "lr_sched", "scaler", "grad_scaler", "amp", "rng", "callbacks", "loops", "ema_optim")


def load_variant(path: Path, variant: str, *, trusted: bool = False) -> dict[str, Tensor]:
    """The tensors of `variant`, by name without the variant's prefix, on the CPU and mapped, not read, where possible.

    `path` is a file of torch.save or safetensors; a directory with *.safetensors, pytorch_model*.bin or DeepSpeed's
    mp_rank_00_model_states.pt; or, if `trusted`, a pickle of whole networks. `variant` is the key under which a weight set
    is stored ("model_ema1"), dots go deeper ("state_dict.model"); "" means everything. `trusted` permits unpickling of
    arbitrary objects. Raises EvaluationError (CHECKPOINT).
    """
    if path.is_dir():
        _require_whole_tensors(path)
    found = dict(_tensors(path, variant, trusted=trusted, only_weights=False))
    if not found:
        raise _no_such_variant(path, variant, trusted)
    return found


def scan_finite(path: Path, variant: str, *, trusted: bool = False) -> int | None:
    """Looks at every weight of `variant`, one tensor at a time; returns how many tensors it looked at.

    Of tensors that are split over ranks every part is looked at. None means that the path is in none of the formats that can
    be looked at here. Tensors made only of 0 and −∞ are attention masks and count as finite. Raises EvaluationError:
    NOT_FINITE, not retryable, naming the first bad tensor; CHECKPOINT when the file cannot be read or lacks the variant.
    """
    if not is_readable_format(path):
        return None
    looked, bad, first = 0, 0, ""
    for name, tensor in _tensors(path, variant, trusted=trusted, only_weights=not variant):
        looked += 1
        if not is_finite(tensor):
            bad += 1
            first = first or name
    if not looked and variant:
        raise _no_such_variant(path, variant, trusted)
    if bad:
        raise not_finite_error(
            "evaluate checkpoint", f"weights are not finite: {bad} of {looked} tensors (first: {first})", path=path,
            hint="training has diverged; go back to a checkpoint before this one",
        )
    return looked


def is_readable_format(path: Path) -> bool:
    """Is this a torch.save file, a safetensors file, or a directory of either? Pickles of whole networks are not: what it
    takes to open them only their sampler needs."""
    try:
        if path.is_dir():
            return bool(files_in(path).files)
        return path.is_file() and (path.suffix == ".safetensors" or zipfile.is_zipfile(path))
    except (zipfile.BadZipFile, ValueError):  # is_zipfile itself raises for a damaged zip64 record
        return path.is_dir()  # a broken index is an error, which reading it tells


def _tensors(path: Path, variant: str, *, trusted: bool, only_weights: bool) -> Iterator[tuple[str, Tensor]]:
    prefix = f"{variant}." if variant else ""
    if variant and path.name.endswith(f"-{variant}.pkl"):
        prefix = "ema."  # EDM2 has a file for each average, and calls it the same in all
    for name, tensor in _all_tensors(path, prefix, trusted):
        if only_weights and name.lower().startswith(NOT_WEIGHTS):
            continue
        yield name.removeprefix(prefix), tensor


def _all_tensors(path: Path, prefix: str, trusted: bool) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors whose name starts with `prefix`; every error of the readers becomes an EvaluationError."""
    try:
        for file in files_in(path, prefix).files if path.is_dir() else (path,):
            yield from _tensors_of_file(file, prefix, trusted)
    except EvaluationError:
        raise
    except Exception as error:  # unpicklers meet arbitrary bytes and fail in arbitrary ways
        if is_out_of_memory(error):
            raise
        raise checkpoint_error(
            "load checkpoint", f"{type(error).__name__}: {str(error).strip()[:300]}", path=path,
            hint="the file is damaged or in another format; `ckptwatch inspect` shows what is known about it",
        ) from error


def _tensors_of_file(path: Path, prefix: str, trusted: bool) -> Iterator[tuple[str, Tensor]]:
    if path.suffix != ".safetensors":
        tree = load_tree(path, trusted=trusted)
        yield from ((n, t) for n, t in _flatten(tree) if n.startswith(prefix))
        return
    with safe_open(path, framework="pt", device="cpu") as file:
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            if name.startswith(prefix):
                yield name, file.get_tensor(name)


def _require_whole_tensors(path: Path) -> None:
    """Raises EvaluationError (CHECKPOINT) where the files in a directory hold parts of tensors."""
    try:
        found = files_in(path)
    except (OSError, ValueError):
        found = Directory()  # told when the files are read
    split = f"its weights are split over {found.ranks} model-parallel ranks" if found.ranks > 1 else found.problem
    if split:
        raise checkpoint_error(
            "load checkpoint", split, path=path, retryable=False,
            hint="use a sampler that loads it with DeepSpeed, or let training save whole weights beside it",
        )


def _flatten(tree: Any) -> Iterator[tuple[str, Tensor]]:
    """Dotted names and tensors of nested containers, in their order; each container once, cycles or not."""
    seen: set[int] = set()
    stack: list[tuple[str, Any, int]] = [("", tree, 0)]
    while stack:
        name, value, depth = stack.pop()
        if isinstance(value, torch.nn.Module):  # only ever appears in trusted checkpoints
            value = value.state_dict()
        if isinstance(value, Tensor):
            yield name, value
            continue
        if not isinstance(value, Mapping | list | tuple) or id(value) in seen or depth > DEEPEST:
            continue
        seen.add(id(value))
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        below = [(f"{name}.{key}" if name else str(key), item, depth + 1) for key, item in items]
        stack.extend(reversed(below))


def is_finite(tensor: Tensor) -> bool:
    """No NaN and no ±∞ in it; 0 and −∞ alone are an attention mask, and finite. Other than floating point always is."""
    tensor = tensor.detach()
    if tensor.is_meta or tensor.is_quantized or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.layout is not torch.strided:
        tensor = tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.element_size() == 1:  # the float8 types know almost no operations
        tensor = tensor.to(torch.float32)
    return all(_is_finite_chunk(chunk) for chunk in tensor.reshape(-1).split(CHUNK))


def _is_finite_chunk(chunk: Tensor) -> bool:
    if chunk.numel() == 0:
        return True
    low, high = torch.aminmax(chunk)  # propagates NaN, and unlike isfinite() makes no tensor of the same size
    if bool(torch.isfinite(low)) and bool(torch.isfinite(high)):
        return True
    return bool(((chunk == 0) | (chunk == -torch.inf)).all())


def _no_such_variant(path: Path, variant: str, trusted: bool) -> Exception:
    if not variant:
        return checkpoint_error("load checkpoint", "it holds no tensors", path=path)
    names = dict.fromkeys(name.split(".")[0] for name, _ in _all_tensors(path, "", trusted))
    shown = ", ".join(list(names)[:8]) + (", …" if len(names) > 8 else "")
    return checkpoint_error(
        "load checkpoint", f"no weights under {variant!r}; there are: {shown or 'no tensors at all'}", path=path,
        hint="set `variants` of the run to what the checkpoint holds", retryable=False,
    )
