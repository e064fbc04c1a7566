"""`torch.save` zip files: `.pt`, `.pth`, `.ckpt`.

The writer puts the central directory last, so a valid one whose records all lie inside the file proves completeness; one
byte cut off already breaks it. Facts come from `data.pkl` through an unpickler that knows no class and calls nothing.
"""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

from ckptwatch.formats.base import BoundedReader, Entry
from ckptwatch.formats.inert_pickle import InertTensor, PickleError, load_inert
from ckptwatch.model import Facts

SUFFIXES = (".pt", ".pth", ".ckpt")
DIRECTORY_BUDGET = 64 * 1024 * 1024  # bytes of central directory and pickle; a 100,000-tensor file needs about 20 MiB
LONGEST_NAME = 128  # characters of a metric's or variant's name
STEP_KEYS = ("step", "global_step", "iteration", "iter", "train_step")
EPOCH_KEYS = ("epoch", "current_epoch")


class TorchZip:
    name = "torch-zip"

    def claims(self, entry: Entry) -> bool:
        return not entry.is_dir and entry.path.name.endswith(SUFFIXES)

    def examine(self, path: Path) -> Facts:
        """Completeness from the central directory; step, epoch, logged metrics and variants from the pickle."""
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                return _incomplete("empty file")
            try:
                archive = zipfile.ZipFile(BoundedReader(file, DIRECTORY_BUDGET))  # type: ignore[arg-type]
                return _facts(archive, size)
            except zipfile.BadZipFile as error:
                file.seek(0)
                if not file.read(4).startswith(b"PK\x03\x04"):
                    return _incomplete("not a torch zip file (no zip header)")
                return _incomplete(f"zip directory missing or broken: {error} (still being written, or cut off)")
            except Exception as error:  # zipfile raises half a dozen types on mutated input
                return _incomplete(f"unreadable zip directory: {type(error).__name__}: {error}")


def _facts(archive: zipfile.ZipFile, size: int) -> Facts:
    records = archive.infolist()
    pickles = [r for r in records if r.filename.endswith("/data.pkl") and r.filename.count("/") == 1]
    if len(pickles) != 1:
        return _incomplete(f"a zip file, but not from torch.save: {len(pickles)} data.pkl among {len(records)} records")
    outside = [r for r in records if r.header_offset + r.compress_size > archive.start_dir]
    if outside:
        return _incomplete(f"record {outside[0].filename} reaches into the zip directory")
    if min(r.header_offset for r in records) > 0:  # else a zip file stored inside a truncated one would pass for it
        return _incomplete("the zip directory at its end does not describe its beginning")
    if pickles[0].file_size > DIRECTORY_BUDGET:  # declared, and never exceeded by what is unpacked
        return _incomplete(f"its data.pkl of {pickles[0].file_size:,} bytes is larger than any real checkpoint's")
    digest = hashlib.sha256()
    for record in records:  # the CRCs in the directory make this a digest of the content
        digest.update(f"{record.filename}\0{record.CRC}\0{record.file_size}\0{record.header_offset}\n".encode())
    evidence = f"zip directory valid, {len(records)} records within {size:,} bytes"
    try:
        content = load_inert(archive.read(pickles[0]))
    except (PickleError, ValueError, zipfile.BadZipFile, NotImplementedError, OSError) as error:
        return _incomplete(f"{evidence}; but data.pkl is broken: {error}")
    return Facts(
        format=TorchZip.name, complete=True, evidence=evidence, fingerprint=digest.hexdigest()[:16],
        content_digest=True,
        step=_first_int(content, STEP_KEYS), epoch=_first_int(content, EPOCH_KEYS),
        metrics=_metrics(content), variants=_variants(content),
    )


def _incomplete(evidence: str) -> Facts:
    return Facts(format=TorchZip.name, complete=False, evidence=evidence)


def _first_int(content: Any, keys: tuple[str, ...]) -> int | None:
    if isinstance(content, dict):
        for key in keys:
            value = content.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
                return value
    return None


def _metrics(content: Any) -> dict[str, float]:
    """Top-level floats, such as `loss`: what the trainer itself noted down."""
    if not isinstance(content, dict):
        return {}
    return {k: v for k, v in content.items() if _is_name(k) and isinstance(v, float)}


def _is_name(key: Any) -> bool:
    """Only what can be shown and recorded as it is: no control characters, no halves of characters."""
    return isinstance(key, str) and key.isprintable() and len(key) <= LONGEST_NAME


def _variants(content: Any) -> tuple[str, ...]:
    """Top-level entries that are state dicts themselves. An optimizer's tensors lie deeper, so it is none."""
    if not isinstance(content, dict):
        return ()
    return tuple(
        key for key, value in content.items()
        if _is_name(key) and isinstance(value, dict) and any(isinstance(v, InertTensor) for v in value.values())
    )
