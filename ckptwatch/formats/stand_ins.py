"""What stands in for the objects of a pickle that is read without being run, and what is made of the calls in it."""

import struct
from collections.abc import Callable
from typing import Any

# Reads so many bytes of a storage from an offset. Raises OSError, ValueError.
Payloads = Callable[[str, int, int], bytes]


class Inert:
    """Stands in for any object."""

    __slots__ = ("state", "what")

    def __init__(self, what: str = "", state: Any = None) -> None:
        self.what = what    # "module.name" of what made it, as far as the pickle says
        self.state = state  # what BUILD would set


class InertGlobal(Inert):
    """Stands in for a class or function."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        super().__init__(f"{module}.{name}")
        self.module, self.name = module, name


class InertStorage(Inert):
    """Stands in for the numbers behind tensors."""

    __slots__ = ("count", "key", "kind", "payloads")

    def __init__(self, kind: str, key: str, count: int, payloads: Payloads | None) -> None:
        super().__init__()
        self.kind = kind    # "FloatStorage"
        self.key = key
        self.count = count  # elements
        self.payloads = payloads

    @property
    def size(self) -> int | None:
        """In bytes; None for a kind we do not know."""
        return self.count * _LAYOUTS[self.kind][0] if self.kind in _LAYOUTS else None


class InertTensor(Inert):
    """Stands in for a tensor or parameter."""

    __slots__ = ("kind", "offset", "shape", "storage", "stride")

    def __init__(
        self, storage: Any = None, offset: Any = None, shape: Any = None, stride: Any = None, *, kind: str = "",
    ) -> None:
        super().__init__()
        self.storage = storage if isinstance(storage, InertStorage) else None
        self.offset = offset
        self.shape = shape if isinstance(shape, tuple) else None  # None for sparse and quantized ones
        self.stride = stride if isinstance(stride, tuple) else None
        self.kind = kind  # "float8_e5m2" where the storage does not tell it

    def number(self) -> float | None:
        """The value of a tensor without dimensions and of a floating-point type; reads a few bytes of the file."""
        if self.shape != () or self.storage is None or self.storage.payloads is None or not isinstance(self.offset, int):
            return None
        size, layout = _LAYOUTS.get(self.storage.kind, (0, ""))
        if not layout or not 0 <= self.offset < self.storage.count:
            return None
        try:
            data = self.storage.payloads(self.storage.key, self.offset * size, size)
            return float(struct.unpack(layout, b"\0\0" + data if self.storage.kind == "BFloat16Storage" else data)[0])
        except (OSError, ValueError, struct.error):
            return None


# Bytes per element, and how the floating-point ones are read. A bfloat16 is the upper half of a float32.
_LAYOUTS: dict[str, tuple[int, str]] = {
    "DoubleStorage": (8, "<d"), "FloatStorage": (4, "<f"), "HalfStorage": (2, "<e"), "BFloat16Storage": (2, "<f"),
    "LongStorage": (8, ""), "IntStorage": (4, ""), "ShortStorage": (2, ""), "CharStorage": (1, ""), "ByteStorage": (1, ""),
    "BoolStorage": (1, ""), "ComplexFloatStorage": (8, ""), "ComplexDoubleStorage": (16, ""), "QUInt8Storage": (1, ""),
    "QInt8Storage": (1, ""), "QInt32Storage": (4, ""), "QUInt4x2Storage": (1, ""), "QUInt2x4Storage": (1, ""),
    "UntypedStorage": (1, ""),
}


class InertDtype(Inert):
    """Stands in for a numpy type. Its state is the type's code, such as "f8"."""

    __slots__ = ()


def _tensor(arguments: tuple[Any, ...]) -> InertTensor:
    return InertTensor(*arguments[:4])


def _tensor_of_kind(arguments: tuple[Any, ...]) -> InertTensor:
    """How torch writes tensors of the types that came after there was a class of storage for each."""
    kind = arguments[6] if len(arguments) > 6 and isinstance(arguments[6], InertGlobal) else None
    return InertTensor(*arguments[:4], kind=kind.name if kind is not None and kind.module == "torch" else "")


def _parameter(arguments: tuple[Any, ...]) -> InertTensor:
    return arguments[0] if arguments and isinstance(arguments[0], InertTensor) else InertTensor()


def _encoded(arguments: tuple[Any, ...]) -> Any:
    """How protocol 2 writes bytes."""
    text = arguments[0]
    return text.encode("latin-1") if isinstance(text, str) else Inert()


def _numpy_scalar(arguments: tuple[Any, ...]) -> Any:
    match arguments:
        case (Inert(what="numpy.dtype", state=str(kind)), bytes(data)) if kind in _NUMPY:
            return struct.unpack(_NUMPY[kind], data)[0]
    return Inert("numpy.scalar")


_NUMPY = {"f8": "<d", "f4": "<f", "f2": "<e", "i8": "<q", "i4": "<i", "i2": "<h", "i1": "<b", "u8": "<Q", "u4": "<I",
          "u2": "<H", "u1": "<B", "b1": "<?"}


MAKERS: dict[tuple[str, str], Callable[[tuple[Any, ...]], Any]] = {
    ("collections", "defaultdict"): lambda _arguments: {},
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): lambda arguments: Inert("builtins.bytes") if arguments else b"",
    ("numpy", "dtype"): lambda arguments: InertDtype("numpy.dtype", arguments[0] if arguments else None),
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_kind,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    **{("torch._utils", name): lambda _arguments: InertTensor()
       for name in ("_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_meta_tensor_no_storage",
                    "_rebuild_nested_tensor", "_rebuild_wrapper_subclass", "_rebuild_device_tensor_from_cpu_tensor")},
    ("torch._tensor", "_rebuild_from_type_v2"): lambda _arguments: InertTensor(),
}
