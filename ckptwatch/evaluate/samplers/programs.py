"""Programs that bring their own code: TorchScript and torch.export archives, opened and called alike.

Opening either may run code that the file holds, so only files from the configuration and from trusted roots may come here.
"""

import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ckptwatch.evaluate.samplers.replacing import Slots, tied_names

_SCRIPT_MARK = "constants.pkl"
_EXPORT_MARKS = frozenset({"archive_format", "serialized_exported_program.json"})  # the second until torch 2.7


class ProgramKind(StrEnum):
    TORCHSCRIPT = "TorchScript program"
    EXPORTED = "exported program"


def program_kind(path: Path) -> ProgramKind | None:
    """What a file is by its content, whatever its name; None for anything that is no program. Runs nothing of it.
    Raises OSError."""
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist() if name.count("/") <= 1}
    except zipfile.BadZipFile:
        return None
    if _SCRIPT_MARK in names:
        return ProgramKind.TORCHSCRIPT
    return ProgramKind.EXPORTED if names & _EXPORT_MARKS else None


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """The batch sizes a program takes: `least`, then in steps of `step` up to `most`."""

    least: int = 1
    step: int = 1
    most: int | None = None  # None: any

    def padded(self, count: int) -> int:
        """The smallest size it takes that has room for `count` samples; at most `most`."""
        size = self.least + max(0, math.ceil((count - self.least) / self.step)) * self.step
        return size if self.most is None else min(size, self.most)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A program on its device. `run(noise)` or `run(noise, labels)` takes any number of samples."""

    kind: ProgramKind
    call: Any          # the module
    inputs: int        # tensors that it must be given
    shape: tuple[int | None, ...] | None  # of its first input without the batch dimension, None where any; if it says
    sizes: BatchSizes
    slots: Slots
    state: dict[str, Tensor]  # its weights, in its own memory

    def run(self, *inputs: Tensor) -> Tensor:
        """The output for inputs (n, …). Where the program does not take batches of n, the last sample is repeated and
        the surplus cut off, or there are several calls. Raises whatever the program raises."""
        count = len(inputs[0])
        most = self.sizes.most or count
        parts = [self._padded(tuple(tensor[at:at + most] for tensor in inputs)) for at in range(0, count, most)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _padded(self, inputs: tuple[Tensor, ...]) -> Tensor:
        count = len(inputs[0])
        lacking = self.sizes.padded(count) - count
        if not lacking:
            return self.call(*inputs)
        output = self.call(*(torch.cat([t, t[-1:].expand(lacking, *t.shape[1:])]) for t in inputs))
        return output[:count] if isinstance(output, Tensor) and output.ndim else output


def open_program(path: Path, device: str) -> Opened:
    """The program of a file, on `device`. Raises ValueError for a file that is none, and whatever torch raises."""
    match program_kind(path):
        case ProgramKind.TORCHSCRIPT:
            return _open_script(path, device)
        case ProgramKind.EXPORTED:
            return _open_exported(path, device)
    raise ValueError("neither a TorchScript nor a torch.export archive")


def _open_script(path: Path, device: str) -> Opened:
    with _deprecation_unsaid():
        module = torch.jit.load(path, map_location=device).eval()
    state = module.state_dict()
    arguments = module.forward.schema.arguments[1:]  # without self
    # TorchScript forgets which buffers were persistent, so none can be demanded.
    buffers = [name for name, _ in module.named_buffers(remove_duplicate=False)]
    return Opened(
        kind=ProgramKind.TORCHSCRIPT, call=module, inputs=sum(not a.has_default_value() for a in arguments), shape=None,
        sizes=BatchSizes(), slots=Slots(state, "the program", may_stay=buffers), state=state,
    )


def _open_exported(path: Path, device: str) -> Opened:
    # Importing it takes 0.3 s and is of use to nobody else.
    from torch.export.passes import move_to_device_pass

    with path.open("rb") as file:  # given a name, torch demands that it end in .pt2
        program = torch.export.load(file)
    tied = tied_names(program.state_dict)  # moving to another device makes them separate
    program = move_to_device_pass(program, device)
    module = program.module()
    state = module.state_dict()
    fleeting = {name: tensor for name, tensor in module.named_buffers(remove_duplicate=False) if name not in state}
    placeholders = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [placeholders[name] for name in program.graph_signature.user_inputs if isinstance(name, str)]
    if not inputs or not all(isinstance(tensor, Tensor) and tensor.ndim for tensor in inputs):
        raise ValueError(f"its inputs are not tensors of samples: {', '.join(program.graph_signature.user_inputs)}")
    return Opened(
        kind=ProgramKind.EXPORTED, call=module, inputs=len(inputs),
        shape=tuple(size if isinstance(size, int) else None for size in inputs[0].shape[1:]),
        sizes=_batch_sizes(program, inputs[0].shape[0]),
        slots=Slots({**state, **fleeting}, "the program", may_stay=fleeting, tied=tied), state=state,
    )


def _batch_sizes(program: ExportedProgram, size: int | torch.SymInt) -> BatchSizes:
    if isinstance(size, int):
        return BatchSizes(least=size, most=size)
    expression = size.node.expr
    symbols = sorted(expression.free_symbols, key=str)
    if len(symbols) != 1 or not expression.is_polynomial() or expression.diff(symbols[0]).free_symbols:
        raise ValueError(f"its batch dimension is {expression}; export it with a fixed size or a plain Dim")
    bounds = program.range_constraints[symbols[0]]
    at_least = max(int(bounds.lower), 0)
    least, following = (int(expression.subs(symbols[0], at_least + more)) for more in (0, 1))
    most = int(expression.subs(symbols[0], int(bounds.upper))) if bounds.upper.is_Integer else None
    return BatchSizes(least=least, step=following - least, most=most)


@contextmanager
def _deprecation_unsaid() -> Iterator[None]:
    """torch.jit is deprecated, but programs made with it are there and stay readable."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is (deprecated|not supported)")
        yield
