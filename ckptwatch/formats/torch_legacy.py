"""The older kind of `torch.save` file: several pickles, then the raw numbers.

The order is: a magic number, a protocol version, facts about the machine, the object, the list of storage keys (five
pickles), then for each key its count of elements in 8 bytes and its bytes. The object's pickle tells the type and count of
every storage, so the size of the whole file is known from its beginning.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from ckptwatch.formats.base import About, Dialect, Reading
from ckptwatch.formats.inert_pickle import InertStorage, Machine, Payloads, PickleError
from ckptwatch.formats.parts import Part
from ckptwatch.formats.reading import open_regular

MAGIC = 0x1950A86A20F9469CFC6C
BEGIN = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."  # the magic number, pickled with protocol 2
PROTOCOL = 1001
DIGESTED = 16 << 20  # bytes of the pickles that go into the fingerprint


class TorchLegacy(Dialect):
    """Claims nothing: `TorchZip` shows it the files that are no zip files."""

    name = "torch-legacy"
    precedence = 80
    about = About(
        title="torch.save file of the older kind",
        recognised="the names of the zip kind; written with `_use_new_zipfile_serialization=False`, by torch before 1.6, "
                   "and by DeepSpeed on request",
        complete="its pickle tells how many bytes its tensors take, and the file ends exactly behind the last of them",
        facts="as in the zip kind",
    )

    def speaks(self, content: Mapping[object, object]) -> bool:
        return False

    def read(self, content: Mapping[object, object], path: Path) -> Reading:
        return Reading()


def look_legacy(path: Path) -> Part:
    """Whole if size == pickles + what they say the tensors take. The content is the tree of the object's pickle."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        if size == 0:
            return Part(whole=False, evidence="empty file")
        file.seek(0)
        begin = file.read(512)
        if begin[257:262] == b"ustar":
            return Part(whole=False, evidence="a tar file, as torch wrote before 0.1.10; that kind is not read")
        if not begin.startswith(b"\x80"):
            return Part(whole=False, evidence="not a torch file: it begins neither like a zip file nor like a pickle")
        file.seek(0)
        try:
            return _judged(path, file, size)
        except PickleError as error:
            return Part(whole=False, evidence=f"a torch file of the older kind, broken or cut off: {error}")


def _judged(path: Path, file: BinaryIO, size: int) -> Part:
    if Machine().run(file, size, 16) != MAGIC:
        return Part(whole=False, evidence="a pickle, but not from torch.save: it lacks the magic number")
    version = Machine().run(file, size, 16)
    if version != PROTOCOL:
        raise PickleError(f"protocol version {str(version)[:40]} instead of {PROTOCOL}")
    about_machine = Machine().run(file, size, 1000)
    little = not isinstance(about_machine, dict) or about_machine.get("little_endian") is not False
    places: dict[str, int] = {}
    machine = Machine(_payloads(path, places) if little else None)
    content = machine.run(file, size)
    begin = file.tell()
    keys = Machine().run(file, size)
    position = file.tell()
    if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys):
        raise PickleError("there is no list of storages")
    if sorted(keys) != sorted(machine.storages):
        raise PickleError(f"it lists {len(keys)} storages, its pickle refers to {len(machine.storages)}")
    for key in keys:
        position = places[key] = position + 8
        position += _size_of(machine.storages[key], file, places[key], size)
    if position != size:
        raise PickleError(f"its tensors end at byte {position:,}, the file has {size:,}")
    file.seek(0)
    digest = hashlib.sha256(f"{size}\0".encode() + file.read(min(begin, DIGESTED)))
    return Part(whole=True, evidence=f"its pickles and {len(keys)} storages make up all {size:,} bytes",
                fingerprint=digest.hexdigest()[:16], content=content)


def _size_of(storage: InertStorage, file: BinaryIO, place: int, size: int) -> int:
    """In bytes. The file repeats the count of elements before them."""
    if storage.size is None:
        raise PickleError(f"a storage of unknown type {storage.kind[:40]}")
    if place <= size:
        file.seek(place - 8)
        count = int.from_bytes(file.read(8), "little", signed=True)
        if count != storage.count:
            raise PickleError(f"a storage has {count:,} elements, its pickle says {storage.count:,}")
    return storage.size


def _payloads(path: Path, places: Mapping[str, int]) -> Payloads:
    def read(key: str, offset: int, length: int) -> bytes:
        with open_regular(path) as file:
            file.seek(places[key] + offset)
            return file.read(length)

    return read


