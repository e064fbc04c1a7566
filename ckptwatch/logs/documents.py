"""JSON documents among the logs: given whole, told once."""

import hashlib
import json
import math
from typing import Any

from ckptwatch.formats.reading import numbers_in


def read_document(data: bytes) -> dict[str, Any]:
    """The mapping in a file. Raises ValueError, in words, for anything else, such as one that is half written."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {type(error).__name__}: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise ValueError("no JSON mapping")
    return content


def digest_of(value: Any) -> str:
    """Tells two JSON values apart."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def looks_like_document(head: bytes) -> bool:
    """Can the file be a JSON mapping, or become one?"""
    return head.lstrip()[:1] in (b"", b"{")


def epoch_in(value: Any) -> float | None:
    """An epoch, perhaps a broken one: a finite number that is not negative."""
    number = numbers_in({"epoch": value}).get("epoch")
    return number if number is not None and math.isfinite(number) and number >= 0 else None
