"""Single safetensors files.

Layout: 8 bytes little-endian header length N, N bytes of JSON, tensor data. The writer fixes the size first, so a file of
the right size proves only that the header is written; the settling rules (no writer, unchanged) do the rest.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ckptwatch.formats.base import About, Claim, Family, Folder
from ckptwatch.formats.parts import Part
from ckptwatch.formats.reading import open_regular, whole_number
from ckptwatch.formats.torch_content import top_level
from ckptwatch.model import Facts

HEADER_LIMIT = 100_000_000  # bytes; the limit of the reference implementation


class SafetensorsFile(Family):
    name = "safetensors"
    precedence = 80
    about = About(
        title="safetensors file", recognised="a file `*.safetensors`",
        complete="8 bytes + header + end of the last tensor = size of the file",
        facts="`step` or `global_step` and `epoch` in `__metadata__`, and the name",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        return (self.claim_files(folder, name) for name in sorted(folder.files) if name.endswith(".safetensors"))

    def examine(self, claim: Claim) -> Facts:
        part = look_safetensors(claim.path)
        if not part.whole:
            return self.incomplete(part.evidence)
        metadata = part.content
        return Facts(
            format=self.name, complete=True, evidence=part.evidence, fingerprint=part.fingerprint, keys=part.keys,
            step=whole_number(metadata.get("step", metadata.get("global_step"))), epoch=whole_number(metadata.get("epoch")),
        )


def look_safetensors(path: Path) -> Part:
    """Whole if size == 8 + N + end of the last tensor. The content is `__metadata__`."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size < 8:
            return Part(whole=False, evidence=f"{size} bytes, too short for a header length")
        length = int.from_bytes(file.read(8), "little")
        if length > min(HEADER_LIMIT, size - 8):
            return Part(whole=False, evidence=f"header of {length:,} bytes in a file of {size:,}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        ends = [_end_of(name, tensor) for name, tensor in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return Part(whole=False, evidence=f"broken header: {type(error).__name__}: {str(error)[:200]}")
    needed = 8 + length + max(ends, default=0)
    if size != needed:
        return Part(whole=False, evidence=f"header describes {needed:,} bytes, file has {size:,}")
    metadata = header.get("__metadata__")
    return Part(whole=True, evidence=f"header describes all {size:,} bytes, {len(ends)} tensors",
                fingerprint=hashlib.sha256(raw).hexdigest()[:16], content=metadata if isinstance(metadata, dict) else {},
                keys=top_level(name for name in header if name != "__metadata__"))


def _end_of(name: str, tensor: dict[str, Any]) -> int:
    begin, end = tensor["data_offsets"]
    if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end < 2**63):
        raise ValueError(f"tensor {name!r} has offsets {begin}, {end}")
    return end
