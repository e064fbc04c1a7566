"""Files of torch.save, and pickles of whole networks: their tree of containers and tensors, on the CPU."""

import io
import pickle
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import checkpoint_error
from ckptwatch.formats.inert_pickle import Machine, PickleError
from ckptwatch.formats.reading import open_regular
from ckptwatch.formats.torch_legacy import MAGIC


def load_tree(path: Path, *, trusted: bool) -> Any:
    """What was saved. Tensors of a zip file are mapped: of each only what is looked at is read from the disk.

    Unless it is trusted nothing in the file is executed, and what is neither tensor nor container becomes an inert stand-in.
    Raises EvaluationError (CHECKPOINT) for a pickle that only unpickling can read; whatever torch and pickle raise.
    """
    if _is_plain_pickle(path):
        return _load_networks(path, trusted)
    mapped = zipfile.is_zipfile(path)  # the older format cannot be mapped
    try:
        return torch.load(path, map_location="cpu", mmap=mapped, weights_only=not trusted)
    except pickle.UnpicklingError as error:
        if trusted or not mapped or "weights_only" not in str(error).lower().replace(" ", "_"):
            raise
        return torch.load(path, map_location="cpu", mmap=True, weights_only=False, pickle_module=_INERT_PICKLE)


# ---- files of torch.save with other things in them ------------------------------------------------------------------


class _Inert(dict):
    """Stands in for an object of any class of a pickle: takes what it is given, does nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, _state: Any) -> None:
        pass

    def append(self, _item: Any) -> None:
        pass

    def extend(self, _items: Any) -> None:
        pass

    add = append
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__  # type: ignore[assignment]


class _InertUnpickler(pickle.Unpickler):
    """Builds tensors and plain containers; every other class or function of the pickle is replaced by `_Inert`."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_parameter"):
            return getattr(torch._utils, name)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype) or value in (torch.Size, torch.device):
            return value
        return _Inert


_INERT_PICKLE = types.SimpleNamespace(
    Unpickler=_InertUnpickler, UnpicklingError=pickle.UnpicklingError, __name__="ckptwatch inert pickle",
)


# ---- pickles of whole networks: StyleGAN, EDM -----------------------------------------------------------------------


def _is_plain_pickle(path: Path) -> bool:
    """A pickle, but none of torch.save, whose first one is a number."""
    with open_regular(path) as file:
        if file.read(1) != b"\x80":
            return False
        size = file.seek(0, 2)
        file.seek(0)
        try:
            return Machine().run(file, size, opcodes=16) != MAGIC
        except PickleError:
            return True


def _load_networks(path: Path, trusted: bool) -> Any:
    if not trusted:
        raise checkpoint_error(
            "load checkpoint", "it is a pickle of whole objects, which only unpickling can read, and that runs code from it",
            path=path, retryable=False,
            hint="set `trusted: true` in the entry of `watch` for its root, if you trust whatever writes there",
        )
    try:
        with open_regular(path) as file:
            return _CpuUnpickler(file).load()
    except ImportError as error:
        raise _lacks_code(path, error) from error


def _lacks_code(path: Path, error: ImportError) -> EvaluationError:
    return checkpoint_error(
        "load checkpoint", f"unpickling it needs a module that cannot be imported: {error}", path=path, retryable=False,
        hint="put the directory of the code that wrote it into PYTHONPATH of the daemon",
    )


class _CpuUnpickler(pickle.Unpickler):
    """Tensors in a plain pickle are files of torch.save inside it, with the device they were on."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda data: torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
        return super().find_class(module, name)
