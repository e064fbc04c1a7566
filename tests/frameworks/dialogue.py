"""The other side of a rehearsal: hears what a training says it saved, and tells it when to go on."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptwatch.model import Identity
from ckptwatch.watch.scanner import OURS
from ckptwatch.watch.sightings import files_of, sight_path

HERE = Path(__file__).parent
PATIENCE = 30.0  # seconds until something that lies there must have been seen

Content = Mapping[str, str]  # path below the training's directory → digest of the file


@dataclass(frozen=True, kw_only=True)
class Version:
    """What lay at a path when the training said that it was finished."""

    facts: Mapping[str, Any]  # format, step, epoch, metrics, as the training knows them
    digest: str               # of the arrays, as the training's library loads them


@dataclass(kw_only=True)
class Account:
    """What one training told."""

    out: Path
    result: Mapping[str, Any] = field(default_factory=dict)
    versions: dict[str, list[Version]] = field(default_factory=dict)
    states: list[tuple[frozenset[str], Content]] = field(default_factory=list)  # at each pause: checkpoints, all files

    def digests(self) -> dict[str, list[str]]:
        return {path: [v.digest for v in several] for path, several in self.versions.items()}


class Dialogue:
    """One training script, told when to go on."""

    def __init__(self, script: str, outs: list[Path], base: Path, environment: Mapping[str, str]) -> None:
        with (base / "training.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / f"{script}.py"), *map(str, outs)], cwd=base, env=dict(environment), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        self._log = base / "training.log"

    def documents(self) -> Iterator[dict[str, Any]]:
        """What it says, up to its end. Each has to be answered. Fails if the training does."""
        try:
            while document := self._hear():
                yield document
            assert self._process.wait(PATIENCE) == 0, self._log.read_text()[-5000:]
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()

    def answer(self, **document: Any) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has failed, which the next document tells
            self._process.stdin.write(json.dumps(document) + "\n")
            self._process.stdin.flush()

    def load(self, path: Path) -> str:
        """Digest of the arrays of a checkpoint, loaded by the training's library; "failed: …" if it cannot."""
        self.answer(load=str(path))
        document = self._hear()
        return document.get("digest") or f"failed: {document.get('error')}"

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else {}


class Hearing:
    """Takes down what a training says."""

    def __init__(self, out: Path, dialogue: Dialogue) -> None:
        self.account = Account(out=out)
        self._dialogue = dialogue
        self._lying: dict[str, Identity] = {}

    def pause(self, present: Mapping[str, Mapping[str, Any]]) -> None:
        for name, facts in present.items():
            now = sight_path(self.account.out / name).identity
            if self._lying.get(name) != now:
                self._lying[name] = now
                digest = self._dialogue.load(self.account.out / name)
                self.account.versions.setdefault(name, []).append(Version(facts=facts, digest=digest))
        self.account.states.append((frozenset(present), contents(self.account.out)))


def contents(top: Path) -> Content:
    found = {}
    for file in files_of([top]):
        if OURS not in file.parts:
            found[str(file.relative_to(top))] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def environment(base: Path) -> dict[str, str]:
    """Of a training: nothing of it, not even compiled files, depends on the caller's shell."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "TMPDIR")}
    return {**kept, "PYTHONPATH": str(HERE), "HOME": str(base)}
