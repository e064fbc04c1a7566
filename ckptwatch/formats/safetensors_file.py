"""Single safetensors files.

Layout: 8 bytes little-endian header length N, N bytes of JSON, tensor data. The writer fixes the size first, so a file of
the right size proves only that the header is written; the settling rules (no writer, unchanged) do the rest.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from ckptwatch.formats.base import Entry
from ckptwatch.model import Facts

HEADER_LIMIT = 100_000_000  # bytes; the limit of the reference implementation


class SafetensorsFile:
    name = "safetensors"

    def claims(self, entry: Entry) -> bool:
        return not entry.is_dir and entry.path.name.endswith(".safetensors")

    def examine(self, path: Path) -> Facts:
        """Completeness: size == 8 + N + end of the last tensor. Step and epoch from `__metadata__` where given."""
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if size < 8:
                return _incomplete(f"{size} bytes, too short for a header length")
            length = int.from_bytes(file.read(8), "little")
            if length > min(HEADER_LIMIT, size - 8):
                return _incomplete(f"header of {length:,} bytes in a file of {size:,}")
            raw = file.read(length)
        try:
            header = json.loads(raw)
            ends = [_end_of(name, tensor) for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            return _incomplete(f"broken header: {type(error).__name__}: {str(error)[:200]}")
        needed = 8 + length + max(ends, default=0)
        if size != needed:
            return _incomplete(f"header describes {needed:,} bytes, file has {size:,}")
        if not raw.strip(b"\0 "):
            return _incomplete("header not written yet")
        metadata = header.get("__metadata__") if isinstance(header.get("__metadata__"), dict) else {}
        return Facts(
            format=self.name, complete=True, evidence=f"header describes all {size:,} bytes, {len(ends)} tensors",
            fingerprint=hashlib.sha256(raw).hexdigest()[:16],
            step=_int(metadata.get("step", metadata.get("global_step"))), epoch=_int(metadata.get("epoch")),
        )


def _end_of(name: str, tensor: dict[str, Any]) -> int:
    begin, end = tensor["data_offsets"]
    if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end < 2**63):
        raise ValueError(f"tensor {name!r} has offsets {begin}, {end}")
    return end


def _incomplete(evidence: str) -> Facts:
    return Facts(format=SafetensorsFile.name, complete=False, evidence=evidence)


def _int(value: Any) -> int | None:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number < 2**63 else None
