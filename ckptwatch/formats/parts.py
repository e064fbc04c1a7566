"""Is one file whole? Asked of every file with a structure, alone or as a part of a larger checkpoint."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptwatch.formats.reading import open_regular


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file, judged by its structure. No tensor is read."""

    whole: bool
    evidence: str              # in words
    fingerprint: str = ""      # "" where there is no structure to digest
    content_digest: bool = False  # does an equal fingerprint mean equal content?
    content: Any = None        # what its pickle or header says, tensors and objects as stand-ins
    keys: tuple[str, ...] = ()  # top-level entries, where the content does not say them


def look(path: Path) -> Part:
    """The file's structure, by its suffix; a file of an unknown kind is whole if it is not empty.

    Raises OSError where it cannot be read. Never raises for its content.
    """
    from ckptwatch.formats.keras import look_hdf5, look_keras
    from ckptwatch.formats.safetensors_file import look_safetensors
    from ckptwatch.formats.torch_zip import SUFFIXES, look_torch

    for suffixes, looks in (
        ((".safetensors",), look_safetensors), ((*SUFFIXES, ".bin", ".tar"), look_torch), ((".pkl", ".pickle"), look_pickle),
        ((".h5", ".hdf5"), look_hdf5), ((".keras",), look_keras), ((".json",), look_json),
    ):
        if path.name.endswith(suffixes):
            return looks(path)
    size = path.stat().st_size
    return Part(whole=size > 0, evidence=f"{size:,} bytes" if size else "empty file")


def look_pickle(path: Path) -> Part:
    """A plain pickle, or a file of torch.save under such a name. The content is the names of the classes in it."""
    from ckptwatch.formats.pickle_walk import walk
    from ckptwatch.formats.torch_legacy import BEGIN
    from ckptwatch.formats.torch_zip import look_torch

    with open_regular(path) as file:
        begin = file.read(len(BEGIN))
    if begin.startswith(b"PK") or begin == BEGIN:
        return look_torch(path)
    walked = walk(path)
    return Part(whole=walked.whole, evidence=walked.evidence, content=walked.named)


def look_json(path: Path) -> Part:
    from ckptwatch.formats.reading import read_json

    try:
        content = read_json(path)
    except ValueError as error:
        return Part(whole=False, evidence=str(error))
    return Part(whole=True, evidence="a JSON document", content=content)


def fingerprint_of(paths: Iterable[Path], base: Path) -> str:
    """Digest of the names, sizes, file times and structure of the files that hold a checkpoint's weights.

    Equal digests mean the same content, as far as file times can be believed: what else lies beside them may change, a
    report that somebody drops into the directory, and the scores still stand. Raises OSError.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        info = path.stat()
        digest.update(f"{path.relative_to(base)}\0{info.st_size}\0{info.st_mtime_ns}\0{look(path).fingerprint}\n".encode(
            errors="surrogateescape"))
    return digest.hexdigest()[:16]
