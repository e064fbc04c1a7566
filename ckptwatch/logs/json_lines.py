"""One JSON object a line, of any trainer: flat or nested, with a step or an epoch among its keys."""

import json
import re
from pathlib import PurePath
from typing import Any

from ckptwatch.core.series import LogRow
from ckptwatch.logs.base import HEAD, State
from ckptwatch.logs.lines import LineReader, UnreadableError, excerpt, whole_lines
from ckptwatch.logs.rows import RowMaker, flat
from ckptwatch.model import Logged

_SUFFIXES = re.compile(r".*\.(?:json|jsonl|ndjson|log|txt|out)(?:\.\d{1,4})?", re.IGNORECASE | re.DOTALL)
_COUNTS = re.compile(rb'"(?:global_|_)?(?:step|iter|iteration|epoch)"\s{0,4}:')


class JsonLines:
    name = "json-lines"
    precedence = 70
    title = "JSON, one object a line"
    files = "`*.jsonl`, `*.ndjson`, `log.txt`, `metrics.json` and the like, if the first objects have a step or epoch"

    def claims(self, path: PurePath, head: bytes) -> bool:
        if _SUFFIXES.fullmatch(path.name) is None or not head.lstrip(b"\xef\xbb\xbf \t\r\n\0").startswith(b"{"):
            return False
        lines = whole_lines(head)
        maker = RowMaker(Logged())
        if any(_is_row(maker, line) for line in lines):
            return True
        return not lines and len(head) >= HEAD and _COUNTS.search(head) is not None  # the first line is longer than this

    def reader(self, logged: Logged, state: State | None = None) -> "JsonReader":
        return JsonReader(logged, state)


class JsonReader(LineReader):
    """Objects without a step and an epoch, such as a configuration or a summary, are passed over. What is no
    object is bad."""

    def __init__(self, logged: Logged, state: State | None = None) -> None:
        super().__init__(state)
        self._maker = RowMaker(logged, state, self.complain)

    def own_state(self) -> dict[str, Any]:
        return self._maker.state()

    def row(self, line: str) -> LogRow | None:
        return self._maker.row(flat(parsed(line)))


def parsed(line: str) -> dict[str, Any]:
    """The object in a line. Raises UnreadableError."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"no JSON ({type(error).__name__}): {excerpt(line)}") from None
    if not isinstance(content, dict):
        raise UnreadableError(f"no JSON object: {excerpt(line)}")
    return content


def _is_row(maker: RowMaker, line: str) -> bool:
    try:
        return maker.row(flat(parsed(line))) is not None
    except UnreadableError:
        return False
