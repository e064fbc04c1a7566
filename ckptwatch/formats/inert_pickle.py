"""Reads the structure of a pickle without running anything from it.

Every class or function a pickle names is an inert stand-in; "calling" it gives another one that remembers what it stands
for. Only lists, tuples, dicts (ordered ones too) and scalars are real. Nothing here looks into a container, so that deep
nesting costs no stack, and every opcode costs the same.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

from ckptwatch.formats.pickle_walk import OPCODES, PickleError, Skipped, TooLargeError, steps
from ckptwatch.formats.stand_ins import MAKERS, Inert, InertDtype, InertGlobal, InertStorage, InertTensor, Payloads

__all__ = [
    "Inert", "InertGlobal", "InertStorage", "InertTensor", "Machine", "Payloads", "PickleError", "TooLargeError",
    "load_inert",
]


class Machine:
    """Runs one pickle. `storages` are those it refers to, by key, as they are first mentioned."""

    def __init__(self, payloads: Payloads | None = None) -> None:
        self.storages: dict[str, InertStorage] = {}
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self._globals: dict[tuple[str, str], InertGlobal] = {}
        self._outer: list[list[Any]] = []
        self._payloads = payloads
        self._pairs = OPCODES  # of ordered dicts that are made from lists; else one list could be made into many

    def run(self, file: BinaryIO, end: int, opcodes: int = OPCODES) -> Any:
        """The object tree. The file is left standing behind the pickle. Raises PickleError, TooLargeError."""
        try:
            for code, argument in steps(file, end, opcodes):
                _ACTIONS[code](self, argument)
            return self.stack.pop()
        except PickleError:
            raise
        except Exception as error:  # a mutated pickle can raise nearly anything; none of it may reach the watcher
            raise PickleError(f"{type(error).__name__}: {str(error)[:200]}") from error

    def push(self, value: Any) -> None:
        self.stack.append(Inert() if isinstance(value, Skipped) else value)

    def named(self, module: str, name: str) -> InertGlobal:
        known = self._globals.get((module, name))
        if known is None:
            known = self._globals[module, name] = InertGlobal(module, name)
        return known

    def marked(self) -> list[Any]:
        items, self.stack = self.stack, self._outer.pop()
        return items

    def mark(self) -> None:
        self._outer.append(self.stack)
        self.stack = []

    def make(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, InertGlobal):
            return Inert()
        arguments = arguments if isinstance(arguments, tuple) else ()
        if (function.module, function.name) == ("collections", "OrderedDict"):
            return self._ordered_dict(arguments)
        maker = MAKERS.get((function.module, function.name))
        return maker(arguments) if maker else Inert(function.what)

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                target[_key(key)] = value

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def refer(self, pid: Any) -> Any:
        """What torch keeps outside the pickle: storages, and the source code of classes."""
        match pid:
            case ("storage", InertGlobal() as kind, str(key), _, int(count), *_) if count >= 0:
                storage = InertStorage(kind.name, key, count, self._payloads)
                self.storages.setdefault(key, storage)
                return storage
            case ("module", InertGlobal() as module, *_):
                return module
        return Inert()

    def _ordered_dict(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        items = arguments[0] if arguments and isinstance(arguments[0], list) else []
        self._pairs -= len(items)
        if self._pairs < 0:
            raise TooLargeError("more pairs in ordered dicts than are read")
        return {_key(key): value for key, value in items}


_SCALARS = (str, bytes, int, float, bool, type(None), Inert)


def _key(value: Any) -> Any:
    """A key for a dict. Scalars and stand-ins only: hashing a tuple nested a million deep overflows the C stack."""
    return value if isinstance(value, _SCALARS) else Inert()


# ---- opcodes --------------------------------------------------------------------------------------------------------


def _pushing(value: Callable[[], Any]) -> Callable[[Machine, Any], None]:
    return lambda machine, _argument: machine.stack.append(value())


def _tuple_of(count: int) -> Callable[[Machine, Any], None]:
    def action(machine: Machine, _argument: Any) -> None:
        if len(machine.stack) < count:
            raise PickleError("a tuple of more than there is")
        machine.stack[-count:] = [tuple(machine.stack[-count:])]

    return action


def _pop(machine: Machine, _argument: Any) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.marked()


def _dict(machine: Machine, _argument: Any) -> None:
    items = machine.marked()
    machine.stack.append({})
    machine.set_items(items)


def _set_item(machine: Machine, _argument: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items([key, value])


def _append(machine: Machine, _argument: Any) -> None:
    value = machine.stack.pop()
    machine.extend([value])


def _stack_global(machine: Machine, _argument: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise PickleError("a class whose name is no text")
    machine.stack.append(machine.named(module, name))


def _reduce(machine: Machine, _argument: Any) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine.make(function, arguments))


def _new_with_keywords(machine: Machine, _argument: Any) -> None:
    machine.stack.pop()
    _reduce(machine, None)


def _instance(machine: Machine, argument: Any) -> None:
    items = machine.marked()
    machine.stack.append(machine.make(machine.named(*argument), tuple(items)))


def _object(machine: Machine, _argument: Any) -> None:
    function, *arguments = machine.marked()
    machine.stack.append(machine.make(function, tuple(arguments)))


def _build(machine: Machine, _argument: Any) -> None:
    state, thing = machine.stack.pop(), machine.stack[-1]
    if type(thing) is Inert:
        thing.state = state
    elif type(thing) is InertDtype and isinstance(state, tuple) and ">" in state[1:2]:
        thing.state = None  # numbers of the other byte order are not read


def _put(machine: Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _get(machine: Machine, index: int) -> None:
    machine.stack.append(machine.memo[index])


def _nothing(_machine: Machine, _argument: Any) -> None: ...


_ACTIONS: dict[bytes, Callable[[Machine, Any], Any]] = {
    **dict.fromkeys((pickle.PROTO, pickle.FRAME, pickle.READONLY_BUFFER), _nothing),
    **dict.fromkeys((
        pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.LONG4, pickle.FLOAT,
        pickle.BINFLOAT, pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.UNICODE, pickle.BINUNICODE,
        pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8,
        pickle.BYTEARRAY8,
    ), Machine.push),
    pickle.NONE: _pushing(lambda: None), pickle.NEWTRUE: _pushing(lambda: True), pickle.NEWFALSE: _pushing(lambda: False),
    pickle.EMPTY_TUPLE: _pushing(tuple), pickle.EMPTY_LIST: _pushing(list), pickle.EMPTY_DICT: _pushing(dict),
    pickle.EMPTY_SET: _pushing(Inert), pickle.NEXT_BUFFER: _pushing(Inert), pickle.PERSID: _pushing(Inert),
    **dict.fromkeys((pickle.EXT1, pickle.EXT2, pickle.EXT4), _pushing(Inert)),
    pickle.MARK: lambda machine, _: machine.mark(), pickle.POP: _pop, pickle.POP_MARK: lambda machine, _: machine.marked(),
    pickle.DUP: lambda machine, _: machine.stack.append(machine.stack[-1]),
    pickle.TUPLE: lambda machine, _: machine.push(tuple(machine.marked())),
    pickle.TUPLE1: _tuple_of(1), pickle.TUPLE2: _tuple_of(2), pickle.TUPLE3: _tuple_of(3),
    pickle.LIST: lambda machine, _: machine.push(machine.marked()),
    pickle.FROZENSET: lambda machine, _: (machine.marked(), machine.push(Inert())),
    pickle.ADDITEMS: lambda machine, _: machine.marked(), pickle.DICT: _dict,
    pickle.APPEND: _append, pickle.APPENDS: lambda machine, _: machine.extend(machine.marked()),
    pickle.SETITEM: _set_item, pickle.SETITEMS: lambda machine, _: machine.set_items(machine.marked()),
    pickle.GLOBAL: lambda machine, names: machine.push(machine.named(*names)), pickle.STACK_GLOBAL: _stack_global,
    pickle.REDUCE: _reduce, pickle.NEWOBJ: _reduce, pickle.NEWOBJ_EX: _new_with_keywords, pickle.INST: _instance,
    pickle.OBJ: _object, pickle.BUILD: _build,
    pickle.BINPERSID: lambda machine, _: machine.push(machine.refer(machine.stack.pop())),
    **dict.fromkeys((pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT), _put),
    **dict.fromkeys((pickle.GET, pickle.BINGET, pickle.LONG_BINGET), _get),
    pickle.MEMOIZE: lambda machine, _: _put(machine, len(machine.memo)),
}


def load_inert(data: bytes, payloads: Payloads | None = None, opcodes: int = OPCODES) -> Any:
    """The object tree of a pickle, with stand-ins for everything that is not a plain container or scalar.

    Raises PickleError for anything that cannot be read.
    """
    return Machine(payloads).run(io.BytesIO(data), len(data), opcodes)
