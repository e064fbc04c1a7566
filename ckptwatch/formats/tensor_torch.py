"""Where the numbers of a `torch.save` file of the zip kind lie."""

import io
from collections.abc import Iterator
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, ZipInfo

from ckptwatch.formats.inert_pickle import InertStorage, InertTensor, Machine, PickleError, TooLargeError
from ckptwatch.formats.tensor_names import is_weight, tensors_in
from ckptwatch.formats.tensor_places import KINDS, Kind, NotReadError, Places, PlacesError, View, brought_together, strided
from ckptwatch.formats.zip_directory import ZipError, read_directory, start_of, unpack

OPCODES = 4_000_000    # some 110,000 tensors: three seconds
IN_MEMORY = 16 << 20   # bytes of a pickle that are unpacked; a larger one is read in its place
# Class of storage, or type of the tensor where the storage has none → our kind, numbers in an element.
_KINDS: dict[str, tuple[Kind, int]] = {
    "DoubleStorage": (KINDS["float64"], 1), "FloatStorage": (KINDS["float32"], 1), "HalfStorage": (KINDS["float16"], 1),
    "BFloat16Storage": (KINDS["bfloat16"], 1), "ComplexFloatStorage": (KINDS["float32"], 2),
    "ComplexDoubleStorage": (KINDS["float64"], 2), "complex32": (KINDS["float16"], 2), "bcomplex32": (KINDS["bfloat16"], 2),
    **{name: (kind, 1) for name, kind in KINDS.items()},
}


def torch_places(file: BinaryIO, begin: int = 0, name: str = "") -> Places:
    """Of a zip file that begins at the byte `begin` of its file; `file` is that part alone. `name` is what it holds.

    Raises OSError, PlacesError, NotReadError.
    """
    try:
        archive = _Archive(file, begin)
        tree, storages = archive.tree()
    except TooLargeError as error:
        raise NotReadError(f"a torch file whose data.pkl has {error}") from error
    except (ZipError, PickleError) as error:
        raise PlacesError(str(error)) from error
    found = list(_views(archive, tree, storages, name))
    return Places(extents=brought_together(found, big_endian=archive.big_endian))


class _Archive:
    def __init__(self, file: BinaryIO, begin: int) -> None:
        self._file = file
        self._begin = begin
        self._records = {r.filename: r for r in read_directory(file)}
        if any(n.endswith("/archive_format") and n.count("/") == 1 for n in self._records):
            raise NotReadError("an archive of torch.export")
        names = [n for n in self._records if n.endswith("/data.pkl") and n.count("/") == 1]
        if len(names) != 1:
            raise NotReadError("a zip file, but not from torch.save")
        self._pickle = self._records[names[0]]
        self._top = names[0].removesuffix("data.pkl")
        self._places: dict[str, tuple[int, int]] = {}
        order = self._records.get(f"{self._top}byteorder")
        self.big_endian = order is not None and unpack(file, order, 64).strip() == b"big"

    def tree(self) -> tuple[Any, dict[str, InertStorage]]:
        """What its pickle says, and the storages that it refers to. Raises OSError, PickleError, ZipError."""
        machine = Machine()
        if self._pickle.file_size <= IN_MEMORY:
            data = unpack(self._file, self._pickle, IN_MEMORY)
            return machine.run(io.BytesIO(data), len(data), OPCODES), machine.storages
        begin = self._stored(self._pickle)
        self._file.seek(begin)
        return machine.run(self._file, begin + self._pickle.file_size, OPCODES), machine.storages

    def place(self, key: str) -> tuple[int, int]:
        """The bytes of a storage in the whole file. Raises OSError, PlacesError."""
        if key not in self._places:
            record = self._records.get(f"{self._top}data/{key}")
            if record is None:
                raise PlacesError(f"data/{key[:40]}, to which data.pkl refers, is missing")
            try:
                first = self._begin + self._stored(record)
            except ZipError as error:
                raise PlacesError(str(error)) from error
            self._places[key] = first, first + record.file_size
        return self._places[key]

    def _stored(self, record: ZipInfo) -> int:
        if record.compress_type != ZIP_STORED:
            raise ZipError(f"{record.filename[:200]} is packed in a way that torch does not use")
        return start_of(self._file, record)


def _views(archive: _Archive, tree: Any, storages: dict[str, InertStorage], name: str) -> Iterator[tuple[Kind, View]]:
    """Every tensor of floating-point numbers; of storages that no tensor could be told for, all numbers."""
    seen: set[str] = set()
    for called, tensor, counts in tensors_in(tree, name):
        if tensor.storage is None:
            continue
        seen.add(tensor.storage.key)
        kind, parts = _KINDS.get(tensor.kind or tensor.storage.kind, (None, 0))
        if kind is not None and counts:
            yield from _view_of(archive, called, tensor, kind, parts)
    for key, storage in storages.items():
        kind, parts = _KINDS.get(storage.kind, (None, 0))
        if key not in seen and kind is not None and storage.count and is_weight(name):
            whole = InertTensor(storage, 0, (storage.count,), (1,))
            yield from _view_of(archive, f"{name} storage {key[:40]}".strip(), whole, kind, parts)


def _view_of(archive: _Archive, name: str, tensor: InertTensor, kind: Kind, parts: int) -> Iterator[tuple[Kind, View]]:
    assert tensor.storage is not None
    begin, end = archive.place(tensor.storage.key)
    view = strided(name, begin, kind, tensor.offset, tensor.shape, tensor.stride, parts=parts)
    if view is None:
        return
    if view.end > end:
        raise PlacesError(f"tensor {name} reaches past the end of data/{tensor.storage.key[:40]}")
    yield kind, view
