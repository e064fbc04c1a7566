"""What it takes to know the facts of a file of 10 GB: bytes read and time, against reading it."""

import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.tools import median, milliseconds, show
from ckptwatch.formats.base import claim_at, examine, format_named

TENSORS = 400


def run(*, quick: bool = False) -> None:
    size = (1 if quick else 10) * 10**9
    rows = []
    with tempfile.TemporaryDirectory(prefix="ckptwatch-bench-") as place:
        for name, write in (("torch.save", _torch_file), ("safetensors", _safetensors_file)):
            path = write(Path(place), size)
            claim = claim_at(path)
            assert claim is not None
            format_ = format_named(claim.format)
            assert format_ is not None
            facts = examine(claim, format_)
            assert facts.complete, facts.evidence
            times, before = [], _bytes_read()
            for _ in range(5):
                begin = time.perf_counter()
                examine(claim, format_)
                times.append(time.perf_counter() - begin)
            read = (_bytes_read() - before) / 5
            rows.append((name, f"{path.stat().st_size / 1e9:.1f} GB", f"{read / 1e3:,.0f} kB", milliseconds(median(times)),
                         f"{read / path.stat().st_size:.1e}"))
            path.unlink()
    show(f"Facts of one file, {TENSORS} tensors", ("", "size", "read", "median", "read / size"), rows)


def _torch_file(place: Path, size: int) -> Path:
    """Sparse where the tensors lie: torch itself can leave them out."""
    path = place / "step_100.pt"
    state = {f"layers.{n}.weight": torch.empty(size // TENSORS // 4, device="meta") for n in range(TENSORS)}
    with torch.serialization.skip_data():
        torch.save({"step": 100, "model": {k: torch.empty_like(v, device="cpu") for k, v in state.items()}}, path)
    return path


def _safetensors_file(place: Path, size: int) -> Path:
    path = place / "step_100.safetensors"
    each = size // TENSORS // 4 * 4
    tensors = {f"layers.{n}.weight": {"dtype": "F32", "shape": [each // 4], "data_offsets": [n * each, (n + 1) * each]}
               for n in range(TENSORS)}
    header = json.dumps(tensors).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + each * TENSORS)
    return path


def _bytes_read() -> int:
    """By this process so far, from files and caches alike."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["rchar"])
