"""Reads the structure of a pickle without running anything from it.

Every class or function a pickle names becomes an inert stand-in: calling it gives another stand-in, setting its state
does nothing. Only lists, tuples, dicts and `OrderedDict` are real. The Python implementation of the unpickler is used on
purpose: its memo is a dict, while the C one allocates gigabytes for a hostile memo index.
"""

import io
import pickle
from collections import OrderedDict
from typing import Any


class PickleError(ValueError):
    """The bytes are no pickle that could be read."""


class Inert:
    """Stands in for any object, sets included. Hashable, callable, takes items, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        return Inert()

    def __setitem__(self, key: Any, value: Any) -> None: ...
    def append(self, value: Any) -> None: ...
    def extend(self, values: Any) -> None: ...
    def add(self, value: Any) -> None: ...


class InertTensor(Inert):
    """Stands in for a tensor or parameter."""


def _tensor(*args: Any, **kwargs: Any) -> InertTensor:
    return InertTensor()


def _ordered_dict(items: Any = ()) -> OrderedDict[Any, Any]:
    return OrderedDict((_key(k), v) for k, v in items)


def _key(value: Any) -> Any:
    """A key for a dict. Scalars only: hashing a tuple nested a million deep overflows the C stack, past any except."""
    return value if isinstance(value, _SCALARS) else Inert()


_SCALARS = (str, bytes, int, float, bool, type(None))


_TENSOR_MAKERS = {
    "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter", "_rebuild_parameter_with_state",
    "_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_meta_tensor_no_storage", "_rebuild_from_type_v2",
}


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]  # the pure Python one: see the module's first lines
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _ordered_dict
        if module == "torch._utils" and name in _TENSOR_MAKERS:
            return _tensor
        return Inert

    def persistent_load(self, pid: Any) -> Any:
        return Inert()

    def get_extension(self, code: int) -> None:
        self.append(Inert())

    def load_build(self) -> None:
        self.stack.pop()  # the state of an object is nobody's business

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][_key(key)] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][_key(key)] = value

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({_key(k): v for k, v in zip(items[::2], items[1::2], strict=True)})

    def load_set(self) -> None:
        self.append(Inert())

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.append(Inert())

    dispatch = {  # noqa: RUF012  # the unpickler looks it up on the class
        **pickle._Unpickler.dispatch,  # type: ignore[attr-defined]
        pickle.BUILD[0]: load_build, pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict, pickle.EMPTY_SET[0]: load_set, pickle.FROZENSET[0]: load_frozenset,
    }


def load_inert(data: bytes) -> Any:
    """The object tree of a pickle, with stand-ins for everything that is not a plain container or scalar.

    Raises PickleError for anything that cannot be read.
    """
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except Exception as error:  # a mutated pickle can raise nearly anything; none of it may reach the watcher
        raise PickleError(f"{type(error).__name__}: {error}") from error
