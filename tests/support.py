"""What the tests share: waiting for a condition, small checkpoints, a watched project, real processes."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ckptwatch.config import load_config
from ckptwatch.settings import Settings
from ckptwatch.store import checkpoints, evaluations, events, runs
from ckptwatch.store.database import open_reading, open_writing
from ckptwatch.watch.scanner import OURS
from tests.leash import BELOW

HERE = Path(__file__).parent
STUB_WORKER = (sys.executable, str(HERE / "stub_worker.py"))

PATIENCE = 90.0  # seconds; never a measure of speed, only of being stuck


def until(condition: Callable[[], Any], *, what: str = "", patience: float = PATIENCE) -> Any:
    """The first true value of `condition`. Fails the test if there is none for long."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"still not after {patience:.0f} s: {what or condition}")
        time.sleep(0.02)
    return value


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def zip_bytes(content: Any, *, padding: int = 64) -> bytes:
    """A file as torch.save lays it out, made without torch: quick, and its size is what the test says."""
    import io

    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
        parts = {"data.pkl": pickle.dumps(content, protocol=2), "data/0": os.urandom(padding), "version": b"3\n"}
        for name, part in parts.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), part)  # without the time of day
    return data.getvalue()


def save(path: Path, content: Mapping[str, Any] | None = None, *, padding: int = 64) -> bytes:
    """Write a checkpoint as careful trainers do: under another name first. Returns its bytes."""
    data = zip_bytes(dict(content or {}), padding=padding)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_bytes(data)
    temporary.rename(path)
    return data


def tree(root: Path, *, ours: bool = False) -> dict[str, bytes | str | None]:
    """Everything below a directory, to compare before and after: contents, link targets, None for directories."""
    found: dict[str, bytes | str | None] = {}
    for directory, names, files in os.walk(root):
        if not ours and Path(directory) == root and OURS in names:
            names.remove(OURS)
        for name in [*names, *files]:
            path = Path(directory, name)
            key = str(path.relative_to(root))
            found[key] = str(path.readlink()) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
    return found


# ---- a watched project ----------------------------------------------------------------------------------------------

RUN = {"match": "*", "evaluate": {"recipe": "r"}, "rank": {"by": "quality"}, "keep": {"best": 2, "last": 1},
       "approve_over": 1.0}
RECIPE = {
    "sampler": {"command": [sys.executable, "gen.py", "--ckpt", "{checkpoint}", "--seed", "{seed}", "--count", "{count}",
                            "--out", "{out_dir}"]},
    "samples": 4, "metrics": [{"name": "quality", "function": "metric:quality", "mode": "max"}],
}


@dataclass
class Project:
    """A directory with a configuration, runs and a state directory, and the processes a test starts on it."""

    base: Path
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = self.base / "runs"
        self.state = self.base / "state"
        self.file = self.base / "config.yaml"
        self.root.mkdir(exist_ok=True)
        (self.base / "ref").mkdir(exist_ok=True)
        self.config = {
            "state_dir": "state", "watch": [{"root": "runs", "quiet": 0.0, "scan_every": 1.0}],
            "workers": {"devices": ["cpu"], "retry_after": 0.1, "threads": 1}, "recipes": {"r": dict(RECIPE)},
            "publish": {"tensorboard": False}, "runs": [dict(RUN)], **self.config,
        }
        self.write()

    def write(self, **changes: Any) -> "Project":
        """Change keys of the configuration and write it."""
        self.config.update(changes)
        self.file.write_text(yaml.safe_dump(self.config))
        return self

    def run_rule(self, **changes: Any) -> "Project":
        return self.write(runs=[{**self.config["runs"][0], **changes}])

    @property
    def settings(self) -> Settings:
        return load_config(self.file)

    def save(self, name: str, *, quality: float | None = None, padding: int = 64, **content: Any) -> Path:
        """A checkpoint `runs/<name>` whose quality the stub worker reports."""
        path = self.root / name
        save(path, content if quality is None else {"quality": quality, **content}, padding=padding)
        return path

    def once(self, *, dry_run: bool = False) -> int:
        """`ckptwatch run --once` in this process (with the worker of the `stub_workers` fixture)."""
        from ckptwatch.daemon import Daemon

        return Daemon(self.settings, dry_run=dry_run).run_once()

    # ---- processes -------------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        return {**kept, BELOW: str(self.base), "XDG_STATE_HOME": str(self.base / "xdg"), "OMP_NUM_THREADS": "1"}

    def cli(self, *arguments: str, config: bool = True, stub: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
        """One command in a process of its own."""
        return subprocess.run(
            self._argv(arguments, config, stub), cwd=self.base, env=self.environment(), text=True, capture_output=True,
            timeout=PATIENCE, **more)

    def json(self, *arguments: str, **more: Any) -> dict[str, Any]:
        done = self.cli(*arguments, "--json", **more)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def daemon(self, *arguments: str, stub: bool = True, wait: bool = True) -> Iterator["Process"]:
        """A daemon as a real process; killed at the end if it still lives."""
        with (self.base / "daemon.log").open("ab") as log:
            process = subprocess.Popen(
                self._argv(("run", *arguments), True, stub), cwd=self.base, env=self.environment(), stdout=log, stderr=log)
        daemon = Process(process, self)
        try:
            if wait:
                until(lambda: daemon.answers() or process.poll() is not None, what="daemon answers")
                assert process.poll() is None, self.log
            yield daemon
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def _argv(self, arguments: tuple[str, ...], config: bool, stub: bool) -> list[str]:
        program = [str(HERE / "stub_daemon.py")] if stub else ["-m", "ckptwatch"]
        return [sys.executable, *program, *arguments, *(["-c", str(self.file)] if config else [])]

    # ---- looking ---------------------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        path = self.base / "daemon.log"
        return path.read_text() if path.exists() else ""

    @contextmanager
    def reading(self) -> Iterator[Any]:
        db = open_reading(self.state)
        assert db is not None, "no database yet"
        try:
            with db.read() as conn:
                yield conn
        finally:
            db.close()

    @contextmanager
    def writing(self) -> Iterator[Any]:
        """A transaction of our own; only while no daemon runs."""
        db = open_writing(self.state)
        try:
            with db.write() as conn:
                yield conn
        finally:
            db.close()

    def states(self) -> dict[str, str]:
        """Path below the root → state, of the newest row of each path."""
        with self.reading() as conn:
            rows = [c for r in runs.all_runs(conn) for c in checkpoints.of_run(conn, r.id)]
        return {str(c.path.relative_to(self.root)): str(c.state) for c in sorted(rows, key=lambda c: c.id)}

    def evaluations(self) -> dict[str, list[Any]]:
        """Path below the root → its evaluations."""
        found: dict[str, list[Any]] = {}
        with self.reading() as conn:
            for run in runs.all_runs(conn):
                names = {c.id: str(c.path.relative_to(self.root)) for c in checkpoints.of_run(conn, run.id)}
                for e in evaluations.of_checkpoints_in(conn, run.id):
                    found.setdefault(names[e.checkpoint_id], []).append(e)
        return found

    def history(self) -> list[tuple[str, str | None]]:
        """(kind, path below the root) of all events, oldest first."""
        with self.reading() as conn:
            rows = events.recent(conn, limit=100_000)
        return [(e.kind, None if e.path is None else os.path.relpath(e.path, self.root)) for e in reversed(rows)]

    def quiet_state(self) -> bool:
        """Is everything recorded also evaluated, one way or the other?"""
        if open_reading(self.state) is None:
            return False
        found = [e for several in self.evaluations().values() for e in several]
        return bool(found) and all(e.state in ("done", "failed", "abandoned") for e in found)


@dataclass
class Process:
    process: subprocess.Popen[bytes]
    project: Project

    def answers(self) -> Mapping[str, Any] | None:
        from ckptwatch import control
        from ckptwatch.errors import CkptwatchError

        try:
            reply = control.request(self.project.state, "live", patience=10) if self.project.state.is_dir() else None
        except CkptwatchError:
            return None
        return reply if reply and reply["pid"] == self.process.pid else None

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def alive(pid: int) -> bool:
    """Does the process exist, and is it more than a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
