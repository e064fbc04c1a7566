"""Walks the opcodes of a pickle in a file without building anything.

A pickle ends with the opcode STOP, and no proper prefix of one does. Long payloads are skipped by seeking, so a file of many
gigabytes costs milliseconds. What is read is bounded: opcodes, bytes, and the length of a line.
"""

import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ckptwatch.formats.reading import open_regular

OPCODES = 1_000_000   # per pickle; a tensor takes about 35. Beyond it a pickle is not read to its end
BYTES = 64 << 20      # read from one pickle, payloads that are skipped left out
KEEP = 4096           # bytes; a longer payload is skipped: it is data, not a name
LONGEST_LINE = 65536  # bytes; the text opcodes of protocol 0 end with a newline


class PickleError(ValueError):
    """The bytes are no pickle that can be read to its end."""


class TooLargeError(PickleError):
    """A pickle of more opcodes or bytes than are read. It may well be whole."""


@dataclass(frozen=True)
class Skipped:
    """A payload that was not read."""

    length: int  # bytes


@dataclass(frozen=True, kw_only=True)
class Walk:
    whole: bool                  # STOP is the last byte of the file
    evidence: str
    named: frozenset[str] = frozenset()  # "module name" of the classes and functions it names, as far as it can be told


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _latin(data: bytes) -> str:
    return data.decode("latin-1")


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _decimal(line: bytes) -> int | bool | Skipped:
    if line in (b"00", b"01"):  # how protocol 0 writes False and True
        return line == b"01"
    if len(line) > 64:  # to read very long ones takes long
        return Skipped(len(line))
    return int(line.removesuffix(b"L"))


def _quoted(line: bytes) -> str:
    return line.strip(b"'\"").decode("unicode_escape")


_FIXED: dict[bytes, struct.Struct] = {
    code: struct.Struct(layout)
    for layout, codes in {
        "<B": (pickle.PROTO, pickle.BININT1, pickle.BINGET, pickle.BINPUT, pickle.EXT1),
        "<H": (pickle.BININT2, pickle.EXT2),
        "<i": (pickle.BININT, pickle.EXT4),
        "<I": (pickle.LONG_BINGET, pickle.LONG_BINPUT),
        "<Q": (pickle.FRAME,),
        ">d": (pickle.BINFLOAT,),
    }.items()
    for code in codes
}
# How many bytes give the length, and what the payload is.
_COUNTED: dict[bytes, tuple[int, Callable[[bytes], Any]]] = {
    pickle.SHORT_BINUNICODE: (1, _text), pickle.BINUNICODE: (4, _text), pickle.BINUNICODE8: (8, _text),
    pickle.SHORT_BINSTRING: (1, _latin), pickle.BINSTRING: (4, _latin),
    pickle.SHORT_BINBYTES: (1, bytes), pickle.BINBYTES: (4, bytes), pickle.BINBYTES8: (8, bytes),
    pickle.BYTEARRAY8: (8, bytes), pickle.LONG1: (1, _integer), pickle.LONG4: (4, _integer),
}
_LINES: dict[bytes, Callable[[bytes], Any]] = {
    pickle.INT: _decimal, pickle.LONG: _decimal, pickle.FLOAT: float, pickle.STRING: _quoted, pickle.PERSID: _text,
    pickle.UNICODE: lambda line: line.decode("raw_unicode_escape"), pickle.GET: int, pickle.PUT: int,
    pickle.GLOBAL: _text, pickle.INST: _text,
}
_BARE = frozenset({
    pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.DUP, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINPERSID,
    pickle.REDUCE, pickle.APPEND, pickle.APPENDS, pickle.BUILD, pickle.DICT, pickle.EMPTY_DICT, pickle.LIST,
    pickle.EMPTY_LIST, pickle.OBJ, pickle.SETITEM, pickle.SETITEMS, pickle.TUPLE, pickle.EMPTY_TUPLE, pickle.TUPLE1,
    pickle.TUPLE2, pickle.TUPLE3, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.STACK_GLOBAL, pickle.MEMOIZE, pickle.EMPTY_SET,
    pickle.ADDITEMS, pickle.FROZENSET, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER,
})


def steps(file: BinaryIO, end: int, opcodes: int = OPCODES) -> Iterator[tuple[bytes, Any]]:
    """The opcodes from where the file stands up to and without STOP, after which it stands, each with its argument.

    GLOBAL and INST give (module, name), a long payload gives Skipped. `end` is where the pickle ends at the latest, in
    bytes. Raises PickleError, TooLargeError.
    """
    read, left = file.read, BYTES
    for _ in range(opcodes):
        code = read(1)
        reader = _READERS.get(code, _unknown)
        if reader is None:
            yield code, None
        elif isinstance(reader, struct.Struct):
            data = read(reader.size)
            if len(data) < reader.size:
                raise PickleError(_CUT_OFF)
            yield code, reader.unpack(data)[0]
        elif code == pickle.STOP:
            if file.tell() > end:
                raise PickleError(_CUT_OFF)
            return
        else:
            argument, cost = reader(file, code, end)
            yield code, argument
            left -= cost
            if left < 0:
                raise TooLargeError(f"more than {BYTES:,} bytes of names and numbers")
    raise TooLargeError(f"more than {opcodes:,} opcodes")


_CUT_OFF = "cut off: no STOP before the end"


def _counted(file: BinaryIO, code: bytes, end: int) -> tuple[Any, int]:
    width, decode = _COUNTED[code]
    size = file.read(width)
    length = int.from_bytes(size, "little")
    if len(size) < width or length > end - file.tell():
        raise PickleError(f"cut off: a payload of {length:,} bytes reaches past the end")
    if length > KEEP:
        file.seek(length, 1)
        return Skipped(length), 0
    return _decoded(decode, file.read(length)), length


def _line(file: BinaryIO, code: bytes, _end: int) -> tuple[Any, int]:
    line = file.readline(LONGEST_LINE)
    if not line.endswith(b"\n"):
        raise PickleError("a line without an end")
    return _decoded(_LINES[code], line[:-1]), len(line)


def _two_lines(file: BinaryIO, code: bytes, end: int) -> tuple[Any, int]:
    (first, cost), (second, more) = _line(file, code, end), _line(file, code, end)
    return (first, second), cost + more


def _unknown(_file: BinaryIO, code: bytes, _end: int) -> tuple[Any, int]:
    raise PickleError(f"unknown opcode {code!r}" if code else _CUT_OFF)


_READERS: dict[bytes, Any] = {
    **dict.fromkeys(_BARE), **_FIXED, **dict.fromkeys(_COUNTED, _counted), **dict.fromkeys(_LINES, _line),
    pickle.GLOBAL: _two_lines, pickle.INST: _two_lines, pickle.STOP: _unknown,
}


def _decoded(decode: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return decode(data)
    except ValueError as error:
        raise PickleError(f"{type(error).__name__}: {str(error)[:200]}") from error


_STRINGS = frozenset({pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.SHORT_BINSTRING, pickle.BINSTRING, pickle.UNICODE})
_GETS = frozenset({pickle.GET, pickle.BINGET, pickle.LONG_BINGET})
_PUTS = frozenset({pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT})


def walk(path: Path) -> Walk:
    """Is this file one whole pickle? Raises OSError."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size == 0:
            return Walk(whole=False, evidence="empty file")
        names = _Names()
        try:
            count = sum(map(names.note, steps(file, size)))
        except PickleError as error:
            return Walk(whole=False, evidence=f"not a whole pickle: {error}")
        end = file.tell()
    if end != size:
        return Walk(whole=False, evidence=f"its pickle ends at byte {end:,}, the file has {size:,}")
    return Walk(whole=True, evidence=f"a pickle of {count + 1:,} opcodes ends exactly at byte {size:,}",
                named=frozenset(names.named))


class _Names:
    """Follows which classes and functions a pickle names. A memo that is filled in unusual ways is not followed."""

    def __init__(self) -> None:
        self.named: set[str] = set()
        self._memo: dict[int, str] = {}
        self._memoized = 0
        self._recent = ["", ""]  # the strings pushed last

    def note(self, step: tuple[bytes, Any]) -> int:
        code, argument = step
        if code in _STRINGS and isinstance(argument, str):
            self._recent = [self._recent[1], argument]
        elif code in (pickle.GLOBAL, pickle.INST):
            self.named.add(" ".join(argument))
        elif code == pickle.STACK_GLOBAL:
            self.named.add(" ".join(self._recent))
        elif code == pickle.MEMOIZE:
            self._memo[self._memoized] = self._recent[1]
            self._memoized += 1
        elif code in _PUTS:
            self._memo[argument] = self._recent[1]
            self._memoized += 1
        elif code in _GETS and argument in self._memo:
            self._recent = [self._recent[1], self._memo[argument]]
        return 1
