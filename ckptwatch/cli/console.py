"""Talking to a person: colour only with a symbol and a word, ASCII where the terminal has no more, errors in one form."""

import json
import math
import os
import sys
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 100
_ASCII = str.maketrans({
    "✓": "OK", "●": "*", "✗": "X", "▲": "!", "±": "+-", "→": "->", "·": "-", "×": "x", "…": "...", "–": "-",
    "—": "-", "≤": "<=", "≥": ">=", "▁": "_", "▂": "_", "▃": ".", "▄": "-", "▅": "-", "▆": "=", "▇": "#", "█": "#", "δ": "d",
    "é": "e", "└": "`", "├": "|", "─": "-", "│": "|", "━": "=", "╸": "=", "╺": "-",
})


class AsciiFile:
    """A text stream that writes ASCII only; rich itself would raise on a terminal that knows no UTF-8."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.encoding = "utf-8"  # what rich may emit; we translate it

    def write(self, text: str) -> int:
        self._file.write(text.translate(_ASCII).encode("ascii", "replace").decode())
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def wants_ascii(flag: bool, file: IO[str]) -> bool:
    return flag or bool(os.environ.get("CKPTWATCH_ASCII")) or (getattr(file, "encoding", None) or "ascii").lower().replace(
        "-", "") != "utf8"


def console(*, ascii_only: bool = False, stderr: bool = False) -> "Console":
    """A rich console: 16 colours, no guessing of markup in what users named, 100 columns into a pipe."""
    from rich.console import Console

    class Pipeable(Console):
        def on_broken_pipe(self) -> None:
            """`ckptwatch status | head` is no error; rich alone would exit with status 1."""
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0)

    file: Any = sys.stderr if stderr else sys.stdout
    width = None if file.isatty() else PIPE_WIDTH
    if wants_ascii(ascii_only, file):
        file = AsciiFile(file)
    return Pipeable(file=file, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def emit_json(document: Any) -> None:
    """One JSON document on standard output, indented for a person but not for a pipe; NaN becomes null."""
    indent = 2 if sys.stdout.isatty() else None  # the encoder in C, ten times as fast, cannot indent
    try:
        text = json.dumps(document, indent=indent, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(document), indent=indent, allow_nan=False)
    sys.stdout.write(text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def complain(error: BaseException) -> None:
    """An error on standard error."""
    text = f"✗ {error}"
    if wants_ascii("--ascii" in sys.argv, sys.stderr):
        text = text.translate(_ASCII).encode("ascii", "replace").decode()
    print(text, file=sys.stderr)
