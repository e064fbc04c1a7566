"""Keras 3: whole models in `.keras` zip files, weights in HDF5 files, and weights split into several of them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptwatch.formats.base import About, Claim, Family, Folder
from ckptwatch.formats.parts import Part, fingerprint_of, look, look_json
from ckptwatch.formats.reading import open_regular
from ckptwatch.formats.zip_directory import ZipError, digest_of, read_directory
from ckptwatch.model import Facts

WEIGHTS, INDEX = ".weights.h5", ".weights.json"
_NUMBER = re.compile(r"(?P<stem>.{1,200})_(?P<number>\d{5})\.weights\.h5", re.DOTALL)
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Version of the superblock → where the end of the file stands in it. 2 and 3 also have flags, at byte 11.
_END_OF_FILE = {0: 40, 1: 44, 2: 28, 3: 28}
_FLAGS = 11


class Keras(Family):
    name = "keras"
    precedence = 60
    about = About(
        title="Keras",
        recognised="a file `*.keras` or `*.weights.h5`; `name_00000.weights.h5`, `name_00001.weights.h5`, … with "
                   "`name.weights.json` are one checkpoint",
        complete="`.keras`: the zip directory is valid and holds the configuration and the weights. HDF5: its superblock "
                 "gives the size that the file has, and no writer is marked. Split weights: all files that the index names, "
                 "and no further one; Keras writes the index anew after every file, so quiet has to prove the rest",
        facts="epoch and metrics from the name",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        names = sorted(n for n in folder.files if n.endswith((".keras", WEIGHTS, INDEX)) and not n.startswith("."))
        shards: dict[str, list[str]] = {}
        for name in names:
            if found := _NUMBER.fullmatch(name):
                shards.setdefault(found["stem"], []).append(name)
        for name in names:
            if name.endswith(INDEX):
                if others := shards.get(name.removesuffix(INDEX)):
                    yield self.claim_files(folder, name, *others)
            elif not (found := _NUMBER.fullmatch(name)) or not _is_split(found["stem"], shards, folder.files):
                yield self.claim_files(folder, name)

    def examine(self, claim: Claim) -> Facts:
        if claim.path.name.endswith(INDEX):
            return self._examine_split(claim)
        part = look(claim.path)
        if not part.whole:
            return self.incomplete(part.evidence)
        return Facts(format=self.name, complete=True, evidence=part.evidence, content_digest=True,
                     fingerprint=fingerprint_of([claim.path], claim.path.parent))

    def _examine_split(self, claim: Claim) -> Facts:
        index = look_json(claim.path)
        if not index.whole:
            return self.incomplete(f"{claim.path.name}: {index.evidence}")
        named = _files_named(index.content)
        present = {m.name for m in claim.members} - {claim.path.name}
        if named != present:
            missing, further = sorted(named - present), sorted(present - named)
            which = f"missing {missing[0][:200]}" if missing else f"{further[0]} is not in it yet"
            return self.incomplete(f"{claim.path.name} names {len(named)} files, {len(present)} are there; {which}")
        for member in sorted(set(claim.members) - {claim.path}):
            part = look_hdf5(member)
            if not part.whole:
                return self.incomplete(f"{member.name}: {part.evidence}")
        return Facts(
            format=self.name, complete=True, content_digest=True,
            evidence=f"all {len(named)} files that {claim.path.name} names are whole, and there is no further one; the "
                     "index is written after every file, so this does not prove that it was the last",
            fingerprint=fingerprint_of(set(claim.members) - {claim.path}, claim.path.parent),
        )


def _is_split(stem: str, shards: Mapping[str, Sequence[str]], files: frozenset[str]) -> bool:
    """Are `stem_00000.weights.h5` and so on one set, rather than a checkpoint for each epoch?

    The index is written before the second file is begun, so only the first is ever there without it.
    """
    return f"{stem}{INDEX}" in files or shards[stem] == [f"{stem}_00000{WEIGHTS}"]


def _files_named(index: Any) -> set[str]:
    """The files in the weight map of an index: {"/layers/dense/vars": ["name_00000.weights.h5", …]}."""
    mapping = index.get("weight_map") if isinstance(index, dict) else None
    named: set[str] = set()
    for value in mapping.values() if isinstance(mapping, dict) else ():
        named |= {n for n in (value if isinstance(value, list) else [value]) if isinstance(n, str)}
    return named


def look_keras(path: Path) -> Part:
    """Whole if the zip directory is, and names what Keras writes."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        if size == 0:
            return Part(whole=False, evidence="empty file")
        try:
            records = read_directory(file)
        except ZipError as error:
            return Part(whole=False, evidence=str(error))
    names = {r.filename for r in records}
    if not {"metadata.json", "config.json"} <= names or not any(n.startswith("model.weights.") for n in names):
        return Part(whole=False, evidence=f"a zip file, but not from Keras: no model.weights among {len(names)} records")
    return Part(whole=True, evidence=f"zip directory valid, {len(names)} records within {size:,} bytes",
                fingerprint=digest_of(records), content_digest=True)


def look_hdf5(path: Path) -> Part:
    """Whole if the superblock gives the size that the file has, and no writer is marked in it."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        block = file.read(64)
    problem = _hdf5_problem(block, size)
    return Part(whole=not problem, evidence=problem or f"its superblock gives the {size:,} bytes that the file has",
                fingerprint="" if problem else block.hex()[:96])


def _hdf5_problem(block: bytes, size: int) -> str:
    """What is wrong with a file that begins with these bytes; "" if nothing is."""
    if size == 0:
        return "empty file"
    if not block.startswith(_SIGNATURE):
        return "not an HDF5 file"
    version = block[8] if len(block) > 8 else -1
    place = _END_OF_FILE.get(version)
    if place is None or len(block) < place + 8:
        return "an HDF5 file that is cut off, or of an unknown version"
    end = int.from_bytes(block[place:place + 8], "little")
    if block[9 if version >= 2 else 13] != 8:
        return "an HDF5 file whose addresses have not 8 bytes, which is not read"
    if end != size:
        return f"its superblock gives {end:,} bytes, the file has {size:,}"
    return "its superblock says that a writer has it open" if version >= 2 and block[_FLAGS] & 0b101 else ""
