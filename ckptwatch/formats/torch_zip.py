"""`torch.save` files: `.pt`, `.pth`, `.ckpt`. The usual kind is a zip file; `torch_legacy` judges the older one.

Facts come from `data.pkl` through an unpickler that knows no class and calls nothing; a dialect may know more about them.
"""

import re
import zipfile
from collections.abc import Iterable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from ckptwatch.formats.base import About, Claim, Dialect, Family, Folder, Reading, formats
from ckptwatch.formats.inert_pickle import Machine, Payloads, PickleError, TooLargeError
from ckptwatch.formats.parts import Part
from ckptwatch.formats.reading import open_regular
from ckptwatch.formats.torch_content import plain_reading, top_level
from ckptwatch.formats.torch_legacy import TorchLegacy, look_legacy
from ckptwatch.formats.zip_directory import ZipError, digest_of, read_directory, start_of, unpack
from ckptwatch.model import Facts

SUFFIXES = (".pt", ".pth", ".ckpt", ".pth.tar", ".pt.tar", ".pt2")
IN_MEMORY = 16 << 20  # bytes of a pickle whose CRC is checked too; a larger one is walked through in its place

# What a trainer keeps beside the weights, and what is on its way to another name.
_SIDE = (r"optim(?:izer)?s?(?:[-_]states?)?|schedulers?|lr[-_]schedulers?|(?:grad[-_])?scaler|rng[-_]states?|"
         r"random[-_]states?|training[-_]args|training[-_]state|metadata|sampler|dataloader")
_NO_MODEL = re.compile(
    rf"\..*+|te?mp[-_.].*+|.{{1,40}}[-_]tmp\..*+|(?:{_SIDE})(?:[-_.].*+|\d{{1,18}}+\..*+)"
    r"|(?:opt|meta)(?:[-_]?\d{1,18}+)?\..*+"
    r"|.{1,200}?[-_](?:optim(?:izer)?s?(?:_states?)?|schedulers?|scaler|rng_states?)(?:[-_]\d{1,18}+)?"
    r"\.(?:pt|pth|ckpt)(?:\.tar)?",
    re.IGNORECASE | re.ASCII,
)


class TorchZip(Family):
    name = "torch-zip"
    precedence = 80
    about = About(
        title="torch.save file",
        recognised="a file `*.pt`, `*.pth`, `*.ckpt`, `*.pth.tar`, `*.pt.tar`, `*.pt2`, unless its name says that it is no "
                   "model: `optimizer*`, `scheduler*`, `scaler*`, `rng_state*`, `training_args*`, `training-state*`, "
                   "`meta*`, `tmp*`, hidden ones",
        complete="the zip directory, which `torch.save` writes last, is valid and describes the whole file, there is "
                 "exactly one `data.pkl`, it can be read, and all tensors it refers to are there; or it is an archive of "
                 "`torch.export`",
        facts="integers at the top level (`step`, `global_step`, `iteration`, `epoch`); floats there, and tensors without "
              "dimensions, are metrics; variants are entries that hold tensors",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        return (self.claim_files(folder, name) for name in sorted(n for n in folder.files if n.endswith(SUFFIXES))
                if not _NO_MODEL.fullmatch(name))

    def examine(self, claim: Claim) -> Facts:
        """Completeness from the structure; step, epoch, logged metrics and variants from the pickle."""
        kind, part = _judged(claim.path)
        if not part.whole:
            return self.incomplete(part.evidence)
        family, reading = read_content(part.content, claim.path)
        return Facts(
            format=family or kind, complete=True, evidence=part.evidence, fingerprint=part.fingerprint,
            content_digest=part.content_digest, step=reading.step, epoch=reading.epoch, metrics=reading.metrics,
            variants=reading.variants, keys=top_level(part.content) if isinstance(part.content, dict) else (),
        )


def look_torch(path: Path) -> Part:
    """One file of torch.save, of either kind. The content is the tree of its pickle, with stand-ins for tensors."""
    return _judged(path)[1]


def read_content(content: Any, path: Path) -> tuple[str, Reading]:
    """Whose dialect the tree of a torch file is, "" if nobody's, and what it says."""
    if isinstance(content, dict):
        for dialect in _dialects():
            if dialect.speaks(content):
                return dialect.name, dialect.read(content, path)
    return "", plain_reading(content)


@cache
def _dialects() -> tuple[Dialect, ...]:
    return tuple(f for f in formats() if isinstance(f, Dialect))


def _judged(path: Path) -> tuple[str, Part]:
    """The name of the kind of file, and the verdict. Raises OSError."""
    with open_regular(path) as file:
        begin = file.read(4)
        if not begin.startswith(b"PK"):
            return TorchLegacy.name, look_legacy(path)
        try:
            return TorchZip.name, _look_zip(path, file)
        except (ZipError, PickleError) as error:
            return TorchZip.name, Part(whole=False, evidence=str(error))


def _look_zip(path: Path, file: BinaryIO) -> Part:
    size = file.seek(0, 2)
    records = {r.filename: r for r in read_directory(file)}
    if any(n.endswith("/archive_format") and n.count("/") == 1 for n in records):  # torch.export: a program, no pickle
        return Part(
            whole=True, evidence=f"torch.export archive, zip directory valid, {len(records)} records within {size:,} bytes",
            fingerprint=digest_of(list(records.values())), content_digest=any(r.CRC for r in records.values()),
        )
    names = [n for n in records if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(names) != 1:
        raise ZipError(f"a zip file, but not from torch.save: {len(names)} data.pkl among {len(records)} records")
    top = names[0].removesuffix("data.pkl")
    evidence = f"zip directory valid, {len(records)} records within {size:,} bytes"
    machine, content = Machine(_payloads(path, records, f"{top}data/")), None
    try:
        content = _run(machine, file, records[names[0]])
    except TooLargeError as error:
        evidence += f"; no facts are read from its data.pkl, which has {error}"
    except (PickleError, ZipError) as error:
        raise PickleError(f"{evidence}; but data.pkl is broken: {error}") from error
    for key, storage in machine.storages.items():
        record = records.get(f"{top}data/{key}")
        if record is None or record.file_size < (storage.size or 0):
            fault = "short" if record else "missing"
            raise ZipError(f"{evidence}; but data/{key[:40]}, to which data.pkl refers, is {fault}")
    summed = any(r.CRC for r in records.values())  # torch can be told to leave the CRCs out
    return Part(whole=True, evidence=evidence, fingerprint=digest_of(list(records.values())), content_digest=summed,
                content=content)


def _run(machine: Machine, file: BinaryIO, record: zipfile.ZipInfo) -> Any:
    if record.compress_type != zipfile.ZIP_STORED or record.file_size <= IN_MEMORY:
        data = unpack(file, record, IN_MEMORY)
        return machine.run(BytesIO(data), len(data))
    begin = start_of(file, record)
    file.seek(begin)
    return machine.run(file, begin + record.file_size)


def _payloads(path: Path, records: dict[str, zipfile.ZipInfo], folder: str) -> Payloads:
    def read(key: str, offset: int, length: int) -> bytes:
        record = records.get(f"{folder}{key}")
        if record is None or record.compress_type != zipfile.ZIP_STORED or offset + length > record.file_size:
            raise ZipError(f"no such bytes in data/{key[:40]}")
        with open_regular(path) as file:
            file.seek(start_of(file, record) + offset)
            return file.read(length)

    return read
